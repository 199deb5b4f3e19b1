"""Camera paths in plain words, and the command that checks a file."""

import json
import subprocess
import sys

import numpy as np
import pytest

from recapture_jax.camera import path as paths
from recapture_jax.camera.describe import describe, measure
from recapture_jax.camera.formats import write_path
from recapture_jax.camera.moves import build_trajectory
from recapture_jax.camera.path import PosePath
from recapture_jax.camera.pinhole import intrinsics_from_fov

K = intrinsics_from_fov(40, 48, 64)


def film(moves, frames=13, pivot=2.0):
    return build_trajectory(moves, frames, K, pivot)


WORDS = {
    "static": ["does not move", "does not turn", "does not zoom"],
    "pan right 15": ["does not move", "pans right 15.0 deg"],
    "pan left 15; tilt up 4": ["pans left 15.0, tilts up 4.0 deg"],
    "roll ccw 7": ["rolls counter-clockwise 7.0 deg"],
    "dolly in 0.3": ["moves forward 0.300 pivot depths", "does not turn"],
    "truck left 0.2; pedestal up 0.1": ["moves left 0.200, up 0.100 pivot depths"],
    "zoom in 1.5": ["zooms in, focal length x1.500", "does not move"],
    "orbit right 30": [
        *("moves right 0.500, forward 0.134 pivot depths", "pans left 30.0 deg"),
        "circles a point 1 pivot depths ahead by 30.0 deg, looking at it: an orbit",
    ],
    "gen3c:right": ["keeps looking at a point 1 pivot depths ahead", "moves right 0.300"],
    "trajectorycrafter:loop1": ["returns to its start, after", "turns back, after it"],
    "dolly in 0.2 0-6; dolly out 0.2 6-12": ["returns to its start, after forward 0.200"],
    "zoom in 1.5 0-6; zoom out 1.5 6-12": ["zooms up to x1.500 and back"],
    "seva:orbit": ["circles a point 1 pivot depths ahead by 360.0 deg", "pans left 360.0 deg"],
    "pan right 10 5-5": [
        *("warning: the direction jumps between frames 4 and 5", "frames 0 to 4, 5 to 12"),
    ],
    "pan right 10 0-3; zoom in 1.2 6-9": ["holds still in frames 3 to 6, 9 to 12"],
    "truck right 0.1 5-5": ["warning: the position jumps between frames 4 and 5"],
    "start truck left 0.1; dolly in 0.2": [
        *("starts away from the source camera: stands left 0.100 pivot depths of it\n",),
        *("seen from its own frame 0", "moves forward 0.200"),
    ],
    "start orbit left 5; start roll cw 3; dolly in 0.2": [
        "stands left 0.087, forward 0.004 pivot depths of it and looks right 5.0, rolled clockwise 3.0 deg",
    ],
}


@pytest.mark.parametrize("moves", WORDS)
def test_moves_come_back_in_words(moves):
    text = describe(film(moves))
    for words in WORDS[moves]:
        assert words in text, text
    assert "13 frames, translations in pivot depths" in text
    assert ("warning" in text) == any("warning" in words for words in WORDS[moves])


PARTS = {
    "dolly in 0.3 0-6; pan right 15 ease-in-out 6-12": [
        "frames 0 to 6: moves forward 0.300 pivot depths (way 0.300)",
        "frames 6 to 12: pans right 15.0 deg",
    ],
    "dolly in 0.3 0-6; truck right 0.3 6-12; tilt up 5 6-12": [
        "frames 0 to 6: moves forward 0.300 pivot depths (way 0.300)",
        "frames 6 to 12: moves right 0.300 pivot depths (way 0.300); tilts up 5.0 deg",
    ],
    "orbit right 20 ease-in-out 0-6; orbit left 20 6-12": [
        "frames 0 to 6: moves right 0.342, forward 0.060 pivot depths (way 0.349); pans left 20.0 deg",
        "frames 6 to 12: moves left 0.342, back 0.060 pivot depths (way 0.349); pans right 20.0 deg",
    ],
    "pan right 10 0-3; zoom in 1.2 6-9": [
        *("frames 0 to 3: pans right 10.0 deg", "frames 3 to 6: holds still"),
        *("frames 6 to 9: zooms in, focal length x1.200", "frames 9 to 12: holds still"),
    ],
    "start truck left 0.1; pan left 4 4-8; roll cw 3 8-12": [
        *("frames 0 to 4: holds still", "frames 4 to 8: pans left 4.0 deg"),
        "frames 8 to 12: rolls clockwise 3.0 deg",
    ],
    "zoom in 1.5 0-4; zoom out 1.5 4-12": [
        "frames 0 to 4: zooms in, focal length x1.500",
        "frames 4 to 12: zooms out, focal length x0.667",
    ],
}


@pytest.mark.parametrize("moves", PARTS)
def test_a_sequence_is_told_in_parts(moves):
    text = describe(film(moves))
    told = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    assert told == PARTS[moves]
    assert "in parts, in the axes of frame 0:" in text


@pytest.mark.parametrize(
    "moves",
    [
        *("orbit right 30", "seva:orbit", "seva:spiral", "gen3c:right", "gen3c:clockwise"),
        *("truck right 0.3; pan left 20", "viewcrafter:wave1", "trajectorycrafter:loop1"),
        *("crane up 0.3 ease-in-out", "pan right 10 0-6; pan right 10 6-12", "static"),
        "dolly in 0.3; zoom in 1.5 ease-in",
    ],
)
def test_one_motion_has_no_parts(moves):
    """A curve, or a straight way of a camera that turns, is no sequence."""
    assert "in parts" not in describe(film(moves))


def test_a_shaky_path_is_not_told_in_parts():
    poses = np.tile(np.eye(4), (40, 1, 1))
    poses[:, :3, 3] = np.random.default_rng(0).normal(size=(40, 3))
    assert "in parts" not in describe(PosePath(poses, "metres", name="shaky"))


def test_units_are_said():
    poses = np.asarray(film("dolly in 0.3").cameras.world_from_camera, np.float64)
    metres, unknown = (PosePath(poses, units, name="p") for units in ("metres", "arbitrary"))
    assert "translations in metres" in describe(metres)
    assert "moves forward 0.600 m (way 0.600)" in describe(metres)
    assert "in a unit that the file does not say (a scale is needed to film it)" in describe(
        unknown
    )
    assert "frame 0 is taken as the source camera" in describe(unknown)


def test_numbers_of_a_motion():
    motion = measure(paths.from_trajectory(film("orbit up 20; zoom out 1.25")))
    assert motion.arc == pytest.approx(20, abs=1e-3)
    np.testing.assert_allclose(motion.target, [0, 0, 1], atol=1e-5)
    np.testing.assert_allclose(motion.angles, [0, -20, 0], atol=1e-3)
    assert motion.zoom == pytest.approx(0.8)
    assert motion.steps.shape == (12, 2)
    np.testing.assert_allclose(motion.steps[:, 1], 20 / 12, atol=1e-3)
    assert motion.length == pytest.approx(np.radians(20), rel=1e-3)


def test_a_camera_that_turns_on_the_spot_looks_at_no_point():
    assert measure(paths.from_trajectory(film("pan right 30"))).target is None
    assert measure(paths.from_trajectory(film("pan right 30; truck right 0.3"))).target is None
    single = film("static", frames=1)
    assert "1 frames" in describe(single) and "one frame only" in describe(single)


def run(*arguments):
    command = [sys.executable, "-m", "recapture_jax.camera.validate", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_command_tells_what_a_file_does(tmp_path):
    write_path(paths.from_trajectory(film("orbit right 30")), tmp_path / "p.npz", "npz")
    code, out, err = run(f"--path={tmp_path / 'p.npz'}", "--num_frames=7")
    assert code == 0 and not err
    assert "is good, read as npz" in out and "7 frames" in out and "an orbit" in out


def test_command_tells_what_is_wrong(tmp_path):
    file = tmp_path / "cameras.json"
    matrix = np.eye(4).tolist()
    matrix[1][1] = -1.0
    data = {"w": 8, "h": 8, "fl_x": 9, "frames": [{"transform_matrix": matrix}]}
    file.write_text(json.dumps(data))
    code, out, err = run(f"--path={file}")
    assert code == 2 and not out
    assert err.count("\n") == 1 and "frames[0].transform_matrix: the axes are mirrored" in err


def test_command_tells_what_moves_and_time_do():
    code, out, err = run(
        "--moves=dolly in 0.3 0-24; pan right 15 ease-in-out 24-48",
        *("--time=play 0-24; freeze 24 for 24", "--num_frames=25"),
    )
    assert code == 0 and not err
    assert "dolly in 0.3 0-24; pan right 15 ease-in-out 24-48: 49 frames" in out
    assert "frames 0 to 24: moves forward 0.300" in out and "frames 24 to 48: pans right" in out
    assert "frames 0 to 24: source frames 0 to 24\n" in out
    assert "frames 25 to 48: time stands still in source frame 24\n" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "--path is missing"),
        (("--path=no.json",), "no.json does not exist"),
        (("--path=a.json", "b.json"), "unexpected argument 'b.json'"),
        (("--nonsense=1",), "nonsense"),
        (("--num_frames=many", "--path=a.json"), "num_frames"),
        (("--path=a.json", "--moves=pan"), "--path and --moves were given"),
        (("--moves=pan up",), "pan cannot go 'up'"),
        (("--moves=pan", "--time=freeze 3"), "--time without --num_frames"),
        (("--moves=pan", "--time=freeze 9", "--num_frames=9"), "expected at most 8"),
        (("--moves=pan", "--format=tum"), "expected none with --moves"),
        (("--moves=pan", "--num_frames=0"), "expected at least 1"),
    ],
)
def test_command_refuses_in_one_line(arguments, message):
    code, out, err = run(*arguments)
    assert code == 2 and not out and err.count("\n") == 1 and message in err

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
        *("starts away from the source camera: moves left 0.100", "moves forward 0.200"),
    ],
}


@pytest.mark.parametrize("moves", WORDS)
def test_moves_come_back_in_words(moves):
    text = describe(film(moves))
    for words in WORDS[moves]:
        assert words in text, text
    assert "13 frames, translations in pivot depths" in text
    assert ("warning" in text) == any("warning" in words for words in WORDS[moves])


def test_units_are_said():
    poses = np.asarray(film("dolly in 0.3").cameras.world_from_camera, np.float64)
    metres, unknown = (PosePath(poses, units, name="p") for units in ("metres", "arbitrary"))
    assert "translations in metres" in describe(metres)
    assert "moves forward 0.600 m (way 0.600)" in describe(metres)
    assert "unknown: the file does not say; a scale is needed" in describe(unknown)
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
    assert code == 1 and not out
    assert err.count("\n") == 1 and "frames[0].transform_matrix: the axes are mirrored" in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "--path is missing"),
        (("--path=no.json",), "no.json does not exist"),
        (("--path=a.json", "b.json"), "unexpected argument 'b.json'"),
        (("--nonsense=1",), "nonsense"),
    ],
)
def test_command_refuses_in_one_line(arguments, message):
    code, out, err = run(*arguments)
    assert code == 1 and not out and err.count("\n") == 1 and message in err

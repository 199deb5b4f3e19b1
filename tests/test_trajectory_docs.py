"""docs/trajectories.md says what the readers do: its tables make the files that are read here."""

import json
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from recapture_jax.camera import path as paths
from recapture_jax.camera.formats import FORMATS, read_as, three_lines
from recapture_jax.camera.timing import source_frames
from recapture_jax.camera.trajectory import MODES
from recapture_jax.errors import InputError

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "docs/trajectories.md").read_text()

# The second camera is 1 to the right, 2 down and 3 ahead of the first, and looks to its right.
RIGHT, DOWN, AHEAD = 1.0, 2.0, 3.0
EXPECTED = np.array([[0, 0, 1, RIGHT], [0, 1, 0, DOWN], [-1, 0, 0, AHEAD], [0, 0, 0, 1.0]])
# Of each axis name: where its x, y and z point, in OpenCV's axes.
AXES = {
    "OpenCV": np.eye(3),
    "OpenGL": np.diag([1.0, -1.0, -1.0]),
    "Unreal": np.array([[0, 1.0, 0], [0, 0, -1.0], [1.0, 0, 0]]),
}


def table(first_heading):
    """Rows of the table whose header starts with a name, as lists of cells."""
    lines = TEXT[TEXT.index(f"\n| {first_heading} |") + 1 :].splitlines()
    rows = []
    for line in lines[2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return rows


CONVENTIONS = {row[0]: row[1:] for row in table("format")}
ABOUT_PIVOT = sorted(three_lines.DIALECTS)


def test_every_format_has_its_row():
    assert set(CONVENTIONS) == set(FORMATS)


def stored(name, length=1.0):
    """Both poses as the table says that the file has them: direction and axes."""
    direction, axes = CONVENTIONS[name][:2]
    change = np.eye(4)
    change[:3, :3] = AXES[axes]
    result = []
    for pose in (np.eye(4), EXPECTED):
        # Unreal's world has its axes too; the worlds of the others are any.
        pose = (change.T if axes == "Unreal" else np.eye(4)) @ pose @ change
        pose[:3, 3] *= length
        result.append(np.linalg.inv(pose) if direction == "camera_from_world" else pose)
    return result


def quaternion(pose):
    """(w, x, y, z) of a turn about y by 90 degrees either way, or none."""
    turn = pose[0, 2]
    return [np.sqrt(0.5), 0, turn * np.sqrt(0.5), 0] if turn else [1, 0, 0, 0]


def numbers(values):
    return " ".join(f"{v:.9g}" for v in values)


def write_sample(name, folder):
    """A file of the format, made from the words of the table; gives its path."""
    poses = stored(name, 100.0 if "centimetres" in CONVENTIONS[name][2] else 1.0)
    file = folder / {"colmap": "images.txt", "tum": "t.txt", "realestate10k": "t.txt"}.get(
        name, "t.json"
    )
    if name == "nerfstudio":
        cameras = [{"camera_to_world": p.ravel().tolist(), "fov": 50, "aspect": 1.5} for p in poses]
        file.write_text(json.dumps({"camera_path": cameras}))
    elif name == "transforms":
        frames = [{"transform_matrix": p.tolist()} for p in poses]
        file.write_text(json.dumps({"w": 60, "h": 40, "fl_x": 50, "frames": frames}))
    elif name == "colmap":
        (folder / "cameras.txt").write_text("1 PINHOLE 60 40 50 50 30 20\n")
        lines = [
            f"{i} {numbers([*quaternion(p), *p[:3, 3]])} 1 {i}.png\n"
            for i, p in enumerate(poses, 1)
        ]
        file.write_text("\n".join(lines) + "\n")
    elif name == "realestate10k":
        lens = "0.8 1.2 0.5 0.5 0 0"
        file.write_text(
            "\n".join(f"{i} {lens} {numbers(p[:3].ravel())}" for i, p in enumerate(poses))
        )
    elif name == "tum":
        rows = [[i, *p[:3, 3], *np.roll(quaternion(p), -1)] for i, p in enumerate(poses)]
        file.write_text("\n".join(map(numbers, rows)))
    else:
        rows = [" ".join(f"[{numbers(row)}]" for row in p.T) + " " for p in poses]
        file.write_text(json.dumps({f"frame{i}": {"cam01": row} for i, row in enumerate(rows)}))
    return file


@pytest.mark.parametrize("name", sorted(set(FORMATS) - set(ABOUT_PIVOT) - {"keyframes", "npz"}))
def test_direction_axes_and_unit_of_files_of_others(name, tmp_path):
    file = write_sample(name, tmp_path)
    found, path = read_as(file)
    assert found == name and not path.anchored
    poses = paths.relative_to_first(path).world_from_camera
    np.testing.assert_allclose(poses[1], EXPECTED, atol=1e-6)
    assert path.units == re.match(r"\w+", CONVENTIONS[name][2])[0]


def test_direction_of_an_npz_is_its_name(tmp_path):
    assert CONVENTIONS["npz"][0] == "as the array is called"
    poses = np.stack([np.eye(4), EXPECTED])
    np.savez(tmp_path / "a.npz", c2w=poses)
    np.savez(tmp_path / "b.npz", w2c=np.linalg.inv(poses), units="metres")
    np.savez(tmp_path / "c.npz", poses=np.linalg.inv(poses))
    for file, spec in (("a", ""), ("b", ""), ("c", "npz convention=w2c")):
        path = read_as(tmp_path / f"{file}.npz", spec)[1]
        np.testing.assert_allclose(path.world_from_camera, poses, atol=1e-9)
        assert path.units == ("metres" if file == "b" else "arbitrary")


def test_keyframes_say_their_unit_and_may_start_elsewhere(tmp_path):
    for units in paths.UNITS:
        frames = [{"frame": 0, "position": [RIGHT, DOWN, AHEAD], "pan": 90}]
        data = {"format": "recapture_jax keyframes", "version": 1, "units": units}
        (tmp_path / "k.json").write_text(json.dumps(data | {"keyframes": frames}))
        path = read_as(tmp_path / "k.json")[1]
        np.testing.assert_allclose(path.world_from_camera[0], EXPECTED, atol=1e-6)
        assert path.units == units and path.anchored
        film = paths.to_trajectory(path, 1, np.eye(3), 2.0, scale=0.5).cameras.world_from_camera[0]
        np.testing.assert_allclose(film[:3, 3], [0.5, 1.0, 1.5], atol=1e-6)


@pytest.mark.parametrize("name", ABOUT_PIVOT)
@pytest.mark.parametrize("line", ["theta", "phi", "r"])
def test_signs_of_three_line_files(name, line, tmp_path):
    """Each sequence alone: the camera goes where the table says."""
    order = CONVENTIONS[name][3].removeprefix("lines ").split(", ")
    amounts = {"theta": 10, "phi": 10, "r": 0.2}
    lines = [f"0 {amounts[n]}" if n == line else "0 0" for n in order]
    (tmp_path / "t.txt").write_text("\n".join(lines))
    path = read_as(tmp_path / "t.txt", f"{name} elevation=0" if name == "viewcrafter" else name)[1]
    ways = dict(part.split() for part in CONVENTIONS[name][1].split(", "))
    right, down, forward = path.world_from_camera[-1, :3, 3]
    moved = {"up": -down, "down": down, "right": right, "in": forward, "out": -forward}
    assert moved[ways[line]] > 0.1
    assert path.units == CONVENTIONS[name][2] and path.anchored
    with pytest.raises(InputError, match="expected a format"):
        read_as(tmp_path / "t.txt")


def test_first_pose_goes_onto_the_source_camera():
    poses = np.stack([EXPECTED, EXPECTED @ EXPECTED])
    path = paths.PosePath(poses, "metres")
    film = paths.to_trajectory(path, 2, np.eye(3), 2.0, depth_kind="metric").cameras
    np.testing.assert_allclose(film.world_from_camera[0], np.eye(4), atol=1e-6)
    np.testing.assert_allclose(film.world_from_camera[1], EXPECTED, atol=1e-5)


@pytest.mark.parametrize("unit, metric, relative", table("unit"))
def test_table_of_scales(unit, metric, relative):
    path = paths.PosePath(np.stack([np.eye(4), EXPECTED]), unit)
    for kind, says in (("metric", metric), ("relative", relative)):
        if says.startswith("refused"):
            with pytest.raises(InputError, match="expected config.camera.path_scale"):
                paths.depth_scale(path, 2.5, kind)
        else:
            expected = {"1 is the pivot depth": 2.5, "1 is a metre": 1.0}[says]
            assert paths.depth_scale(path, 2.5, kind) == expected
        assert paths.depth_scale(path, 2.5, kind, 0.3) == 0.3
    turned = EXPECTED.copy()
    turned[:3, 3] = 0
    still = paths.PosePath(np.stack([np.eye(4), turned]), unit)
    paths.depth_scale(still, 2.5, "relative")  # needs none


def test_modes_and_times_are_those_there_are():
    assert tuple(row[0] for row in table("`camera.mode`")) == MODES
    times = {row[0]: row[1] for row in table("`camera.time`")}
    shown = [source_frames(spec, 14) for spec in times]
    assert [len(frames) for frames in shown] == [14, 7 + 12 + 8, 14, 7, 14]
    assert set(shown[0]) == {6} and list(shown[4]) == list(range(13, -1, -1))
    assert list(shown[2]) == sorted(shown[2]) and shown[3][-1] == 13


def test_commands_of_the_page_run(tmp_path):
    (tmp_path / "FILE").write_text("0 0 0 0 0 0 0 1\n1 0 0 1 0 0 0 1\n")
    block = TEXT.split("```")[1].strip().splitlines()
    assert len(block) == 3
    for line in block:
        words = shlex.split(line)[1:]
        words = [w.replace("--path=FILE", f"--path={tmp_path}/FILE") for w in words]
        words += ["--format=tum"] if "FILE" in line else []
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, timeout=120, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
        assert "moves" in done.stdout


def test_fields_that_the_page_names_are_there():
    from recapture_jax.config import default_config

    fields = set(re.findall(r"\bcamera\.(\w+)", TEXT)) - {"validate", "path_world", "json"}
    camera = default_config().camera
    assert {"path", "path_scale", "poses", "mode", "time", "stabilise", "pivot_depth"} <= fields
    assert all(field in camera or field in ("formats",) for field in fields), fields

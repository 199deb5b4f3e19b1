"""Three-line txt files in three dialects, and keyframe files: against the tools' own arithmetic."""

import dataclasses
import json

import numpy as np
import pytest
from test_formats import H, K, W

from recapture_jax.camera import moves
from recapture_jax.camera import path as paths
from recapture_jax.camera.formats import read_path, write_path
from recapture_jax.camera.pinhole import intrinsics_from_fov
from recapture_jax.errors import InputError


def theirs(tool, theta, phi, r, elevation):
    """source_from_target as the tools' own programs arrive at it, pivot at distance 1.

    TrajectoryCrafter and CogNVS: both views as camera_from_world, a start turned by diag(-1, 1, -1)
    (or not), r off z, then the turns about x and y from the left, then the radius onto z.
    ViewCrafter: world_from_camera about the pivot with y up and z towards the camera, r times the
    height onto z, then the same turns.
    """
    t, p = np.radians(theta), np.radians(phi)
    turn_x = np.array(
        [[1, 0, 0, 0], [0, np.cos(t), -np.sin(t), 0], [0, np.sin(t), np.cos(t), 0], [0, 0, 0, 1]]
    )
    turn_y = np.array(
        [[np.cos(p), 0, np.sin(p), 0], [0, 1, 0, 0], [-np.sin(p), 0, np.cos(p), 0], [0, 0, 0, 1]]
    )
    if tool == "viewcrafter":
        e = np.radians(180 - elevation)
        pivot = np.eye(4)
        pivot[:3, :3] = [[1, 0, 0], [0, np.cos(e), np.sin(e)], [0, -np.sin(e), np.cos(e)]]
        pivot[2, 3] = 1
        source = np.linalg.inv(pivot)
        target = source.copy()
        target[2, 3] += r * source[2, 3]
        return np.linalg.inv(source) @ turn_y @ turn_x @ target
    start = np.diag([-1.0, 1, -1, 1]) if tool == "trajectorycrafter" else np.eye(4)
    target = start.copy()
    target[2, 3] -= r
    target = turn_y @ turn_x @ target
    source = start.copy()
    source[2, 3] += 1
    target[2, 3] += 1
    return np.linalg.inv(target @ np.linalg.inv(source))


@pytest.mark.parametrize("tool", ["trajectorycrafter", "cognvs", "viewcrafter"])
def test_three_lines_are_filmed_as_the_tool_does(tool, tmp_path):
    values = {"theta": -17.0, "phi": 28.0, "r": 0.3}
    order = {"trajectorycrafter": ("theta", "phi", "r")}.get(tool, ("phi", "theta", "r"))
    text = "\n".join(f"0 {values[name]}" for name in order)
    for elevation in (0.0, 5.0, 20.0):
        options = {"elevation": elevation} if tool == "viewcrafter" else {}
        path = three(tmp_path, text, tool, num_frames=3, **options)
        for share, pose_ in zip((0, 0.5, 1), path.world_from_camera, strict=True):
            expected = theirs(tool, *(share * values[n] for n in ("theta", "phi", "r")), elevation)
            np.testing.assert_allclose(pose_, expected, atol=1e-6)


def three(tmp_path, text, tool, **options):
    file = tmp_path / "t.txt"
    file.write_text(text)
    return read_path(file, tool, **options)


@pytest.mark.parametrize(
    "tool, text",
    [("trajectorycrafter", "0 0\n0 30\n0 0"), ("cognvs", "0 30\n0 0\n0 0")],
)
def test_phi_30_goes_right_about_the_pivot(tool, text, tmp_path):
    """The tool's own effect at radius 5: camera at (+2.5, 0, +0.67), looking at the pivot."""
    path = three(tmp_path, text, tool)
    assert path.num_frames == 49 and path.units == "pivot" and path.anchored
    end = path.world_from_camera[-1]
    np.testing.assert_allclose(5 * end[:3, 3], [2.5, 0, 0.67], atol=2e-3)
    np.testing.assert_allclose(end[:3, :3] @ [0, 0, 1] + end[:3, 3], [0, 0, 1], atol=1e-6)


def test_dialects_differ_in_order_and_sign(tmp_path):
    """Named for peer files that look alike: the same three lines in three tools."""
    text = "0 20\n0 10\n0 -0.2"
    ends = {
        tool: three(tmp_path, text, tool).world_from_camera[-1, :3, 3]
        for tool in ("trajectorycrafter", "cognvs", "viewcrafter")
    }
    assert (
        ends["trajectorycrafter"][0] > 0.1 and ends["trajectorycrafter"][1] < -0.3
    )  # right, up 20
    assert ends["cognvs"][0] > 0.3 and ends["cognvs"][1] < -0.1  # right 20, up 10
    assert ends["viewcrafter"][0] > 0.2 and ends["viewcrafter"][1] > 0.05  # right 20, DOWN 10
    forward = {
        tool: three(tmp_path, "0 0\n0 0\n0 -0.2", tool, **extra).world_from_camera[-1, 2, 3]
        for tool, extra in (("cognvs", {}), ("viewcrafter", {"elevation": 0.0}))
    }
    assert forward["cognvs"] == pytest.approx(-0.2)  # -r backs away
    assert forward["viewcrafter"] == pytest.approx(0.2, abs=1e-6)  # -r comes closer


def test_four_numbers_are_the_cubic_through_them(tmp_path):
    """More than three numbers go through a cubic spline; four of them fix one cubic."""
    values, share = [0.0, 4.0, -2.0, 6.0], np.linspace(0, 1, 49)
    path = three(tmp_path, "0 0\n0 4 -2 6\n0 0", "trajectorycrafter")
    phi = np.degrees(np.arcsin(-path.world_from_camera[:, 0, 2]))
    exact = np.polyval(np.polyfit(np.linspace(0, 1, 4), values, 3), share)
    np.testing.assert_allclose(phi, exact, atol=1e-4)
    straight = three(tmp_path, "0 0\n0 4 -2\n0 0", "trajectorycrafter", num_frames=5)
    phi = np.degrees(np.arcsin(-straight.world_from_camera[:, 0, 2]))
    np.testing.assert_allclose(phi, [0, 2, 4, 1, -2], atol=1e-5)


@pytest.mark.parametrize("tool", ["trajectorycrafter", "cognvs", "viewcrafter"])
def test_three_lines_round_trip(tool, tmp_path):
    order = "0 -12\n0 25\n0 0.15"
    path = three(tmp_path, order, tool)
    write_path(path, tmp_path / "back.txt", tool)
    again = read_path(tmp_path / "back.txt", tool)
    np.testing.assert_allclose(again.world_from_camera, path.world_from_camera, atol=2e-6)
    # The other tools' files say the same path in another way, or refuse.
    curve = three(tmp_path, "0 3 9 3 0\n0 20\n0 0", tool)
    write_path(curve, tmp_path / "curve.txt", tool)
    lines = (tmp_path / "curve.txt").read_text().splitlines()
    assert len(lines[0].split()) == curve.num_frames and len(lines[1].split()) == 2


def test_three_lines_cannot_say_a_pan(tmp_path):
    film = moves.build_trajectory("pan right 10", 5, intrinsics_from_fov(40, H, W), 1.0)
    path = dataclasses.replace(paths.from_trajectory(film), intrinsics=None)
    with pytest.raises(InputError, match="is none of the cameras of cognvs"):
        write_path(path, tmp_path / "t.txt", "cognvs")
    orbit = moves.build_trajectory("orbit right 20", 5, intrinsics_from_fov(40, H, W), 1.0)
    with pytest.raises(InputError, match="circles 5 degrees above it .its elevation; 0: level."):
        write_path(paths.from_trajectory(orbit), tmp_path / "t.txt", "viewcrafter")
    write_path(paths.from_trajectory(orbit), tmp_path / "v.txt", "viewcrafter", elevation=0.0)
    zoom = moves.build_trajectory("zoom in 1.3", 5, intrinsics_from_fov(40, H, W), 1.0)
    with pytest.raises(InputError, match="zooms"):
        write_path(paths.from_trajectory(zoom), tmp_path / "t.txt", "cognvs")


def test_three_lines_need_their_tool_named(tmp_path):
    (tmp_path / "t.txt").write_text("0 30\n0 0\n0 0\n")
    with pytest.raises(InputError, match="trajectorycrafter, cognvs, viewcrafter"):
        read_path(tmp_path / "t.txt")
    # Three lines of eight numbers fit TUM as well.
    (tmp_path / "t.txt").write_text("0 0 0 0 0 0 0 1\n1 0 0 0 0 0 0 1\n2 0 0 0 0 0 0 1\n")
    with pytest.raises(InputError, match="three lines"):
        read_path(tmp_path / "t.txt")
    assert read_path(tmp_path / "t.txt", "tum").num_frames == 3


# Keyframes


def keyframes(tmp_path, *frames, **fields):
    data = {"format": "recapture_jax keyframes", "version": 1, "units": "pivot"}
    file = tmp_path / "keys.json"
    file.write_text(json.dumps(data | fields | {"keyframes": list(frames)}))
    return read_path(file)


def test_keyframes_hold_ease_and_inherit(tmp_path):
    path = keyframes(
        tmp_path,
        {"frame": 2, "easing": "ease-in-out"},
        {"frame": 6, "position": [0.4, 0, 0], "pan": 20},
        {"frame": 8, "zoom": 2.0},
        num_frames=10,
    )
    x = path.world_from_camera[:, 0, 3]
    np.testing.assert_allclose(x, [0, 0, 0, 0.0625, 0.2, 0.3375, 0.4, 0.4, 0.4, 0.4], atol=1e-6)
    pan = np.degrees(np.arctan2(path.world_from_camera[:, 0, 2], path.world_from_camera[:, 2, 2]))
    np.testing.assert_allclose(pan[[0, 4, 6, 9]], [0, 10, 20, 20], atol=1e-4)  # right, and stays
    np.testing.assert_allclose(path.focal_factor[5:], [1, 1, np.sqrt(2), 2, 2])
    assert path.anchored and path.units == "pivot"


def test_keyframes_look_at_a_point(tmp_path):
    path = keyframes(
        tmp_path,
        {"frame": 0, "look_at": [0, 0, 1]},
        {"frame": 4, "position": [0.5, -0.2, 0.1]},
    )
    end = path.world_from_camera[-1]
    ray = np.array([0, 0, 1]) - end[:3, 3]
    np.testing.assert_allclose(end[:3, 2], ray / np.linalg.norm(ray), atol=1e-6)


def test_keyframe_zoom_of_the_first_frame_is_over_the_source(tmp_path):
    path = keyframes(tmp_path, {"frame": 0, "zoom": 1.5}, {"frame": 3})
    film = paths.to_trajectory(path, 4, K, 2.0)
    np.testing.assert_allclose(film.cameras.intrinsics[0, 0, 0], 1.5 * K[0, 0])
    write_path(path, tmp_path / "again.json", "keyframes")
    np.testing.assert_allclose(read_path(tmp_path / "again.json").focal_factor, 1.5)

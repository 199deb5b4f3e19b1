"""Frame ranges, starts, presets of other tools: what they do, on pixels and against closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_moves import BLOBS, PIVOT, H, K, W, distance, film

from recapture_jax.camera import pose
from recapture_jax.camera.moves import Move, build_trajectory, parse_moves
from recapture_jax.camera.presets import PRESETS
from recapture_jax.errors import InputError


def cameras(moves, frames, pivot=1.0):
    camera = build_trajectory(moves, frames, K, pivot).cameras
    return np.asarray(camera.world_from_camera), np.asarray(camera.intrinsics)


def pan_of(poses):
    return np.degrees(np.arctan2(poses[:, 0, 2], poses[:, 2, 2]))


def test_ranges_make_a_sequence():
    poses, _ = cameras("dolly in 0.3 0-24; pan right 15 ease-in-out 24-48", 49)
    np.testing.assert_allclose(poses[:25, 2, 3], np.linspace(0, 0.3, 25), atol=1e-6)
    np.testing.assert_allclose(poses[24:, 2, 3], 0.3, atol=1e-6)  # complete, and stays
    s = np.linspace(0, 1, 25)
    np.testing.assert_allclose(pan_of(poses)[24:], 15 * s**2 * (3 - 2 * s), atol=1e-4)
    np.testing.assert_allclose(pan_of(poses)[:25], 0, atol=1e-6)


def test_ranges_that_overlap_add_up():
    poses, _ = cameras("truck right 0.2 0-4; truck right 0.4 2-6", 9)
    expected = [0, 0.05, 0.1, 0.25, 0.4, 0.5, 0.6, 0.6, 0.6]
    np.testing.assert_allclose(poses[:, 0, 3], expected, atol=1e-6)
    there_and_back, _ = cameras("pan right 10 0-4; pan left 10 4-end", 9)
    np.testing.assert_allclose(
        pan_of(there_and_back), [0, 2.5, 5, 7.5, 10, 7.5, 5, 2.5, 0], atol=1e-4
    )


def test_a_range_of_one_frame_is_a_cut_and_start_is_a_range():
    poses, _ = cameras("pan right 10 3-3", 6)
    np.testing.assert_allclose(pan_of(poses), [0, 0, 0, 10, 10, 10], atol=1e-4)
    started, _ = cameras("start truck left 0.1; dolly in 0.2", 3)
    np.testing.assert_allclose(started[:, 0, 3], -0.1, atol=1e-6)
    np.testing.assert_allclose(started[:, 2, 3], [0, 0.1, 0.2], atol=1e-6)
    parameter = build_trajectory("dolly in 0.2", 3, K, 1.0, start_offset="truck left 0.1")
    np.testing.assert_array_equal(parameter.cameras.world_from_camera, started)


def test_range_words_in_any_order_and_back():
    move = Move("pan", "right", 15.0, "ease-in", (2, 7))
    for text in ("pan right 15 ease-in 2-7", "pan 2-7 right ease in 15", str(move)):
        assert parse_moves(text) == (move,)
    assert parse_moves("pan 2-end")[0].span == (2, None)
    assert parse_moves([("pan right 2-7", 15, "ease-in")]) == (move,)
    assert build_trajectory("zoom in 2 0-1", 2, K, 1.0).name == "zoom-in-2-0-1"


@pytest.mark.parametrize(
    "moves, message",
    [
        ("dolly in 0.3 0-24", "ends in frame 24: expected at most 8"),
        ("pan 9-end", "ends in frame 9"),
        ("pan 5-2", "is no range"),
        ("pan 5-", "is no range"),
        ("pan 0-2 2-4", "two values for the frame range"),
        ("start pan 5 0-2", "two values for the frame range"),
        ("pan 0-2-4", "unknown word '0-2-4'"),
        ("viewcrafter:loop9", "did you mean 'viewcrafter:loop"),
        ("myTool:left", "unknown preset 'mytool:left'"),
        ("recamaster:1", "did you mean 'recammaster:1'"),
        ("gen3c:left 0.3", "takes no amount"),
        ("gen3c:left left", "cannot go 'left'"),
        ("gen3c:left; gen3c:up", "expected one preset"),
    ],
)
def test_bad_ranges_and_presets_are_refused_in_one_line(moves, message):
    with pytest.raises(InputError, match=message) as error:
        build_trajectory(moves, 9, K, 1.0)
    assert "\n" not in str(error.value) and "expected" in str(error.value)


# Which way content goes: (near, far) blobs' sign along u, v; 0 where it is not the point.
LEFT, RIGHT, UP, DOWN = (-1, 0), (1, 0), (0, -1), (0, 1)
DIRECTIONS = {
    "recammaster:pan_right": ("turn", LEFT),
    "recammaster:pan_left": ("turn", RIGHT),
    "recammaster:tilt_up": ("turn", DOWN),
    "recammaster:tilt_down": ("turn", UP),
    "recammaster:zoom_in": ("grow", 1),
    "recammaster:zoom_out": ("grow", -1),
    "recammaster:translate_up": ("about", DOWN),
    "recammaster:translate_down": ("about", UP),
    "recammaster:arc_left": ("about", RIGHT),
    "recammaster:arc_right": ("about", LEFT),
    "trajectorycrafter:orbit_left": ("about", RIGHT),
    "trajectorycrafter:orbit_right": ("about", LEFT),
    "trajectorycrafter:orbit_up": ("about", DOWN),
    "trajectorycrafter:orbit_down": ("about", UP),
    "trajectorycrafter:pan_left": ("shift", RIGHT),
    "trajectorycrafter:pan_right": ("shift", LEFT),
    "trajectorycrafter:pan_up": ("shift", DOWN),
    "trajectorycrafter:pan_down": ("shift", UP),
    "trajectorycrafter:zoom_in": ("grow", 1),
    "trajectorycrafter:zoom_out": ("grow", -1),
    "trajectorycrafter:dolly_zoom": ("vertigo", 1),
    "gen3c:left": ("about", RIGHT),
    "gen3c:right": ("about", LEFT),
    "gen3c:up": ("about", DOWN),
    "gen3c:down": ("about", UP),
    "gen3c:zoom_in": ("grow", 1),
    "gen3c:zoom_out": ("grow", -1),
    "seva:move_left": ("about", RIGHT),
    "seva:move_right": ("about", LEFT),
    "seva:move_up": ("about", DOWN),
    "seva:move_down": ("about", UP),
    "seva:move_forward": ("grow", 1),
    "seva:move_backward": ("grow", -1),
    "seva:zoom_in": ("lens", 1),
    "seva:zoom_out": ("lens", -1),
    "seva:dolly_zoom_in": ("lens", 1),
    "seva:dolly_zoom_out": ("lens", -1),
    "viewcrafter:left": ("about", RIGHT),
    "viewcrafter:zoomin1": ("grow", 1),
}
RETURNING = {"trajectorycrafter:loop1", "viewcrafter:loop1", "viewcrafter:loop2", "gen3c:clockwise"}
RETURNING |= {"gen3c:counterclockwise", "seva:lemniscate", "seva:orbit", "seva:roll"}
RETURNING |= {"seva:spiral", "seva:spiral_gui"}


def pixel(poses, intrinsics, point):
    """Where a point of the source camera's frame is seen."""
    seen = np.linalg.inv(poses) @ [*point, 1]
    return (intrinsics @ seen[:3])[:2] / seen[2]


@pytest.mark.parametrize("name", DIRECTIONS)
def test_which_way_pixels_go(name):
    """Named for peer presets that do something else than their name: each on projected points."""
    kind, sign = DIRECTIONS[name]
    poses, intrinsics = cameras(name, 9)
    t = 2  # early: large presets leave the frame later
    off, near, far = np.array([0.1, 0.1, 0]), np.array([0, 0, 0.5]), np.array([0, 0, 2.0])
    move = {
        z[2]: pixel(poses[t], intrinsics[t], z) - pixel(poses[0], intrinsics[0], z)
        for z in (near, far)
    }
    pivot = pixel(poses[t], intrinsics[t], (0, 0, 1)) - [W / 2, H / 2]
    spread = {
        z[2]: np.log(
            np.linalg.norm(
                pixel(poses[t], intrinsics[t], z + off) - pixel(poses[t], intrinsics[t], z)
            )
            / np.linalg.norm(intrinsics[0, 0, 0] * off[:2] / z[2])
        )
        for z in (near, far)
    }
    if kind == "turn":  # far and near alike
        np.testing.assert_allclose(move[0.5], move[2.0], atol=1e-3)
        assert move[2.0] @ sign > 1
    elif kind == "shift":  # near four times as fast
        np.testing.assert_allclose(move[0.5], 4 * move[2.0], rtol=1e-3, atol=1e-3)
        assert move[2.0] @ sign > 1
    elif kind == "about":  # the pivot stays, before and behind it go opposite ways
        np.testing.assert_allclose(pivot, 0, atol=0.5)
        assert move[0.5] @ sign > 0.2 and move[2.0] @ sign < -0.1
    elif kind == "grow":
        assert sign * spread[0.5] > 1.5 * sign * spread[2.0] > 0
    elif kind == "lens":
        assert sign * spread[2.0] > 0.05
    else:
        assert spread[0.5] > 0.05 > 0 > spread[2.0]


def test_every_preset_is_listed_in_these_tests():
    numbers = {f"recammaster:{i}" for i in range(1, 11)}
    assert set(PRESETS) == set(DIRECTIONS) | RETURNING | numbers | {"viewcrafter:wave1"}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_start_at_the_source_and_stay_rigid(name):
    poses, intrinsics = cameras(name, 5, pivot=2.0)
    np.testing.assert_allclose(poses[0], np.eye(4), atol=1e-6)
    np.testing.assert_allclose(intrinsics[0], K, rtol=1e-6)
    rotation = poses[:, :3, :3]
    np.testing.assert_allclose(
        rotation @ rotation.swapaxes(1, 2), np.tile(np.eye(3), (5, 1, 1)), atol=2e-6
    )
    if name in RETURNING:
        np.testing.assert_allclose(poses[-1], np.eye(4), atol=2e-6)
        assert np.abs(poses[1] - np.eye(4)).max() > 0.02
    else:
        assert (
            max(np.abs(poses[-1] - np.eye(4)).max(), abs(intrinsics[-1, 0, 0] / K[0, 0] - 1)) > 0.1
        )
    assert PRESETS[name].what


def test_recammaster_numbers():
    """Its file: 81 frames, amount i / 80.5, a subject 4 m ahead; frame 10 of camera 7, 80 of 5."""
    poses, _ = cameras("recammaster:7", 81, pivot=4.0)
    np.testing.assert_allclose(poses[10, :3, 3], [0, -0.12422, 0], atol=1e-5)
    np.testing.assert_allclose(poses[10, :3, 2], [0, 0.0310409, 0.999518], atol=2e-5)
    assert cameras("recammaster:5", 81, pivot=4.0)[0][80, 2, 3] == pytest.approx(1.9876, abs=1e-4)
    assert pan_of(cameras("recammaster:1", 81)[0])[80] == pytest.approx(2 * 9.938, abs=2e-3)
    arc = cameras("recammaster:10", 81, pivot=4.0)[0][80]
    np.testing.assert_allclose(arc[:3, 3], [1.99, 0, 0.53], atol=5e-3)
    for number, name in enumerate(("pan_right", "pan_left", "tilt_up", "tilt_down"), 1):
        a, b = (cameras(f"recammaster:{key}", 3)[0] for key in (number, name))
        np.testing.assert_array_equal(a, b)


def test_presets_that_are_words():
    same = {
        "trajectorycrafter:orbit_left": "orbit left 30",
        "trajectorycrafter:orbit_down": "orbit down 20",
        "trajectorycrafter:pan_up": "pedestal up 0.4",
        "trajectorycrafter:zoom-in": "dolly in 0.5",
        "trajectorycrafter:dolly_zoom": "dolly_zoom in 0.5",
        "seva:orbit ease-in 0-3": "orbit right 360 ease-in 0-3",
        "seva:roll": "roll cw 360",
    }
    for preset, words in same.items():
        a, b = (cameras(text, 5, pivot=3.0) for text in (preset, words))
        np.testing.assert_allclose(a[0], b[0], atol=3e-6, err_msg=preset)
        np.testing.assert_allclose(a[1], b[1], rtol=1e-5)


@pytest.mark.parametrize("name, side, deep", [("spiral", 0.5, 0.2), ("spiral_gui", 1.0, 0.5)])
def test_seva_spiral_in_closed_form(name, side, deep):
    """Its rule in its own frame and unit: radii, two turns, half a period deep per turn, focus."""
    focus = 1 / (0.25 / (0.9 * 1) + 0.75 / (5 * 5))
    theta = np.linspace(0, 4 * np.pi, 17)
    centre = np.stack([side * np.cos(theta), side * np.sin(theta), deep * np.sin(theta / 2)], -1)
    expected = np.tile(np.eye(4), (17, 1, 1))
    expected[:, :3, 3] = centre
    for camera, position in zip(expected, centre, strict=True):
        forward = np.array([0, 0, focus]) - position
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0, -1, 0])
        right /= np.linalg.norm(right)
        camera[:3, :3] = np.stack([right, np.cross(forward, right), forward], -1)
    expected = np.linalg.inv(expected[0]) @ expected
    unit = np.hypot(side, focus) / 2.0  # of its own, per depth unit: what it aims at is the pivot
    poses, _ = cameras(f"seva:{name}", 17, pivot=2.0)
    np.testing.assert_allclose(poses[:, :3, :3], expected[:, :3, :3], atol=2e-6)
    np.testing.assert_allclose(poses[:, :3, 3] * unit, expected[:, :3, 3], atol=2e-6)
    turn = np.degrees(np.arccos(poses[:, 2, 2].min()))
    if name == "spiral":  # measured with its own code: 18 degrees at most
        assert turn == pytest.approx(18, abs=0.6)


def test_words_act_on_top_of_a_preset():
    both, _ = cameras("viewcrafter:loop2 0-4; pan right 10 4-8", 9)
    alone, _ = cameras("viewcrafter:loop2 0-4", 9)
    np.testing.assert_array_equal(both[:5], alone[:5])
    turned = np.asarray(pose.compose(jnp.asarray(alone[8]), pose.rotation_y(jnp.radians(10.0))))
    np.testing.assert_allclose(both[8], turned, atol=1e-6)


def test_gen3c_look_at_is_where_it_says():
    """Named for a peer defect: a look-at whose translation is not turned displaces the camera."""
    end = cameras("gen3c:right", 5)[0][-1]
    np.testing.assert_allclose(end[:3, 3], [0.3, 0, 0], atol=1e-6)  # not (0.287, 0, 0.086)


def test_a_word_for_zoom_that_dollies_is_told_apart():
    """Named for peer defects: "zoom" presets that dolly, a "pan" that trucks; ours on pixels."""
    start, end = film("trajectorycrafter:zoom_in 0-1", pivot_depth=0.6)
    far, near = (np.log(distance(end, k) / distance(start, k)) for k in ("far", "near"))
    assert near > 1.5 * far > 0
    start, end = film("zoom in 1.2", pivot_depth=PIVOT)
    far, near = (np.log(distance(end, k) / distance(start, k)) for k in ("far", "near"))
    assert near == pytest.approx(far, rel=0.05)
    assert set(start) == set(BLOBS)

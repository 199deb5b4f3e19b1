"""Film words: each one rendered and measured on pixels, against a closed form of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recapture_jax.camera import pose
from recapture_jax.camera.moves import EASINGS, Move, build_trajectory, parse_moves
from recapture_jax.camera.pinhole import intrinsics_from_fov
from recapture_jax.camera.trajectory import (
    absolute,
    on_top_of_source,
    pivot_depth_from_depth,
    with_poses,
)
from recapture_jax.errors import InputError
from recapture_jax.geometry.splat import render_anchor

H, W, PIVOT = 64, 96, 3.0
K = intrinsics_from_fov(50, H, W)
FOCAL = float(K[0, 0])
# One blob per colour channel: (u, v, depth). Two far, two near, one at the pivot.
BLOBS = {
    "far_a": (20, 16, 4.0),
    "far_b": (78, 50, 4.0),
    "near_a": (24, 46, 2.0),
    "near_b": (72, 16, 2.0),
    "pivot": (48, 32, 3.0),
}


def scene():
    """Blobs on small square cards in front of a far wall: frame [H, W, 5] and depth [H, W]."""
    v, u = np.mgrid[:H, :W] + 0.5
    depth = np.full((H, W), 4.0, np.float32)
    frame = np.zeros((H, W, len(BLOBS)), np.float32)
    for channel, (bu, bv, z) in enumerate(BLOBS.values()):
        card = (abs(u - bu) < 7) & (abs(v - bv) < 7)
        depth[card] = z
        frame[..., channel] = card * np.exp(-((u - bu) ** 2 + (v - bv) ** 2) / (2 * 1.5**2))
    return frame, depth


def film(moves, pivot_depth=PIVOT):
    """Positions {blob: (u, v)} in the source and at the end of the move."""
    frame, depth = scene()
    trajectory = build_trajectory(moves, 2, K, pivot_depth)
    frames, _ = render_anchor(
        np.stack([frame] * 2), np.stack([depth] * 2), K, trajectory, tearing_threshold=None
    )
    v, u = np.mgrid[:H, :W] + 0.5
    positions = []
    for t in range(2):
        image = np.asarray(frames[t], np.float64)
        total = image.sum((0, 1))
        centroid = np.stack([(image * x[..., None]).sum((0, 1)) / total for x in (u, v)], -1)
        positions.append(dict(zip(BLOBS, centroid, strict=True)))
    return positions


def distance(positions, kind):
    return np.linalg.norm(positions[f"{kind}_a"] - positions[f"{kind}_b"])


def turn(a, b, degrees):
    """Components along two axes of a point, seen after the axes turned from the first to b."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return c * a + s * b, -s * a + c * b


def expected_position(blob, word, amount):
    """Closed form, written out per word: where the camera sees a blob after the move."""
    u, v, z = BLOBS[blob]
    x, y, f, d = (u - W / 2) * z / FOCAL, (v - H / 2) * z / FOCAL, FOCAL, PIVOT
    if word == "pan right":
        z, x = turn(z, x, amount)
    elif word == "tilt up":
        y, z = turn(y, z, amount)
    elif word == "roll cw":
        x, y = turn(x, y, amount)
    elif word == "zoom in":
        f = f * amount
    elif word == "dolly in":
        z = z - amount * d
    elif word == "truck right":
        x = x - amount * d
    elif word == "pedestal up":
        y = y + amount * d
    elif word == "orbit right":
        x, z = turn(x, z - d, amount)
        z = z + d
    elif word in ("orbit up", "crane up"):
        amount = np.degrees(np.arcsin(amount)) if word == "crane up" else amount
        z, y = turn(z - d, y, amount)
        z = z + d
    elif word == "dolly zoom in":
        f, z = f * (1 - amount), z - amount * d
    return np.array([f * x / z + W / 2, f * y / z + H / 2])


OPPOSITE = {"right": "left", "up": "down", "in": "out", "cw": "ccw"}
WORDS = {
    "pan right": 5.0,
    "tilt up": 4.0,
    "roll cw": 12.0,
    "zoom in": 1.25,
    "dolly in": 0.15,
    "truck right": 0.06,
    "pedestal up": 0.05,
    "orbit right": 6.0,
    "orbit up": 5.0,
    "crane up": 0.09,
    "dolly zoom in": 0.2,
}


@pytest.mark.parametrize("word", WORDS)
def test_every_blob_lands_where_the_closed_form_says(word):
    amount = WORDS[word]
    *name, direction = word.split()
    back = f"{' '.join(name)} {OPPOSITE[direction]}"
    for text, signed in ((word, amount), (back, 1 / amount if name == ["zoom"] else -amount)):
        _, end = film(f"{text} {amount}")
        for blob in BLOBS:
            error = np.abs(end[blob] - expected_position(blob, word, signed)).max()
            assert error < 0.06, (text, blob, error)


def test_static_does_not_move():
    for text in ("static", "locked-off"):
        start, end = film(text)
        for blob in BLOBS:
            np.testing.assert_allclose(end[blob], start[blob], atol=1e-5)
            np.testing.assert_allclose(start[blob], BLOBS[blob][:2], atol=1e-3)


@pytest.mark.parametrize(
    "move, axis, sign",
    [("pan right 5", 0, -1), ("pan left 5", 0, 1), ("tilt up 5", 1, 1), ("tilt down 5", 1, -1)],
)
def test_pan_and_tilt_move_all_content_without_parallax(move, axis, sign):
    """Named for a peer defect: pan and tilt swapped, or a pan that trucks."""
    start, end = film(move)
    for blob in BLOBS:
        assert sign * (end[blob] - start[blob])[axis] > 4
    # Depth plays no part: the same angles move a far and a near blob alike.
    shift = FOCAL * np.tan(np.radians(5))
    assert abs(abs((end["pivot"] - start["pivot"])[axis]) - shift) < 0.05


@pytest.mark.parametrize(
    "move, axis, sign",
    [
        ("truck right 0.06", 0, -1),
        ("truck left 0.06", 0, 1),
        ("pedestal up 0.05", 1, 1),
        ("pedestal down 0.05", 1, -1),
    ],
)
def test_truck_and_pedestal_move_near_content_faster(move, axis, sign):
    start, end = film(move)
    far, near = ((end[b] - start[b])[axis] for b in ("far_a", "near_a"))
    assert sign * far > 2 and near / far == pytest.approx(2, rel=0.02)  # depths 4 and 2
    assert abs((end["near_a"] - start["near_a"])[1 - axis]) < 0.05


def test_roll_clockwise_turns_content_counter_clockwise():
    start, end = film("roll cw 12")
    for blob in ("far_a", "near_b"):
        before, after = (p[blob] - p["pivot"] for p in (start, end))
        # y is down, so a counter-clockwise turn has a negative cross product.
        angle = np.degrees(np.arctan2(np.cross(before, after), before @ after))
        assert angle == pytest.approx(-12, abs=0.3)


def test_zoom_scales_everything_alike():
    """Named for a peer defect: a "zoom" that dollies and makes near things grow faster."""
    for move, factor in (("zoom in 1.25", 1.25), ("zoom out 1.25", 0.8)):
        start, end = film(move)
        for kind in ("far", "near"):
            growth = distance(end, kind) / distance(start, kind)
            assert growth == pytest.approx(factor, rel=0.004)


def test_dolly_makes_near_things_grow_faster():
    for move, sign in (("dolly in 0.15", 1), ("dolly out 0.15", -1)):
        start, end = film(move)
        far, near = (sign * np.log(distance(end, k) / distance(start, k)) for k in ("far", "near"))
        assert near > 1.5 * far > 0


def test_orbit_keeps_the_pivot_pixel_and_moves_the_camera():
    """Named for a peer defect: an orbit that only rotates in place."""
    for move in ("orbit right 6", "orbit left 6", "arc right 6", "orbit up 5", "crane up 0.09"):
        start, end = film(move)
        assert np.abs(end["pivot"] - start["pivot"]).max() < 0.02
        near, far = end["near_a"] - start["near_a"], end["far_a"] - start["far_a"]
        assert near @ far < 0  # what is before and behind the pivot moves opposite ways
    camera = np.asarray(build_trajectory("orbit right 30", 5, K, PIVOT).cameras.world_from_camera)
    position, forward = camera[-1, :3, 3], camera[-1, :3, 2]
    np.testing.assert_allclose(
        position, [PIVOT * 0.5, 0, PIVOT * (1 - np.cos(np.pi / 6))], atol=1e-5
    )
    assert forward[0] < 0  # yawed to the left
    pivot = np.array([0, 0, PIVOT], np.float32)
    np.testing.assert_allclose(np.linalg.norm(camera[:, :3, 3] - pivot, axis=-1), PIVOT, rtol=1e-5)
    np.testing.assert_allclose(camera, pose.look_at(camera[:, :3, 3], pivot), atol=2e-6)


def test_crane_rises_and_tilts_down():
    camera = build_trajectory("crane up 0.3", 2, K, PIVOT).cameras.world_from_camera[-1]
    assert camera[1, 3] == pytest.approx(-0.3 * PIVOT, rel=1e-5) and camera[1, 2] > 0.25
    _, end = film("crane up 0.09")
    assert end["near_a"][1] > BLOBS["near_a"][1] + 1  # near content sinks


@pytest.mark.parametrize("move", ["dolly zoom in 0.3", "dolly_zoom out 0.3", "vertigo in 0.1"])
def test_dolly_zoom_keeps_the_subject_size(move):
    """Named for a peer defect: a constant end focal length; the subject is at depth 2 here."""
    start, end = film(move, pivot_depth=2.0)
    assert distance(end, "near") / distance(start, "near") == pytest.approx(1, abs=0.01)
    background = distance(end, "far") / distance(start, "far")
    assert background > 1.05 if "out" in move else background < 0.96


def test_dolly_zoom_on_top_of_a_dolly_cancels_its_own_part():
    dolly = build_trajectory("dolly in 0.2", 3, K, PIVOT).cameras
    both = build_trajectory("dolly in 0.2; dolly zoom in 0.3", 3, K, PIVOT).cameras

    def size(camera):
        return camera.intrinsics[:, 0, 0] / (PIVOT - camera.world_from_camera[:, 2, 3])

    np.testing.assert_allclose(size(both), size(dolly), rtol=1e-5)


def test_frame_zero_is_the_source_camera_exactly():
    every = "; ".join(f"{word} {amount}" for word, amount in WORDS.items())
    trajectory = build_trajectory(every, 4, K, PIVOT)
    np.testing.assert_array_equal(trajectory.cameras.world_from_camera[0], np.eye(4))
    np.testing.assert_array_equal(trajectory.cameras.intrinsics[0], K)
    single = build_trajectory("pan right 9", 1, K, PIVOT)
    np.testing.assert_array_equal(single.cameras.world_from_camera[0], np.eye(4))


def test_start_offset_begins_where_its_moves_end():
    offset = build_trajectory("truck right 0.1; pan left 5", 3, K, PIVOT).cameras
    shifted = build_trajectory("static", 3, K, PIVOT, start_offset="truck right 0.1; pan left 5")
    for t in range(3):
        np.testing.assert_allclose(
            shifted.cameras.world_from_camera[t], offset.world_from_camera[-1], atol=1e-7
        )


def test_moves_add_up_in_any_order():
    text = ["orbit right 20", "dolly in 0.2", "pan left 5", "zoom out 1.2", "roll ccw 3"]
    first = build_trajectory("; ".join(text), 3, K, PIVOT).cameras
    second = build_trajectory(text[::-1], 3, K, PIVOT).cameras
    jax.tree.map(np.testing.assert_array_equal, first, second)
    # Orbit and dolly: a circle whose radius shrinks, still looking at the pivot.
    spiral = build_trajectory("orbit right 40; dolly in 0.5", 2, K, PIVOT).cameras
    seen = pose.transform_points(
        pose.inverse(spiral.world_from_camera[-1]), jnp.array([0, 0, PIVOT])
    )
    np.testing.assert_allclose(seen, [0, 0, PIVOT / 2], atol=1e-5)


def test_easing_curves():
    half = {"linear": 0.5, "ease-in": 0.25, "ease-out": 0.75, "ease-in-out": 0.5}
    for easing in EASINGS:
        poses = build_trajectory(f"truck right 1 {easing}", 9, K, 1.0).cameras.world_from_camera
        x = np.asarray(poses[:, 0, 3])
        assert x[0] == 0 and x[-1] == 1 and (np.diff(x) > 0).all()
        assert x[4] == pytest.approx(half[easing], abs=1e-6)
    slow_start = build_trajectory("truck right 1 ease-in-out", 9, K, 1.0).cameras
    x = np.asarray(slow_start.world_from_camera[:, 0, 3])
    np.testing.assert_allclose(x + x[::-1], 1, atol=1e-6)
    assert x[1] < 1 / 8


def test_parse_moves_reads_words():
    assert parse_moves("orbit right 20; dolly in 0.1 ease-in-out") == (
        Move("orbit", "right", 20.0),
        Move("dolly", "in", 0.1, "ease-in-out"),
    )
    same = [
        ("Arc Right 20", "orbit right 20deg"),
        ("dolly-zoom out .2", "dolly_zoom 0.2 out"),
        ("pan", "pan right 15 linear"),
        ("pull 0.2", "dolly out 0.2"),
        ("push in 0.2", "dolly in 0.2"),
        ("dolly forward 0.2; roll clockwise 4", "dolly in 0.2; roll cw 4"),
        ("pull back 0.2; track left 0.1; circle right 8", "dolly out 0.2; truck left 0.1; orbit 8"),
        ("zoom 2x ease in out", "zoom in 2 ease-in-out"),
        ("dolly ease-in out 0.2", "dolly out 0.2 ease-in"),
        ("pan 5, tilt 3", "pan 5\ntilt 3;"),
        ([("pan left", 5), ("dolly in", 0.1, "ease-out")], "pan left 5; dolly 0.1 ease-out"),
        ([Move("pan", "left", 5.0), "tilt up 3"], "pan left 5; tilt up 3"),
    ]
    for a, b in same:
        assert parse_moves(a) == parse_moves(b), (a, b)
    assert parse_moves([("pan", -5)])[0].signed == parse_moves("pan left 5")[0].signed
    assert (
        parse_moves("; ".join(map(str, parse_moves("zoom out 2 ease-in; static"))))[0].amount == 2
    )


@pytest.mark.parametrize(
    "moves, message",
    [
        ("obit right 20", "did you mean 'orbit'"),
        ("pan rihgt 20", "did you mean 'right'"),
        ("pan up 20", "did you mean tilt up"),
        ("dolly in 0.1 ease-on", "did you mean 'ease-in'"),
        ("spin 3", "expected one of static, pan"),
        ("move right 3", "truck moves sideways"),
        ("rotate left 3", "orbit goes around"),
        ("dolly in 0,2", "decimal point is a dot"),
        ("pan right 3 and tilt up 2", "joined by ';'"),
        ("truck back 0.2", "dolly out"),
        ("", "no move"),
        ([], "no move"),
        ("pan right nan", "finite"),
        ("truck inf", "finite"),
        ([("pan right",)], "no amount"),
        ([("pan right", None)], "no amount"),
        ([("pan right", "ten")], "not a number"),
        ([("pan right", 3, "bouncy")], "unknown easing"),
        ([3], "cannot read"),
        ("dolly in 1", "at or behind the pivot"),
        ("dolly out -1.5", "at or behind the pivot"),
        ("dolly zoom in 1.2", "at or behind the pivot"),
        ("crane up 1", "past the top"),
        ("zoom in 0", "above 0"),
        ("zoom out -2", "above 0"),
        ("pan 3 4", "two values"),
        ("static 3", "no amount"),
        ("dolly in 0.3 0-24", "frame range"),
        ("dolly in 0.6; dolly zoom in 0.5", "reduce dolly"),
    ],
)
def test_bad_moves_are_refused_in_one_line(moves, message):
    with pytest.raises(InputError, match=message) as error:
        build_trajectory(moves, 5, K, PIVOT)
    assert "\n" not in str(error.value)


def test_bad_clips_are_refused():
    for bad in (
        dict(num_frames=0),
        dict(pivot_depth=0.0),
        dict(pivot_depth=float("nan")),
        dict(intrinsics=jnp.eye(4)),
    ):
        with pytest.raises(InputError):
            build_trajectory(
                **{"moves": "pan", "num_frames": 3, "intrinsics": K, "pivot_depth": 1.0} | bad
            )


def test_moving_source_modes():
    rng = np.random.default_rng(0)
    source = pose.compose(
        pose.rotation_y(rng.normal(size=4) * 0.2),
        pose.translation(jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)),
    )
    trajectory = build_trajectory("dolly in 0.2", 4, K, PIVOT)
    relative = on_top_of_source(trajectory, source)
    np.testing.assert_array_equal(relative, trajectory.cameras.world_from_camera)

    still = build_trajectory("static", 4, K, PIVOT)
    world_from_target = pose.compose(source, absolute(still, source))
    np.testing.assert_allclose(world_from_target, np.tile(source[0], (4, 1, 1)), atol=2e-6)
    world_from_target = np.asarray(pose.compose(source, absolute(trajectory, source)))
    expected = np.asarray(source[0], np.float64) @ trajectory.cameras.world_from_camera
    np.testing.assert_allclose(world_from_target, expected, atol=2e-6)

    placed = with_poses(trajectory, absolute(trajectory, source))
    assert placed.num_frames == 4 and placed.name == "dolly-in-0.2"
    with pytest.raises(InputError, match="poses"):
        absolute(trajectory, None)
    with pytest.raises(InputError, match="shape"):
        on_top_of_source(trajectory, source[:3])


def test_trajectory_is_a_pytree():
    trajectory = build_trajectory("pan", 3, K, PIVOT, name="my-pan")
    back = jax.jit(lambda t: t)(trajectory)
    assert back.name == "my-pan" and float(back.pivot_depth) == PIVOT


def test_pivot_depth_is_the_median_of_the_centre():
    depth = np.full((20, 40), 9.0, np.float32)
    depth[6:14, 12:28] = 2.0  # most of the central fifth: 8.9 x 17.9 pixels
    depth[9, 15:20] = np.nan
    depth[10, 15:20] = -1
    assert pivot_depth_from_depth(depth) == 2.0
    assert pivot_depth_from_depth(depth, central_share=1.0) == 9.0
    with pytest.raises(InputError):
        pivot_depth_from_depth(np.full((8, 8), np.nan))
    with pytest.raises(InputError):
        pivot_depth_from_depth(depth, central_share=0)

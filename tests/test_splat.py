"""The splat against slow loops, finite differences, and the known defects of open warpers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recapture_jax.camera import pose
from recapture_jax.camera.moves import build_trajectory
from recapture_jax.camera.pinhole import intrinsics_from_fov
from recapture_jax.errors import InputError
from recapture_jax.geometry import splat as splat_module
from recapture_jax.geometry.splat import render_anchor, splat
from recapture_jax.geometry.splat_reference import splat_reference

IDENTITY = jnp.eye(4)
fast_splat = jax.jit(splat, static_argnames=("taps", "height", "width"))


def move(x=0.0, y=0.0, z=0.0):
    return pose.translation(jnp.array([x, y, z], jnp.float32))


def random_scene(height, width, seed=0, near=1.0, far=6.0):
    rng = np.random.default_rng(seed)
    colors = rng.uniform(size=(height, width, 3)).astype(np.float32)
    return colors, rng.uniform(near, far, (height, width)).astype(np.float32)


# --- the identity -------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width", [(90, 51), (37, 128), (576, 1024)])
def test_identity_bleed_with_random_depth(height, width):
    """Named for a peer defect: rounding lets near pixels bleed over far neighbours (error 1.96)."""
    colors, depth = random_scene(height, width, near=0.5, far=1000.0)
    k = intrinsics_from_fov(57, height, width)
    result = fast_splat(colors, depth, None, k, k, IDENTITY)
    assert np.abs(result.colors - colors).max() < 1e-6
    assert result.mask.all()
    np.testing.assert_allclose(result.depth, depth, rtol=1e-6)


def test_static_trajectory_gives_back_the_source():
    """Named for a peer defect: no camera move changes the clip. Portrait, torn depth, all steps."""
    colors, depth = map(np.stack, zip(*(random_scene(64, 36, s) for s in range(3)), strict=True))
    k = intrinsics_from_fov(50, 64, 36)
    frames, mask = render_anchor(colors, depth, k, build_trajectory("static", 3, k, 2.0))
    assert np.abs(frames - colors).max() < 1e-6 and mask.all()


# --- the rule itself ----------------------------------------------------------------------------

VIEWS = {
    "small move": (pose.compose(move(0.2, -0.1, 0.05), pose.rotation_y(0.05)), 1.0),
    "orbit": (pose.compose(move(0.8, 0, 0.2), pose.rotation_y(-0.3)), 1.0),
    "dolly in": (move(0.05, 0.02, 0.7), 1.0),
    "dolly out": (move(0.0, 0.1, -1.5), 1.0),
    "zoom in": (pose.rotation_z(0.2), 1.9),
    "zoom out": (pose.rotation_x(0.1), 0.6),
    "past the scene": (move(0, 0, 2.0), 1.0),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("taps", [1, 2])
def test_splat_matches_the_slow_reference(view, taps):
    source_from_target, zoom = VIEWS[view]
    colors, depth = random_scene(18, 26, seed=len(view), near=1.0, far=4.0)
    depth[2, 3], depth[4, 5], depth[6, 7] = np.nan, np.inf, -1.0
    valid = np.random.default_rng(9).uniform(size=depth.shape) > 0.1
    k1 = np.asarray(intrinsics_from_fov(45, 18, 26))
    k2 = k1 * np.array([[zoom], [zoom * 1.2], [1]], np.float32)  # other focal lengths and centre
    torn = np.random.default_rng(8).uniform(size=depth.shape) > 0.8
    args = (colors, depth, valid, k1, k2, source_from_target)
    size = dict(torn=torn, height=20, width=30)
    result = fast_splat(*args, taps=taps, **size)
    expected = splat_reference(*args, taps=taps, **size)
    assert 50 < expected[3].sum() < 600  # the view sees something, and has holes
    np.testing.assert_array_equal(result.mask, expected[3])
    np.testing.assert_allclose(result.weight, expected[2], atol=2e-5)
    np.testing.assert_allclose(result.colors, expected[0], atol=2e-5)
    # A mean is as sensitive to rounding as its weight is small, so the bound on every pixel is for doubles.
    error = np.abs(result.depth - expected[1]) * np.minimum(expected[2], 1.0)
    assert (error <= 1e-5 * expected[1]).all()
    with jax.enable_x64(True):
        doubles = [x if x.dtype == bool else np.asarray(x, np.float64) for x in args]
        exact = fast_splat(*doubles, taps=taps, **size)
        np.testing.assert_array_equal(exact.mask, expected[3])
        np.testing.assert_allclose(exact.depth, expected[1], rtol=1e-5)


def test_near_hides_far():
    colors = np.zeros((24, 32, 2), np.float32)
    depth = np.full((24, 32), 4.0, np.float32)
    colors[..., 0] = 1
    depth[8:16, 4:12], colors[8:16, 4:12] = 2.0, [0, 1]
    k = intrinsics_from_fov(40, 24, 32)
    shift = 4 / (float(k[0, 0]) * 0.25)  # the layers part by 4 px
    result = fast_splat(colors, depth, None, k, k, move(-shift))
    # The near square moves right by 8 px onto wall that was visible before.
    np.testing.assert_allclose(result.colors[8:16, 12:20], np.broadcast_to([0, 1.0], (8, 8, 2)))
    np.testing.assert_allclose(result.depth[8:16, 12:20], 2, rtol=1e-6)
    assert not result.mask[9:15, 9:11].any()  # and uncovers wall that nobody saw


def test_torn_points_hide_without_colour():
    """A box of torn points before a wall is a hole, nowhere wall, and what is beside it stays."""
    colors = np.ones((24, 32, 1), np.float32)
    depth = np.full((24, 32), 4.0, np.float32)
    box = np.zeros(depth.shape, bool)
    box[8:16, 4:12] = True
    depth[box], colors[box] = 2.0, np.nan
    k = intrinsics_from_fov(40, 24, 32)
    shift = move(-4 / (float(k[0, 0]) * 0.25))  # the box moves by 8 px, the wall by 4
    whole, hidden, gone = (
        fast_splat(colors, depth, valid, k, k, shift, torn=torn)
        for valid, torn in ((None, None), (None, box), (~box, None))
    )
    assert np.isnan(whole.colors[9:15, 13:19]).all()
    assert not hidden.mask[8:16, 12:20].any() and gone.mask[8:16, 16:20].all()
    beside = np.ones(depth.shape, bool)
    beside[7:17, 11:21] = False
    for a, b in zip(jax.tree.leaves(hidden), jax.tree.leaves(gone), strict=True):
        np.testing.assert_array_equal(np.asarray(a)[beside], np.asarray(b)[beside])


def test_zoom_resamples_a_ramp():
    """A pure zoom is an image resize about the centre: a linear ramp stays linear."""
    k = intrinsics_from_fov(50, 30, 40)
    u = np.broadcast_to((np.arange(40, dtype=np.float32) + 0.5)[None, :, None], (30, 40, 1))
    _, depth = random_scene(30, 40)
    target = k.at[:2, :2].multiply(1.5)
    result = fast_splat(u, depth * 0 + 3, None, k, target, IDENTITY)
    expected = (u - 20) / 1.5 + 20
    assert result.mask.all()
    inner = np.s_[3:-3, 3:-3]
    assert np.abs(result.colors - expected)[inner].max() < 0.26  # source pixels


# --- known defects of open warpers --------------------------------------------------------------


def test_points_behind_the_camera_are_never_drawn():
    """Named for a peer defect: clamped depth gives them the largest weight (15 % of pixels)."""
    colors = np.zeros((32, 48, 2), np.float32)
    depth = np.full((32, 48), 10.0, np.float32)
    colors[..., 0] = 1
    depth[8:24, 12:36], colors[8:24, 12:36] = 2.0, [0, 1]
    k = intrinsics_from_fov(50, 32, 48)
    for z in (2.0, 2.0005, 3.0):  # the object in the lens plane, barely before it, behind it
        result = fast_splat(colors, depth, None, k, k, move(0, 0, z))
        assert (np.asarray(result.colors[..., 1]) == 0).all()
    through = fast_splat(colors, depth * 0 + 1, None, k, k, move(0, 0, 2))
    assert not through.mask.any()


@pytest.mark.parametrize("width", [64, 65])  # odd: integer phase at exactly 2x
@pytest.mark.parametrize("magnification", [1.5, 2.0, 2.05, 2.1, 2.5, 3.0])
def test_no_see_through_and_no_holes_when_moving_in(magnification, width):
    """Named for a peer defect: at 2.0x to 3x, 2 to 46 % of the foreground shows background."""
    height = width - 16
    v, u = np.mgrid[:height, :width] + 0.5
    box = (abs(u - width / 2) < 10) & (abs(v - height / 2) < 8)
    colors = np.where(box[..., None], [0.0, 1.0], [1.0, 0.0]).astype(np.float32)
    depth = np.where(box, 2.5, 5.0).astype(np.float32)
    k = intrinsics_from_fov(40, height, width)
    result = fast_splat(colors, depth, None, k, k, move(0, 0, 2.5 * (1 - 1 / magnification)))
    inside = (abs(u - width / 2) < 9 * magnification) & (abs(v - height / 2) < 7 * magnification)
    assert inside.sum() > 500
    assert np.asarray(result.mask)[inside].all()
    assert (np.asarray(result.colors[..., 0])[inside] == 0).all()


def test_far_pixel_changes_nothing():
    """Named for a peer defect: one pixel at 1e4 weakens occlusion everywhere."""
    colors, depth = random_scene(30, 40, near=2.0, far=2.6)
    k = intrinsics_from_fov(50, 30, 40)
    source_from_target = move(0.3, 0, 0.2)
    base = fast_splat(colors, depth, np.arange(1200).reshape(30, 40) > 0, k, k, source_from_target)
    depth[0, 0] = 1e4
    far = fast_splat(colors, depth, None, k, k, source_from_target)
    changed = np.abs(far.colors - base.colors).max(-1) > 0
    rows, columns = np.nonzero(changed)
    # It may fill the holes that it lands on itself, in its corner, and nothing else.
    assert changed.sum() <= 4 and (rows < 3).all() and (columns < 3).all()
    assert not np.asarray(base.mask)[changed].any()


def test_wide_source_keeps_straight_lines_in_place():
    """Named for a peer defect: a hard-coded focal length bends and displaces content."""
    height, width = 64, 96
    k1 = intrinsics_from_fov(95, height, width)
    k2 = intrinsics_from_fov(60, height, width)
    v, u = np.mgrid[:height, :width] + 0.5
    x, y = (u - width / 2) / float(k1[0, 0]), (v - height / 2) / float(k1[1, 1])
    depth = (3.0 / (1 - 0.3 * x - 0.2 * y)).astype(np.float32)  # a slanted wall

    def line(u):
        return 0.35 * u + 18

    colors = np.exp(-((v - line(u)) ** 2) / (2 * 2.0**2))[..., None].astype(np.float32)
    source_from_target = pose.compose(move(0.3, 0.1, 0.2), pose.rotation_y(0.15))
    result = fast_splat(colors, depth, None, k1, k2, source_from_target)

    along = np.linspace(5, 90, 200)
    ends = np.stack([along, line(along), np.ones(200)])
    rays = np.linalg.inv(np.asarray(k1, np.float64)) @ ends
    points = 3.0 * rays / (1 - 0.3 * rays[0] - 0.2 * rays[1])
    seen = np.linalg.inv(source_from_target) @ np.vstack([points, np.ones(200)])
    seen = np.asarray(k2, np.float64) @ seen[:3]
    columns = np.arange(20, 76)
    expected = np.interp(columns + 0.5, seen[0] / seen[2], seen[1] / seen[2])

    image = np.asarray(result.colors[:, columns, 0], np.float64)
    image = np.where(image > 0.1, image, 0)
    ridge = (image * v[:, columns]).sum(0) / image.sum(0)
    # One source pixel is about 1.8 target pixels wide here and the kernel wobbles within it; a
    # focal length that is 15 % off displaces the line by 5 px.
    straight = np.polyval(np.polyfit(columns, ridge, 1), columns)
    assert np.abs(ridge - straight).max() < 0.5
    assert np.abs(straight - expected).max() < 0.1


def test_portrait_circle_stays_a_circle():
    """Named for a peer defect: sources are squashed to 1024x576."""
    height, width = 96, 54
    v, u = np.mgrid[:height, :width] + 0.5
    radius = np.hypot(u - 27, v - 48)
    frame = np.clip(12.5 - radius, 0, 1)[..., None].astype(np.float32)
    k = intrinsics_from_fov(60, height, width)
    for text, factor in (("dolly in 0.25", 4 / 3), ("zoom out 1.3", 1 / 1.3), ("roll cw 30", 1.0)):
        trajectory = build_trajectory(text, 2, k, 2.0)
        depth = np.full((2, height, width), 2.0, np.float32)
        frames, _ = render_anchor(np.stack([frame] * 2), depth, k, trajectory)
        image = np.asarray(frames[1, ..., 0], np.float64)
        total = image.sum()
        moments = [((x - c) ** 2 * image).sum() / total for x, c in ((u, 27), (v, 48))]
        assert moments[0] == pytest.approx(moments[1], rel=0.01)
        assert 2 * np.sqrt(moments[0]) == pytest.approx(12 * factor, rel=0.03)


# --- transformations ----------------------------------------------------------------------------


def test_gradients_match_finite_differences():
    """Colours, depth, pose and intrinsics; in float64 at a generic (smooth) point."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)  # no occlusion or window test flips within the step
        k = np.asarray(intrinsics_from_fov(50, 7, 9), np.float64)
        arguments = dict(
            colors=rng.uniform(size=(7, 9, 2)),
            depth=3 + 0.2 * rng.uniform(size=(7, 9)),
            angles=np.array([0.03, -0.05, 0.02]),
            offset=np.array([0.11, -0.07, 0.63]),
            focal=np.array([1.1, 1.2]),
        )
        probe = [jnp.asarray(rng.normal(size=shape)) for shape in ((7, 9, 2), (7, 9), (7, 9))]

        def loss(arguments):
            a = arguments["angles"]
            turn = pose.compose(pose.rotation_x(a[0]), pose.rotation_y(a[1]), pose.rotation_z(a[2]))
            source_from_target = pose.compose(turn, pose.translation(arguments["offset"]))
            target = jnp.asarray(k) * jnp.concatenate([arguments["focal"], jnp.ones(1)])[:, None]
            result = splat(
                arguments["colors"], arguments["depth"], None, k, target, source_from_target
            )
            images = (result.colors, result.depth, result.weight)
            return sum((p * image).sum() for p, image in zip(probe, images, strict=True))

        arguments = jax.tree.map(jnp.asarray, arguments)
        value = jax.jit(loss)
        gradients = jax.jit(jax.grad(loss))(arguments)
        for name, gradient in gradients.items():
            direction = jnp.asarray(rng.normal(size=gradient.shape))
            step = 1e-6
            ahead, behind = (
                value(arguments | {name: arguments[name] + s * direction}) for s in (step, -step)
            )
            numeric = float(ahead - behind) / (2 * step)
            analytic = float((gradient * direction).sum())
            assert abs(numeric) > 1e-2, name
            assert analytic == pytest.approx(numeric, rel=1e-5), name


def test_gradients_are_finite_with_bad_points():
    colors, depth = random_scene(8, 10)
    colors[1, 1] = np.nan
    depth[1, 1], depth[2, 2], depth[3, 3] = np.nan, 0.0, 0.5
    k = intrinsics_from_fov(50, 8, 10)

    def loss(colors, depth, offset):
        result = splat(colors, depth, None, k, k, pose.translation(offset))
        return result.colors.sum() + result.depth.sum()

    gradients = jax.grad(loss, argnums=(0, 1, 2))(colors, depth, jnp.array([0.0, 0.0, 0.5]))
    for gradient in gradients:
        assert np.isfinite(gradient).all() and (gradient != 0).any()


def test_vmap_equals_loop_equals_map():
    """In float64: float32 differs by 1.5e-6 between the two programs XLA makes of one formula."""
    with jax.enable_x64(True):
        colors, depth = map(
            np.stack, zip(*(random_scene(12, 16, s) for s in range(3)), strict=True)
        )
        k = intrinsics_from_fov(50, 12, 16)
        trajectory = build_trajectory("orbit right 15; zoom in 1.3", 3, k, 2.0)
        colors, depth, k, trajectory = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float64), (colors, depth, k, trajectory)
        )
        cameras = trajectory.cameras
        batched = jax.vmap(lambda c, d, k2, p: splat(c, d, None, k, k2, p))(
            colors, depth, cameras.intrinsics, cameras.world_from_camera
        )
        frames, mask = render_anchor(colors, depth, k, trajectory, tearing_threshold=None)
        np.testing.assert_array_equal(mask, batched.mask)
        np.testing.assert_allclose(frames, batched.colors, atol=1e-12)
        for t in range(3):
            one = fast_splat(
                colors[t], depth[t], None, k, cameras.intrinsics[t], cameras.world_from_camera[t]
            )
            for single, many in zip(jax.tree.leaves(one), jax.tree.leaves(batched), strict=True):
                np.testing.assert_allclose(single, many[t], atol=1e-5)


def test_new_trajectories_do_not_retrace(monkeypatch):
    traces = []
    monkeypatch.setattr(splat_module, "splat", lambda *a, **k: traces.append(1) or splat(*a, **k))
    colors, depth = random_scene(11, 13)
    k = intrinsics_from_fov(50, 11, 13)
    for text, tau, tearing in (
        ("pan", 0.02, 0.05),
        ("orbit left 9", 0.03, 0.1),
        ("zoom", 0.1, 1.0),
    ):
        trajectory = build_trajectory(text, 2, k, 2.0)
        render_anchor(
            np.stack([colors] * 2),
            np.stack([depth] * 2),
            k,
            trajectory,
            tau=tau,
            tearing_threshold=tearing,
        )
    assert len(traces) == 1


# --- render_anchor ------------------------------------------------------------------------------


def test_anchor_takes_no_colour_from_torn_depth():
    """Points half-way between two surfaces would float in the hole that parallax opens."""
    height, width = 32, 48
    depth = np.full((1, height, width), 4.0, np.float32)
    depth[:, :, :24], depth[:, :, 24] = 2.0, 3.0  # a smeared column between the planes
    frames = np.ones((1, height, width, 3), np.float32)
    frames[:, :, 24] = 0.5
    k = intrinsics_from_fov(50, height, width)
    trajectory = build_trajectory("static", 1, k, 2.0, start_offset="truck right 0.3")
    kept, kept_mask = render_anchor(frames, depth, k, trajectory, tearing_threshold=None)
    clean, clean_mask = render_anchor(frames, depth, k, trajectory)
    assert ((kept > 0.1) & (kept < 0.9)).any()
    assert not ((clean > 0.1) & (clean < 0.9)).any()
    # Five torn columns, and the kernels of the outermost two reach a pixel further.
    assert height * 5 <= kept_mask.sum() - clean_mask.sum() <= height * 7


def test_anchor_takes_masks_per_frame_intrinsics_and_another_size():
    colors, depth = random_scene(12, 16, near=2.0, far=2.01)
    valid = np.ones((1, 12, 16), bool)
    valid[0, 4:8, 4:8] = False
    k = intrinsics_from_fov(50, 12, 16)
    wide = k + jnp.array([[0, 0, 4.0], [0, 0, 2], [0, 0, 0]])  # 4 columns and 2 rows more each side
    trajectory = build_trajectory("static", 1, wide, 2.0)
    frames, mask = render_anchor(
        colors[None], depth[None], k[None], trajectory, valid=valid, height=16, width=24
    )
    expected = np.zeros((16, 24), bool)
    expected[2:14, 4:20] = valid[0]
    np.testing.assert_array_equal(mask[0], expected)
    np.testing.assert_allclose(frames[0, 2:14, 4:20], colors * valid[0][..., None], atol=1e-6)


def test_anchor_refuses_mismatched_shapes():
    k = intrinsics_from_fov(50, 8, 10)
    trajectory = build_trajectory("static", 2, k, 1.0)
    frames, depth = np.zeros((2, 8, 10, 3), np.float32), np.ones((2, 8, 10), np.float32)
    with pytest.raises(InputError, match="length of the trajectory"):
        render_anchor(frames[:1], depth[:1], k, trajectory)
    with pytest.raises(InputError, match="depth has shape"):
        render_anchor(frames, depth[:, :4], k, trajectory)
    with pytest.raises(InputError, match="valid has shape"):
        render_anchor(frames, depth, k, trajectory, valid=np.ones((2, 8, 9), bool))

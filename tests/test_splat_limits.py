"""The splat at its limits: any shape, strong magnification, minification, slopes, transformations."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recapture_jax.camera import pose
from recapture_jax.camera.moves import build_trajectory
from recapture_jax.camera.pinhole import intrinsics_from_fov
from recapture_jax.geometry import splat as splat_module
from recapture_jax.geometry import windows
from recapture_jax.geometry.projection import project, reproject, unproject
from recapture_jax.geometry.splat import render_anchor, splat

IDENTITY = jnp.eye(4)
fast_splat = jax.jit(splat, static_argnames=("taps", "adapt", "height", "width"))


def scene(height, width, seed=0, near=1.0, far=6.0):
    rng = np.random.default_rng(seed)
    colors = rng.uniform(size=(height, width, 3)).astype(np.float32)
    return colors, rng.uniform(near, far, (height, width)).astype(np.float32)


def one_view(colors, depth, k, words, **settings):
    """Frame and mask where the moves of a sentence end."""
    path = build_trajectory("static", 1, k, 2.5, start_offset=words)
    frames, mask = render_anchor(colors[None], depth[None], k, path, **settings)
    return np.asarray(frames[0]), np.asarray(mask[0])


# --- the identity, to the bit -------------------------------------------------------------------


@pytest.mark.parametrize("height, width", [(1, 1), (1, 257), (1999, 3), (2, 8191), (36, 64)])
def test_identity_is_exact_for_any_shape_and_lens(height, width):
    colors, depth = scene(height, width, near=0.3, far=1000.0)
    off_centre = jnp.array([[1.3, 0, 0.37 * width], [0, 0.7, -0.2 * height], [0, 0, 1.0]])
    wide = intrinsics_from_fov(110, height, width)
    for k in (wide, off_centre * jnp.array([[width], [height], [1.0]])):
        result = fast_splat(colors, depth, None, k, k, IDENTITY, adapt=True)
        np.testing.assert_array_equal(result.colors, colors)
        np.testing.assert_array_equal(result.depth, depth)
        assert result.mask.all()


@pytest.mark.parametrize("unit", [2.0**-20, 2.0**20, 1e-4, 3e4])
def test_the_unit_of_depth_changes_nothing(unit):
    """Relative depth may be anything; to a power of two the very bits are the same."""
    colors, _ = scene(24, 40)
    depth = np.where(np.arange(40) < 20, 2.0, 4.0) * np.ones((24, 1), np.float32)
    k = intrinsics_from_fov(50, 24, 40)
    views = [
        render_anchor(
            colors[None],
            (scale * depth[None]).astype(np.float32),
            k,
            build_trajectory("static", 1, k, 2.5 * scale, start_offset="truck right 0.1"),
        )
        for scale in (1.0, unit)
    ]
    (frames, mask), (scaled, scaled_mask) = (map(np.asarray, view) for view in views)
    assert 0.5 < mask.mean() < 1
    if np.log2(unit) % 1 == 0:
        np.testing.assert_array_equal(scaled, frames)
    assert (scaled_mask != mask).mean() < 0.01
    assert np.median(np.abs(scaled - frames)) < 1e-5


def test_reproject_is_project_of_unproject():
    _, depth = scene(20, 31)
    k1, k2 = intrinsics_from_fov(60, 20, 31), intrinsics_from_fov(35, 20, 31) + 0.3
    b_from_a = pose.compose(pose.translation(jnp.array([0.4, -0.2, -2.0])), pose.rotation_y(0.3))
    expected, z = project(pose.transform_points(b_from_a, unproject(depth, k1)), k2)
    pixels, depth_there = reproject(depth, k1, k2, b_from_a)
    np.testing.assert_allclose(depth_there, z, atol=2e-6)
    behind = np.asarray(z) <= 1e-3
    assert behind.any() and (np.asarray(pixels)[behind] < -1e5).all()
    clear = np.asarray(z) > 0.2  # nearer ones leave the image by thousands of pixels
    np.testing.assert_allclose(np.asarray(pixels)[clear], np.asarray(expected)[clear], rtol=1e-4)


# --- magnification ------------------------------------------------------------------------------


@pytest.mark.parametrize("slant", [0.0, 0.15])
@pytest.mark.parametrize("magnification", [1.3, 1.9, 2.6, 3.3, 4.0])
def test_no_leaks_and_no_holes_up_to_four_times(magnification, slant):
    height, width = 52, 69
    v, u = np.mgrid[:height, :width] + 0.5
    box = (abs(u - width / 2) < 9) & (abs(v - height / 2) < 7)
    colors = np.where(box[..., None], [0.0, 1.0, 1.0], [1.0, 0.0, 0.0]).astype(np.float32)
    plane = 2.5 / (1 - slant * (u - width / 2) / 60)
    depth = np.where(box, plane, 5.0).astype(np.float32)
    k = intrinsics_from_fov(40, height, width)
    inside = (abs(u - width / 2) < 7 * magnification) & (abs(v - height / 2) < 5 * magnification)
    assert inside.sum() > 200
    moves = (f"dolly in {1 - 1 / magnification}", f"zoom in {magnification}")
    for words in moves:
        frame, mask = one_view(colors, depth, k, words, tearing_threshold=None)
        assert mask[inside].all(), words
        assert (frame[inside][:, 0] == 0).all(), words


def test_fixed_small_window_does_leave_holes():
    """What `taps` bounds: beyond its magnification a surface opens, so the default is wide."""
    colors, depth = scene(40, 60, near=2.5, far=2.5001)
    k = intrinsics_from_fov(40, 40, 60)
    for taps, full in ((1, False), (2, False), (4, True)):
        _, mask = one_view(colors, depth, k, "zoom in 5", taps=taps)
        assert mask.all() == full


@pytest.mark.parametrize(
    "words", ["static", "orbit right 8", "dolly in 0.3", "zoom in 2.2", "zoom in 4", "zoom in 6"]
)
def test_smallest_window_gives_the_same_picture(words):
    colors, depth = scene(24, 33, near=2.0, far=3.0)
    k = intrinsics_from_fov(45, 24, 33)
    camera = build_trajectory("static", 1, k, 2.5, start_offset=words).cameras
    args = (colors, depth, None, k, camera.intrinsics[0], camera.world_from_camera[0])
    adaptive, fixed = (fast_splat(*args, taps=4, adapt=a) for a in (True, False))
    np.testing.assert_array_equal(adaptive.mask, fixed.mask)
    for a, b in zip(jax.tree.leaves(adaptive), jax.tree.leaves(fixed), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("tile", [1, 70, 5000])
def test_tiles_of_any_size_give_the_same_picture(tile, monkeypatch):
    """Tiles with windows of their own, some without any, against one window for all points."""
    monkeypatch.setattr(windows, "TILE", tile)
    colors, depth = scene(30, 33, near=1.0, far=3.0)
    k = intrinsics_from_fov(45, 30, 33)
    lens = k * jnp.array([[2.3], [1.4], [1.0]])
    camera = pose.translation(jnp.array([0.1, 0.6, 0.5]))
    torn = depth > 2.7
    args = (colors, depth, None, k, lens, camera)
    # Traced anew for each size.
    by_tile = jax.jit(lambda *a: splat(*a, torn=torn, taps=4, adapt=True))(*args)
    fixed = jax.jit(lambda *a: splat(*a, torn=torn, taps=4))(*args)
    assert 0.3 < fixed.mask.mean() < 1
    np.testing.assert_array_equal(by_tile.mask, fixed.mask)
    for a, b in zip(jax.tree.leaves(by_tile), jax.tree.leaves(fixed), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    bare = splat(*args, torn=torn, taps=4, with_depth=False)
    assert bare.depth is None
    np.testing.assert_allclose(bare.colors, fixed.colors, atol=2e-5)


def test_forward_derivatives_of_the_adaptive_splat():
    with jax.enable_x64(True):
        colors, depth = (jnp.asarray(x, jnp.float64) for x in scene(8, 9, near=3, far=3.02))
        k = jnp.asarray(intrinsics_from_fov(50, 8, 9), jnp.float64)
        camera = pose.translation(jnp.array([0.1, 0.05, 1.9]))

        def total(depth):
            return (splat(colors, depth, None, k, k, camera, taps=4, adapt=True).colors ** 2).sum()

        change = jnp.asarray(np.random.default_rng(1).normal(size=depth.shape))
        _, forward = jax.jvp(total, (depth,), (change,))
        assert abs(forward) > 1e-3
        assert float((jax.grad(total)(depth) * change).sum()) == pytest.approx(float(forward))


# --- minification and slopes --------------------------------------------------------------------


def test_minification_is_anti_aliased():
    """Noise at 1/4 size is averaged as by a tent of 4 source pixels: its deviation is 1/6."""
    rng = np.random.default_rng(0)
    colors = rng.normal(size=(160, 240, 3)).astype(np.float32)
    depth = np.full((160, 240), 3.0, np.float32)
    k = intrinsics_from_fov(40, 160, 240)
    for words in ("zoom out 4", "dolly out 3.6"):  # both at 1/4 of the size
        frame, mask = one_view(colors, depth, k, words)
        seen = frame[66:94, 96:144]
        assert mask[66:94, 96:144].all()
        assert seen.std() == pytest.approx(1 / 6, rel=0.1), words
    y, x = np.mgrid[:160, :240]
    checker = np.broadcast_to(((x + y) % 2)[..., None], (160, 240, 3)).astype(np.float32)
    frame, _ = one_view(checker, depth, k, "zoom out 4")
    np.testing.assert_allclose(frame[66:94, 96:144], 0.5, atol=0.02)


def floor(height, width, k):
    """Depth of a floor at a grazing angle below the camera; nothing above it."""
    v = np.arange(height, dtype=np.float32)[:, None] + 0.5 - float(k[1, 2])
    depth = np.broadcast_to(np.where(v > 6, float(k[1, 1]) / np.maximum(v, 6), 0), (height, width))
    return np.array(depth, np.float32)


def test_slopes_keep_all_points_of_a_pixel(monkeypatch):
    """A floor's depth is right at the centre of each pixel, not biased to the nearest point."""
    height, width = 96, 64
    k = intrinsics_from_fov(50, height, width)
    depth = floor(height, width, k)
    colors = np.zeros((height, width, 3), np.float32)
    back = pose.translation(jnp.array([0.0, 0.0, -1.0]))

    def worst():
        result = splat(colors, depth, None, k, k, back)
        v = np.arange(height)[:, None] + 0.5 - float(k[1, 2])
        true = float(k[1, 1]) / np.maximum(v, 1e-3)
        inner = abs(np.arange(width) - width / 2) < 14  # the rims see one side only
        seen = np.asarray(result.mask) & (v > 16) & (v < 30) & inner[None]
        assert seen.sum() > 300
        # In rows of pixels: on a floor 1 / z grows by 1 / f per row.
        rows = np.abs(1 / np.asarray(result.depth)[seen] - (1 / true * np.ones_like(depth))[seen])
        return float((rows * float(k[1, 1])).max())

    with_slopes = worst()
    monkeypatch.setattr(splat_module, "MAX_STEP", 0.0)
    assert with_slopes < 0.3 < worst()


def test_a_slope_behind_an_edge_does_not_shine_through():
    """The floor's tolerance is its own: a box standing on it stays opaque."""
    height, width = 96, 64
    k = intrinsics_from_fov(50, height, width)
    depth = floor(height, width, k)
    colors = np.tile(np.array([1.0, 0, 0], np.float32), (height, width, 1))
    box = np.s_[40:72, 20:44]
    depth[box], colors[box] = 2.0, [0, 1, 1]
    result = splat(colors, depth, None, k, k, pose.translation(jnp.array([0.05, 0.0, 0.3])))
    inside = np.asarray(result.colors)[45:70, 20:40]
    np.testing.assert_allclose(inside, np.broadcast_to([0, 1, 1], inside.shape), atol=1e-6)


# --- transformations ----------------------------------------------------------------------------


@pytest.mark.parametrize("magnification", [0.6, 2.7])
def test_gradients_of_the_adaptive_splat(magnification):
    """Points, colours and camera against central differences in float64."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        k = np.asarray(intrinsics_from_fov(50, 8, 9), np.float64)
        target = k * np.array([[magnification], [magnification], [1.0]])
        start = {
            "colors": rng.uniform(size=(8, 9, 2)),
            "depth": 3 + 0.02 * rng.uniform(size=(8, 9)),
            "pose": np.array([0.02, -0.03, 0.01, 0.11, -0.07, 0.05]),
            "focal": target[:2, :2].diagonal().copy(),
        }
        start = jax.tree.map(jnp.asarray, start)
        probe = [jnp.asarray(rng.normal(size=shape)) for shape in ((8, 9, 2), (8, 9))]

        @jax.jit
        def loss(a):
            turn = [f(x) for f, x in zip(_TURNS, a["pose"][:3], strict=True)]
            camera = pose.compose(*turn, pose.translation(a["pose"][3:]))
            lens = jnp.asarray(target).at[jnp.arange(2), jnp.arange(2)].set(a["focal"])
            args = (a["colors"], a["depth"], None, jnp.asarray(k), lens, camera)
            result = splat(*args, taps=4, adapt=True)
            images = (result.colors, result.depth)
            return sum((p * image).sum() for p, image in zip(probe, images, strict=True))

        for name, gradient in jax.grad(loss)(start).items():
            direction = jnp.asarray(rng.normal(size=gradient.shape))
            ahead, behind = (
                loss(start | {name: start[name] + s * direction}) for s in (1e-6, -1e-6)
            )
            numeric = float(ahead - behind) / 2e-6
            assert abs(numeric) > 1e-3, name
            assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=2e-5), name


_TURNS = (pose.rotation_x, pose.rotation_y, pose.rotation_z)


def test_vmap_of_the_adaptive_splat():
    """Frames that need different windows, at once."""
    colors, depth = map(np.stack, zip(*(scene(11, 14, s, 2, 3) for s in range(3)), strict=True))
    k = intrinsics_from_fov(50, 11, 14)
    cameras = build_trajectory("zoom in 5", 3, k, 2.5).cameras

    def one(c, d, lens, camera):
        return splat(c, d, None, k, lens, camera, taps=4, adapt=True)

    args = (colors, depth, cameras.intrinsics, cameras.world_from_camera)
    together = jax.jit(jax.vmap(one))(*args)
    for t in range(3):
        alone = jax.jit(one)(*(x[t] for x in args))
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(a, b[t], atol=1e-5)


_SHARDED = """
import functools, sys
sys.path[:0] = {paths!r}
import conftest, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from recapture_jax import sharding
from recapture_jax.camera.moves import build_trajectory
from recapture_jax.camera.pinhole import intrinsics_from_fov
from recapture_jax.geometry.splat import render_anchor
from test_splat_limits import scene
assert jax.device_count() == 8
colors, depth = map(np.stack, zip(*(scene(12, 18, s, 2, 4) for s in range(8))))
# In doubles: the mean of a pixel with hardly any weight has few digits.
colors, depth = (x.astype(np.float64) for x in (colors, depth))
k = intrinsics_from_fov(50, 12, 18)
path = build_trajectory("orbit right 12; dolly in 0.5", 8, k, 2.5)
alone = render_anchor(colors, depth, k, path)
mesh = sharding.make_mesh()
split = NamedSharding(mesh, P("data"))
frames, maps = jax.device_put((colors, depth), split)
assert len(frames.sharding.device_set) == 8
for given in (render_anchor(frames, maps, k, path), ):
    for a, b in zip(alone, given): np.testing.assert_allclose(a, b, atol=1e-9)
specs = jax.tree.map(lambda x: P("data") if np.ndim(x) else P(), path)
local = jax.shard_map(lambda f, d, p: render_anchor(f, d, k, p), mesh=mesh,
    in_specs=(P("data"), P("data"), specs), out_specs=P("data"), check_vma=False)
given = jax.jit(local)(frames, maps, path)
assert given[0].sharding.is_equivalent_to(split, 4)
for a, b in zip(alone, given): np.testing.assert_allclose(a, b, atol=1e-9)
"""


def test_frames_sharded_over_eight_devices():
    here = os.path.dirname(__file__)
    script = _SHARDED.format(paths=[os.path.dirname(here), here])
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_ENABLE_X64": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]

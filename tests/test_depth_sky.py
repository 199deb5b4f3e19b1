"""Sky: found, put far away, left out of every statistic, and filmed as what is infinitely far."""

import numpy as np
import pytest
from PIL import Image

from recapture_jax.camera.moves import build_trajectory
from recapture_jax.camera.pinhole import intrinsics_from_fov
from recapture_jax.config import default_config
from recapture_jax.depth import align, networks, sky
from recapture_jax.depth.base import DepthMap
from recapture_jax.depth.files import Frames
from recapture_jax.depth.precomputed import load_depth, load_mask
from recapture_jax.errors import InputError
from recapture_jax.stages import anchor as anchor_stage
from recapture_jax.video.clip import Clip

T, H, W = 4, 48, 64
HORIZON = 20  # rows of sky
K = np.asarray(intrinsics_from_fov(40.0, H, W))


def landscape(count=T):
    """Depth of a floor under the sky, with a tower that stands out before it, and a mask of sky."""
    rows = np.arange(H)[:, None] + 0.5
    floor = 1.2 * K[1, 1] / np.maximum(rows - H / 2 + 8, 1.0)
    depth = np.where(rows < HORIZON, np.inf, np.broadcast_to(floor, (H, W)))
    depth[8:30, 40:46] = 4.0
    depth = np.repeat(depth[None], count, 0)
    return depth.astype(np.float32), np.isinf(depth)


def pattern(u, v):
    """Smooth colours of a picture plane, [..., 3] in [0, 1]."""
    waves = (np.sin(u / 5), np.cos(v / 4 + u / 9), np.sin((u + v) / 7))
    return (0.5 + 0.4 * np.stack(waves, -1)).astype(np.float32)


@pytest.fixture
def stored(tmp_path):
    np.save(tmp_path / "depth.npy", landscape()[0])
    return tmp_path / "depth.npy"


def load(path, kind="metric", **options):
    return load_depth(path, kind, frames=Frames(T), height=H, width=W, **options)


# --- where it is --------------------------------------------------------------------------------


def test_infinite_areas_are_sky_and_specks_are_filled(tmp_path):
    depth, above = landscape()
    depth[:, 40, 10] = np.inf
    depth[:, 44, 20:22] = np.nan
    np.save(tmp_path / "d.npy", depth)
    found = load(tmp_path / "d.npy")
    np.testing.assert_array_equal(found.sky, above)
    assert np.isfinite(found.depth).all()
    plane = sky.FAR * np.median(found.depth[~above])
    np.testing.assert_allclose(found.depth[above], plane, rtol=1e-6)
    assert found.depth[0, 40, 10] < 100 and "filled" in found.source


@pytest.mark.parametrize("ranged", [True, False])
def test_zero_disparity_is_sky_and_sets_no_far_end(tmp_path, ranged):
    depth, above = landscape()
    np.save(tmp_path / "d.npy", 3 / depth)
    near, far = (2.0, 9.0) if ranged else (None, None)
    found = load(tmp_path / "d.npy", "disparity", near=near, far=far)
    np.testing.assert_array_equal(found.sky, above)
    ground = found.depth[~above]
    if ranged:
        np.testing.assert_allclose([ground.min(), ground.max()], [near, far], rtol=1e-6)
    else:
        np.testing.assert_allclose(ground, depth[~above] / 3, rtol=1e-5)


def test_a_network_of_disparity_has_sky_where_it_says_zero():
    depth, above = landscape()
    found = networks.depth_map(3 / depth, "relative", "test", 1.0, 20.0)
    np.testing.assert_array_equal(found.sky, above)
    assert found.depth[~above].max() == pytest.approx(20.0)


def test_depth_far_beyond_the_rest_is_sky():
    depth, above = landscape()
    depth = np.where(above, 900.0, depth).astype(np.float32)
    depth[0, 40, 10] = 900.0  # a speck
    given = DepthMap(depth, "metric", "test")
    found = sky.mark(given, beyond=50.0)
    np.testing.assert_array_equal(found.sky, above)
    assert sky.mark(given, beyond=0).sky is None
    assert sky.mark(given, beyond=1000.0).sky is None
    said = sky.report(found)
    assert said["share"] == pytest.approx(above.mean(), abs=1e-4)
    assert said["depth"] == pytest.approx(sky.FAR * np.median(depth[~above]), rel=1e-5)


@pytest.mark.parametrize("kind", ["png", "folder", "npz"])
def test_mask_file(tmp_path, kind):
    depth, above = landscape()
    pictures = (above * 255).astype(np.uint8)
    path = {"png": "m.png", "folder": "masks", "npz": "m.npz"}[kind]
    path = tmp_path / path
    if kind == "png":
        Image.fromarray(pictures[0]).save(path)
    elif kind == "npz":
        np.savez(path, mask=above)
    else:
        path.mkdir()
        for t, picture in enumerate(pictures):
            Image.fromarray(picture).save(path / f"{t}.png")
    np.testing.assert_array_equal(load_mask(path, Frames(T), H, W), above)
    twice = load_mask(path, Frames(T), 2 * H, 2 * W)
    np.testing.assert_array_equal(twice, above.repeat(2, 1).repeat(2, 2))
    finite = DepthMap(np.where(above, 30.0, depth).astype(np.float32), "metric", "test")
    found = sky.mark(finite, above)
    np.testing.assert_array_equal(found.sky, above)


# --- what it does not count in ------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["clip", "smooth", "affine"])
def test_scales_are_those_of_the_ground(mode):
    """Most of the picture is sky, whose depth says that nothing is wrong with the scales."""
    depth, _ = landscape(6)
    above = np.zeros(depth.shape, bool)
    above[:, :32] = True
    scales = np.float32([1, 1.3, 0.8, 1.1, 0.7, 1.2])[:, None, None]
    wrong = np.where(above, 7e3, depth * scales).astype(np.float32)
    frames = np.repeat(np.random.default_rng(0).random((1, H, W, 3)), 6, 0).astype(np.float32)
    known = DepthMap(wrong, "relative", "test", sky=above)
    found = align.stabilise(known, frames, mode=mode, radius=0)
    np.testing.assert_array_equal(found.depth[above], wrong[above])
    ratio = found.depth[~above] / depth[~above]
    unknown = align.stabilise(DepthMap(wrong, "relative", "test"), frames, mode=mode, radius=0)
    if mode != "smooth":
        np.testing.assert_allclose(ratio, np.median(ratio), rtol=1e-4)
        other = unknown.depth[~above] / depth[~above]
        assert np.ptp(other) > 0.3 * np.median(other)  # were the sky to count
    np.testing.assert_array_equal(found.sky, above)


def test_the_pivot_is_on_the_ground(stored):
    """The centre of the picture is sky: the pivot is the median of what is not."""
    config, depth = default_config().camera, load(stored)
    clip = Clip(np.zeros((T, H, W, 3), np.float32), 8.0, intrinsics=K)
    path = anchor_stage.plan_trajectory(config, clip, depth)
    assert path.pivot_depth < 30
    above = np.zeros(depth.depth.shape, bool)
    above[:, 10:38, 10:54] = True  # more than the central window
    hidden = sky.mark(DepthMap(np.full((T, H, W), 5.0, np.float32), "metric", "test"), above)
    assert anchor_stage.plan_trajectory(config, clip, hidden).pivot_depth == 5.0


# --- how it is filmed ---------------------------------------------------------------------------


def filmed(stored, moves):
    """Anchor of the landscape along the moves, its frames' colours being `pattern`."""
    v, u = np.mgrid[:H, :W] + 0.5
    frames = np.repeat(pattern(u, v)[None], T, 0)
    clip, depth = Clip(frames, 8.0, intrinsics=K), load(stored)
    path = build_trajectory(moves, T, K, 4.0)
    found = anchor_stage.render(default_config().anchor, clip, depth, path)
    return frames, depth.sky, found


def test_an_outline_against_the_sky_is_not_torn(stored):
    """A tower that stands before nothing but sky keeps its width when the camera moves sideways."""
    v, u = np.mgrid[:H, :W] + 0.5
    tower = (abs(u - W / 2) < 3) & (v > 4)
    depth = sky.mark(
        DepthMap(np.repeat(np.where(tower, 4.0, 1e4)[None], T, 0).astype(np.float32), "metric", ""),
        np.repeat(~tower[None], T, 0),
    )
    frames = np.repeat(np.where(tower, 0.9, 0.1)[None, ..., None].repeat(3, -1), T, 0)
    clip = Clip(frames.astype(np.float32), 8.0, intrinsics=K)
    path = build_trajectory("truck right 0.2", T, K, 4.0)
    found = anchor_stage.render(default_config().anchor, clip, depth, path)
    row = found.frames[-1, H - 5, :, 0]
    assert 5 <= (row[found.raw_mask[-1, H - 5]] > 0.5).sum() <= 7


def test_static_is_the_identity(stored):
    frames, _, found = filmed(stored, "static")
    assert found.raw_mask.all()
    np.testing.assert_array_equal(found.frames, frames)


def test_pan_moves_the_sky_as_a_rotation_does(stored):
    _, _, found = filmed(stored, "pan right 6")
    angle = np.radians(6)
    turn = np.array(
        [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    )
    v, u = np.mgrid[:H, :W] + 0.5
    rays = np.stack([u, v, np.ones_like(u)], -1) @ (K @ turn @ np.linalg.inv(K)).T
    x, y = rays[..., 0] / rays[..., 2], rays[..., 1] / rays[..., 2]
    inside = (x > 1) & (x < W - 1) & (y > 1) & (y < H - 1)
    assert inside.mean() > 0.8 and found.raw_mask[-1][inside].all()  # nothing torn: no parallax
    error = np.abs(found.frames[-1] - pattern(x, y))[inside]
    assert error.max() < 0.05
    assert np.abs(found.frames[-1] - found.frames[0])[inside].max() > 0.3


def test_truck_leaves_the_sky_where_it_is(stored):
    frames, above, found = filmed(stored, "truck right 0.3")
    still = above[0].copy()
    still[:, 18:50] = False  # where the tower was and where it is
    still[HORIZON - 3 :] = False  # beside the ground
    assert found.raw_mask[-1][still].all()
    assert np.abs(found.frames[-1] - frames[-1])[still].max() < 0.01  # 0.015 pixels
    ground = np.abs(found.frames[-1] - frames[-1])[34:]
    assert ground.max() > 0.2


# --- refusals -----------------------------------------------------------------------------------


def test_refusals(tmp_path):
    depth = DepthMap(np.ones((T, H, W), np.float32), "metric", "test")
    everything = np.ones((T, H, W), bool)
    np.save(tmp_path / "m.npy", np.ones((T + 1, H, W)))
    np.save(tmp_path / "wide.npy", np.ones((T, H, 3 * W)))
    np.save(tmp_path / "words.npy", np.full((T, H, W), "sky"))
    np.save(tmp_path / "inf.npy", np.full((T, H, W), np.inf))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    used = Frames(T)
    for call, says in (
        (lambda: sky.mark(depth, everything), "all of test is sky"),
        (lambda: sky.mark(depth, everything[:2]), "shape (2,"),
        (lambda: sky.mark(depth, far=0.5), "at least 1"),
        (lambda: sky.mark(depth, beyond=0.5), "0 or above 1"),
        (lambda: DepthMap(depth.depth, "metric", "test", sky=everything[:1]), "expected bool"),
        (lambda: load_mask(tmp_path / "m.npy", used, H, W), "holds 5 frames, the video has 4"),
        (lambda: load_mask(tmp_path / "wide.npy", used, H, W), "aspect"),
        (lambda: load_mask(tmp_path / "words.npy", used, H, W), "finite numbers"),
        (lambda: load_mask(tmp_path / "broken.png", used, H, W), "broken.png cannot be read"),
        (lambda: load_mask(tmp_path / "none.png", used, H, W), "does not exist"),
        (lambda: load(tmp_path / "inf.npy"), "is sky"),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert says in str(error.value) and "\n" not in str(error.value)

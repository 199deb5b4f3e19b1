"""Depth maps, the FastDepth estimator around its network, stabilisation, and depth from files."""

import dataclasses
import inspect

import jax
import numpy as np
import pytest
from PIL import Image

from recapture_jax.depth import align, base, fastdepth
from recapture_jax.depth.align import disparity_to_depth, log_scales, smooth_curve, stabilise
from recapture_jax.depth.base import DepthMap
from recapture_jax.depth.files import Frames
from recapture_jax.depth.precomputed import load_depth

T, H, W = 9, 24, 32
RNG = np.random.default_rng(0)


def textured(height=H, width=W, seed=0):
    return np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)


def clip_with_object(share=0.3, count=T, seed=0):
    """A textured slanted wall and an object that crosses it and comes nearer: frames, depth.

    `share` is the part of the width that the object covers.
    """
    rows = np.linspace(3, 5, H, dtype=np.float32)[:, None]
    wall, colours = np.broadcast_to(rows, (H, W)).copy(), textured(seed=seed)
    frames, depth = np.repeat(colours[None], count, 0), np.repeat(wall[None], count, 0)
    size = round(share * W)
    thing = textured(H - 4, size, seed + 1)
    for t in range(count):
        left = round((W - size) * t / max(count - 1, 1))
        frames[t, 2:-2, left : left + size] = thing
        depth[t, 2:-2, left : left + size] = 1.5 - 0.05 * t
    return frames, depth


def spread(ratio):
    """Largest deviation of log ratios from one common factor."""
    logs = np.log(ratio)
    return np.abs(logs - np.median(logs)).max()


# Depth maps and the registry


def test_depth_map_and_registry():
    depth = DepthMap(np.ones((2, 3, 4), np.float32), "metric", "test")
    assert (depth.num_frames, depth.size, depth.intrinsics) == (2, (3, 4), None)
    estimator = base.get_estimator("fastdepth")
    assert list(inspect.signature(estimator.__call__).parameters) == ["frames"]


# FastDepth around its network


def slow_enlarge(depth, size):
    """The rule of `enlarge_depth`, pixel by pixel."""
    (h, w), out = depth.shape, np.empty(size)
    for i in range(size[0]):
        for j in range(size[1]):
            y = min(max((i + 0.5) * h / size[0] - 0.5, 0), h - 1)
            x = min(max((j + 0.5) * w / size[1] - 0.5, 0), w - 1)
            top, left = min(int(y), h - 2), min(int(x), w - 2)
            v, u = y - top, x - left
            nearest = np.log(depth[top + (v >= 0.5), left + (u >= 0.5)])
            total = weight = 0.0
            for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
                value = np.log(depth[top + a, left + b])
                if abs(value - nearest) <= 0.1:
                    share = (v if a else 1 - v) * (u if b else 1 - u)
                    total, weight = total + share * value, weight + share
            out[i, j] = np.exp(total / weight)
    return out


def test_enlarge_depth_is_the_slow_loop():
    depth = np.where(RNG.random((5, 7)) < 0.5, 1.0, 3.0) * np.exp(RNG.normal(0, 0.03, (5, 7)))
    found = fastdepth.enlarge_depth(depth[None].astype(np.float32), (13, 16))[0]
    np.testing.assert_allclose(found, slow_enlarge(depth, (13, 16)), rtol=2e-6)


def test_enlarge_depth_of_one_surface_is_bilinear_and_of_two_has_nothing_between():
    slope = np.exp(np.linspace(0, 0.2, 8, dtype=np.float32))[None, :, None] * np.ones(
        (1, 1, 6), "f"
    )
    found = np.asarray(fastdepth.enlarge_depth(slope, (24, 18)))
    expected = np.exp(jax.image.resize(np.log(slope), (1, 24, 18), "linear"))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    step = np.where(np.arange(6) < 3, 1.0, 4.0).astype(np.float32)[None, None] * np.ones(
        (1, 8, 1), "f"
    )
    found = np.asarray(fastdepth.enlarge_depth(step, (24, 18)))
    assert np.isin(np.round(found, 5), [1.0, 4.0]).all()
    assert (found[0, 0] < 2).sum() == 9


@pytest.fixture(scope="module")
def estimator():
    return base.get_estimator("fastdepth")


def noisy_room(count=6, height=72, width=96):
    """A still room (floor, wall, a box) filmed by a noisy sensor with drifting exposure."""
    y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    wall = np.stack([0.6 + 0.2 * np.sin(9 * x), 0.55 + 0 * x, 0.5 - 0.1 * y], -1)
    floor = np.stack([0.4 + 0 * x, 0.3 + 0.1 * (np.sin(30 * x / (y + 0.1)) > 0), 0.2 + 0 * x], -1)
    room = np.where((y > 0.6)[..., None], floor, wall)
    room[height // 3 : height * 3 // 4, width // 2 : width * 3 // 4] = (0.7, 0.2, 0.15)
    rng = np.random.default_rng(3)
    exposure = 1 + 0.02 * rng.normal(size=(count, 1, 1, 1))
    frames = room[None] * exposure + 0.02 * rng.normal(size=(count, height, width, 3))
    return np.clip(frames, 0, 1).astype(np.float32)


def test_fastdepth_flicker_is_reduced(estimator):
    """Measured: mean absolute change of log depth between frames falls from 0.041 to 0.007."""
    frames = noisy_room()
    depth = estimator(frames)
    assert depth.depth.shape == frames.shape[:3] and depth.kind == "relative"
    steady = stabilise(depth, frames)

    def flicker(d):
        return np.abs(np.diff(np.log(d), axis=0)).mean()

    assert flicker(depth.depth) > 0.005
    assert flicker(steady.depth) < 0.5 * flicker(depth.depth)
    # and by agreeing, not by becoming flat
    assert np.log(steady.depth).std(axis=(1, 2)).min() > 0.8 * np.log(depth.depth[0]).std()


def test_fastdepth_batches_do_not_matter(estimator):
    """Frame 4 is alone in the second batch, padded to the size of the first."""
    frames = noisy_room()[:5]
    together = estimator(frames).depth
    np.testing.assert_allclose(estimator(frames[4:]).depth[0], together[4], rtol=1e-5)
    assert np.abs(np.log(together[4] / together[3])).max() > 1e-3


# Alignment


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_random_scales_are_recovered(share):
    """Up to one factor, to rounding, though an object covers up to 70 % and comes nearer."""
    frames, true = clip_with_object(share)
    factors = np.exp(RNG.normal(0, 0.3, T)).astype(np.float32)
    scaled = DepthMap(true * factors[:, None, None], "relative", "test")
    found = stabilise(scaled, frames, radius=0)
    assert spread(found.depth / true) < 2e-6
    np.testing.assert_allclose(
        log_scales(scaled.depth, frames), np.log(factors) - np.median(np.log(factors)), atol=2e-6
    )


def test_smoothing_after_recovery_keeps_the_object():
    frames, true = clip_with_object(0.3)
    factors = np.exp(RNG.normal(0, 0.3, T)).astype(np.float32)
    found = stabilise(DepthMap(true * factors[:, None, None], "relative", "test"), frames)
    # the object comes nearer by 3 % a frame, so its first and last frame are pulled inwards a bit
    assert spread(found.depth / true) < 0.05
    wall = true > 2
    assert spread(found.depth[wall] / true[wall]) < 1e-3


def test_affine_recovers_disparity():
    frames, true = clip_with_object(0.3)
    factors, offsets = np.exp(RNG.normal(0, 0.3, T)), RNG.uniform(0, 0.1, T)
    disparity = factors[:, None, None] / true + offsets[:, None, None]
    depth = DepthMap((1 / disparity).astype(np.float32), "relative", "test")
    found = 1 / stabilise(depth, frames, mode="affine", radius=0).depth.astype(np.float64)
    basis = np.stack([1 / true.ravel(), np.ones(true.size)], 1)
    fit = np.linalg.lstsq(basis, found.ravel(), rcond=None)[0]
    assert fit[0] > 0.1
    np.testing.assert_allclose(basis @ fit, found.ravel(), rtol=1e-4)
    # one factor alone cannot do it
    assert spread(stabilise(depth, frames, radius=0).depth / true) > 0.02


@pytest.mark.parametrize("kind", ["metric", "relative"])
def test_consistent_depth_is_unchanged(kind):
    frames, true = clip_with_object(0.3)
    depth = DepthMap(true, kind, "test")
    np.testing.assert_allclose(stabilise(depth, frames, radius=0).depth, true, rtol=1e-6)
    still = DepthMap(np.repeat(true[:1], T, 0), kind, "test")
    same = stabilise(still, np.repeat(frames[:1], T, 0))
    np.testing.assert_allclose(same.depth, still.depth, rtol=1e-6)
    assert (same.kind, same.source) == (kind, "test")


def test_metric_depth_of_an_approaching_camera_is_kept():
    """A dolly towards a textured wall: depth and texture change in every frame."""
    count = 12
    distance = np.linspace(4, 3, count, dtype=np.float32)
    true = distance[:, None, None] * np.linspace(0.9, 1.1, W, dtype=np.float32)[None, None]
    true = np.broadcast_to(true, (count, H, W)).copy()
    frames = np.stack([textured(seed=t) for t in range(count)])
    kept = stabilise(DepthMap(true, "metric", "test"), frames, radius=0).depth
    np.testing.assert_allclose(kept, true, rtol=1e-3)
    # one bad frame is put right, to within the curve
    bad = true.copy()
    bad[5] *= 1.5
    mended = stabilise(DepthMap(bad, "metric", "test"), frames, radius=0).depth
    np.testing.assert_allclose(mended, true, rtol=5e-3)
    # where 'clip' takes the approach itself for an error
    flat = stabilise(DepthMap(true, "metric", "test"), frames, mode="clip", radius=0).depth
    assert np.ptp(np.median(flat, axis=(1, 2))) < 1e-4


def test_smooth_curve():
    x = np.arange(20.0)
    parabola = 0.3 + 0.1 * x - 0.004 * x**2
    np.testing.assert_allclose(smooth_curve(parabola), parabola, atol=1e-9)
    outlier = parabola + 2.0 * (x == 8)
    np.testing.assert_allclose(smooth_curve(outlier), parabola, atol=1e-3)
    noise = RNG.normal(0, 0.1, 200)
    assert smooth_curve(noise).std() < 0.6 * noise.std()
    np.testing.assert_allclose(smooth_curve(np.array([0.7])), [0.7])


def test_smoothing_is_the_slow_loop():
    frames, true = clip_with_object(0.3, count=4)
    depth = (true * np.exp(RNG.normal(0, 0.02, true.shape))).astype(np.float32)
    found = stabilise(DepthMap(depth, "relative", "test"), frames, mode="none", radius=1).depth
    padded = np.pad(frames, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge").astype(np.float64)
    for t, i, j in [(0, 0, 0), (1, 5, 7), (2, 12, 20), (3, 23, 31), (2, 2, 13)]:
        box = padded[:, i : i + 3, j : j + 3].mean(axis=(1, 2))
        total, weight = 0.0, 0.0
        for k in range(max(0, t - 1), min(4, t + 2)):
            step = np.log(depth[k, i, j] / depth[t, i, j])
            colour = np.abs(box[k] - box[t]).mean()
            share = np.exp(-((colour / 0.03) ** 2) / 2 - (step / 0.1) ** 2 / 2)
            total, weight = total + share * np.log(depth[k, i, j]), weight + share
        assert found[t, i, j] == pytest.approx(np.exp(total / weight), rel=1e-5)


def test_smoothing_reduces_noise_of_what_is_still():
    frames, true = clip_with_object(0.3)
    noisy = (true * np.exp(RNG.normal(0, 0.03, true.shape))).astype(np.float32)
    found = stabilise(DepthMap(noisy, "relative", "test"), frames).depth
    inner = slice(2, -2)
    still = np.abs(frames[2:-2] - frames[0]).max(axis=(0, 3)) == 0
    before, after = (np.log(d[inner] / true[inner])[:, still].std() for d in (noisy, found))
    assert after < 0.6 * before  # five equal weights would give 0.447


def test_clamp():
    depth = np.ones((2, 8, 8), np.float32)
    depth[:, 0, 0], depth[:, 0, 1] = 1e-4, 1e4
    frames = np.repeat(textured(8, 8)[None], 2, 0)
    found = stabilise(DepthMap(depth, "relative", "test"), frames).depth
    np.testing.assert_allclose([found.min(), found.max()], align.CLAMP, rtol=1e-6)


def test_one_frame():
    frames, true = clip_with_object(count=1)
    for mode in align.MODES:
        found = stabilise(DepthMap(true, "relative", "test"), frames, mode=mode)
        np.testing.assert_allclose(found.depth, true, rtol=1e-6)


def test_disparity_to_depth():
    true = RNG.uniform(2, 8, (2, 4, 5))
    true.flat[:2] = 2, 8
    unknown = 7.0 / true - 0.3  # what a disparity network leaves open
    np.testing.assert_allclose(disparity_to_depth(unknown, 2.0, 8.0), true, rtol=1e-12)
    np.testing.assert_allclose(disparity_to_depth(1 / true, None, None), true, rtol=1e-12)


# Depth from files

VALUES = RNG.uniform(1, 9, (3, 6, 8)).astype(np.float32)
SIZE = {"frames": Frames(3), "height": 6, "width": 8}


@pytest.mark.parametrize("layout", ["depth", "depths", "only", "npy", "channel", "float64"])
def test_reads_arrays(tmp_path, layout):
    path = tmp_path / ("d.npy" if layout == "npy" else "d.npz")
    other = {"mask": np.ones(3)}
    if layout == "npy":
        np.save(path, VALUES)
    elif layout == "only":
        np.savez(path, anything=VALUES)
    elif layout == "channel":
        np.savez(path, depth=VALUES[..., None], **other)
    elif layout == "float64":
        np.savez_compressed(path, depth=VALUES.astype(np.float64), **other)
    else:
        np.savez(path, **{layout: VALUES}, **other)
    depth = load_depth(path, "metric", 2.0, **SIZE)
    np.testing.assert_array_equal(depth.depth, 2 * VALUES)
    assert (depth.kind, depth.depth.dtype) == ("metric", np.float32)
    assert path.name in depth.source


@pytest.mark.parametrize("encoding", ["uint16", "float16_bits"])
def test_reads_png_in_the_order_of_numbers(tmp_path, encoding):
    half = VALUES.astype(np.float16)
    stored = (VALUES * 1000).astype(np.uint16) if encoding == "uint16" else half.view(np.uint16)
    for name, picture in zip(("f2.png", "f9.png", "f10.PNG"), stored, strict=True):
        Image.fromarray(picture).save(tmp_path / name, format="png")
    (tmp_path / "notes.txt").write_text("not a picture")
    scale = 0.001 if encoding == "uint16" else 1.0
    depth = load_depth(tmp_path, "metric", scale, encoding=encoding, **SIZE)
    expected = stored * 0.001 if encoding == "uint16" else half
    np.testing.assert_allclose(depth.depth, expected, rtol=1e-6)


def test_reads_disparity(tmp_path):
    np.savez(tmp_path / "d.npz", depths=3 / VALUES - 3 / VALUES.max())  # goes down to zero
    near, far = float(VALUES.min()), float(VALUES.max())
    depth = load_depth(tmp_path / "d.npz", "disparity", 2.0, near=near, far=far, **SIZE)
    np.testing.assert_allclose(depth.depth, 2 * VALUES, rtol=1e-5)
    assert depth.kind == "relative"
    default = load_depth(tmp_path / "d.npz", "disparity", **SIZE).depth
    np.testing.assert_allclose([default.min(), default.max()], [1, 20], rtol=1e-6)
    np.savez(tmp_path / "stereo.npz", disparity=60 / VALUES)  # focal length x baseline = 60
    stereo = load_depth(tmp_path / "stereo.npz", "disparity", 60.0, near=None, far=None, **SIZE)
    np.testing.assert_allclose(stereo.depth, VALUES, rtol=1e-6)


def test_resizes_by_nearest_neighbour(tmp_path):
    np.save(tmp_path / "d.npy", VALUES)
    larger = load_depth(tmp_path / "d.npy", "metric", frames=Frames(3), height=18, width=24).depth
    np.testing.assert_array_equal(larger, VALUES.repeat(3, 1).repeat(3, 2))
    np.save(tmp_path / "d.npy", larger)
    smaller = load_depth(tmp_path / "d.npy", "metric", **SIZE).depth
    np.testing.assert_array_equal(smaller, VALUES)


def test_fills_invalid_pixels_from_the_nearest(tmp_path, capsys):
    values = VALUES.copy()
    bad = RNG.random(values.shape) < 0.3
    values[bad] = RNG.choice([np.nan, np.inf, -np.inf, 0, -1], bad.sum())
    np.save(tmp_path / "d.npy", values)
    depth = load_depth(tmp_path / "d.npy", "metric", **SIZE)
    share = f"{bad.mean():.2%}"
    assert share in depth.source and share in capsys.readouterr().err
    np.testing.assert_array_equal(depth.depth[~bad], VALUES[~bad])
    for t, i, j in np.argwhere(bad):
        rows, columns = np.nonzero(~bad[t])
        distance = (rows - i) ** 2 + (columns - j) ** 2
        nearest = VALUES[t][rows, columns][distance == distance.min()]
        assert depth.depth[t, i, j] in nearest


def test_depth_map_replaces_its_depth_like_any_dataclass():
    depth = DepthMap(VALUES, "metric", "test", np.eye(3, dtype=np.float32))
    other = dataclasses.replace(depth, depth=2 * VALUES)
    np.testing.assert_array_equal(other.intrinsics, np.eye(3))

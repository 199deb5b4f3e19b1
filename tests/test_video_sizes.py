"""Sizes and intrinsics of resized clips, exact rates, the shipped clip."""

import hashlib
import math
import re
from fractions import Fraction

import numpy as np
import pytest
from video_files import psnr

from recapture_jax.assets import asset_path
from recapture_jax.video.clip import Clip, exact_rate
from recapture_jax.video.read import read_clip
from recapture_jax.video.resize import (
    apply_fit,
    cover,
    fit_size,
    resize,
    resize_depth,
    resize_to_cover_and_crop,
    undo_fit,
)


def loop_best(height, width, short_side, multiple):
    """Slow oracle: of all long edges, the one whose crop keeps the largest share."""
    short = max(multiple, math.floor(short_side / multiple + 0.5) * multiple)
    best = None
    for long in range(multiple, 4096, multiple):
        h, w = (short, long) if height <= width else (long, short)
        scale = max(h / height, w / width)
        kept = (h / scale) * (w / scale) / (height * width)
        if best is None or kept > best[0] + 1e-9:
            best = (kept, (h, w))
    return best[1]


@pytest.mark.parametrize("multiple", [8, 64])
@pytest.mark.parametrize(
    "size", [(1080, 1920), (1920, 1080), (480, 640), (1000, 1000), (817, 1936), (2160, 3840)]
)
def test_fit_size_crops_least(size, multiple):
    for short_side in (256, 320, 576):
        assert fit_size(*size, short_side=short_side, multiple=multiple) == loop_best(
            *size, short_side, multiple
        )


@pytest.mark.parametrize("size", [(1080, 1920), (1920, 1080), (480, 640), (999, 1001)])
def test_fit_size_by_area(size):
    height, width = fit_size(*size, area=576 * 1024, multiple=64)
    assert height % 64 == 0 and width % 64 == 0
    assert 0.75 <= height * width / (576 * 1024) <= 1.34
    assert cover(size, (height, width)).kept > 0.93
    assert (height > width) == (size[0] > size[1]) or height == width
    assert fit_size(1080, 1920, area=576 * 1024, multiple=64) == (576, 1024)


def test_cover_reprojects_with_its_intrinsics():
    """A dot drawn where the source camera sees a point is found where the new camera sees it."""
    source = np.array([[310.0, 0, 163.0], [0, 310.0, 88.0], [0, 0, 1]])
    point = np.array([0.21, -0.09, 1.4])
    u, v, _ = source @ point / point[2]
    y, x = np.mgrid[:181, :321] + 0.5
    blob = np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 5.0**2))
    image = np.repeat(blob[None, ..., None], 3, -1).astype(np.float32)
    for size in ((96, 128), (256, 256), (90, 160)):
        out, fit = resize_to_cover_and_crop(image, size)
        k = fit.intrinsics(source)
        expected = (k @ point / point[2])[:2]
        weight = out[0, ..., 0]
        yy, xx = np.mgrid[: size[0], : size[1]] + 0.5
        found = np.array([(weight * xx).sum(), (weight * yy).sum()]) / weight.sum()
        np.testing.assert_allclose(found, expected, atol=0.02)
        assert k[0, 0] == pytest.approx(k[1, 1])  # one factor: never squashed


def test_depth_follows_the_frames_without_blending():
    depth = np.where(np.mgrid[:90, :160][1] < 80, 1.0, 9.0).astype(np.float32)[None]
    fit = cover((90, 160), (64, 64))
    small = resize_depth(depth, fit)
    assert small.shape == (1, 64, 64) and set(np.unique(small)) == {1.0, 9.0}
    frames = apply_fit(np.repeat(depth[..., None] / 9, 3, -1), fit)
    assert np.array_equal(small > 5, frames[..., 0] > 5 / 9)  # the edge is on the same column
    identity = cover((90, 160), (90, 160))
    assert np.array_equal(resize_depth(depth, identity), depth)
    assert resize_depth(depth > 5, fit).dtype == bool


@pytest.mark.parametrize("source, size", [((90, 160), (64, 128)), ((121, 67), (256, 128))])
def test_undo_fit_returns_to_the_source_pixels(source, size):
    y, x = (np.mgrid[: source[0], : source[1]] + 0.5) / 160
    image = (0.5 + 0.3 * np.sin(9 * x + 1) * np.cos(7 * y)).astype(np.float32)
    image = np.repeat(image[None, ..., None], 3, -1)
    fit = cover(source, size)
    back = undo_fit(apply_fit(image, fit), fit)
    assert back.shape == image.shape
    left, top, right, bottom = fit.box
    inside = np.s_[:, math.ceil(top) + 2 : int(bottom) - 2, math.ceil(left) + 2 : int(right) - 2]
    assert np.abs(back[inside] - image[inside]).max() < 0.003
    assert psnr(back, image) > 25  # the cropped strips repeat the edge


def test_resize_is_exact_where_it_can_be():
    ramp = np.repeat(np.linspace(0.1, 0.9, 64)[None, :, None], 3, -1).astype(np.float32)
    image = np.repeat(ramp, 32, 0)
    half = resize(image, (16, 32))
    expected = image.reshape(16, 2, 32, 2, 3).mean((1, 3))  # a ramp's bicubic is its mean
    np.testing.assert_allclose(half[:, 4:-4], expected[:, 4:-4], atol=1e-5)
    assert resize(image, (32, 64)) is not None and np.array_equal(resize(image, (32, 64)), image)


def test_exact_rate_recovers_broadcast_rates():
    for rate in (Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120)):
        assert exact_rate(float(rate)) == rate
    clip = Clip(np.zeros((30, 4, 4, 3), np.float32), 30000 / 1001)
    assert clip.rate == Fraction(30000, 1001) and clip.duration == pytest.approx(1.001)


def test_shipped_clip_is_the_documented_file():
    path = asset_path("clip/cockatoo.mp4")
    data = path.read_bytes()
    readme = asset_path("clip/README.md").read_text()
    assert re.search(r"\| sha256 \| `(\w+)`", readme)[1] == hashlib.sha256(data).hexdigest()
    assert len(data) < 400_000
    clip = read_clip(path)
    assert clip.frames.shape == (25, 360, 640, 3) and clip.rate == 20
    moved = np.abs(np.diff(clip.frames, axis=0)).mean((1, 2, 3))
    assert moved.min() > 0.002, "no frozen frames"

"""CLIP preprocessing against slow loops written from its definition, and wrong variants of it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recapture_jax.errors import InputError
from recapture_jax.models.image_preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    clip_preprocess,
    resize_antialias,
    resize_matrix,
)

TOLERANCE = 1e-6  # relative, float32 against float64


def slow_resize(signal, n_out, a=-0.75, aligned=True, antialias=True):
    """One axis (the first) sample by sample: blur with reflection, then the cubic kernel."""
    n = len(signal)
    factor = n / n_out
    if antialias:
        sigma = max((factor - 1) / 2, 0.001)
        taps = int(max(2 * 2 * sigma, 3))
        taps += taps % 2 == 0
        weights = [math.exp(-((k - taps // 2) ** 2) / (2 * sigma**2)) for k in range(taps)]
        padded = np.pad(signal, [(taps // 2,) * 2] + [(0, 0)] * (signal.ndim - 1), mode="reflect")
        signal = np.stack(
            [sum(w * padded[i + k] for k, w in enumerate(weights)) / sum(weights) for i in range(n)]
        )

    def cubic(x):
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    out = []
    for i in range(n_out):
        x = i * (n - 1) / (n_out - 1) if aligned else (i + 0.5) * factor - 0.5
        near = math.floor(x)
        out.append(
            sum(cubic(x - j) * signal[min(max(j, 0), n - 1)] for j in range(near - 1, near + 3))
        )
    return np.stack(out)


def slow_preprocess(images, size, **variant):
    x = images.astype(np.float64) * 2 - 1
    for axis in (1, 2):
        x = np.moveaxis(slow_resize(np.moveaxis(x, axis, 0), size, **variant), 0, axis)
    return ((x + 1) / 2 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)


def relative(a, b):
    return np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)


def random_images(height, width, seed=0):
    return np.random.default_rng(seed).random((2, height, width, 3), dtype=np.float32)


@pytest.mark.parametrize(
    "height, width, size",
    [(90, 61, 14), (20, 33, 28), (9, 57, 28), (2, 3, 14), (28, 28, 28), (28, 70, 28)],
)
def test_agrees_with_slow_loops(height, width, size):
    images = random_images(height, width)
    result = clip_preprocess(jnp.asarray(images), size=size)
    assert result.shape == (2, size, size, 3) and result.dtype == jnp.float32
    assert relative(result, slow_preprocess(images, size)) < TOLERANCE


@pytest.mark.parametrize("variant", [{"a": -0.5}, {"aligned": False}, {"antialias": False}])
def test_wrong_variants_are_visible(variant):
    images = random_images(90, 61)
    result = clip_preprocess(jnp.asarray(images), size=28)
    assert relative(result, slow_preprocess(images, 28)) < TOLERANCE
    assert relative(result, slow_preprocess(images, 28, **variant)) > 0.02


def test_constant_image_and_channel_order():
    colour = np.array([0.9, 0.2, 0.4], np.float32)
    images = np.broadcast_to(colour, (1, 50, 40, 3))
    expected = (colour - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    result = clip_preprocess(jnp.asarray(images), size=28)
    np.testing.assert_allclose(result, np.broadcast_to(expected, result.shape), atol=1e-6)


def test_same_size_is_the_identity():
    images = random_images(16, 16)
    np.testing.assert_array_equal(resize_antialias(jnp.asarray(images), (16, 16)), images)


def test_axes_are_independent_and_may_differ():
    images = random_images(12, 30)
    result = resize_antialias(jnp.asarray(images), (24, 10))
    x = np.moveaxis(slow_resize(np.moveaxis(images.astype(np.float64), 1, 0), 24), 0, 1)
    x = np.moveaxis(slow_resize(np.moveaxis(x, 2, 0), 10), 0, 2)
    assert relative(result, x) < TOLERANCE


def test_overshoot_is_kept():
    step = np.zeros((1, 8, 8, 3), np.float32)
    step[:, :, 4:] = 1
    result = np.asarray(resize_antialias(jnp.asarray(step), (64, 64)))
    assert result.min() < -0.05 and result.max() > 1.05


def test_under_jit():
    images = jnp.asarray(random_images(20, 33))
    jitted = jax.jit(clip_preprocess, static_argnames="size")(images, size=28)
    assert relative(jitted, np.asarray(clip_preprocess(images, size=28), np.float64)) < TOLERANCE


@pytest.mark.parametrize(
    "images, match",
    [
        (np.zeros((20, 30, 3), np.float32), r"expected \[B, H, W, 3\]"),
        (np.zeros((1, 20, 30, 4), np.float32), "alpha"),
        (np.zeros((1, 1, 30, 3), np.float32), "H, W >= 2"),
        (np.zeros((1, 20, 30, 3), np.uint8), "divide bytes by 255"),
    ],
)
def test_bad_input_is_refused(images, match):
    with pytest.raises(InputError, match=match):
        clip_preprocess(images)


def test_matrix_is_cached_and_cannot_be_changed():
    matrix = resize_matrix(20, 10)
    assert matrix is resize_matrix(20, 10)
    with pytest.raises(ValueError, match="read-only"):
        matrix[0, 0] = 1

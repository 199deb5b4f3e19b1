"""What Stable Video Diffusion does to an image before CLIP sees it: blur, resize, normalise.

Per axis, from n_in to n_out samples, with f = n_in / n_out:

1. Gaussian blur, sigma = max((f - 1) / 2, 0.001), int(max(4 sigma, 3)) taps made odd by adding one,
   reflected at the borders without repeating the edge sample. The default sigma is that of
   scikit-image's anti-aliasing; a factor near one leaves the image as it is.
2. Cubic convolution (Keys 1981) with a = -0.75 whose first and last samples coincide with the first
   and last input samples ("align corners"), taps clamped to the border.

Both are linear along one axis, so an axis is one [n_out, n_in] matrix and an image two products.
Two things surprise and are kept, since the network was trained with them: the aspect ratio is not
kept, and values may overshoot [0, 1] as nothing is clipped.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from recapture_jax.errors import InputError
from recapture_jax.models.resize import aligned_corners, apply_matrices, cubic_matrix, scatter

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def clip_preprocess(images: jax.Array, size: int = 224) -> jax.Array:
    """Resizes to size x size with anti-aliasing and normalises per channel, for `CLIPVision`.

    The reference maps [0, 1] to [-1, 1] before the resize and back after it; every row of the
    resize matrices sums to one, so that the pair changes nothing and is left out.

    Args:
        images: [B, H, W, 3], floating point in [0, 1]; H and W at least 2.
        size: side of the result in pixels.

    Returns:
        [B, size, size, 3] float32, (value - CLIP_MEAN) / CLIP_STD.

    Raises:
        InputError: wrong shape or integer pixels.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or min(images.shape[1:3]) < 2:
        raise InputError(
            f"images have shape {images.shape}, expected [B, H, W, 3] with H, W >= 2; "
            "add the batch axis or drop the alpha channel"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(
            f"images have dtype {images.dtype}, expected floats in [0, 1]; divide bytes by 255"
        )
    resized = resize_antialias(images, (size, size))
    mean, std = (jnp.asarray(x, jnp.float32)[None, None, None] for x in (CLIP_MEAN, CLIP_STD))
    return (resized - mean) / std


def resize_antialias(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Blur and cubic resize of the module docstring: [B, H, W, C] -> [B, size[0], size[1], C].

    Any value range; the result is float32 and may overshoot the range of the input.
    """
    matrices = (resize_matrix(n, m) for n, m in zip(images.shape[1:3], size, strict=True))
    return apply_matrices(images, *matrices)


@functools.lru_cache(maxsize=32)
def resize_matrix(n_in: int, n_out: int) -> np.ndarray:
    """[n_out, n_in] float32: blur, then cubic resize along one axis; rows sum to one.

    Raises:
        InputError: n_in < 2 (nothing to reflect) or n_out < 1.
    """
    if n_in < 2 or n_out < 1:
        raise InputError(
            f"cannot resize {n_in} samples to {n_out}, expected at least 2 and 1; use larger images"
        )
    cubic = cubic_matrix(n_in, aligned_corners(n_in, n_out))
    matrix = (cubic @ _blur_matrix(n_in, n_in / n_out)).astype(np.float32)
    matrix.setflags(write=False)  # the cache hands the same array to every caller
    return matrix


def _blur_matrix(n: int, factor: float) -> np.ndarray:
    """[n, n] float64: Gaussian for a reduction by `factor`, reflected at the borders."""
    sigma = max((factor - 1.0) / 2.0, 0.001)
    radius = int(max(4.0 * sigma, 3)) // 2  # an even number of taps becomes the next odd one
    offsets = np.arange(-radius, radius + 1)
    taps = np.exp(-0.5 * (offsets / sigma) ** 2)
    source = np.abs(np.arange(n)[:, None] + offsets[None])
    source = np.where(source > n - 1, 2 * (n - 1) - source, source)
    return scatter(source, np.broadcast_to(taps / taps.sum(), source.shape), n)

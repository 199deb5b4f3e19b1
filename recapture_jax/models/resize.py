"""Separable resizing with the sampling positions and weights of PyTorch and OpenCV.

Sample i of the result lies at `aligned_corners` (first and last samples coincide) or
`pixel_centres` (areas coincide) of the input, taps outside are clamped to the border. Nothing is
antialiased. Cubic convolution (Keys 1981) has a = -0.75.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def aligned_corners(n_in: int, n_out: int) -> np.ndarray:
    """[n_out] float64 positions from 0 to n_in - 1."""
    return np.arange(n_out) * ((n_in - 1) / max(n_out - 1, 1))


def pixel_centres(n_in: int, n_out: int, scale: float | None = None) -> np.ndarray:
    """[n_out] float64 positions; `scale` = input samples per output sample, n_in / n_out if None."""
    scale = n_in / n_out if scale is None else scale
    return (np.arange(n_out) + 0.5) * scale - 0.5


def cubic_matrix(n_in: int, positions: np.ndarray, a: float = -0.75) -> np.ndarray:
    """[len(positions), n_in] float64: cubic convolution at positions, taps clamped."""
    first = np.floor(positions).astype(int)[:, None] + np.arange(-1, 3)[None]
    x = np.abs(positions[:, None] - first)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1  # |x| <= 1, Keys 1981, equation 15
    far = a * (((x - 5) * x + 8) * x - 4)  # 1 < |x| <= 2
    weights = np.where(x <= 1, near, far)
    return scatter(np.clip(first, 0, n_in - 1), weights, n_in)


def scatter(columns: np.ndarray, weights: np.ndarray, n: int) -> np.ndarray:
    """Dense [rows, n] matrix from [rows, taps] columns and weights; equal columns add up."""
    matrix = np.zeros((len(columns), n))
    np.add.at(matrix, (np.arange(len(columns))[:, None], columns), weights)
    return matrix


def apply_matrices(images: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """[B, H, W, C] -> [B, h, w, C] float32 by a [h, H] and a [w, W] matrix."""
    return jnp.einsum(
        "ih,bhwc,jw->bijc",
        jnp.asarray(rows, jnp.float32),
        images.astype(jnp.float32),
        jnp.asarray(columns, jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )


def resize_cubic(
    images: jax.Array, size: tuple[int, int], scale: tuple[float, float] | None = None
) -> jax.Array:
    """Cubic, areas aligned: [B, H, W, C] -> [B, *size, C] float32; may overshoot.

    Args:
        scale: input samples per output sample of both axes where it is not the quotient of the
            sizes.
    """
    matrices = (
        cubic_matrix(n, pixel_centres(n, m, s))
        for n, m, s in zip(images.shape[1:3], size, scale or (None, None), strict=True)
    )
    return apply_matrices(images, *matrices)


def resize_linear(images: jax.Array, size: tuple[int, int], align_corners: bool) -> jax.Array:
    """Bilinear: [B, H, W, C] -> [B, *size, C] in the dtype of the input."""
    place = aligned_corners if align_corners else pixel_centres
    for axis, (n, m) in enumerate(zip(images.shape[1:3], size, strict=True), 1):
        if n != m:
            images = _linear(images, axis, place(n, m))
    return images


def _linear(x: jax.Array, axis: int, positions: np.ndarray) -> jax.Array:
    """Linear interpolation along one axis: two neighbours per position, clamped."""
    last = x.shape[axis] - 1
    positions = np.clip(positions, 0, last)
    before = np.minimum(np.floor(positions).astype(np.int32), max(last - 1, 0))
    shape = [1] * x.ndim
    shape[axis] = len(positions)
    share = jnp.asarray((positions - before).reshape(shape), x.dtype)
    take = functools.partial(jnp.take, x, axis=axis)
    low, high = take(before), take(np.minimum(before + 1, last))
    return low * (1 - share) + high * share

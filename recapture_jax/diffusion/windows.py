"""Clips longer than what a model sees at once: windows of time under one noise schedule.

At every level each window is denoised with its own conditioning, and where windows overlap their
estimates are blended before the step (MultiDiffusion, Bar-Tal et al. 2023, arXiv 2302.08113, along
time instead of space). So the windows agree from the first level on, the cost is linear in the number of
windows, and the network's memory is that of one.

A window is conditioned on its first frame. What nobody knows of that frame the window before has just invented: its
estimate takes the place of the image's there, or each window would invent a world of its own.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from recapture_jax.diffusion.edm import Denoiser, at_least_float32
from recapture_jax.diffusion.guidance import Conditioning, with_guidance
from recapture_jax.errors import InputError


def window_starts(total: int, length: int, overlap: int) -> np.ndarray:
    """First frames `[K]` int32 of windows of `length` frames that cover `total`.

    Neighbours share `overlap` frames; the last window ends with the clip and may share more. A clip
    that is no longer than `length` is one window of its own length.

    Raises:
      InputError: windows that do not advance.
    """
    if total <= length:
        return np.zeros(1, np.int32)
    if not 0 <= overlap < length:
        raise InputError(
            f"windows of {length} frames cannot share {overlap}: expected 0 to {length - 1} "
            "(config.model.window_overlap)"
        )
    last = total - length
    return np.array([*range(0, last, length - overlap), last], np.int32)


def plan_windows(total: int, trained: int, window: int, overlap: int) -> tuple[np.ndarray, int]:
    """First frames `[K]` and length of the windows of a clip.

    Args:
      total: frames of the clip.
      trained: frames of the clips that the model was trained on.
      window, overlap: as in the `model` group; 0: as trained, and two fifths of a window.

    Raises:
      InputError: windows that do not advance.
    """
    length = window or trained
    return window_starts(total, length, overlap or 2 * length // 5), min(length, total)


def blend_weights(total: int, length: int, starts: np.ndarray) -> np.ndarray:
    """Weights `[K, length]` float32 of the windows' frames; those of each frame of the clip sum to 1.

    They fall linearly towards a window's ends but for those of the clip itself: a window's first
    frame, the one it is conditioned on, is left to the window before.
    """
    length = min(total, length)
    ramp = np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1)).astype(np.float64)
    weights = np.tile(ramp, (len(starts), 1))
    covered = np.zeros(total)
    for start, row in zip(starts, weights, strict=True):
        covered[start : start + length] += row
    for start, row in zip(starts, weights, strict=True):
        row /= covered[start : start + length]
    return weights.astype(np.float32)


def in_windows(
    denoise: Callable[..., jax.Array],
    scales: tuple[float, ...] | None = None,
    scaling: float = 1.0,
) -> Callable[..., jax.Array]:
    """`run(params, tables, starts, weights, unknown, x, sigma, cond)`: a window's denoiser over a whole clip.

    Args:
      denoise: `(params, tables, x, sigma, cond) -> x0` of one window, batch 1, or 2 under guidance.
      scales: guidance of a window's frames, or None for none.
      scaling: of the latents that are diffused over those of the conditioning.

    Returns:
      A function of x `[1, T, h, w, c]`, with `tables` and the leaves of `cond` stacked over the K
      windows, and `unknown` `[K, h, w]`, 1 where a window's first frame takes the estimate of the
      window before.
    """

    def run(params, tables, starts, weights, unknown, x, sigma, cond: Conditioning) -> jax.Array:
        x, length = at_least_float32(x), weights.shape[1]

        def add(carry, window):
            total, before, begun = carry
            start, weight, table, share, own = window
            one: Denoiser = functools.partial(denoise, params, table)
            guided = one if scales is None else with_guidance(one, np.array(scales))
            seen = lax.dynamic_slice_in_dim(x, start, length, axis=1)
            own = jax.tree.map(lambda leaf: leaf[None], own)
            told = lax.dynamic_slice_in_dim(before, start - begun, 1, axis=1) / scaling
            latents = own.latents + share[None, None, :, :, None] * (told - own.latents)
            estimate = at_least_float32(
                guided(seen, sigma, dataclasses.replace(own, latents=latents))
            )
            part = estimate * weight.reshape(1, -1, 1, 1, 1)
            so_far = lax.dynamic_slice_in_dim(total, start, length, axis=1)
            total = lax.dynamic_update_slice_in_dim(total, so_far + part, start, axis=1)
            return (total, estimate, start), None

        nothing = jnp.zeros_like(x[:, :length])
        windows = (starts, weights, tables, unknown, cond)
        (total, *_), _ = lax.scan(add, (jnp.zeros_like(x), nothing, starts[0]), windows)
        return total

    return run

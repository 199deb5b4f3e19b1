"""Classifier-free guidance with one scale per frame, as SVD is sampled.

    D[f] = D_u[f] + g[f] (D_c[f] - D_u[f]),   g = linspace(min, max, T)      (Ho & Salimans 2022)

D is affine in the network's output at fixed x, so guiding D and guiding F are the same thing. The
scales are static (numpy): whether the unconditional pass runs at all is decided when tracing.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from recapture_jax.diffusion.edm import Denoiser, at_least_float32
from recapture_jax.errors import InputError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conditioning:
    """What the network is told besides the noisy latents and their level.

    Attributes:
      context: `[B, 1, D]`, the image embedding of the first frame.
      latents: `[B, T, h, w, c]`, the unscaled latents of the first frame, repeated over T.
      added_time_ids: `[B, 3]`, (fps - 1, motion bucket, noise augmentation).
    """

    context: jax.Array
    latents: jax.Array
    added_time_ids: jax.Array


def unconditional(cond: Conditioning) -> Conditioning:
    """Zero image embedding and zero conditioning latents; the ids stay."""
    return dataclasses.replace(
        cond, context=jnp.zeros_like(cond.context), latents=jnp.zeros_like(cond.latents)
    )


def doubled(cond: Any, unconditional: Callable[[Any], Any] = unconditional) -> Any:
    """The conditioning of both passes, batch 2 B, the unconditional half first."""
    return jax.tree.map(lambda *halves: jnp.concatenate(halves), unconditional(cond), cond)


def guidance_ramp(minimum: float, maximum: float, frames: int) -> np.ndarray:
    """`[T]` float32 scales rising linearly from the first frame to the last (SVD: 1 to 2.5 or 3).

    Raises:
      InputError: if a scale is negative or not finite, or there is no frame.
    """
    if frames < 1:
        raise InputError(f"{frames} frames to guide: expected 1 or more; give a longer clip")
    if not (np.isfinite([minimum, maximum]).all() and min(minimum, maximum) >= 0):
        raise InputError(
            f"guidance scales {minimum} to {maximum}: expected finite numbers, 0 or more;"
            " 1 to 3 is the usual choice"
        )
    return np.linspace(minimum, maximum, frames, dtype=np.float32)


def with_guidance(
    denoise: Denoiser,
    scale: np.ndarray,
    unconditional: Callable[[Any], Any] = unconditional,
) -> Denoiser:
    """`denoise` guided frame by frame.

    One call of `denoise` on a doubled batch, unconditional half first. If no scale exceeds 1 the
    unconditional half is never computed and the result is D_c (scales below 1 then count as 1, as
    in the public SVD pipeline).

    Args:
      denoise: of latents `[B, T, h, w, c]`.
      scale: `[T]`, concrete (not traced).
      unconditional: from the conditioning to that of the unconditional half, same shapes.

    Raises:
      ValueError: when called with another number of frames than there are scales.
    """
    scale = np.asarray(scale, np.float32)
    if scale.ndim != 1:
        raise ValueError(f"guidance scales of shape {scale.shape}: expected one per frame, [T]")
    if scale.max() <= 1.0:
        return denoise

    def guided(x: jax.Array, sigma: jax.typing.ArrayLike, cond: Any) -> jax.Array:
        if x.shape[1] != len(scale):
            raise ValueError(f"{len(scale)} guidance scales for {x.shape[1]} frames")
        sigma = at_least_float32(sigma)
        sigmas = jnp.concatenate([sigma, sigma]) if sigma.ndim else sigma
        answer = denoise(jnp.concatenate([x, x]), sigmas, doubled(cond, unconditional))
        uncond, cond_only = jnp.split(answer, 2)
        g = scale.reshape((1, -1) + (1,) * (x.ndim - 2))
        # At g = 1 the formula would return D_c only up to rounding.
        return jnp.where(g == 1.0, cond_only, uncond + g * (cond_only - uncond))

    return guided

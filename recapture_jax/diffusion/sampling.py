"""Euler sampling of the probability-flow ODE (Karras et al. 2022, arXiv 2206.00364, Alg. 1).

With (1) x = z + s eps of `edm`, dx/ds = (x - D(x, s)) / s, and one Euler step from s to s' is

    (1)  x' = x + (s' - s) (x - D) / s  =  D + (s' / s) (x - D)

The right-hand form is used: it has no cancellation and at s' = 0 it returns D itself. The sampler's
state is the current latent alone, in float32.

Two drivers share one step: `sample_scan` (one program, for use under jit) and `sample_steps` (a
Python loop over one compiled step, for progress and cancelling). Both accept any `Denoiser`;
`sample_steps` compiles by itself, so large parameters must not hide in a closure, where they would
become constants of the program: pass `jax.tree_util.Partial(f, params)` with
`f(params, x, sigma, cond)` and they are arguments.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from recapture_jax import xla
from recapture_jax.diffusion.edm import Denoiser, add_noise, at_least_float32, expand
from recapture_jax.diffusion.guidance import with_guidance

# (x0 [B,T,h,w,c], sigma [], step []) -> x0, applied to every denoised estimate
Project = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# (step just done, its sigma, its x0 [B,T,h,w,c]) -> None
Callback = Callable[[int, float, jax.Array], None]


def start_from_noise(noise: jax.Array, sigma_max: jax.typing.ArrayLike) -> jax.Array:
    """Initial state for generation: `noise * sqrt(sigma_max^2 + 1)`, float32.

    The +1 is the variance of the data, which at sigma_max is indistinguishable from noise.
    """
    sigma = expand(sigma_max, noise.ndim)
    return at_least_float32(noise) * jnp.sqrt(jnp.square(sigma) + 1.0)


def start_from_video(
    latents: jax.Array, noise: jax.Array, sigma_start: jax.typing.ArrayLike
) -> jax.Array:
    """Initial state for SDEdit (Meng et al. 2022): `latents + sigma_start * noise`, float32.

    The latents are already there, so unlike `start_from_noise` nothing stands in for them.
    """
    return add_noise(latents, noise, sigma_start)


def euler_step(
    denoise: Denoiser,
    x: jax.Array,
    sigma: jax.Array,
    sigma_next: jax.Array,
    step: jax.Array,
    cond: Any,
    *,
    guidance: np.ndarray | None = None,
    project: Project | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One step of eq. (1) from `sigma` > 0 to `sigma_next` (scalars).

    Returns:
      The next state and the (guided, projected) denoised estimate, both float32, shaped like `x`.
    """
    if guidance is not None:
        denoise = with_guidance(denoise, guidance)
    x0 = at_least_float32(denoise(x, sigma, cond))
    if project is not None:
        x0 = at_least_float32(project(x0, sigma, step))
    return x0 + (sigma_next / sigma) * (x - x0), x0


def sample_scan(
    denoise: Denoiser,
    x: jax.Array,
    sigmas: jax.typing.ArrayLike,
    cond: Any,
    *,
    guidance: np.ndarray | None = None,
    project: Project | None = None,
) -> jax.Array:
    """Samples in one `lax.scan`; meant to be called under the caller's jit, which may donate `x`.

    Args:
      denoise: `(x, sigma [], cond) -> x0`.
      x: the state at `sigmas[0]`, `[B, T, h, w, c]`: from `start_from_noise` or `start_from_video`.
      sigmas: `[n + 1]`, falling, positive but for the final 0 (`karras`).
      cond: the denoiser's conditioning; with guidance, what `guidance.unconditional` understands.
      guidance: `[T]` static scales (`guidance_ramp`), or None for none.
      project: applied to each denoised estimate before the step moves towards it, e.g. to put known
        regions back.

    Returns:
      `[B, T, h, w, c]` float32, the last denoised estimate if `sigmas` ends in 0.

    Raises:
      ValueError: if `sigmas` is not a list of two or more levels.
    """
    steps = _count_steps(sigmas)
    sigmas = at_least_float32(sigmas)

    def body(x, inputs):
        sigma, sigma_next, step = inputs
        x, _ = euler_step(
            denoise, x, sigma, sigma_next, step, cond, guidance=guidance, project=project
        )
        return x, None

    x, _ = jax.lax.scan(
        body, at_least_float32(x), (sigmas[:-1], sigmas[1:], jnp.arange(steps, dtype=jnp.int32))
    )
    return x


def sample_steps(
    denoise: Denoiser,
    x: jax.Array,
    sigmas: jax.typing.ArrayLike,
    cond: Any,
    *,
    guidance: np.ndarray | None = None,
    project: Project | None = None,
    callback: Callback | None = None,
) -> jax.Array:
    """`sample_scan` as a Python loop over one compiled step, with a callback after every step.

    The step is compiled once per function and shape and kept for later calls. Arrays that `denoise`
    and `project` need should be arguments of a `jax.tree_util.Partial` (see the module's head). `x`
    is copied, so the caller's array survives the donation inside.

    Args:
      callback: called as `callback(step, sigma, x0)` when the device has finished the step; what it
        raises ends the sampling. `x0` may be kept.
      Others: as `sample_scan`; `sigmas` must be concrete.

    Returns:
      As `sample_scan`.
    """
    steps = _count_steps(sigmas)
    sigmas = np.asarray(sigmas, np.float32)
    x = jnp.array(x, jnp.float32, copy=True)
    scales = None if guidance is None else tuple(np.asarray(guidance, np.float32).tolist())
    denoise, project = _as_argument(denoise), project and _as_argument(project)
    for step in range(steps):
        x, x0 = _compiled_step(
            denoise, x, sigmas[step], sigmas[step + 1], np.int32(step), cond, project, scales
        )
        if callback is not None:
            callback(step, float(sigmas[step]), jax.block_until_ready(x0))
    return x


@xla.jit(donate_argnames=("x",), static_argnames=("scales",))
def _compiled_step(denoise, x, sigma, sigma_next, step, cond, project, scales):
    return euler_step(denoise, x, sigma, sigma_next, step, cond, guidance=scales, project=project)


def _as_argument(function: Callable) -> Partial:
    """A function as a pytree without leaves; one that is a pytree already stays."""
    return function if isinstance(function, Partial) else Partial(function)


def _count_steps(sigmas: jax.typing.ArrayLike) -> int:
    shape = np.shape(sigmas)
    if len(shape) != 1 or shape[0] < 2:
        raise ValueError(f"sigmas of shape {shape}: expected [n + 1] levels for n >= 1 steps")
    return shape[0] - 1

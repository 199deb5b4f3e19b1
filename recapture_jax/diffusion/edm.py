"""EDM preconditioning and training targets of Stable Video Diffusion (v-prediction).

Notation: z clean latents of unit variance (sigma_data = 1), eps ~ N(0, I), s the noise level
(sigma), F the raw network, D the denoiser built on it. Latents are `[B, T, h, w, c]`; s is a scalar
or one level per clip, `[B]`.

Forward process, variance exploding, and denoiser (Karras et al. 2022, arXiv 2206.00364, eq. 7):

    (1)  x          = z + s eps
    (2)  D(x, s)    = c_skip(s) x + c_out(s) F(c_in(s) x, c_noise(s))

with the coefficients SVD was trained with (v-prediction of Salimans & Ho 2022, arXiv 2202.00512,
rewritten for (1)):

    (3)  c_skip  =  1 / (1 + s^2)
    (4)  c_out   = -s / sqrt(1 + s^2)
    (5)  c_in    =  1 / sqrt(1 + s^2)
    (6)  c_noise =  ln(s) / 4

Setting D = z in (2) and solving for F gives the regression target, and solving (1) for eps with
z = D gives the noise the network implies; neither divides by s, so both are safe at small s:

    (7)  F*      = (eps - s z) / sqrt(1 + s^2)
    (8)  eps_hat = F / sqrt(1 + s^2) + s x / (1 + s^2)

Element by element, therefore also under any mask:

    (9)  |D - z|^2         = s^2 / (1 + s^2) |F - F*|^2
    (10) |eps_hat - eps|^2 =   1 / (1 + s^2) |F - F*|^2

By (9) the EDM-weighted loss (1 + s^2) / s^2 |D - z|^2 that SVD was trained with is |F - F*|^2:
weight 1 in v-space. By (10) the noise-prediction loss is the same with weight 1 / (1 + s^2).

Training levels (log-normal; mean 0.7 and deviation 1.6 are what public SVD fine-tuners use):

    (11) ln s ~ N(mean, std^2), s clipped to [sigma_min, sigma_max]

Every function of s is computed in float32 (float64 inputs stay float64), whatever the network uses.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

SIGMA_MIN, SIGMA_MAX = 0.002, 700.0  # SVD's sampling range
SIGMA_MEAN, SIGMA_STD = 0.7, 1.6  # of ln s, in training
LOSS_FORMS = ("v", "eps")

# (scaled latents [B,T,h,w,c], c_noise [B], conditioning) -> F [B,T,h,w,c]
Network = Callable[[jax.Array, jax.Array, Any], jax.Array]
# (noisy latents [B,T,h,w,c], sigma [] or [B], conditioning) -> clean latents [B,T,h,w,c]
Denoiser = Callable[[jax.Array, jax.Array, Any], jax.Array]


def at_least_float32(x: jax.typing.ArrayLike) -> jax.Array:
    """`x` as a jax array, with integers and half precisions widened to float32."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def expand(sigma: jax.typing.ArrayLike, ndim: int) -> jax.Array:
    """A level per clip `[B]` as `[B, 1, ..., 1]` with `ndim` axes; a scalar stays a scalar."""
    sigma = at_least_float32(sigma)
    return sigma.reshape(sigma.shape + (1,) * (ndim - 1)) if sigma.ndim else sigma


def c_skip(sigma: jax.typing.ArrayLike) -> jax.Array:
    """Eq. (3)."""
    return 1.0 / (jnp.square(at_least_float32(sigma)) + 1.0)


def c_out(sigma: jax.typing.ArrayLike) -> jax.Array:
    """Eq. (4)."""
    return -at_least_float32(sigma) * c_in(sigma)


def c_in(sigma: jax.typing.ArrayLike) -> jax.Array:
    """Eq. (5)."""
    return 1.0 / jnp.sqrt(jnp.square(at_least_float32(sigma)) + 1.0)


def c_noise(sigma: jax.typing.ArrayLike) -> jax.Array:
    """Eq. (6): the U-Net's "timestep", in [-1.55, 1.64] over SVD's range; never scaled by 1000."""
    return 0.25 * jnp.log(at_least_float32(sigma))


def add_noise(latents: jax.Array, noise: jax.Array, sigma: jax.typing.ArrayLike) -> jax.Array:
    """Eq. (1): `[B, ...]` latents and noise, sigma `[]` or `[B]` -> noisy latents `[B, ...]`."""
    return at_least_float32(latents) + expand(sigma, latents.ndim) * at_least_float32(noise)


def v_target(latents: jax.Array, noise: jax.Array, sigma: jax.typing.ArrayLike) -> jax.Array:
    """Eq. (7): what the network should output, shaped like `latents` `[B, ...]`."""
    sigma = expand(sigma, latents.ndim)
    return (at_least_float32(noise) - sigma * at_least_float32(latents)) * c_in(sigma)


def denoised_from_v(v: jax.Array, x: jax.Array, sigma: jax.typing.ArrayLike) -> jax.Array:
    """Eq. (2) with F given: clean latents from the network's output `v` at noisy latents `x`."""
    sigma = expand(sigma, x.ndim)
    return c_skip(sigma) * at_least_float32(x) + c_out(sigma) * at_least_float32(v)


def noise_from_v(v: jax.Array, x: jax.Array, sigma: jax.typing.ArrayLike) -> jax.Array:
    """Eq. (8): the noise that the network's output `v` implies at noisy latents `x`."""
    sigma = expand(sigma, x.ndim)
    return c_in(sigma) * at_least_float32(v) + sigma * c_skip(sigma) * at_least_float32(x)


def loss_weight(sigma: jax.typing.ArrayLike, form: str = "v") -> jax.Array:
    """Weight of |F - F*|^2, shaped like `sigma`: 'v' 1 (eq. 9), 'eps' 1 / (1 + s^2) (eq. 10).

    Raises:
      ValueError: for another form.
    """
    if form not in LOSS_FORMS:
        raise ValueError(f"loss form {form!r}: expected one of {LOSS_FORMS}")
    return jnp.ones_like(at_least_float32(sigma)) if form == "v" else c_skip(sigma)


def sample_sigma(
    key: jax.Array,
    shape: tuple[int, ...] = (),
    *,
    mean: float = SIGMA_MEAN,
    std: float = SIGMA_STD,
    sigma_min: float = SIGMA_MIN,
    sigma_max: float = SIGMA_MAX,
) -> jax.Array:
    """Eq. (11): random training levels of the given shape, float32."""
    log_sigma = mean + std * jax.random.normal(key, shape, jnp.float32)
    return jnp.clip(jnp.exp(log_sigma), sigma_min, sigma_max)


def predict_v(network: Network, x: jax.Array, sigma: jax.typing.ArrayLike, cond: Any) -> jax.Array:
    """F at noisy latents `x` `[B, ...]`: scales the input by (5), embeds the level by (6).

    Args:
      network: called as `network(c_in x, c_noise [B], cond)`; appending the conditioning latents
        (unscaled, after the noisy ones) and casting to its own dtype are its business.
      x: noisy latents of eq. (1).
      sigma: `[]` or `[B]`.
      cond: anything; passed through.

    Returns:
      F, float32, shaped like `x`.
    """
    level = expand(sigma, x.ndim)
    t = jnp.broadcast_to(c_noise(sigma), x.shape[:1])
    return at_least_float32(network(c_in(level) * at_least_float32(x), t, cond))


def precondition(network: Network) -> Denoiser:
    """The denoiser of eq. (2) around a v-prediction network."""

    def denoise(x: jax.Array, sigma: jax.typing.ArrayLike, cond: Any) -> jax.Array:
        return denoised_from_v(predict_v(network, x, sigma, cond), x, sigma)

    return denoise

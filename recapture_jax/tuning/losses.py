"""The two losses of masked fine-tuning, as functions of arrays (equation numbers: `diffusion.edm`).

    L_temporal = mean(M w(s) |F - F*|^2)   on the anchor video, M = 1 where its pixels are known
    L_spatial  = mean(  w(s) |F - F*|^2)   on single frames of the source

w = 1 ('v') is, element by element, the loss SVD was trained with; w = 1 / (1 + s^2) ('eps') is
literally |eps - eps_hat|^2. Both identities, (9) and (10), are elementwise: the mask commutes with
them. The 'eps' form gives levels above s = 2, half of all training levels, 7 % of its weight:
structure at high noise is then barely trained.
"""

import jax
import jax.numpy as jnp

from recapture_jax.diffusion.edm import at_least_float32, expand, loss_weight, v_target

NORMALISATIONS = ("all", "mask")


def v_loss(
    prediction: jax.Array,
    latents: jax.Array,
    noise: jax.Array,
    sigma: jax.typing.ArrayLike,
    mask: jax.Array | None = None,
    *,
    form: str = "v",
    normalise: str = "all",
) -> jax.Array:
    """Masked mean of `w(s) |F - F*|^2`; without a mask the plain mean (the spatial loss).

    Where the mask is zero nothing is read: values there, NaN and infinity included, change neither
    the loss nor any gradient, and the gradient there is exactly zero.

    Args:
      prediction: F, the network's output, `[B, T, h, w, c]`.
      latents: z, the clean target latents, same shape.
      noise: eps, same shape.
      sigma: `[]` or `[B]`.
      mask: `[B, T, h, w]` at latent size, bool (True = known) or non-negative weights; one value
        for all channels.
      form: 'v' or 'eps', the weight w.
      normalise: 'all' divides by the number of elements, so that a clip with large holes takes
        smaller steps; 'mask' by the sum of the mask over all elements (0 if nothing is known).

    Returns:
      A scalar, float32.

    Raises:
      ValueError: for shapes that do not fit or an unknown form or normalisation.
    """
    if normalise not in NORMALISATIONS:
        raise ValueError(f"normalise {normalise!r}: expected one of {NORMALISATIONS}")
    shape = prediction.shape
    if latents.shape != shape or noise.shape != shape:
        raise ValueError(
            f"prediction {shape}, latents {latents.shape}, noise {noise.shape}: shapes must agree"
        )
    weight = expand(loss_weight(sigma, form), len(shape))
    if mask is None:
        return jnp.mean(weight * _squared_error(prediction, latents, noise, sigma))
    if mask.shape != shape[:-1]:
        raise ValueError(
            f"mask of shape {mask.shape}: expected {shape[:-1]}, latents without channels"
        )

    mask = jnp.broadcast_to(at_least_float32(mask)[..., None], shape)
    known = mask > 0
    # Selected before any arithmetic: multiplying by zero afterwards would let 0 * nan through, in
    # the value and in the gradient.
    prediction, latents, noise = (jnp.where(known, a, 0.0) for a in (prediction, latents, noise))
    total = jnp.sum(mask * weight * _squared_error(prediction, latents, noise, sigma))
    if normalise == "all":
        return total / mask.size
    share = jnp.sum(mask)
    return total / jnp.where(share > 0, share, 1.0)


def joint_loss(
    temporal: jax.Array,
    spatial: jax.Array,
    *,
    temporal_weight: float = 1.0,
    spatial_weight: float = 1.0,
) -> jax.Array:
    """`temporal_weight * temporal + spatial_weight * spatial`, both scalars."""
    return temporal_weight * temporal + spatial_weight * spatial


def _squared_error(prediction, latents, noise, sigma) -> jax.Array:
    """|F - F*|^2 with the target of eq. (7), which is data and carries no gradient."""
    target = jax.lax.stop_gradient(v_target(latents, noise, sigma))
    return jnp.square(at_least_float32(prediction) - target)

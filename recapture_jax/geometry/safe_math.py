"""Operations whose gradients stay finite where the textbook forms divide by zero.

A `jnp.where` around a bad value is not enough: the untaken branch still sends `0 * inf = nan` into
the gradient, so the argument itself is replaced before the operation.
"""

import jax
import jax.numpy as jnp


def safe_divide(
    numerator: jax.Array, denominator: jax.Array, fallback: float = 0.0, minimum: float = 0.0
) -> jax.Array:
    """`numerator / denominator` where `|denominator| > minimum`, else `fallback` (gradient zero).

    Both arguments have the same shape; use `[..., None]` or `broadcast_to` to get there.
    """
    usable = jnp.abs(denominator) > minimum
    quotient = numerator / jnp.where(usable, denominator, 1.0)
    return jnp.where(usable, quotient, fallback)


def safe_norm(x: jax.Array, axis: int = -1, keepdims: bool = False) -> jax.Array:
    """Euclidean norm along `axis`; its gradient at the zero vector is zero, not nan."""
    squared = jnp.sum(jnp.square(x), axis=axis, keepdims=keepdims)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)

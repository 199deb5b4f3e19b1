"""Random numbers for procedural generation: one random call, handed out in slices.

Dozens of separate `jax.random` calls in a jitted function take many seconds to compile on a CPU.
"""

import math

import jax
import jax.numpy as jnp


class Draws:
    """A block of `count` uniform numbers of `key`; each method consumes the next ones.

    Raises:
        IndexError: when more than `count` numbers are asked for.
    """

    def __init__(self, key, count: int):
        self._block = jax.random.uniform(key, (count,))
        self._next = 0

    def uniform(self, low=0.0, high=1.0, shape=()):
        """Floats in [low, high)."""
        stop = self._next + math.prod(shape)
        if stop > self._block.shape[0]:
            raise IndexError(f"{stop} random numbers wanted, only {self._block.shape[0]} drawn")
        u = self._block[self._next : stop].reshape(shape)
        self._next = stop
        return low + (high - low) * u

    def bernoulli(self, probability=0.5, shape=()):
        """True with `probability`, a number or an array of `shape`."""
        return self.uniform(shape=shape) < probability

    def index(self, count, shape=()):
        """Integers in [0, count)."""
        return jnp.minimum((self.uniform(shape=shape) * count).astype(jnp.int32), count - 1)

    def choice(self, weights, shape=()):
        """Indices into `weights` ([K], any positive sum) with those odds."""
        edges = jnp.cumsum(jnp.asarray(weights))
        u = self.uniform(shape=shape) * edges[-1]
        edges = edges[:-1].reshape((1,) * len(shape) + (-1,))
        return jnp.sum(u[..., None] >= edges, axis=-1)

    def normal(self, shape=()):
        """Standard normal floats."""
        u = jnp.clip(self.uniform(shape=shape), 1e-6, 1.0 - 1e-6)
        return jnp.sqrt(2.0) * jax.lax.erf_inv(2.0 * u - 1.0)

    def unit(self, shape):
        """Random unit vectors along the last axis of `shape`."""
        v = self.normal(shape)
        return v / jnp.sqrt(jnp.sum(v * v, axis=-1, keepdims=True) + 1e-12)

"""Residual blocks: 2-D, temporal, and the two blended (diffusers SpatioTemporalResBlock's function)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from recapture_jax.models.layers import (
    NORM_GROUPS,
    GroupNorm,
    MixFactor,
    TemporalConv,
    conv2d,
    per_frame,
)


def _add_embedding(x: jax.Array, embedding: jax.Array | None, features: int, dtype) -> jax.Array:
    """Adds Linear(silu(embedding)); `embedding` is `[B, E]`, or `[B, T, E]` where it differs by frame."""
    if embedding is None:
        return x
    shift = nn.Dense(features, dtype=dtype, name="time_emb_proj")(jax.nn.silu(embedding))
    shift = shift if shift.ndim == 3 else shift[:, None]
    return x + shift[:, :, None, None]


class ResnetBlock(nn.Module):
    """norm, SiLU, conv 3x3, + embedding, norm, SiLU, conv 3x3, + shortcut, frame by frame."""

    features: int
    epsilon: float
    dtype: jnp.dtype = jnp.float32
    norm_groups: int = NORM_GROUPS

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        h = per_frame(GroupNorm(self.epsilon, self.norm_groups, name="norm1"), x)
        h = per_frame(conv2d(self.features, 3, "conv1", self.dtype), jax.nn.silu(h))
        h = _add_embedding(h, embedding, self.features, self.dtype)
        h = per_frame(GroupNorm(self.epsilon, self.norm_groups, name="norm2"), h)
        h = per_frame(conv2d(self.features, 3, "conv2", self.dtype), jax.nn.silu(h))
        if x.shape[-1] != self.features:
            x = per_frame(conv2d(self.features, 1, "conv_shortcut", self.dtype), x)
        return x + h


class TemporalResnetBlock(nn.Module):
    """The same over time: (3, 1, 1) convolutions, norms that pool over (T, H, W), no shortcut layer."""

    features: int
    epsilon: float
    dtype: jnp.dtype = jnp.float32
    norm_groups: int = NORM_GROUPS

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        h = jax.nn.silu(GroupNorm(self.epsilon, self.norm_groups, name="norm1")(x))
        h = TemporalConv(self.features, self.dtype, name="conv1")(h)
        h = _add_embedding(h, embedding, self.features, self.dtype)
        h = jax.nn.silu(GroupNorm(self.epsilon, self.norm_groups, name="norm2")(h))
        return x + TemporalConv(self.features, self.dtype, name="conv2")(h)


class SpatioTemporalResBlock(nn.Module):
    """ResnetBlock, TemporalResnetBlock of its output, and their blend.

    `image_only` skips the temporal half: exactly `image_only_indicator = 1` of the original.
    """

    features: int
    epsilon: float
    temporal_epsilon: float
    image_only: bool = False
    mix_init: float = 0.5
    mix_swap: bool = False
    dtype: jnp.dtype = jnp.float32
    norm_groups: int = NORM_GROUPS

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        options = (self.dtype, self.norm_groups)
        block = ResnetBlock(self.features, self.epsilon, *options, name="spatial_res_block")
        spatial = block(x, embedding)
        if self.image_only:
            return spatial
        block = TemporalResnetBlock(
            self.features, self.temporal_epsilon, *options, name="temporal_res_block"
        )
        temporal = block(spatial, embedding)
        return MixFactor(self.mix_init, self.mix_swap, name="time_mixer")(spatial, temporal)

"""SVD's transformer: one spatial and one temporal block, blended (TransformerSpatioTemporalModel).

The cross-attention context is a single token, so its softmax is 1 and attn2 is `to_out(to_v(ctx))`: a
vector per video, whatever the query. That exact form is used unless `plain_cross_attention` asks for the
literal one. Both it and the frame-position table depend on neither latents nor sigma: applying the model
with `mutable=["tables"]` yields them once, passing them back as `{"tables": ...}` skips their layers.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from recapture_jax.models.attention import attention, temporal_attention
from recapture_jax.models.layers import (
    NORM_GROUPS,
    FeedForward,
    GroupNorm,
    LayerNorm,
    MixFactor,
    TimestepMLP,
    per_frame,
    sinusoid,
)

TABLES = "tables"  # the variable collection of precomputed constants


def _tabled(module: nn.Module, compute: Callable[[], jax.Array]) -> jax.Array:
    """The module's table if one was passed in, else computes it (and stores it where asked)."""
    if module.has_variable(TABLES, "value") and not module.is_mutable_collection(TABLES):
        return module.get_variable(TABLES, "value")
    value = compute()
    if module.is_mutable_collection(TABLES) and not module.is_initializing():
        module.put_variable(TABLES, "value", value)
    return value


class SelfAttention(nn.Module):
    """attn1: over the tokens of a frame, or over the frames of a token (`over_time`).

    Input and output `[B, T, S, C]`.
    """

    heads: int
    over_time: bool
    implementation: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, t, s, c = x.shape
        split = (b, t, s, self.heads, c // self.heads)

        def project(name):
            return nn.Dense(c, use_bias=False, dtype=self.dtype, name=name)(x).reshape(split)

        q, k, v = project("to_q"), project("to_k"), project("to_v")
        if self.over_time:
            out = temporal_attention(q, k, v)
        else:
            q, k, v = (a.reshape(b * t, s, *split[3:]) for a in (q, k, v))
            out = attention(q, k, v, self.implementation)
        return nn.Dense(c, dtype=self.dtype, name="to_out_0")(out.reshape(x.shape))


class CrossAttention(nn.Module):
    """attn2 on a one-token context `[B, 1, D]`; returns `[B, 1, 1, C]`, or `[B, T, S, C]` if plain."""

    heads: int
    plain: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        b, t, s, c = x.shape
        dense = {
            n: nn.Dense(c, use_bias=False, dtype=self.dtype, name=n)
            for n in ("to_q", "to_k", "to_v")
        }
        to_out = nn.Dense(c, dtype=self.dtype, name="to_out_0")
        context = context.astype(self.dtype)
        if self.plain or self.is_initializing():
            heads = (self.heads, c // self.heads)
            q = dense["to_q"](x).reshape(b, t * s, *heads)
            k, v = (
                dense[n](context).reshape(b, context.shape[1], *heads) for n in ("to_k", "to_v")
            )
            return to_out(attention(q, k, v, "xla").reshape(x.shape))
        if context.shape[1] != 1:
            raise ValueError(
                f"context has {context.shape[1]} tokens, expected 1 (use plain_cross_attention)"
            )
        return _tabled(self, lambda: to_out(dense["to_v"](context)))[:, :, None]


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward, each pre-normed and residual, on `[B, T, S, C]`.

    The temporal kind attends over T and has one more feed-forward (`ff_in`) in front.
    """

    heads: int
    over_time: bool = False
    plain_cross_attention: bool = False
    attention: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        if self.over_time:
            x = x + FeedForward(self.dtype, name="ff_in")(LayerNorm(name="norm_in")(x))
        attn1 = SelfAttention(self.heads, self.over_time, self.attention, self.dtype, name="attn1")
        x = x + attn1(LayerNorm(name="norm1")(x))
        plain = self.plain_cross_attention
        attn2 = CrossAttention(self.heads, plain, self.dtype, name="attn2")
        norm2 = LayerNorm(
            name="norm2"
        )  # without effect on a one-token context, but part of the checkpoint
        x = x + attn2(norm2(x) if plain or self.is_initializing() else x, context)
        return x + FeedForward(self.dtype, name="ff")(LayerNorm(name="norm3")(x))


class Transformer(nn.Module):
    """The whole unit on `[B, T, H, W, C]` with a residual; `image_only` skips its temporal half."""

    heads: int
    depth: int = 1
    image_only: bool = False
    plain_cross_attention: bool = False
    attention: str = "auto"
    dtype: jnp.dtype = jnp.float32
    norm_groups: int = NORM_GROUPS

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        b, t, height, width, c = x.shape
        h = per_frame(GroupNorm(1e-6, self.norm_groups, name="norm"), x)
        h = nn.Dense(c, dtype=self.dtype, name="proj_in")(h.reshape(b, t, height * width, c))
        options = (self.plain_cross_attention, self.attention, self.dtype)
        position = mixer = None
        if not self.image_only:
            mlp = TimestepMLP(4 * c, c, self.dtype, name="time_pos_embed")
            position = _tabled(self, lambda: mlp(sinusoid(jnp.arange(t), c)))[None, :, None]
            mixer = MixFactor(name="time_mixer")
        for i in range(self.depth):
            h = TransformerBlock(self.heads, False, *options, name=f"transformer_blocks_{i}")(
                h, context
            )
            if not self.image_only:
                name = f"temporal_transformer_blocks_{i}"
                block = TransformerBlock(self.heads, True, *options, name=name)
                h = mixer(h, block(h + position, context))
        h = nn.Dense(c, dtype=self.dtype, name="proj_out")(h)
        return x + h.reshape(x.shape)

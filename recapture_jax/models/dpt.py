"""DPT (Ranftl et al. 2021): feature maps of a transformer to one dense map.

Four maps at 1/patch resolution are brought to a pyramid (`Reassemble`), then merged from the
coarsest to the finest by `Fusion` blocks. Names are those of transformers' `neck` and `head`:
depth networks differ in what comes before, between and after, so each unit stands alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from recapture_jax.models.layers import conv2d
from recapture_jax.models.resize import resize_linear


@dataclasses.dataclass(frozen=True)
class NeckConfig:
    """Sizes of the neck, named as in transformers.

    Attributes:
        neck_hidden_sizes: channels of the maps, finest first.
        reassemble_factors: resolution of each map, in patches: 4, 2, 1 or 0.5.
        fusion_hidden_size: channels of the fused maps.
    """

    neck_hidden_sizes: tuple[int, ...]
    fusion_hidden_size: int
    reassemble_factors: tuple[float, ...] = (4, 2, 1, 0.5)


def fields_from_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object as fields of a frozen configuration: lists become tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


class UpsampleConv(nn.Module):
    """Transposed convolution whose stride is its kernel: [B, h, w, C] -> [B, k h, k w, features].

    As nothing overlaps, it is one matrix product per pixel. The kernel is [k, k, in, out], taps in
    the order of the result.
    """

    features: int
    factor: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k, (b, h, w, channels) = self.factor, x.shape
        init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (k, k, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = jnp.einsum("bhwi,klio->bhkwlo", x, kernel).reshape(b, k * h, k * w, self.features)
        return y + bias.reshape(1, 1, 1, -1)


class Reassemble(nn.Module):
    """1x1 convolution, then a change of resolution: [B, h, w, C] -> [B, f h, f w, features].

    Attributes:
        factor: a whole number (transposed convolution), 1 (nothing) or 0.5 (convolution, stride 2,
            which rounds odd sizes up).
    """

    features: int
    factor: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = conv2d(self.features, 1, "projection", self.dtype)(x)
        if self.factor > 1:
            return UpsampleConv(self.features, int(self.factor), self.dtype, name="resize")(x)
        if self.factor < 1:
            return conv2d(self.features, 3, "resize", self.dtype, round(1 / self.factor))(x)
        return x


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3x3: [B, h, w, features] -> the same."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = conv2d(self.features, 3, "convolution1", self.dtype)(jax.nn.relu(x))
        return x + conv2d(self.features, 3, "convolution2", self.dtype)(jax.nn.relu(y))


class Fusion(nn.Module):
    """Merges a coarse map with the finer one beside it and enlarges the sum.

    The coarsest block has nothing to merge; the unit for it exists in the checkpoints and is not
    created here, as it was never used.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, skip: jax.Array | None = None, size: tuple[int, int] | None = None
    ) -> jax.Array:
        """[B, h, w, features], `skip` alike -> [B, *size, features]; size None: (2 h, 2 w)."""
        if skip is not None:
            x = x + ResidualUnit(self.features, self.dtype, name="residual_layer1")(skip)
        x = ResidualUnit(self.features, self.dtype, name="residual_layer2")(x)
        x = resize_linear(x, size or (2 * x.shape[1], 2 * x.shape[2]), align_corners=True)
        return conv2d(self.features, 1, "projection", self.dtype)(x)


class _ReassembleStage(nn.Module):
    config: NeckConfig
    dtype: Any

    def setup(self):
        sizes = zip(self.config.neck_hidden_sizes, self.config.reassemble_factors, strict=True)
        self.layers = [Reassemble(features, factor, self.dtype) for features, factor in sizes]

    def __call__(self, maps: Sequence[jax.Array]) -> list[jax.Array]:
        return [layer(x) for layer, x in zip(self.layers, maps, strict=True)]


class _FusionStage(nn.Module):
    config: NeckConfig
    dtype: Any

    def setup(self):
        width = self.config.fusion_hidden_size
        self.layers = [Fusion(width, self.dtype) for _ in self.config.neck_hidden_sizes]

    def __call__(self, block: int, *args, **kwargs) -> jax.Array:
        return self.layers[block](*args, **kwargs)


class Neck(nn.Module):
    """The pyramid and its fusion, in three steps for networks that work in between.

    `reassemble` the maps, bring them to one width (`narrow`), then `fuse` from block 0, which
    takes the coarsest map, to the last.
    """

    config: NeckConfig
    dtype: Any = jnp.float32

    def setup(self):
        cfg = self.config
        self.reassemble_stage = _ReassembleStage(cfg, self.dtype)
        self.convs = [
            nn.Conv(cfg.fusion_hidden_size, (3, 3), padding=1, use_bias=False, dtype=self.dtype)
            for _ in cfg.neck_hidden_sizes
        ]
        self.fusion_stage = _FusionStage(cfg, self.dtype)

    def reassemble(self, maps: Sequence[jax.Array]) -> list[jax.Array]:
        """Maps [B, h, w, C] -> the pyramid, finest first."""
        return self.reassemble_stage(maps)

    def narrow(self, pyramid: Sequence[jax.Array]) -> list[jax.Array]:
        """The pyramid with fusion_hidden_size channels at every level."""
        return [conv(x) for conv, x in zip(self.convs, pyramid, strict=True)]

    def fuse(
        self, block: int, x: jax.Array, skip: jax.Array | None, size: tuple[int, int] | None
    ) -> jax.Array:
        """Fusion block `block` (0 is the coarsest); see Fusion for the rest."""
        return self.fusion_stage(block, x, skip, size)

    def __call__(self, maps: Sequence[jax.Array]) -> jax.Array:
        """Maps [B, h, w, C] -> [B, 8 h, 8 w, fusion_hidden_size].

        A block enlarges to the size of the next finer map, the last one by two.
        """
        levels = self.narrow(self.reassemble(maps))[::-1]
        sizes = [level.shape[1:3] for level in levels[1:]] + [None]
        x = self.fuse(0, levels[0], None, sizes[0])
        for block in range(1, len(levels)):
            x = self.fuse(block, x, levels[block], sizes[block])
        return x


class DepthHead(nn.Module):
    """Three convolutions to one channel, enlarged in between: [B, h, w, F] -> [B, *size] float32.

    What comes out is not rectified. All but the first convolution runs in float32: half precision
    has too few steps for a depth.

    Attributes:
        features: F.
        hidden: channels of the second convolution.
    """

    features: int
    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, size: tuple[int, int]) -> jax.Array:
        x = conv2d(self.features // 2, 3, "conv1", self.dtype)(x)
        x = resize_linear(x.astype(jnp.float32), size, align_corners=True)
        x = jax.nn.relu(conv2d(self.hidden, 3, "conv2", jnp.float32)(x))
        return conv2d(1, 1, "conv3", jnp.float32)(x)[..., 0]

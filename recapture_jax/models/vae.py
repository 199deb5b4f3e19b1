"""SVD's autoencoder in Flax: a per-frame encoder and a temporal decoder (AutoencoderKLTemporalDecoder).

Images are `[B, T, H, W, 3]` in [-1, 1]. `encode` returns the mode of the posterior, unscaled;
multiply by `config.scaling_factor` for the latents that are diffused, divide before `decode`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from recapture_jax.models.attention import attention
from recapture_jax.models.layers import (
    NORM_GROUPS,
    Downsample,
    GroupNorm,
    TemporalConv,
    Upsample,
    conv2d,
    exact_conv2d,
    per_frame,
)
from recapture_jax.models.resnet import ResnetBlock, SpatioTemporalResBlock

_EPSILON = 1e-6  # everywhere but in the decoder's temporal blocks
_TEMPORAL_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Sizes; the defaults are Stable Video Diffusion's. Fields as in diffusers' JSON.

    Attributes:
      norm_num_groups: groups of every GroupNorm, see `UNetConfig`.
    """

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    scaling_factor: float = 0.18215
    norm_num_groups: int = NORM_GROUPS

    @property
    def factor(self) -> int:
        """Pixels per latent along each side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "VAEConfig":
        """From a diffusers `vae/config.json`; fields without a use here are ignored."""
        known = {f.name: config[f.name] for f in dataclasses.fields(cls) if f.name in config}
        if "block_out_channels" in known:
            known["block_out_channels"] = tuple(known["block_out_channels"])
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Attention(nn.Module):
    """One head as wide as the features, over the pixels of a frame, with a residual."""

    implementation: str
    dtype: jnp.dtype
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, t, h, w, c = x.shape
        norm = GroupNorm(_EPSILON, self.groups, name="group_norm")
        normed = per_frame(norm, x).reshape(b * t, h * w, 1, c)
        q, k, v = (nn.Dense(c, dtype=self.dtype, name=n)(normed) for n in ("to_q", "to_k", "to_v"))
        out = nn.Dense(c, dtype=self.dtype, name="to_out_0")(
            attention(q, k, v, self.implementation)
        )
        return x + out.reshape(x.shape)


class _EncoderBlock(nn.Module):
    features: int
    layers: int
    downsample: bool
    dtype: jnp.dtype
    groups: int

    @nn.compact
    def __call__(self, x):
        for i in range(self.layers):
            block = ResnetBlock(
                self.features, _EPSILON, self.dtype, self.groups, name=f"resnets_{i}"
            )
            x = block(x)
        if self.downsample:
            x = Downsample(self.features, (0, 1), self.dtype, name="downsamplers_0")(x)
        return x


class _EncoderMid(nn.Module):
    features: int
    attention: str
    dtype: jnp.dtype
    groups: int

    @nn.compact
    def __call__(self, x):
        resnet = (self.features, _EPSILON, self.dtype, self.groups)
        x = ResnetBlock(*resnet, name="resnets_0")(x)
        x = Attention(self.attention, self.dtype, self.groups, name="attentions_0")(x)
        return ResnetBlock(*resnet, name="resnets_1")(x)


class Encoder(nn.Module):
    config: VAEConfig
    attention: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        widths, groups = self.config.block_out_channels, self.config.norm_num_groups
        x = per_frame(conv2d(widths[0], 3, "conv_in", self.dtype), x)
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            block = _EncoderBlock(
                width,
                self.config.layers_per_block,
                not last,
                self.dtype,
                groups,
                name=f"down_blocks_{i}",
            )
            x = block(x)
        x = _EncoderMid(widths[-1], self.attention, self.dtype, groups, name="mid_block")(x)
        x = jax.nn.silu(per_frame(GroupNorm(_EPSILON, groups, name="conv_norm_out"), x))
        return per_frame(exact_conv2d(2 * self.config.latent_channels, 3, "conv_out"), x)


def _decoder_resnet(features: int, index: int, dtype, groups: int) -> SpatioTemporalResBlock:
    return SpatioTemporalResBlock(
        features,
        _EPSILON,
        _TEMPORAL_EPSILON,
        mix_init=0.0,
        mix_swap=True,
        dtype=dtype,
        norm_groups=groups,
        name=f"resnets_{index}",
    )


class _DecoderMid(nn.Module):
    features: int
    layers: int
    attention: str
    dtype: jnp.dtype
    groups: int

    @nn.compact
    def __call__(self, x):
        # diffusers builds `layers` residual blocks but only runs the two around its one attention.
        x = _decoder_resnet(self.features, 0, self.dtype, self.groups)(x)
        attend = Attention(self.attention, self.dtype, self.groups, name="attentions_0")
        if self.layers > 1:
            x = _decoder_resnet(self.features, 1, self.dtype, self.groups)(attend(x))
        elif self.is_initializing():
            attend(x)
        if self.is_initializing():
            for i in range(2, self.layers):
                _decoder_resnet(self.features, i, self.dtype, self.groups)(x)
        return x


class _DecoderBlock(nn.Module):
    features: int
    layers: int
    upsample: bool
    dtype: jnp.dtype
    groups: int

    @nn.compact
    def __call__(self, x):
        for i in range(self.layers):
            x = _decoder_resnet(self.features, i, self.dtype, self.groups)(x)
        if self.upsample:
            x = Upsample(self.features, self.dtype, name="upsamplers_0")(x)
        return x


class Decoder(nn.Module):
    config: VAEConfig
    attention: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        widths, layers = self.config.block_out_channels[::-1], self.config.layers_per_block
        groups = self.config.norm_num_groups
        x = per_frame(conv2d(widths[0], 3, "conv_in", self.dtype), x)
        x = _DecoderMid(widths[0], layers, self.attention, self.dtype, groups, name="mid_block")(x)
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            block = _DecoderBlock(
                width, layers + 1, not last, self.dtype, groups, name=f"up_blocks_{i}"
            )
            x = block(x)
        x = jax.nn.silu(per_frame(GroupNorm(_EPSILON, groups, name="conv_norm_out"), x))
        x = per_frame(conv2d(self.config.out_channels, 3, "conv_out", self.dtype), x)
        return TemporalConv(self.config.out_channels, self.dtype, name="time_conv_out")(x)


class VAE(nn.Module):
    """The autoencoder. Use `method=VAE.encode`, `VAE.posterior` or `VAE.decode`; `__call__` is for init."""

    config: VAEConfig = VAEConfig()
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"

    def setup(self):
        self.encoder = Encoder(self.config, self.attention, self.dtype)
        self.decoder = Decoder(self.config, self.attention, self.dtype)
        self.quant_conv = exact_conv2d(2 * self.config.latent_channels, 1)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.decode(self.encode(images))

    def posterior(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images `[B, T, H, W, 3]` in [-1, 1] to mean and log-variance `[B, T, h, w, c]`, float32."""
        moments = per_frame(self.quant_conv, self.encoder(images.astype(self.dtype)))
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def encode(self, images: jax.Array) -> jax.Array:
        """The mode of the posterior, `[B, T, h, w, c]` float32, not scaled."""
        return self.posterior(images)[0]

    def decode(self, latents: jax.Array) -> jax.Array:
        """Unscaled latents `[B, T, h, w, c]` to images in about [-1, 1], float32.

        The T frames are decoded as one clip: statistics and convolutions run over all of them, so the
        result depends on how a long clip is cut into chunks.
        """
        return self.decoder(latents.astype(self.dtype)).astype(jnp.float32)

"""Stable Video Diffusion's 3-D U-Net in Flax (UNetSpatioTemporalConditionModel's function).

The parameter tree mirrors the diffusers checkpoint: `down_blocks.0.attentions.1.proj_in.weight` is
`down_blocks_0/attentions_1/proj_in/kernel`. Sizes and facts: Blattmann et al. 2023 (arXiv 2311.15127) and
the public configuration files.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from recapture_jax.models.layers import (
    NORM_GROUPS,
    GroupNorm,
    TimestepMLP,
    exact_conv2d,
    per_frame,
    sinusoid,
)
from recapture_jax.models.unet_blocks import BlockOptions, DownBlock, MidBlock, UpBlock

_ATTENTION_BLOCKS = ("CrossAttnDownBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal")
_PLAIN_BLOCKS = ("DownBlockSpatioTemporal", "UpBlockSpatioTemporal")
EPSILON_CONVENTIONS = ("diffusers", "stability")


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes of the network; the defaults are Stable Video Diffusion's. Fields as in diffusers' JSON.

    Attributes:
      norm_num_groups: groups of every GroupNorm (SVD: 32, of 10 channels and more). With as many groups
        as channels a norm forgets every channel's mean, so narrow networks need fewer.
      groupnorm_eps: 'diffusers' or 'stability', see `unet_blocks`. The released weights were trained
        with 'stability'; 'diffusers' is what public pipelines run.
    """

    in_channels: int = 8
    out_channels: int = 4
    down_block_types: tuple[str, ...] = (_ATTENTION_BLOCKS[0],) * 3 + (_PLAIN_BLOCKS[0],)
    up_block_types: tuple[str, ...] = (_PLAIN_BLOCKS[1],) + (_ATTENTION_BLOCKS[1],) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    addition_time_embed_dim: int = 256
    projection_class_embeddings_input_dim: int = 768
    layers_per_block: int = 2
    cross_attention_dim: int = 1024
    transformer_layers_per_block: int = 1
    num_attention_heads: tuple[int, ...] = (5, 10, 20, 20)
    num_frames: int = 14
    norm_num_groups: int = NORM_GROUPS
    groupnorm_eps: str = "diffusers"

    def __post_init__(self):
        levels = len(self.block_out_channels)
        for field in ("down_block_types", "up_block_types", "num_attention_heads"):
            if len(getattr(self, field)) != levels:
                raise ValueError(
                    f"{field} has {len(getattr(self, field))} entries, expected {levels}"
                )
        unknown = set(self.down_block_types + self.up_block_types) - {
            *_ATTENTION_BLOCKS,
            *_PLAIN_BLOCKS,
        }
        if unknown:
            raise ValueError(f"unknown block types {sorted(unknown)}: this is not an SVD U-Net")
        if self.groupnorm_eps not in EPSILON_CONVENTIONS:
            raise ValueError(
                f"groupnorm_eps {self.groupnorm_eps!r}: expected {EPSILON_CONVENTIONS}"
            )

    @property
    def stride(self) -> int:
        """Latents along a side for each position of the lowest level."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "UNetConfig":
        """From a diffusers `unet/config.json`; fields this model has no use for are ignored.

        Raises:
          ValueError: for settings this network does not have (per-level depths, unknown blocks).
        """
        values = {}
        levels = len(config.get("block_out_channels", cls.block_out_channels))
        for field in dataclasses.fields(cls):
            if field.name not in config:
                continue
            value = config[field.name]
            if field.name == "num_attention_heads" and isinstance(value, int):
                value = (value,) * levels
            elif isinstance(value, list | tuple):
                value = tuple(value)
                if not isinstance(field.default, tuple):
                    if len(set(value)) != 1:
                        raise ValueError(
                            f"{field.name}={list(value)}: only one value for all levels is supported"
                        )
                    value = value[0]
            values[field.name] = value
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class UNet(nn.Module):
    """Predicts F (the v-prediction network output) for a batch of clips.

    Attributes:
      config: sizes.
      dtype: of the matrix products; parameters may be stored in any float dtype.
      attention, remat, plain_cross_attention: see `BlockOptions`.
    """

    config: UNetConfig = UNetConfig()
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"
    remat: str = "none"
    plain_cross_attention: bool = False

    @nn.compact
    def __call__(
        self,
        sample: jax.Array,
        timestep: jax.Array,
        context: jax.Array,
        added_time_ids: jax.Array,
        image_only: bool = False,
    ) -> jax.Array:
        """Runs the network.

        Args:
          sample: `[B, T, h, w, in_channels]`, scaled noisy latents then conditioning latents.
          timestep: `[B]` float, c_noise = 0.25 ln sigma.
          context: `[B, 1, cross_attention_dim]`, the image embedding.
          added_time_ids: `[B, 3]`, (fps - 1, motion bucket, noise augmentation).
          image_only: skip every temporal layer, so that each frame is processed on its own
            (the original's image_only_indicator = 1, without its cost).

        Returns:
          `[B, T, h, w, out_channels]` float32.
        """
        cfg = self.config
        widths, levels = cfg.block_out_channels, len(cfg.block_out_channels)
        layers = cfg.layers_per_block
        options = BlockOptions(
            cfg.transformer_layers_per_block,
            image_only,
            self.plain_cross_attention,
            self.attention,
            self.remat,
            self.dtype,
            cfg.norm_num_groups,
        )
        embedding = self._embed(timestep, added_time_ids)
        # Float32 at both ends, where there are few channels: noise of sigma 0.02 is below the resolution of a
        # bfloat16 latent.
        x = per_frame(exact_conv2d(widths[0], 3, "conv_in"), sample.astype(jnp.float32))
        x = x.astype(self.dtype)

        skips = [x]
        for i, kind in enumerate(cfg.down_block_types):
            attends = kind in _ATTENTION_BLOCKS
            heads = cfg.num_attention_heads[i] if attends else None
            eps = self._epsilon(1e-6 if attends else 1e-5)
            last = i == levels - 1
            block = DownBlock(
                widths[i], layers, heads, eps, not last, options, name=f"down_blocks_{i}"
            )
            x, new = block(x, embedding, context)
            skips += new

        heads = cfg.num_attention_heads[-1]
        x = MidBlock(widths[-1], heads, self._epsilon(1e-5), options, name="mid_block")(
            x, embedding, context
        )

        for i, kind in enumerate(cfg.up_block_types):
            level = levels - 1 - i
            heads = cfg.num_attention_heads[level] if kind in _ATTENTION_BLOCKS else None
            own, skips = skips[-(layers + 1) :], skips[: -(layers + 1)]
            # Where h or w was odd on the way down, doubling overshoots: take the next skip's size.
            size = skips[-1].shape[2:4] if skips else None
            block = UpBlock(
                widths[level],
                layers + 1,
                heads,
                self._epsilon(1e-6),
                options,
                name=f"up_blocks_{i}",
            )
            x = block(x, own, embedding, context, size)

        norm = GroupNorm(1e-5, cfg.norm_num_groups, name="conv_norm_out")
        x = jax.nn.silu(per_frame(norm, x))
        return per_frame(exact_conv2d(cfg.out_channels, 3, "conv_out"), x)

    def _epsilon(self, diffusers: float) -> float:
        return diffusers if self.config.groupnorm_eps == "diffusers" else 1e-5

    def _embed(self, timestep: jax.Array, added_time_ids: jax.Array) -> jax.Array:
        """`[B, 4 * width]`: the embedding of sigma plus that of the three ids."""
        cfg = self.config
        dim = 4 * cfg.block_out_channels[0]
        time = TimestepMLP(dim, dim, self.dtype, name="time_embedding")
        added = TimestepMLP(dim, dim, self.dtype, name="add_embedding")
        ids = sinusoid(added_time_ids, cfg.addition_time_embed_dim)
        ids = ids.reshape(ids.shape[0], cfg.projection_class_embeddings_input_dim)
        return time(sinusoid(timestep, cfg.block_out_channels[0])) + added(ids)

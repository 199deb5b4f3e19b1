"""Down, middle and up blocks of the U-Net on `[B, T, H, W, C]`.

The GroupNorm epsilon of the residual blocks depends on the block and on the lineage: diffusers 0.42 uses
1e-6 in every block with attention on the way down and in all blocks on the way up, 1e-5 elsewhere;
Stability's own network, the one that was trained, uses 1e-5 throughout.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from recapture_jax.models.layers import NORM_GROUPS, Downsample, Upsample
from recapture_jax.models.resnet import SpatioTemporalResBlock
from recapture_jax.models.transformer import Transformer

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class BlockOptions:
    """What every unit of the network is built with.

    Attributes:
      depth: transformer layers per transformer.
      image_only: skip all temporal layers.
      plain_cross_attention: literal attn2 instead of its one-token form.
      attention: see `attention.IMPLEMENTATIONS`.
      remat: one of `REMAT_POLICIES`; applies to each residual block and transformer.
      dtype: of weights' use and activations.
      norm_groups: of every GroupNorm.
    """

    depth: int = 1
    image_only: bool = False
    plain_cross_attention: bool = False
    attention: str = "auto"
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32
    norm_groups: int = NORM_GROUPS

    def _wrap(self, module):
        policy = REMAT_POLICIES[self.remat]
        return module if self.remat == "none" else nn.remat(module, policy=policy, prevent_cse=True)

    def resnet(self, features: int, epsilon: float, index: int) -> nn.Module:
        block = self._wrap(SpatioTemporalResBlock)
        return block(
            features,
            epsilon,
            epsilon,
            self.image_only,
            dtype=self.dtype,
            norm_groups=self.norm_groups,
            name=f"resnets_{index}",
        )

    def transformer(self, heads: int, index: int) -> nn.Module:
        return self._wrap(Transformer)(
            heads,
            self.depth,
            self.image_only,
            self.plain_cross_attention,
            self.attention,
            self.dtype,
            self.norm_groups,
            name=f"attentions_{index}",
        )


class DownBlock(nn.Module):
    """Residual blocks, each followed by a transformer if `heads`; returns the skips too."""

    features: int
    layers: int
    heads: int | None
    epsilon: float
    downsample: bool
    options: BlockOptions

    @nn.compact
    def __call__(self, x, embedding, context):
        skips = []
        for i in range(self.layers):
            x = self.options.resnet(self.features, self.epsilon, i)(x, embedding)
            if self.heads:
                x = self.options.transformer(self.heads, i)(x, context)
            skips.append(x)
        if self.downsample:
            x = Downsample(self.features, (1, 1), self.options.dtype, name="downsamplers_0")(x)
            skips.append(x)
        return x, skips


class MidBlock(nn.Module):
    """Residual block, transformer, residual block."""

    features: int
    heads: int
    epsilon: float
    options: BlockOptions

    @nn.compact
    def __call__(self, x, embedding, context):
        x = self.options.resnet(self.features, self.epsilon, 0)(x, embedding)
        x = self.options.transformer(self.heads, 0)(x, context)
        return self.options.resnet(self.features, self.epsilon, 1)(x, embedding)


class UpBlock(nn.Module):
    """As DownBlock, with the skips (the last first) concatenated; upsamples to `size` if given."""

    features: int
    layers: int
    heads: int | None
    epsilon: float
    options: BlockOptions

    @nn.compact
    def __call__(self, x, skips, embedding, context, size=None):
        for i in range(self.layers):
            x = jnp.concatenate([x, skips.pop()], axis=-1)
            x = self.options.resnet(self.features, self.epsilon, i)(x, embedding)
            if self.heads:
                x = self.options.transformer(self.heads, i)(x, context)
        if size is not None:
            x = Upsample(self.features, self.options.dtype, name="upsamplers_0")(x, size)
        return x

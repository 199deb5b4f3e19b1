"""DINOv2's vision transformer (Oquab et al. 2023), as a backbone: images to feature maps.

A ViT with layer scale and learned positions. The positions belong to images of `image_size`; for
others they are interpolated by cubic convolution. The authors' code asks for a size `offset` (0.1)
larger than wanted, against rounding, which also shifts every sample a little; transformers' code
does not. Parameter paths read like transformers' checkpoints.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from recapture_jax.errors import InputError
from recapture_jax.models.attention import attention
from recapture_jax.models.layers import MLP, LayerNorm
from recapture_jax.models.resize import resize_cubic


@dataclasses.dataclass(frozen=True)
class Dinov2Config:
    """Sizes, named as in transformers.

    Attributes:
        hidden_size: channels of a token.
        num_hidden_layers: transformer layers.
        num_attention_heads: divides hidden_size.
        out_indices: layers (from 1) after which a map is taken, rising.
        image_size: side in pixels of the images that the stored positions belong to.
        patch_size: side of a patch in pixels.
        mlp_ratio: width of the MLP in hidden_size.
        layer_norm_eps: of every LayerNorm.
        interpolate_offset: see the module's docstring.

    Raises:
        InputError: heads do not divide hidden_size, patches image_size, or no such layers.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    out_indices: tuple[int, ...]
    image_size: int = 518
    patch_size: int = 14
    mlp_ratio: int = 4
    layer_norm_eps: float = 1e-6
    interpolate_offset: float = 0.0

    def __post_init__(self):
        for name, by in (("hidden_size", "num_attention_heads"), ("image_size", "patch_size")):
            if getattr(self, by) < 1 or getattr(self, name) % getattr(self, by):
                raise InputError(
                    f"DINOv2 {name} {getattr(self, name)} is not a multiple of {by} "
                    f"{getattr(self, by)}; correct the config"
                )
        layers = range(1, self.num_hidden_layers + 1)
        if not self.out_indices or any(i not in layers for i in self.out_indices):
            raise InputError(
                f"DINOv2 out_indices {self.out_indices} are not layers 1 to "
                f"{self.num_hidden_layers}; correct the config"
            )


class _SelfAttention(nn.Module):
    """Multi-head attention before its output projection, [B, N, C] -> [B, N, C]."""

    config: Dinov2Config
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        heads = self.config.num_attention_heads

        def project(name: str) -> jax.Array:
            y = nn.Dense(x.shape[-1], dtype=self.dtype, name=name)(x)
            return y.reshape(*x.shape[:-1], heads, -1)

        return attention(project("query"), project("key"), project("value")).reshape(x.shape)


class _Output(nn.Module):
    """The projection after attention."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="dense")(x)


class _Attention(nn.Module):
    config: Dinov2Config
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _SelfAttention(self.config, self.dtype, name="attention")(x)
        return _Output(self.dtype, name="output")(x)


class _LayerScale(nn.Module):
    """A learned factor per channel."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        factor = self.param("lambda1", nn.initializers.ones, x.shape[-1:])
        return x * factor.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


class _Layer(nn.Module):
    """Pre-norm transformer layer, [B, N, C] -> [B, N, C]."""

    config: Dinov2Config
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        epsilon = self.config.layer_norm_eps
        y = _Attention(self.config, self.dtype, name="attention")(
            LayerNorm(epsilon, name="norm1")(x)
        )
        x = x + _LayerScale(name="layer_scale1")(y)
        mlp = MLP(self.config.mlp_ratio * x.shape[-1], dtype=self.dtype, name="mlp")
        y = mlp(LayerNorm(epsilon, name="norm2")(x))
        return x + _LayerScale(name="layer_scale2")(y)


class _Encoder(nn.Module):
    """The stack of layers; gives what comes out of those in out_indices."""

    config: Dinov2Config
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        taken = []
        for i in range(self.config.num_hidden_layers):
            x = _Layer(self.config, self.dtype, name=f"layer_{i}")(x)
            if i + 1 in self.config.out_indices:
                taken.append(x)
        return taken


class _PatchEmbeddings(nn.Module):
    """[B, H, W, 3] -> [B, H / patch, W / patch, C]."""

    config: Dinov2Config
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        side = (self.config.patch_size,) * 2
        return nn.Conv(
            self.config.hidden_size, side, side, "VALID", dtype=self.dtype, name="projection"
        )(images)


class _Embeddings(nn.Module):
    """Pixels [B, H, W, 3] to tokens [B, 1 + h w, C]: the class token, then patches row by row."""

    config: Dinov2Config
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        cfg = self.config
        patches = _PatchEmbeddings(cfg, self.dtype, name="patch_embeddings")(images)
        batch, *size, channels = patches.shape
        side = cfg.image_size // cfg.patch_size
        init = nn.initializers.normal(0.02)
        token = self.param("cls_token", init, (1, 1, channels))
        position = self.param("position_embeddings", init, (1, 1 + side**2, channels))
        of_token, of_patches = position[:, :1], position[:, 1:]
        if tuple(size) != (side, side):
            grid = of_patches.reshape(1, side, side, channels)
            scale = tuple(side / (n + cfg.interpolate_offset) for n in size)
            of_patches = resize_cubic(grid, tuple(size), scale).reshape(1, -1, channels)
        token = jnp.broadcast_to(token.astype(self.dtype), (batch, 1, channels))
        tokens = jnp.concatenate([token, patches.reshape(batch, -1, channels)], axis=1)
        position = jnp.concatenate([of_token, of_patches], axis=1).astype(self.dtype)
        return tokens + position


class Dinov2(nn.Module):
    """Normalised images [B, H, W, 3] -> one map [B, H / patch, W / patch, C] per out_indices.

    H and W are multiples of patch_size. Every map goes through the final LayerNorm; class tokens
    are dropped. Matrix products run in `dtype`, norms and softmax in float32.

    Raises:
        InputError: other shapes.
    """

    config: Dinov2Config
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> list[jax.Array]:
        cfg = self.config
        patch = cfg.patch_size
        if images.ndim != 4 or images.shape[3] != 3 or any(n % patch for n in images.shape[1:3]):
            raise InputError(
                f"DINOv2 got images of shape {images.shape}, expected [B, H, W, 3] with sides that "
                f"are multiples of {patch}; resize them"
            )
        size = images.shape[1] // patch, images.shape[2] // patch
        tokens = _Embeddings(cfg, self.dtype, name="embeddings")(images)
        norm = LayerNorm(cfg.layer_norm_eps, name="layernorm")
        return [
            norm(x)[:, 1:].reshape(len(x), *size, cfg.hidden_size)
            for x in _Encoder(cfg, self.dtype, name="encoder")(tokens)
        ]

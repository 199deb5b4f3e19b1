"""CLIP's vision transformer with its projection: one image to one vector.

Dosovitskiy et al. 2020 (ViT), Radford et al. 2021 (CLIP). Stable Video Diffusion conditions on this
vector and on nothing else, so it is the whole cross-attention context of the U-Net. Parameter paths
read like the `image_encoder` checkpoint, its spelling `pre_layrnorm` included.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from recapture_jax.errors import InputError
from recapture_jax.models.attention import attention
from recapture_jax.models.layers import MLP, LayerNorm


def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


# By their names in a config.json. "gelu" is the exact one; jax.nn.gelu defaults to the tanh form.
ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "quick_gelu": _quick_gelu,
}


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
    """Sizes of the vision tower, named as in a Hugging Face `image_encoder/config.json`.

    Attributes:
        hidden_size: channels of a token.
        intermediate_size: channels inside the MLP.
        num_hidden_layers: transformer layers.
        num_attention_heads: divides hidden_size.
        image_size: height and width of the input in pixels.
        patch_size: side of a patch in pixels; a rest of the image smaller than a patch is not seen.
        projection_dim: length of the output vector.
        layer_norm_eps: epsilon of every LayerNorm.
        hidden_act: 'gelu' (exact, by erf) or 'quick_gelu'.

    Raises:
        InputError: unknown hidden_act, heads that do not divide hidden_size, patch > image.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    projection_dim: int
    layer_norm_eps: float = 1e-5
    hidden_act: str = "gelu"

    def __post_init__(self):
        if self.hidden_act not in ACTIVATIONS:
            raise InputError(
                f"CLIP hidden_act is {self.hidden_act!r}, expected one of {sorted(ACTIVATIONS)}; "
                "use the image encoder that belongs to the video model"
            )
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"CLIP hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}; correct the config"
            )
        if self.patch_size > self.image_size:
            raise InputError(
                f"CLIP patch_size {self.patch_size} is larger than image_size {self.image_size}; "
                "correct the config"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From the contents of a config.json; fields that the network does not need are ignored.

        Raises:
            InputError: a field is missing. None is guessed: the file's own library reads a missing
                hidden_act as 'quick_gelu', which is not what SVD was trained with.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in values]
        if missing:
            raise InputError(
                f"the CLIP vision config lacks {', '.join(missing)}; expected the config.json of "
                "an image_encoder (the vision part alone): point to that file"
            )
        return cls(**{name: values[name] for name in names})

    @classmethod
    def vit_h(cls) -> Self:
        """ViT-H/14, the image encoder of Stable Video Diffusion: 632,076,800 parameters."""
        return cls(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_attention_heads=16,
            image_size=224,
            patch_size=14,
            projection_dim=1024,
        )


class _Attention(nn.Module):
    """Multi-head self-attention, [B, N, C] -> [B, N, C]."""

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        head_dim = channels // self.num_heads

        def project(name: str) -> jax.Array:
            y = nn.Dense(channels, dtype=self.dtype, name=name)(x)
            return y.reshape(*x.shape[:-1], self.num_heads, head_dim)

        query, key, value = project("q_proj"), project("k_proj"), project("v_proj")
        # The plain form: at full size there are 257 tokens, and one image per clip.
        mixed = attention(query, key, value, "xla").reshape(x.shape)
        return nn.Dense(channels, dtype=self.dtype, name="out_proj")(mixed)


class _Layer(nn.Module):
    """Pre-norm transformer layer, [B, N, C] -> [B, N, C]."""

    config: CLIPVisionConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.config
        norm = functools.partial(LayerNorm, cfg.layer_norm_eps)
        self_attn = _Attention(cfg.num_attention_heads, self.dtype, name="self_attn")
        x = x + self_attn(norm(name="layer_norm1")(x))
        activation = ACTIVATIONS[cfg.hidden_act]
        mlp = MLP(cfg.intermediate_size, activation, self.dtype, name="mlp")
        return x + mlp(norm(name="layer_norm2")(x))


class _Encoder(nn.Module):
    """The stack of layers."""

    config: CLIPVisionConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.config.num_hidden_layers):
            x = _Layer(self.config, self.dtype, name=f"layers_{i}")(x)
        return x


class _Embeddings(nn.Module):
    """Pixels [B, S, S, 3] to tokens [B, 1 + patches, C]: the class token first, then row by row."""

    config: CLIPVisionConfig
    dtype: Any

    @nn.compact
    def __call__(self, pixel_values: jax.Array) -> jax.Array:
        cfg = self.config
        patches = nn.Conv(
            cfg.hidden_size,
            kernel_size=(cfg.patch_size, cfg.patch_size),
            strides=cfg.patch_size,
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
            name="patch_embedding",
        )(pixel_values)
        batch = patches.shape[0]
        patches = patches.reshape(batch, -1, cfg.hidden_size)
        init = nn.initializers.normal(cfg.hidden_size**-0.5)
        class_token = self.param("class_embedding", init, (cfg.hidden_size,)).astype(self.dtype)
        class_token = jnp.broadcast_to(class_token, (batch, 1, cfg.hidden_size))
        tokens = jnp.concatenate([class_token, patches], axis=1)
        position = nn.Embed(
            tokens.shape[1], cfg.hidden_size, dtype=self.dtype, name="position_embedding"
        )
        return tokens + position(jnp.arange(tokens.shape[1]))[None]


class _VisionModel(nn.Module):
    """Pixels [B, S, S, 3] to the normalised class token [B, C]."""

    config: CLIPVisionConfig
    dtype: Any

    @nn.compact
    def __call__(self, pixel_values: jax.Array) -> jax.Array:
        cfg = self.config
        norm = functools.partial(LayerNorm, cfg.layer_norm_eps)
        x = _Embeddings(cfg, self.dtype, name="embeddings")(pixel_values)
        x = norm(name="pre_layrnorm")(x)
        x = _Encoder(cfg, self.dtype, name="encoder")(x)
        return norm(name="post_layernorm")(x[:, 0])


class CLIPVision(nn.Module):
    """CLIP vision tower with projection: pixel_values [B, S, S, 3] -> image_embeds [B, P].

    S = config.image_size, P = config.projection_dim. The pixels are what
    `image_preprocess.clip_preprocess` gives (normalised per channel, not [0, 1]); the vector is not
    normalised to length one. Matrix products run in `dtype`, norms and softmax in float32.

    Raises:
        InputError: the pixels are not [B, S, S, 3].
    """

    config: CLIPVisionConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pixel_values: jax.Array) -> jax.Array:
        side = self.config.image_size
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != (side, side, 3):
            raise InputError(
                f"CLIP got pixels of shape {pixel_values.shape}, expected [B, {side}, {side}, 3]; "
                f"resize with clip_preprocess(images, size={side})"
            )
        pooled = _VisionModel(self.config, self.dtype, name="vision_model")(pixel_values)
        return nn.Dense(
            self.config.projection_dim, use_bias=False, dtype=self.dtype, name="visual_projection"
        )(pooled)

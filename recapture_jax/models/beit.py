"""BEiT as a backbone: images of any size to token maps of several depths.

Bao et al. 2021 (arXiv 2106.08254). There are no absolute positions. Each layer has a table of
attention biases by the offset between two patches, learned on one window of patches; for another
window the table is interpolated, as Birkl et al. 2023 (MiDaS 3.1, arXiv 2307.14460) do.
"""

import dataclasses
import functools
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from recapture_jax.errors import InputError
from recapture_jax.models.layers import MLP, LayerNorm
from recapture_jax.models.resize import resize_linear

_CLASS_TOKEN_OFFSETS = 3  # class to patch, patch to class, class to class: the end of a table


@dataclasses.dataclass(frozen=True)
class BeitConfig:
    """Sizes of the backbone, named as in a Hugging Face config.json.

    Attributes:
        hidden_size: channels of a token.
        intermediate_size: channels inside the MLP.
        num_hidden_layers: transformer layers.
        num_attention_heads: divides hidden_size.
        image_size: side in pixels of the images that the bias tables were learned on.
        patch_size: side of a patch in pixels.
        out_indices: after how many layers the tokens are given out; ascending.
        layer_norm_eps: epsilon of every LayerNorm.

    Raises:
        InputError: heads that do not divide hidden_size, patch > image, no such layer.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    out_indices: tuple[int, ...]
    layer_norm_eps: float = 1e-12

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"BEiT hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}; correct the config"
            )
        if not 0 < self.patch_size <= self.image_size:
            raise InputError(
                f"BEiT patch_size {self.patch_size} does not fit image_size {self.image_size}; "
                "correct the config"
            )
        layers = self.out_indices
        if not layers or list(layers) != sorted(set(layers)) or layers[0] < 1:
            raise InputError(f"BEiT out_indices are {layers}, expected ascending numbers from 1")
        if layers[-1] > self.num_hidden_layers:
            raise InputError(
                f"BEiT out_indices {layers} go beyond its {self.num_hidden_layers} layers; "
                "correct the config"
            )

    @classmethod
    def large(cls) -> Self:
        """BEiT-L/16 at 384 pixels, the backbone of ZoeDepth: 303,967,232 parameters."""
        return cls(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=384,
            patch_size=16,
            out_indices=(6, 12, 18, 24),
        )

    @property
    def window(self) -> int:
        """Patches along a side of the images that the bias tables were learned on."""
        return self.image_size // self.patch_size


@functools.lru_cache(maxsize=8)
def offset_index(rows: int, columns: int) -> np.ndarray:
    """[N, N] int32, N = 1 + rows * columns: where a table holds the bias of query i and key j.

    Token 0 is the class token. A table's first (2 rows - 1) * (2 columns - 1) entries are the
    offsets query - key between patches, row by row from the most negative; three more follow for
    class to patch, patch to class and class to class.
    """
    row, column = np.divmod(np.arange(rows * columns), columns)
    down = row[:, None] - row[None] + rows - 1
    right = column[:, None] - column[None] + columns - 1
    index = np.empty((1 + rows * columns,) * 2, np.int32)
    index[1:, 1:] = down * (2 * columns - 1) + right
    between = (2 * rows - 1) * (2 * columns - 1)
    index[0, 1:], index[1:, 0], index[0, 0] = between, between + 1, between + 2
    index.setflags(write=False)  # the cache hands the same array to every caller
    return index


class _RelativePositionBias(nn.Module):
    """The bias [1, heads, N, N] of the attention logits for a grid of patches.

    Attributes:
        window: patches along a side of the square window that the table was learned on.
        num_heads: of the attention.
    """

    window: int
    num_heads: int

    @nn.compact
    def __call__(self, rows: int, columns: int) -> jax.Array:
        side = 2 * self.window - 1
        table = self.param(
            "relative_position_bias_table",
            nn.initializers.zeros,
            (side * side + _CLASS_TOKEN_OFFSETS, self.num_heads),
        ).astype(jnp.float32)
        between = table[:-_CLASS_TOKEN_OFFSETS].reshape(1, side, side, self.num_heads)
        between = resize_linear(between, (2 * rows - 1, 2 * columns - 1), align_corners=False)
        between = between.reshape(-1, self.num_heads)
        table = jnp.concatenate([between, table[-_CLASS_TOKEN_OFFSETS:]])
        return table.T[:, offset_index(rows, columns)][None]


class _Attention(nn.Module):
    """Multi-head self-attention with a bias on the logits; keys have no offset."""

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        channels = x.shape[-1]

        def project(name: str, use_bias: bool = True) -> jax.Array:
            y = nn.Dense(channels, use_bias=use_bias, dtype=self.dtype, name=name)(x)
            return y.reshape(*x.shape[:-1], self.num_heads, channels // self.num_heads)

        query, key, value = project("q_proj"), project("k_proj", False), project("v_proj")
        mixed = jax.nn.dot_product_attention(query, key, value, bias, implementation="xla")
        return nn.Dense(channels, dtype=self.dtype, name="o_proj")(mixed.reshape(x.shape))


class _Layer(nn.Module):
    """Pre-norm transformer layer whose branches have learned gains per channel."""

    config: BeitConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
        cfg = self.config

        def gain(name: str) -> jax.Array:
            value = self.param(name, nn.initializers.constant(0.1), x.shape[-1:])
            return value.astype(self.dtype)[None, None]

        norm = functools.partial(LayerNorm, cfg.layer_norm_eps)
        bias = _RelativePositionBias(
            cfg.window, cfg.num_attention_heads, name="relative_position_bias"
        )(*grid)
        attention = _Attention(cfg.num_attention_heads, self.dtype, name="attention")
        x = x + gain("lambda_1") * attention(norm(name="layernorm_before")(x), bias)
        mlp = MLP(cfg.intermediate_size, dtype=self.dtype, name="mlp")
        return x + gain("lambda_2") * mlp(norm(name="layernorm_after")(x))


class _Embeddings(nn.Module):
    """Pixels [B, H, W, 3] to tokens [B, 1 + patches, C]: the class token first, then row by row."""

    config: BeitConfig
    dtype: Any

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        cfg = self.config
        patches = nn.Conv(
            cfg.hidden_size,
            kernel_size=(cfg.patch_size, cfg.patch_size),
            strides=cfg.patch_size,
            padding="VALID",
            dtype=self.dtype,
            name="projection",
        )(pixels)
        class_token = self.param("cls_token", nn.initializers.zeros, (1, 1, cfg.hidden_size))
        class_token = jnp.broadcast_to(
            class_token.astype(self.dtype), (len(pixels), 1, cfg.hidden_size)
        )
        return jnp.concatenate(
            [class_token, patches.reshape(len(pixels), -1, cfg.hidden_size)], axis=1
        )


class Beit(nn.Module):
    """Pixels [B, H, W, 3] -> a list of tokens [B, 1 + patches, C], one per `config.out_indices`.

    H and W may be any multiples of the patch; a rest smaller than a patch is not seen. The pixels
    are normalised as the weights expect. Matrix products run in `dtype`, norms, biases and softmax
    in float32. No norm follows the layers.

    Raises:
        InputError: the pixels are not [B, H, W, 3] or smaller than a patch.
    """

    config: BeitConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pixels: jax.Array) -> list[jax.Array]:
        cfg = self.config
        if pixels.ndim != 4 or pixels.shape[-1] != 3 or min(pixels.shape[1:3]) < cfg.patch_size:
            raise InputError(
                f"BEiT got pixels of shape {pixels.shape}, expected [B, H, W, 3] with sides of at "
                f"least {cfg.patch_size}; enlarge the images"
            )
        grid = tuple(side // cfg.patch_size for side in pixels.shape[1:3])
        x = _Embeddings(cfg, self.dtype, name="embeddings")(pixels)
        given = []
        for i in range(cfg.num_hidden_layers):
            x = _Layer(cfg, self.dtype, name=f"layers_{i}")(x, grid)
            if i + 1 in cfg.out_indices:
                given.append(x)
        return given

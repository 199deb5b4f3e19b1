"""ZoeDepth (Bhat et al. 2023, arXiv 2302.12288): BEiT, DPT, and metric bins on top of both.

The class token joins every patch before the pyramid ("readout by projection"). A relative depth is
made as in MiDaS; its last features, the coarsest map and all fused ones go into the metric head.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from recapture_jax.errors import InputError
from recapture_jax.models.beit import Beit, BeitConfig
from recapture_jax.models.dpt import Neck, NeckConfig, fields_from_json
from recapture_jax.models.layers import conv2d, gelu
from recapture_jax.models.metric_bins import Bins, HeadConfig, MetricHead
from recapture_jax.models.resize import resize_linear


@dataclasses.dataclass(frozen=True)
class ZoeDepthConfig:
    """The whole network; `to_dict` and `from_dict` are the form of a converted config.json.

    Attributes:
        backbone: the transformer; gives as many maps as the neck has levels.
        neck: the pyramid.
        num_relative_features: channels that the relative depth is made of.
        head: the metric head.

    Raises:
        InputError: maps, levels and scales of attractors differ in number.
    """

    backbone: BeitConfig
    neck: NeckConfig
    num_relative_features: int
    head: HeadConfig

    def __post_init__(self):
        maps, levels = len(self.backbone.out_indices), len(self.neck.neck_hidden_sizes)
        scales = len(self.head.num_attractors)
        if not maps == levels == scales == len(self.neck.reassemble_factors):
            raise InputError(
                f"{maps} maps of the backbone, {levels} levels of the neck and {scales} scales of "
                "the metric head do not fit; correct the config"
            )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From the contents of a converted config.json; keys beside the fields are ignored.

        Raises:
            InputError: a field is missing or not usable.
        """
        try:
            head = dict(values["head"])
            head["bins"] = tuple(Bins(**bins) for bins in head["bins"])
            return cls(
                BeitConfig(**fields_from_json(values["backbone"])),
                NeckConfig(**fields_from_json(values["neck"])),
                int(values["num_relative_features"]),
                HeadConfig(**fields_from_json(head)),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"the configuration of ZoeDepth is not usable ({error!r}); convert the weights "
                "again with `python -m converters.depth`"
            ) from None

    @property
    def multiple(self) -> int:
        """Pixels that both sides of an image are a multiple of: the coarsest map halves patches."""
        return 2 * self.backbone.patch_size


class _Readout(nn.Module):
    """Tokens [B, 1 + h w, C] to a map [B, h, w, C], the class token projected into every pixel."""

    grid: tuple[int, int]
    dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        patches = tokens[:, 1:]
        both = jnp.concatenate([patches, jnp.broadcast_to(tokens[:, :1], patches.shape)], axis=-1)
        x = gelu(nn.Dense(tokens.shape[-1], dtype=self.dtype, name="projection")(both))
        return x.reshape(len(tokens), *self.grid, -1)


class _RelativeHead(nn.Module):
    """[B, h, w, C] -> relative depth [B, 2 h, 2 w] and the features it is made of."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, height, width, channels = x.shape
        x = conv2d(channels // 2, 3, "conv1", self.dtype)(x)
        x = resize_linear(x, (2 * height, 2 * width), align_corners=True)
        features = jax.nn.relu(conv2d(self.features, 3, "conv2", self.dtype)(x))
        return jax.nn.relu(conv2d(1, 1, "conv3", self.dtype)(features))[..., 0], features


class ZoeDepthNet(nn.Module):
    """Images [B, H, W, 3] -> metres [B, heads, H, W], and domain logits [B, heads] or None.

    H and W are multiples of `config.multiple`; pixels are in [-1, 1] for the published weights. The
    size of the result is that of the images for patches of 16 pixels (16 times the grid). Which
    head counts is the one of the largest logit. The metric head runs in float32, the rest in
    `dtype`.

    Raises:
        InputError: other shapes.
    """

    config: ZoeDepthConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        cfg = self.config
        sides = images.shape[1:3]
        if images.ndim != 4 or images.shape[-1] != 3 or any(n % cfg.multiple for n in sides):
            raise InputError(
                f"ZoeDepth got images of shape {images.shape}, expected [B, H, W, 3] with sides "
                f"that are multiples of {cfg.multiple}; resize them"
            )
        grid = tuple(side // cfg.backbone.patch_size for side in sides)
        tokens = Beit(cfg.backbone, self.dtype, name="backbone")(images)
        maps = [
            _Readout(grid, self.dtype, name=f"readout_projects_{i}")(x)
            for i, x in enumerate(tokens)
        ]
        neck = Neck(cfg.neck, self.dtype, name="neck")
        coarsest, *finer = neck.narrow(neck.reassemble(maps))[::-1]
        fused = [neck.fuse(0, coarsest, None, None)]
        for block, level in enumerate(finer, 1):
            fused.append(neck.fuse(block, fused[-1], level, None))
        head = _RelativeHead(cfg.num_relative_features, self.dtype, name="relative_head")
        relative, features = head(fused[-1])
        return MetricHead(cfg.head, name="metric_head")(features, coarsest, fused, relative)


@functools.lru_cache(maxsize=8)
def abstract_params(config: ZoeDepthConfig) -> dict:
    """The parameter tree as ShapeDtypeStructs, a nested dict; allocates nothing."""
    image = jax.ShapeDtypeStruct((1, config.multiple, config.multiple, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(ZoeDepthNet(config).init, key, image)["params"]

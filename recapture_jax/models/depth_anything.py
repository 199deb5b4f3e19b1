"""Depth Anything V2 (Yang et al. 2024, arXiv 2406.09414): DINOv2, DPT, a relative or metric head.

The relative networks give disparity up to a factor and an offset, the metric ones (fine-tuned on
Hypersim, max_depth 20, or Virtual KITTI 2, max_depth 80) depth in metres. Version 1 has the same
architecture. Layers and widths of the released sizes are in `SIZES`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from recapture_jax.errors import InputError
from recapture_jax.models.dinov2 import Dinov2, Dinov2Config
from recapture_jax.models.dpt import DepthHead, Neck, NeckConfig, fields_from_json


@dataclasses.dataclass(frozen=True)
class DepthAnythingConfig:
    """The whole network; `to_dict` and `from_dict` are the form of a converted config.json.

    Attributes:
        backbone: the transformer; gives as many maps as the neck has levels.
        neck: the pyramid.
        head_hidden_size: channels of the head's second convolution.
        kind: 'relative' or 'metric'.
        max_depth: metres at which a metric head ends; None if it is not bounded.

    Raises:
        InputError: maps and levels differ in number, or an unknown kind.
    """

    backbone: Dinov2Config
    neck: NeckConfig
    head_hidden_size: int = 32
    kind: str = "relative"
    max_depth: float | None = None

    def __post_init__(self):
        levels = len(self.neck.neck_hidden_sizes)
        if not len(self.backbone.out_indices) == levels == len(self.neck.reassemble_factors):
            raise InputError(
                f"{len(self.backbone.out_indices)} maps of the backbone do not fit a neck of "
                f"{levels} widths and {len(self.neck.reassemble_factors)} factors; correct the config"
            )
        if self.kind not in ("relative", "metric"):
            raise InputError(f"depth kind is {self.kind!r}, expected relative or metric")
        if self.max_depth is not None and not (self.kind == "metric" and self.max_depth > 0):
            raise InputError(
                f"max_depth is {self.max_depth} for {self.kind} depth, expected metres above 0 for "
                "metric depth and none for relative depth; correct the config"
            )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From the contents of a converted config.json; keys beside the fields are ignored.

        Raises:
            InputError: a field is missing or not usable.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        try:
            values = {name: values[name] for name in names}
            for name, part in (("backbone", Dinov2Config), ("neck", NeckConfig)):
                values[name] = part(**fields_from_json(values[name]))
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"the configuration of the depth network is not usable ({error!r}); convert the "
                "weights again with `python -m converters.depth`"
            ) from None


def config_of_size(size: str, **options) -> DepthAnythingConfig:
    """The released network 'small', 'base' or 'large'; options as in DepthAnythingConfig."""
    hidden, layers, out_indices, widths, fused = SIZES[size]
    backbone = Dinov2Config(hidden, layers, hidden // HEAD_DIM, out_indices)
    return DepthAnythingConfig(backbone, NeckConfig(widths, fused), **options)


HEAD_DIM = 64  # of every released size
SIZES = {  # hidden_size, layers, out_indices, neck_hidden_sizes, fusion_hidden_size
    "small": (384, 12, (3, 6, 9, 12), (48, 96, 192, 384), 64),
    "base": (768, 12, (3, 6, 9, 12), (96, 192, 384, 768), 128),
    "large": (1024, 24, (5, 12, 18, 24), (256, 512, 1024, 1024), 256),
}


class DepthAnythingNet(nn.Module):
    """Normalised images [B, H, W, 3] -> [B, H, W] float32: disparity >= 0, or metres >= 0.

    H and W are multiples of the patch size. The images are what `depth.preprocess` gives.

    Raises:
        InputError: other shapes.
    """

    config: DepthAnythingConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        cfg = self.config
        maps = Dinov2(cfg.backbone, self.dtype, name="backbone")(images)
        fused = Neck(cfg.neck, self.dtype, name="neck")(maps)
        head = DepthHead(cfg.neck.fusion_hidden_size, cfg.head_hidden_size, self.dtype, name="head")
        raw = head(fused, images.shape[1:3])
        if cfg.max_depth is None:
            return jax.nn.relu(raw)
        return jax.nn.sigmoid(raw) * cfg.max_depth


@functools.lru_cache(maxsize=8)
def abstract_params(config: DepthAnythingConfig) -> dict:
    """The parameter tree as ShapeDtypeStructs, a nested dict; allocates nothing."""
    side = 2 * config.backbone.patch_size
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(DepthAnythingNet(config).init, key, image)["params"]

"""Metric depth by ZoeDepth (Bhat et al. 2023), frame by frame.

The inference is that of its authors. A picture is padded by reflection, 3 sqrt(side / 2) pixels
on each side (the network is worse at borders), resized bilinearly with aligned corners, and seen
twice, the second time mirrored; the mean of the two is enlarged by cubic convolution and the
padding cut off.

A network of several domains (indoor, outdoor) has a metric head for each. The authors let every
picture, or every batch of them, choose its head; here the whole clip chooses one, by the sum of all
frames' votes, as its depth would jump where the choice does.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from recapture_jax import xla
from recapture_jax.depth import networks
from recapture_jax.depth.base import DepthMap, check_frames
from recapture_jax.errors import InputError
from recapture_jax.models.dpt import fields_from_json
from recapture_jax.models.resize import resize_cubic, resize_linear
from recapture_jax.models.zoedepth import ZoeDepthConfig, ZoeDepthNet, abstract_params

ARCHITECTURE = "zoedepth"  # in a converted config.json
_BATCH = 2  # frames per call of the network, which sees each twice


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How pictures are made ready, preset as for the published weights.

    Attributes:
        size: height and width that a picture is brought near to.
        multiple: both sides of the result are multiples of it.
        keep_aspect: one scale for both sides, of the two that `size` gives the one nearer to 1.
        pad: reflect the borders.
        mean, std: per channel of [0, 1] pixels.
    """

    size: tuple[int, int] = (384, 512)
    multiple: int = 32
    keep_aspect: bool = True
    pad: bool = True
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From the part of a converted config.json.

        Raises:
            InputError: it is missing or not usable.
        """
        try:
            return cls(**fields_from_json(values))
        except (TypeError, AttributeError) as error:
            raise InputError(
                f"the preprocessing of ZoeDepth is not usable ({error!r}); convert the weights "
                "again with `python -m converters.depth`"
            ) from None

    def padding(self, height: int, width: int) -> tuple[int, int]:
        """Pixels added at top and bottom, and at left and right."""
        if not self.pad:
            return 0, 0
        return int(np.sqrt(height / 2) * 3), int(np.sqrt(width / 2) * 3)

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that a padded picture of this size is resized to."""
        scales = [wanted / side for wanted, side in zip(self.size, (height, width), strict=True)]
        if self.keep_aspect:
            nearer = scales[1] if abs(1 - scales[1]) < abs(1 - scales[0]) else scales[0]
            scales = [nearer, nearer]
        steps = (
            int(np.round(scale * side / self.multiple))
            for scale, side in zip(scales, (height, width), strict=True)
        )
        rows, columns = (max(step, 1) * self.multiple for step in steps)
        return rows, columns

    def __call__(self, frames: jax.Array) -> jax.Array:
        """[B, H, W, 3] in [0, 1] -> what the network sees, [B, h, w, 3]."""
        above, beside = self.padding(*frames.shape[1:3])
        frames = jnp.pad(frames, ((0, 0), (above, above), (beside, beside), (0, 0)), "reflect")
        frames = resize_linear(frames, self.network_size(*frames.shape[1:3]), align_corners=True)
        mean, std = (jnp.asarray(x, jnp.float32)[None, None, None] for x in (self.mean, self.std))
        return (frames - mean) / std

    def undo(self, depth: jax.Array, size: tuple[int, int]) -> jax.Array:
        """[B, h, w] of the network -> [B, *size] of the picture; may overshoot below 0."""
        above, beside = self.padding(*size)
        padded = (size[0] + 2 * above, size[1] + 2 * beside)
        depth = resize_cubic(depth[..., None], padded)[..., 0]
        return depth[:, above : above + size[0], beside : beside + size[1]]


class ZoeDepth:
    """The estimator (a `DepthEstimator`), frame by frame; its depth is metric.

    Args:
        config: of the network.
        params: its parameter tree.
        preprocessing: of its pictures.
        dtype: of the matrix products; the metric head runs in float32.
    """

    def __init__(
        self,
        config: ZoeDepthConfig,
        params: dict,
        preprocessing: Preprocessing | None = None,
        *,
        dtype: Any = jnp.float32,
    ):
        self.config = config
        self.params = params
        self.preprocessing = preprocessing or Preprocessing()
        network = ZoeDepthNet(config, dtype)
        self._predict = xla.jit(functools.partial(_predict, network, self.preprocessing))
        self._enlarge = xla.jit(self.preprocessing.undo, static_argnums=1)

    def __call__(self, frames: np.ndarray) -> DepthMap:
        """frames [T, H, W, 3] float32 in [0, 1] -> depth [T, H, W] in metres, at least 1e-3.

        Raises:
            InputError: frames of another shape or type.
        """
        check_frames(frames)
        predicted = [self._predict(self.params, x) for x in networks.batches(frames, _BATCH)]
        depth, votes = (
            np.concatenate(parts)[: len(frames)] for parts in zip(*predicted, strict=True)
        )
        bins, size = self.config.head.bins, frames.shape[1:3]
        chosen = int(np.argmax(votes.sum(axis=0)))
        metres = networks.in_batches(lambda x: self._enlarge(x, size), depth[:, chosen], _BATCH)
        # Cubic convolution may overshoot below 0.
        metres = np.maximum(metres, networks.MIN_DEPTH)
        domain = f" ({bins[chosen].name})" if len(bins) > 1 else ""
        return DepthMap(metres, "metric", ARCHITECTURE + domain)


def from_folder(path: str | Path, **options) -> ZoeDepth:
    """The estimator from a folder that `converters.depth` wrote; options as in ZoeDepth.

    Raises:
        InputError: the folder is missing, damaged or of another network.
    """
    values = networks.read_config(path, ARCHITECTURE)
    config = ZoeDepthConfig.from_dict(values)
    preprocessing = Preprocessing.from_dict(values.get("preprocessing"))
    dtype = options.get("dtype", jnp.float32)
    params = networks.load_params(path, abstract_params(config), dtype)
    return ZoeDepth(config, params, preprocessing, **options)


def _predict(
    network: ZoeDepthNet, preprocessing: Preprocessing, params: dict, frames: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """[B, H, W, 3] -> depth [B, heads, h, w], mean with the mirror image's; votes [B, heads]."""
    seen = preprocessing(frames)
    both = jnp.concatenate([seen, seen[:, :, ::-1]])
    depth, votes = network.apply({"params": params}, both)
    plain, mirrored = jnp.split(depth, 2)
    if votes is None:
        votes = jnp.zeros(depth.shape[:2])
    return (plain + mirrored[..., ::-1]) / 2, sum(jnp.split(votes, 2))

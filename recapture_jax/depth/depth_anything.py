"""Depth by Depth Anything V2, frame by frame: metric (indoor, outdoor) or relative.

A picture is enlarged or shrunk until its shorter side is 518 (cubic, sides multiples of 14), and
what comes out is brought back bilinearly with aligned corners, all as the authors do it. The
relative networks give disparity whose factor and offset are free in every frame; the affine mode of
`align.stabilise` is made for that.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from recapture_jax import xla
from recapture_jax.depth import networks
from recapture_jax.depth.base import DepthMap, check_frames
from recapture_jax.models.depth_anything import (
    DepthAnythingConfig,
    DepthAnythingNet,
    abstract_params,
)

_BATCH = 4  # frames per call of the network


class DepthAnything:
    """The estimator (a `DepthEstimator`).

    Args:
        config: of the network.
        params: its parameter tree.
        near, far: depth of the nearest and farthest pixel of the clip, for the relative networks.
        dtype: of the matrix products.
    """

    def __init__(
        self,
        config: DepthAnythingConfig,
        params: dict,
        *,
        near: float = networks.NEAR,
        far: float = networks.FAR,
        dtype: Any = jnp.float32,
    ):
        self.config = config
        self.params = params
        self.range = near, far
        self._predict = xla.jit(functools.partial(_predict, DepthAnythingNet(config, dtype)))

    def __call__(self, frames: np.ndarray) -> DepthMap:
        """frames [T, H, W, 3] float32 in [0, 1] -> depth [T, H, W].

        Metric depth is in metres, at least 1e-3 and below the network's max_depth; relative depth
        lies between `near` and `far` but for the sky.

        Raises:
            InputError: frames of another shape or type, or the same disparity everywhere.
        """
        check_frames(frames)
        values = networks.in_batches(functools.partial(self._predict, self.params), frames, _BATCH)
        return networks.depth_map(values, self.config.kind, "depth_anything", *self.range)


def from_folder(path: str | Path, **options) -> DepthAnything:
    """The estimator from a folder that `converters.depth` wrote; options as in DepthAnything.

    Raises:
        InputError: the folder is missing, damaged or of another network.
    """
    config = DepthAnythingConfig.from_dict(networks.read_config(path, "depth_anything"))
    dtype = options.get("dtype", jnp.float32)
    params = networks.load_params(path, abstract_params(config), dtype)
    return DepthAnything(config, params, **options)


def _predict(network: DepthAnythingNet, params: dict, frames: jax.Array) -> jax.Array:
    """[B, H, W, 3] -> [B, H, W] metres or disparity."""
    backbone, size = network.config.backbone, frames.shape[1:3]
    seen = networks.lower_bound_size(*size, backbone.image_size, backbone.patch_size)
    values = network.apply({"params": params}, networks.preprocess(frames, seen))
    return networks.to_size(values, size)

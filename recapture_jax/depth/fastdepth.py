"""Depth by FastDepth: small and coarse, but it ships with the package and runs anywhere.

Trained on NYU Depth v2 (indoor, one lens). Near and far come out right where the picture
resembles that; the scale does not for other lenses, so the depth is reported as relative.

Input size. Every picture is squeezed to 224x224 (bilinear, antialiased), whatever its aspect, as in
training, where 4:3 was. The network is fully convolutional, so keeping the proportions of training
at other aspects was tried; on 24 random synthetic scenes the deviation of log depth was 0.388
instead of 0.398 at 16:9 and 0.297 instead of 0.294 at 9:16: no gain worth a rule.

Output size. The result is constant on 2x2 blocks, which are first taken as one pixel each. It is
then enlarged by bilinear interpolation of log depth in which only those neighbours count that lie
on the same surface as the nearest one. Plain bilinear would put points between an object and what
is behind it, where there is nothing (they fly about in a new view); plain nearest would turn every
slanted wall into stairs.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from recapture_jax import xla
from recapture_jax.assets import asset_path
from recapture_jax.checkpoints import restore_safetensors
from recapture_jax.depth.base import DepthMap, check_frames
from recapture_jax.depth.networks import in_batches
from recapture_jax.models.fastdepth import FastDepthNet, abstract_params

ASSET = "fastdepth/fastdepth.safetensors"
MIN_DEPTH = 0.1  # the last rectifier can give 0; the sensor of the training data saw nothing nearer
_SIDE = 224  # of the network's square input
_SAME_SURFACE = 0.1  # largest step of log depth between neighbours on one surface
_BATCH = 4  # frames per call of the network


class FastDepth:
    """The estimator (a `DepthEstimator`), frame by frame.

    Args:
        weights: a file of `converters.fastdepth`; by default the one in the package.

    Raises:
        InputError: the file is missing, damaged or of another network.
    """

    def __init__(self, weights: str | Path | None = None):
        path = asset_path(ASSET) if weights is None else Path(weights)
        self.params = jax.tree.map(jnp.asarray, load_params(path))

    def __call__(self, frames: np.ndarray) -> DepthMap:
        """frames [T, H, W, 3] float32 in [0, 1] -> relative depth [T, H, W], at least 0.1.

        Raises:
            InputError: frames of another shape or type.
        """
        check_frames(frames)
        estimate = functools.partial(_estimate, self.params)
        return DepthMap(in_batches(estimate, frames, _BATCH), "relative", "fastdepth")


def load_params(path: Path) -> dict:
    """The network's parameter tree (numpy, float32) from a safetensors file.

    Raises:
        InputError: the file is missing or damaged, or its arrays are not those of the network.
    """
    return restore_safetensors(path, abstract_params())


@xla.jit
def _estimate(params: dict, frames: jax.Array) -> jax.Array:
    """[B, H, W, 3] -> [B, H, W] at least MIN_DEPTH."""
    batch, height, width, _ = frames.shape
    small = jax.image.resize(frames, (batch, _SIDE, _SIDE, 3), "linear", antialias=True)
    depth = FastDepthNet().apply({"params": params}, small)[:, ::2, ::2, 0]
    return enlarge_depth(jnp.maximum(depth, MIN_DEPTH), (height, width))


@functools.partial(jax.jit, static_argnums=1)
def enlarge_depth(depth: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes [B, h, w] depth > 0 to [B, *size] without values between two surfaces.

    Log depth is interpolated bilinearly between pixel centres; of the four neighbours those count
    whose log depth is within 0.1 of the nearest one's. Where all four do, it is plain bilinear.
    """
    log_depth = jnp.log(depth)
    (top, bottom, v), (left, right, u) = (
        _neighbours(n, m) for n, m in zip(depth.shape[1:], size, strict=True)
    )
    u, v = u[None, None, :], v[None, :, None]
    corners = []
    for rows, share_v in ((top, 1 - v), (bottom, v)):
        for columns, share_u in ((left, 1 - u), (right, u)):
            corners.append((log_depth[:, rows[:, None], columns[None, :]], share_v * share_u))
    nearest = jnp.where(
        v < 0.5,
        jnp.where(u < 0.5, corners[0][0], corners[1][0]),
        jnp.where(u < 0.5, corners[2][0], corners[3][0]),
    )
    total, weight = jnp.zeros_like(nearest), jnp.zeros_like(nearest)
    for value, share in corners:
        # differences to the nearest, not the values: no rounding where all are equal
        share = jnp.where(jnp.abs(value - nearest) <= _SAME_SURFACE, share, 0.0)
        total, weight = total + share * (value - nearest), weight + share
    return jnp.exp(nearest + total / weight)  # the nearest one counts at least 1/4


def _neighbours(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For m samples over n: the indices before and after each, and the share of the latter."""
    position = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
    before = np.minimum(np.floor(position).astype(np.int32), max(n - 2, 0))
    after = np.minimum(before + 1, n - 1)
    return before, after, (position - before).astype(np.float32)

"""Depth by Video Depth Anything: consistent over the clip, relative or metric.

The network sees 32 frames at a time. A window starts with 10 frames of the window before it (its
frames 0, 12 and 24 to 31), so that each has seen the first frame of the clip and what came last.
Windows are joined as the authors do:

    factor, offset   so that frames 0 and 1 of a window fit what was found for these frames before
                     (least squares on disparity; metric depth is taken as it is)
    blend            frames 2 to 9, linearly from the old to the new

The last frame is repeated to fill the last window. As the encoder works frame by frame, frames that
come again are not encoded again.
"""

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from recapture_jax import xla
from recapture_jax.depth import networks
from recapture_jax.depth.base import DepthMap, check_frames
from recapture_jax.models.video_depth_anything import (
    VideoDepthAnythingConfig,
    VideoDepthAnythingNet,
    abstract_params,
)

WINDOW = 32
KEYFRAMES = (0, 12, 24, 25, 26, 27, 28, 29, 30, 31)  # of a window, shown to the next one again
ALIGNED = 2  # of them fit the windows to each other, the others are blended
_WIDEST = 1.777  # beyond this aspect the pictures are shrunk, to keep the memory
_BATCH = 4  # frames per call of the encoder and of the decoder


class VideoDepthAnything:
    """The estimator (a `DepthEstimator`); arguments as for depth_anything.DepthAnything."""

    def __init__(
        self,
        config: VideoDepthAnythingConfig,
        params: dict,
        *,
        near: float = networks.NEAR,
        far: float = networks.FAR,
        dtype: Any = jnp.float32,
    ):
        self.config = config
        self.params = params
        self.range = near, far
        network = VideoDepthAnythingNet(config, dtype)
        self._encode = xla.jit(functools.partial(_encode, network))
        self._mix = xla.jit(functools.partial(_mix, network))
        self._decode = xla.jit(functools.partial(_decode, network), static_argnums=(2, 3))

    def __call__(self, frames: np.ndarray) -> DepthMap:
        """frames [T, H, W, 3] float32 in [0, 1] -> depth [T, H, W].

        Metric depth is in metres, at least 1e-3; relative depth lies between `near` and `far` but
        for the sky.

        Raises:
            InputError: frames of another shape or type, or the same disparity everywhere.
        """
        check_frames(frames)
        kind = self.config.kind
        joined = join_windows(self._windows(frames), len(frames), fit=kind == "relative")
        return networks.depth_map(joined, kind, "video_depth_anything", *self.range)

    def _windows(self, frames: np.ndarray) -> Iterator[np.ndarray]:
        """[WINDOW, H, W] of every window, as the network gives it."""
        maps = None
        for indices in window_frames(len(frames)):
            new = indices if maps is None else indices[len(KEYFRAMES) :]
            found = self._maps(frames, new)
            if maps is not None:
                known = [x[jnp.asarray(KEYFRAMES)] for x in maps]
                found = [jnp.concatenate(pair) for pair in zip(known, found, strict=True)]
            maps = found
            yield self._depth(maps, frames.shape[1:3])

    def _maps(self, frames: np.ndarray, indices: np.ndarray) -> list[jax.Array]:
        """The encoder's maps of the given frames; repeated ones are encoded once."""
        unique, place = np.unique(indices, return_inverse=True)
        parts = [self._encode(self.params, b) for b in networks.batches(frames[unique], _BATCH)]
        return [jnp.concatenate(level)[place] for level in zip(*parts, strict=True)]

    def _depth(self, maps: list[jax.Array], size: tuple[int, int]) -> np.ndarray:
        """[WINDOW, *size] from the maps of a window."""
        patch = self.config.backbone.patch_size
        seen = maps[0].shape[1] * patch, maps[0].shape[2] * patch
        mixed = self._mix(self.params, maps)
        parts = []
        for start in range(0, WINDOW, _BATCH):
            part = [x[start : start + _BATCH] for x in mixed]
            parts.append(np.asarray(self._decode(self.params, part, seen, size)))
        return np.concatenate(parts)


def from_folder(path: str | Path, **options) -> VideoDepthAnything:
    """The estimator from a folder that `converters.depth` wrote; options as in the class.

    Raises:
        InputError: the folder is missing, damaged or of another network.
    """
    values = networks.read_config(path, "video_depth_anything")
    config = VideoDepthAnythingConfig.from_dict(values)
    dtype = options.get("dtype", jnp.float32)
    params = networks.load_params(path, abstract_params(config), dtype)
    return VideoDepthAnything(config, params, **options)


def window_frames(count: int) -> list[np.ndarray]:
    """Which frame of a clip of `count` each of the [WINDOW] frames of every window is."""
    step = WINDOW - len(KEYFRAMES)
    windows = [np.arange(WINDOW)]
    for start in range(step, count, step):
        new = np.arange(start + len(KEYFRAMES), start + WINDOW)
        windows.append(np.concatenate([windows[-1][list(KEYFRAMES)], new]))
    return [np.minimum(window, count - 1) for window in windows]


def join_windows(windows: Iterable[np.ndarray], count: int, fit: bool) -> np.ndarray:
    """One [count, H, W] from the [WINDOW, H, W] of the windows of `window_frames`.

    Args:
        fit: whether to fit factor and offset.
    """
    overlap = len(KEYFRAMES)
    shares = np.linspace(0, 1, overlap - ALIGNED, dtype=np.float32)[:, None, None]
    joined: list[np.ndarray] = []
    reference = None
    for window in windows:
        if reference is None:
            joined += list(window)
            reference = window[list(KEYFRAMES[:ALIGNED])]
            continue
        if fit:
            factor, offset = _affine_fit(window[:ALIGNED], reference)
            window = np.maximum(factor * window + offset, 0).astype(np.float32)
        old, new = np.stack(joined[-len(shares) :]), window[ALIGNED:overlap]
        joined[-len(shares) :] = list((1 - shares) * old + shares * new)
        joined += list(window[overlap:])
        # The first frame of the clip stays the anchor of all windows.
        reference = np.stack([reference[0], *window[list(KEYFRAMES[1:ALIGNED])]])
    return np.stack(joined[:count])


def _affine_fit(values: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """(factor, offset) of the least squares fit of values to target; (1, 0) if it is not one."""
    x, y = values.astype(np.float64).ravel(), target.astype(np.float64).ravel()
    spread = np.square(x - x.mean()).sum()
    if spread == 0:
        return 1.0, 0.0
    factor = ((x - x.mean()) * (y - y.mean())).sum() / spread
    return float(factor), float(y.mean() - factor * x.mean())


def network_size(height: int, width: int, side: int, patch: int) -> tuple[int, int]:
    """The size (height, width) at which the network sees a frame.

    As `networks.lower_bound_size`, but of a shorter side where the aspect is beyond 1.78.
    """
    aspect = max(height, width) / min(height, width)
    if aspect > 1.78:
        side = max(round(int(side * _WIDEST / aspect) / patch), 1) * patch
    return networks.lower_bound_size(height, width, side, patch)


def _encode(network: VideoDepthAnythingNet, params: dict, frames: jax.Array) -> list[jax.Array]:
    backbone = network.config.backbone
    size = network_size(*frames.shape[1:3], backbone.image_size, backbone.patch_size)
    images = networks.preprocess(frames, size)
    return network.apply({"params": params}, images, method=network.encode)


def _mix(network: VideoDepthAnythingNet, params: dict, maps: list[jax.Array]):
    return network.apply({"params": params}, maps, WINDOW, method=network.mix)


def _decode(
    network: VideoDepthAnythingNet,
    params: dict,
    mixed: list[jax.Array],
    seen: tuple[int, int],
    size: tuple[int, int],
) -> jax.Array:
    values = network.apply({"params": params}, *mixed, seen, method=network.decode)
    return networks.to_size(values, size)

"""Converted depth networks: what is in a folder of `converters.depth`, and what all of them share."""

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from recapture_jax.checkpoints import restore_tree
from recapture_jax.depth import sky
from recapture_jax.depth.align import disparity_to_depth
from recapture_jax.depth.base import DepthEstimator, DepthMap
from recapture_jax.errors import InputError
from recapture_jax.models.resize import resize_cubic, resize_linear

ARCHITECTURES = {  # of a config.json: the module that has `from_folder`
    "depth_anything": "recapture_jax.depth.depth_anything",
    "video_depth_anything": "recapture_jax.depth.video_depth",
    "zoedepth": "recapture_jax.depth.zoedepth",
}
ALWAYS_METRIC = ("zoedepth",)
# Mode of `align.stabilise` by (DepthMap.source, kind), where 'auto' is not right: relative Depth Anything has a
# scale and an offset per frame, Video Depth Anything is steady by itself.
STABILISE = {
    ("depth_anything", "relative"): "affine",
    ("video_depth_anything", "relative"): "none",
    ("video_depth_anything", "metric"): "none",
}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MIN_DEPTH = 1e-3  # metres; the least depth that metric networks are evaluated at
NEAR, FAR = 1.0, 20.0  # of the nearest and the farthest pixel of a clip, where only order is known


def load(folder: str | Path, near: float | None = NEAR, far: float | None = FAR) -> DepthEstimator:
    """The estimator of a converted network, whichever it is.

    Args:
        folder: of the network.
        near, far: see `depth_map`; only networks of relative depth use them.

    Raises:
        InputError: the folder is missing, damaged or none of ours.
    """
    folder = Path(folder)
    name = _architecture(folder)
    options = {} if name in ALWAYS_METRIC else {"near": near, "far": far}
    return importlib.import_module(ARCHITECTURES[name]).from_folder(folder, **options)


def read_config(folder: str | Path, architecture: str) -> dict[str, Any]:
    """The folder's config.json, which has to be of that architecture.

    Raises:
        InputError: the folder is missing, damaged or of another network.
    """
    folder = Path(folder)
    found = _architecture(folder)
    if found != architecture:
        raise InputError(f"{folder} holds a {found} network, expected {architecture}")
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def load_params(folder: str | Path, shapes: dict, dtype: Any = jnp.float32) -> dict:
    """The folder's parameters in `dtype`; `shapes` is the network's abstract tree.

    Raises:
        InputError: they are missing, damaged or of another configuration.
    """
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)
    return restore_tree(Path(folder) / "params", wanted)


def _architecture(folder: Path) -> str:
    file = folder / "config.json"
    remedy = f"convert the weights with `python -m converters.depth --src SRC --dst {folder}`"
    if not folder.is_dir():
        raise InputError(f"depth network {folder} does not exist; {remedy}")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["architecture"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} cannot be read ({error!r}); {remedy}") from None
    if found not in ARCHITECTURES:
        raise InputError(
            f"{file} is of architecture {found!r}, expected one of {', '.join(ARCHITECTURES)}"
        )
    return found


def batches(frames: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """float32 slices along the first axis, the last one filled up: one compilation for all."""
    size = min(size, len(frames))
    for start in range(0, len(frames), size):
        batch = np.asarray(frames[start : start + size], np.float32)
        yield np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])


def in_batches(
    function: Callable[[np.ndarray], jax.Array], frames: np.ndarray, size: int
) -> np.ndarray:
    """`function` of every frame, called with `size` frames at a time."""
    parts = [np.asarray(function(batch)) for batch in batches(frames, size)]
    return np.concatenate(parts)[: len(frames)]


def lower_bound_size(height: int, width: int, side: int, multiple: int) -> tuple[int, int]:
    """The size (height, width) at which Depth Anything sees a picture.

    The shorter side becomes `side` (itself a multiple), the other keeps the proportions up to
    rounding to the nearest multiple.
    """
    scale = side / min(height, width)
    rows, columns = (max(round(n * scale / multiple) * multiple, side) for n in (height, width))
    return rows, columns


def preprocess(frames: jax.Array, size: tuple[int, int]) -> jax.Array:
    """[B, H, W, 3] in [0, 1] -> [B, *size, 3] float32, cubic, normalised as for ImageNet.

    Neither antialiased nor clipped, like the networks' training pictures.
    """
    mean, std = (
        jnp.asarray(x, jnp.float32)[None, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (resize_cubic(frames, size) - mean) / std


def to_size(values: jax.Array, size: tuple[int, int]) -> jax.Array:
    """[B, h, w] -> [B, *size], bilinear between aligned corners, as the networks' authors do."""
    return resize_linear(values[..., None], size, align_corners=True)[..., 0]


def depth_map(values: np.ndarray, kind: str, source: str, near: float, far: float) -> DepthMap:
    """A DepthMap of what a network says.

    Metric: metres, at least 1e-3. Relative: disparity up to a factor and an offset, so its
    extremes in the clip become the depths `near` and `far`; thus nothing is beyond `far`, however
    near its disparity is to 0; areas of disparity 0 are sky and count for neither.

    Args:
        values: [T, H, W] metres or disparity.
        kind: 'metric' or 'relative'.

    Raises:
        InputError: see disparity_to_depth and DepthMap.
    """
    if kind == "metric":
        return DepthMap(np.maximum(values, MIN_DEPTH).astype(np.float32), kind, source)
    above = sky.areas(np.asarray(values) <= 0)
    depth = disparity_to_depth(values, near, far, ~above)
    return sky.mark(DepthMap(depth.astype(np.float32), kind, source, sky=above), beyond=0)

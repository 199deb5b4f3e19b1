"""Depth that the user brings: from any network, a sensor or a renderer.

`files` says which files are read, `folders` which folders of other tools. What the values mean is
stated, not guessed:

    metric      value * scale is plane depth in metres
    relative    value * scale is plane depth up to one factor for the whole clip
    disparity   value is large where it is near; see `align.disparity_to_depth`. The result times
                scale is relative depth

For example 16-bit PNG in millimetres are metric with scale 0.001.
"""

from pathlib import Path

import numpy as np

from recapture_jax import progress
from recapture_jax.depth import files, folders, sky
from recapture_jax.depth.align import disparity_to_depth
from recapture_jax.depth.base import DepthMap
from recapture_jax.depth.files import ENCODINGS, Frames
from recapture_jax.errors import InputError

KINDS = ("metric", "relative", "disparity")
_ASPECT_TOLERANCE = 0.02  # networks round sizes to multiples of 14 or 32


def load_depth(
    path: str | Path,
    kind: str,
    scale: float = 1.0,
    *,
    frames: Frames,
    height: int,
    width: int,
    encoding: str = "uint16",
    channel: str = "",
    near: float | None = 1.0,
    far: float | None = 20.0,
    sky_mask: np.ndarray | None = None,
    name: str = "",
) -> DepthMap:
    """Depth of a clip from a file or folder; see the module's docstring.

    Areas at infinity (of disparity: at 0) are sky, see `sky`. Other invalid pixels (NaN, infinity,
    zero, negative; zero is allowed in disparity) are given the value of the nearest valid pixel of
    their frame, and their share is told and noted in `source`. Depth of another size than the video
    is resized by nearest neighbour, for a blend of near and far is a depth at which there is nothing.

    Args:
        path: of [T, h, w] numbers, or T pictures, or a folder of GEN3C or ViPE.
        kind: 'metric', 'relative' or 'disparity'.
        scale: see the module's docstring.
        frames: T frames that are used.
        height, width: H, W of the video.
        encoding, channel: of PNG and EXR, see `files.read_depth`.
        near, far: for disparity; None for both if it is the plain inverse of depth.
        sky_mask: [T, H, W] bool, True where there is sky.
        name: of the video, see `folders.find_folder`.

    Returns:
        [T, H, W] at the size of the video.

    Raises:
        InputError: one line for an unreadable or unsuitable file, a wrong number of frames or
            aspect, a frame of which half or more is invalid, or a bad argument.
    """
    path = Path(path)
    for field, value, allowed in (("kind", kind, KINDS), ("encoding", encoding, ENCODINGS)):
        if value not in allowed:
            raise InputError(f"depth {field} is {value!r}, expected one of {', '.join(allowed)}")
    if not (np.isfinite(scale) and scale > 0):
        raise InputError(f"depth scale is {scale}, expected a finite number above 0")
    found = folders.find_folder(path, name)
    values = files.read_depth(found.depth if found else path, frames, encoding, channel)
    _check_aspect(path, values.shape[1:], (height, width))
    values = values.astype(np.float64)
    disparity, ranged = kind == "disparity", near is not None
    none = 0.0 if disparity else np.inf  # the value of what is infinitely far
    if found and found.valid:
        valid = files.read_mask(found.valid, frames)
        if valid.shape != values.shape:
            raise InputError(f"{found.valid} is of {valid.shape}, the depth of {values.shape}")
        values[~valid] = none
    above = sky.areas(values == none)
    if sky_mask is not None:
        above |= _resize(sky_mask, values.shape[1:])
    filled = _fill_invalid(path, values, above, zero=disparity and ranged)
    note = f"{filled:.2%} of the pixels filled" if filled else ""
    if filled:
        progress.say(f"note: {path}: {note} from their nearest valid neighbour")
    depth = disparity_to_depth(values, near, far, ~above) if disparity else values
    depth = np.where(above, 1.0, depth) * np.float64(scale)  # until `sky.mark` places it
    tiny, huge = np.finfo(np.float32).tiny, np.finfo(np.float32).max
    if depth.min() < tiny or depth.max() > huge:
        raise InputError(
            f"{path}: depth after scaling by {scale:g} lies in [{depth.min():.3g}, "
            f"{depth.max():.3g}], beyond 32-bit floats; give another scale"
        )
    size = (height, width)
    source = f"precomputed {kind} {path.name}" + (f", {note}" if note else "")
    kind = "metric" if kind == "metric" else "relative"
    depth = DepthMap(
        _resize(depth.astype(np.float32), size), kind, source, sky=_resize(above, size)
    )
    return sky.mark(depth, beyond=0)


def load_mask(path: Path, frames: Frames, height: int, width: int) -> np.ndarray:
    """[T, H, W] bool of a mask for the clip, see `files.read_mask`.

    Raises:
        InputError: an unreadable file, a wrong number of frames or aspect.
    """
    mask = files.read_mask(path, frames)
    _check_aspect(path, mask.shape[1:], (height, width))
    return _resize(mask, (height, width))


def _check_aspect(path: Path, size: tuple[int, int], video: tuple[int, int]) -> None:
    stretch = (size[1] / size[0]) / (video[1] / video[0])
    if abs(np.log(stretch)) > _ASPECT_TOLERANCE:
        raise InputError(
            f"{path} is {_size(size)}, the video {_size(video)} (height x width): another aspect; "
            "give depth of the whole frame without borders or crop"
        )


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _fill_invalid(path: Path, values: np.ndarray, above: np.ndarray, zero: bool) -> float:
    """Fills invalid pixels of float64 [T, h, w] in place, but for the sky; returns their share.

    Args:
        above: [T, h, w] bool, the sky, from which nothing is taken.
        zero: whether 0 is valid.
    """
    from scipy.ndimage import distance_transform_edt

    bad = (~np.isfinite(values) | ((values < 0) if zero else (values <= 0))) & ~above
    for t in np.flatnonzero(bad.any(axis=(1, 2))):
        share = bad[t].sum() / (~above[t]).sum()
        if share >= 0.5:
            raise InputError(
                f"{path}: {share:.0%} of frame {t} is NaN, infinite, "
                f"{'negative' if zero else 'zero or negative'}; expected less than half, fill it "
                "or state the right kind and encoding"
            )
        nearest = distance_transform_edt(
            bad[t] | above[t], return_distances=False, return_indices=True
        )
        values[t][bad[t]] = values[t][tuple(nearest)][bad[t]]
    return float(bad.mean())


def _resize(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[T, h, w] of anything to [T, *size] by nearest neighbour of pixel centres."""
    if depth.shape[1:] == tuple(size):
        return depth
    rows, columns = (
        np.minimum(((np.arange(m) + 0.5) * n / m).astype(int), n - 1)
        for n, m in zip(depth.shape[1:], size, strict=True)
    )
    return depth[:, rows[:, None], columns[None, :]]

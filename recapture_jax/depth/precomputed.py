"""Depth that the user brings: from any network, a sensor or a renderer.

Read are `.npz` (key `depth` or `depths`, or the only array), `.npy`, and a folder of 16-bit PNG,
one per frame in the order of the numbers in their names. What the values mean is stated, not
guessed:

    metric      value * scale is plane depth in metres
    relative    value * scale is plane depth up to one factor for the whole clip
    disparity   value is large where it is near; see `align.disparity_to_depth`. The result times
                scale is relative depth

For example 16-bit PNG in millimetres are metric with scale 0.001.
"""

import re
import zipfile
from pathlib import Path

import numpy as np

from recapture_jax import progress
from recapture_jax.depth.align import disparity_to_depth
from recapture_jax.depth.base import DepthMap
from recapture_jax.errors import InputError

KINDS = ("metric", "relative", "disparity")
ENCODINGS = ("uint16", "float16_bits")
_FORMATS = "expected .npz, .npy or a folder of 16-bit PNG"
_ASPECT_TOLERANCE = 0.02  # networks round sizes to multiples of 14 or 32


def load_depth(
    path: str | Path,
    kind: str,
    scale: float = 1.0,
    *,
    num_frames: int,
    height: int,
    width: int,
    encoding: str = "uint16",
    near: float | None = 1.0,
    far: float | None = 20.0,
) -> DepthMap:
    """Depth of a clip from a file or folder; see the module's docstring.

    Invalid pixels (NaN, infinity, zero, negative; zero is allowed in disparity) are given the value
    of the nearest valid pixel of their frame, and their share is told and noted in `source`. Depth
    of another size than the video is resized by nearest neighbour, for a blend of near and far is a
    depth at which there is nothing.

    Args:
        path: [T, h, w] numbers, or T pictures.
        kind: 'metric', 'relative' or 'disparity'.
        scale: see the module's docstring.
        num_frames, height, width: T, H, W of the video.
        encoding: of PNG: 'uint16' (the value) or 'float16_bits' (the bits of a half float).
        near, far: for disparity; None for both if it is the plain inverse of depth.

    Returns:
        [T, H, W] at the size of the video.

    Raises:
        InputError: one line for an unreadable or unsuitable file, a wrong number of frames or
            aspect, a frame of which half or more is invalid, or a bad argument.
    """
    path = Path(path)
    for name, value, allowed in (("kind", kind, KINDS), ("encoding", encoding, ENCODINGS)):
        if value not in allowed:
            raise InputError(f"depth {name} is {value!r}, expected one of {', '.join(allowed)}")
    if not (np.isfinite(scale) and scale > 0):
        raise InputError(f"depth scale is {scale}, expected a finite number above 0")
    values = _read(path, encoding, num_frames)
    if len(values) != num_frames:
        raise InputError(
            f"{path} holds {len(values)} frames of depth, the video has {num_frames}; give the "
            "depth of exactly the frames that are used"
        )
    _check_aspect(path, values.shape[1:], (height, width))
    values, filled = _fill_invalid(path, values, kind == "disparity" and near is not None)
    note = f"{filled:.2%} of the pixels filled" if filled else ""
    if filled:
        progress.say(f"note: {path}: {note} from their nearest valid neighbour")
    if kind == "disparity":
        depth = disparity_to_depth(values, near, far) * np.float64(scale)
    else:
        depth = values * np.float64(scale)
    tiny, huge = np.finfo(np.float32).tiny, np.finfo(np.float32).max
    if depth.min() < tiny or depth.max() > huge:
        raise InputError(
            f"{path}: depth after scaling by {scale:g} lies in [{depth.min():.3g}, "
            f"{depth.max():.3g}], beyond 32-bit floats; give another scale"
        )
    depth = _resize(depth.astype(np.float32), (height, width))
    source = f"precomputed {kind} {path.name}" + (f", {note}" if note else "")
    return DepthMap(depth, "metric" if kind == "metric" else "relative", source)


def _read(path: Path, encoding: str, num_frames: int) -> np.ndarray:
    """[T, h, w] of any real type."""
    if not path.exists():
        raise InputError(f"depth {path} does not exist; {_FORMATS}")
    if path.is_dir():
        return _read_folder(path, encoding, num_frames)
    if path.suffix.lower() not in (".npz", ".npy"):
        raise InputError(f"depth {path} is of an unknown format; {_FORMATS}")
    try:
        with open(path, "rb") as file:  # opened here: numpy leaves a broken archive open
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return _checked(path, loaded)
            with loaded:
                return _checked(path, loaded[_key(path, loaded.files)])
    except InputError:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, MemoryError) as error:
        raise InputError(
            f"depth {path} cannot be read ({error}); write it with numpy.savez(path, depth=...)"
        ) from None
    except Exception as error:  # zlib.error and the like, from a damaged archive
        raise InputError(f"depth {path} is damaged ({error}); write it anew") from None


def _key(path: Path, names: list[str]) -> str:
    for name in ("depth", "depths"):
        if name in names:
            return name
    if len(names) == 1:
        return names[0]
    listed = ", ".join(names[:6]) or "nothing"
    raise InputError(
        f"{path} holds {listed}; expected an array called depth or depths, or only one"
    )


def _checked(path: Path, array: np.ndarray) -> np.ndarray:
    """The array as [T, h, w], if it can be depth."""
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind not in "fui" or (kind in "ui" and size == 1):
        raise InputError(
            f"{path} holds {array.dtype}, expected floats or integers of 16 bits or more; "
            "8 bits are too coarse for depth"
        )
    shape = array.shape
    if array.ndim == 4 and 1 in (shape[1], shape[3]):
        array = array[:, 0] if shape[1] == 1 else array[..., 0]
    if array.ndim != 3 or 0 in array.shape:
        raise InputError(f"{path} has shape {shape}, expected [frames, height, width]")
    return array


def _read_folder(path: Path, encoding: str, num_frames: int) -> np.ndarray:
    files = [file for file in path.iterdir() if file.suffix.lower() == ".png"]
    if not files:
        raise InputError(f"folder {path} holds no PNG; {_FORMATS}")
    if len(files) != num_frames:  # before all of them are read
        raise InputError(
            f"folder {path} holds {len(files)} PNG, the video has {num_frames} frames; give the "
            "depth of exactly the frames that are used"
        )
    files.sort(key=lambda f: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", f.name)])
    frames = [_read_png(file) for file in files]
    for file, frame in zip(files, frames, strict=True):
        if frame.shape != frames[0].shape:
            raise InputError(
                f"{file} is {_size(frame.shape)}, {files[0].name} is {_size(frames[0].shape)} "
                "(height x width); give pictures of one size"
            )
    values = np.stack(frames)
    return values.view(np.float16) if encoding == "float16_bits" else values


def _read_png(file: Path) -> np.ndarray:
    """[h, w] uint16."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            mode, pixels = image.mode, np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{file} cannot be read ({error}); write it anew as 16-bit PNG") from None
    # Pillow gives 16-bit grey as I;16, older versions as I; colour of 16 bits is cut to 8.
    if not mode.startswith("I") or pixels.min() < 0 or pixels.max() > 65535:
        raise InputError(
            f"{file} is a picture of type {mode}, expected 16-bit grey; 8 bits or colour are not "
            "depth"
        )
    return pixels.astype(np.uint16)


def _check_aspect(path: Path, size: tuple[int, int], video: tuple[int, int]) -> None:
    stretch = (size[1] / size[0]) / (video[1] / video[0])
    if abs(np.log(stretch)) > _ASPECT_TOLERANCE:
        raise InputError(
            f"{path} is {_size(size)}, the video {_size(video)} (height x width): another aspect; "
            "give depth of the whole frame without borders or crop"
        )


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _fill_invalid(path: Path, values: np.ndarray, zero: bool) -> tuple[np.ndarray, float]:
    """float64 values with invalid pixels filled, and their share."""
    from scipy.ndimage import distance_transform_edt

    values = values.astype(np.float64)
    bad = ~np.isfinite(values) | ((values < 0) if zero else (values <= 0))
    for t in np.flatnonzero(bad.any(axis=(1, 2))):
        share = bad[t].mean()
        if share >= 0.5:
            raise InputError(
                f"{path}: {share:.0%} of frame {t} is NaN, infinite, "
                f"{'negative' if zero else 'zero or negative'}; expected less than half, fill it "
                "or state the right kind and encoding"
            )
        rows, columns = distance_transform_edt(bad[t], return_distances=False, return_indices=True)
        values[t] = values[t][rows, columns]
    return values, float(bad.mean())


def _resize(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[T, h, w] to [T, *size] by nearest neighbour of pixel centres."""
    if depth.shape[1:] == tuple(size):
        return depth
    rows, columns = (
        np.minimum(((np.arange(m) + 0.5) * n / m).astype(int), n - 1)
        for n, m in zip(depth.shape[1:], size, strict=True)
    )
    return depth[:, rows[:, None], columns[None, :]]

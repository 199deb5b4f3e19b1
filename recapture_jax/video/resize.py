"""Sizes and resampling that keep the aspect ratio: one scale factor, then a small centred crop.

Nothing here squashes. A frame is scaled by a single factor until it covers the wanted size, and
the few pixels that stick out are cropped in equal parts; `Fit` records what was done so that
intrinsics, depth and results follow. Positions are in pixels with edges on whole numbers, so
pixel (i, j) has its centre at (j + 0.5, i + 0.5), and a point (u, v) of the source lands on
((u - left) * scale, (v - top) * scale).
"""

import dataclasses
import math
from concurrent import futures

import numpy as np

from recapture_jax.errors import InputError

_THREADS = 4  # a resize of one plane is not threaded in itself


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a source frame was brought to another size.

    Attributes:
      source_size: (height, width) of the source.
      size: (height, width) of the result.
      scale: result pixels per source pixel, the same for both axes.
      top, left: corner of the crop box in source pixels; may be fractional.
    """

    source_size: tuple[int, int]
    size: tuple[int, int]
    scale: float
    top: float
    left: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Crop box (left, top, right, bottom) in source pixels."""
        height, width = self.size[0] / self.scale, self.size[1] / self.scale
        return self.left, self.top, self.left + width, self.top + height

    @property
    def kept(self) -> float:
        """Share of the source's area inside the crop box, in (0, 1]."""
        area = self.size[0] * self.size[1] / self.scale**2
        return area / (self.source_size[0] * self.source_size[1])

    def intrinsics(self, source_intrinsics) -> np.ndarray:
        """[..., 3, 3] pixels of the source -> [..., 3, 3] float32 pixels of the result."""
        s = self.scale
        result_from_source = np.array(
            [[s, 0.0, -s * self.left], [0.0, s, -s * self.top], [0.0, 0.0, 1.0]]
        )
        return (result_from_source @ np.asarray(source_intrinsics, np.float64)).astype(np.float32)


def fit_size(
    height: int,
    width: int,
    *,
    short_side: int | None = None,
    area: int | None = None,
    multiple: int = 64,
) -> tuple[int, int]:
    """The (height, width) to work at: multiples of `multiple` that crop the source least.

    With `short_side`, the shorter edge is that length rounded to the multiple and the longer one
    is chosen for the smallest crop. With `area` (pixels), both edges are chosen for the smallest
    crop among the sizes around that area.

    Raises:
      InputError: a size is not positive, or not exactly one of short_side and area is given.
    """
    for name, value in (("height", height), ("width", width), ("multiple", multiple)):
        _positive(name, value)
    if (short_side is None) == (area is None):
        raise InputError("fit_size needs either short_side or area, exactly one of them")
    aspect = max(height, width) / min(height, width)
    if short_side is not None:
        _positive("short_side", short_side)
        shorts = [max(multiple, math.floor(short_side / multiple + 0.5) * multiple)]
        wanted = shorts[0] ** 2 * aspect
    else:
        _positive("area", area)
        wanted = area
        shorts = _around(math.sqrt(area / aspect), multiple)
    sizes = [(short, long) for short in shorts for long in _around(short * aspect, multiple)]
    near = [(s, l) for s, l in sizes if 0.75 <= s * l / wanted <= 1.34] or sizes

    def cost(size):
        short, long = size
        ratio = long / short / aspect
        return round(max(ratio, 1 / ratio), 9), abs(math.log(short * long / wanted)), size

    short, long = min(near, key=cost)
    return (short, long) if height <= width else (long, short)


def cover(source_size: tuple[int, int], size: tuple[int, int]) -> Fit:
    """The Fit that scales source_size by one factor to cover `size` and crops the centre.

    Raises:
      InputError: a height or width is not a positive integer.
    """
    for name, value in zip(("height", "width") * 2, (*source_size, *size), strict=True):
        _positive(name, value)
    (source_height, source_width), (height, width) = source_size, size
    scale = max(height / source_height, width / source_width)
    top = max(0.0, (source_height - height / scale) / 2)
    left = max(0.0, (source_width - width / scale) / 2)
    return Fit(tuple(source_size), tuple(size), scale, top, left)


def within(source_size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """The (height, width) of at most so many pixels, aspect kept to a pixel; never a larger one."""
    height, width = source_size
    scale = min(1.0, (max_pixels / (height * width)) ** 0.5)
    return max(1, int(height * scale)), max(1, int(width * scale))


def covering(source_size: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width), aspect kept to two pixels, whose middle is `size`, with nothing left to resample.

    One side is equal, the other longer by an even number of pixels. May be larger than the source.
    """
    scale = cover(source_size, size).scale
    return tuple(
        side + 2 * round((length * scale - side) / 2)
        for length, side in zip(source_size, size, strict=True)
    )


def resize_to_cover_and_crop(frames, size: tuple[int, int]) -> tuple[np.ndarray, Fit]:
    """Scales by one factor, crops the centre, with antialiasing (bicubic).

    Args:
      frames: [..., H, W, C] in [0, 1] (uint8 is read as 0 to 255).
      size: (height, width) of the result.

    Returns:
      [..., height, width, C] float32 in [0, 1], and the Fit.
    """
    frames = np.asarray(frames)
    fit = cover(frames.shape[-3:-1], size)
    return apply_fit(frames, fit), fit


def apply_fit(frames, fit: Fit) -> np.ndarray:
    """Resamples [..., H, W, C] frames in [0, 1] by a Fit made for their size."""
    frames = np.asarray(frames)
    if frames.shape[-3:-1] != fit.source_size:
        raise InputError(
            f"frames are {frames.shape[-3]}x{frames.shape[-2]}, this fit was made for "
            f"{fit.source_size[0]}x{fit.source_size[1]} (height x width)"
        )
    return resample(frames, fit.size, fit.box)


def resize(frames, size: tuple[int, int]) -> np.ndarray:
    """Antialiased resize of [..., H, W, C] in [0, 1] to a size of the same aspect.

    Raises:
      InputError: the size would squash the frames by more than the rounding to whole pixels.
    """
    frames = as_float(frames)
    height, width = frames.shape[-3:-1]
    for name, value in zip(("height", "width"), size, strict=True):
        _positive(name, value)
    if min(abs(size[0] - size[1] * height / width), abs(size[1] - size[0] * width / height)) > 1:
        raise InputError(
            f"resizing {height}x{width} to {size[0]}x{size[1]} (height x width) would squash it; "
            "use resize_to_cover_and_crop"
        )
    return resample(frames, size)


def resize_depth(depth, fit: Fit) -> np.ndarray:
    """[..., H, W] depth, labels or a mask, by nearest neighbour with the same crop as the frames.

    Nearest, because a blend of near and far is a depth at which there is nothing.
    """
    depth = np.asarray(depth)
    if depth.shape[-2:] != fit.source_size:
        raise InputError(
            f"depth is {depth.shape[-2]}x{depth.shape[-1]}, the frames were "
            f"{fit.source_size[0]}x{fit.source_size[1]} (height x width)"
        )
    rows = _nearest(fit.top, fit.scale, fit.size[0], fit.source_size[0])
    columns = _nearest(fit.left, fit.scale, fit.size[1], fit.source_size[1])
    return depth[..., rows[:, None], columns[None, :]]


def undo_fit(frames, fit: Fit) -> np.ndarray:
    """Brings results back to the source's size and aspect, the inverse of `apply_fit`.

    The thin strips that were cropped hold no result; they repeat the nearest edge pixel.

    Args:
      frames: [..., h, w, C] in [0, 1] at fit.size.

    Returns:
      [..., H, W, C] float32 in [0, 1] at fit.source_size.
    """
    frames = as_float(frames)
    if frames.shape[-3:-1] != fit.size:
        raise InputError(
            f"results are {frames.shape[-3]}x{frames.shape[-2]}, this fit gives "
            f"{fit.size[0]}x{fit.size[1]} (height x width)"
        )
    (height, width), s = fit.source_size, fit.scale
    # two pixels more than the crop, so that the bicubic kernel sees edge pixels, not its own clamp
    rows, columns = math.ceil(fit.top * s) + 2, math.ceil(fit.left * s) + 2
    pad = [(0, 0)] * (frames.ndim - 3) + [(rows, rows), (columns, columns), (0, 0)]
    left, top = columns - fit.left * s, rows - fit.top * s
    box = (left, top, left + width * s, top + height * s)
    return resample(np.pad(frames, pad, mode="edge"), fit.source_size, box)


def as_float(frames) -> np.ndarray:
    """uint8 0..255 or floats 0..1 -> float32 0..1."""
    frames = np.asarray(frames)
    if frames.dtype == np.uint8:
        return frames.astype(np.float32) / np.float32(255)
    return frames.astype(np.float32, copy=False)


def resample(frames, size: tuple[int, int], box=None) -> np.ndarray:
    """Bicubic, widened when shrinking (antialiased), in float32, with whatever aspect is asked.

    Args:
      frames: [..., H, W, C] in [0, 1] (uint8 is read as 0 to 255).
      size: (height, width) of the result.
      box: (left, top, right, bottom) of the region to take, in pixels; the whole frame if None.
    """
    from PIL import Image

    frames = np.asarray(frames)
    height, width = frames.shape[-3:-1]
    box = (0, 0, width, height) if box is None else box
    if tuple(size) == (height, width) and tuple(box) == (0, 0, width, height):
        return as_float(frames)
    box = (box[0], box[1], min(box[2], width), min(box[3], height))  # undo float round-off
    planes = np.moveaxis(frames, -1, -3).reshape(-1, height, width)
    out = np.empty((len(planes), *size), np.float32)

    def fill(target: np.ndarray, plane: np.ndarray) -> None:
        image = Image.fromarray(as_float(plane))  # one plane at a time: a 4K frame is 100 MB
        image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
        np.clip(image, 0, 1, out=target)  # bicubic overshoots at edges

    with futures.ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(fill, out, planes))
    return np.moveaxis(out.reshape(*frames.shape[:-3], frames.shape[-1], *size), -3, -1)


def _nearest(offset: float, scale: float, length: int, source_length: int) -> np.ndarray:
    index = np.floor(offset + (np.arange(length) + 0.5) / scale).astype(int)
    return np.clip(index, 0, source_length - 1)


def _around(value: float, multiple: int) -> list[int]:
    low = max(1, math.floor(value / multiple))
    return [low * multiple, (low + 1) * multiple]


def _positive(name: str, value) -> None:
    if isinstance(value, bool) or value != int(value) or value < 1:
        raise InputError(f"{name} is {value}; expected a positive whole number")

"""Reads a video file or a folder of images into a Clip; everything odd is refused in one line."""

import dataclasses
import numbers
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np

from recapture_jax.errors import InputError
from recapture_jax.video import decode, metadata
from recapture_jax.video.clip import Clip, Origin, exact_rate
from recapture_jax.video.resize import Fit, apply_fit, as_float, cover, within

MAX_BYTES = 8 << 30  # refuse before the machine starts to swap
FOLDER_FPS = Fraction(24)
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def read_clip(
    path,
    num_frames: int | None = None,
    start: int = 0,
    stride: int = 1,
    *,
    max_pixels: int | None = None,
    size: tuple[int, int] | Callable[[tuple[int, int]], tuple[int, int]] | None = None,
    fps: float | None = None,
    with_audio: bool = True,
    at_most: bool = False,
) -> Clip:
    """Reads frames start, start + stride, ... of a video file or of a folder of images.

    The picture comes upright (phone rotation and mirroring applied), with square pixels, 8-bit
    or deeper YUV converted by the file's own matrix and range, HDR tone mapped to sRGB, and
    transparency composited on white. A variable frame rate is resampled to a constant one by
    timestamps, which keeps the duration. Frames are scaled while they are decoded, so only the
    result and one source frame are in memory.

    Args:
      path: mp4, mov, webm, gif or anything else FFmpeg reads; or a folder of PNG or JPEG frames
        of one size, taken in natural order (frame2 before frame10).
      num_frames: how many frames, at least 2; all that remain if None. `at_most`: or fewer, if there are fewer.
      start: index of the first frame, at the clip's rate.
      stride: take every stride-th frame; the clip's fps is divided by it, so time runs as filmed.
      max_pixels: shrink frames (aspect kept to a pixel) to at most this many pixels.
      size: (height, width): scale by one factor to cover it and crop the centre; or a function to it from
        the (height, width) of the file's own frames, upright. Not together with max_pixels.
      fps: constant rate to read the file at; its own if None. For a folder, the rate at which
        its images were taken (24 if None).
      with_audio: also read the sound of the chosen time span.

    Returns:
      Clip with float32 frames [T, H, W, 3] in [0, 1] and decoded audio or None.

    Raises:
      InputError: missing, unreadable, truncated or empty input, fewer frames than asked for, or
        an argument out of range.
    """
    num_frames = None if num_frames is None else _whole("num_frames", num_frames, 2)
    start, stride = _whole("start", start, 0), _whole("stride", stride, 1)
    if max_pixels is not None and size is not None:
        raise InputError("give max_pixels or size, not both")
    if max_pixels is not None:
        max_pixels = _whole("max_pixels", max_pixels, 1)
    if size is not None and not callable(size):
        if not isinstance(size, tuple | list) or len(size) != 2:
            raise InputError(f"size is {size!r}; expected (height, width)")
        size = tuple(_whole("size", edge, 1) for edge in size)
    rate = None if fps is None else exact_rate(fps)
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise InputError(f"path is {path!r}; expected a video file or a folder of images")
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        source = _Folder.open(path, rate or FOLDER_FPS)
    elif path.is_file():
        source = _File.open(path, rate)
    elif path.exists():
        raise InputError(f"{path} is not a regular file; expected a video or a folder of images")
    else:
        raise InputError(f"{path} does not exist; expected a video file or a folder of images")

    indices = _choose(path, source.total, num_frames, start, stride, at_most)
    size = size(source.size) if callable(size) else size
    fit = _target(source.size, max_pixels, size)
    height, width = fit.size if fit else source.size
    needed = len(indices) * height * width * 3 * 4
    if needed > MAX_BYTES:
        raise InputError(
            f"{path}: {len(indices)} frames of {width}x{height} need {needed / 2**30:.1f} GiB of "
            f"memory, the limit is {MAX_BYTES >> 30} GiB; pass num_frames or max_pixels"
        )
    frames = np.empty((len(indices), height, width, 3), np.float32)
    done = 0
    for frame in source.frames(indices, (lambda rgb: apply_fit(rgb, fit)) if fit else as_float):
        frames[done] = frame
        done += 1
    if done < len(indices) and (not (num_frames is None or at_most) or done < 2):
        raise InputError(
            f"{path}: {len(indices)} frames were asked for but only {done} could be decoded; "
            "ask for fewer frames or convert the file again"
        )
    clip_rate = source.rate / stride
    audio = source.audio(start / source.rate, done / clip_rate) if with_audio else None
    origin = Origin(source.total, source.size, source.focal_35mm)
    return Clip(frames[:done], float(clip_rate), audio, origin=origin)


def _choose(
    path, total: int, num_frames: int | None, start: int, stride: int, at_most: bool
) -> range:
    if total < 2:
        raise InputError(
            f"{path} has {total} frame; a clip needs at least 2: give a video, not a still picture"
        )
    found = len(range(start, total, stride))
    wanted = 2 if num_frames is None or at_most else num_frames
    if found < wanted:
        where = f" from frame {start} on" if start else ""
        where += f" at stride {stride}" if stride > 1 else ""
        where += f" ({total} in all)" if where else ""
        raise InputError(
            f"{path} has {found} frame{'' if found == 1 else 's'}{where} but {wanted} are needed; "
            "lower num_frames, start or stride, or give a longer clip"
        )
    return range(start, total, stride)[:num_frames]


def _target(source_size, max_pixels: int | None, size) -> Fit | None:
    """The Fit for the wanted size; None when the frames already have it."""
    size = size if max_pixels is None else within(source_size, max_pixels)
    return cover(source_size, size) if size is not None and size != source_size else None


@dataclasses.dataclass(frozen=True)
class _File:
    path: pathlib.Path
    rate: Fraction
    total: int
    size: tuple[int, int]
    focal_35mm: float | None

    @classmethod
    def open(cls, path: pathlib.Path, rate: Fraction | None) -> "_File":
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes); copy or export the video again")
        found = decode.probe(path, rate)
        return cls(path, found.fps, found.num_frames, found.size, found.focal_35mm)

    def frames(self, indices: range, shrink) -> Iterator[np.ndarray]:
        return decode.frames_at(self.path, self.rate, indices, self.total, shrink)

    def audio(self, start: Fraction, seconds: Fraction):
        return decode.read_audio(self.path, start, seconds)


@dataclasses.dataclass(frozen=True)
class _Folder:
    paths: tuple[pathlib.Path, ...]
    rate: Fraction
    size: tuple[int, int]
    focal_35mm: float | None

    @classmethod
    def open(cls, path: pathlib.Path, rate: Fraction) -> "_Folder":
        paths = [
            p for p in path.iterdir() if p.suffix.lower() in _IMAGES and not p.name.startswith(".")
        ]
        if not paths:
            raise InputError(f"{path} is a folder without images; expected PNG or JPEG frames")
        paths.sort(key=lambda p: [(int(t), "") if t.isdecimal() else (0, t) for t in _split(p)])
        size = _read_image(paths[0]).shape[:2]
        return cls(tuple(paths), rate, size, metadata.from_image(paths[0]))

    @property
    def total(self) -> int:
        return len(self.paths)

    def frames(self, indices: range, shrink) -> Iterator[np.ndarray]:
        for index in indices:
            rgb = _read_image(self.paths[index])
            if rgb.shape[:2] != self.size:
                raise InputError(
                    f"{self.paths[index]} is {rgb.shape[1]}x{rgb.shape[0]} but the first frame is "
                    f"{self.size[1]}x{self.size[0]}; expected one size for all frames"
                )
            yield shrink(rgb)

    def audio(self, start: Fraction, seconds: Fraction) -> None:
        return None


def _split(path: pathlib.Path) -> list[str]:
    return [part for part in re.split(r"(\d+)", path.name.lower()) if part]


def _read_image(path: pathlib.Path) -> np.ndarray:
    """[H, W, 3] uint8, or float32 in [0, 1]; EXIF rotation applied, alpha over white."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith(("I", "F")):
                gray = np.asarray(image, np.float32)
                gray = np.clip(gray / (65535 if image.mode[0] == "I" else 1), 0, 1)
                return np.repeat(gray[..., None], 3, axis=-1)
            if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
                return decode.over_white(as_float(np.asarray(image.convert("RGBA"))))
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{path} cannot be read as an image ({reason}); replace it or remove it"
        ) from None


def _whole(name: str, value, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise InputError(f"{name} is {value!r}; expected a whole number of at least {least}")
    return int(value)

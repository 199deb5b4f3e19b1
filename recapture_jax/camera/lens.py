"""The lens of the source: its intrinsics from what is known of it, and in words where from.

In this order: what the user gives (intrinsics, or a field of view), what comes with the poses or the depth,
what the file's metadata says, and a default. Which one it was is said (`Lens.said`), for a guessed focal
length bends every camera move.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recapture_jax.camera import path as camera_path
from recapture_jax.camera.path import PosePath
from recapture_jax.camera.pinhole import intrinsics_from_fov
from recapture_jax.errors import InputError

DEFAULT_FOV = 40.0  # degrees of the shorter side; a phone's main camera has 40 to 50
FILM_DIAGONAL = math.hypot(36.0, 24.0)  # millimetres; equivalents are of the diagonal's angle
_SHARES = 10.0  # numbers up to this are shares of the frame: no lens has so few pixels
_OFF_CENTRE = 0.1  # share of the frame by which a principal point may be off
_OTHER_ASPECT = 0.02  # by which width over height may be off: both are rounded to pixels
_ZOOM = 0.02  # change of focal length over a clip that is told


@dataclass(frozen=True)
class Lens:
    """`intrinsics` `[3, 3]` float64 in pixels, and where they are from."""

    intrinsics: np.ndarray
    said: str


def choose(
    size: tuple[int, int],
    *,
    given: str = "",
    paths: Sequence[tuple[PosePath, range]] = (),
    focal_35mm: float | None = None,
    vertical_fov: float = 0.0,
) -> Lens:
    """The lens of a video of (height, width) pixels, by the order of the module's docstring.

    Args:
        size: of the video as it is shown.
        given: see `parse`; '' for nothing.
        paths: what comes with poses or depth, each with the numbers of the poses that are used; the
            first that has intrinsics counts.
        focal_35mm: of the metadata, millimetres.
        vertical_fov: degrees; 0 for nothing.

    Raises:
        InputError: as `parse` and `from_path`, or for an impossible field of view.
    """
    if given:
        return Lens(parse(given, size), f"given ({given})")
    if vertical_fov:
        return Lens(_from_fov(vertical_fov, size), "from config.camera.vertical_fov")
    for path, frames in paths:
        lens = from_path(path, size, frames)
        if lens is not None:
            return lens
    if focal_35mm is not None:
        return Lens(
            from_focal_35mm(focal_35mm, size),
            f"from the video's metadata ({focal_35mm:g} mm equivalent)",
        )
    unfit = any(path.intrinsics is not None for path, _ in paths)
    why = "the poses' is of pictures of unknown size" if unfit else "neither poses nor metadata say"
    return Lens(
        np.asarray(intrinsics_from_fov(DEFAULT_FOV, *size, axis="shorter"), np.float64),
        f"assumed, for {why}; if you know it, give --config.camera.intrinsics or vertical_fov",
    )


def describe(lens: Lens, size: tuple[int, int]) -> str:
    """The lens in one line."""
    (fx, _, _), (_, fy, _), _ = lens.intrinsics
    width, height = (
        math.degrees(2 * math.atan(n / 2 / f)) for n, f in ((size[1], fx), (size[0], fy))
    )
    return (
        f"lens: {width:.1f} x {height:.1f} degrees (horizontal x vertical, focal length "
        f"{fx / size[1]:.3f} widths), {lens.said}"
    )


def parse(text: str, size: tuple[int, int]) -> np.ndarray:
    """`[3, 3]` from '60deg' (vertical field of view), 'f', 'fx fy' or 'fx fy cx cy'.

    Numbers are pixels of the video; if all are at most 10, shares of its width (f, fx, cx) and height
    (fy, cy). The principal point is the centre unless given.

    Raises:
        InputError: for anything else.
    """
    height, width = size
    if match := re.fullmatch(r"\s*([\d.]+)\s*deg(?:rees)?\s*", text):
        degrees = _number(match[1], text)
        if not 0 < degrees < 180:
            raise InputError(f"lens {text!r}: expected an angle between 0deg and 180deg")
        return _from_fov(degrees, size)
    numbers = [_number(word, text) for word in text.replace(",", " ").split()]
    if len(numbers) not in (1, 2, 4) or min(numbers) <= 0:
        raise _unknown(text)
    if max(numbers) <= _SHARES:
        scales = (width, height) * (len(numbers) // 2) or (width,)
        numbers = [n * scale for n, scale in zip(numbers, scales, strict=True)]
    fx, fy = numbers[0], numbers[min(1, len(numbers) - 1)]
    cx, cy = numbers[2:] or (width / 2, height / 2)
    if not (cx < width and cy < height):
        raise InputError(
            f"lens {text!r}: its centre is outside of the video's {width}x{height} pixels; expected "
            "pixels of the video as it is shown"
        )
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def _number(word: str, text: str) -> float:
    try:
        number = float(word)
    except ValueError:
        raise _unknown(text) from None
    if not math.isfinite(number):
        raise _unknown(text)
    return number


def _unknown(text: str) -> InputError:
    return InputError(
        f"lens {text!r}: expected 'f', 'fx fy' or 'fx fy cx cy' in pixels of the video, or '60deg'"
    )


def from_focal_35mm(millimetres: float, size: tuple[int, int]) -> np.ndarray:
    """`[3, 3]` of a lens whose diagonal angle of view is that of the focal length on 36x24 mm."""
    height, width = size
    focal = millimetres / FILM_DIAGONAL * math.hypot(height, width)
    return np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])


def _from_fov(degrees: float, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(intrinsics_from_fov(degrees, *size), np.float64)


def _aspect(size: tuple[int, int]) -> float:
    return size[1] / size[0]


def from_path(path: PosePath, size: tuple[int, int], frames: range) -> Lens | None:
    """The lens of a file of poses: the median over the frames used; None if it does not say.

    Intrinsics of an unknown frame size are taken for pixels of the video if their centre is near its
    centre, and else left out.

    Raises:
        InputError: they are of pictures of another shape, rotated or cropped ones.
    """
    if path.intrinsics is None:
        return None
    if path.size is None:
        centre = path.intrinsics[:, :2, 2].mean(0) / (size[1], size[0])
        if np.abs(centre - 0.5).max() > _OFF_CENTRE:
            return None
    else:
        if path.size != (1, 1) and abs(_aspect(path.size) / _aspect(size) - 1) > _OTHER_ASPECT:
            (height, width), (own_height, own_width) = size, path.size
            raise InputError(
                f"{path.name} has the lens of pictures of {own_width}x{own_height} pixels, the video has "
                f"{width}x{height}: expected one shape; give --config.camera.intrinsics for the video"
            )
        path = camera_path.in_pixels(path, size)
    chosen = path.intrinsics
    if len(chosen) > max(frames):
        chosen = chosen[frames.start : frames.stop : frames.step]
    focal = chosen[:, 1, 1]
    said = f"from {path.name}"
    if focal.max() > (1 + _ZOOM) * focal.min():
        said += f" (it changes from {focal[0]:.0f} to {focal[-1]:.0f} px; the median is taken)"
    return Lens(np.median(chosen, axis=0), said)

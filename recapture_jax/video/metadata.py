"""The focal length that cameras and phones write into their files, in 35 mm equivalents."""

import math
import pathlib
from collections.abc import Mapping

# Ends of tag names, in lower case: QuickTime's key of Apple, and what EXIF's is called elsewhere.
_TAGS = (
    "camera.focal_length.35mm_equivalent",
    "focallengthin35mmfilm",
    "focallengthin35mmformat",
    "focal_length_35mm",
)
_EXIF_IFD, _EXIF_TAG = 0x8769, 0xA405  # FocalLengthIn35mmFilm
_RANGE = (1.0, 5000.0)  # millimetres


def from_tags(*tags: Mapping[str, str]) -> float | None:
    """Millimetres from the tags of a stream or file, the first that has them; None if none has."""
    for group in tags:
        for name, value in group.items():
            if name.lower().endswith(_TAGS):
                if (found := _millimetres(value)) is not None:
                    return found
    return None


def from_image(path: pathlib.Path) -> float | None:
    """Millimetres from the EXIF of a picture; None if it has none."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return _millimetres(image.getexif().get_ifd(_EXIF_IFD).get(_EXIF_TAG))
    except (OSError, SyntaxError, ValueError, KeyError):  # the reader of frames says what is wrong
        return None


def _millimetres(value) -> float | None:
    """A number in range; cameras write 0 where they do not know, and some a negative one."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and _RANGE[0] <= number <= _RANGE[1] else None

"""Numbers per frame from files: arrays, folders and archives of pictures, and which frames to take.

Read are `.npz` (key `depth` or `depths`, or the only array), `.npy`, and a folder or `.zip` of 16-bit
PNG or of EXR, one per frame in the order of the numbers in their names. A file may hold the frames
that are used, or those of the whole video, of which these are taken.
"""

import dataclasses
import io
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from recapture_jax.depth.exr import decode_exr
from recapture_jax.errors import InputError

ENCODINGS = ("uint16", "float16_bits")
FORMATS = "expected .npz, .npy, or a folder or .zip of 16-bit PNG or EXR"


@dataclasses.dataclass(frozen=True)
class Frames:
    """Which frames of a video are used: start, start + stride, ...

    Attributes:
        count: how many.
        start, stride: in frames of the video.
        total: frames of the whole video, if known.
    """

    count: int
    start: int = 0
    stride: int = 1
    total: int | None = None

    def of(self, found: int, what: str) -> range:
        """Which of `found` entries are those of the frames; `what` is for the message.

        Raises:
            InputError: there is neither one per frame of the video nor one per frame that is used.
        """
        if found == self.total:
            return range(self.start, found, self.stride)[: self.count]
        if found == self.count:
            return range(found)
        video, used = f"the video has {self.count}", "exactly the frames that are used"
        if self.total not in (None, self.count):
            video = f"the video has {self.total}, of which {self.count} are used"
            used = "all of them or exactly those that are used"
        raise InputError(f"{what} holds {found} frames, {video}; give one for {used}")


def read_depth(
    path: Path, frames: Frames, encoding: str = "uint16", channel: str = ""
) -> np.ndarray:
    """[T, h, w] of floats or of integers of 16 bits or more, for the T frames that are used.

    Args:
        path: a file or folder as in the module's docstring.
        frames: which.
        encoding: of PNG: 'uint16' (the value) or 'float16_bits' (the bits of a half float).
        channel: of EXR, see `exr.read_exr`.

    Raises:
        InputError: one line for an unreadable or unsuitable file or a wrong number of frames.
    """

    def png(name: str, content: bytes) -> np.ndarray:
        pixels = _png_16(name, content)
        return pixels.view(np.float16) if encoding == "float16_bits" else pixels

    decoders = {".png": png, ".exr": partial(decode_exr, channel=channel)}
    array = _read(path, frames, ("depth", "depths"), decoders, "depth")
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind not in "fui" or (kind in "ui" and size == 1):
        raise InputError(
            f"{path} holds {array.dtype}, expected floats or integers of 16 bits or more; "
            "8 bits are too coarse for depth"
        )
    return array


def read_mask(path: Path, frames: Frames) -> np.ndarray:
    """[T, h, w] bool, True where the stored value is not 0 (of 8-bit pictures: at least 128).

    As `read_depth`, but PNG of any kind, arrays called mask or masks, and one single picture (a
    file, or [h, w]) for all frames.

    Raises:
        InputError: as `read_depth`.
    """
    if path.suffix.lower() == ".png" and path.is_file():
        return np.repeat(_png_mask(str(path), path.read_bytes())[None], frames.count, 0)
    array = _read(path, frames, ("mask", "masks"), {".png": _png_mask}, "mask", single=True)
    if array.dtype.kind not in "fuib" or not np.isfinite(array).all():
        raise InputError(f"{path} holds {array.dtype}, expected finite numbers, 0 for False")
    return array != 0


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of the frames of a depth file, without reading all of it.

    Raises:
        InputError: as `read_depth`.
    """
    if path.suffix.lower() != ".npz":
        with _entries(path, (".exr", ".png")) as (names, content):
            if not names:
                raise InputError(f"{path} holds no EXR; {FORMATS}")
            name, decode = names[0], _png_16 if names[0].lower().endswith(".png") else decode_exr
            return decode(f"{path}/{name}", content(name)).shape
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n.removesuffix(".npy") for n in archive.namelist()]
            with archive.open(_key(path, names, ("depth", "depths")) + ".npy") as file:
                version = np.lib.format.read_magic(file)
                headers = {(1, 0): np.lib.format.read_array_header_1_0}
                read = headers.get(version, np.lib.format.read_array_header_2_0)
                shape = read(file)[0]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"depth {path} cannot be read ({error}); write it anew") from None
    height, width = _without_channel(shape, path)[1:]
    return height, width


def natural(name: str) -> list:
    """Sort key that puts f2 before f10."""
    return [(int(s), "") if s.isdigit() else (-1, s) for s in re.split(r"(\d+)", name)]


def _read(
    path: Path,
    frames: Frames,
    keys: tuple[str, ...],
    decoders: dict[str, Callable[[str, bytes], np.ndarray]],
    what: str,
    single: bool = False,
) -> np.ndarray:
    """[T, h, w] of any type."""
    if not path.exists():
        raise InputError(f"{what} {path} does not exist; {FORMATS}")
    if path.is_dir() or path.suffix.lower() == ".zip":
        return _read_pictures(path, frames, decoders)
    if path.suffix.lower() not in (".npz", ".npy"):
        raise InputError(f"{what} {path} is of an unknown format; {FORMATS}")
    array = _load(path, keys, what)
    if single and array.ndim == 2:
        return np.repeat(array[None], frames.count, 0)
    array = array.reshape(_without_channel(array.shape, path))
    chosen = frames.of(len(array), str(path))
    return array[chosen.start : chosen.stop : chosen.step]


def _load(path: Path, keys: tuple[str, ...], what: str) -> np.ndarray:
    try:
        with open(path, "rb") as file:  # opened here: numpy leaves a broken archive open
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            with loaded:
                return loaded[_key(path, loaded.files, keys)]
    except InputError:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, MemoryError) as error:
        raise InputError(
            f"{what} {path} cannot be read ({error}); write it with numpy.savez(path, {keys[0]}=...)"
        ) from None
    except Exception as error:  # zlib.error and the like, from a damaged archive
        raise InputError(f"{what} {path} is damaged ({error}); write it anew") from None


def _key(path: Path, names: list[str], keys: tuple[str, ...]) -> str:
    for name in keys:
        if name in names:
            return name
    if len(names) == 1:
        return names[0]
    listed = ", ".join(names[:6]) or "nothing"
    raise InputError(
        f"{path} holds {listed}; expected an array called {' or '.join(keys)}, or only one"
    )


def _without_channel(shape: tuple[int, ...], path: Path) -> tuple[int, ...]:
    """[T, h, w] of a shape that may have one channel too."""
    found = tuple(shape)
    if len(found) == 4 and 1 in (found[1], found[3]):
        found = (found[0], *found[2:]) if found[1] == 1 else found[:3]
    if len(found) != 3 or 0 in found:
        raise InputError(f"{path} has shape {tuple(shape)}, expected [frames, height, width]")
    return found


@contextmanager
def _entries(
    path: Path, suffixes: tuple[str, ...]
) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """Names of the pictures in a folder or archive, in order, and what gives their bytes."""

    def chosen(names) -> list[str]:
        names = [n for n in names if Path(n).suffix.lower() in suffixes and n[0] != "."]
        return sorted(names, key=natural)

    if path.is_dir():
        yield chosen(f.name for f in path.iterdir()), lambda name: (path / name).read_bytes()
        return
    try:
        with zipfile.ZipFile(path) as archive:
            yield chosen(archive.namelist()), archive.read
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read ({error}); {FORMATS}") from None


def _read_pictures(path: Path, frames: Frames, decoders: dict) -> np.ndarray:
    kind = "folder" if path.is_dir() else "archive"
    listed = " or ".join(s[1:].upper() for s in decoders)
    with _entries(path, tuple(decoders)) as (names, content):
        found = {Path(n).suffix.lower() for n in names}
        if not names:
            raise InputError(f"{kind} {path} holds no {listed}; {FORMATS}")
        if len(found) > 1:
            raise InputError(f"{kind} {path} holds both {listed}; expected one kind of picture")
        decode = decoders[found.pop()]
        pictures = []
        for index in frames.of(len(names), f"{kind} {path}"):  # no others are read
            picture = decode(f"{path}/{names[index]}", content(names[index]))
            if pictures and picture.shape != pictures[0].shape:
                raise InputError(
                    f"{path}/{names[index]} is {_size(picture)}, the first is {_size(pictures[0])} "
                    "(height x width); give pictures of one size"
                )
            pictures.append(picture)
    return np.stack(pictures)


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[0]}x{picture.shape[1]}"


def _png_16(name: str, content: bytes) -> np.ndarray:
    """[h, w] uint16."""
    mode, pixels = _png(name, content, "16-bit PNG")
    # Pillow gives 16-bit grey as I;16, older versions as I; colour of 16 bits is cut to 8.
    if not mode.startswith("I") or pixels.min() < 0 or pixels.max() > 65535:
        raise InputError(
            f"{name} is a picture of type {mode}, expected 16-bit grey; 8 bits or colour are not "
            "depth"
        )
    return pixels.astype(np.uint16)


def _png_mask(name: str, content: bytes) -> np.ndarray:
    """[h, w] bool."""
    mode, pixels = _png(name, content, "PNG")
    if pixels.ndim == 3:
        pixels = pixels[..., :3].max(-1)
    return pixels >= (128 if pixels.dtype == np.uint8 and mode != "P" else 1)


def _png(name: str, content: bytes, what: str) -> tuple[str, np.ndarray]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.mode, np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{name} cannot be read ({error}); write it anew as {what}") from None

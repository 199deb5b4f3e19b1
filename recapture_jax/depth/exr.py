"""One picture of depth from an OpenEXR file, half or float.

Read with the OpenEXR package of the Academy Software Foundation, which is not required for anything
else: `pip install OpenEXR`.
"""

import tempfile
from pathlib import Path

import numpy as np

from recapture_jax.errors import InputError

_NAMES = ("z", "depth")  # of a channel that is depth, after the name of its layer


def read_exr(path: str | Path, channel: str = "") -> np.ndarray:
    """[h, w] float16, float32 or uint32.

    Args:
        path: the file.
        channel: its name; if empty, the one called Z or depth (in any layer), or the only one.

    Raises:
        InputError: the package is not installed, the file cannot be read, or no channel can be told.
    """
    try:
        import OpenEXR
    except ImportError:
        raise InputError(
            f"{path}: EXR needs the package OpenEXR, which is not installed; pip install OpenEXR, "
            "or convert the depth to npz"
        ) from None
    try:
        channels = OpenEXR.File(str(path), separate_channels=True).channels()
        name = _choose(path, list(channels), channel)
        pixels = np.asarray(channels[name].pixels)
    except InputError:
        raise
    except Exception as error:  # of the library: of any type
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read as EXR ({reason}); write it anew") from None
    if pixels.ndim != 2:
        raise InputError(f"{path}: channel {name} has shape {pixels.shape}, expected one picture")
    return pixels


def decode_exr(name: str, content: bytes, channel: str = "") -> np.ndarray:
    """As `read_exr`, of a file's bytes; `name` is for messages."""
    with tempfile.TemporaryDirectory() as folder:  # the library reads files by name only
        file = Path(folder) / Path(name).name
        file.write_bytes(content)
        try:
            return read_exr(file, channel)
        except InputError as error:
            raise InputError(str(error).replace(str(file), name)) from None


def _choose(path: str | Path, names: list[str], wanted: str) -> str:
    listed = ", ".join(sorted(names)[:8]) or "none"
    if wanted:
        if wanted in names:
            return wanted
        raise InputError(f"{path} has no channel {wanted!r}; it has {listed}")
    found = [n for n in names if n.rsplit(".", 1)[-1].lower() in _NAMES]
    found = names if len(names) == 1 else found
    if len(found) != 1:
        raise InputError(
            f"{path} has the channels {listed}; expected one called Z or depth, or only one: name "
            "it (config.depth.channel)"
        )
    return found[0]

"""Camera paths to and from the files of other tools; the only place where conventions are converted.

`read_path(file, format)` gives a `PosePath` (OpenCV poses with their unit), `write_path` writes one.
The module of each format states its conventions. Without a format it is told from the content:

    a folder, images.txt, images.bin    colmap
    .npz                                npz
    .json      by its fields: camera_path, frames, keyframes, or frame0
    .txt       8 numbers per line: tum; 19: realestate10k

Three-line txt files cannot be told apart and are refused without a format, and so is a txt file that
fits two of them.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from recapture_jax.camera.formats import (
    arrays,
    colmap,
    keyframes,
    lines,
    nerfstudio,
    parsing,
    recammaster,
    three_lines,
)
from recapture_jax.camera.formats.nerfstudio import nerfstudio_camera_path
from recapture_jax.camera.path import PosePath
from recapture_jax.errors import InputError

__all__ = [
    "FORMATS",
    "detect",
    "nerfstudio_camera_path",
    "parse_format",
    "read_as",
    "read_path",
    "write_path",
]

_SPECS = ("recammaster camera=cam03", "npz convention=w2c", "viewcrafter elevation=10")


@dataclass(frozen=True)
class Format:
    """A file format: how it is read and written, and the options of both."""

    read: Callable[..., PosePath]
    write: Callable[..., None]
    what: str
    read_options: tuple[str, ...] = ()
    write_options: tuple[str, ...] = ()


def _three_lines(tool: str) -> Format:
    elevation = ("elevation",) if three_lines.DIALECTS[tool].elevated else ()
    return Format(
        partial(three_lines.read, tool=tool),
        partial(three_lines.write, tool=tool),
        f"three-line txt of {tool}: {', '.join(three_lines.DIALECTS[tool].order)}",
        ("num_frames", *elevation),
        elevation,
    )


FORMATS: dict[str, Format] = {
    "keyframes": Format(keyframes.read, keyframes.write, "keyframe JSON of this package"),
    "nerfstudio": Format(
        nerfstudio.read_camera_path,
        nerfstudio.write_camera_path,
        "camera path JSON of the nerfstudio viewer",
        write_options=("size", "fps"),
    ),
    "transforms": Format(
        nerfstudio.read_transforms,
        nerfstudio.write_transforms,
        "transforms.json of nerfstudio, Instant NGP, SEVA",
        write_options=("size",),
    ),
    "colmap": Format(colmap.read, colmap.write, "COLMAP model: folder of cameras and images"),
    "realestate10k": Format(
        lines.read_realestate10k,
        lines.write_realestate10k,
        "RealEstate10K and CameraCtrl txt: 19 numbers per line",
        write_options=("fps",),
    ),
    "tum": Format(
        lines.read_tum, lines.write_tum, "TUM txt: time t q per line", write_options=("fps",)
    ),
    "recammaster": Format(
        recammaster.read,
        recammaster.write,
        "camera_extrinsics.json of ReCamMaster",
        ("camera",),
        ("camera",),
    ),
    "npz": Format(
        arrays.read, arrays.write, "npz of this package, ViPE, GEN3C, MegaSaM", ("convention",)
    ),
    **{tool: _three_lines(tool) for tool in three_lines.DIALECTS},
}


def read_path(path: str | Path, format: str | None = None, **options) -> PosePath:
    """A camera path from a file; see the modules for what each format may and must hold.

    Args:
        path: a file, or the folder of a COLMAP model.
        format: a key of FORMATS; None to tell it from the content, see above.
        **options: `camera` (recammaster), `num_frames` (three-line txt), `elevation` in degrees
            (viewcrafter), `convention` c2w or w2c (npz); an option of None is left out.

    Raises:
        InputError: one line with file, line or field and what was expected there; or for an option
            that the format does not have.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"{path} does not exist: expected a camera file")
    name = detect(path) if format is None else _known(format)
    options = _options(name, FORMATS[name].read_options, options)
    return FORMATS[name].read(path, **options)


def read_as(path: str | Path, spec: str = "", num_frames: int | None = None):
    """A camera path for a clip, its format in words: `(format, PosePath)`.

    Args:
        path: as in `read_path`.
        spec: as in `parse_format`.
        num_frames: of the clip, for formats that are spread over one; the others keep their poses.

    Raises:
        InputError: as `read_path` and `parse_format`.
    """
    path = Path(path).expanduser()
    name, options = parse_format(spec)
    if name is None and path.exists():
        name = detect(path)
    if name in FORMATS and "num_frames" in FORMATS[name].read_options:
        options["num_frames"] = num_frames
    return name, read_path(path, name, **options)


def parse_format(spec: str) -> tuple[str | None, dict[str, str | float]]:
    """Format (None: to be told from the content) and options of "[format] [option=value ...]".

    Such as "recammaster camera=cam03", "npz convention=w2c" or "viewcrafter elevation=10".

    Raises:
        InputError: for a format or an option that there is not, or a value that is no number.
    """
    words = spec.split()
    name = _known(words.pop(0)) if words and "=" not in words[0] else None
    allowed = {o for f in FORMATS.values() for o in f.read_options} - {"num_frames"}
    options = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in allowed or not value:
            raise InputError(
                f"cannot read {word!r} in the format {spec!r}: expected {' or '.join(_SPECS)}"
            )
        options[key] = (
            parsing.numbers([value], f"format {spec!r}", [key])[0]
            if (key == "elevation")
            else value
        )
    return name, options


def write_path(
    path: PosePath, file: str | Path, format: str, *, overwrite: bool = False, **options
) -> None:
    """Writes a camera path.

    Args:
        path: the poses.
        file: the new file; for colmap the new folder.
        format: a key of FORMATS.
        overwrite: whether an existing file (never a folder) may be replaced.
        **options: `size` (height, width) and `fps`, `camera` or `elevation`, see FORMATS.

    Raises:
        InputError: when the format cannot say what the path does, or the file exists.
    """
    name, file = _known(format), Path(file).expanduser()
    if file.exists() and not (overwrite and file.is_file()):
        raise InputError(f"{file} exists: expected a new file; remove it or choose another name")
    if not file.parent.is_dir():
        raise InputError(f"{file.parent} does not exist: expected a folder to write into")
    FORMATS[name].write(path, file, **_options(name, FORMATS[name].write_options, options))


def detect(path: Path) -> str:
    """The format of a file from its content, by the rules above.

    Raises:
        InputError: for a file that fits none or several of them.
    """
    suffix = path.suffix.lower()
    if path.is_dir() or path.name in ("images.txt", "images.bin"):
        return "colmap"
    if suffix == ".npz":
        return "npz"
    if suffix == ".json":
        return _detect_json(path)
    if suffix == ".txt":
        return _detect_txt(path)
    raise InputError(
        f"{path}: cannot tell the format of a {suffix or 'file without suffix'}: expected .json, "
        f".txt, .npz or a folder, or a format, one of {', '.join(FORMATS)}"
    )


def _detect_json(path: Path) -> str:
    data = parsing.load_json(path)
    marks = {"camera_path": "nerfstudio", "frames": "transforms"}
    marks |= {"keyframes": "keyframes", "frame0": "recammaster"}
    for mark, name in marks.items():  # a nerfstudio path has keyframes too, and is the first
        if mark in data:
            return name
    raise InputError(
        f"{path} holds {', '.join(list(data)[:6]) or 'nothing'}: expected one of the fields "
        f"{', '.join(marks)}"
    )


def _detect_txt(path: Path) -> str:
    rows = [line.replace(",", " ").split() for line in parsing.read_text(path).splitlines()]
    rows = [row for row in rows if row and not row[0].startswith("#")]
    if len(rows) > 1 and len(rows[0]) == 1:
        rows = rows[1:]
    lengths = {len(row) for row in rows}
    if len(rows) == 3:
        tools = ", ".join(three_lines.DIALECTS)
        raise InputError(
            f"{path} has three lines, which {tools} read in different orders and signs: expected a "
            "format, one of them, or tum or realestate10k"
        )
    if lengths == {8} or lengths == {19}:
        return "tum" if lengths == {8} else "realestate10k"
    listed = ", ".join(map(str, sorted(lengths)[:5]))
    raise InputError(
        f"{path} has lines of {listed or 'no'} numbers: expected 8 (tum) or 19 (realestate10k); "
        "give the format if it is one of them"
    )


def _known(format: str) -> str:
    if format not in FORMATS:
        near = difflib.get_close_matches(str(format), FORMATS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"unknown format {format!r}: expected one of {', '.join(FORMATS)}{hint}")
    return format


def _options(name: str, allowed: tuple[str, ...], options: dict) -> dict:
    options = {key: value for key, value in options.items() if value is not None}
    for key in options:
        if key not in allowed:
            listed = f"only {', '.join(allowed)}" if allowed else "none"
            raise InputError(f"option {key} means nothing for {name}: expected {listed}")
    return options

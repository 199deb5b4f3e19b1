"""Says what a camera file does, or exactly what is wrong with it.

    python -m recapture_jax.camera.validate --path=FILE [--format=FORMAT] [--num_frames=T]

Prints the motion in plain words with its units, or one line with file, line or field and what was
expected there. Exit codes: 0 the file is good, 1 it is not (or the command line is not).
"""

import sys
from pathlib import Path

from absl import app, flags

from recapture_jax.camera.describe import describe
from recapture_jax.camera.formats import FORMATS, detect, read_path
from recapture_jax.camera.formats.three_lines import DIALECTS
from recapture_jax.camera.path import resample
from recapture_jax.errors import InputError

_PATH = flags.DEFINE_string("path", None, "The camera file, or the folder of a COLMAP model.")
_FORMAT = flags.DEFINE_string(
    "format", None, f"Its format, one of {', '.join(FORMATS)}; by default told from the content."
)
_NUM_FRAMES = flags.DEFINE_integer("num_frames", None, "Frames of the clip, to resample to.")
_CAMERA = flags.DEFINE_string("camera", None, "ReCamMaster: which camera, such as cam03.")
_CONVENTION = flags.DEFINE_string("convention", None, "npz: c2w or w2c where the file is silent.")
_ELEVATION = flags.DEFINE_float("elevation", None, "ViewCrafter: of the source camera, degrees.")


def main(argv: list[str]) -> int:
    if len(argv) > 1 or _PATH.value is None:
        wrong = f"unexpected argument {argv[1]!r}" if len(argv) > 1 else "--path is missing"
        return _refuse(f"{wrong}: expected --path=FILE")
    try:
        print(_report())
    except InputError as error:
        return _refuse(str(error))
    return 0


def _report() -> str:
    """The format and the description of the file of the flags."""
    path = Path(_PATH.value).expanduser()
    name = _FORMAT.value or (detect(path) if path.exists() else None)
    options = {"camera": _CAMERA.value, "convention": _CONVENTION.value}
    options["elevation"] = _ELEVATION.value
    if name in DIALECTS:
        options["num_frames"] = _NUM_FRAMES.value
    poses = read_path(path, name, **options)
    if _NUM_FRAMES.value is not None:
        poses = resample(poses, _NUM_FRAMES.value)
    return f"{path} is good, read as {name} ({FORMATS[name].what})\n{describe(poses)}"


def _refuse(message: str) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return 1


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parsing, with one line for what it refuses."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(_refuse(str(error)))


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)

"""Says what a camera file, or a sentence of moves, does; or exactly what is wrong with it.

    python -m recapture_jax.camera.validate --path=FILE [--format=FORMAT] [--num_frames=N]
    python -m recapture_jax.camera.validate --moves="dolly in 0.3 0-24; pan right 15 24-48"

Prints the motion in plain words with its units, or one line with file, line or field and what was
expected there. With --time="freeze 6" (`timing.py`) it also says which frame of a clip of N frames
is seen when. Exit codes: 0 all is good, 2 it is not (or the command line is not).
"""

from pathlib import Path

from absl import flags

from recapture_jax import terminal
from recapture_jax.camera.describe import describe
from recapture_jax.camera.formats import FORMATS, read_as
from recapture_jax.camera.moves import build_trajectory, parse_moves
from recapture_jax.camera.path import resample
from recapture_jax.camera.pinhole import intrinsics_from_fov
from recapture_jax.camera.timing import describe_time, source_frames
from recapture_jax.errors import InputError

_PATH = flags.DEFINE_string("path", None, "The camera file, or the folder of a COLMAP model.")
_MOVES = flags.DEFINE_string("moves", None, "Instead of a file: a sentence of camera moves.")
_FORMAT = flags.DEFINE_string(
    "format",
    "",
    f"Format of the file, one of {', '.join(FORMATS)}, by default told from its content; then its "
    "options, as in 'recammaster camera=cam03'.",
)
_NUM_FRAMES = flags.DEFINE_integer("num_frames", None, "Frames of the clip, to resample to.")
_TIME = flags.DEFINE_string("time", None, "Which frame of the clip is seen when: 'freeze 6'.")
_LEAST_FRAMES = 25  # of a sentence, if it says nothing of frames


def main() -> str:
    """The description of what the flags say."""
    if (_PATH.value is None) == (_MOVES.value is None):
        wrong = "--path is missing" if _PATH.value is None else "--path and --moves were given"
        raise InputError(f"{wrong}: expected --path=FILE, or --moves=... for a sentence of moves")
    if _NUM_FRAMES.value is not None and _NUM_FRAMES.value < 1:
        raise InputError(f"--num_frames={_NUM_FRAMES.value}: expected at least 1")
    if _TIME.value is not None and _NUM_FRAMES.value is None:
        raise InputError("--time without --num_frames: expected the frames of the clip too")
    count, times = _NUM_FRAMES.value, []
    if _TIME.value is not None:
        times = ["time:", *(f"  {line}" for line in describe_time(_TIME.value, count))]
        count = len(source_frames(_TIME.value, count))
    said = _sentence(_MOVES.value, count) if _PATH.value is None else _file(_PATH.value, count)
    return "\n".join([said, *times])


def _file(name: str, count: int | None) -> str:
    path = Path(name).expanduser()
    found, poses = read_as(path, _FORMAT.value, count)
    if count is not None:
        poses = resample(poses, count)
    return f"{path} is good, read as {found} ({FORMATS[found].what})\n{describe(poses)}"


def _sentence(moves: str, count: int | None) -> str:
    if _FORMAT.value:
        raise InputError(f"--format={_FORMAT.value!r} is of a file: expected none with --moves")
    ranges = [frame for move in parse_moves(moves) for frame in move.span or () if frame]
    count = count or max([_LEAST_FRAMES, *(frame + 1 for frame in ranges)])
    film = build_trajectory(moves, count, intrinsics_from_fov(40.0, 9, 16), 1.0, name=moves)
    return f"the moves are good\n{describe(film)}"


if __name__ == "__main__":
    terminal.run(main, "--path=FILE")

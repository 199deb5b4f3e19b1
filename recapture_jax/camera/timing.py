"""Which frame of the source is shown when: `source_frames("play 0-12; freeze 12 for 24", 25)`.

Clauses separated by ";" (or a comma, or a new line), one after the other:

    play             the whole clip
    play 3-12        source frames 3 to 12, one each; "12-3" plays them backwards, "3-end" to the end
    freeze 12        source frame 12 for as many frames as the clip has (bullet time)
    freeze 12 for 8  ... for 8 frames

The result may be longer or shorter than the clip. Frames, depth and poses of the source are indexed
with it, and a camera move then runs over the new frames: while time is frozen the camera goes on.
"""

import re

import numpy as np

from recapture_jax.errors import InputError


def source_frames(spec: str, num_source_frames: int) -> np.ndarray:
    """Indices `[T]` of the source frames shown in the T frames of the result.

    Args:
        spec: see the module's docstring.
        num_source_frames: of the clip.

    Raises:
        InputError: for a clause that cannot be read, or a frame that the clip does not have.
    """
    clauses = [clause.strip() for clause in re.split(r"[;,\n]", spec.lower()) if clause.strip()]
    if not clauses:
        raise InputError("no time given: expected play or freeze, such as 'freeze 12'")
    return np.concatenate([_clause(clause, num_source_frames) for clause in clauses])


def _clause(clause: str, count: int) -> np.ndarray:
    match = re.fullmatch(r"play(?: +([0-9]{1,7}|end)-([0-9]{1,7}|end))?", clause)
    if match:
        first, last = (_frame(text, count, clause) for text in (match[1] or "0", match[2] or "end"))
        return np.arange(first, last + 1) if last >= first else np.arange(first, last - 1, -1)
    match = re.fullmatch(r"freeze +([0-9]{1,7}|end)(?: +for +([0-9]{1,7}))?", clause)
    if match:
        length = int(match[2]) if match[2] else count
        if length < 1:
            raise InputError(f"time {clause!r} lasts 0 frames: expected at least 1")
        return np.full(length, _frame(match[1], count, clause))
    raise InputError(
        f"cannot read the time {clause!r}: expected play, play 3-12, freeze 12 or freeze 12 for 8"
    )


def _frame(text: str, count: int, clause: str) -> int:
    frame = count - 1 if text == "end" else int(text)
    if frame >= count:
        raise InputError(
            f"time {clause!r}: frame {frame} is after the end: expected at most {count - 1}, the "
            f"last of {count} frames"
        )
    return frame

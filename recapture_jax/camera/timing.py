"""Which frame of the source is shown when: `source_frames("play 0-12; freeze 12 for 24", 25)`.

Clauses separated by ";" (or a comma, or a new line), one after the other:

    play             the whole clip
    play 3-12        source frames 3 to 12, one each; "12-3" plays them backwards, "3-end" to the end
    play 3-12 for 20 the same spread evenly over 20 frames: slow motion (frames repeat, none is made
                     up), or with fewer frames than there are a time lapse (frames are left out)
    freeze 12        source frame 12 for as many frames as the clip has (bullet time)
    freeze 12 for 8  ... for 8 frames

The result may be longer or shorter than the clip. Frames, depth and poses of the source are indexed
with it, and a camera move then runs over the new frames: while time is frozen the camera goes on.
Frames are those of the clip as it is read (after `video.start` and `video.stride`), from 0.
"""

import re
from dataclasses import dataclass

import numpy as np

from recapture_jax.errors import InputError

MOST_FRAMES = 10**4  # of a result, so that a slip of the finger does not fill the memory
_NUMBER = "([0-9]{1,7}|end)"
_LENGTH = "(?: +for +([0-9]{1,7}))?"
_END = -1


@dataclass(frozen=True)
class Clause:
    """One stretch of the result.

    Attributes:
        first, last: source frames it begins and ends with; -1 is the last of the clip.
        length: frames of the result; None: one per source frame, of a freeze as many as the clip.
        frozen: whether time stands still.
        text: as it was written.
    """

    first: int
    last: int
    length: int | None
    frozen: bool
    text: str

    def frames(self, count: int) -> np.ndarray:
        """Source frames shown, `[n]`, of a clip of `count` frames."""
        first, last = self._ends(count)
        return np.floor(np.linspace(first, last, self.num_frames(count)) + 0.5).astype(np.int64)

    def num_frames(self, count: int) -> int:
        """Frames of the result for a clip of `count` frames."""
        first, last = self._ends(count)
        return self.length or (count if self.frozen else abs(last - first) + 1)

    def _ends(self, count: int) -> tuple[int, int]:
        return self._within(self.first, count), self._within(self.last, count)

    def _within(self, frame: int, count: int) -> int:
        if frame >= count:
            raise InputError(
                f"time {self.text!r}: frame {frame} is after the end: expected at most {count - 1}, "
                f"the last of {count} frames"
            )
        return count - 1 if frame == _END else frame


def parse_time(spec: str) -> tuple[Clause, ...]:
    """The clauses of a time, see the module's docstring.

    Raises:
        InputError: for a clause that cannot be read.
    """
    clauses = [clause.strip() for clause in re.split(r"[;,\n]", spec.lower()) if clause.strip()]
    if not clauses:
        raise InputError("no time given: expected play or freeze, such as 'freeze 12'")
    return tuple(_clause(clause) for clause in clauses)


def source_frames(spec: str, num_source_frames: int) -> np.ndarray:
    """Indices `[T]` of the source frames shown in the T frames of the result.

    Args:
        spec: see the module's docstring.
        num_source_frames: of the clip.

    Raises:
        InputError: for a clause that cannot be read, a frame that the clip does not have, or a
            result of more than `MOST_FRAMES` frames.
    """
    clauses = parse_time(spec)
    total = sum(clause.num_frames(num_source_frames) for clause in clauses)
    if total > MOST_FRAMES:
        raise InputError(f"time {spec!r} lasts {total} frames: expected at most {MOST_FRAMES}")
    return np.concatenate([clause.frames(num_source_frames) for clause in clauses])


def describe_time(spec: str, num_source_frames: int) -> list[str]:
    """Which frames of the result show what, a line per clause.

    Raises:
        InputError: as `source_frames`.
    """
    source_frames(spec, num_source_frames)
    lines, start = [], 0
    for clause in parse_time(spec):
        shown = clause.frames(num_source_frames)
        lines.append(f"{_span(start, start + len(shown) - 1)}: {_shows(clause, shown)}")
        start += len(shown)
    return lines


def _span(first: int, last: int) -> str:
    return f"frame {first}" if first == last else f"frames {first} to {last}"


def _shows(clause: Clause, shown: np.ndarray) -> str:
    """What a stretch of the result shows, in words."""
    first, last = int(shown[0]), int(shown[-1])
    if clause.frozen:
        return f"time stands still in source frame {first}"
    what = f"source {_span(first, last)}"
    what += ", backwards" if last < first else ""
    wide = abs(last - first) + 1
    if len(shown) > wide:
        return f"{what}, {len(shown) / wide:.3g} times slower (frames repeat)"
    return f"{what}, {wide / len(shown):.3g} times faster" if len(shown) < wide else what


def _clause(text: str) -> Clause:
    match = re.fullmatch(f"play(?: +{_NUMBER}-{_NUMBER})?{_LENGTH}", text)
    if match:
        first, last, frozen = match[1] or "0", match[2] or "end", False
    else:
        match = re.fullmatch(f"freeze +({_NUMBER}){_LENGTH}", text)
        if match is None:
            raise InputError(
                f"cannot read the time {text!r}: expected play, play 3-12, freeze 12, or one of them "
                "and its length such as 'for 8'"
            )
        first = last = match[1]
        frozen = True
    length = int(match[3]) if match[3] else None
    if length == 0:
        raise InputError(f"time {text!r} lasts 0 frames: expected at least 1")
    frames = (_END if frame == "end" else int(frame) for frame in (first, last))
    return Clause(*frames, length, frozen, text)

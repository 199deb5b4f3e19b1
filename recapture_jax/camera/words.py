"""Film words: what may be said about a camera move, and how it is read.

A sentence is a list of clauses separated by ";" (or a comma, or a new line), each of them

    [start] name [direction] [amount] [easing] [first-last]

with everything after the name in any order. `moves.py` has the table of names and what they do.

Time. A clause without a frame range runs over the whole clip. "0-24" lets it begin in frame 0 and
be complete in frame 24, "24-end" runs to the last frame; before its range a move has not begun,
after it it stays complete. So ranges that follow one another make a sequence, ranges that overlap
run together and add up, and a range of one frame ("12-12") is a cut. "start" is short for the range
0-0: the move is complete from the first frame on, and the clip begins away from the source camera.
Easing is along the move's own range.

A name with a colon is a path of another tool (`presets.py`), for example "recammaster:arc_left";
one of them fits into a sentence, and the words of the sentence act on top of it.
"""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from recapture_jax.camera.easing import EASINGS
from recapture_jax.camera.presets import PRESETS
from recapture_jax.errors import InputError


@dataclass(frozen=True)
class Word:
    """What a move's name allows: directions and their sign, first one the default; the amount."""

    directions: dict[str, int]
    default: float
    unit: str
    below: float = math.inf  # exclusive bound on the size of the signed amount, see _check_amount


SIDEWAYS, UPRIGHT = {"right": 1, "left": -1}, {"up": 1, "down": -1}
_INOUT = {"in": 1, "out": -1}
WORDS = {
    "static": Word({}, 0.0, "none"),
    "pan": Word(SIDEWAYS, 15.0, "degrees"),
    "tilt": Word(UPRIGHT, 10.0, "degrees"),
    "roll": Word({"cw": 1, "ccw": -1}, 10.0, "degrees"),
    "zoom": Word(_INOUT, 1.5, "focal factor"),
    "dolly": Word(_INOUT, 0.3, "pivot depths", below=1.0),
    "truck": Word(SIDEWAYS, 0.2, "pivot depths"),
    "pedestal": Word(UPRIGHT, 0.2, "pivot depths"),
    "orbit": Word(SIDEWAYS | UPRIGHT, 20.0, "degrees"),
    "crane": Word(UPRIGHT, 0.3, "pivot depths", below=1.0),
    "dolly_zoom": Word(_INOUT, 0.3, "pivot depths", below=1.0),
}
_ALIASES = {"arc": "orbit", "jib": "crane", "boom": "pedestal", "vertigo": "dolly_zoom"}
_ALIASES |= {"dollyzoom": "dolly_zoom", "locked_off": "static", "push": "dolly", "pull": "dolly"}
_ALIASES |= {"track": "truck", "slide": "truck", "circle": "orbit"}
_TURNS = "pan, tilt and roll turn the camera where it is, orbit goes around the subject"
_MEANT = {  # by words that could be several moves
    "move": "truck moves sideways, pedestal up or down, dolly in or out",
    **dict.fromkeys(("rotate", "turn"), _TURNS),
}
_SYNONYMS = dict.fromkeys(("forward", "forwards"), "in")
_SYNONYMS |= dict.fromkeys(("back", "backward", "backwards"), "out")
_SYNONYMS |= {"clockwise": "cw", "counterclockwise": "ccw", "anticlockwise": "ccw"}


@dataclass(frozen=True)
class Move:
    """One film move.

    Attributes:
        name: a word of `moves.py`'s table or a key of `presets.PRESETS`.
        direction: one of the move's directions; '' for static.
        amount: degrees, pivot depths, or the focal factor of a zoom; against the direction if
            negative.
        easing: a key of EASINGS.
        span: frames in which it begins and is complete (None: the last of the clip); None for the
            whole clip.

    Raises:
        InputError: for unknown words or an amount that cannot be filmed.
    """

    name: str
    direction: str
    amount: float
    easing: str = "linear"
    span: tuple[int, int | None] | None = None

    def __post_init__(self):
        if self.easing not in EASINGS:
            raise InputError(_unknown("easing", self.easing, EASINGS))
        if self.is_preset:
            return
        word = WORDS.get(self.name)
        if word is None:
            raise InputError(_unknown("move", self.name, [*WORDS, *_ALIASES]))
        if self.direction not in (word.directions or {"": 0}):
            raise InputError(_bad_direction(self.name, self.direction))
        _check_amount(self)

    @property
    def is_preset(self) -> bool:
        """Whether the name is a path of another tool."""
        return self.name in PRESETS

    def progress(self, num_frames: int) -> np.ndarray:
        """How much of the move is done in each frame, `[T]` in [0, 1].

        Raises:
            InputError: when the frame range ends after the clip.
        """
        share = np.linspace(0.0, 1.0, num_frames)
        if self.span is not None:
            first, last = self.span[0], num_frames - 1 if self.span[1] is None else self.span[1]
            if max(first, last) >= num_frames:
                raise InputError(
                    f"frame range of {str(self)!r} ends in frame {max(first, last)}: expected at "
                    f"most {num_frames - 1}, the last of {num_frames} frames; shorten the range "
                    "or say 'end'"
                )
            share = np.clip(
                (np.arange(num_frames) - first + (last == first)) / max(last - first, 1), 0, 1
            )
        return EASINGS[self.easing](share)

    @property
    def signed(self) -> float:
        """The amount along the positive direction; for zoom, the logarithm of the factor."""
        sign = WORDS[self.name].directions.get(self.direction, 0)
        return sign * (math.log(self.amount) if self.name == "zoom" else self.amount)

    def __str__(self) -> str:
        parts = [self.name, self.direction, f"{self.amount:g}" if self.direction else ""]
        parts.append("" if self.easing == "linear" else self.easing)
        if self.span is not None:
            parts.append(f"{self.span[0]}-{'end' if self.span[1] is None else self.span[1]}")
        return " ".join(part for part in parts if part)


MoveSpec = str | Move | tuple
"""A move as text, as a `Move`, or as a tuple such as ("orbit right", 20, "ease-in-out")."""


def parse_moves(moves: str | Iterable[MoveSpec]) -> tuple[Move, ...]:
    """Moves from words, for example "orbit right 20; dolly in 0.1 ease-in-out".

    Args:
        moves: a sentence, or a list whose items are sentences, `Move`s or tuples
            (name with optional direction, amount[, easing]). In a sentence a direction, an amount
            or an easing left out takes its default (right, up, cw or in; the table's amount;
            linear); in a tuple the amount is required.

    Raises:
        InputError: for an unknown move, direction or easing (with what is allowed and the nearest
            match), a missing or non-finite amount, one that puts the camera at or behind the
            pivot, or a frame range that is no range.
    """
    if isinstance(moves, str):
        clauses = [clause for clause in re.split(r"[;,\n]", moves) if clause.strip()]
        if not clauses:
            raise InputError(
                f"no move given: expected one of {', '.join(WORDS)}, or a list of them"
            )
        return tuple(_parse_clause(clause) for clause in clauses)
    parsed: list[Move] = []
    for item in moves:
        if isinstance(item, Move):
            parsed.append(item)
        elif isinstance(item, str):
            parsed.extend(parse_moves(item))
        else:
            parsed.append(_parse_tuple(item))
    if not parsed:
        raise InputError(f"no move given: expected one of {', '.join(WORDS)}, or a list of them")
    return tuple(parsed)


def _parse_clause(clause: str) -> Move:
    """One move from its clause, see the module's docstring."""
    text = re.sub(r"\bease([ _-]?)(in|out)(?:\1(out))?\b", _hyphenate, clause.lower())
    text = re.sub(r"\bdolly[ _-]zoom\b", "dolly_zoom", text)
    text = re.sub(r"\blocked[ _-]off\b", "locked_off", text)
    first, *tokens = text.split()
    found: dict[str, str | float | tuple] = {}
    if first == "start" and tokens:
        found["frame range"] = (0, 0)
        first, *tokens = tokens
    name = first.replace("-", "_") if ":" in first else _ALIASES.get(first, first)
    if ":" in name and name not in PRESETS:
        raise InputError(_unknown("preset", first, _presets_like(first), clause))
    if name not in WORDS and name not in PRESETS:
        if _is_number(first):
            raise InputError(
                f"no move in {clause.strip()!r}: expected one of {', '.join(WORDS)}; commas separate moves, "
                "the decimal point is a dot"
            )
        told = _unknown("move", first, [*WORDS, *_ALIASES], clause)
        raise InputError(f"{told}; {_MEANT[first]}" if first in _MEANT else told)
    word = WORDS.get(name, Word({}, 0.0, "none"))
    for token in tokens:
        token = _SYNONYMS.get(token, token)
        number = re.fullmatch(r"(.*?)(deg|degrees|°|x)?", token).group(1)
        if token in EASINGS:
            key, value = "easing", token
        elif token in word.directions:
            key, value = "direction", token
        elif _is_number(number):
            key, value = "amount", float(number)
        elif re.fullmatch(r"[0-9]{1,7}-([0-9]{1,7}|end)?", token):
            key, value = "frame range", _span(token, clause)
        elif token in {d for other in WORDS.values() for d in other.directions}:
            raise InputError(_bad_direction(name, token, clause))
        else:
            allowed = [*word.directions, *EASINGS]
            extra = "an amount, a frame range such as 0-24; moves are joined by ';'"
            raise InputError(_unknown("word", token, allowed, clause, extra=extra))
        if key in found:
            raise InputError(f"two values for the {key} in {clause.strip()!r}: expected one")
        found[key] = value
    if not word.directions:
        if "amount" in found:
            raise InputError(
                f"{name} takes no amount in {clause.strip()!r}: expected none, remove it"
            )
        return Move(name, "", 0.0, found.get("easing", "linear"), found.get("frame range"))
    default = "out" if first == "pull" else next(iter(word.directions))
    return Move(
        name,
        found.get("direction", default),
        found.get("amount", word.default),
        found.get("easing", "linear"),
        found.get("frame range"),
    )


def _presets_like(name: str) -> list[str]:
    """The presets of the tool that is meant."""
    tools = dict.fromkeys(preset.partition(":")[0] for preset in PRESETS)
    near = difflib.get_close_matches(name.partition(":")[0], tools, n=1, cutoff=0.0)
    return [preset for preset in PRESETS if preset.startswith(f"{near[0]}:")]


def _span(token: str, clause: str) -> tuple[int, int | None]:
    first, last = token.split("-")
    if not last or (last != "end" and int(last) < int(first)):
        raise InputError(
            f"frame range {token!r} in {clause.strip()!r} is no range: expected first-last such as "
            "0-24, or first-end"
        )
    return int(first), None if last == "end" else int(last)


def _parse_tuple(item: Sequence) -> Move:
    if not isinstance(item, Sequence) or not 1 <= len(item) <= 3 or not isinstance(item[0], str):
        raise InputError(f"cannot read the move {item!r}: expected (name, amount[, easing])")
    move = _parse_clause(item[0])
    if not move.direction and not any(item[1:2]):
        amount = 0.0
    elif len(item) < 2 or item[1] is None:
        raise InputError(f"the move {item!r} has no amount: expected {WORDS[move.name].unit}")
    elif isinstance(item[1], bool) or not isinstance(item[1], int | float | np.number):
        raise InputError(f"the amount {item[1]!r} of {item[0]!r} is not a number")
    else:
        amount = float(item[1])
    easing = item[2] if len(item) > 2 else move.easing
    return Move(move.name, move.direction, amount, easing, move.span)


def _check_amount(move: Move) -> None:
    word, amount = WORDS[move.name], move.amount
    if not math.isfinite(amount):
        raise InputError(f"{move.name} by {amount} is not a finite amount: expected {word.unit}")
    if move.name == "zoom":
        if amount <= 0:
            raise InputError(f"zoom by {amount:g} is impossible: expected a focal factor above 0")
    elif move.name == "crane" and abs(amount) >= word.below:
        raise InputError(
            f"crane by {amount:g} goes past the top of its arc: expected less than 1 pivot depth; "
            "use pedestal to go further"
        )
    elif move.signed >= word.below:
        raise InputError(
            f"{move} puts the camera at or behind the pivot: expected less than 1 pivot depth; "
            "use a smaller amount"
        )


def _hyphenate(match: re.Match) -> str:
    return "-".join(part for part in ("ease", match[2], match[3]) if part)


def _is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True


def _bad_direction(name: str, direction: str, clause: str = "") -> str:
    where = f" in {clause.strip()!r}" if clause else ""
    allowed = " or ".join(WORDS[name].directions if name in WORDS else ()) or "no direction"
    others = [other for other, word in WORDS.items() if direction in word.directions]
    hint = f"; did you mean {' or '.join(f'{o} {direction}' for o in others)}?" if others else ""
    return f"{name} cannot go {direction!r}{where}: expected {allowed}{hint}"


def _unknown(
    kind: str, word: str, allowed: Iterable[str], clause: str = "", extra: str = ""
) -> str:
    allowed = list(allowed)
    where = f" in {clause.strip()!r}" if clause and clause.strip() != word else ""
    near = difflib.get_close_matches(str(word), allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    choices = ", ".join([*allowed, extra] if extra else allowed)
    return f"unknown {kind} {word!r}{where}: expected one of {choices}{hint}"

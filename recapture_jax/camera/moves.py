"""Film moves, from words to cameras: `parse_moves("orbit right 20; dolly in 0.1 ease-in-out")`.

A sentence is a list of moves separated by ";" (or a comma, or a new line), each of them
`name [direction] [amount] [easing]`. All moves of a sentence run together over the whole clip and
add up, whatever their order. Axes are OpenCV (x right, y down, z forward); d is the pivot depth.

| move       | the camera                         | amount            | positive direction         |
|------------|------------------------------------|-------------------|----------------------------|
| static     | does not move                      | -                 | -                          |
| pan        | turns about its vertical axis      | degrees           | right: content goes left   |
| tilt       | turns about its horizontal axis    | degrees           | up: content goes down      |
| roll       | turns about the lens axis          | degrees           | cw: content turns ccw      |
| zoom       | changes focal length, stays put    | focal factor      | in: all grows alike        |
| dolly      | moves along the lens axis          | pivot depths, < 1 | in (+z): near grows faster |
| truck      | moves sideways                     | pivot depths      | right (+x): near goes left |
| pedestal   | moves vertically                   | pivot depths      | up (-y): near goes down    |
| orbit, arc | circles the pivot, looking at it   | degrees           | right (+x, yaw left), up   |
| crane      | rises on an arc about the pivot,   | pivot depths, < 1 | up (-y, tilt down)         |
|            | looking at it; amount = height     |                   |                            |
| dolly_zoom | dollies, and the focal length      | pivot depths, < 1 | in (+z):                   |
|            | keeps the size of what is at d     |                   | f_new / f = (d - dz) / d   |

Each move adds to one channel (a `_Channels` entry) and the channels make the camera in a fixed
order: circle the pivot, then move along the turned axes, then turn the head (pan, tilt, roll).
"""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from recapture_jax.camera import pose
from recapture_jax.camera.pinhole import Camera
from recapture_jax.camera.trajectory import Trajectory
from recapture_jax.errors import InputError

# Progress along a move against time, both from 0 to 1.
EASINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda s: s,
    "ease-in": lambda s: s**2,
    "ease-out": lambda s: 1 - (1 - s) ** 2,
    "ease-in-out": lambda s: s**2 * (3 - 2 * s),
}


@dataclass(frozen=True)
class _Word:
    """What a move's name allows: directions and their sign, first one the default; the amount."""

    directions: dict[str, int]
    default: float
    unit: str
    below: float = math.inf  # exclusive bound on the size of the signed amount, see _check_amount


_SIDEWAYS, _UPRIGHT = {"right": 1, "left": -1}, {"up": 1, "down": -1}
_INOUT = {"in": 1, "out": -1}
_WORDS = {
    "static": _Word({}, 0.0, "none"),
    "pan": _Word(_SIDEWAYS, 15.0, "degrees"),
    "tilt": _Word(_UPRIGHT, 10.0, "degrees"),
    "roll": _Word({"cw": 1, "ccw": -1}, 10.0, "degrees"),
    "zoom": _Word(_INOUT, 1.5, "focal factor"),
    "dolly": _Word(_INOUT, 0.3, "pivot depths", below=1.0),
    "truck": _Word(_SIDEWAYS, 0.2, "pivot depths"),
    "pedestal": _Word(_UPRIGHT, 0.2, "pivot depths"),
    "orbit": _Word(_SIDEWAYS | _UPRIGHT, 20.0, "degrees"),
    "crane": _Word(_UPRIGHT, 0.3, "pivot depths", below=1.0),
    "dolly_zoom": _Word(_INOUT, 0.3, "pivot depths", below=1.0),
}
_ALIASES = {"arc": "orbit", "jib": "crane", "boom": "pedestal", "vertigo": "dolly_zoom"}
_ALIASES |= {"dollyzoom": "dolly_zoom", "locked_off": "static", "push": "dolly", "pull": "dolly"}


@dataclass(frozen=True)
class Move:
    """One film move.

    Attributes:
        name: a key of the table above.
        direction: one of the move's directions; '' for static.
        amount: degrees, pivot depths, or the focal factor of a zoom; against the direction if
            negative.
        easing: a key of EASINGS.

    Raises:
        InputError: for unknown words or an amount that cannot be filmed.
    """

    name: str
    direction: str
    amount: float
    easing: str = "linear"

    def __post_init__(self):
        word = _WORDS.get(self.name)
        if word is None:
            raise InputError(_unknown("move", self.name, [*_WORDS, *_ALIASES]))
        if self.direction not in (word.directions or {"": 0}):
            raise InputError(_bad_direction(self.name, self.direction))
        if self.easing not in EASINGS:
            raise InputError(_unknown("easing", self.easing, EASINGS))
        _check_amount(self)

    @property
    def signed(self) -> float:
        """The amount along the positive direction; for zoom, the logarithm of the factor."""
        sign = _WORDS[self.name].directions.get(self.direction, 0)
        return sign * (math.log(self.amount) if self.name == "zoom" else self.amount)

    def __str__(self) -> str:
        parts = [self.name, self.direction, f"{self.amount:g}" if self.direction else ""]
        parts.append("" if self.easing == "linear" else self.easing)
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
            match), a missing or non-finite amount, or one that puts the camera at or behind the
            pivot.
    """
    if isinstance(moves, str):
        clauses = [clause for clause in re.split(r"[;,\n]", moves) if clause.strip()]
        if not clauses:
            raise InputError(
                f"no move given: expected one of {', '.join(_WORDS)}, or a list of them"
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
        raise InputError(f"no move given: expected one of {', '.join(_WORDS)}, or a list of them")
    return tuple(parsed)


def build_trajectory(
    moves: str | Iterable[MoveSpec],
    num_frames: int,
    intrinsics: jax.Array,
    pivot_depth: float,
    name: str | None = None,
    start_offset: str | Iterable[MoveSpec] | None = None,
) -> Trajectory:
    """The cameras of `moves` over a clip, relative to the source camera of each frame.

    Args:
        moves: as in `parse_moves`.
        num_frames: T; the moves start in frame 0 and are complete in frame T-1.
        intrinsics: `[3, 3]` or `[T, 3, 3]` of the source, pixels.
        pivot_depth: d, the depth of the subject on the lens axis, in the units of the depth map.
        name: label; the moves' words by default.
        start_offset: moves that are already complete in frame 0, for a clip that begins away from
            the source camera; without it frame 0 is the source camera itself.

    Returns:
        A Trajectory of T cameras.

    Raises:
        InputError: as `parse_moves`; also when the moves together reach the pivot, for an empty
            clip, or for a pivot depth that is not finite and positive.
    """
    moves = parse_moves(moves)
    start = parse_moves(start_offset) if start_offset is not None else ()
    if num_frames < 1:
        raise InputError(f"cannot film {num_frames} frames: expected at least 1")
    if not (math.isfinite(pivot_depth) and pivot_depth > 0):
        raise InputError(f"pivot depth {pivot_depth} is impossible: expected a positive number")
    intrinsics = jnp.asarray(intrinsics, jnp.float32)
    if intrinsics.shape not in ((3, 3), (num_frames, 3, 3)):
        raise InputError(
            f"intrinsics have shape {intrinsics.shape}: expected (3, 3) or ({num_frames}, 3, 3)"
        )
    channels = _sum_channels(moves, start, num_frames)
    label = name if name is not None else re.sub(r"[; ]+", "-", "; ".join(map(str, moves)))
    focal = jnp.asarray(_focal_factor(channels), jnp.float32)[:, None, None]
    is_focal = jnp.diag(jnp.array([True, True, False]))[None]
    cameras = Camera(
        intrinsics=jnp.broadcast_to(intrinsics, (num_frames, 3, 3))
        * jnp.where(is_focal, focal, 1.0),
        world_from_camera=_poses(channels, pivot_depth),
    )
    return Trajectory(cameras=cameras, pivot_depth=float(pivot_depth), name=label)


# Channels: one array [T] per degree of freedom, in radians, pivot depths and log focal.
_Channels = dict[str, np.ndarray]
_CHANNEL_NAMES = ("azimuth", "elevation", "height", "truck", "pedestal", "dolly", "dolly_zoom")
_CHANNEL_NAMES += ("pan", "tilt", "roll", "zoom")


def _progress(move: Move, num_frames: int) -> np.ndarray:
    """How much of the move is done in each frame, `[T]` in [0, 1].

    A timed form ("dolly in 0.3 0-24") belongs here: a frame span on Move, read by `_parse_clause`,
    with the move held at 0 before it and at 1 after it.
    """
    return EASINGS[move.easing](np.linspace(0.0, 1.0, num_frames))


def _sum_channels(moves: Sequence[Move], start: Sequence[Move], num_frames: int) -> _Channels:
    channels = {name: np.zeros(num_frames) for name in _CHANNEL_NAMES}
    timed = [(move, _progress(move, num_frames)) for move in moves]
    timed += [(move, np.ones(num_frames)) for move in start]
    for move, progress in timed:
        if move.name == "static":
            continue
        channel = {"crane": "height"}.get(move.name, move.name)
        if move.name == "orbit":
            channel = "azimuth" if move.direction in _SIDEWAYS else "elevation"
        scale = math.pi / 180 if _WORDS[move.name].unit == "degrees" else 1.0
        channels[channel] += move.signed * scale * progress
    dolly = max(channels["dolly"].max(), (channels["dolly"] + channels["dolly_zoom"]).max())
    if dolly >= 1:
        raise InputError(
            f"the moves together dolly in by {dolly:g} pivot depths, to or past the pivot: "
            "expected less than 1 in every frame; reduce dolly or dolly_zoom"
        )
    if np.abs(channels["height"]).max() >= 1:
        raise InputError(
            "the crane moves together go 1 pivot depth or more up or down, past the top of their "
            "arc: expected less; reduce them or use pedestal"
        )
    return channels


def _focal_factor(channels: _Channels) -> np.ndarray:
    """Focal length over the source's, `[T]`.

    dolly_zoom cancels its own approach only: on top of a dolly the subject has the size that the
    dolly alone would give it, which for a lone dolly_zoom is f_new / f = (d - dz) / d.
    """
    before = 1 - channels["dolly"]
    return np.exp(channels["zoom"]) * (before - channels["dolly_zoom"]) / before


def _poses(channels: _Channels, pivot_depth: float) -> jax.Array:
    """`source_from_target` `[T, 4, 4]` float32."""
    angle = {k: jnp.asarray(v, jnp.float32) for k, v in channels.items()}
    rise = jnp.asarray(channels["elevation"] + np.arcsin(channels["height"]), jnp.float32)
    # Orbit right is a yaw to the left about the pivot, orbit up a tilt down about it.
    circle = pose.compose(pose.rotation_y(-angle["azimuth"]), pose.rotation_x(-rise))
    pivot = jnp.array([0.0, 0.0, pivot_depth], jnp.float32)
    source_from_orbit = pose.compose(pose.translation(pivot), circle, pose.translation(-pivot))
    offset = pivot_depth * np.stack(
        [channels["truck"], -channels["pedestal"], channels["dolly"] + channels["dolly_zoom"]], -1
    )
    head = pose.compose(
        pose.rotation_y(angle["pan"]),
        pose.rotation_x(angle["tilt"]),
        pose.rotation_z(angle["roll"]),
    )
    return pose.compose(source_from_orbit, pose.translation(jnp.asarray(offset, jnp.float32)), head)


def _parse_clause(clause: str) -> Move:
    """One move from `name [direction] [amount] [easing]`, the last three in any order."""
    text = re.sub(r"\bease([ _-]?)(in|out)(?:\1(out))?\b", _hyphenate, clause.lower())
    text = re.sub(r"\bdolly[ _-]zoom\b", "dolly_zoom", text)
    text = re.sub(r"\blocked[ _-]off\b", "locked_off", text)
    first, *tokens = text.split()
    name = _ALIASES.get(first, first)
    if name not in _WORDS:
        raise InputError(_unknown("move", first, [*_WORDS, *_ALIASES], clause))
    word = _WORDS[name]
    found: dict[str, str | float] = {}
    for token in tokens:
        number = re.fullmatch(r"(.*?)(deg|degrees|°|x)?", token).group(1)
        if token in EASINGS:
            key, value = "easing", token
        elif token in word.directions:
            key, value = "direction", token
        elif _is_number(number):
            key, value = "amount", float(number)
        elif re.fullmatch(r"\d+-\d+", token):
            raise InputError(
                f"frame range {token!r} in {clause.strip()!r} is not supported: every move runs "
                "over the whole clip; remove it"
            )
        elif token in {d for other in _WORDS.values() for d in other.directions}:
            raise InputError(_bad_direction(name, token, clause))
        else:
            allowed = [*word.directions, *EASINGS]
            raise InputError(_unknown("word", token, allowed, clause, extra="an amount"))
        if key in found:
            raise InputError(f"two values for the {key} in {clause.strip()!r}: expected one")
        found[key] = value
    if not word.directions:
        if "amount" in found:
            raise InputError(f"{name} takes no amount in {clause.strip()!r}: remove it")
        return Move(name, "", 0.0, found.get("easing", "linear"))
    default = "out" if first == "pull" else next(iter(word.directions))
    return Move(
        name,
        found.get("direction", default),
        found.get("amount", word.default),
        found.get("easing", "linear"),
    )


def _parse_tuple(item: Sequence) -> Move:
    if not isinstance(item, Sequence) or not 1 <= len(item) <= 3 or not isinstance(item[0], str):
        raise InputError(f"cannot read the move {item!r}: expected (name, amount[, easing])")
    move = _parse_clause(item[0])
    if move.name == "static" and not any(item[1:2]):
        amount = 0.0
    elif len(item) < 2 or item[1] is None:
        raise InputError(f"the move {item!r} has no amount: expected {_WORDS[move.name].unit}")
    elif isinstance(item[1], bool) or not isinstance(item[1], int | float | np.number):
        raise InputError(f"the amount {item[1]!r} of {item[0]!r} is not a number")
    else:
        amount = float(item[1])
    return Move(move.name, move.direction, amount, item[2] if len(item) > 2 else move.easing)


def _check_amount(move: Move) -> None:
    word, amount = _WORDS[move.name], move.amount
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
    allowed = " or ".join(_WORDS[name].directions) or "no direction"
    others = [other for other, word in _WORDS.items() if direction in word.directions]
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

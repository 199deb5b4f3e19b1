"""What a camera does, in plain words and with its units: `describe(path)`."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from recapture_jax.camera.parts import STILL, find_parts, still_steps
from recapture_jax.camera.path import PosePath, from_trajectory, inverse
from recapture_jax.camera.trajectory import Trajectory

_UNIT = {
    "pivot": "pivot depths",
    "metres": "m",
    "arbitrary": "file units",
}
_UNITS = {
    "pivot": "pivot depths (1 is the distance to the subject in frame 0)",
    "metres": "metres (filmed as they are with metric depth; other depth needs a scale)",
    "arbitrary": "a unit that the file does not say (a scale is needed to film it)",
}
_WAYS = (("right", "left"), ("down", "up"), ("forward", "back"))
_ROLLED = ("rolled clockwise", "rolled counter-clockwise")
_DEGREE = 0.05  # of a turn that is worth a word
_MOST_PARTS = 8  # of a path that is told in parts; one of more is drawn by hand or shaky
_AIM_ERROR = np.radians(0.5)  # how exactly a camera that "keeps looking" at a point does so
_JUMP = 5.0  # a step this many times those beside it is a jump


@dataclass(frozen=True)
class Motion:
    """A path in numbers, in the axes of its frame 0 unless said otherwise.

    Attributes:
        start: `[4, 4]` pose of frame 0; the identity for a path that starts at the source camera.
        offset: `[3]` from the first to the last position: right, down, forward.
        reach: `[3]` largest distance from the first position along each axis, signed.
        length: of the way.
        angles: `[3]` pan (right), tilt (up), roll (clockwise) of the last frame in degrees; pan and
            roll count full turns.
        turned: `[3]` the largest of each angle on the way, signed.
        zoom: focal length of the last frame over that of the first.
        target: point all cameras look at, or None.
        arc: degrees travelled about `target` at a constant distance, or None.
        steps: `[T - 1, 2]` distance and degrees from each frame to the next.
        position, head: `[T, 3]` of each frame, as `offset` and `angles`.
    """

    start: np.ndarray
    offset: np.ndarray
    reach: np.ndarray
    length: float
    angles: np.ndarray
    turned: np.ndarray
    zoom: float
    target: np.ndarray | None
    arc: float | None
    steps: np.ndarray
    position: np.ndarray
    head: np.ndarray


def measure(path: PosePath) -> Motion:
    """The motion of a path."""
    first = path.world_from_camera[0]
    poses = inverse(first) @ path.world_from_camera
    position = poses[:, :3, 3]
    angles = _angles(poses[:, :3, :3])
    steps = inverse(poses[:-1]) @ poses[1:]
    distance = np.linalg.norm(steps[:, :3, 3], axis=-1)
    target = _target(poses)
    arc = None
    if target is not None:
        ray = target - position
        radius = np.linalg.norm(ray, axis=-1)
        if np.ptp(radius) < 0.01 * radius[0]:
            cosine = (ray[1:] * ray[:-1]).sum(-1) / (radius[1:] * radius[:-1])
            arc = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).sum())
    zoom = path.focal_factor
    return Motion(
        start=first if path.anchored else np.eye(4),
        offset=position[-1],
        reach=_largest(position),
        length=float(distance.sum()),
        angles=angles[-1],
        turned=_largest(angles),
        zoom=float(zoom[-1] / zoom[0]),
        target=target,
        arc=arc,
        steps=np.stack([distance, _turn(steps[:, :3, :3])], -1),
        position=position,
        head=angles,
    )


def _angles(rotation: np.ndarray) -> np.ndarray:
    """Pan, tilt, roll `[T, 3]` in degrees of rotations turned in that order, as a film head is."""
    forward, right = rotation[:, :, 2], rotation[:, :, 0]
    pan = np.arctan2(forward[:, 0], forward[:, 2])
    tilt = np.arcsin(np.clip(-forward[:, 1], -1, 1))
    level = np.stack([np.cos(pan), 0 * pan, -np.sin(pan)], -1)  # right of a camera without roll
    down = np.cross(forward, level)
    roll = np.arctan2((right * down).sum(-1), (right * level).sum(-1))
    return np.degrees(np.stack([np.unwrap(pan), tilt, np.unwrap(roll)], -1))


def _turn(rotation: np.ndarray) -> np.ndarray:
    """Degrees `[T]` of rotations; exact for small ones, unlike the arc cosine of the trace."""
    skew = rotation - np.swapaxes(rotation, -1, -2)
    sine = np.linalg.norm(skew, axis=(-2, -1)) / np.sqrt(8)
    cosine = (np.trace(rotation, axis1=-2, axis2=-1) - 1) / 2
    return np.degrees(np.arctan2(sine, cosine))


def _largest(values: np.ndarray) -> np.ndarray:
    """The entry of largest size in each column of `[T, n]`, with its sign."""
    return values[np.abs(values).argmax(0), np.arange(values.shape[1])]


def _target(poses: np.ndarray) -> np.ndarray | None:
    """Where the axes of all cameras meet, if they do so in front of them, turned by 2 degrees."""
    position, forward = poses[:, :3, 3], poses[:, :3, 2]
    apart = np.degrees(np.arccos(np.clip(forward @ forward[0], -1, 1))).max()
    travel = np.ptp(position, axis=0).max()
    if apart < 2 or travel < STILL:
        return None
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]
    target = np.linalg.lstsq(across.sum(0), (across @ position[..., None]).sum(0), rcond=None)[0]
    ray = target[:, 0] - position
    along = (ray * forward).sum(-1)
    off = np.linalg.norm(np.cross(ray, forward), axis=-1)
    meets = (along > 0).all() and (np.arctan2(off, along) < _AIM_ERROR).all()
    # A camera that turns on the spot "meets" itself: the point must be away from the way.
    return target[:, 0] if meets and along.min() > 0.05 * travel else None


def describe(path: PosePath | Trajectory) -> str:
    """What the camera does, in a few lines: frames, units, motion, evenness, what was left out."""
    if isinstance(path, Trajectory):
        path = from_trajectory(path)
    motion = measure(path)
    unit = _UNIT[path.units]
    lines = [
        f"{path.name}: {path.num_frames} frames, translations in {_UNITS[path.units]}",
        *_start(path, motion, unit),
        f"  {_moves(motion, unit)}",
        f"  {_turns(motion)}",
    ]
    if motion.target is not None:
        lines.append(f"  {_aim(motion, unit)}")
    lines.append(f"  {_lens(path.focal_factor, motion)}")
    lines += [f"  {line}" for line in _parts(path, motion, unit)]
    lines += [f"  {line}" for line in (*_holds(path, motion), *_steps(path, motion, unit))]
    lines += [f"  note: {note}" for note in path.notes]
    return "\n".join(lines)


def _start(path: PosePath, motion: Motion, unit: str) -> list[str]:
    """Where frame 0 is."""
    if not path.anchored:
        return ["  frame 0 is taken as the source camera; seen from there, until the last frame:"]
    position, angles = motion.start[:3, 3], _angles(motion.start[None, :3, :3])[0]
    if np.abs(position).max() < STILL and np.abs(angles).max() < _DEGREE:
        return ["  starts at the source camera; seen from there, until the last frame:"]
    stands = _amounts(position, 3, _WAYS, 0.0005)
    looks = _amounts(angles, 1, (("right", "left"), ("up", "down"), _ROLLED), _DEGREE)
    away = [f"stands {', '.join(stands)} {unit} of it"] if stands else []
    away += [f"looks {', '.join(looks)} deg"] if looks else []
    return [
        f"  starts away from the source camera: {' and '.join(away) or 'by a hair'}",
        "  seen from its own frame 0, until the last frame:",
    ]


def _amounts(values, digits: int, words, least: float) -> list[str]:
    """Such as "right 0.20", for each value of at least `least`; words are (positive, negative)."""
    return [
        f"{positive if value > 0 else negative} {abs(value):.{digits}f}"
        for value, (positive, negative) in zip(values, words, strict=True)
        if abs(value) >= least
    ]


def _moves(motion: Motion, unit: str) -> str:
    size = max(np.abs(motion.reach).max(), motion.length)
    if size < STILL:
        return "does not move"
    digits = 3 if size < 100 else 1
    least = max(0.005 * size, 0.5 * 10.0**-digits)
    end = _amounts(motion.offset, digits, _WAYS, least)
    way = f" (way {motion.length:.{digits}f})" if motion.length else ""
    if end:
        return f"moves {', '.join(end)} {unit}{way}"
    reach = _amounts(motion.reach, digits, _WAYS, least)
    return f"returns to its start, after {', '.join(reach) or 'less'} {unit}{way}"


def _turns(motion: Motion) -> str:
    words = (("pans right", "pans left"), ("tilts up", "tilts down"))
    words += (("rolls clockwise", "rolls counter-clockwise"),)
    end = _amounts(motion.angles, 1, words, _DEGREE)
    if end:
        return f"{', '.join(end)} deg"
    way = _amounts(motion.turned, 1, words, _DEGREE)
    return f"turns back, after it {', '.join(way)} deg" if way else "does not turn"


def _aim(motion: Motion, unit: str) -> str:
    ahead = f"a point {np.linalg.norm(motion.target):.3g} {unit} ahead"
    if motion.arc is None:
        return f"keeps looking at {ahead}"
    return f"circles {ahead} by {motion.arc:.1f} deg, looking at it: an orbit"


def _lens(focal: np.ndarray, motion: Motion) -> str:
    if abs(motion.zoom - 1) < 1e-4 and np.ptp(focal) < 1e-4:
        return "does not zoom"
    way = "in" if motion.zoom > 1 else "out"
    if abs(motion.zoom - 1) < 1e-4:
        return f"zooms up to x{focal.max() / focal[0]:.3f} and back"
    return f"zooms {way}, focal length x{motion.zoom:.3f}"


def _parts(path: PosePath, motion: Motion, unit: str) -> list[str]:
    """What happens in which frames, in the axes of frame 0, where that is not all one motion."""
    parts = find_parts(motion.position, motion.steps, path.world_from_camera, path.focal_factor)
    if not 1 < len(parts) <= _MOST_PARTS:
        return []
    lines = ["in parts, in the axes of frame 0:"]
    for first, last in parts:
        own, focal = slice(first, last + 1), path.focal_factor
        position, head = (v[own] - v[first] for v in (motion.position, motion.head))
        part = dataclasses.replace(
            motion,
            offset=position[-1],
            reach=_largest(position),
            length=float(motion.steps[first:last, 0].sum()),
            angles=head[-1],
            turned=_largest(head),
            zoom=float(focal[last] / focal[first]),
        )
        whats = (_moves(part, unit), _turns(part), _lens(focal[own], part))
        whats = [what for what in whats if what not in ("does not move", "does not turn")]
        whats = [what for what in whats if what != "does not zoom"] or ["holds still"]
        lines.append(f"  frames {first} to {last}: {'; '.join(whats)}")
    return lines


def _holds(path: PosePath, motion: Motion) -> list[str]:
    """Frames in which nothing happens, if something happens in others; at least three in a row."""
    still = still_steps(motion.steps, path.focal_factor)
    if still.all():
        return []
    edges = np.flatnonzero(np.diff([False, *still, False])).reshape(-1, 2)
    runs = [f"{first} to {last}" for first, last in edges if last - first >= 2]
    return [f"holds still in frames {', '.join(runs)}"] if runs else []


def _steps(path: PosePath, motion: Motion, unit: str) -> list[str]:
    """The largest steps, and jumps."""
    if path.num_frames < 2:
        return ["one frame only"]
    distance, turn = motion.steps.max(0)
    lines = [f"from frame to frame at most {distance:.3g} {unit} and {turn:.3g} deg"]
    for steps, what, least in zip(motion.steps.T, ("position", "direction"), (0, 0.5), strict=True):
        worst = int(steps.argmax())
        beside = np.delete(steps[max(worst - 1, 0) : worst + 2], min(worst, 1))
        if beside.size and steps[worst] > max(_JUMP * beside.max(), least, STILL):
            lines.append(f"warning: the {what} jumps between frames {worst} and {worst + 1}")
    return lines

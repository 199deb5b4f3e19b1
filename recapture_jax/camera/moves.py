"""Film moves, from words to cameras: `parse_moves("orbit right 20; dolly in 0.1 ease-in-out")`.

A sentence is a list of moves separated by ";" (or a comma, or a new line), each of them
`[start] name [direction] [amount] [easing] [first-last]`; words.py has the grammar. Moves run over
the whole clip unless a frame range says otherwise, and add up, whatever their order: "dolly in 0.3
0-24; pan right 15 ease-in-out 24-end" is a sequence. Axes are OpenCV (x right, y down, z forward);
d is the pivot depth.

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
order: circle the pivot, then move along the turned axes, then turn the head (pan, tilt, roll). A
preset of another tool ("viewcrafter:loop1", presets.py) comes before all of these: its camera is
the one that the words then move, about the point d ahead of it.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from recapture_jax.camera import pose
from recapture_jax.camera.easing import EASINGS
from recapture_jax.camera.pinhole import Camera
from recapture_jax.camera.presets import PRESETS
from recapture_jax.camera.trajectory import Trajectory
from recapture_jax.camera.words import SIDEWAYS, WORDS, Move, MoveSpec, parse_moves
from recapture_jax.errors import InputError

__all__ = ["EASINGS", "Move", "MoveSpec", "build_trajectory", "parse_moves"]


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
        num_frames: T; moves without a frame range start in frame 0 and are complete in frame T-1.
        intrinsics: `[3, 3]` or `[T, 3, 3]` of the source, pixels.
        pivot_depth: d, the depth of the subject on the lens axis, in the units of the depth map.
        name: label; the moves' words by default.
        start_offset: moves that are already complete in frame 0, for a clip that begins away from
            the source camera; without it frame 0 is the source camera itself.

    Returns:
        A Trajectory of T cameras.

    Raises:
        InputError: as `parse_moves`; also when the moves together reach the pivot, for a frame
            range that ends after the clip, two presets, an empty clip, or a pivot depth that is
            not finite and positive.
    """
    moves = parse_moves(moves)
    label = name if name is not None else re.sub(r"[; ]+", "-", "; ".join(map(str, moves)))
    if start_offset is not None:
        moves += tuple(dataclasses.replace(m, span=(0, 0)) for m in parse_moves(start_offset))
    if num_frames < 1:
        raise InputError(f"cannot film {num_frames} frames: expected at least 1")
    if not (math.isfinite(pivot_depth) and pivot_depth > 0):
        raise InputError(f"pivot depth {pivot_depth} is impossible: expected a positive number")
    intrinsics = np.asarray(intrinsics)
    if intrinsics.shape not in ((3, 3), (num_frames, 3, 3)):
        raise InputError(
            f"intrinsics have shape {intrinsics.shape}: expected (3, 3) or ({num_frames}, 3, 3)"
        )
    channels = _sum_channels(moves, num_frames)
    base, base_focal = _preset(moves, num_frames, pivot_depth)
    focal = (base_focal * _focal_factor(channels))[:, None, None]
    lens = np.broadcast_to(intrinsics, (num_frames, 3, 3)) * np.where(_IS_FOCAL, focal, 1.0)
    poses = pose.compose(base, _poses(channels, pivot_depth))
    cameras = Camera(*(jnp.asarray(x, jnp.float32) for x in (lens, poses)))
    return Trajectory(cameras=cameras, pivot_depth=float(pivot_depth), name=label)


_IS_FOCAL = np.diag([True, True, False])

# Channels: one array [T] per degree of freedom, in radians, pivot depths and log focal.
_Channels = dict[str, np.ndarray]
_CHANNEL_NAMES = ("azimuth", "elevation", "height", "truck", "pedestal", "dolly", "dolly_zoom")
_CHANNEL_NAMES += ("pan", "tilt", "roll", "zoom")


def _sum_channels(moves: Sequence[Move], num_frames: int) -> _Channels:
    channels = {name: np.zeros(num_frames) for name in _CHANNEL_NAMES}
    for move in moves:
        progress = move.progress(num_frames)
        if move.name == "static" or move.is_preset:
            continue
        channel = {"crane": "height"}.get(move.name, move.name)
        if move.name == "orbit":
            channel = "azimuth" if move.direction in SIDEWAYS else "elevation"
        scale = math.pi / 180 if WORDS[move.name].unit == "degrees" else 1.0
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


def _preset(
    moves: Sequence[Move], num_frames: int, pivot_depth: float
) -> tuple[np.ndarray, np.ndarray]:
    """`source_from_preset` `[T, 4, 4]` and the focal factor `[T]` of the sentence's preset."""
    named = [move for move in moves if move.is_preset]
    if len(named) > 1:
        raise InputError(
            f"{named[0].name} and {named[1].name} in one sentence: expected one preset at most; "
            "say the other in words"
        )
    if not named:
        return np.eye(4), np.ones(num_frames)
    poses, focal = PRESETS[named[0].name].path(named[0].progress(num_frames))
    units = np.ones((4, 4))
    units[:3, 3] = pivot_depth
    return poses * units, focal


def _focal_factor(channels: _Channels) -> np.ndarray:
    """Focal length over the source's, `[T]`.

    dolly_zoom cancels its own approach only: on top of a dolly the subject has the size that the
    dolly alone would give it, which for a lone dolly_zoom is f_new / f = (d - dz) / d.
    """
    before = 1 - channels["dolly"]
    return np.exp(channels["zoom"]) * (before - channels["dolly_zoom"]) / before


def _poses(channels: _Channels, pivot_depth: float) -> np.ndarray:
    """`source_from_target` `[T, 4, 4]`."""
    rise = channels["elevation"] + np.arcsin(channels["height"])
    # Orbit right is a yaw to the left about the pivot, orbit up a tilt down about it.
    circle = pose.compose(pose.rotation_y(-channels["azimuth"]), pose.rotation_x(-rise))
    pivot = np.array([0.0, 0.0, pivot_depth])
    source_from_orbit = pose.compose(pose.translation(pivot), circle, pose.translation(-pivot))
    offset = pivot_depth * np.stack(
        [channels["truck"], -channels["pedestal"], channels["dolly"] + channels["dolly_zoom"]], -1
    )
    head = pose.compose(
        pose.rotation_y(channels["pan"]),
        pose.rotation_x(channels["tilt"]),
        pose.rotation_z(channels["roll"]),
    )
    return pose.compose(source_from_orbit, pose.translation(offset), head)

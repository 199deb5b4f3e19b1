"""Keyframes: this package's own JSON, for paths drawn by hand or by an editor.

    {
      "format": "recapture_jax keyframes",
      "version": 1,
      "units": "pivot",
      "num_frames": 49,
      "keyframes": [
        {"frame": 0, "easing": "ease-in-out"},
        {"frame": 24, "position": [0.2, 0, 0.1], "look_at": [0, 0, 1]},
        {"frame": 48, "position": [0.2, -0.1, 0], "pan": 10, "tilt": -5, "roll": 0, "zoom": 1.3}
      ]
    }

Everything is relative to the source camera of frame 0: x right, y down, z forward. `units` of
positions is pivot (distance to the subject = 1), metres or arbitrary. A keyframe says where the
camera is (`position`) and how it looks: either at a point (`look_at`), or by pan (right), tilt (up)
and roll (clockwise) in degrees, as the film moves; or both at once by a `world_from_camera` 4x4
matrix. `zoom` multiplies the source's focal length. What a keyframe leaves out stays as it was in
the one before (at first: the source camera); an angle left out beside another angle is 0.

Between keyframes positions go straight, rotations by slerp, focal lengths at a constant rate, all
with the `easing` of the keyframe that the stretch starts from. Before the first and after the last
keyframe the camera holds still. `num_frames` is the clip (default: it ends with the last keyframe).
"""

import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from recapture_jax.camera import pose
from recapture_jax.camera.easing import EASINGS
from recapture_jax.camera.formats import parsing
from recapture_jax.camera.path import UNITS, PosePath
from recapture_jax.errors import InputError

FORMAT = "recapture_jax keyframes"
_MOST_FRAMES = 10**5
_FIELDS = ("format", "version", "units", "num_frames", "keyframes", "name")
_ANGLES = ("pan", "tilt", "roll")
_KEYFRAME = ("frame", "position", "look_at", *_ANGLES, "world_from_camera", "zoom", "easing")


def read(path: Path) -> PosePath:
    """A keyframe file; see the module's docstring.

    Raises:
        InputError: naming the keyframe and field that is unknown, missing, contradictory or out of
            range, frames that do not increase, or a keyframe after the end of the clip.
    """
    data = parsing.load_json(path)
    _check_fields(data, _FIELDS, str(path))
    if data.get("format") != FORMAT:
        raise InputError(
            f"{path}: format is {parsing.shown(data.get('format'))}: expected {FORMAT!r}"
        )
    if data.get("version") != 1:
        raise InputError(f"{path}: version is {parsing.shown(data.get('version'))}: expected 1")
    units = parsing.field(data, "units", str(path), "text")
    if units not in UNITS:
        raise InputError(
            f"{path}: units is {parsing.quoted(units)}: expected one of {', '.join(UNITS)}"
        )
    keyframes = parsing.field(data, "keyframes", str(path), "a list")
    if not keyframes:
        raise InputError(f"{path}: keyframes is empty: expected at least one")
    frames, poses, zooms, easings = [], [], [], []
    state = {"position": [0.0] * 3, "aim": np.eye(3), "zoom": 1.0}
    for i, keyframe in enumerate(keyframes):
        where = f"{path}: keyframes[{i}]"
        frame = parsing.field(keyframe, "frame", where, "a whole number")
        if frame < 0 or (frames and frame <= frames[-1]):
            least = frames[-1] + 1 if frames else 0
            raise InputError(f"{where}: frame is {frame}: expected at least {least}")
        state = _keyframe(keyframe, where, state)
        frames.append(frame)
        poses.append(_pose(state, where))
        zooms.append(state["zoom"])
        easings.append(_easing(keyframe, where))
    count = parsing.field(data, "num_frames", str(path), "a whole number", frames[-1] + 1)
    if count > _MOST_FRAMES:
        raise InputError(f"{path}: num_frames is {count}: expected at most {_MOST_FRAMES}")
    if frames[-1] >= count:
        raise InputError(
            f"{path}: keyframes[{len(frames) - 1}]: frame is {frames[-1]}: expected at most "
            f"{count - 1}, the last of num_frames = {count}"
        )
    world_from_camera, zoom = _between(frames, np.stack(poses), np.array(zooms), easings, count)
    name = parsing.field(data, "name", str(path), "text", path.stem)
    return PosePath(
        world_from_camera,
        units,
        zoom=zoom if (zoom != 1).any() else None,
        anchored=True,
        name=name,
    )


def _check_fields(data: dict, allowed: tuple[str, ...], where: str) -> None:
    if not isinstance(data, dict):
        raise InputError(f"{where} is no object: expected {{...}}")
    for name in data:
        if name not in allowed:
            raise InputError(
                f"{where}: unknown field {parsing.quoted(name)}: expected {', '.join(allowed)}"
            )


def _keyframe(data: dict, where: str, before: dict) -> dict:
    """Position, aim and zoom of a keyframe; what it leaves out is that of `before`."""
    _check_fields(data, _KEYFRAME, where)
    state = dict(before)
    ways = [
        [name for name in group if name in data]
        for group in (("look_at",), _ANGLES, ("world_from_camera",))
    ]
    if sum(map(bool, ways)) > 1:
        raise InputError(
            f"{where} has {' and '.join(names[0] for names in ways if names)}: expected one way to "
            "aim: look_at, pan/tilt/roll, or world_from_camera"
        )
    if "world_from_camera" in data:
        if "position" in data:
            raise InputError(f"{where} has position and world_from_camera: expected one of them")
        name = f"{where}.world_from_camera"
        matrix = parsing.rigid(parsing.matrix(data["world_from_camera"], name), name)
        state |= {"position": matrix[:3, 3].tolist(), "aim": matrix[:3, :3]}
    if "position" in data:
        state["position"] = _point(data, "position", where)
    if "look_at" in data:
        state["aim"] = _point(data, "look_at", where)
    if ways[1]:
        angles = [parsing.field(data, name, where, "a number", 0.0) for name in _ANGLES]
        state["aim"] = _head(*angles)
    state["zoom"] = parsing.positive(data, "zoom", where, before["zoom"])
    return state


def _point(data: dict, key: str, where: str) -> list[float]:
    value = parsing.field(data, key, where, "a list")
    if len(value) != 3:
        raise InputError(f"{where}: {key} has {len(value)} numbers: expected 3, x y z")
    return parsing.numbers(value, f"{where}.{key}", "xyz")


def _head(pan: float, tilt: float, roll: float) -> np.ndarray:
    """Rotation `[3, 3]` of a head turned by degrees, in the order of the film moves."""
    turned = pose.compose(
        pose.rotation_y(math.radians(pan)),
        pose.rotation_x(math.radians(tilt)),
        pose.rotation_z(math.radians(roll)),
    )
    return np.asarray(turned, np.float64)[:3, :3]


def _pose(state: dict, where: str) -> np.ndarray:
    """`[4, 4]`; a point to look at stays the aim of the keyframes after it."""
    result = np.eye(4)
    result[:3, 3] = state["position"]
    if isinstance(state["aim"], list):
        if np.linalg.norm(np.subtract(state["aim"], state["position"])) < 1e-9:
            raise InputError(f"{where}: look_at is the position: expected another point")
        seen = pose.look_at(*(np.array(state[name]) for name in ("position", "aim")))
        result[:3, :3] = np.asarray(seen)[:3, :3]
    else:
        result[:3, :3] = state["aim"]
    return parsing.rigid(result, where)


def _easing(data: dict, where: str) -> str:
    easing = parsing.field(data, "easing", where, "text", "linear")
    if easing not in EASINGS:
        raise InputError(
            f"{where}: easing is {parsing.quoted(easing)}: expected one of {', '.join(EASINGS)}"
        )
    return easing


def _between(
    frames: list[int], poses: np.ndarray, zooms: np.ndarray, easings: list[str], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Poses `[T, 4, 4]` and focal factors `[T]` of all frames; exact at keyframes."""
    time = np.clip(np.arange(count), frames[0], frames[-1])
    before = np.searchsorted(frames, time, side="right") - 1
    after = np.minimum(before + 1, len(frames) - 1)
    knots = np.array(frames)
    share = (time - knots[before]) / np.maximum(knots[after] - knots[before], 1)
    share = np.array([EASINGS[easings[k]](s) for k, s in zip(before, share, strict=True)])
    between = pose.interpolate(
        *(jnp.asarray(poses[i], jnp.float32) for i in (before, after)),
        jnp.asarray(share, jnp.float32),
    )
    result = np.asarray(between, np.float64)
    result[share == 0] = poses[before[share == 0]]
    return result, zooms[before] ** (1 - share) * zooms[after] ** share


def write(path: PosePath, file: Path) -> None:
    """Writes a keyframe per frame; focal lengths become zoom, relative to the first frame.

    Raises:
        InputError: when the poses are not relative to the source camera of frame 0.
    """
    if not path.anchored:
        raise InputError(
            f"{file} cannot be written: {path.name} is in a world of its own; make it relative to "
            "its first frame"
        )
    keyframes, zooms = [], bool((path.focal_factor != 1).any())
    for i, (world_from_camera, zoom) in enumerate(
        zip(path.world_from_camera, path.focal_factor, strict=True)
    ):
        entry = {"frame": i, "world_from_camera": world_from_camera.tolist()}
        keyframes.append(entry | ({"zoom": float(zoom)} if zooms else {}))
    data = {"format": FORMAT, "version": 1, "units": path.units, "name": path.name}
    data |= {"num_frames": path.num_frames, "keyframes": keyframes}
    file.write_text(json.dumps(data, indent=1) + "\n")

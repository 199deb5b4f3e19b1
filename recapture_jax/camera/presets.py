"""Paths of other tools by name, as functions of progress, with the numbers of their authors.

`PRESETS["recammaster:arc_left"].path(share)` gives the poses at `share` [T] in [0, 1] of the path.
Lengths are in pivot depths: a tool that works in a unit of its own is read with its own distance to
the subject, given below, and a tool's wrong word (a "zoom" that dollies, a "pan" that trucks) keeps
its name and says in `what` what it is.

| tool              | subject at            | source of the numbers                                  |
|-------------------|-----------------------|--------------------------------------------------------|
| trajectorycrafter | pivot; x, y in depth  | gradio_app.py end poses, test/trajs/loop1.txt; its     |
|                   | units, pivot <= 5     | pivot is capped at 5, so 2 units are 0.4 pivot depths  |
| viewcrafter       | pivot, 5 deg below    | test/trajs/*.txt                                       |
| recammaster       | 4 m (its look-at)     | camera_extrinsics.json: 81 frames, amount i / 80.5, so |
|                   |                       | the last frame has 0.9938 of 20 and 10 deg, 2 m and    |
|                   |                       | 1 m, 30 deg                                            |
| gen3c             | 1 (center_depth)      | movement_distance 0.3, camera_rotation center_facing;  |
|                   |                       | it stops a step short of 0.3 and its look-at displaces |
|                   |                       | the camera by up to 5 %: neither is repeated here      |
| seva              | 10 (look_at); spirals | seva/geometry.py; fov factors of its 54 degrees; its   |
|                   | where they aim, 3.25  | circles stop a step short of closing, ours close       |
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from recapture_jax.camera import pose
from recapture_jax.camera.formats.three_lines import along, spherical

Poses = tuple[np.ndarray, np.ndarray]
"""`source_from_target` `[T, 4, 4]` in pivot depths and focal length over the source's `[T]`."""

_PIVOT = np.array([0.0, 0.0, 1.0], np.float32)


@dataclass(frozen=True)
class Preset:
    """A path of another tool.

    Attributes:
        path: progress `[T]` in [0, 1] to `Poses`.
        what: what the camera does, in film words.
    """

    path: Callable[[np.ndarray], Poses]
    what: str


def _aimed(share: np.ndarray, position: np.ndarray, focal: np.ndarray | float = 1.0) -> Poses:
    """Cameras at `position` [T, 3] that look at the pivot."""
    poses = pose.look_at(jnp.asarray(position, jnp.float32), jnp.asarray(_PIVOT))
    return np.asarray(poses, np.float64), np.broadcast_to(focal, share.shape)


def _head(share: np.ndarray, pan: float = 0.0, tilt: float = 0.0, roll: float = 0.0) -> Poses:
    """A camera on the spot that turns by degrees."""
    y, x, z = (np.radians(a) * share for a in (pan, tilt, roll))
    turn = pose.compose(pose.rotation_y(y), pose.rotation_x(x), pose.rotation_z(z))
    return turn, np.ones(share.shape)


def _sphere(tool: str, share: np.ndarray, **amounts: float) -> Poses:
    """Even steps to the amounts theta, phi, r, x, y of `spherical`."""
    values = {name: amounts.get(name, 0.0) * share for name in ("theta", "phi", "r")}
    shift = {name: amounts[name] * share for name in ("x", "y") if name in amounts}
    return spherical(tool, **values, **shift), np.ones(share.shape)


def _sequences(tool: str, share: np.ndarray, theta: str, phi: str, r: str = "0 0") -> Poses:
    """The lines of a three-line file."""
    lines = {"theta": theta, "phi": phi, "r": r}
    values = {name: along([float(v) for v in line.split()], share) for name, line in lines.items()}
    return spherical(tool, **values), np.ones(share.shape)


def _orbit(share: np.ndarray, degrees: float) -> Poses:
    """About the pivot, to the right."""
    angle = np.radians(degrees) * share
    return _aimed(share, np.stack([np.sin(angle), 0 * angle, 1 - np.cos(angle)], -1))


def _line(share: np.ndarray, x=0.0, y=0.0, z=0.0, focal: np.ndarray | float = 1.0) -> Poses:
    """Straight to (x, y, z), looking at the pivot."""
    return _aimed(share, share[:, None] * np.array([x, y, z]), focal)


def _circle(share: np.ndarray, side: float) -> Poses:
    """GEN3C's circle: down first, then to the left (side 1) or right (-1) and back."""
    angle = 2 * np.pi * share
    x, y = side * 0.3 * (np.cos(angle) - 1), 0.3 * np.sin(angle)
    return _aimed(share, np.stack([x, y, 0 * angle], -1))


def _lemniscate(share: np.ndarray) -> Poses:
    """A lying eight of 60 degrees seen from the pivot; it starts in its crossing."""
    angle = 2 * np.pi * share + np.pi / 2
    x = np.tan(np.radians(30)) * np.cos(angle) / (1 + np.sin(angle) ** 2)
    return _aimed(share, np.stack([x, x * np.sin(angle), 0 * angle], -1))


def _spiral(share: np.ndarray, side: float, deep: float) -> Poses:
    """SEVA's two circles about an axis, of radius `side`, aimed at one point of that axis.

    It starts at their right, goes down first, and is `deep` nearer in the middle of the first circle
    and farther in that of the second. The point lies where disparity is a quarter of 1 / 0.9 and
    three quarters of 1 / 25 (bounds 1 and 5), and is taken as the pivot.
    """
    ahead = 1 / (0.25 / 0.9 + 0.75 / 25.0)
    angle = 4 * np.pi * share
    axis = np.stack([side * np.cos(angle), side * np.sin(angle), deep * np.sin(angle / 2)], -1)
    offset = axis - [side, 0.0, 0.0]
    distance = np.hypot(side, ahead)
    right, forward = np.array([[ahead, 0.0, side], [-side, 0.0, ahead]]) / distance
    seen = np.stack([offset @ right, offset[:, 1], offset @ forward], -1)
    return _aimed(share, seen / distance)


def _seva_focal(share: np.ndarray, factor: float) -> np.ndarray:
    """Focal factor while SEVA's 54 degrees go evenly to `factor` times that."""
    half = np.radians(27.0)
    return np.tan(half) / np.tan(half * (1 + (factor - 1) * share))


def _preset(function: Callable[..., Poses], what: str, *before, **amounts) -> Preset:
    return Preset(lambda share: function(*before, np.asarray(share, np.float64), **amounts), what)


def _trajectorycrafter() -> dict[str, Preset]:
    tool = "trajectorycrafter"
    ends = {
        "orbit_left": ({"phi": -30}, "orbits 30 deg left"),
        "orbit_right": ({"phi": 30}, "orbits 30 deg right"),
        "orbit_up": ({"theta": 30}, "orbits 30 deg up"),
        "orbit_down": ({"theta": -20}, "orbits 20 deg down"),
        "pan_left": ({"x": -0.4}, "trucks 0.4 left"),
        "pan_right": ({"x": 0.4}, "trucks 0.4 right"),
        "pan_up": ({"y": 0.4}, "pedestals 0.4 up"),
        "pan_down": ({"y": -0.4}, "pedestals 0.4 down"),
        "zoom_in": ({"r": 0.5}, "dollies 0.5 in"),
        "zoom_out": ({"r": -0.5}, "dollies 0.5 out"),
    }
    presets = {name: _preset(_sphere, what, tool, **end) for name, (end, what) in ends.items()}
    presets["loop1"] = _preset(
        _sequences,
        "wanders up and left about the pivot, comes in by 0.25 and returns",
        tool,
        theta="0 2 10 15 12 6 0 -2 -5 -12 -8 -3 0",
        phi="0 -3 -10 -20 -30 -25 -17 -10 0",
        r="0 0.02 0.09 0.16 0.25 0.2 0.09 0",
    )
    presets["dolly_zoom"] = Preset(
        lambda share: (_sphere(tool, share, r=0.5)[0], 1 - 0.5 * share),
        "dolly zoom 0.5 in: 500 to 250 pixels",
    )
    return presets


def _viewcrafter() -> dict[str, Preset]:
    files = {
        "left": ("0 0", "0 -40", "0 -0.2", "orbits 40 deg left and comes in by 0.2"),
        "loop1": (
            *("0 -2 -5 -10 -8 -5 0 2 5 3 0", "0 -3 -15 -20 -17 -5 0", "0 0"),
            "wanders up and left about the pivot and returns",
        ),
        "loop2": (
            *("0 -2 -8 -6 0 2 5 3 0", "0 3 10 20 17 10 0", "0 -0.02 -0.09 -0.16 -0.09 0"),
            "wanders up and right about the pivot, comes in and returns",
        ),
        "wave1": ("0 -1 -2 -1 0 3 0 -3 0 1 2", "0 30", "0 0", "orbits 30 deg right, up and down"),
        "zoomin1": ("0 0", "0 0", "0 -0.3", "dollies 0.3 in"),
    }
    return {
        name: _preset(_sequences, what, "viewcrafter", theta=theta, phi=phi, r=r)
        for name, (theta, phi, r, what) in files.items()
    }


def _recammaster() -> dict[str, Preset]:
    done = 80 / 80.5
    listed = {
        "pan_right": _preset(_head, "pans 19.9 deg right", pan=20 * done),
        "pan_left": _preset(_head, "pans 19.9 deg left", pan=-20 * done),
        "tilt_up": _preset(_head, "tilts 9.9 deg up", tilt=10 * done),
        "tilt_down": _preset(_head, "tilts 9.9 deg down", tilt=-10 * done),
        "zoom_in": _preset(_line, "dollies 0.497 (1.99 m) in", z=0.5 * done),
        "zoom_out": _preset(_line, "dollies 0.497 (1.99 m) out", z=-0.5 * done),
        "translate_up": _preset(_line, "pedestals 0.248 (0.99 m) up, aimed", y=-0.25 * done),
        "translate_down": _preset(_line, "pedestals 0.248 (0.99 m) down, aimed", y=0.25 * done),
        "arc_left": _preset(_orbit, "orbits 29.8 deg left", degrees=-30 * done),
        "arc_right": _preset(_orbit, "orbits 29.8 deg right", degrees=30 * done),
    }
    return listed | {str(i): preset for i, preset in enumerate(listed.values(), 1)}


def _gen3c() -> dict[str, Preset]:
    ends = {
        "left": ({"x": -0.3}, "trucks 0.3 left, aimed at the pivot"),
        "right": ({"x": 0.3}, "trucks 0.3 right, aimed at the pivot"),
        "up": ({"y": -0.3}, "pedestals 0.3 up, aimed at the pivot"),
        "down": ({"y": 0.3}, "pedestals 0.3 down, aimed at the pivot"),
        "zoom_in": ({"z": 0.3}, "dollies 0.3 in"),
        "zoom_out": ({"z": -0.3}, "dollies 0.3 out"),
    }
    presets = {name: _preset(_line, what, **end) for name, (end, what) in ends.items()}
    presets["clockwise"] = _preset(_circle, "circles down, left, up; radius 0.3", side=1.0)
    presets["counterclockwise"] = _preset(_circle, "circles down, right, up; radius 0.3", side=-1.0)
    return presets


def _seva() -> dict[str, Preset]:
    step = 0.099
    ends = {
        "move_forward": ({"z": step}, "dollies 0.099 in"),
        "move_backward": ({"z": -step}, "dollies 0.099 out"),
        "move_left": ({"x": -step}, "trucks 0.099 left, aimed at the pivot"),
        "move_right": ({"x": step}, "trucks 0.099 right, aimed at the pivot"),
        "move_up": ({"y": -step}, "pedestals 0.099 up, aimed at the pivot"),
        "move_down": ({"y": step}, "pedestals 0.099 down, aimed at the pivot"),
    }
    presets = {name: _preset(_line, what, **end) for name, (end, what) in ends.items()}
    presets["orbit"] = _preset(_orbit, "orbits 360 deg to the right", degrees=360.0)
    presets["roll"] = _preset(_head, "rolls 360 deg clockwise", roll=360.0)
    for name, side, deep in (("spiral", 0.5, 0.2), ("spiral_gui", 1.0, 0.5)):
        what = "two circles down and left of the start, in on the first, out on the second, aimed"
        presets[name] = _preset(_spiral, what, side=side, deep=deep)
    presets["lemniscate"] = _preset(_lemniscate, "a lying eight, 0.58 to both sides")
    for name, z, factor, what in (
        ("zoom_in", 0.0, 0.28, "zooms in, fov x0.28"),
        ("zoom_out", 0.0, 1.5, "zooms out, fov x1.5"),
        ("dolly_zoom_in", -step, 0.28, "zooms in, fov x0.28, and dollies 0.099 out"),
        ("dolly_zoom_out", step, 1.5, "zooms out, fov x1.5, and dollies 0.099 in"),
    ):
        presets[name] = Preset(
            lambda share, z=z, factor=factor: _line(
                np.asarray(share), z=z, focal=_seva_focal(share, factor)
            ),
            what,
        )
    return presets


PRESETS: dict[str, Preset] = {
    f"{tool}:{name}": preset
    for tool, presets in (
        ("trajectorycrafter", _trajectorycrafter()),
        ("viewcrafter", _viewcrafter()),
        ("recammaster", _recammaster()),
        ("gen3c", _gen3c()),
        ("seva", _seva()),
    )
    for name, preset in presets.items()
}

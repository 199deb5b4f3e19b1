"""Three-line txt files of TrajectoryCrafter, CogNVS and ViewCrafter: angles about the pivot.

Each line is a sequence of at least two numbers that is spread over the clip: two angles in degrees
and a distance in shares of the pivot depth. The files look alike and mean different things, so the
tool must be named:

| tool              | lines         | the camera goes              | source_from_target             |
|-------------------|---------------|------------------------------|--------------------------------|
| trajectorycrafter | theta, phi, r | +theta up, +phi right, +r in | T(1+r) X(-theta) Y(-phi) T(-1) |
| cognvs            | phi, theta, r | the same                     | the same                       |
| viewcrafter       | phi, theta, r | -theta up, +phi right, -r in | S' Y(phi) X(theta) T(r cos e) S |

T moves along z, X and Y turn about x and y, S is the source camera seen from the pivot, `elevation`
e above it (y up, z towards the camera), S' its inverse. So r takes the centre of the turn along in
the first two tools and changes its radius in the third.

Up to three numbers are joined by straight lines, more by the smoothing cubic spline of these tools
(FITPACK with a residual of up to the number of values, in degrees and pivot depths), which keeps the
ends and rounds off what is between.
"""

from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from recapture_jax.camera import pose
from recapture_jax.camera.formats import parsing
from recapture_jax.camera.path import PosePath
from recapture_jax.errors import InputError


@dataclass(frozen=True)
class Dialect:
    """What a tool means: names of the lines, its clip length, whether angles turn the radius."""

    order: tuple[str, str, str]
    num_frames: int
    elevated: bool = False


DIALECTS = {
    "trajectorycrafter": Dialect(("theta", "phi", "r"), 49),
    "cognvs": Dialect(("phi", "theta", "r"), 49),
    "viewcrafter": Dialect(("phi", "theta", "r"), 25, elevated=True),
}
ELEVATION = 5.0  # degrees, ViewCrafter's own default
_MOST = 25  # numbers in a sequence of ViewCrafter


def spherical(
    tool: str,
    theta: np.ndarray,
    phi: np.ndarray,
    r: np.ndarray,
    *,
    x: np.ndarray | float = 0.0,
    y: np.ndarray | float = 0.0,
    elevation: float = ELEVATION,
) -> np.ndarray:
    """`source_from_target` `[T, 4, 4]` float64 of a tool's angles (degrees); pivot at (0, 0, 1).

    x (right) and y (up) are TrajectoryCrafter's shifts, in pivot depths; elevation is ViewCrafter's
    angle of the source camera above the pivot.
    """
    theta, phi, r = (np.asarray(v, np.float64) for v in (theta, phi, r))
    turn_x, turn_y = pose_x(np.radians(theta)), pose_y(np.radians(phi))
    shift = np.tile(np.eye(4), (len(theta), 1, 1))
    if DIALECTS[tool].elevated:
        world_from_source = _world_from_source(elevation)
        shift[:, 2, 3] = r * world_from_source[2, 3]
        return np.linalg.inv(world_from_source) @ turn_y @ turn_x @ shift @ world_from_source
    shift[:, 0, 3], shift[:, 1, 3], shift[:, 2, 3] = x, -np.asarray(y), 1 + r
    back = np.eye(4)
    back[2, 3] = -1
    return shift @ np.swapaxes(turn_x, 1, 2) @ np.swapaxes(turn_y, 1, 2) @ back


def _world_from_source(elevation: float) -> np.ndarray:
    """ViewCrafter's source camera `[4, 4]`: origin at the pivot, y up, z towards the camera."""
    if not abs(elevation) < 89:
        raise InputError(f"elevation {elevation} is impossible: expected degrees from -89 to 89")
    angle = np.radians(elevation)
    result = pose_x(np.pi - angle)
    result[:3, 3] = (0, np.sin(angle), np.cos(angle))
    return result


def pose_x(angle: np.ndarray | float) -> np.ndarray:
    """Rotation about x `[..., 4, 4]`, as pose.rotation_x."""
    return np.asarray(pose.rotation_x(jnp.asarray(angle, jnp.float32)), np.float64)


def pose_y(angle: np.ndarray | float) -> np.ndarray:
    """Rotation about y `[..., 4, 4]`, as pose.rotation_y."""
    return np.asarray(pose.rotation_y(jnp.asarray(angle, jnp.float32)), np.float64)


def along(values: list[float], share: np.ndarray) -> np.ndarray:
    """A sequence of a file at `share` in [0, 1] of the clip, as the three tools join it."""
    knots = np.linspace(0.0, 1.0, len(values))
    if len(values) <= 3:
        return np.interp(share, knots, values)
    from scipy.interpolate import UnivariateSpline

    curve = UnivariateSpline(knots, values, k=3)(share)
    return np.where(share <= 0, values[0], np.where(share >= 1, values[-1], curve))


def read(
    path: Path, tool: str, num_frames: int | None = None, elevation: float | None = None
) -> PosePath:
    """A file of `tool` in pivot depths, `num_frames` frames long (by default the tool's own clip).

    Raises:
        InputError: for other than three lines, a sequence of one number, one that ViewCrafter does
            not allow (it starts with 0 and has at most 25 numbers), or a path through the pivot.
    """
    dialect = DIALECTS[tool]
    lines = [
        (number, line.split())
        for number, line in enumerate(parsing.read_text(path).splitlines(), 1)
        if line.strip()
    ]
    if len(lines) != 3:
        raise InputError(
            f"{path} has {len(lines)} lines: expected 3 for {tool}, {', '.join(dialect.order)}"
        )
    values = {}
    for name, (number, words) in zip(dialect.order, lines, strict=True):
        where = f"{path}, line {number} ({name})"
        values[name] = parsing.numbers(words, where)
        _check_sequence(tool, where, values[name])
    count = dialect.num_frames if num_frames is None else num_frames
    if count < 1:
        raise InputError(f"{path} in {count} frames: expected at least 1")
    share = np.linspace(0.0, 1.0, count)
    curves = {name: along(sequence, share) for name, sequence in values.items()}
    reach = 1 + curves["r"] if dialect.elevated else 1 - curves["r"]
    if reach.min() <= 0:
        raise InputError(
            f"{path}: r takes the camera to or past the pivot in frame {int(reach.argmin())}: "
            f"expected {'above -1' if dialect.elevated else 'below 1'}, in pivot depths"
        )
    options = {} if elevation is None else {"elevation": elevation}
    poses = spherical(tool, **curves, **options)
    return PosePath(poses, "pivot", anchored=True, name=path.stem)


def _check_sequence(tool: str, where: str, values: list[float]) -> None:
    if len(values) < 2:
        raise InputError(f"{where} has {len(values)} number: expected at least 2")
    if max(map(abs, values)) > 1e4:
        raise InputError(
            f"{where} holds {max(values, key=abs):g}: expected degrees, or pivot depths"
        )
    if not DIALECTS[tool].elevated:
        return
    if len(values) > _MOST:
        raise InputError(f"{where} has {len(values)} numbers: expected at most {_MOST} for {tool}")
    if values[0] != 0:
        raise InputError(f"{where} starts with {values[0]:g}: expected 0 for {tool}")


def write(path: PosePath, file: Path, tool: str, elevation: float = ELEVATION) -> None:
    """Writes a path about the pivot. Even steps become two numbers, which every tool films exactly;
    other sequences are written frame by frame and come back smoothed.

    Raises:
        InputError: when the path is not in pivot depths from the source camera, zooms, or does not
            look at the pivot as the tool's cameras do.
    """
    if path.units != "pivot" or not path.anchored:
        raise InputError(
            f"{file} cannot be written: {path.name} is not in pivot depths from the source camera, "
            f"as {tool} needs"
        )
    if np.abs(path.focal_factor - 1).max() > 1e-6:
        raise InputError(f"{file} cannot be written: {path.name} zooms, {tool} cannot")
    values = _angles(path.world_from_camera, tool, elevation)
    again = spherical(tool, **values, elevation=elevation)
    error = np.abs(again - path.world_from_camera).max(axis=(1, 2))
    if error.max() > 1e-4:
        about = "the pivot"
        if DIALECTS[tool].elevated:
            about += f" along circles {elevation:g} degrees above it (its elevation; 0: level)"
        raise InputError(
            f"{file} cannot be written: frame {int(error.argmax())} of {path.name} is none of the "
            f"cameras of {tool}, which all go about {about}, looking at it"
        )
    sequences = [_short(values[name]) for name in DIALECTS[tool].order]
    if DIALECTS[tool].elevated and max(map(len, sequences)) > _MOST:
        raise InputError(
            f"{file} cannot be written: {path.name} has {path.num_frames} frames: expected at most "
            f"{_MOST} for {tool}; resample it"
        )
    lines = [" ".join(f"{v:.9g}" for v in sequence) for sequence in sequences]
    file.write_text("\n".join(lines) + "\n")


def _angles(poses: np.ndarray, tool: str, elevation: float) -> dict[str, np.ndarray]:
    """theta, phi (degrees) and r of the cameras of `tool` with these orientations and distances."""
    if DIALECTS[tool].elevated:
        world_from_source = _world_from_source(elevation)
        turned = world_from_source @ poses @ np.linalg.inv(world_from_source)
        theta = np.arcsin(np.clip(-turned[:, 1, 2], -1, 1))
        phi = np.arctan2(turned[:, 0, 2], turned[:, 2, 2])
        r = np.einsum("tij,ti->tj", turned[:, :3, :3], turned[:, :3, 3])[:, 2]
        r = r / world_from_source[2, 3]
    else:
        forward = poses[:, :3, 2]
        phi = np.arcsin(np.clip(-forward[:, 0], -1, 1))
        theta = np.arctan2(forward[:, 1], forward[:, 2])
        r = poses[:, 2, 3] + forward[:, 2] - 1
    return {"theta": np.degrees(theta), "phi": np.degrees(phi), "r": r}


def _short(values: np.ndarray) -> np.ndarray:
    """Two numbers where the steps are even, else all."""
    values = np.round(values, 6) + 0.0  # no -0
    even = np.linspace(values[0], values[-1], len(values))
    if len(values) < 2 or np.abs(values - even).max() < 1e-4:
        return np.array([values[0], values[-1]])
    return values

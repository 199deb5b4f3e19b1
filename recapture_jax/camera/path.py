"""A camera path as poses: the one form that every file of `formats` is read into and written from.

    read_path ──► PosePath ──► to_trajectory   a path to film along
                          └──► source_poses    what the camera of the clip did

Poses are OpenCV `world_from_camera`. Their length unit is stated, never guessed:

    pivot      1 is the pivot depth (distance to the subject in frame 0)
    metres     fits metric depth; for other depth give a scale
    arbitrary  the file does not know (COLMAP, SLAM); needs a scale as soon as the camera travels

A `scale` is always depth units per unit of the file, and goes before what the unit says.
"""

import dataclasses
import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from recapture_jax.camera import pose
from recapture_jax.camera.pinhole import Camera
from recapture_jax.camera.trajectory import Trajectory
from recapture_jax.errors import InputError

UNITS = ("metres", "pivot", "arbitrary")


@dataclass(frozen=True)
class PosePath:
    """T poses.

    Attributes:
        world_from_camera: `[T, 4, 4]` float64, rigid, OpenCV.
        units: of the translations, one of `UNITS`.
        intrinsics: `[T, 3, 3]` float64 in pixels of `size`, or None.
        size: (height, width) the intrinsics belong to; (1, 1) if they are shares of the frame;
            None if the file does not say.
        zoom: `[T]` focal length over the source's, where a file says that and no intrinsics.
        times: `[T]` increasing, seconds or (`numbered`) frame numbers; None for a pose per frame.
        numbered: whether `times` are the numbers of the clip's frames.
        anchored: the world is the source camera of frame 0 (x right, y down, z forward). Where it
            is not, only the motion from the first pose on has a meaning for a clip.
        name: for messages and files.
        notes: what was left out of the file, one sentence each.
    """

    world_from_camera: np.ndarray
    units: str
    intrinsics: np.ndarray | None = None
    size: tuple[int, int] | None = None
    zoom: np.ndarray | None = None
    times: np.ndarray | None = None
    numbered: bool = False
    anchored: bool = False
    name: str = "path"
    notes: tuple[str, ...] = ()

    @property
    def num_frames(self) -> int:
        """Number of poses T."""
        return len(self.world_from_camera)

    @property
    def travels(self) -> bool:
        """Whether the position changes (or, for an anchored path, is not the source's)."""
        position = self.world_from_camera[:, :3, 3]
        start = np.zeros(3) if self.anchored else position[0]
        return bool(np.abs(position - start).max() > 1e-9)

    @property
    def focal_factor(self) -> np.ndarray:
        """`zoom`, or the focal length over that of the first frame, or ones: `[T]`."""
        if self.zoom is not None:
            return self.zoom
        if self.intrinsics is None:
            return np.ones(self.num_frames)
        focal = self.intrinsics[:, 1, 1]
        return focal / focal[0]


def inverse(a_from_b: np.ndarray) -> np.ndarray:
    """`b_from_a` of rigid float64 poses `[..., 4, 4]`."""
    result = np.zeros_like(a_from_b)
    rotation = np.swapaxes(a_from_b[..., :3, :3], -1, -2)
    result[..., :3, :3] = rotation
    result[..., :3, 3] = -(rotation @ a_from_b[..., :3, 3:])[..., 0]
    result[..., 3, 3] = 1
    return result


def relative_to_first(path: PosePath) -> PosePath:
    """The path seen from its first camera, which becomes the source camera of frame 0."""
    poses = inverse(path.world_from_camera[0]) @ path.world_from_camera
    poses[0] = np.eye(4)
    return dataclasses.replace(path, world_from_camera=poses, anchored=True)


def relative_to(path: PosePath, source: PosePath) -> PosePath:
    """The path seen from the first camera of `source`, for two files that share one world.

    With the poses of `source` as the clip's own, the result is a path for the mode 'absolute'.

    Raises:
        InputError: when the two are in different units.
    """
    if path.units != source.units:
        raise InputError(
            f"{path.name} is in {path.units} units, {source.name} in {source.units} units: "
            "expected one world with one unit; scale one of them"
        )
    poses = inverse(source.world_from_camera[0]) @ path.world_from_camera
    return dataclasses.replace(path, world_from_camera=poses, anchored=True)


def scaled(path: PosePath, factor: float, units: str) -> PosePath:
    """The path with translations times `factor`, which are `units` from then on.

    Raises:
        InputError: for a factor that is not positive and finite, or unknown units.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise InputError(f"scale {factor} is impossible: expected a positive number")
    if units not in UNITS:
        raise InputError(f"unknown units {units!r}: expected one of {', '.join(UNITS)}")
    poses = path.world_from_camera.copy()
    poses[:, :3, 3] *= factor
    return dataclasses.replace(path, world_from_camera=poses, units=units)


def in_pixels(path: PosePath, size: tuple[int, int]) -> PosePath:
    """The path with the intrinsics of a frame of another size (height, width).

    Raises:
        InputError: when the path has no intrinsics, or nothing says which size they belong to.
    """
    if path.intrinsics is None or path.size is None:
        missing = "intrinsics" if path.intrinsics is None else "known frame size"
        raise InputError(f"{path.name} has no {missing}: expected them, to fit another frame")
    scale = np.array([[size[1] / path.size[1]], [size[0] / path.size[0]], [1.0]])
    return dataclasses.replace(path, intrinsics=path.intrinsics * scale, size=tuple(size))


def resample(path: PosePath, num_frames: int) -> PosePath:
    """The path in `num_frames` frames from its first to its last pose.

    Even steps in `times` where there are any, else in the order of the poses; rotations by slerp,
    positions linearly, focal lengths at a constant rate of growth. A pose that is hit is kept.

    Raises:
        InputError: for less than one frame.
    """
    if num_frames < 1:
        raise InputError(f"cannot resample {path.name} to {num_frames} frames: expected at least 1")
    if num_frames == path.num_frames and path.times is None:
        return path
    knots = np.arange(path.num_frames, dtype=np.float64) if path.times is None else path.times
    result = _at(path, knots, np.linspace(knots[0], knots[-1], num_frames))
    if num_frames == path.num_frames:
        return result
    note = f"resampled from {path.num_frames} poses to {num_frames} frames"
    return dataclasses.replace(result, notes=(*path.notes, note))


def _at(path: PosePath, knots: np.ndarray, wanted: np.ndarray) -> PosePath:
    """The path at times `wanted` [n] within `knots` [T]."""
    last = path.num_frames - 1
    before = np.clip(np.searchsorted(knots, wanted, side="right") - 1, 0, max(last - 1, 0))
    after = np.minimum(before + 1, last)
    gap = np.where(after > before, knots[after] - knots[before], 1.0)
    share = np.clip((wanted - knots[before]) / gap, 0.0, 1.0)
    # Relative to the first pose, 32 bits are enough; far from the origin they would not be.
    local = (inverse(path.world_from_camera[0]) @ path.world_from_camera).astype(np.float32)
    between = pose.interpolate(
        jnp.asarray(local[before]), jnp.asarray(local[after]), jnp.asarray(share, jnp.float32)
    )
    poses = path.world_from_camera[0] @ np.asarray(between, np.float64)
    poses[share == 0] = path.world_from_camera[before[share == 0]]
    poses[share == 1] = path.world_from_camera[after[share == 1]]
    intrinsics = path.intrinsics
    if intrinsics is not None:
        a, b, w = intrinsics[before], intrinsics[after], share[:, None, None]
        ratio = np.where(a > 0, b / np.where(a > 0, a, 1.0), 1.0)
        is_focal = np.diag([True, True, False])
        intrinsics = np.where(is_focal, a * np.maximum(ratio, 0) ** w, (1 - w) * a + w * b)
    zoom = path.zoom
    if zoom is not None:
        zoom = zoom[before] ** (1 - share) * zoom[after] ** share
    return dataclasses.replace(
        path,
        world_from_camera=poses,
        intrinsics=intrinsics,
        zoom=zoom,
        times=None,
        numbered=False,
    )


def select(path: PosePath, num_frames: int, start: int = 0, stride: int = 1) -> PosePath:
    """The poses of frames start, start + stride, ... of a clip.

    Frames are counted by `times` where these are frame numbers (gaps between them are filled by
    interpolation), else by the order of the poses.

    Raises:
        InputError: when the path does not reach that far.
    """
    wanted = start + stride * np.arange(num_frames)
    knots = np.arange(path.num_frames, dtype=np.float64)
    if path.times is not None and path.numbered:
        knots = path.times
    if wanted[0] < knots[0] or wanted[-1] > knots[-1]:
        raise InputError(
            f"{path.name} has poses of frames {knots[0]:g} to {knots[-1]:g}: expected frames "
            f"{wanted[0]} to {wanted[-1]}, those of the clip; give a pose for every frame"
        )
    return _at(path, knots, wanted.astype(np.float64))


def depth_scale(
    path: PosePath,
    pivot_depth: float | None,
    depth_kind: str = "relative",
    scale: float | None = None,
) -> float:
    """Depth units per unit of the path.

    Args:
        path: the path.
        pivot_depth: depth of the subject in frame 0, in depth units; None for the source's own
            poses, of which it says nothing.
        depth_kind: 'metric' if depth is in metres, else 'relative'.
        scale: overrides what the units say; required where they say nothing.

    Raises:
        InputError: when the units do not fit the depth and no scale is given.
    """
    field = "config.camera.poses_scale" if pivot_depth is None else "config.camera.path_scale"
    if scale is not None:
        if not (math.isfinite(scale) and scale > 0):
            raise InputError(f"scale {scale} of {path.name} is impossible: expected above 0")
        return float(scale)
    if path.units == "pivot" and pivot_depth is not None:
        return float(pivot_depth)
    if not path.travels or (path.units == "metres" and depth_kind == "metric"):
        return 1.0
    why = {
        "arbitrary": "the file does not say the unit of its translations",
        "metres": "its translations are metres and the depth is not metric",
        "pivot": "pivot depths, a unit of moves, are none of the source's own poses",
    }
    hint = "" if pivot_depth is None else _scale_hint(path, pivot_depth)
    raise InputError(
        f"{path.name} has no scale: {why[path.units]}: expected {field}, depth units per unit of the "
        f"file{hint}"
    )


def _scale_hint(path: PosePath, pivot_depth: float) -> str:
    """What a scale would do, so that one can be chosen."""
    position = path.world_from_camera[:, :3, 3]
    start = np.zeros(3) if path.anchored else position[0]
    reach = float(np.linalg.norm(position - start, axis=-1).max())
    return (
        f"; it goes {reach:.3g} units far and the subject is {pivot_depth:.3g} away, so "
        f"{0.2 * pivot_depth / reach:.3g} would take it a fifth of the way"
    )


def to_trajectory(
    path: PosePath,
    num_frames: int,
    intrinsics: np.ndarray,
    pivot_depth: float,
    *,
    depth_kind: str = "relative",
    scale: float | None = None,
) -> Trajectory:
    """The path as a trajectory of T cameras, resampled if it has another number of poses.

    A path that is not anchored starts at the source camera. Focal lengths of the file are read as
    zoom, relative to its first frame: a change of lens is kept, the lens is the clip's.

    Args:
        path: the path.
        num_frames: T of the clip.
        intrinsics: `[3, 3]` of the source, pixels.
        pivot_depth, depth_kind, scale: as in `depth_scale`.

    Raises:
        InputError: as `depth_scale`; or for a pivot depth that is not positive.
    """
    if not (math.isfinite(pivot_depth) and pivot_depth > 0):
        raise InputError(f"pivot depth {pivot_depth} is impossible: expected a positive number")
    if not path.anchored:
        path = relative_to_first(path)
    path = resample(path, num_frames)
    factor = depth_scale(path, pivot_depth, depth_kind, scale)
    poses = path.world_from_camera.copy()
    poses[:, :3, 3] *= factor
    zoom = np.where(np.diag([True, True, False]), path.focal_factor[:, None, None], 1.0)
    cameras = Camera(
        intrinsics=jnp.asarray(np.asarray(intrinsics) * zoom, jnp.float32),
        world_from_camera=jnp.asarray(poses, jnp.float32),
    )
    return Trajectory(cameras=cameras, pivot_depth=float(pivot_depth), name=path.name)


def from_trajectory(
    trajectory: Trajectory, size: tuple[int, int] | None = None, units: str = "pivot"
) -> PosePath:
    """A trajectory as poses: in pivot depths, or as it is ('metres' if depth is metric)."""
    poses = np.asarray(trajectory.cameras.world_from_camera, np.float64)
    path = PosePath(
        poses,
        units,
        intrinsics=np.asarray(trajectory.cameras.intrinsics, np.float64),
        size=size,
        anchored=True,
        name=trajectory.name,
    )
    return scaled(path, 1 / float(trajectory.pivot_depth), "pivot") if units == "pivot" else path


def source_poses(
    path: PosePath,
    num_frames: int,
    start: int = 0,
    stride: int = 1,
    *,
    depth_kind: str = "relative",
    scale: float | None = None,
) -> np.ndarray:
    """`world_from_source` `[T, 4, 4]` float32 of the clip's own camera, in depth units.

    The world is the camera of the clip's first frame, whatever it was in the file.

    Raises:
        InputError: as `select` and `depth_scale`; pivot depths are no unit of a source's poses.
    """
    path = relative_to_first(select(path, num_frames, start, stride))
    poses = path.world_from_camera.copy()
    poses[:, :3, 3] *= depth_scale(path, None, depth_kind, scale)
    return poses.astype(np.float32)


def align_scale(path: PosePath, reference: PosePath) -> float:
    """Units of `reference` per unit of `path`, from two paths of the same camera.

    The least-squares factor between the spreads of both sets of positions (the scale of a
    similarity), for a path whose own unit is unknown.

    Raises:
        InputError: for different numbers of poses, or a camera that stands still in one of them.
    """
    if path.num_frames != reference.num_frames:
        raise InputError(
            f"{path.name} has {path.num_frames} poses, {reference.name} has "
            f"{reference.num_frames}: expected as many, of the same frames"
        )
    ours, theirs = (p.world_from_camera[:, :3, 3] for p in (path, reference))
    ours, theirs = ours - ours.mean(0), theirs - theirs.mean(0)
    spread = (ours**2).sum()
    if spread < 1e-18 or (theirs**2).sum() < 1e-18:
        raise InputError(
            f"{path.name} or {reference.name} stands still: expected a camera that travels, from "
            "which a scale can be told"
        )
    u, s, vt = np.linalg.svd(theirs.T @ ours)
    s[-1] *= np.sign(np.linalg.det(u @ vt))
    return float(s.sum() / spread)

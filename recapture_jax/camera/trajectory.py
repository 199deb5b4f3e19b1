"""A trajectory: the cameras to render, frame by frame, relative to the source camera.

`cameras.world_from_camera[t]` is `source_from_target` of frame t: the pose of the new camera in the
frame of the camera that filmed frame t (the P_i of ReCapture). A source that moves has poses of its
own, `source_poses[t]` = `world_from_source` `[T, 4, 4]` in the units of the depth, and a film move
can then mean two things:

- on top of the source's motion: the move adds to whatever the source camera does;
- absolute: the move is made by a camera on its own tripod, standing where the source stood in
  frame 0 ("static" is then locked off);
- stabilised: the move adds to the source's motion without its shake, a smoothed path.

`relative_poses` picks one by name.
"""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from recapture_jax.camera import pose
from recapture_jax.camera.pinhole import Camera
from recapture_jax.errors import InputError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Trajectory:
    """The cameras of one new path (a pytree; the name is static).

    Attributes:
        cameras: intrinsics `[T, 3, 3]` px, world_from_camera `[T, 4, 4]`; the world is the source
            camera of the same frame.
        pivot_depth: depth of the subject in frame 0, in the units of the depth map.
        name: short label for files and logs.
    """

    cameras: Camera
    pivot_depth: float
    name: str = dataclasses.field(metadata={"static": True})

    @property
    def num_frames(self) -> int:
        """Number of frames T."""
        return self.cameras.world_from_camera.shape[0]

    def at(self, frames: slice | np.ndarray) -> "Trajectory":
        """The trajectory of these frames alone."""
        cameras = jax.tree.map(lambda x: x[frames], self.cameras)
        return dataclasses.replace(self, cameras=cameras)


def on_top_of_source(trajectory: Trajectory, source_poses: jax.Array | None = None) -> jax.Array:
    """`source_from_target` `[T, 4, 4]` when the move adds to the source's own motion.

    The source poses cancel, so they may be unknown (None); given, their count is checked.

    Raises:
        InputError: when the number of source poses is not T.
    """
    if source_poses is not None:
        _check_poses(trajectory, source_poses)
    return trajectory.cameras.world_from_camera


def absolute(trajectory: Trajectory, source_poses: jax.Array) -> jax.Array:
    """`source_from_target` `[T, 4, 4]` when the move starts at the source camera of frame 0.

    Args:
        trajectory: T cameras, read relative to the source camera of frame 0.
        source_poses: `world_from_source` `[T, 4, 4]`, translations in the units of the depth.

    Raises:
        InputError: without source poses, or when their number is not T.
    """
    world_from_source = _known_poses(trajectory, source_poses, "an absolute")
    return _on_base(trajectory, world_from_source, world_from_source[:1])


def stabilised(
    trajectory: Trajectory,
    source_poses: jax.Array,
    sigma: float = 6.0,
    shown: np.ndarray | None = None,
) -> jax.Array:
    """`source_from_target` `[T, 4, 4]` when the move adds to the source's smoothed motion.

    Args:
        trajectory: T cameras, read relative to the smoothed source camera of each frame.
        source_poses: `world_from_source` `[T, 4, 4]`, translations in the units of the depth.
        sigma: of the Gaussian that smooths, in frames; see `smooth_poses`.
        shown: as in `relative_poses`.

    Raises:
        InputError: without source poses, when their number is not T, or for a bad sigma.
    """
    world_from_source = _known_poses(trajectory, source_poses, "a stabilised", shown)
    smooth = smooth_poses(source_poses, sigma)
    return _on_base(trajectory, world_from_source, smooth if shown is None else smooth[shown])


def smooth_poses(poses: jax.Array, sigma: float) -> jax.Array:
    """Poses `[T, 4, 4]` averaged over time with a Gaussian of `sigma` frames.

    Beyond both ends the motion is continued by its point reflection there (R0 R_k^-1 R0 and
    2 p0 - p_k), so the first and last pose stay and an even motion is left as it is. Rotations are the
    normalised mean of their quaternions, right for the few degrees of a shake.

    Raises:
        InputError: for a sigma that is negative or not finite.
    """
    if not (np.isfinite(sigma) and sigma >= 0):
        raise InputError(f"smoothing by {sigma} frames is impossible: expected 0 or more")
    poses = jnp.asarray(poses, jnp.float32)
    reach = min(int(np.ceil(3 * sigma)), len(poses) - 1)
    if reach < 1:
        return poses
    extended = jnp.concatenate(
        [
            _reflected(poses[:1], poses[reach:0:-1]),
            poses,
            _reflected(poses[-1:], poses[-2 : -reach - 2 : -1]),
        ]
    )
    quaternions = np.asarray(pose.quaternion_from_rotation(extended[:, :3, :3]), np.float64)
    flips = np.sign((quaternions[1:] * quaternions[:-1]).sum(-1))
    quaternions[1:] *= np.cumprod(np.where(flips < 0, -1.0, 1.0))[:, None]
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    channels = np.concatenate([quaternions, np.asarray(extended[:, :3, 3], np.float64)], axis=-1)
    mean = np.stack([np.convolve(c, weights / weights.sum(), "valid") for c in channels.T], -1)
    mean = jnp.asarray(mean, jnp.float32)
    return pose.from_rotation_translation(pose.rotation_from_quaternion(mean[:, :4]), mean[:, 4:])


def _reflected(end: jax.Array, poses: jax.Array) -> jax.Array:
    """`poses` `[n, 4, 4]` mirrored at the pose `end` `[1, 4, 4]`: what goes in comes out again."""
    turned = pose.compose(end, pose.inverse(poses), end)
    return pose.from_rotation_translation(turned[:, :3, :3], 2 * end[:, :3, 3] - poses[:, :3, 3])


MODES = ("relative", "absolute", "stabilise")


def relative_poses(
    trajectory: Trajectory,
    mode: str,
    source_poses: jax.Array | None,
    sigma: float = 6.0,
    shown: np.ndarray | None = None,
) -> jax.Array:
    """`source_from_target` `[T, 4, 4]` in one of `MODES`: on top of the source, absolute, stabilised.

    Args:
        trajectory: T cameras.
        mode: one of `MODES`.
        source_poses: `world_from_source` `[N, 4, 4]` of the N source frames.
        sigma: as in `stabilised`. Smoothed is the source's own motion, in its own time: where time
            stands still the steady camera does.
        shown: the source frame that each of the T frames shows, see timing.py; None: N is T.

    Raises:
        InputError: for an unknown mode; or as the function of the mode.
    """
    if mode not in MODES:
        raise InputError(f"unknown camera mode {mode!r}: expected one of {', '.join(MODES)}")
    if mode == "stabilise":
        return stabilised(trajectory, source_poses, sigma, shown)
    if source_poses is not None and shown is not None:
        source_poses = source_poses[shown]
    film = on_top_of_source if mode == "relative" else absolute
    return film(trajectory, source_poses)


def with_poses(trajectory: Trajectory, source_from_target: jax.Array) -> Trajectory:
    """The trajectory with the poses `[T, 4, 4]` of one of the two modes above."""
    cameras = dataclasses.replace(trajectory.cameras, world_from_camera=source_from_target)
    return dataclasses.replace(trajectory, cameras=cameras)


def pivot_depth_from_depth(depth_frame0: jax.Array, central_share: float = 0.2) -> float:
    """Median depth of the centre of frame 0, where the subject of a move usually is.

    Where nothing there is usable (sky), it is the median of all of the frame.

    Args:
        depth_frame0: `[H, W]` depth; values that are not finite and positive are left out.
        central_share: share of the frame's area, in (0, 1], that the central window covers; the
            window has the frame's shape.

    Raises:
        InputError: for an impossible share, or when the frame holds no usable depth.
    """
    if not 0 < central_share <= 1:
        raise InputError(f"central share {central_share} is impossible: expected 0 < share <= 1")
    depth = np.asarray(depth_frame0)
    side = central_share**0.5
    margins = [int(n * (1 - side) / 2) for n in depth.shape]
    window = depth[
        margins[0] : depth.shape[0] - margins[0], margins[1] : depth.shape[1] - margins[1]
    ]
    for part in (window, depth):
        usable = part[np.isfinite(part) & (part > 0)]
        if usable.size:
            return float(np.median(usable))
    raise InputError(
        "frame 0 has no usable depth: expected finite positive values; check the depth file or "
        "give the pivot depth (config.camera.pivot_depth)"
    )


def _known_poses(
    trajectory: Trajectory,
    source_poses: jax.Array | None,
    what: str,
    shown: np.ndarray | None = None,
) -> jax.Array:
    """The source poses as float32 `[T, 4, 4]`; `what` trajectory needs them is for the message."""
    if source_poses is None:
        raise InputError(
            f"{what} trajectory needs the source camera's poses: give a pose file, or place "
            "the move on top of the source's motion"
        )
    if shown is not None:
        source_poses = source_poses[shown]
    _check_poses(trajectory, source_poses)
    return jnp.asarray(source_poses, jnp.float32)


def _on_base(trajectory: Trajectory, world_from_source: jax.Array, base: jax.Array) -> jax.Array:
    """`source_from_target` `[T, 4, 4]` of a move made from the poses `base`, `[T or 1, 4, 4]`."""
    world_from_target = pose.compose(base, trajectory.cameras.world_from_camera)
    return pose.compose(pose.inverse(world_from_source), world_from_target)


def _check_poses(trajectory: Trajectory, source_poses: jax.Array) -> None:
    expected = trajectory.cameras.world_from_camera.shape
    if jnp.shape(source_poses) != expected:
        raise InputError(
            f"source poses have shape {jnp.shape(source_poses)}: expected {expected}, one 4x4 "
            "world_from_camera per frame of the trajectory"
        )

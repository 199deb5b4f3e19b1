"""Random cameras that look at a scene, and moderate eased camera moves with their strength."""

import dataclasses

import jax
import jax.numpy as jnp

from recapture_jax.scenes.draws import Draws
from recapture_jax.scenes.scene import rotation_about

MOVES = ("static", "truck", "pedestal", "dolly", "pan", "tilt", "orbit", "zoom")
# Full amplitudes: translations as a share of the distance, angles in radians, zoom as log focal.
_REACH = (0.0, 0.15, 0.12, 0.15, 0.3, 0.14, 0.35, 0.28)
MIN_HEIGHT = 0.35  # metres, no path goes lower


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CameraPath:
    """A camera over time, OpenCV axes.

    intrinsics [T, 3, 3] pixels; world_from_camera [T, 4, 4]; motion: scalar, how far the scene's
    points travel across the image between the first and the last frame, as a mean share of the
    image width (0 = static; 0.2 is strong); move: scalar index into `MOVES`.
    """

    intrinsics: jax.Array
    world_from_camera: jax.Array
    motion: jax.Array
    move: jax.Array


def look_at(eye, target):
    """World_from_camera [4, 4] of a camera at `eye` [3] that looks at `target` [3], world z up."""
    forward = target - eye
    forward = forward / jnp.sqrt(jnp.sum(forward**2))
    right = jnp.cross(forward, jnp.asarray([0.0, 0.0, 1.0]))
    right = right / jnp.sqrt(jnp.sum(right**2))
    down = jnp.cross(forward, right)
    return _pose(jnp.stack([right, down, forward], axis=-1), eye)


def _pose(rotation, position):
    top = jnp.concatenate([rotation, position[:, None]], axis=-1)
    return jnp.concatenate([top, jnp.asarray([[0.0, 0.0, 0.0, 1.0]])], axis=0)


def _about(axis, angle):
    return rotation_about(axis[None, :], jnp.reshape(angle, (1,)))[0]


def make_intrinsics(focal, height, width):
    """Centred pinhole intrinsics [3, 3] for a focal length in pixels."""
    row = jnp.asarray([[0.0, 0.0, width / 2], [0.0, 0.0, height / 2], [0.0, 0.0, 1.0]])
    return row.at[jnp.asarray([0, 1]), jnp.asarray([0, 1])].set(focal)


def move_camera(world_from_source, pivot, amounts):
    """The source camera after a move.

    world_from_source: [4, 4]; pivot: [3] world point that an orbit circles; amounts: [8], one per
    `MOVES`: truck right, pedestal up, dolly forward (shares of the distance to the pivot), pan
    right, tilt up, orbit counter-clockwise seen from above (radians); zoom is not a pose.
    """
    rotation, eye = world_from_source[:3, :3], world_from_source[:3, 3]
    up = jnp.asarray([0.0, 0.0, 1.0])
    distance = jnp.sqrt(jnp.sum((eye - pivot) ** 2))
    orbit = _about(up, amounts[6])
    eye = pivot + orbit @ (eye - pivot)
    rotation = orbit @ rotation
    step = amounts[1] * rotation[:, 0] + amounts[2] * up + amounts[3] * rotation[:, 2]
    eye = eye + distance * step
    eye = eye.at[2].max(MIN_HEIGHT)
    pan = _about(up, -amounts[4])
    tilt = _about(jnp.asarray([1.0, 0.0, 0.0]), amounts[5])
    return _pose(pan @ rotation @ tilt, eye)


def _project(intrinsics, world_from_camera, points):
    camera = (points - world_from_camera[None, :3, 3]) @ world_from_camera[:3, :3]
    return (camera @ intrinsics.T)[:, :2] / jnp.maximum(camera[:, 2:], 0.5)


def motion_strength(intrinsics, world_from_camera, pivot, spread, width):
    """Mean image travel, in image widths, of points about `pivot` [3] from frame 0 to frame -1."""
    corners = jnp.asarray([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-0.3, 0.6)])
    points = pivot[None, :] + spread * 0.6 * corners.astype(jnp.float32)
    first = _project(intrinsics[0], world_from_camera[0], points)
    last = _project(intrinsics[-1], world_from_camera[-1], points)
    return jnp.mean(jnp.sqrt(jnp.sum((last - first) ** 2, axis=-1) + 1e-12)) / width


def sample_camera_path(
    key,
    num_frames,
    height=96,
    width=160,
    scene_radius=4.2,
    static_share=0.25,
    fov_degrees=(42.0, 60.0),
    strength=1.0,
) -> CameraPath:
    """A plausible source camera and a move from it; frame 0 is the source camera.

    The camera stands 1.2 to 2.1 scene radii from the vertical axis at a low elevation and looks
    near the centre. fov_degrees: range of the vertical field of view. static_share: probability of
    no move at all; static_share = 0 always moves. strength scales all amplitudes.
    """
    draw = Draws(key, 64)

    azimuth = draw.uniform(0.0, 2.0 * jnp.pi)
    reach = scene_radius * draw.uniform(1.2, 2.1)
    elevation = jnp.deg2rad(4.0 + 28.0 * draw.uniform(0.0, 1.0) ** 1.5)
    eye_height = jnp.clip(0.5 + reach * jnp.tan(elevation), 0.7, 5.0)
    eye = jnp.stack([reach * jnp.cos(azimuth), reach * jnp.sin(azimuth), eye_height])
    jitter = draw.uniform(-1.0, 1.0, (3,)) * jnp.asarray([0.12, 0.12, 0.0]) * scene_radius
    pivot = jitter.at[2].set(draw.uniform(0.4, 1.3))
    source = look_at(eye, pivot)
    focal = 0.5 * height / jnp.tan(0.5 * jnp.deg2rad(draw.uniform(*fov_degrees)))

    moving = jnp.logical_not(draw.bernoulli(static_share))
    move = jnp.where(moving, 1 + draw.index(len(MOVES) - 1), 0)
    sign = jnp.where(draw.bernoulli(0.5, (8,)), 1.0, -1.0)
    main = (jnp.arange(8) == move) * draw.uniform(0.3, 1.0)
    extra = draw.bernoulli(0.35) * moving
    side = extra * draw.bernoulli(0.4, (8,)) * draw.uniform(0.0, 0.35, (8,))
    amounts = strength * sign * (main + side) * jnp.asarray(_REACH)

    u = jnp.linspace(0.0, 1.0, num_frames)
    ease = draw.uniform(0.0, 1.0)
    progress = u + ease * (u * u * (3.0 - 2.0 * u) - u)
    steps = progress[:, None] * amounts[None, :]
    poses = jax.vmap(lambda a: move_camera(source, pivot, a))(steps)
    # exactly the source camera where nothing moves, not a rounding of it
    still = jnp.all(steps[:, :7] == 0.0, axis=-1)[:, None, None]
    poses = jnp.where(still, source[None], poses)
    intrinsics = jax.vmap(lambda a: make_intrinsics(focal * jnp.exp(a), height, width))(steps[:, 7])
    travel = motion_strength(intrinsics, poses, pivot, scene_radius, width)
    return CameraPath(intrinsics, poses, jnp.where(moving, travel, 0.0), move)

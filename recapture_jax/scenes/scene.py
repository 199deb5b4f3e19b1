"""A dynamic scene as a pytree of fixed-size arrays, and where its objects are at a time.

World frame: metres, z up, ground at z = 0, the scene's objects inside `radius` of the origin.
"""

import dataclasses

import jax
import jax.numpy as jnp

from recapture_jax.scenes import primitives

# Slots of each kind: (kind, slots near the centre, slots in the backdrop ring).
LAYOUT = ((primitives.ELLIPSOID, 9, 2), (primitives.BOX, 9, 2), (primitives.CYLINDER, 4, 1))
KINDS = tuple(kind for kind, near, far in LAYOUT for _ in range(near + far))
BACKDROP = tuple(i >= near for _, near, far in LAYOUT for i in range(near + far))
NUM_SLOTS = len(KINDS)
GRAVITY = 9.81  # metres per second squared
SETTLING = 0.6  # seconds in which the throw and the spin of a falling object fade to 1 / e
GROUND, SURROUND = NUM_SLOTS, NUM_SLOTS + 1  # rows of the material table after the objects


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Motion:
    """Closed-form motion of N slots: a back-and-forth drift, a circle, bounces, a fall and a spin.

    drift [N, 3] metres either side, drift_rate [N] passes per second; orbit_radius [N] metres,
    orbit_rate [N] rad/s; bounce_height [N] metres, bounce_rate [N] bounces per second; spin_axis
    [N, 3], spin_rate [N] rad/s; phase [N] in [0, 1) starts them all.

    What falls starts in mid-air at time 0, fall_height [N] metres above its rest (0: it does not
    fall), bounces with restitution [N] in (0, 1) and comes to rest, thrown by throw [N, 3] metres in
    all; its spin fades with its throw. Objects do not collide with each other.
    """

    drift: jax.Array
    drift_rate: jax.Array
    orbit_radius: jax.Array
    orbit_rate: jax.Array
    bounce_height: jax.Array
    bounce_rate: jax.Array
    spin_axis: jax.Array
    spin_rate: jax.Array
    phase: jax.Array
    fall_height: jax.Array
    restitution: jax.Array
    throw: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Material:
    """One row per slot, then the ground, then walls or hills; colours are linear RGB in [0, 1]."""

    pattern: jax.Array
    frequency: jax.Array
    gain: jax.Array
    warp: jax.Array
    grain: jax.Array
    gloss: jax.Array
    color_a: jax.Array
    color_b: jax.Array
    direction: jax.Array
    shift: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Light:
    """Sun (unit vector towards its centre, angular radius in radians, linear colour), ambient light,
    sky colours and hill outline.
    """

    sun_direction: jax.Array
    sun_radius: jax.Array
    sun_color: jax.Array
    ambient: jax.Array
    sky_zenith: jax.Array
    sky_horizon: jax.Array
    clouds: jax.Array
    hill_height: jax.Array
    hill_phase: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PhotoTextures:
    """Photographs, and the surfaces that they are on; see `recapture_jax.scenes.photos`.

    pixels [N, L, 3] linear RGB, a pyramid of squares flattened; grey [N] bool, whether one takes the colour of its
    surface; index [rows] which one is on a slot, the ground and the walls, -1: none; width [rows] metres across it.
    """

    pixels: jax.Array
    grey: jax.Array
    index: jax.Array
    width: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scene:
    """A dynamic scene. Slot kinds are `KINDS`; slots with `enabled` False do not exist.

    size [N, 3] half extents (metres), position [N, 3] and rotation [N, 3, 3] at rest
    (world_from_object); room: bool, a hall with half_extent [3] (walls X, Y; ceiling Z) instead of
    a dome of dome_radius metres; radius: horizontal bound of all moving objects at all times; photos: None or
    photographs on some of its surfaces.
    """

    enabled: jax.Array
    size: jax.Array
    position: jax.Array
    rotation: jax.Array
    motion: Motion
    material: Material
    light: Light
    room: jax.Array
    half_extent: jax.Array
    dome_radius: jax.Array
    radius: jax.Array
    photos: PhotoTextures | None = None


def rotation_about(axis, angle):
    """Rodrigues' rotation matrices [N, 3, 3] about unit `axis` [N, 3] by `angle` [N] radians."""
    x, y, z = axis[:, 0], axis[:, 1], axis[:, 2]
    c, s = jnp.cos(angle), jnp.sin(angle)
    k = 1.0 - c
    rows = (
        (c + x * x * k, x * y * k - z * s, x * z * k + y * s),
        (y * x * k + z * s, c + y * y * k, y * z * k - x * s),
        (z * x * k - y * s, z * y * k + x * s, c + z * z * k),
    )
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def height_of_fall(height, restitution, time):
    """Metres above rest of bouncing points: let go at `height` at time 0; all of one shape.

    Flight k lasts restitution^k times twice the fall, so the flights until a time are a geometric
    series.
    """
    fall = jnp.sqrt(2.0 * jnp.maximum(height, 1e-6) / GRAVITY)
    first = 2.0 * restitution * fall
    since = time - fall
    left = jnp.maximum(1.0 - since * (1.0 - restitution) / first, 1e-6)
    flight = jnp.maximum(jnp.floor(jnp.log(left) / jnp.log(restitution)), 0.0)
    shrunk = restitution**flight
    since = since - first * (1.0 - shrunk) / (1.0 - restitution)
    speed = GRAVITY * fall * restitution * shrunk
    bouncing = jnp.maximum(speed * since - 0.5 * GRAVITY * since**2, 0.0)
    return jnp.where(time < fall, height - 0.5 * GRAVITY * time**2, bouncing)


def object_poses(scene: Scene, time) -> tuple[jax.Array, jax.Array]:
    """World_from_object rotation [N, 3, 3] and position [N, 3] at `time` seconds."""
    motion = scene.motion
    cycle = time * motion.drift_rate * 0.5 + motion.phase
    triangle = 4.0 * jnp.abs(cycle - jnp.floor(cycle) - 0.5) - 1.0
    angle = time * motion.orbit_rate + 2.0 * jnp.pi * motion.phase
    fraction = time * motion.bounce_rate + motion.phase
    fraction = fraction - jnp.floor(fraction)
    offset = jnp.stack(
        [
            motion.orbit_radius * jnp.cos(angle),
            motion.orbit_radius * jnp.sin(angle),
            motion.bounce_height * 4.0 * fraction * (1.0 - fraction),
        ],
        axis=-1,
    )
    falls = motion.fall_height > 0.0
    drop = height_of_fall(motion.fall_height, jnp.where(falls, motion.restitution, 0.5), time)
    offset = offset.at[:, 2].add(jnp.where(falls, drop, 0.0))
    settled = 1.0 - jnp.exp(-time / SETTLING)
    offset = offset + settled * motion.throw
    position = scene.position + offset + motion.drift * triangle[:, None]
    turning = jnp.where(falls, SETTLING * settled, time)
    spin = rotation_about(motion.spin_axis, turning * motion.spin_rate)
    return jnp.einsum("nij,njk->nik", spin, scene.rotation), position

"""Random dynamic scenes, drawn from a key alone."""

import jax
import jax.numpy as jnp

from recapture_jax.scenes import primitives
from recapture_jax.scenes.draws import Draws
from recapture_jax.scenes.materials import sample_light, sample_material
from recapture_jax.scenes.scene import (
    BACKDROP,
    KINDS,
    NUM_SLOTS,
    Motion,
    Scene,
    rotation_about,
)

MIN_OBJECTS, MAX_OBJECTS = 7, 22  # as Kubric-4D


def _sample_motion(key, speed):
    """Motion of all slots as if there were no bounds, and which ones tumble or float."""
    draw = Draws(key, 1024)
    n = (NUM_SLOTS,)
    # still, drift, bounce (with drift), orbit, spin upright, float and tumble, fall: the last two, a
    # third, start in mid-air
    style = draw.choice((0.38, 0.12, 0.06, 0.05, 0.06, 0.04, 0.29), n)
    style = jnp.where(jnp.asarray(BACKDROP), 0, style)
    heading = draw.uniform(0.0, 2.0 * jnp.pi, n)
    reach = draw.uniform(0.6, 1.4, n)
    drifts = (style == 1) | (style == 2) | (style == 5)
    reach = jnp.where(drifts, jnp.where(style == 1, reach, 0.6 * reach), 0.0)
    drift = reach[:, None] * jnp.stack([jnp.cos(heading), jnp.sin(heading), 0.0 * heading], -1)
    pace = speed * draw.uniform(0.35, 1.3, n)
    orbit = jnp.where(style == 3, draw.uniform(0.4, 1.1, n), 0.0)
    sign = jnp.where(draw.bernoulli(0.5, n), 1.0, -1.0)
    bounce = jnp.where(style == 2, draw.uniform(0.4, 1.7, n), 0.0)
    bounce = jnp.where(style == 5, draw.uniform(0.0, 0.5, n), bounce)
    gravity_rate = jnp.sqrt(9.81 / (8.0 * jnp.maximum(bounce, 0.1)))
    slow = draw.uniform(0.15, 0.3, n)
    tumbles = (style == 5) | ((style == 2) & draw.bernoulli(0.6, n))
    upright = jnp.asarray([[0.0, 0.0, 1.0]])
    spins = (style == 4) | tumbles | (style == 6) | ((style == 1) & draw.bernoulli(0.3, n))
    rate = sign * speed * draw.uniform(0.4, 1.6, n)
    falls = style == 6
    thrown = jnp.where(falls, draw.uniform(0.0, 0.8, n), 0.0)
    aim = draw.uniform(0.0, 2.0 * jnp.pi, n)
    motion = Motion(
        drift=drift,
        drift_rate=jnp.where(reach > 0.0, pace / jnp.maximum(2.0 * reach, 0.1), 0.0),
        orbit_radius=orbit,
        orbit_rate=sign * pace / jnp.maximum(orbit, 0.4),
        bounce_height=bounce,
        bounce_rate=jnp.where(style == 5, slow, 0.6 * gravity_rate),
        spin_axis=jnp.where(tumbles[:, None], draw.unit((NUM_SLOTS, 3)), upright),
        spin_rate=jnp.where(spins, rate, 0.0),
        phase=draw.uniform(0.0, 1.0, n),
        fall_height=jnp.where(falls, draw.uniform(0.4, 3.0, n), 0.0),
        restitution=draw.uniform(0.2, 0.6, n),
        throw=thrown[:, None] * jnp.stack([jnp.cos(aim), jnp.sin(aim), 0.0 * aim], -1),
    )
    lift = jnp.where(style == 5, draw.uniform(0.2, 1.5, n), 0.0)
    return motion, reach + orbit + thrown, tumbles, lift


def sample_scene(key) -> Scene:
    """A random scene; a pure function of `key`, so it vmaps and compiles once."""
    keys = iter(jax.random.split(key, 4))
    draw = Draws(next(keys), 1024)
    backdrop = jnp.asarray(BACKDROP)
    kind = jnp.asarray(KINDS)
    room = draw.bernoulli(0.45)
    radius = draw.uniform(3.4, 5.0)
    motion, wander, tumbles, lift = _sample_motion(next(keys), draw.uniform(0.6, 1.25))

    count = MIN_OBJECTS + draw.index(MAX_OBJECTS - MIN_OBJECTS + 1)
    lottery = draw.uniform(0.0, 1.0, (NUM_SLOTS,)) + 2.0 * backdrop
    order = jnp.argsort(jnp.argsort(lottery))
    present = draw.bernoulli(jnp.where(room, 0.25, 0.7), (NUM_SLOTS,))
    enabled = jnp.where(backdrop, present, order < count)

    # sizes shrink a little in crowded scenes; proportions vary, balls are common
    scale = jnp.exp(draw.uniform(jnp.log(0.45), jnp.log(1.4), (NUM_SLOTS, 1)))
    scale = scale * radius / 4.2 * (1.1 - 0.028 * count)
    ratio = draw.uniform(0.5, 1.0, (NUM_SLOTS, 3))
    ball = (kind == primitives.ELLIPSOID) & draw.bernoulli(0.6, (NUM_SLOTS,))
    ratio = jnp.where(ball[:, None], 0.8, ratio)
    round_ = (kind == primitives.CYLINDER)[:, None] & jnp.asarray([[True, True, False]])
    ratio = jnp.where(round_, 0.6 * ratio[:, :1], ratio)
    size = scale * ratio
    # the backdrop: rounded hills or bushes, house-like boxes, tall pillars
    tall = jnp.where((kind == primitives.CYLINDER)[:, None], 0.3, 1.0)
    flat = jnp.asarray([[1.0, 1.0, 0.0]])
    far_size = draw.uniform(1.2, 3.2, (NUM_SLOTS, 3))
    far_size = jnp.where(flat > 0.0, far_size * tall, far_size)
    far_size = jnp.where(room, 0.35, 1.0) * far_size
    size = jnp.where(backdrop[:, None], far_size, size)

    bound = jnp.where(
        kind == primitives.ELLIPSOID,
        jnp.max(size, axis=-1),
        jnp.sqrt(jnp.sum(size**2, axis=-1)),
    )
    golden = 2.399963 * order + draw.uniform(0.0, 2.0 * jnp.pi)
    golden = golden + 0.25 * draw.normal((NUM_SLOTS,))
    spread = radius * 0.9 * jnp.sqrt((order + 0.3) / (count + 0.5))
    spread = jnp.clip(jnp.minimum(spread, radius - bound - wander), 0.0, None)
    ring = draw.uniform(17.0, 22.0, (NUM_SLOTS,))
    spread = jnp.where(backdrop, jnp.where(room, 14.4, ring), spread)
    height = jnp.where(tumbles, bound, size[:, 2]) + lift
    sunk = (kind == primitives.ELLIPSOID) & backdrop
    height = jnp.where(sunk, 0.3 * size[:, 2], height)
    position = jnp.stack([spread * jnp.cos(golden), spread * jnp.sin(golden), height], axis=-1)

    yaw = draw.uniform(0.0, 2.0 * jnp.pi, (NUM_SLOTS,))
    up = jnp.broadcast_to(jnp.asarray([[0.0, 0.0, 1.0]]), (NUM_SLOTS, 3))
    rotation = rotation_about(up, yaw)
    lean = rotation_about(draw.unit((NUM_SLOTS, 3)), yaw)
    rotation = jnp.where(tumbles[:, None, None], lean, rotation)
    walls = draw.uniform(17.5, 20.0, (3,))
    return Scene(
        enabled=enabled,
        size=size,
        position=position,
        rotation=rotation,
        motion=motion,
        material=sample_material(next(keys), room),
        light=sample_light(next(keys), room),
        room=room,
        half_extent=walls.at[2].add(-10.0),
        dome_radius=draw.uniform(32.0, 45.0),
        radius=radius,
    )

"""Palettes, surface materials and light of random scenes."""

import jax.numpy as jnp

from recapture_jax.scenes import textures
from recapture_jax.scenes.draws import Draws
from recapture_jax.scenes.scene import BACKDROP, GROUND, NUM_SLOTS, SURROUND, Light, Material


def _linear(rgb):
    return jnp.asarray(rgb, jnp.float32) ** 2.2


def _hsv(h, s, v):
    """HSV in [0, 1], any shape -> linear RGB [..., 3]."""
    channels = []
    for n in (5.0, 3.0, 1.0):
        k = jnp.mod(n + h * 6.0, 6.0)
        channels.append(v - v * s * jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0))
    return jnp.stack(channels, axis=-1) ** 2.2


# Pairs of sRGB colours that make believable floors: soil, grass, sand, stone, wood, tile, snow ...
_GROUND_COLORS = (
    ((0.36, 0.42, 0.20), (0.50, 0.55, 0.27)),
    ((0.25, 0.38, 0.18), (0.42, 0.50, 0.25)),
    ((0.76, 0.67, 0.50), (0.62, 0.52, 0.38)),
    ((0.45, 0.36, 0.28), (0.60, 0.50, 0.39)),
    ((0.42, 0.42, 0.43), (0.58, 0.57, 0.55)),
    ((0.28, 0.29, 0.31), (0.38, 0.38, 0.39)),
    ((0.68, 0.66, 0.62), (0.82, 0.80, 0.76)),
    ((0.58, 0.40, 0.26), (0.45, 0.29, 0.18)),
    ((0.70, 0.54, 0.36), (0.58, 0.42, 0.26)),
    ((0.86, 0.87, 0.90), (0.72, 0.75, 0.81)),
    ((0.80, 0.77, 0.71), (0.33, 0.31, 0.30)),
    ((0.55, 0.26, 0.20), (0.72, 0.45, 0.33)),
    ((0.30, 0.38, 0.46), (0.62, 0.66, 0.68)),
    ((0.52, 0.50, 0.38), (0.35, 0.36, 0.26)),
)
_WALL_COLORS = (
    ((0.85, 0.80, 0.70), (0.74, 0.67, 0.56)),
    ((0.66, 0.72, 0.76), (0.80, 0.83, 0.84)),
    ((0.62, 0.68, 0.58), (0.75, 0.78, 0.68)),
    ((0.80, 0.60, 0.48), (0.68, 0.46, 0.36)),
    ((0.52, 0.36, 0.28), (0.66, 0.48, 0.38)),
    ((0.36, 0.42, 0.50), (0.50, 0.55, 0.60)),
    ((0.90, 0.88, 0.85), (0.78, 0.75, 0.72)),
    ((0.72, 0.64, 0.72), (0.84, 0.78, 0.80)),
)
_HILL_COLORS = (
    ((0.30, 0.38, 0.26), (0.44, 0.48, 0.34)),
    ((0.40, 0.46, 0.54), (0.55, 0.60, 0.66)),
    ((0.52, 0.44, 0.36), (0.64, 0.56, 0.46)),
    ((0.22, 0.32, 0.26), (0.34, 0.42, 0.34)),
)


def _pair(draw, table, jitter=0.12):
    """A pair of colours [2, 3] from `table`, jittered together, in random order."""
    pair = _linear(table)[draw.index(len(table))]
    pair = jnp.where(draw.bernoulli(), pair, pair[::-1])
    scale = 1.0 + jitter * draw.normal((1, 3))
    return jnp.clip(pair * jnp.clip(scale, 0.6, 1.5), 0.01, 0.95)


_PATTERN_WEIGHTS = (0.22, 0.13, 0.15, 0.2, 0.1, 0.1, 0.1)


def sample_material(key, room) -> Material:
    """Materials of every slot, the ground and the walls (`room`) or hills (not `room`)."""
    draw = Draws(key, 1024)
    rows = NUM_SLOTS + 2
    # objects: hues gather around two scene hues, so that a scene has a palette
    anchors = draw.uniform(0.0, 1.0, (2,))
    hue = anchors[draw.index(2, (rows,))]
    hue = jnp.mod(hue + 0.08 * draw.normal((rows,)), 1.0)
    saturation = draw.uniform(0.1, 0.85, (rows,))
    value = draw.uniform(0.3, 0.92, (rows,))
    color_a = _hsv(hue, saturation, value)
    style = draw.index(4, (rows,))
    hue_b = jnp.mod(hue + jnp.where(style == 0, 0.45, 0.06), 1.0)
    saturation_b = jnp.where(style == 1, 0.08, saturation * 0.8)
    value_b = jnp.where(style == 1, 0.93, jnp.where(value > 0.6, value * 0.5, value + 0.4))
    color_b = _hsv(hue_b, saturation_b, value_b)

    pattern = draw.choice(_PATTERN_WEIGHTS, (rows,))
    frequency = jnp.exp(draw.uniform(jnp.log(1.0), jnp.log(5.0), (rows,)))
    frequency = jnp.where(jnp.asarray(BACKDROP + (False, False)), frequency * 0.25, frequency)
    direction = jnp.eye(3)[draw.index(3, (rows,))]
    skew = 0.7 * draw.unit((rows, 3))
    oblique = draw.bernoulli(0.4, (rows, 1))
    direction = jnp.where(oblique, direction + skew, direction)
    direction = direction / jnp.sqrt(jnp.sum(direction**2, axis=-1, keepdims=True))
    grain = draw.uniform(0.05, 0.3, (rows,))
    gain = draw.uniform(0.35, 0.7, (rows,))
    warp = jnp.where(draw.bernoulli(0.5, (rows,)), 0.0, 0.25)
    glossy = draw.bernoulli(0.45, (rows,))
    gloss = jnp.where(glossy, draw.uniform(0.1, 0.5, (rows,)), 0.0)
    shift = draw.uniform(-50.0, 50.0, (rows, 3))

    ground = _pair(draw, _GROUND_COLORS)
    outside = (0.05, 0.05, 0.05, 0.55, 0.0, 0.1, 0.2)
    inside = (0.12, 0.22, 0.18, 0.13, 0.05, 0.1, 0.2)
    weights = jnp.where(room, jnp.asarray(inside), jnp.asarray(outside))
    ground_pattern = draw.choice(weights)
    ground_frequency = jnp.exp(draw.uniform(jnp.log(0.5), jnp.log(4.0)))
    wall = jnp.where(room, _pair(draw, _WALL_COLORS), _pair(draw, _HILL_COLORS))
    wall_weights = (0.3, 0.04, 0.22, 0.2, 0.02, 0.02, 0.2)
    wall_pattern = draw.choice(wall_weights)
    wall_pattern = jnp.where(room, wall_pattern, textures.NOISE)
    wall_frequency = jnp.where(room, draw.uniform(0.25, 0.9), 1.0)
    ends = jnp.asarray([GROUND, SURROUND])
    straight = jnp.asarray([[1.0, 0.0, 0.0], [0.7071, 0.7071, 0.0]])
    return Material(
        pattern=pattern.at[ends].set(jnp.stack([ground_pattern, wall_pattern])),
        frequency=frequency.at[ends].set(jnp.stack([ground_frequency, wall_frequency])),
        gain=gain.at[GROUND].add(0.12),
        warp=warp,
        grain=grain.at[ends].set(jnp.stack([0.08 + grain[GROUND], 0.6 * grain[SURROUND]])),
        gloss=gloss.at[ends].set(0.0),
        color_a=color_a.at[ends].set(jnp.stack([ground[0], wall[0]])),
        color_b=color_b.at[ends].set(jnp.stack([ground[1], wall[1]])),
        direction=direction.at[ends].set(straight),
        shift=shift,
    )


def sample_light(key, room) -> Light:
    """Sun, ambient light and sky; indoors the sky colours are not used."""
    draw = Draws(key, 1024)
    azimuth = draw.uniform(0.0, 2.0 * jnp.pi)
    elevation = draw.uniform(0.45, 1.2)
    sun_direction = jnp.stack(
        [
            jnp.cos(azimuth) * jnp.cos(elevation),
            jnp.sin(azimuth) * jnp.cos(elevation),
            jnp.sin(elevation),
        ]
    )
    warmth = draw.normal() * 0.12 + jnp.where(elevation < 0.65, 0.15, 0.0)
    tint = jnp.stack([1.0 + warmth, jnp.float32(1.0), 1.0 - warmth])
    overcast = draw.uniform(0.0, 1.0) ** 2
    sun = (1.75 - 1.1 * overcast) * draw.uniform(0.8, 1.15)
    ambient = 0.42 + 0.4 * overcast
    blue = _hsv(
        draw.uniform(0.54, 0.63),
        draw.uniform(0.25, 0.65) * (1.0 - 0.8 * overcast),
        draw.uniform(0.7, 0.95),
    )
    sunset = draw.bernoulli(0.2)
    pale = _hsv(jnp.where(sunset, 0.07, 0.57), jnp.where(sunset, 0.35, 0.1), 0.93)
    ambient_tint = jnp.where(room, 0.7 + 0.3 * tint, 0.8 + 0.35 * blue / jnp.max(blue) - 0.15)
    return Light(
        sun_direction=sun_direction,
        sun_color=sun * tint,
        ambient=ambient * ambient_tint,
        sky_zenith=blue,
        sky_horizon=pale,
        clouds=jnp.where(draw.bernoulli(0.75), 1.0, 0.0) * (0.4 + 0.6 * overcast),
        hill_height=draw.uniform(0.04, 0.2),
        hill_phase=draw.uniform(0.0, 2.0 * jnp.pi, (3,)),
        sun_radius=draw.uniform(0.005, 0.035),
    )

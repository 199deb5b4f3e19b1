"""Procedural textures: hashed value noise and antialiased patterns in metric coordinates.

Every pattern takes the width of a pixel on the surface and fades to its mean before it would alias.
"""

import jax.numpy as jnp

PLAIN, CHECKER, STRIPES, NOISE, DOTS, MARBLE, TILES = range(7)
NUM_PATTERNS = 7
OCTAVES = 4
_PRIMES = (0x8DA6B343, 0xD8163841, 0xCB1AB31F)


def _hash(h):
    """Uint32 -> uniform float in [0, 1)."""
    h = (h ^ (h >> 15)) * jnp.uint32(0x2C1B3C6D)
    h = (h ^ (h >> 12)) * jnp.uint32(0x297A2D39)
    return (h >> 8).astype(jnp.float32) * (1.0 / (1 << 24))


def _cell(x, prime):
    return x.astype(jnp.int32).astype(jnp.uint32) * jnp.uint32(prime)


def value_noise(x, y, z):
    """Smooth value noise in [0, 1], one random value per unit cell corner; any equal shapes."""
    fx, fy, fz = jnp.floor(x), jnp.floor(y), jnp.floor(z)
    ux, uy, uz = (u * u * (3.0 - 2.0 * u) for u in (x - fx, y - fy, z - fz))
    hx, hy, hz = (_cell(f, p) for f, p in zip((fx, fy, fz), _PRIMES, strict=True))
    nx, ny, nz = (h + jnp.uint32(p) for h, p in zip((hx, hy, hz), _PRIMES, strict=True))

    def line(b, c):
        low, high = _hash(hx ^ b ^ c), _hash(nx ^ b ^ c)
        return low + ux * (high - low)

    def face(c):
        low, high = line(hy, c), line(ny, c)
        return low + uy * (high - low)

    low, high = face(hz), face(nz)
    return low + uz * (high - low)


def fractal_noise(x, y, z, footprint, gain):
    """Multi-octave noise around 0 (about [-1, 1]); `footprint` is the pixel width in cells.

    `gain` (amplitude ratio of successive octaves) tells smooth (0.35) from grainy (0.7).
    """
    total, amplitude, frequency = 0.0, 1.0, 1.0
    for octave in range(OCTAVES):
        shift = 17.3 * octave
        fade = jnp.clip(1.6 - 2.0 * footprint * frequency, 0.0, 1.0)
        noise = value_noise(x * frequency + shift, y * frequency - shift, z * frequency + shift)
        total = total + amplitude * fade * (2.0 * noise - 1.0)
        amplitude, frequency = amplitude * gain, frequency * 2.03
    return total


def _square_wave(x, width, duty=0.5):
    """Square wave of period 1 in [0, 1] (mean about `duty`), edges `width` wide, faded to mean."""
    width = jnp.maximum(width, 0.03)
    distance = jnp.abs(x - jnp.floor(x) - 0.5)
    wave = jnp.clip(0.5 + (0.5 * duty - distance) / width, 0.0, 1.0)
    fade = jnp.clip(1.7 - 1.8 * width, 0.0, 1.0)
    return duty + (wave - duty) * fade


def blend(material, coordinates, flat, footprint):
    """How far the surface is from colour a to colour b, in [0, 1], and its noise.

    material: dict of [P] arrays pattern, frequency (cells per metre), gain, direction_{x,y,z},
        shift_{x,y,z}, warp.
    coordinates: metric position in the object's own frame, three [P] arrays.
    flat: three [P] arrays, 1 on the axis a flat face is normal to (the pattern ignores that axis).
    footprint: [P] pixel width on the surface, metres.
    Returns (mix [P], noise [P] about [-1, 1], tint [P] in [0, 1] constant within a tile).
    """
    frequency = material["frequency"]
    width = footprint * frequency
    shift = tuple(material["shift_" + c] for c in "xyz")
    # a flat face sits in the middle of its cell, wherever the object's size puts it
    x, y, z = (
        jnp.where(f > 0.5, jnp.floor(c * frequency + s) + 0.5, c * frequency + s)
        for c, f, s in zip(coordinates, flat, shift, strict=True)
    )
    noise = fractal_noise(x, y, z, width, material["gain"])
    along = sum(c * material["direction_" + n] for c, n in zip((x, y, z), "xyz", strict=True))

    pattern = material["pattern"]
    wx, wy, wz = (2.0 * _square_wave(c * 0.5, width * 0.5) - 1.0 for c in (x, y, z))
    checker = 0.5 + 0.5 * wx * wy * wz
    warp = material["warp"]
    stripes = _square_wave(along + warp * noise, width * (1.0 + 2.0 * warp))
    veins = jnp.clip(1.7 - 3.5 * width, 0.0, 1.0)  # the noise bends them to several times `along`
    marble = 0.5 + 0.5 * veins * jnp.sin(3.0 * along + 4.0 * noise)
    centre = tuple(c - jnp.floor(c) - 0.5 for c in (x, y, z))
    radius = jnp.sqrt(centre[0] ** 2 + centre[1] ** 2 + centre[2] ** 2)
    edge = jnp.maximum(width, 0.05)
    dots = jnp.clip(0.5 + (0.33 - radius) / edge, 0.0, 1.0)
    plane = jnp.maximum(jnp.maximum(flat[0], flat[1]), flat[2])
    mean = 0.15 + 0.19 * plane  # the share of a ball in a cell, of a disc in a face
    dots = mean + (dots - mean) * jnp.clip(1.7 - 1.8 * width, 0.0, 1.0)
    grout = jnp.maximum(jnp.maximum(jnp.abs(centre[0]), jnp.abs(centre[1])), jnp.abs(centre[2]))
    tiles = jnp.clip(0.5 + (grout - 0.46) / edge, 0.0, 1.0)
    mean = 0.22 - 0.07 * plane
    tiles = mean + (tiles - mean) * jnp.clip(1.7 - 1.8 * width, 0.0, 1.0)
    h = [_cell(jnp.floor(c), p) for c, p in zip((x, y, z), _PRIMES, strict=True)]
    tint = _hash(h[0] ^ h[1] ^ h[2])
    tint = 0.5 + (tint - 0.5) * jnp.clip(1.5 - 1.5 * width, 0.0, 1.0)

    mix = jnp.clip(0.5 + 0.6 * noise, 0.0, 1.0)
    soft = 0.2 * mix
    for index, value in (
        (PLAIN, soft),
        (CHECKER, checker),
        (STRIPES, stripes),
        (DOTS, dots),
        (MARBLE, marble),
        (TILES, tiles),
    ):
        mix = jnp.where(pattern == index, value, mix)
    return mix, noise, jnp.where(pattern == TILES, tint, 0.5)

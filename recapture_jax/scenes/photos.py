"""Photographs as textures of a scene: mirrored tiles in metric coordinates, filtered by a pyramid of means."""

import dataclasses
import math
import pathlib

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from recapture_jax.errors import InputError
from recapture_jax.scenes.draws import Draws
from recapture_jax.scenes.scene import GROUND, NUM_SLOTS, SURROUND, PhotoTextures, Scene

SIDE = 128  # pixels of a texture
SHARE = 0.4  # of surfaces that get one
WIDTHS = (0.8, 3.0)  # metres across one on an object
GROUND_WIDTHS = (2.0, 8.0)  # and on ground and walls
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_GREY = 0.02  # a photograph whose channels differ by less on average has no colour of its own


def read(path: pathlib.Path) -> Image.Image:
    """A photograph, upright, RGB.

    Raises:
        InputError: it is none.
    """
    try:
        with Image.open(path) as file:
            return ImageOps.exif_transpose(file).convert("RGB")
    except OSError as error:
        raise InputError(f"{path} cannot be read as an image ({error}); remove it") from None


def load(folder: pathlib.Path, side: int = SIDE) -> PhotoTextures:
    """The photographs of a folder as textures of no surface yet; see `paste`.

    The middle square of each, in linear light. Grey ones are scaled to a mean of one: they take the colour of
    the surface that they are on.

    Args:
        folder: of png, jpg, webp or bmp files; others are passed over.
        side: pixels, a power of two.

    Raises:
        InputError: no such folder, no photograph in it, or one that cannot be read.
    """
    if side < 1 or side & (side - 1):
        raise InputError(f"side={side}: expected a power of two")
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    pixels, grey = [], []
    for path in (p for p in files if p.suffix.lower() in _SUFFIXES):
        square = ImageOps.fit(read(path), (side, side), Image.Resampling.LANCZOS)
        rgb = (np.asarray(square, np.float32) / 255.0) ** 2.2
        grey.append(float(np.ptp(rgb, axis=-1).mean()) < _GREY)
        pixels.append(rgb / max(float(rgb.mean()), 1e-3) if grey[-1] else rgb)
    if not pixels:
        raise InputError(f"{folder} has no photographs; expected png, jpg, webp or bmp files")
    nothing = jnp.full((NUM_SLOTS + 2,), -1, jnp.int32)
    return PhotoTextures(
        jnp.asarray(_pyramid(np.stack(pixels))),
        jnp.asarray(grey),
        nothing,
        jnp.ones((NUM_SLOTS + 2,)),
    )


def _pyramid(pixels: np.ndarray) -> np.ndarray:
    """`[N, S, S, 3]` and its means over 2x2, 4x4 ... S x S pixels, as `[N, S^2 + S^2 / 4 + ... + 1, 3]`."""
    levels = []
    while True:
        n, side = pixels.shape[:2]
        levels.append(pixels.reshape(n, side * side, 3))
        if side == 1:
            return np.concatenate(levels, axis=1)
        pixels = pixels.reshape(n, side // 2, 2, side // 2, 2, 3).mean((2, 4))


def paste(scene: Scene, textures: PhotoTextures, key, share: float = SHARE) -> Scene:
    """The scene with photographs on a random `share` of its surfaces, the dome aside; a pure function of `key`."""
    rows = NUM_SLOTS + 2
    draw = Draws(key, 4 * rows)
    wanted = draw.bernoulli(share, (rows,))
    wanted = wanted & (scene.room | (jnp.arange(rows) != SURROUND))
    index = jnp.where(wanted, draw.index(len(textures.grey), (rows,)), -1)
    part = draw.uniform(0.0, 1.0, (rows,))
    large = jnp.arange(rows) >= min(GROUND, SURROUND)
    low, high = (jnp.where(large, *pair) for pair in zip(GROUND_WIDTHS, WIDTHS, strict=True))
    width = low * (high / low) ** part
    return dataclasses.replace(
        scene, photos=dataclasses.replace(textures, index=index, width=width)
    )


def sample(textures: PhotoTextures, index, width, coordinates, flat, footprint):
    """The photographs at points of surfaces, trilinearly.

    Args:
        index: `[P]`, -1 where there is none; width: `[P]` metres across one.
        coordinates: metric position in the object's own frame, three `[P]`; flat: three `[P]`, 1 on the
            axis a flat face is normal to. A curved surface is seen along its longest coordinate.
        footprint: `[P]` pixel width on the surface, metres.

    Returns:
        Linear colour, three `[P]`, and `grey` `[P]`: whether it is a factor of the surface's colour.
    """
    side = math.isqrt((3 * textures.pixels.shape[1] + 1) // 4)
    top = side.bit_length() - 1
    x, y, z = coordinates
    curved = 1.0 - flat[0] - flat[1] - flat[2]
    ax, ay, az = (jnp.abs(c) for c in coordinates)
    along_x = (flat[0] > 0.5) | ((curved > 0.5) & (ax >= ay) & (ax >= az))
    along_z = (flat[2] > 0.5) | ((curved > 0.5) & ~along_x & (az >= ay))
    u, v = jnp.where(along_x, y, x) / width, jnp.where(along_z, y, z) / width

    # Mirrored at every other tile, so that there are no seams: a wave between 0 and 1 of period 2.
    u, v = (1.0 - jnp.abs(c - 2.0 * jnp.floor(0.5 * c) - 1.0) for c in (u, v))
    level = jnp.clip(jnp.log2(jnp.maximum(footprint * side / width, 1.0)), 0.0, top)
    floor = jnp.floor(level).astype(jnp.int32)
    photo = jnp.maximum(index, 0)

    def at(level):
        size = side >> level
        # Levels before this one hold side^2 (1 + 1/4 + ...) = 4/3 (side^2 - size^2) texels.
        start = 4 * (side * side - size * size) // 3
        i, j = v * size - 0.5, u * size - 0.5
        i0, j0 = jnp.floor(i), jnp.floor(j)
        colour = 0.0
        for di in (0, 1):
            for dj in (0, 1):
                weight = (1 - jnp.abs(i - i0 - di)) * (1 - jnp.abs(j - j0 - dj))
                row = jnp.clip(i0.astype(jnp.int32) + di, 0, size - 1)
                column = jnp.clip(j0.astype(jnp.int32) + dj, 0, size - 1)
                texel = textures.pixels[photo, start + row * size + column]
                colour = colour + weight[:, None] * texel
        return colour

    fine, coarse = at(floor), at(jnp.minimum(floor + 1, top))
    colour = fine + (level - floor)[:, None] * (coarse - fine)
    return tuple(colour[:, i] for i in range(3)), textures.grey[photo]

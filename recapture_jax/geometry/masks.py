"""Masks of what a splat knows: True = known.

Outside the image nothing is missing, so no operation here eats into a mask from the image border:
an all-known mask stays all-known. The raw mask of a splat, the closed and the eroded one are
different things; keep the raw one for reports and train on the eroded one.
"""

import jax
import jax.numpy as jnp

from recapture_jax.camera import pose
from recapture_jax.errors import InputError
from recapture_jax.geometry.projection import MIN_DEPTH, displaced


def erode(mask: jax.Array, radius: int) -> jax.Array:
    """Known only where every pixel within `radius` (a box) is known; mask `[..., H, W]` bool."""
    return _pool(mask, 2 * radius + 1, True, jax.lax.bitwise_and)


def close_small_holes(
    frame: jax.Array, mask: jax.Array, radius: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Fill holes up to 2 * radius pixels wide with the mean colour of the known pixels around.

    Args:
        frame: `[H, W, C]`.
        mask: `[H, W]` bool.
        radius: half the widest hole that is closed; wider holes are left exactly as they are.

    Returns:
        The filled frame and the closed mask (dilated, then eroded), never smaller than `mask`.
    """
    if radius < 1:
        return frame, mask
    size = 2 * radius + 1
    closed = erode(_pool(mask, size, False, jax.lax.bitwise_or), radius)
    known = jnp.concatenate([frame, jnp.ones_like(frame[..., :1])], -1) * mask[..., None]
    window = (size, size, 1)
    total = jax.lax.reduce_window(known, 0.0, jax.lax.add, window, (1, 1, 1), "SAME")
    mean = total[..., :-1] / jnp.maximum(total[..., -1:], 1.0)
    return jnp.where((closed & ~mask)[..., None], mean, frame), closed


def min_pool(mask: jax.Array, factor: int) -> jax.Array:
    """Mask at latent size, `[..., H, W]` to `[..., H/f, W/f]`: known where all f x f pixels are.

    Raises:
        InputError: when H or W is not a multiple of the factor (a latent has no part of a cell).
    """
    return _blocks(mask, factor).all(axis=(-3, -1))


def mean_pool(mask: jax.Array, factor: int) -> jax.Array:
    """Share of the f x f pixels of each latent that is known, float32; shapes and errors of `min_pool`."""
    return _blocks(mask, factor).mean(axis=(-3, -1), dtype=jnp.float32)


def _blocks(mask: jax.Array, factor: int) -> jax.Array:
    *lead, height, width = mask.shape
    if height % factor or width % factor:
        raise InputError(
            f"a mask of {height}x{width} pixels does not divide into {factor}x{factor} blocks: "
            "resize the clip to a multiple first"
        )
    return mask.reshape(*lead, height // factor, factor, width // factor, factor)


def hole_share(mask: jax.Array) -> jax.Array:
    """Share of unknown pixels per frame, `[..., H, W]` to `[...]` in [0, 1]."""
    return 1.0 - mask.astype(jnp.float32).mean(axis=(-2, -1))


def tearing_mask(
    depth: jax.Array, threshold: float = 0.05, valid: jax.Array | None = None
) -> jax.Array:
    """True (torn) where depth jumps: (max - min) / mean over the 5x5 neighbours > threshold.

    Depth networks smear such steps into points that float between two surfaces.

    Args:
        depth: `[..., H, W]`, positive.
        threshold: relative range that still counts as one surface; 1 keeps nearly everything.
        valid: `[..., H, W]` bool; other depths are ignored.
    """
    near, far, mean = _depth_range(depth, valid)
    return far - near > threshold * mean


def torn_in_view(
    depth: jax.Array,
    source_intrinsics: jax.Array,
    target_intrinsics: jax.Array,
    source_from_target: jax.Array,
    threshold: float = 0.05,
    max_stretch: float = 1.0,
    valid: jax.Array | None = None,
) -> jax.Array:
    """True at the source pixels whose torn depth shows in the target view.

    A smeared depth is wrong by up to the range of its 5x5 neighbourhood, but all that the target
    sees of that error is parallax. A pixel counts as torn only when the nearest and the farthest
    depth around it would land more than `max_stretch` target pixels apart. Without parallax (no
    move, pan, tilt, roll, zoom) both land on the same spot and nothing is torn.

    Args:
        depth: `[H, W]`, positive.
        source_intrinsics: `[3, 3]`; target_intrinsics: `[3, 3]`, pixels.
        source_from_target: `[4, 4]`.
        threshold: as in `tearing_mask`.
        max_stretch: pixels of the target.
        valid: `[H, W]` bool; other depths are ignored.
    """
    target_from_source = pose.inverse(source_from_target)
    cameras = (source_intrinsics, target_intrinsics, target_from_source)

    def torn(depth):
        near, far, mean = _depth_range(depth, valid)
        (near_u, near_v, near_z), (far_u, far_v, far_z) = (
            displaced(z, *cameras) for z in (near, far)
        )
        stretch = jnp.maximum(jnp.abs(near_u - far_u), jnp.abs(near_v - far_v))
        behind = jnp.minimum(near_z, far_z) <= MIN_DEPTH
        return (far - near > threshold * mean) & ((stretch > max_stretch) | behind)

    def whole(depth):
        return jnp.zeros(depth.shape, bool)

    # A camera that stays in its place sees no parallax.
    moves = (target_from_source[:3, 3] != 0).any()
    return jax.lax.cond(moves, torn, whole, jax.lax.stop_gradient(depth))


def _depth_range(
    depth: jax.Array, valid: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Minimum, maximum and mean of the valid depths in each 5x5 window (equal where none is)."""
    if valid is None:
        valid = depth > 0
    near = _pool(jnp.where(valid, depth, jnp.inf), 5, jnp.inf, jax.lax.min)
    far = _pool(jnp.where(valid, depth, -jnp.inf), 5, -jnp.inf, jax.lax.max)
    total = _pool(jnp.where(valid, depth, 0.0), 5, 0.0, jax.lax.add)
    count = _pool(valid.astype(depth.dtype), 5, 0.0, jax.lax.add)
    empty = count == 0
    near, far = (jnp.where(empty, 1.0, layer) for layer in (near, far))
    return near, far, jnp.where(empty, 1.0, total / jnp.maximum(count, 1.0))


def _pool(x: jax.Array, size: int, outside: float | bool, combine) -> jax.Array:
    """Reduce each size x size window of the last two axes, one axis after the other."""
    outside = jnp.asarray(outside, x.dtype)
    for axis in (-2, -1):
        window = [1] * x.ndim
        window[axis] = size
        x = jax.lax.reduce_window(x, outside, combine, window, [1] * x.ndim, "SAME")
    return x


def fill_holes(frame: jax.Array, mask: jax.Array) -> jax.Array:
    """Holes filled with a smooth blend of the colours around them (push-pull pyramid).

    Not an inpainting: it only keeps an encoder from seeing hard black edges. Known pixels are
    untouched.

    Args:
        frame: `[H, W, C]`.
        mask: `[H, W]` bool, at least one True (else the frame comes back as it is).
    """
    weight = mask[..., None].astype(frame.dtype)
    levels = [(frame * weight, weight)]
    while max(levels[-1][0].shape[:2]) > 1:
        levels.append(tuple(_halve(x) for x in levels[-1]))
    colour, weight = levels.pop()
    filled = colour / jnp.maximum(weight, 1e-8)
    for colour, weight in reversed(levels):
        height, width, channels = colour.shape
        coarse = jax.image.resize(filled, (height, width, channels), "linear")
        share = jnp.clip(weight, 0.0, 1.0)
        own = colour / jnp.maximum(weight, 1e-8)
        filled = share * own + (1.0 - share) * coarse
    return jnp.where(mask[..., None], frame, filled)


def _halve(x: jax.Array) -> jax.Array:
    """Sums 2x2 blocks; odd sides are padded with nothing."""
    height, width, channels = x.shape
    x = jnp.pad(x, ((0, height % 2), (0, width % 2), (0, 0)))
    return x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, channels).sum((1, 3))

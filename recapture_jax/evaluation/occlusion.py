"""What another camera sees of a view, from exact depth."""

import jax
import jax.numpy as jnp

from recapture_jax.geometry.projection import in_frame, reproject

TOLERANCE = 0.01  # share of the depth; 15 cm at 15 m


def in_view(
    pixels: jax.Array, z: jax.Array, depth: jax.Array, tolerance: float = TOLERANCE
) -> jax.Array:
    """Which projected points a view with exact depth sees.

    A point is seen when it is inside the image and not behind all four of the view's depths around
    it, so a slope or an outline between two pixels hides nothing by itself.

    Args:
        pixels: `[..., 2]` (u, v) in the view, pixel centres at +0.5; z: `[...]` their depth in it.
        depth: `[h, w]` plane depth of the view.
        tolerance: how far behind still counts as the surface itself, relative.

    Returns:
        `[...]` bool.
    """
    height, width = depth.shape
    u, v = pixels[..., 0], pixels[..., 1]
    inside = in_frame(u, v, z, depth.shape)
    left, top = (jnp.floor(c - 0.5).astype(jnp.int32) for c in (u, v))
    around = [
        depth[jnp.clip(top + i, 0, height - 1), jnp.clip(left + j, 0, width - 1)]
        for i in (0, 1)
        for j in (0, 1)
    ]
    return inside & (z <= jnp.stack(around).max(axis=0) * (1.0 + tolerance))


@jax.jit
def occluded(
    depth: jax.Array,
    intrinsics: jax.Array,
    source_depth: jax.Array,
    source_intrinsics: jax.Array,
    source_from_target: jax.Array,
) -> jax.Array:
    """Pixels of a target clip whose point the source camera does not see at the same moment.

    Args:
        depth: `[T, H, W]` of the target; source_depth: `[T, h, w]`.
        intrinsics: `[3, 3]`; source_intrinsics: `[3, 3]`.
        source_from_target: `[T, 4, 4]`.

    Returns:
        `[T, H, W]` bool.
    """

    def one(frame):
        depth, other, pose = frame
        return ~in_view(*reproject(depth, intrinsics, source_intrinsics, pose), other)

    return jax.lax.map(one, (depth, source_depth, source_from_target))

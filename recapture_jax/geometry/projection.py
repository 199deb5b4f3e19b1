"""Between pixels with depth and points in space, for pinhole cameras.

Depth is the distance along the lens axis (the plane depth z), not along the ray. Pixel centres are
at +0.5: the pixel in row i and column j is seen at (u, v) = (j + 0.5, i + 0.5).
"""

import jax
import jax.numpy as jnp

MIN_DEPTH = 1e-3
"""Points nearer than this along the lens axis, or behind the camera, are not visible."""


def pixel_centres(height: int, width: int, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """(u, v) of every pixel centre, `[H, W, 2]`."""
    v, u = jnp.meshgrid(
        jnp.arange(height, dtype=dtype) + 0.5, jnp.arange(width, dtype=dtype) + 0.5, indexing="ij"
    )
    return jnp.stack([u, v], axis=-1)


def unproject(depth: jax.Array, intrinsics: jax.Array) -> jax.Array:
    """Points `[H, W, 3]` in the camera's frame; plane depth `[H, W]`, intrinsics `[3, 3]` px."""
    height, width = depth.shape
    pixels = pixel_centres(height, width, depth.dtype)
    x = (pixels[..., 0] - intrinsics[0, 2]) / intrinsics[0, 0] * depth
    y = (pixels[..., 1] - intrinsics[1, 2]) / intrinsics[1, 1] * depth
    return jnp.stack([x, y, depth], axis=-1)


def project(points: jax.Array, intrinsics: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where a camera sees points of its own frame.

    Args:
        points: `[..., 3]`.
        intrinsics: `[3, 3]`, pixels.

    Returns:
        pixels `[..., 2]` (u, v), far outside any image for points with z <= MIN_DEPTH, and z
        `[...]`, which tells those apart.
    """
    z = points[..., 2]
    visible = z > MIN_DEPTH
    inverse_z = 1.0 / jnp.where(visible, z, 1.0)
    u = intrinsics[0, 0] * (points[..., 0] * inverse_z) + intrinsics[0, 2]
    v = intrinsics[1, 1] * (points[..., 1] * inverse_z) + intrinsics[1, 2]
    pixels = jnp.stack([u, v], axis=-1)
    return jnp.where(visible[..., None], pixels, -1e6), z

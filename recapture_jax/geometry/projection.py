"""Between pixels with depth and points in space, for pinhole cameras.

Depth is the distance along the lens axis (the plane depth z), not along the ray. Pixel centres are
at +0.5: the pixel in row i and column j is seen at (u, v) = (j + 0.5, i + 0.5).
"""

import dataclasses

import jax
import jax.numpy as jnp

from recapture_jax.camera.pinhole import Camera

MIN_DEPTH = 1e-3
"""Points nearer than this along the lens axis, or behind the camera, are not visible; see `in_own_unit`."""


def in_own_unit(
    depth: jax.Array, cameras: Camera, pivot_depth: float | jax.Array
) -> tuple[jax.Array, Camera]:
    """Depth and cameras in a unit near the pivot depth: `MIN_DEPTH` is absolute, the unit of relative depth is any.

    The factor is a power of two, so no bit of what is seen changes.

    Args:
        depth: of any shape.
        cameras: world_from_camera `[..., 4, 4]`, translations in the unit of the depth.
        pivot_depth: of the subject, likewise.
    """
    pivot = jax.lax.stop_gradient(jnp.asarray(pivot_depth, jnp.float32))
    factor = jnp.ldexp(jnp.float32(1), -jnp.round(jnp.log2(pivot)).astype(jnp.int32))
    poses = cameras.world_from_camera.at[..., :3, 3].multiply(factor)
    return depth * factor, dataclasses.replace(cameras, world_from_camera=poses)


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


def reproject(
    depth: jax.Array,
    source_intrinsics: jax.Array,
    target_intrinsics: jax.Array,
    target_from_source: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Where another camera sees every pixel of a depth map.

    The same as `project` of the transformed `unproject`, but written as a displacement: what does
    not move on the image stays exactly in place, however large the image is.

    Args:
        depth: `[H, W]` plane depth, positive.
        source_intrinsics: `[3, 3]`; target_intrinsics: `[3, 3]`, pixels.
        target_from_source: `[4, 4]`.

    Returns:
        pixels `[H, W, 2]` (u, v) and z `[H, W]` in the target camera, as `project` returns them.
    """
    u, v, z = displaced(depth, source_intrinsics, target_intrinsics, target_from_source)
    return jnp.stack([u, v], axis=-1), z


def displaced(
    depth: jax.Array,
    source_intrinsics: jax.Array,
    target_intrinsics: jax.Array,
    target_from_source: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """u, v and z, each `[H, W]`, of `reproject`: one array per quantity is quicker to work on."""
    pixel = [jax.lax.broadcasted_iota(depth.dtype, depth.shape, axis) + 0.5 for axis in (1, 0)]
    source, target = source_intrinsics, target_intrinsics
    ray = [(pixel[i] - source[i, 2]) / source[i, i] for i in (0, 1)]
    point = (ray[0] * depth, ray[1] * depth, depth)
    # How far each point moves in the camera's frame; sums of products, as a matrix product over
    # the last axis of three is several times slower.
    turn = target_from_source[:3, :3] - jnp.eye(3, dtype=target_from_source.dtype)
    moved = [
        sum(turn[i, j] * point[j] for j in range(3)) + target_from_source[i, 3] for i in range(3)
    ]
    z = depth + moved[2]
    visible = z > MIN_DEPTH
    inverse_z = 1.0 / jnp.where(visible, z, 1.0)
    seen = []
    for i in (0, 1):
        grown = (target[i, i] - source[i, i]) * depth - source[i, i] * moved[2]
        displacement = (grown * ray[i] + target[i, i] * moved[i]) * inverse_z
        shifted = pixel[i] + (target[i, 2] - source[i, 2])
        seen.append(jnp.where(visible, shifted + displacement, -1e6))
    return *seen, z


def in_frame(u: jax.Array, v: jax.Array, z: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Which projected points lie in front of a camera and in its picture of (height, width) pixels."""
    height, width = size
    return (z > MIN_DEPTH) & (u >= 0) & (u < width) & (v >= 0) & (v < height)

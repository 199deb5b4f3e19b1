"""The pinhole camera: intrinsics in pixels and a pose.

OpenCV axes (x right, y down, z forward). Pixel (row i, column j) has its centre at
(u, v) = (j + 0.5, i + 0.5), so the image spans [0, W] x [0, H] and a centred camera has cx = W/2,
cy = H/2. With this convention a resize scales all four intrinsics and a crop shifts two of them.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from recapture_jax.errors import InputError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Camera:
    """One camera or a batch of them (a pytree).

    Attributes:
        intrinsics: `[..., 3, 3]` float32, pixels: [[fx, 0, cx], [0, fy, cy], [0, 0, 1]].
        world_from_camera: `[..., 4, 4]` float32 rigid pose.
    """

    intrinsics: jax.Array
    world_from_camera: jax.Array


def intrinsics_from_fov(
    fov_deg: float, height: int, width: int, axis: str = "vertical"
) -> jax.Array:
    """Intrinsics `[3, 3]` of a centred camera with square pixels.

    Args:
        fov_deg: full field of view in degrees, between 0 and 180.
        height: image height in pixels.
        width: image width in pixels.
        axis: the side that `fov_deg` spans: 'vertical', 'horizontal', 'longer' or 'shorter'.

    Raises:
        InputError: for a field of view outside (0, 180), an empty image or an unknown axis.
    """
    if not (math.isfinite(fov_deg) and 0 < fov_deg < 180):
        raise InputError(
            f"field of view {fov_deg} is impossible: expected degrees between 0 and 180"
        )
    if height < 1 or width < 1:
        raise InputError(
            f"image size {height}x{width} is empty: expected positive height and width"
        )
    spans = {
        "vertical": height,
        "horizontal": width,
        "longer": max(height, width),
        "shorter": min(height, width),
    }
    if axis not in spans:
        raise InputError(f"unknown field-of-view axis {axis!r}: expected one of {', '.join(spans)}")
    focal = 0.5 * spans[axis] / math.tan(math.radians(fov_deg) / 2)
    return jnp.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], jnp.float32)


def resize_intrinsics(
    intrinsics: jax.Array, from_size: tuple[int, int], to_size: tuple[int, int]
) -> jax.Array:
    """Intrinsics `[..., 3, 3]` after resizing the image; sizes are (height, width) in pixels."""
    scale_y, scale_x = to_size[0] / from_size[0], to_size[1] / from_size[1]
    scale = jnp.array([[scale_x], [scale_y], [1.0]], jnp.float32)
    return intrinsics * scale.reshape((1,) * (intrinsics.ndim - 2) + (3, 1))


def crop_intrinsics(intrinsics: jax.Array, top: float, left: float) -> jax.Array:
    """Intrinsics `[..., 3, 3]` after cropping `top` rows and `left` columns (negative: padding)."""
    shift = jnp.array([[0, 0, left], [0, 0, top], [0, 0, 0]], jnp.float32)
    return intrinsics - shift.reshape((1,) * (intrinsics.ndim - 2) + (3, 3))

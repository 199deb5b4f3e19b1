"""Ground truth and occlusion masks of GCD: the recorded views' points, splatted into a camera.

Bit-faithful to what its tables were measured against (float64), with its quirks where `faithful`:

* plane depth takes the rays' angles as evenly spaced over the field of view (up to 0.5 % off);
* points leave integer pixel positions, without the half pixel to the centre;
* points are rounded to float16 (8 to 16 mm at these distances).

`faithful=False` does none of that; results then say so.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from experiments.kubric4d.layout import View, plane_depth

RENDER_SIZE = (280, 420)  # height, width; a result is reduced from it
STRENGTH, FAR_STRENGTH, FAR = 512.0, 256.0, 64.0
NEAREST = 0.1  # metres
SPREAD = 0.02  # weight of a point in the three pixels after its own
BLACK = 1e-7  # a pixel with a smaller sum is one that no point reached


def points(view: View, frame: int, faithful: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """World points `[H * W, 3]` float64 and colours `[H * W, 3]` in [0, 1] of one frame."""
    (height, width), k = view.size, view.intrinsics
    distance = view.distance[frame].astype(np.float64)
    pose = view.world_from_camera[frame]
    if faithful:
        half = [np.arctan(0.5 * n / k[i, i]) for i, n in ((0, width), (1, height))]
        tangents = [
            np.tan(np.linspace(-h, h, n)) for h, n in zip(half, (width, height), strict=True)
        ]
        depth = distance / np.sqrt(tangents[0][None] ** 2 + tangents[1][:, None] ** 2 + 1.0)
    else:
        depth = plane_depth(distance, k)
    centre = 0.0 if faithful else 0.5
    x = (np.arange(width) + centre - k[0, 2]) / k[0, 0]
    y = (np.arange(height) + centre - k[1, 2]) / k[1, 1]
    rays = np.stack([*np.broadcast_arrays(x[None, :], y[:, None]), np.ones((height, width))], -1)
    world = (rays * depth[..., None]).reshape(-1, 3) @ pose[:3, :3].T + pose[:3, 3]
    if faithful:
        world = world.astype(np.float16).astype(np.float64)
    return world, view.rgb[frame].reshape(-1, 3) / 255.0


def splat(
    xyz: np.ndarray,
    rgb: np.ndarray,
    intrinsics: np.ndarray,
    world_from_camera: np.ndarray,
    size: tuple[int, int] = RENDER_SIZE,
    faithful: bool = True,
) -> np.ndarray:
    """Points seen by a camera, `[H, W, 3]` in [0, 1], black where none fell.

    A point fills the pixel it rounds to and, at a fiftieth of its weight, the three to the right and
    below; weights fall off with depth as exp(-512 (2 z / z_max - 1)), so the nearest one wins.

    Args:
        xyz: `[N, 3]` world points; rgb: `[N, 3]` in [0, 1].
        intrinsics: `[3, 3]` pixels of `size`.
        world_from_camera: `[4, 4]`.
        faithful: positions round towards zero, so the first row and column take a wider band.
    """
    height, width = size
    seen = (xyz - world_from_camera[:3, 3]) @ world_from_camera[:3, :3]
    front = seen[:, 2] > NEAREST
    seen, rgb = seen[front], rgb[front]
    z = seen[:, 2]
    image = seen @ intrinsics.T
    uv = image[:, :2] / z[:, None]
    column, row = (np.trunc(uv + 0.5) if faithful else np.floor(uv)).astype(np.int64).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    column, row, z, rgb = column[inside], row[inside], z[inside], rgb[inside]
    if z.size == 0:
        return np.zeros((height, width, 3))
    strength = STRENGTH
    if z.max() >= FAR:
        z, strength = np.minimum(np.sqrt(z), FAR / 2), FAR_STRENGTH
    weight = np.exp(-strength * (2.0 * z / z.max() - 1.0))
    total, sums = np.zeros(height * width), np.zeros((height * width, 3))
    for down, right, share in ((0, 0, 1.0), (0, 1, SPREAD), (1, 0, SPREAD), (1, 1, SPREAD)):
        r, c = row + down, column + right
        kept = (r < height) & (c < width)
        cell, w = (r * width + c)[kept], share * weight[kept]
        total += np.bincount(cell, w, height * width)
        for i in range(3):
            sums[:, i] += np.bincount(cell, w * rgb[kept, i], height * width)
    reached = total > 0
    colors = np.where(reached[:, None], sums / np.where(reached, total, 1.0)[:, None], 0.0)
    return np.clip(colors, 0.0, 1.0).reshape(height, width, 3)


def fill(image: np.ndarray, side: int = 21, sigma: float = 5.25) -> np.ndarray:
    """Black pixels take the blurred colours around them; then the whole image is slightly blurred."""
    empty = image.sum(-1, keepdims=True) == 0
    known = blur((~empty).astype(np.float64), side, sigma)
    filled = np.where(empty, blur(image, side, sigma) / np.maximum(known, 1e-7), image)
    return blur(filled, 3, 0.6)


def blur(image: np.ndarray, side: int, sigma: float) -> np.ndarray:
    """Gaussian of side x side pixels on `[H, W, C]`, borders mirrored about their outermost pixel."""
    offsets = np.arange(side) - (side - 1) / 2
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        image = ndimage.correlate1d(image, kernel, axis=axis, mode="mirror")
    return image


def reduced(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, without antialiasing, to (height, width); float32."""
    shape = (*size, image.shape[-1])
    return np.asarray(
        jax.image.resize(jnp.asarray(image, jnp.float32), shape, "linear", antialias=False)
    )


def rendering(
    views: list[View],
    frame: int,
    intrinsics: np.ndarray,
    world_from_camera: np.ndarray,
    size: tuple[int, int],
    faithful: bool = True,
    render_size: tuple[int, int] = RENDER_SIZE,
) -> np.ndarray:
    """A frame `[H, W, 3]` of `size` seen by a new camera: the ground truth of the tables.

    Args:
        views: all recorded cameras; frame: index into their frames.
        intrinsics: `[3, 3]` pixels at `render_size`.
    """
    clouds = [points(view, frame, faithful) for view in views]
    xyz, rgb = (np.concatenate(parts) for parts in zip(*clouds, strict=True))
    image = splat(xyz, rgb, intrinsics, world_from_camera, render_size, faithful)
    return reduced(fill(image), size)


def occlusion(
    source: View,
    frame: int,
    intrinsics: np.ndarray,
    world_from_camera: np.ndarray,
    size: tuple[int, int],
    faithful: bool = True,
    render_size: tuple[int, int] = RENDER_SIZE,
) -> np.ndarray:
    """`[H, W]` bool: what the points of the source camera alone leave black.

    Holes narrower than about two pixels close and the edges of others recede by one or two. A truly
    black source pixel counts as occluded, as in the published masks.
    """
    xyz, rgb = points(source, frame, faithful)
    image = splat(xyz, rgb, intrinsics, world_from_camera, render_size, faithful)
    return reduced(fill(image, 3, 0.75), size).sum(-1) <= BLACK

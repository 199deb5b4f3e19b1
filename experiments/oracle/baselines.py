"""Plain ways to warp a frame with depth, written here to be compared with `geometry/splat.py`.

* `bilinear_z_weighted`: the forward warper that most open camera-control projects share. A point
  adds its colour to the four pixels around it, with bilinear weights over exp(50 log(1 + z) / m),
  m the largest log(1 + z) of the frame; a pixel is known where any weight arrived.
* `bilinear_with_depth`: the same picture at the cost of the public code as it is published.
* `nearest_z_buffer`: a point paints the one pixel it falls into, the nearest point wins.

All take and return NumPy arrays; intrinsics have pixel centres at +0.5, as everywhere here.
"""

import numpy as np
import torch

EXPONENT = 50.0
MAX_DEPTH = 1000.0
INTEGER_CENTRES = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]], np.float32)


def bilinear_z_weighted(
    colors: np.ndarray,
    depth: np.ndarray,
    source_intrinsics: np.ndarray,
    target_intrinsics: np.ndarray,
    source_from_target: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Colours `[H, W, C]` (0 in holes) and mask `[H, W]` of a frame seen by another camera.

    Points behind the camera are kept, and at an integer position all four corners are the same
    pixel with weight 1 each, as in the public code.

    Args:
        colors: `[H, W, C]` float32.
        depth: `[H, W]` plane depth, positive.
        source_intrinsics: `[3, 3]`; target_intrinsics: `[3, 3]`, pixels.
        source_from_target: `[4, 4]`.
    """
    points = torch.as_tensor(_points(depth, source_intrinsics, source_from_target))
    target = torch.as_tensor(np.asarray(target_intrinsics, np.float32) - INTEGER_CENTRES)
    return _drawn(torch.as_tensor(np.array(colors, np.float32)), points @ target.T)


def bilinear_with_depth(
    colors: np.ndarray,
    depth: np.ndarray,
    source_intrinsics: np.ndarray,
    target_intrinsics: np.ndarray,
    source_from_target: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """`bilinear_z_weighted` with all the work of one call of the public code, for its time.

    That code multiplies each pixel by its own copy of the 3x3 and 4x4 matrices and draws twice with
    the same weights: the colours, then the depth, which is thrown away here.
    """
    height, width = depth.shape
    z = torch.as_tensor(np.array(depth, np.float32))[..., None, None]
    matrices = (
        np.linalg.inv(np.asarray(source_intrinsics, np.float32) - INTEGER_CENTRES),
        np.linalg.inv(np.asarray(source_from_target, np.float64)),
        np.asarray(target_intrinsics) - INTEGER_CENTRES,
    )
    unproject, move, project = (torch.as_tensor(m.astype(np.float32))[None, None] for m in matrices)
    v, u = torch.meshgrid(*(torch.arange(float(n)) for n in (height, width)), indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], dim=-1)[..., None]
    points = z * torch.matmul(unproject, pixels)
    points = torch.matmul(move, torch.cat([points, torch.ones_like(z)], dim=2))[..., :3, :]
    seen = torch.matmul(project, points)[..., 0]
    colors, known = _drawn(torch.as_tensor(np.array(colors, np.float32)), seen)
    _drawn(seen[..., 2:], seen)
    return colors, known


def _drawn(image: torch.Tensor, seen: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Both results for values `[H, W, C]` at homogeneous pixels `[H, W, 3]`."""
    height, width = image.shape[:2]
    z = seen[..., 2]
    position = seen[..., :2] / z[..., None]

    log_depth = torch.log1p(z.clamp(0, MAX_DEPTH))
    depth_weight = torch.exp(EXPONENT * log_depth / log_depth.max())

    # One pixel of border on each side catches what falls outside.
    x = torch.nan_to_num(position[..., 0] + 1).clamp(0, width + 1)
    y = torch.nan_to_num(position[..., 1] + 1).clamp(0, height + 1)
    batch = torch.zeros(1, height, width, dtype=torch.long)
    total = torch.zeros(1, height + 2, width + 2, image.shape[-1])
    weights = torch.zeros(1, height + 2, width + 2, 1)
    for row in (torch.floor(y), torch.ceil(y)):
        for column in (torch.floor(x), torch.ceil(x)):
            share = (1 - (y - row).abs()) * (1 - (x - column).abs())
            weight = (share / depth_weight)[None, ..., None]
            cells = (batch, row[None].long(), column[None].long())
            total.index_put_(cells, image[None] * weight, accumulate=True)
            weights.index_put_(cells, weight, accumulate=True)
    total, weight = total[0, 1:-1, 1:-1], weights[0, 1:-1, 1:-1]
    known = weight > 0
    colors = torch.where(known, total / torch.where(known, weight, 1.0), 0.0)
    return colors.numpy(), known[..., 0].numpy()


def nearest_z_buffer(
    colors: np.ndarray,
    depth: np.ndarray,
    source_intrinsics: np.ndarray,
    target_intrinsics: np.ndarray,
    source_from_target: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """As `bilinear_z_weighted`, one pixel per point; points behind the camera are left out."""
    height, width = depth.shape
    points = _points(depth, source_intrinsics, source_from_target).reshape(-1, 3)
    order = np.argsort(-points[:, 2], kind="stable")  # far first: of equal cells the last one stays
    points = points[order]
    front = points[:, 2] > 1e-3
    points, order = points[front], order[front]
    seen = points @ np.asarray(target_intrinsics, np.float32).T
    column, row = np.floor(seen[:, :2] / seen[:, 2:]).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    cell = (row[inside] * width + column[inside]).astype(np.int64)
    image = np.zeros((height * width, colors.shape[-1]), np.float32)
    known = np.zeros(height * width, bool)
    image[cell] = np.asarray(colors).reshape(height * width, -1)[order[inside]]
    known[cell] = True
    return image.reshape(*depth.shape, -1), known.reshape(depth.shape)


def _points(
    depth: np.ndarray, source_intrinsics: np.ndarray, source_from_target: np.ndarray
) -> np.ndarray:
    """Points `[H, W, 3]` float32 of the source's pixel centres in the target camera's frame."""
    height, width = depth.shape
    v, u = np.mgrid[:height, :width].astype(np.float32) + 0.5
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(source_intrinsics).T
    target_from_source = np.linalg.inv(np.asarray(source_from_target, np.float64))
    points = (rays * np.asarray(depth)[..., None]) @ target_from_source[:3, :3].T
    return (points + target_from_source[:3, 3]).astype(np.float32)


def eroded(known: np.ndarray, radius: int) -> np.ndarray:
    """The mask `[H, W]` with its holes grown by a square of so many pixels to either side."""
    height, width = known.shape
    padded = np.pad(known, radius, constant_values=True)
    size = 2 * radius + 1
    shifts = (padded[i : i + height, j : j + width] for i in range(size) for j in range(size))
    return np.logical_and.reduce(list(shifts))

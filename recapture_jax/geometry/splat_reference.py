"""The splatting rule of `splat.py` as plain loops in float64: the oracle of its tests.

Slow (seconds for a thumbnail); it shares no code with the fast version.
"""

import numpy as np


def splat_reference(
    colors: np.ndarray,
    depth: np.ndarray,
    valid: np.ndarray | None,
    source_intrinsics: np.ndarray,
    target_intrinsics: np.ndarray,
    source_from_target: np.ndarray,
    *,
    torn: np.ndarray | None = None,
    taps: int = 2,
    tau: float = 0.02,
    height: int | None = None,
    width: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Colours `[H, W, C]`, depth, weight and mask `[H, W]`; arguments as in `splat.splat`."""
    source_height, source_width, channels = colors.shape
    height = source_height if height is None else height
    width = source_width if width is None else width
    k1, k2 = np.asarray(source_intrinsics, np.float64), np.asarray(target_intrinsics, np.float64)
    target_from_source = np.linalg.inv(np.asarray(source_from_target, np.float64))

    depths = np.full(
        (source_height, source_width), np.nan
    )  # in the target camera, of what is drawn
    for i in range(source_height):
        for j in range(source_width):
            z1 = float(depth[i, j])
            if np.isfinite(z1) and z1 > 0 and (valid is None or valid[i, j]):
                point = z1 * (np.linalg.inv(k1) @ np.array([j + 0.5, i + 0.5, 1.0]))
                z2 = (target_from_source @ np.append(point, 1.0))[2]
                depths[i, j] = z2 if z2 > 1e-3 else np.nan

    def step(i: int, j: int, di: int, dj: int) -> float:
        """Smaller step of depth to the neighbours along (di, dj); 0 at an edge."""
        sizes = [np.inf]
        for sign in (-1, 1):
            row, column = i + sign * di, j + sign * dj
            if 0 <= row < source_height and 0 <= column < source_width:
                sizes.append(abs(depths[row, column] - depths[i, j]))
        size = np.nanmin(sizes)
        return size if size <= 0.1 * depths[i, j] else 0.0

    fragments: list[tuple[int, int, float, float, float, bool, np.ndarray | None]] = []
    for i in range(source_height):
        for j in range(source_width):
            z1 = float(depth[i, j])
            if not (np.isfinite(z1) and z1 > 0) or (valid is not None and not valid[i, j]):
                continue
            point = z1 * (np.linalg.inv(k1) @ np.array([j + 0.5, i + 0.5, 1.0]))
            point = (target_from_source @ np.append(point, 1.0))[:3]
            z2 = point[2]
            if z2 <= 1e-3:
                continue
            u, v, _ = k2 @ (point / z2)
            grown_x = k2[0, 0] / k1[0, 0] * z1 / z2
            grown_y = k2[1, 1] / k1[1, 1] * z1 / z2
            radius_x, radius_y = (min(max(0.75 * grown, 1), taps) for grown in (grown_x, grown_y))
            front = z2 - 2 * radius_x / max(grown_x, 0.1) * step(i, j, 0, 1)
            front -= 2 * radius_y / max(grown_y, 0.1) * step(i, j, 1, 0)
            left, top = int(np.floor(u - 0.5)), int(np.floor(v - 0.5))
            for row in range(top - taps + 1, top + taps + 1):
                for column in range(left - taps + 1, left + taps + 1):
                    if not (0 <= row < height and 0 <= column < width):
                        continue
                    kernel_x = max(0.0, 1 - abs(column + 0.5 - u) / radius_x)
                    kernel_y = max(0.0, 1 - abs(row + 0.5 - v) / radius_y)
                    if kernel_x * kernel_y > 1e-3:
                        hidden = torn is not None and torn[i, j]
                        color = None if hidden else np.asarray(colors[i, j], np.float64)
                        covers = abs(column + 0.5 - u) <= grown_x / 2 + 0.2
                        covers &= abs(row + 0.5 - v) <= grown_y / 2 + 0.2
                        weight_here = kernel_x * kernel_y
                        fragments.append((row, column, weight_here, z2, front, covers, color))

    nearest = np.full((height, width), np.inf)
    for row, column, _, z, _, covers, _ in fragments:
        if covers:
            nearest[row, column] = min(nearest[row, column], z)
    color_sum = np.zeros((height, width, channels))
    depth_sum, weight = np.zeros((height, width)), np.zeros((height, width))
    for row, column, kernel, z, front, _, color in fragments:
        if color is not None and front <= nearest[row, column] * (1 + tau):
            color_sum[row, column] += kernel * color
            depth_sum[row, column] += kernel * z
            weight[row, column] += kernel
    mask = weight > 0
    divisor = np.where(mask, weight, 1.0)
    return color_sum / divisor[..., None], depth_sum / divisor, weight, mask

"""Pictures about a run: the contact sheet and the camera path seen from above and from the side."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from recapture_jax.camera.trajectory import Trajectory

_CELL = 512  # widest picture of a sheet, pixels; larger ones are reduced
_GAP, _LINE = 6, 16
_PANEL = 480  # side of one view of the camera path
_FRUSTUMS, _FRUSTUM = 8, 0.15  # how many are drawn, and their length in pivot depths
_INK, _PAPER, _FAINT, _MARK = (40, 40, 40), (255, 255, 255), (170, 170, 170), (200, 60, 40)


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[np.ndarray]]], columns: Sequence[str]
) -> np.ndarray:
    """Labelled rows of pictures, `[H, W, 3]` uint8.

    Args:
        rows: label and pictures of each row; pictures `[h, w, 3]` uint8, all of one size.
        columns: a heading per picture of a row.
    """
    height, width = rows[0][1][0].shape[:2]
    scale = min(1.0, _CELL / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    across = len(columns) * (size[0] + _GAP) + _GAP
    sheet = Image.new("RGB", (across, _LINE + len(rows) * (size[1] + _LINE + _GAP)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for j, heading in enumerate(columns):
        draw.text((_GAP + j * (size[0] + _GAP), 2), heading, fill=_INK)
    for i, (label, pictures) in enumerate(rows):
        top = _LINE + i * (size[1] + _LINE + _GAP)
        draw.text((_GAP, top), label, fill=_INK)
        for j, picture in enumerate(pictures):
            image = Image.fromarray(picture)
            image = image if scale == 1.0 else image.resize(size, Image.Resampling.BOX)
            x, y = _GAP + j * (size[0] + _GAP), top + _LINE
            frame = x - 1, y - 1, x + size[0], y + size[1]
            draw.rectangle(frame, outline=_FAINT)  # a mask may be as white as the paper
            sheet.paste(image, (x, y))
    return np.asarray(sheet)


def camera_plot(path: Trajectory, size: tuple[int, int]) -> np.ndarray:
    """The path from above and from the right-hand side, `[H, W, 3]` uint8.

    Lengths are in pivot depths and both views have the same scale. Grey: the source camera; blue
    to red: the new one from the first frame to the last; the cross: the pivot.

    Args:
        path: the cameras.
        size: (height, width) of their pictures in pixels.
    """
    poses = np.array(path.cameras.world_from_camera, np.float64)
    poses[:, :3, 3] /= path.pivot_depth
    intrinsics = np.asarray(path.cameras.intrinsics, np.float64)
    centres, pivot = poses[:, :3, 3], np.array([0.0, 0.0, 1.0])
    picked = np.unique(np.linspace(0, len(poses) - 1, _FRUSTUMS).round().astype(int))
    edges = [_edges(poses[t], intrinsics[t], size) for t in picked]
    source = _edges(np.eye(4), intrinsics[0], size)
    everything = np.concatenate([centres, *edges, source, np.zeros((1, 3)), pivot[None]])
    low, high = everything.min(0), everything.max(0)
    middle, reach = (low + high) / 2, max(float((high - low).max()), 1e-3)
    scale = 0.86 * _PANEL / reach

    # (horizontal axis, its sign), (vertical axis, its sign), edges of the picture that are drawn.
    views = {
        "from above: right is right, forward is up": ((0, 1), (2, -1), slice(0, 2)),
        "from its right: forward is right, up is up": ((2, 1), (1, 1), slice(2, 4)),
    }
    sheet = Image.new("RGB", (2 * _PANEL + _GAP, _PANEL + _LINE), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for panel, (title, (across, along, sides)) in enumerate(views.items()):
        left = panel * (_PANEL + _GAP)

        def place(points, across=across, along=along, left=left):
            points = np.atleast_2d(points) - middle
            x = left + _PANEL / 2 + across[1] * scale * points[:, across[0]]
            y = _LINE + _PANEL / 2 + along[1] * scale * points[:, along[0]]
            return [tuple(p) for p in np.stack([x, y], -1)]

        draw.rectangle((left, _LINE, left + _PANEL - 1, _LINE + _PANEL - 1), outline=_FAINT)
        draw.text((left + 4, 2), title, fill=_INK)
        draw.polygon(place([np.zeros(3), *source[sides]]), outline=_FAINT)
        if len(centres) > 1:
            draw.line(place(centres), fill=_INK, width=1)
        for t, edge in zip(picked, edges, strict=True):
            share = t / max(len(poses) - 1, 1)
            colour = (int(40 + 180 * share), 70, int(220 - 180 * share))
            draw.polygon(place([centres[t], *edge[sides]]), outline=colour)
        ((x, y),) = place(pivot)
        draw.line((x - 5, y - 5, x + 5, y + 5), fill=_MARK, width=2)
        draw.line((x - 5, y + 5, x + 5, y - 5), fill=_MARK, width=2)
    draw.text((4, _LINE + _PANEL - 14), f"panel: {_PANEL / scale:.2g} pivot depths", fill=_INK)
    return np.asarray(sheet)


def _edges(pose: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Middles of the left, right, top and bottom edge of a camera's frustum, `[4, 3]`."""
    (height, width), (fx, fy) = size, (intrinsics[0, 0], intrinsics[1, 1])
    cx, cy = intrinsics[0, 2], intrinsics[1, 2]
    rays = np.ones((4, 3))
    rays[:, 0] = [-cx / fx, (width - cx) / fx, 0, 0]
    rays[:, 1] = [0, 0, -cy / fy, (height - cy) / fy]
    return _FRUSTUM * rays @ pose[:3, :3].T + pose[:3, 3]

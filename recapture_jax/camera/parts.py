"""Where a camera path stops doing one thing and begins another.

A path is cut where travelling, turning or zooming begins or ends, and where the way or the turn has
a corner: an angle between two steps that stands out from those beside it and from the usual one,
both as seen from outside and as seen from the camera. (A circle bends from outside and not for its
camera; a straight way filmed by a camera that pans does the opposite.)
"""

import numpy as np

STILL = 1e-6  # of a length or focal length from frame to frame, in the path's unit
_STILL_TURN = 1e-3  # degrees
_CORNER = np.radians(15.0)
_OUTSTANDING = 3.0  # a corner is so many times the bend beside it


def still_steps(steps: np.ndarray, focal: np.ndarray) -> np.ndarray:
    """Whether nothing happens from each frame to the next, `[T - 1]`.

    Args:
        steps: `[T - 1, 2]` distance and degrees.
        focal: `[T]` focal length over that of frame 0.
    """
    return ~_active(steps, focal).any(-1)


def _active(steps: np.ndarray, focal: np.ndarray) -> np.ndarray:
    """Travels, turns, zooms in each step: `[T - 1, 3]`."""
    zooms = np.abs(np.diff(focal)) >= STILL
    return np.stack([steps[:, 0] >= STILL, steps[:, 1] >= _STILL_TURN, zooms], -1)


def find_parts(
    position: np.ndarray, steps: np.ndarray, poses: np.ndarray, focal: np.ndarray
) -> list[tuple[int, int]]:
    """First and last frame of each part; the last of one is the first of the next.

    Args:
        position: `[T, 3]` in fixed axes.
        steps: `[T - 1, 2]` distance and degrees.
        poses: `[T, 4, 4]` world_from_camera.
        focal: `[T]` focal length over that of frame 0.
    """
    count = len(position)
    if count < 3:
        return [(0, count - 1)]
    active = _active(steps, focal)
    rotation = poses[:, :3, :3]
    between = np.swapaxes(rotation[:-1], 1, 2) @ rotation[1:]
    axis = between - np.swapaxes(between, 1, 2)
    # An axis of turning is the same for both cameras that it lies between.
    own_axis = np.stack([axis[:, 2, 1], axis[:, 0, 2], axis[:, 1, 0]], -1)
    way = np.diff(position, axis=0)
    world = poses[0, :3, :3].T
    middle = world @ (rotation[:-1] + rotation[1:]) / 2
    own_way = (np.swapaxes(middle, 1, 2) @ way[..., None])[..., 0]
    outer_axis = (world @ rotation[:-1] @ own_axis[..., None])[..., 0]
    cut = (active[1:] != active[:-1]).any(-1)
    cut |= _corners(way, active[:, 0]) & _corners(own_way, active[:, 0])
    cut |= _corners(outer_axis, active[:, 1]) & _corners(own_axis, active[:, 1])
    log = np.diff(np.log(focal))
    cut |= active[1:, 2] & active[:-1, 2] & (log[1:] * log[:-1] < 0)
    edges = [0, *(np.flatnonzero(cut) + 1).tolist(), count - 1]
    return list(zip(edges[:-1], edges[1:], strict=True))


def _corners(directions: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Whether `directions` [n, 3] have a corner between each and the next, `[n - 1]`."""
    before, after = directions[:-1], directions[1:]
    sine = np.linalg.norm(np.cross(before, after), axis=-1)
    bend = np.arctan2(sine, (before * after).sum(-1)) * (active[1:] & active[:-1])
    beside = np.pad(bend, 1)
    beside = np.maximum(np.maximum(beside[:-2], beside[2:]), np.median(bend))  # the usual bend too
    found = (bend > _CORNER) & (bend > _OUTSTANDING * beside)
    found[[0, -1]] = False  # one step is no way that a corner could part
    return found

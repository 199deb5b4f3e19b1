"""Cameras of Kubric-4D: the sixteen static ones and the gradual move of the protocol.

Spherical coordinates are (azimuth in degrees, elevation in degrees, radius in metres) about the point
(0, 0, 1) that every camera looks at; world z is up. Poses are float64 world_from_camera with OpenCV
axes, as everywhere in this project.
"""

import numpy as np

CENTRE = np.array([0.0, 0.0, 1.0])
SOURCE = (15.0, 5.0, 15.0)  # the input camera, view 4
SOURCE_VIEW = 4
VIEWS = (
    *((90.0 * k, 45.0, 15.0) for k in range(4)),
    *(((k + 0.5) * 30.0, 5.0, 15.0) for k in range(12)),
)
FOCAL, SENSOR = 32.0, 32.0  # millimetres
RECORDED_SIZE = (384, 576)  # height, width of the recordings
RECORDED_FRAMES, FRAME_RATE = 60, 24
NUM_FRAMES = 14  # of the protocol


def intrinsics(size: tuple[int, int]) -> np.ndarray:
    """`[3, 3]` pixels of the lens for frames of (height, width), square pixels."""
    height, width = size
    focal = FOCAL / SENSOR * width
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])


def positions(spherical: np.ndarray) -> np.ndarray:
    """Metres `[..., 3]` in the world from spherical coordinates `[..., 3]`."""
    azimuth, elevation = np.radians(spherical[..., 0]), np.radians(spherical[..., 1])
    level = np.cos(elevation)
    direction = [np.cos(azimuth) * level, np.sin(azimuth) * level, np.sin(elevation)]
    return CENTRE + spherical[..., 2:] * np.stack(direction, axis=-1)


def poses(spherical: np.ndarray) -> np.ndarray:
    """World_from_camera `[..., 4, 4]` of cameras that look at the centre."""
    eye = positions(np.asarray(spherical, np.float64))
    forward = CENTRE - eye
    forward /= np.linalg.norm(forward, axis=-1, keepdims=True)
    right = np.cross(np.array([0.0, 0.0, -1.0]), forward)
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    result = np.zeros((*eye.shape[:-1], 4, 4))
    axes = (right, np.cross(forward, right), forward, eye)
    result[..., :3, :] = np.stack(axes, axis=-1)
    result[..., 3, 3] = 1.0
    return result


def gradual(start, end, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """Poses `[T, 4, 4]` of a move that is linear in spherical coordinates, first to last frame."""
    share = np.linspace(0.0, 1.0, num_frames)[:, None]
    start, end = (np.asarray(x, np.float64) for x in (start, end))
    return poses((1.0 - share) * start + share * end)

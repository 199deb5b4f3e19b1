"""Cameras to and from the files of other tools; the only place where conventions are converted.

Ours is OpenCV (x right, y down, z forward), nerfstudio's OpenGL (x right, y up, z backward): a camera's
axes differ by diag(1, -1, -1).
"""

import numpy as np

from recapture_jax.camera.trajectory import Trajectory

_OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def nerfstudio_camera_path(path: Trajectory, height: int, width: int, fps: float) -> dict:
    """A nerfstudio camera path (JSON-able): world = source camera of frame 0, fov vertical in degrees."""
    poses = np.asarray(path.cameras.world_from_camera, np.float64)
    focal = np.asarray(path.cameras.intrinsics, np.float64)[:, 1, 1]
    cameras = [
        {
            "camera_to_world": (pose @ _OPENCV_FROM_OPENGL).reshape(-1).round(9).tolist(),
            "fov": float(np.degrees(2 * np.arctan(0.5 * height / f))),
            "aspect": width / height,
        }
        for pose, f in zip(poses, focal, strict=True)
    ]
    return {
        "camera_type": "perspective",
        "render_height": height,
        "render_width": width,
        "fps": float(fps),
        "seconds": len(cameras) / float(fps),
        "is_cycle": False,
        "smoothness_value": 0.0,
        "default_fov": cameras[0]["fov"],
        "default_transition_sec": 1.0 / float(fps),
        "keyframes": [],
        "camera_path": cameras,
        "recapture_jax": {"move": path.name, "pivot_depth": path.pivot_depth},
    }

"""nerfstudio: the viewer's camera path, and transforms.json (also Instant NGP's and SEVA's).

Both hold `camera_to_world` in OpenGL axes (x right, y up, z backward) of a world of their own, whose
unit is arbitrary; ours is OpenCV, so a camera's axes differ by diag(1, -1, -1).

- Camera path: one entry of `camera_path` per frame with `camera_to_world` (16 numbers by rows),
  `fov` (vertical, degrees) and `aspect`. The world of a path written here is the source camera of
  frame 0, and `recapture_jax.pivot_depth` is its unit: such a path comes back in pivot depths.
- transforms.json: `frames[].transform_matrix`; fl_x, fl_y, cx, cy, w, h of all or of each frame, or
  camera_angle_x (radians). Frames go by the numbers in their `file_path` where all have one, as
  nerfstudio orders them, else as they stand.
"""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np

from recapture_jax.camera.formats import parsing
from recapture_jax.camera.path import PosePath, from_trajectory, in_pixels
from recapture_jax.camera.trajectory import Trajectory
from recapture_jax.errors import InputError

_OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
_OURS = "recapture_jax"


def read_camera_path(path: Path) -> PosePath:
    """A camera path of the nerfstudio viewer; see the module's docstring."""
    data = parsing.load_json(path)
    entries = parsing.field(data, "camera_path", str(path), "a list")
    if not entries:
        raise InputError(
            f"{path}: camera_path is empty: expected one camera per frame; export the path from "
            "the viewer's render tab once more"
        )
    kind = data.get("camera_type", "perspective")
    if kind != "perspective":
        raise InputError(f"{path}: camera_type is {parsing.shown(kind)}: expected perspective")
    height = parsing.positive(data, "render_height", str(path), None)
    width = parsing.positive(data, "render_width", str(path), None)
    poses, intrinsics = [], []
    for i, entry in enumerate(entries):
        where = f"{path}: camera_path[{i}]"
        value = parsing.field(entry, "camera_to_world", where, "a list")
        poses.append(_opencv(value, f"{where}.camera_to_world"))
        fov = parsing.positive(entry, "fov", where)
        if not 0.01 <= fov <= 179.99:
            raise InputError(f"{where}: fov is {fov}: expected degrees between 0 and 180")
        aspect = parsing.positive(entry, "aspect", where, (width or 1) / (height or 1))
        focal = 0.5 / math.tan(math.radians(fov) / 2)  # of a frame of height 1
        intrinsics.append(parsing.intrinsics(focal / aspect, focal, 0.5, 0.5))
    result = PosePath(
        np.stack(poses),
        "arbitrary",
        intrinsics=np.stack(intrinsics),
        size=(1, 1),
        name=path.stem,
        notes=_path_notes(data),
    )
    own = data.get(_OURS)
    if own is None:
        return result
    pivot = parsing.positive(own, "pivot_depth", f"{path}: {_OURS}")
    move = parsing.field(own, "move", f"{path}: {_OURS}", "text", path.stem)
    poses = result.world_from_camera.copy()
    poses[:, :3, 3] /= pivot
    return PosePath(poses, "pivot", result.intrinsics, (1, 1), anchored=True, name=move)


def _path_notes(data: dict) -> tuple[str, ...]:
    if data.get("is_cycle"):
        return ("is_cycle is set: the way back from the last to the first camera is not filmed",)
    return ()


def camera_path(path: PosePath, fps: float) -> dict:
    """JSON-able camera path of poses with intrinsics in pixels of `path.size`."""
    height, width = path.size
    cameras = [
        {
            "camera_to_world": (pose @ _OPENCV_FROM_OPENGL).reshape(-1).round(9).tolist(),
            "fov": float(np.degrees(2 * np.arctan(0.5 * height / k[1, 1]))),
            "aspect": width / height,
        }
        for pose, k in zip(path.world_from_camera, path.intrinsics, strict=True)
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
    }


def nerfstudio_camera_path(path: Trajectory, height: int, width: int, fps: float) -> dict:
    """A trajectory as a camera path: world = source camera of frame 0, in units of the depth."""
    poses = from_trajectory(path, (height, width), units="arbitrary")
    own = {"move": path.name, "pivot_depth": path.pivot_depth}
    return camera_path(poses, fps) | {_OURS: own}


def write_camera_path(
    path: PosePath, file: Path, size: tuple[int, int] | None = None, fps: float = 24.0
) -> None:
    """Writes a camera path; poses in pivot depths of the source say so in the file."""
    data = camera_path(_fitted(path, size, file), fps)
    if path.units == "pivot" and path.anchored:
        data[_OURS] = {"move": path.name, "pivot_depth": 1.0}
    file.write_text(json.dumps(data, indent=1) + "\n")


def read_transforms(path: Path) -> PosePath:
    """A transforms.json; see the module's docstring."""
    data = parsing.load_json(path)
    frames = parsing.field(data, "frames", str(path), "a list")
    if not frames:
        raise InputError(f"{path}: frames is empty: expected one camera per frame")
    model = data.get("camera_model", "OPENCV")
    if model not in ["OPENCV", "PINHOLE", "SIMPLE_PINHOLE"]:
        raise InputError(
            f"{path}: camera_model is {parsing.shown(model)}: expected OPENCV or PINHOLE"
        )
    cameras = []
    for i, frame in enumerate(frames):
        where = f"{path}: frames[{i}]"
        value = parsing.field(frame, "transform_matrix", where, "a list")
        pose = _opencv(value, f"{where}.transform_matrix")
        name = parsing.field(frame, "file_path", where, "text", None)
        cameras.append((name, pose, *_lens(data | frame, where)))
    times = None
    if all(name is not None for name, *_ in cameras):
        cameras.sort(key=lambda camera: parsing.natural(camera[0]))
        times = parsing.frame_numbers([name for name, *_ in cameras])
    sizes = {size for *_, size in cameras}
    if len(sizes) > 1:
        raise InputError(f"{path}: frames differ in w and h: expected pictures of one size")
    lenses = [k for _, _, k, _ in cameras]
    return PosePath(
        np.stack([pose for _, pose, _, _ in cameras]),
        "arbitrary",
        intrinsics=None if lenses[0] is None else np.stack(lenses),
        size=sizes.pop(),
        times=times,
        numbered=times is not None,
        name=path.stem,
        notes=_lens_notes(data),
    )


def _lens(camera: dict, where: str) -> tuple[np.ndarray | None, tuple[int, int] | None]:
    """Intrinsics `[3, 3]` and size of one frame, (None, None) if the file has none."""
    width = parsing.positive(camera, "w", where, None)
    height = parsing.positive(camera, "h", where, None)
    focal = parsing.positive(camera, "fl_x", where, None)
    if width is None or height is None:
        if focal is None:
            return None, None
        raise InputError(f"{where}: fl_x without w and h: expected the size of the picture too")
    if focal is None:
        angle = parsing.positive(camera, "camera_angle_x", where)
        if not 1e-4 <= angle < 3.14:
            raise InputError(f"{where}: camera_angle_x is {angle}: expected radians, 0 to pi")
        focal = 0.5 * width / math.tan(angle / 2)
    if min(width, height) < 1:
        raise InputError(f"{where}: w, h are {width}, {height}: expected pixels")
    k = parsing.intrinsics(
        focal,
        parsing.positive(camera, "fl_y", where, focal),
        parsing.field(camera, "cx", where, "a number", width / 2),
        parsing.field(camera, "cy", where, "a number", height / 2),
    )
    return k, (int(height), int(width))


def _lens_notes(data: dict) -> tuple[str, ...]:
    bent = [name for name in _DISTORTION if data.get(name)]
    return (f"lens distortion ({', '.join(bent)}) is left out",) if bent else ()


def write_transforms(path: PosePath, file: Path, size: tuple[int, int] | None = None) -> None:
    """Writes transforms.json with a lens per frame and file_path frame_00000, frame_00001, ..."""
    path = _fitted(path, size, file)
    frames = []
    for i, (pose, k) in enumerate(zip(path.world_from_camera, path.intrinsics, strict=True)):
        lens = {"fl_x": k[0, 0], "fl_y": k[1, 1], "cx": k[0, 2], "cy": k[1, 2]}
        frames.append(
            {
                "file_path": f"frame_{i:05d}.png",
                "transform_matrix": (pose @ _OPENCV_FROM_OPENGL).tolist(),
            }
            | {name: float(value) for name, value in lens.items()}
        )
    height, width = path.size
    data = {"camera_model": "OPENCV", "w": width, "h": height, "frames": frames}
    file.write_text(json.dumps(data, indent=1) + "\n")


def _opencv(value, where: str) -> np.ndarray:
    return parsing.rigid(parsing.matrix(value, where) @ _OPENCV_FROM_OPENGL, where)


def _fitted(path: PosePath, size: tuple[int, int] | None, file: Path) -> PosePath:
    """The path in pixels of `size` (height, width), by default its own."""
    size = size or (path.size if path.size != (1, 1) else None)
    if path.intrinsics is None or size is None:
        missing = "intrinsics" if path.intrinsics is None else "frame size"
        raise InputError(f"{file} cannot be written: {path.name} has no {missing}; give them")
    return in_pixels(dataclasses.replace(path, size=path.size or size), size)

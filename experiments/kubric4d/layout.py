"""Kubric-4D on disk: one reader for the published data and for scenes written by `rendered.py`.

`<root>/scnXXXXX/` holds for each view V `scnXXXXX_p0_vV.json` (written last: a view without it is
unfinished) and `frames_p0_vV/` with `rgba_%05d.png`, `depth_%05d.tiff` (float32 metres to the camera's
centre) and `segmentation_%05d.png` (0 background). The JSON's K is normalised and signed, its cameras
look along -z with y up; both are converted here and nowhere else.
"""

import json
import pathlib
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from recapture_jax.errors import InputError
from recapture_jax.video.write import atomic

_OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0])


@dataclass(frozen=True)
class View:
    """Some frames of one camera.

    Attributes:
        rgb: `[T, H, W, 3]` uint8.
        distance: `[T, H, W]` float32 metres to the camera's centre, along the ray.
        intrinsics: `[3, 3]` float64 pixels; the image spans [0, W] x [0, H].
        world_from_camera: `[T, 4, 4]` float64, OpenCV axes.
        segmentation: `[T, H, W]` uint8, 0 background, k object number k; None if not asked for.
    """

    rgb: np.ndarray
    distance: np.ndarray
    intrinsics: np.ndarray
    world_from_camera: np.ndarray
    segmentation: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.rgb.shape[1:3]


def plane_depth(distance: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Depth along the optical axis `[..., H, W]` from distance along the rays of pixel centres."""
    return distance / ray_lengths(distance.shape[-2:], intrinsics)


def ray_lengths(size: tuple[int, int], intrinsics: np.ndarray) -> np.ndarray:
    """`[H, W]`: distance over plane depth at each pixel centre."""
    height, width = size
    x = (np.arange(width) + 0.5 - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (np.arange(height) + 0.5 - intrinsics[1, 2]) / intrinsics[1, 1]
    return np.sqrt(x[None, :] ** 2 + y[:, None] ** 2 + 1.0)


def data_root(folder: pathlib.Path) -> pathlib.Path:
    """The folder that holds the scenes: the given one, or its `data`.

    Raises:
        InputError: neither holds a scene.
    """
    folder = pathlib.Path(folder).expanduser()
    for root in (folder, folder / "data"):
        if any(root.glob("scn[0-9]*")):
            return root
    raise InputError(f"{folder}: expected folders scn00000, ... of Kubric-4D in it or in its data/")


def scenes(root: pathlib.Path) -> list[str]:
    """Names of the scenes, in order."""
    return sorted(p.name for p in root.glob("scn[0-9]*") if p.is_dir())


def _files(root: pathlib.Path, scene: str, view: int) -> tuple[pathlib.Path, pathlib.Path]:
    return root / scene / f"{scene}_p0_v{view}.json", root / scene / f"frames_p0_v{view}"


def read_view(
    root: pathlib.Path, scene: str, view: int, frames=None, segmentation: bool = False
) -> View:
    """Some frames of one view.

    Args:
        root: see `data_root`.
        frames: indices, or None for all.
        segmentation: whether to read that, too.

    Raises:
        InputError: the view is missing, unfinished or damaged, or has not so many frames.
    """
    path, folder = _files(pathlib.Path(root), scene, view)
    if not path.is_file():
        raise InputError(f"{path} is missing: view {view} of {scene} is not there or unfinished")
    try:
        meta = json.loads(path.read_text())
        width, height = meta["scene"]["resolution"]
        camera = meta["camera"]
        total = int(meta["scene"]["num_frames"])
        matrix = np.abs(np.asarray(camera["K"], np.float64))
        position = np.asarray(camera["positions"], np.float64).reshape(total, 3)
        wxyz = np.asarray(camera["quaternions"], np.float64).reshape(total, 4)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not the metadata of a Kubric-4D view: {error}") from None
    picked = np.arange(total) if frames is None else np.asarray(frames)
    if picked.size == 0 or picked.min() < 0 or picked.max() >= total:
        raise InputError(f"{path}: frames {picked.tolist()} wanted, there are {total}")
    rotation = Rotation.from_quat(wxyz[picked], scalar_first=True).as_matrix()
    pose = np.tile(np.eye(4), (len(picked), 1, 1))
    pose[:, :3, :3] = rotation @ _OPENGL_FROM_OPENCV
    pose[:, :3, 3] = position[picked]
    shape = (height, width)
    rgb = [_image(folder / f"rgba_{t:05d}.png", shape)[..., :3] for t in picked]
    distance = [_image(folder / f"depth_{t:05d}.tiff", shape).reshape(shape) for t in picked]
    labels = None
    if segmentation:
        labels = np.stack([_image(folder / f"segmentation_{t:05d}.png", shape) for t in picked])
    return View(
        np.stack(rgb),
        np.stack(distance).astype(np.float32),
        matrix * np.array([[width], [height], [1.0]]),
        pose,
        labels,
    )


def _image(path: pathlib.Path, size: tuple[int, int]) -> np.ndarray:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; unpack the scene again") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); unpack the scene again") from None
    if pixels.shape[:2] != size:
        raise InputError(f"{path} has {pixels.shape[:2]} pixels, its metadata says {size}")
    return pixels


def write_view(root: pathlib.Path, scene: str, view: int, content: View, notes: dict) -> None:
    """Writes a view whole; the metadata comes last.

    Args:
        content: with segmentation.
        notes: further keys of the metadata, such as where the scene is from.
    """
    path, folder = _files(pathlib.Path(root), scene, view)
    folder.mkdir(parents=True, exist_ok=True)
    height, width = content.size
    opaque = np.full((height, width, 1), 255, np.uint8)
    for t, rgb in enumerate(content.rgb):
        rgba = np.concatenate([rgb, opaque], axis=-1)
        Image.fromarray(rgba).save(folder / f"rgba_{t:05d}.png", compress_level=1)
        Image.fromarray(content.distance[t]).save(folder / f"depth_{t:05d}.tiff")
        labels = Image.fromarray(content.segmentation[t]).convert("P")
        labels.save(folder / f"segmentation_{t:05d}.png")
    rotation = content.world_from_camera[:, :3, :3] @ _OPENGL_FROM_OPENCV
    wxyz = Rotation.from_matrix(rotation).as_quat(scalar_first=True)
    fx, fy = content.intrinsics[0, 0] / width, content.intrinsics[1, 1] / height
    meta = {
        "scene": {"num_frames": len(content.rgb), "resolution": [width, height]},
        "camera": {
            "field_of_view": float(2 * np.arctan(0.5 / fx)),
            "positions": content.world_from_camera[:, :3, 3].tolist(),
            "quaternions": wxyz.tolist(),
            "K": [[fx, 0.0, -0.5], [0.0, -fy, -0.5], [0.0, 0.0, -1.0]],
        },
    }
    with atomic(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(meta | notes, indent=1) + "\n")

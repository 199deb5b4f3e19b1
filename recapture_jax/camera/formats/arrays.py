"""npz files of poses: this package's, ViPE's, GEN3C's and Lyra's, MegaSaM's.

The name of the array says which way it maps; a name that does not (such as `poses`) is refused
unless the caller says, convention='c2w' or 'w2c'. All are OpenCV. Poses are `[T, 4, 4]`, `[T, 3, 4]`
or `[T, 16]`.

    world_from_camera, c2w, cam_c2w, camera_to_world    world_from_camera
    w2c, world_to_camera, extrinsics_w2c                camera_from_world
    data, with inds                                     ViPE: world_from_camera of frames `inds`
    times                                               seconds, where there are no inds
    intrinsics, intrinsic, K                            [3, 3], [T, 3, 3] or fx fy cx cy, pixels
    images, depths                                      [T, H, W, ...]; MegaSaM's, the pictures of its intrinsics
    units, size, zoom, anchored, name                   written by this package, see `path.PosePath`
"""

import zipfile
from pathlib import Path

import numpy as np

from recapture_jax.camera.formats import parsing
from recapture_jax.camera.path import UNITS, PosePath, inverse
from recapture_jax.errors import InputError

_FORWARD = ("world_from_camera", "c2w", "cam_c2w", "camera_to_world")
_BACKWARD = ("w2c", "world_to_camera", "extrinsics_w2c")
_INTRINSICS = ("intrinsics", "intrinsic", "K")
_PICTURES = ("images", "depths")
CONVENTIONS = ("c2w", "w2c")


def read(path: Path, convention: str | None = None) -> PosePath:
    """The poses of an npz; see the module's docstring.

    Raises:
        InputError: for a file without poses or with several, arrays of another shape, or poses of
            which nobody says which way they map.
    """
    if convention not in (None, *CONVENTIONS):
        raise InputError(f"convention {convention!r}: expected one of {', '.join(CONVENTIONS)}")
    arrays = _load(path)
    key, forward = _pose_key(path, arrays, convention)
    poses = _poses(arrays[key], f"{path}: {key}")
    if not forward:
        poses = inverse(poses)
    for name in ("size", "zoom", "times", "inds"):
        if name in arrays and arrays[name].dtype.kind not in "fiu":
            raise InputError(f"{path}: {name} is {arrays[name].dtype}: expected real numbers")
    units = str(arrays["units"]) if "units" in arrays else "arbitrary"
    if units not in UNITS:
        raise InputError(f"{path}: units is {units!r}: expected one of {', '.join(UNITS)}")
    times, name = None, "inds" if "inds" in arrays else "times"
    if name in arrays:
        times = _times(arrays[name], len(poses), f"{path}: {name}")
    return PosePath(
        poses,
        units,
        intrinsics=_intrinsics(path, arrays, len(poses)),
        size=_size(path, arrays),
        zoom=_zoom(path, arrays, len(poses)),
        times=times,
        numbered="inds" in arrays,
        anchored=bool(np.all(arrays.get("anchored", False))),
        name=str(arrays.get("name", path.stem)),
    )


def read_intrinsics(path: Path) -> np.ndarray:
    """`[T, 3, 3]` pixels from ViPE's npz of intrinsics: inds, and data, fx fy cx cy or matrices.

    Raises:
        InputError: for another file.
    """
    arrays = _load(path)
    if "data" not in arrays or not arrays["data"].ndim:
        listed = ", ".join(sorted(arrays)[:8]) or "nothing"
        raise InputError(f"{path} holds {listed}: expected the intrinsics of ViPE, inds and data")
    data = arrays["data"]
    return _intrinsics(path, {"intrinsics": data}, len(data))


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        # Opened here: numpy leaves a broken archive open.
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} cannot be read ({error}): expected an npz, numpy.savez(path, c2w=poses)"
        ) from None


def _pose_key(path: Path, arrays: dict, convention: str | None) -> tuple[str, bool]:
    """The array with the poses and whether it is world_from_camera."""
    found = [name for name in arrays if name in _FORWARD + _BACKWARD]
    if not found and {"data", "inds"} <= set(arrays):
        found = ["data"]
    if not found and convention is not None:
        found = [name for name, array in arrays.items() if array.shape[-2:] in ((4, 4), (3, 4))]
        found = [name for name in found if name not in _INTRINSICS]
    if len(found) != 1:
        listed = ", ".join(sorted(arrays)[:8]) or "nothing"
        hint = "or give the convention, c2w or w2c, as in the format 'npz convention=c2w'"
        hint = hint if not found else "keep one of them"
        raise InputError(
            f"{path} holds {listed}: expected one array of poses called "
            f"{', '.join(_FORWARD[:2] + _BACKWARD[:1])}; {hint}"
        )
    forward = convention == "c2w" if convention else found[0] not in _BACKWARD
    return found[0], forward


def _poses(array: np.ndarray, where: str) -> np.ndarray:
    if array.dtype.kind not in "fiu":
        raise InputError(f"{where} is of type {array.dtype}: expected real numbers")
    shape = array.shape
    if array.ndim == 4 and shape[0] == 1:
        array = array[0]
    if array.ndim == 2 and shape[1] in (12, 16):
        array = array.reshape(len(array), -1, 4)
    if array.ndim != 3 or array.shape[1:] not in ((4, 4), (3, 4)) or not len(array):
        raise InputError(f"{where} has shape {shape}: expected [frames, 4, 4]")
    poses = np.tile(np.eye(4), (len(array), 1, 1))
    poses[:, : array.shape[1]] = array
    return np.stack([parsing.rigid(p, f"{where}[{i}]") for i, p in enumerate(poses)])


def _times(array: np.ndarray, count: int, where: str) -> np.ndarray:
    if array.shape != (count,) or not np.isfinite(array).all():
        raise InputError(f"{where} has shape {array.shape}: expected ({count},), one per pose")
    return parsing.increasing(array.tolist(), [where] * count, "entry")


def _intrinsics(path: Path, arrays: dict, count: int) -> np.ndarray | None:
    key = next((name for name in _INTRINSICS if name in arrays), None)
    if key is None:
        return None
    k, where = arrays[key], f"{path}: {key}"
    if k.dtype.kind not in "fiu" or not np.isfinite(k).all():
        raise InputError(f"{where} is no array of finite numbers: expected [frames, 3, 3]")
    if k.shape in ((4,), (count, 4)):
        k = np.stack([parsing.intrinsics(*row) for row in k.reshape(-1, 4)])
    if k.shape not in ((3, 3), (1, 3, 3), (1, count, 3, 3), (count, 3, 3)):
        raise InputError(f"{where} has shape {k.shape}: expected (3, 3) or ({count}, 3, 3)")
    k = np.broadcast_to(k.reshape(-1, 3, 3), (count, 3, 3)).astype(np.float64)
    if (k[:, [0, 1], [0, 1]] <= 0).any() or not np.allclose(k[:, 2], (0, 0, 1)):
        raise InputError(f"{where}: expected rows fx 0 cx, 0 fy cy, 0 0 1 with fx, fy above 0")
    return k


def _zoom(path: Path, arrays: dict, count: int) -> np.ndarray | None:
    zoom = arrays.get("zoom")
    if zoom is not None and (zoom.shape != (count,) or not ((zoom > 0) & (zoom < 1e6)).all()):
        raise InputError(f"{path}: zoom: expected ({count},) numbers above 0, one per pose")
    return zoom


def _size(path: Path, arrays: dict) -> tuple[int, int] | None:
    if "size" not in arrays:
        pictures = next((arrays[name] for name in _PICTURES if name in arrays), None)
        return None if pictures is None or pictures.ndim < 3 else pictures.shape[1:3]
    size = arrays["size"]
    if size.shape != (2,) or not 1 <= size.min() <= size.max() < 1e6:
        raise InputError(f"{path}: size is {size.tolist()}: expected height, width")
    return int(size[0]), int(size[1])


def write(path: PosePath, file: Path) -> None:
    """Writes everything of the path but its notes."""
    arrays = {"world_from_camera": path.world_from_camera, "units": np.array(path.units)}
    arrays |= {"anchored": np.array(path.anchored), "name": np.array(path.name)}
    values = {name: getattr(path, name) for name in ("intrinsics", "size", "zoom")}
    values["inds" if path.numbered else "times"] = path.times
    arrays |= {name: np.asarray(value) for name, value in values.items() if value is not None}
    with open(file, "wb") as handle:  # numpy would add a suffix to a name
        np.savez(handle, **arrays)

"""COLMAP sparse models: cameras and images, as text or binary (colmap.github.io/format.html).

Poses are `camera_from_world`: a quaternion (w, x, y, z) and a translation, OpenCV axes, arbitrary
unit, pixel centres at +0.5 as ours. Identifiers mean nothing, so frames go by the numbers in the
names of their pictures. Read are SIMPLE_PINHOLE, PINHOLE and, leaving the distortion out,
SIMPLE_RADIAL, RADIAL, OPENCV and FULL_OPENCV. Written are text files with PINHOLE cameras, one per
different lens, and an empty points3D.txt, which other tools expect.
"""

import struct
from pathlib import Path

import numpy as np

from recapture_jax.camera.formats import parsing
from recapture_jax.camera.path import PosePath, inverse
from recapture_jax.errors import InputError

# Name: (identifier of the binary file, number of parameters, number of focal lengths).
_MODELS = {
    "SIMPLE_PINHOLE": (0, 3, 1),
    "PINHOLE": (1, 4, 2),
    "SIMPLE_RADIAL": (2, 4, 1),
    "RADIAL": (3, 5, 1),
    "OPENCV": (4, 8, 2),
    "OPENCV_FISHEYE": (5, 8, 0),
    "FULL_OPENCV": (6, 12, 2),
    "FOV": (7, 5, 0),
    "SIMPLE_RADIAL_FISHEYE": (8, 4, 0),
    "RADIAL_FISHEYE": (9, 5, 0),
    "THIN_PRISM_FISHEYE": (10, 12, 0),
}
_READ = ", ".join(name for name, (_, _, focals) in _MODELS.items() if focals)
_POSE = ("QW", "QX", "QY", "QZ", "TX", "TY", "TZ")


def model_folder(path: Path) -> Path | None:
    """The folder with the model: `path`, or sparse/0, sparse or colmap/sparse/0 in it."""
    for folder in (path, path / "sparse/0", path / "sparse", path / "colmap/sparse/0"):
        if any((folder / f"images{suffix}").exists() for suffix in (".bin", ".txt")):
            return folder
    return None


def files(path: Path) -> tuple[Path, ...]:
    """What is read of a camera file: itself, and of a COLMAP model that is given by its images the cameras, too."""
    cameras = path.with_name(f"cameras{path.suffix}")
    return (path, cameras) if path.stem == "images" and cameras.is_file() else (path,)


def read(path: Path) -> PosePath:
    """A model from its folder, or from its images.txt or images.bin."""
    folder = path.parent if path.is_file() else model_folder(path)
    if folder is None:
        raise InputError(
            f"{path} holds no COLMAP model: expected cameras and images, .txt or .bin, in it or in "
            "sparse/0"
        )
    suffix = path.suffix if path.is_file() else ""
    suffix = suffix or (".bin" if (folder / "images.bin").exists() else ".txt")
    if suffix == ".bin":
        cameras = _read_cameras_bin(folder / "cameras.bin")
        images = _read_images_bin(folder / "images.bin")
    else:
        cameras = _read_cameras_text(folder / "cameras.txt")
        images = _read_images_text(folder / "images.txt")
    if not images:
        raise InputError(f"{folder / 'images'}{suffix} holds no image: expected one per frame")
    images.sort(key=lambda image: parsing.natural(image[0]))
    for name, camera, _, where in images:
        if camera not in cameras:
            raise InputError(
                f"{where}: CAMERA_ID of {name} is {camera}: expected one of "
                f"{', '.join(map(str, sorted(cameras)[:8]))}, those of cameras{suffix}"
            )
    used = [cameras[camera] for _, camera, _, _ in images]
    sizes = {size for _, size, _ in used}
    if len(sizes) > 1:
        raise InputError(f"{folder}: pictures of different size: expected one size")
    times = parsing.frame_numbers([name for name, *_ in images])
    return PosePath(
        inverse(np.stack([pose for _, _, pose, _ in images])),
        "arbitrary",
        intrinsics=np.stack([k for k, _, _ in used]),
        size=sizes.pop(),
        times=times,
        numbered=times is not None,
        name=path.stem if path.is_dir() else folder.name,
        notes=("lens distortion is left out",) if any(bent for _, _, bent in used) else (),
    )


def _camera(where: str, model: str, width: float, height: float, values: list[float]):
    """Intrinsics, size (height, width) and whether distortion was left out."""
    if model not in _MODELS:
        raise InputError(f"{where}: MODEL is {parsing.quoted(model)}: expected one of {_READ}")
    _, count, focals = _MODELS[model]
    if not focals:
        raise InputError(f"{where}: MODEL is {model}: expected one of {_READ}; undistort first")
    if len(values) != count:
        raise InputError(f"{where}: {model} has {len(values)} parameters: expected {count}")
    if not 1 <= min(width, height) <= max(width, height) < 1e6 or min(values[:focals]) <= 0:
        raise InputError(f"{where}: expected a size and a focal length above 0, and a size < 1e6")
    cx, cy, *distortion = values[focals:]
    k = parsing.intrinsics(values[0], values[focals - 1], cx, cy)
    return k, (int(height), int(width)), any(distortion)


def _image(where: str, values: list[float]) -> np.ndarray:
    """`camera_from_world` of the seven numbers of a pose."""
    pose = np.eye(4)
    pose[:3, :3] = parsing.rotation_from_quaternion(values[:4], where)
    pose[:3, 3] = values[4:]
    return parsing.rigid(pose, where)


def _read_cameras_text(path: Path) -> dict:
    cameras = {}
    for number, line in enumerate(parsing.read_text(path).splitlines(), 1):
        words, where = line.split(), f"{path}, line {number}"
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 5:
            raise InputError(
                f"{where} has {len(words)} fields: expected CAMERA_ID MODEL WIDTH HEIGHT PARAMS"
            )
        identifier, width, height = parsing.numbers(
            [words[0], *words[2:4]], where, ("CAMERA_ID", "WIDTH", "HEIGHT")
        )
        values = parsing.numbers(words[4:], where, [f"PARAMS[{i}]" for i in range(12)])
        cameras[int(identifier)] = _camera(where, words[1], width, height, values)
    return cameras


def _read_images_text(path: Path) -> list:
    """(name, camera, camera_from_world, where) of every image; the lines of points are skipped."""
    images, points_follow = [], False
    for number, line in enumerate(parsing.read_text(path).splitlines(), 1):
        where = f"{path}, line {number}"
        if line.lstrip().startswith("#"):
            continue
        if points_follow:  # may be empty
            points_follow = False
            continue
        if not line.strip():
            continue
        words = line.split(maxsplit=9)
        if len(words) != 10:
            raise InputError(
                f"{where} has {len(words)} fields: expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID "
                "NAME, then a line of points"
            )
        values = parsing.numbers(words[1:8], where, _POSE)
        camera = parsing.numbers([words[8]], where, ("CAMERA_ID",))[0]
        images.append((words[9], int(camera), _image(where, values), where))
        points_follow = True
    return images


class _Bytes:
    """A binary file read from front to back, little endian."""

    def __init__(self, path: Path):
        try:
            self.data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        self.path, self.at = path, 0

    def take(self, layout: str) -> tuple:
        size = struct.calcsize("<" + layout)
        if self.at + size > len(self.data):
            raise InputError(
                f"{self.path} ends at byte {len(self.data)}: expected {size} more at byte "
                f"{self.at}; it is cut off, or no COLMAP file"
            )
        self.at += size
        return struct.unpack_from("<" + layout, self.data, self.at - size)

    def name(self) -> str:
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise InputError(f"{self.path}, byte {self.at}: a name without end: expected a zero")
        text = self.data[self.at : end].decode("utf-8", "replace")
        self.at = end + 1
        return text

    def skip(self, size: int) -> None:
        if self.at + size > len(self.data):
            raise InputError(
                f"{self.path} is cut off at byte {len(self.data)}: expected its points"
            )
        self.at += size


def _read_cameras_bin(path: Path) -> dict:
    file, cameras = _Bytes(path), {}
    names = {identifier: name for name, (identifier, _, _) in _MODELS.items()}
    for _ in range(file.take("Q")[0]):
        where = f"{path}, byte {file.at}"
        identifier, model, width, height = file.take("iiQQ")
        if model not in names:
            raise InputError(f"{where}: camera model {model}: expected 0 to {len(names) - 1}")
        values = list(file.take(f"{_MODELS[names[model]][1]}d"))
        parsing.numbers(values, where)
        cameras[identifier] = _camera(where, names[model], width, height, values)
    return cameras


def _read_images_bin(path: Path) -> list:
    file, images = _Bytes(path), []
    for _ in range(file.take("Q")[0]):
        where = f"{path}, byte {file.at}"
        _, *values, camera = file.take("I7dI")
        name = file.name()
        file.skip(24 * file.take("Q")[0])
        images.append((name, camera, _image(where, parsing.numbers(values, where, _POSE)), where))
    return images


def write(path: PosePath, folder: Path) -> None:
    """Writes cameras.txt, images.txt and points3D.txt into a new folder.

    Raises:
        InputError: without intrinsics in pixels of a known size.
    """
    if path.intrinsics is None or path.size in (None, (1, 1)):
        raise InputError(
            f"{folder} cannot be written: {path.name} has no intrinsics in pixels of a known size; "
            "give them"
        )
    height, width = path.size
    lenses, cameras, images = {}, [], []
    for i, (pose, k) in enumerate(
        zip(inverse(path.world_from_camera), path.intrinsics, strict=True)
    ):
        lens = " ".join(repr(float(v)) for v in (k[0, 0], k[1, 1], k[0, 2], k[1, 2]))
        if lens not in lenses:
            lenses[lens] = len(lenses) + 1
            cameras.append(f"{lenses[lens]} PINHOLE {width} {height} {lens}")
        numbers = [*parsing.quaternion_from_rotation(pose[:3, :3]), *pose[:3, 3]]
        values = " ".join(repr(float(v)) for v in numbers)
        images += [f"{i + 1} {values} {lenses[lens]} frame_{i:05d}.png", ""]
    folder.mkdir(parents=True)
    (folder / "cameras.txt").write_text("\n".join(cameras) + "\n")
    (folder / "images.txt").write_text("\n".join(images) + "\n")
    (folder / "points3D.txt").write_text("")

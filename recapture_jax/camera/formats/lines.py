"""One pose per line: RealEstate10K (CameraCtrl's and MotionCtrl's too) and TUM.

RealEstate10K: a first line with the address of the video, then
    timestamp fx fy cx cy 0 0 r11 r12 r13 t1 r21 r22 r23 t2 r31 r32 r33 t3
with intrinsics as shares of width and height, and `camera_from_world` by rows, OpenCV axes, an
arbitrary unit; timestamps are microseconds.

TUM: timestamp tx ty tz qx qy qz qw, `world_from_camera`, OpenCV axes, metres; # starts a comment.
The scale of a SLAM system that writes TUM files may be its own: give one then.
"""

from pathlib import Path

import numpy as np

from recapture_jax.camera.formats import parsing
from recapture_jax.camera.path import PosePath, inverse
from recapture_jax.errors import InputError

_REALESTATE = ("timestamp", "fx", "fy", "cx", "cy", "k1", "k2")
_REALESTATE += tuple(f"{'rrrt'[j]}{i + 1}{j + 1}" for i in range(3) for j in range(4))
_TUM = ("timestamp", "tx", "ty", "tz", "qx", "qy", "qz", "qw")


def _rows(path: Path, names: tuple[str, ...], header: bool) -> tuple[list[list[float]], list[str]]:
    """Numbers of every line and where it stands; a header is a first line of something else."""
    rows, wheres = [], []
    for number, line in enumerate(parsing.read_text(path).splitlines(), 1):
        words, where = line.replace(",", " ").split(), f"{path}, line {number}"
        if not words or words[0].startswith("#"):
            continue
        if header and not rows and len(words) == 1:
            header = False
            continue
        if len(words) != len(names):
            shown = " ".join(names[:7]) + ("" if len(names) < 9 else " and 12 numbers of the pose")
            raise InputError(f"{where} has {len(words)} numbers: expected {len(names)}, {shown}")
        rows.append(parsing.numbers(words, where, names))
        wheres.append(where)
    if not rows:
        raise InputError(f"{path} holds no pose: expected lines of {len(names)} numbers")
    return rows, wheres


def read_realestate10k(path: Path) -> PosePath:
    """Poses and intrinsics in shares of the frame; see the module's docstring."""
    rows, wheres = _rows(path, _REALESTATE, header=True)
    poses, lenses, bent = [], [], False
    for row, where in zip(rows, wheres, strict=True):
        pose = np.eye(4)
        pose[:3] = np.reshape(row[7:], (3, 4))
        poses.append(parsing.rigid(pose, f"{where}, pose"))
        if min(row[1:3]) <= 0:
            raise InputError(f"{where}: fx, fy are {row[1]}, {row[2]}: expected above 0")
        if max(row[1:3]) > 20 or max(row[3:5]) > 2:
            raise InputError(
                f"{where}: fx, fy, cx, cy are {row[1]}, {row[2]}, {row[3]}, {row[4]}: expected "
                "shares of width and height; divide pixels by the size"
            )
        lenses.append(parsing.intrinsics(*row[1:5]))
        bent |= any(row[5:7])
    return PosePath(
        inverse(np.stack(poses)),
        "arbitrary",
        intrinsics=np.stack(lenses),
        size=(1, 1),
        times=parsing.increasing([row[0] * 1e-6 for row in rows], wheres, "timestamp (s)"),
        name=path.stem,
        notes=("lens distortion is left out",) if bent else (),
    )


def write_realestate10k(path: PosePath, file: Path, fps: float = 30.0) -> None:
    """Writes poses and intrinsics.

    Raises:
        InputError: without intrinsics of a known size.
    """
    if path.intrinsics is None or path.size is None:
        raise InputError(
            f"{file} cannot be written: {path.name} has no intrinsics of a known size; give them"
        )
    times = np.arange(path.num_frames) / fps if path.times is None else path.times
    height, width = path.size
    lines = ["written-by-recapture_jax"]
    for time, pose, k in zip(times, inverse(path.world_from_camera), path.intrinsics, strict=True):
        lens = (k[0, 0] / width, k[1, 1] / height, k[0, 2] / width, k[1, 2] / height)
        numbers = [*(repr(float(v)) for v in lens), "0", "0"]
        numbers += [repr(float(v)) for v in pose[:3].reshape(-1)]
        lines.append(" ".join([str(round(time * 1e6)), *numbers]))
    file.write_text("\n".join(lines) + "\n")


def read_tum(path: Path) -> PosePath:
    """Poses in metres; see the module's docstring."""
    rows, wheres = _rows(path, _TUM, header=False)
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    for pose, row, where in zip(poses, rows, wheres, strict=True):
        pose[:3, 3] = row[1:4]
        pose[:3, :3] = parsing.rotation_from_quaternion([row[7], *row[4:7]], where)
        pose[:] = parsing.rigid(pose, where)
    times = parsing.increasing([row[0] for row in rows], wheres, "timestamp")
    return PosePath(poses, "metres", times=times, name=path.stem)


def write_tum(path: PosePath, file: Path, fps: float = 30.0) -> None:
    """Writes poses, in whatever unit they are; a comment says which."""
    times = np.arange(path.num_frames) / fps if path.times is None else path.times
    lines = [f"# timestamp tx ty tz qx qy qz qw, translations in {path.units} units"]
    for time, pose in zip(times, path.world_from_camera, strict=True):
        quaternion = np.roll(parsing.quaternion_from_rotation(pose[:3, :3]), -1)
        lines.append(" ".join(repr(float(v)) for v in [time, *pose[:3, 3], *quaternion]))
    file.write_text("\n".join(lines) + "\n")

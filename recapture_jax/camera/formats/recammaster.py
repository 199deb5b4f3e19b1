"""ReCamMaster's camera_extrinsics.json (MultiCamVideo, InfCam and others use it too).

`{"frame0": {"cam01": "[r r r 0] [r r r 0] [r r r 0] [x y z 1] ", ...}, ...}`: one Unreal Engine pose
per frame and camera, `world_from_camera` transposed (the translation is the last row), centimetres,
axes x forward, y right, z up (left-handed). Its reader uses every fourth frame; here all count.
"""

import json
import re
from pathlib import Path

import numpy as np

from recapture_jax.camera.formats import parsing
from recapture_jax.camera.path import PosePath
from recapture_jax.errors import InputError

# Right is y, down is -z, forward is x; on both sides, world and camera, so that hands match.
_OPENCV_FROM_UNREAL = np.array(
    [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
)
_CENTIMETRES = 100.0


def read(path: Path, camera: str | None = None) -> PosePath:
    """One camera of the file, in metres.

    Args:
        path: the file.
        camera: such as "cam03" or "3"; may be left out if there is only one.

    Raises:
        InputError: for a camera that is not there, or that is to be chosen; a gap in the frames;
            or a pose that is none.
    """
    data = parsing.load_json(path)
    frames = {}
    for key in data:
        match = re.fullmatch(r"frame([0-9]{1,7})", key)
        if match is None:
            raise InputError(f"{path}: field {key!r}: expected frame0, frame1, ...")
        frames[int(match[1])] = key
    if sorted(frames) != list(range(len(frames))) or not frames:
        missing = next(i for i in range(len(frames) + 1) if i not in frames)
        raise InputError(
            f"{path}: frame{missing} is missing: expected frame0, frame1, ... in a row"
        )
    first = data["frame0"]
    names = sorted(first) if isinstance(first, dict) else []
    name = _choose(path, names, camera)
    poses = []
    for number in range(len(frames)):
        where = f"{path}: frame{number}"
        text = parsing.field(data[frames[number]], name, where, "text")
        poses.append(_pose(text, f"{where}.{name}"))
    return PosePath(np.stack(poses), "metres", name=f"{path.stem}-{name}")


def _choose(path: Path, names: list[str], camera: str | None) -> str:
    listed = ", ".join(names[:12]) or "none"
    if camera is None:
        if len(names) == 1:
            return names[0]
        raise InputError(
            f"{path} holds the cameras {listed}: expected one to be chosen, as in the format "
            f"'recammaster camera={names[0] if names else 'cam01'}'"
        )
    camera = str(camera)
    name = f"cam{int(camera):02d}" if camera.isdigit() else camera
    if name not in names:
        raise InputError(f"{path} has no camera {camera!r}: expected one of {listed}")
    return name


def _pose(text: str, where: str) -> np.ndarray:
    rows = re.findall(r"\[([^\[\]]*)\]", text)
    if len(rows) != 4 or re.sub(r"\[[^\[\]]*\]|\s", "", text):
        raise InputError(f"{where} is {parsing.quoted(text)}: expected four rows in brackets")
    if any(len(row.split()) != 4 for row in rows):
        raise InputError(f"{where} is {parsing.quoted(text)}: expected four numbers in each row")
    unreal = np.reshape(parsing.numbers(" ".join(rows).split(), where), (4, 4)).T
    unreal[:3, 3] /= _CENTIMETRES
    return parsing.rigid(_OPENCV_FROM_UNREAL @ unreal @ _OPENCV_FROM_UNREAL.T, where)


def write(path: PosePath, file: Path, camera: str = "cam01") -> None:
    """Writes one camera.

    Raises:
        InputError: when the poses are not in metres.
    """
    if path.units != "metres":
        raise InputError(
            f"{file} cannot be written: {path.name} is in {path.units} units, the format in "
            "centimetres; scale the path to metres"
        )
    frames = {}
    for i, pose in enumerate(path.world_from_camera):
        unreal = _OPENCV_FROM_UNREAL.T @ pose @ _OPENCV_FROM_UNREAL
        unreal[:3, 3] *= _CENTIMETRES
        rows = (" ".join(repr(float(v)) for v in row) for row in unreal.T)
        frames[f"frame{i}"] = {camera: " ".join(f"[{row}]" for row in rows) + " "}
    file.write_text(json.dumps(frames, indent=1) + "\n")

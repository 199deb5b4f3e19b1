"""What all readers share: files, numbers and matrices, and refusals that say where."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recapture_jax.errors import InputError

REQUIRED = object()
_ROTATION_TOLERANCE = 5e-3  # files carry as few as three digits
_LARGEST = 1e12  # beyond it nothing in a camera file has a meaning
_KINDS = {
    "a number": (int, float),
    "a whole number": int,
    "a list": list,
    "an object": dict,
    "text": str,
}


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        InputError: when it is missing, a folder, empty, or no UTF-8 text.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: expected a file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: expected a camera file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text (byte {error.start}): expected UTF-8") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if not text.strip():
        raise InputError(f"{path} is empty: expected camera poses")
    return text


def load_json(path: Path) -> dict:
    """The object of a JSON file.

    Raises:
        InputError: with line and column of what is no JSON.
    """
    text = read_text(path)
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}, column {error.colno}: {error.msg}: expected JSON"
        ) from None
    except (RecursionError, ValueError):  # too deep, or a number of thousands of digits
        raise InputError(f"{path} is no file of cameras: expected their JSON") from None
    if not isinstance(data, dict):
        raise InputError(f"{path} holds a JSON {type(data).__name__}: expected an object")
    return data


def field(data: dict, key: str, where: str, kind: str, default=REQUIRED):
    """`data[key]`, checked to be of a kind (a key of _KINDS).

    Raises:
        InputError: when it is missing without a default, or of another kind or not finite.
    """
    if not isinstance(data, dict):
        raise InputError(f"{where} is {shown(data)}: expected an object")
    if key not in data:
        if default is not REQUIRED:
            return default
        raise InputError(f"{where}: field {key!r} is missing: expected {kind}")
    value = data[key]
    ok = isinstance(value, _KINDS[kind]) and not isinstance(value, bool)
    if not ok or (isinstance(value, int | float) and not abs(value) <= _LARGEST):
        raise InputError(f"{where}: {key} is {shown(value)}: expected {kind}")
    return value


def positive(data: dict, key: str, where: str, default=REQUIRED):
    """A number above 0 (1e-6 at least) from `data[key]`, see `field`."""
    value = field(data, key, where, "a number", default)
    if value is not None and value is not default and value < 1e-6:
        raise InputError(f"{where}: {key} is {value}: expected above 0")
    return value


def numbers(tokens: Sequence, where: str, names: Sequence[str] = ()) -> list[float]:
    """Finite numbers from words or JSON values; `names` are the fields they stand for."""
    values = []
    for i, token in enumerate(tokens):
        label = names[i] if i < len(names) else f"item {i + 1}"
        try:
            if isinstance(token, bool | list | dict) or token is None:
                raise ValueError
            value = float(token)
        except (ValueError, OverflowError):
            raise InputError(f"{where}: {label} is {shown(token)}: expected a number") from None
        if not abs(value) < 1e30:
            raise InputError(f"{where}: {label} is {value}: expected a finite number")
        values.append(value)
    return values


def matrix(value, where: str) -> np.ndarray:
    """A 4x4 float64 matrix from nested lists 4x4 or 3x4, or 16 or 12 numbers row by row."""
    rows = value
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{where} is {shown(value)}: expected a 4x4 matrix")
    if all(isinstance(row, list) for row in rows):
        if len(rows) not in (3, 4) or any(len(row) != 4 for row in rows):
            shape = "x".join(map(str, sorted({len(row) for row in rows})))
            raise InputError(f"{where} has {len(rows)} rows of {shape}: expected 4 rows of 4")
        rows = [number for row in rows for number in row]
    if len(rows) not in (12, 16):
        raise InputError(f"{where} has {len(rows)} numbers: expected 16, a 4x4 matrix by rows")
    flat = numbers(rows, where)
    result = np.eye(4)
    result[: len(flat) // 4] = np.reshape(flat, (-1, 4))
    return result


def rigid(pose: np.ndarray, where: str) -> np.ndarray:
    """The rigid pose `[4, 4]` nearest to `pose`, if that is rigid up to the digits of a file.

    Raises:
        InputError: for a last row other than 0 0 0 1 (a transposed matrix has its translation
            there), axes that are mirrored, scaled or sheared, or numbers that are not finite.
    """
    if not np.isfinite(pose).all():
        raise InputError(f"{where} holds numbers that are not finite: expected a pose")
    if np.abs(pose).max() > _LARGEST:
        raise InputError(f"{where} holds {np.abs(pose).max():g}: expected at most {_LARGEST:g}")
    if not np.allclose(pose[3], (0, 0, 0, 1), atol=1e-6):
        row = " ".join(f"{x:g}" for x in pose[3])
        raise InputError(
            f"{where}: the last row is {row}: expected 0 0 0 1; is the matrix transposed?"
        )
    rotation = pose[:3, :3]
    lengths = np.linalg.norm(rotation, axis=0)
    if np.abs(lengths - 1).max() > _ROTATION_TOLERANCE:
        shown = ", ".join(f"{x:.4g}" for x in lengths)
        raise InputError(
            f"{where}: the axes have lengths {shown}: expected 1 each, a rotation; take the scale "
            "out of the matrix"
        )
    if np.abs(rotation.T @ rotation - np.eye(3)).max() > _ROTATION_TOLERANCE:
        raise InputError(f"{where}: the axes are not at right angles: expected a rotation")
    if np.linalg.det(rotation) < 0:
        raise InputError(
            f"{where}: the axes are mirrored (determinant -1): expected a rotation; flip one axis "
            "of a left-handed tool before exporting"
        )
    u, _, vt = np.linalg.svd(rotation)
    result = pose.astype(np.float64)
    result[:3, :3] = u @ vt
    return result


def rotation_from_quaternion(quaternion: Sequence[float], where: str) -> np.ndarray:
    """Rotation `[3, 3]` float64 of (w, x, y, z).

    Raises:
        InputError: when its length is not 1 up to the digits of a file.
    """
    from scipy.spatial.transform import Rotation

    w, *xyz = quaternion
    length = math.hypot(w, *xyz)
    if abs(length - 1) > 1e-2:
        raise InputError(f"{where}: the quaternion has length {length:.4g}: expected 1")
    return Rotation.from_quat([*xyz, w]).as_matrix()


def quaternion_from_rotation(rotation: np.ndarray) -> np.ndarray:
    """(w, x, y, z) float64 of a rotation `[3, 3]`, w not negative."""
    from scipy.spatial.transform import Rotation

    return np.roll(Rotation.from_matrix(rotation).as_quat(canonical=True), 1)


def natural(name: str) -> list:
    """Sort key that reads numbers in names as numbers: frame 10 comes after frame 9."""
    parts = re.split(r"([0-9]+)", name)
    parts[1::2] = [(len(digits.lstrip("0")), digits.lstrip("0")) for digits in parts[1::2]]
    return parts


def frame_numbers(names: Sequence[str]) -> np.ndarray | None:
    """Frame numbers `[T]` float64, the clip's first being 0, of pictures with gaps in their numbering.

    None where the names are numbered evenly or not at all: then their order says as much. Numbers count from 0 or
    from 1; of a series that begins later, the first pictures are missing.
    """
    texts = {tuple(re.split(r"[0-9]+", name)) for name in names}
    if len(texts) != 1 or len(names) < 3:
        return None
    groups = np.array([re.findall(r"[0-9]+", name) for name in names])
    varying = [column for column in groups.T if len(set(column)) > 1]
    if len(varying) != 1:
        return None
    numbers = varying[0].astype(np.float64)
    steps = np.diff(numbers)
    if (steps <= 0).any() or (steps == steps[0]).all():
        return None
    return numbers - min(numbers[0], 1.0)


def increasing(times: Sequence[float], wheres: Sequence[str], what: str) -> np.ndarray:
    """`times` as an array.

    Raises:
        InputError: naming the first that does not come after the one before it.
    """
    for before, after, where in zip(times, times[1:], wheres[1:], strict=False):
        if after <= before:
            raise InputError(
                f"{where}: {what} {after:.10g} follows {before:.10g}: expected it to increase"
            )
    return np.asarray(times, np.float64)


def intrinsics(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    """`[3, 3]`."""
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def quoted(value: str) -> str:
    """Text of a file, short enough for one line."""
    return repr(value if len(value) <= 40 else value[:37] + "...")


def shown(value) -> str:
    """A value of a file, short enough for one line."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, int) and abs(value) > _LARGEST:
        return "a huge number"
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )

"""Reading a .pth file without torch, and without running what is in it.

Since torch 1.6 such a file is a zip archive: `*/data.pkl` is a pickle in which a storage is only a
reference to the bytes of `*/data/<key>`. The pickle is read with the handful of names that a state
dict needs; any other name, that is any code, is refused.
"""

import collections
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from converters.rules import ConversionError, Shape
from converters.sources import Tensors

_STORAGES = {  # torch's class: (dtype, its name in safetensors)
    "DoubleStorage": (np.float64, "F64"),
    "FloatStorage": (np.float32, "F32"),
    "HalfStorage": (np.float16, "F16"),
    "BFloat16Storage": (ml_dtypes.bfloat16, "BF16"),
    "LongStorage": (np.int64, "I64"),
    "IntStorage": (np.int32, "I32"),
    "ByteStorage": (np.uint8, "U8"),
    "BoolStorage": (np.bool_, "BOOL"),
}
_NESTED = ("model", "state_dict")  # where training checkpoints keep the weights


@dataclass(frozen=True)
class _Storage:
    """Bytes of the archive: `<folder>/data/<key>`, `_STORAGES[name]` says of what."""

    name: str
    key: str


@dataclass(frozen=True)
class _Stored:
    """A tensor: a strided view of a storage, in elements."""

    storage: _Storage
    offset: int
    shape: Shape
    strides: tuple[int, ...]


@dataclass
class TorchTensors(Tensors):
    """The tensors of a .pth file."""

    path: Path | None = None
    folder: str = ""
    stored: dict[str, _Stored] = field(default_factory=dict)

    def put(self, name: str, tensor: _Stored) -> None:
        """Registers a tensor under `name`."""
        self.stored[name] = tensor
        self.shapes[name] = tensor.shape
        self._dtypes[name] = _STORAGES[tensor.storage.name][1]

    def read(self, name: str) -> np.ndarray:
        tensor = self.stored[name]
        dtype, _ = _STORAGES[tensor.storage.name]
        try:
            with zipfile.ZipFile(self.path) as archive:
                content = archive.read(f"{self.folder}data/{tensor.storage.key}")
            values = np.frombuffer(content, dtype)[tensor.offset :]
            last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
            # a view that leaves the storage would read memory that is not the file's
            if min((tensor.offset, *tensor.strides, *tensor.shape)) < 0 or last >= len(values):
                raise ValueError("its values lie outside of the file")
        except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
            raise ConversionError(
                f"{self.path}: {name} is damaged ({error}); download the file again"
            ) from None
        strides = [step * values.itemsize for step in tensor.strides]
        return np.lib.stride_tricks.as_strided(values, tensor.shape, strides, writeable=False)


def open_torch(path: Path) -> TorchTensors:
    """The tensors of a .pth file: a state dict, or a dict with one under 'model' or 'state_dict'.

    The prefix 'module.' of models trained in parallel is dropped.

    Raises:
        ConversionError: not such a file, or one that holds code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
            if len(pickles) != 1:
                raise pickle.UnpicklingError("no data.pkl in it")
            folder = pickles[0].removesuffix("data.pkl")
            if f"{folder}byteorder" in archive.namelist():
                if archive.read(f"{folder}byteorder") != b"little":
                    raise pickle.UnpicklingError("written on a big-endian machine")
            with archive.open(pickles[0]) as file:
                content = _Unpickler(file).load()
    except zipfile.BadZipFile:
        raise ConversionError(
            f"{path} is not a whole .pth file of torch 1.6 or later; download it again"
        ) from None
    except OSError as error:
        raise ConversionError(f"{path} cannot be read ({error.strerror or error})") from None
    except Exception as error:  # a pickle that is not one can raise anything
        raise ConversionError(
            f"{path} does not hold plain weights ({error}); use the published file"
        ) from None
    return _tensors(path, folder, content)


def _tensors(path: Path, folder: str, content: Any) -> TorchTensors:
    for name in _NESTED:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict) or not content:
        raise ConversionError(f"{path} does not hold a state dict; use the published file")
    odd = [
        str(key)
        for key, value in content.items()
        if not (isinstance(key, str) and isinstance(value, _Stored))
    ]
    if odd:
        raise ConversionError(
            f"{path} holds {odd[0]} beside named tensors, expected a state dict; use the published "
            "file"
        )
    parallel = all(key.startswith("module.") for key in content)
    found = TorchTensors(path=path, folder=folder)
    for key, tensor in content.items():
        found.put(key.removeprefix("module.") if parallel else key, tensor)
    return found


class _Unpickler(pickle.Unpickler):
    """Knows tensors and ordered dictionaries, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _rebuild_parameter
        if module == "torch" and name in _STORAGES:
            return name  # only ever used in a reference to a storage
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, reference: tuple) -> _Storage:
        kind, name, key, _location, _count = reference
        if kind != "storage" or name not in _STORAGES:
            raise pickle.UnpicklingError(f"it refers to {kind} {name}")
        return _Storage(name, str(key))


def _rebuild_tensor(storage, offset, shape, strides, *_) -> _Stored:
    return _Stored(storage, int(offset), tuple(shape), tuple(strides))


def _rebuild_parameter(tensor, *_) -> _Stored:
    return tensor

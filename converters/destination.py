"""Writing a converted checkpoint: a folder that appears whole or not at all."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from converters.rules import ConversionError, Fill
from converters.sources import Tensors

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def check_destination(dst: Path, overwrite: bool) -> None:
    """Raises ConversionError if `dst` is there, unless it may be replaced and is ours (or empty)."""
    if not dst.exists():
        return
    if not overwrite:
        raise ConversionError(f"{dst} exists already; choose another folder or pass --overwrite")
    # Replacing means deleting: only what is known to be ours.
    empty = dst.is_dir() and not any(dst.iterdir())
    if not empty and not (dst / "source.json").is_file():
        raise ConversionError(
            f"{dst} is not an earlier conversion (no source.json in it), so it is not replaced; "
            "choose another folder"
        )


@contextlib.contextmanager
def new_folder(dst: Path) -> Iterator[Path]:
    """Gives a folder beside `dst` to write into; it becomes `dst` at the end, or is removed.

    Raises:
        ConversionError: it cannot be written.
    """
    building = dst.with_name(f"{dst.name}.tmp-{os.getpid()}")
    try:
        building.mkdir(parents=True)
        yield building
        _put_in_place(building, dst)
    except OSError as error:
        raise ConversionError(f"{dst} cannot be written ({error})") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def check_space(folder: Path, plans: Iterable[tuple[Tensors, Sequence[Fill]]], dtype: str) -> None:
    """Raises ConversionError if the disk of `folder` has no room for the planned arrays."""
    size = np.dtype(DTYPES[dtype]).itemsize
    need = sum(
        int(np.prod(tensors.shapes[fill.key])) // fill.parts * size
        for tensors, fills in plans
        for fill in fills
    )
    free = shutil.disk_usage(folder).free
    if free < need:
        raise ConversionError(
            f"{folder.parent} has {free / 1e9:.1f} GB free, the checkpoint needs "
            f"{need / 1e9:.1f} GB; make room or choose another --dtype or folder"
        )


def write_origin(
    folder: Path, name: str, root: Path, files: Iterable[Path], dtype: str, converter: str
) -> None:
    """source.json: name of the source, SHA-256 of its files (relative to `root`), dtype, converter."""
    origin = {
        "source": name,
        "sha256": file_hashes(root, files),
        "dtype": dtype,
        "converter": converter,
    }
    write_json(folder / "source.json", origin)


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def file_hashes(root: Path, files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 by path of files given relative to `root`."""
    return {path.as_posix(): _sha256(root / path) for path in files}


def _put_in_place(building: Path, dst: Path) -> None:
    """Renames `building` to `dst`; an old `dst` is moved aside first and comes back on failure."""
    if not dst.exists():
        building.rename(dst)
        return
    aside = dst.with_name(f"{dst.name}.old-{os.getpid()}")
    dst.rename(aside)
    try:
        building.rename(dst)
    except OSError:
        aside.rename(dst)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

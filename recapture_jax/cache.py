"""Results of stages on disk, found again by what went into them.

A stage's key is a hash of its inputs (contents, not names) and of its part of the configuration. An
entry is a folder that appears whole or not at all.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

FORMAT = 3  # raise when a stage computes something else from the same inputs


def file_hash(path: pathlib.Path) -> str:
    """sha256 of a file, or of all files of a folder by name and content."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        digest.update(str(file.relative_to(path)).encode())
        with open(file, "rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def key(stage: str, **inputs: Any) -> str:
    """Hash of JSON-able inputs; the order of fields does not matter."""
    text = json.dumps([FORMAT, stage, inputs], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class StageCache:
    """Entries under `root/<stage>-<key>/`, unfinished work under `root/work/`."""

    def __init__(self, root: pathlib.Path):
        self.root = root

    def entry(self, stage: str, key: str) -> pathlib.Path:
        return self.root / f"{stage}-{key}"

    def has(self, stage: str, key: str) -> bool:
        return self.entry(stage, key).is_dir()

    def work(self, stage: str, key: str) -> pathlib.Path:
        """A folder for the checkpoints of an unfinished stage; kept until the stage is done."""
        return self.root / "work" / f"{stage}-{key}"

    @contextlib.contextmanager
    def writing(self, stage: str, key: str) -> Iterator[pathlib.Path]:
        """A temporary folder that becomes the entry when the body ends well, and goes otherwise."""
        with atomic_folder(self.entry(stage, key)) as folder:
            yield folder


@contextlib.contextmanager
def atomic_folder(target: pathlib.Path, replace: bool = False) -> Iterator[pathlib.Path]:
    """Yields a temporary sibling of `target`, renamed to it at the end.

    With `replace` it takes the place of a folder that is there; without, that folder stays (another
    process was first).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}") for _ in range(2))
    temporary.mkdir()
    try:
        yield temporary
        if replace and target.is_dir():
            os.rename(target, old)
        try:
            os.rename(temporary, target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def save_arrays(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    np.savez(path, **{name: np.asarray(value) for name, value in arrays.items()})


def load_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)

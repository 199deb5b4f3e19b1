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
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from recapture_jax import processes, progress, storage

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FORMAT = 6  # raise when a stage computes something else from the same inputs
_WORK = "work"


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


def model_hash(folder: pathlib.Path) -> str:
    """Content of a video model: of its one file, or what the converter recorded of its source."""
    for name in ("model.safetensors", "source.json"):
        if (folder / name).exists():
            return file_hash(folder / "config.json") + file_hash(folder / name)
    return file_hash(folder)


def key(stage: str, **inputs: Any) -> str:
    """Hash of JSON-able inputs; the order of fields does not matter."""
    text = json.dumps([FORMAT, stage, inputs], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class StageCache:
    """Entries under `root/<stage>-<key>/`, unfinished work under `root/work/`.

    A root in a bucket has a copy on disk of what is used, in a temporary folder; and so have the processes of a
    run but the first, which alone looks into the cache and writes it.
    """

    def __init__(self, root: storage.Folder):
        self._bucket = None
        if storage.in_bucket(root) or not processes.is_main():
            self._bucket = root if processes.is_main() else None
            root = pathlib.Path(tempfile.mkdtemp(prefix="recapture_jax-"))
            weakref.finalize(self, shutil.rmtree, root, ignore_errors=True)
        self.root = root

    def entry(self, stage: str, key: str) -> pathlib.Path:
        """Where an entry lies on disk once `has` found it."""
        return self.root / f"{stage}-{key}"

    def has(self, stage: str, key: str) -> bool:
        """Whether the entry is there, in process 0; it then is on this process's disk, too."""
        entry = self.entry(stage, key)
        found = entry.is_dir()
        if not found and self._bucket is not None:
            found = storage.download(self._bucket / entry.name, entry)
        found = processes.agreed(found)
        if found:
            processes.share_folder(entry)
        return found

    def work(self, stage: str, key: str) -> pathlib.Path:
        """A folder for an unfinished stage; kept until the stage is done."""
        folder = self.work_root / f"{stage}-{key}"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def work_root(self) -> pathlib.Path:
        """Where all unfinished work lies."""
        folder = self.root / _WORK
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextlib.contextmanager
    def exclusive(self, stage: str, key: str) -> Iterator[None]:
        """Lets one run at a time make this entry; the others wait, and should then look whether it is there.

        The system frees the lock of a run that was killed. Where it has none (Windows, some network disks), nobody
        waits.
        """
        if fcntl is None or not processes.is_main():
            yield
            return
        path = self.work_root / f"{stage}-{key}.lock"
        with contextlib.ExitStack() as stack:
            while True:
                file = stack.enter_context(open(path, "w"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    progress.say(f"another run is making the same ({stage}), waiting for it")
                    fcntl.flock(file, fcntl.LOCK_EX)
                except OSError:
                    break
                # The run before has removed the file of its lock, and a third one may have made another.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                        stack.callback(path.unlink, missing_ok=True)
                        break
            yield

    def mirror(self, work: pathlib.Path) -> storage.Folder | None:
        """Where the checkpoints of `work` outlive this machine, if the cache is in a bucket."""
        return self._bucket / _WORK / work.name if self._bucket is not None else None

    def finish(self, work: pathlib.Path) -> None:
        """Removes the folder of a stage that is done."""
        shutil.rmtree(work, ignore_errors=True)
        mirror = self.mirror(work)
        if mirror is not None and mirror.exists():
            mirror.rmtree()

    @contextlib.contextmanager
    def writing(self, stage: str, key: str, replace: bool = False) -> Iterator[pathlib.Path]:
        """A temporary folder that becomes the entry when the body ends well, and goes otherwise.

        With `replace` it takes the place of an entry that is there; without, that one stays.
        """
        entry = self.entry(stage, key)
        with storage.atomic_folder(entry, replace) as folder:
            yield folder
        if self._bucket is not None:
            storage.upload(entry, self._bucket / entry.name, replace)


def save_arrays(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    np.savez(path, **{name: np.asarray(value) for name, value in arrays.items()})


def load_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)

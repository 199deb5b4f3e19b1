"""Folders on a disk or in a bucket (gs://, s3://, az://), whole or not there at all.

A disk renames a finished folder into place. A bucket cannot: its folders end with a file `_DONE`, and one without it
counts as none. Access is that of etils.epath, which needs the bucket's own package (gcsfs, s3fs, adlfs).
"""

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from typing import TypeAlias

from recapture_jax.errors import InputError

_SCHEMES = {"gs://": "gcsfs", "s3://": "s3fs", "az://": "adlfs"}
_DONE = "_DONE"
Folder: TypeAlias = pathlib.Path  # or the epath.Path of a bucket, which has the same methods


def folder(text: str) -> Folder:
    """The folder that a person means.

    Raises:
        InputError: a bucket that cannot be reached from here.
    """
    package = _SCHEMES.get(text[:5])
    if package is None:
        return pathlib.Path(text).expanduser()
    from etils import epath

    path = epath.Path(text)
    try:
        path.exists()
    except ImportError:
        raise InputError(f"{text}: buckets of {text[:5]} need `pip install {package}`") from None
    except Exception as error:  # whatever the bucket's package raises: rights, network, name
        raise InputError(
            f"{text} cannot be reached ({' '.join(str(error).split())[:200]})"
        ) from None
    return path


def check_writable(path: Folder, what: str) -> None:
    """Makes the folder, or sees that it is there, and writes into it; of a bucket that is not asked.

    Raises:
        InputError: it cannot be.
    """
    if in_bucket(path):
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # the disk is full, which is told as that
        raise InputError(
            f"{what}={path} cannot be written ({error.strerror}): choose another folder"
        ) from None


def in_bucket(path: Folder) -> bool:
    return str(path)[:5] in _SCHEMES


def absolute(path: Folder) -> str:
    """The path in words that hold from anywhere."""
    return str(path) if in_bucket(path) else str(path.absolute())


def complete(path: Folder) -> bool:
    """Whether the folder is there, whole."""
    return (path / _DONE).exists() if in_bucket(path) else path.is_dir()


def upload(source: pathlib.Path, target: Folder, replace: bool = False) -> None:
    """Copies a folder into a bucket; nothing is done if it is there already, unless it is to be replaced."""
    if complete(target):
        if not replace:
            return
        target.rmtree()
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        (target / str(file.relative_to(source))).write_bytes(file.read_bytes())
    (target / _DONE).write_text("")


def download(source: Folder, target: pathlib.Path) -> bool:
    """Copies a folder out of a bucket; False, and nothing is done, if it is not there."""
    if not complete(source):
        return False
    with atomic_folder(target) as copy:
        _fetch(source, copy)
        (copy / _DONE).unlink()
    return True


def _fetch(source: Folder, target: pathlib.Path) -> None:
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        if path.is_dir():
            _fetch(path, target / path.name)
        else:
            (target / path.name).write_bytes(path.read_bytes())


def write_text(path: Folder, text: str) -> None:
    """A file that is there with the whole of the text, or as it was."""
    if in_bucket(path):
        path.write_text(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


@contextlib.contextmanager
def atomic_folder(
    target: Folder, replace: bool = False, fresh: bool = False
) -> Iterator[pathlib.Path]:
    """Yields a temporary folder on disk that becomes `target` at the end.

    With `replace` it takes the place of a folder that is there; without, that folder stays (another
    process was first).

    Raises:
        FileExistsError: with `fresh`, instead of leaving the folder that is there.
    """
    if in_bucket(target):
        with tempfile.TemporaryDirectory() as temporary:
            yield pathlib.Path(temporary)
            if fresh and complete(target):
                raise FileExistsError(str(target))
            upload(pathlib.Path(temporary), target, replace)
        return
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
            if fresh:
                raise FileExistsError(str(target)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)

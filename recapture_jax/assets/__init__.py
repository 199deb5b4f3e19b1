"""Files shipped with the package: one short real clip and the small prior."""

import importlib.resources
import pathlib

from recapture_jax.errors import InputError


def asset_path(name: str) -> pathlib.Path:
    """Path of a shipped file or folder, for example `asset_path("clip/cockatoo.mp4")`.

    Raises:
      InputError: there is no such asset; the message lists those that exist.
    """
    root = pathlib.Path(str(importlib.resources.files(__name__)))
    path = root / name
    inside = path.resolve().is_relative_to(root.resolve()) and path.resolve() != root.resolve()
    if name and inside and path.exists() and "__" not in name:
        return path
    files = sorted(
        p.relative_to(root).as_posix()
        for p in root.rglob("*")
        if p.is_file() and "__" not in p.relative_to(root).as_posix()
    )
    raise InputError(f"no shipped file {name!r}; there is {', '.join(files) or 'nothing'}")

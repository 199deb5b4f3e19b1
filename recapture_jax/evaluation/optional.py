"""Packages that only evaluation needs, imported when a measure asks for them."""

import importlib
import importlib.util
import pathlib
import pickle
import types
from typing import Any

from recapture_jax.errors import InputError


def require(module: str, package: str, purpose: str) -> types.ModuleType:
    """The module, imported.

    Args:
        module: dotted name.
        package: what pip calls the distribution it is in.
        purpose: what needs it, for the message.

    Raises:
        InputError: it is not installed.
    """
    if not installed(module):
        raise InputError(
            f"{purpose} needs the package {package}, which is not installed: "
            f"pip install {package}, or pip install -e '.[eval]' for all of evaluation"
        )
    return importlib.import_module(module)


def installed(module: str) -> bool:
    """Whether the top-level package of a dotted name can be imported."""
    return importlib.util.find_spec(module.partition(".")[0]) is not None


def packaged_file(module: str, package: str, purpose: str, name: str) -> pathlib.Path:
    """A file of an installed package, found without running the package.

    Args:
        name: path of the file in the package's folder; the others as for `require`.

    Raises:
        InputError: the package is not installed.
    """
    if not installed(module):
        require(module, package, purpose)
    return pathlib.Path(importlib.util.find_spec(module).origin).parent / name


def packaged_weights(module: str, package: str, purpose: str, name: str) -> Any:
    """The parameters in a pickle of a package (which could run code of its own just as well)."""
    with packaged_file(module, package, purpose, name).open("rb") as file:
        return pickle.load(file)

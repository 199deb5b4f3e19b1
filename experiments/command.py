"""What the experiments' command lines share: absl flags that belong to one script, not to the process.

Exit codes and refusals are those of `recapture_jax.terminal`.
"""

import pathlib
import sys
from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import ConfigDict

from recapture_jax import terminal
from recapture_jax.errors import InputError

flags.disclaim_key_flags()  # --help files the flags defined here under the script


class _Path(flags.ArgumentParser):
    def parse(self, argument):
        try:
            return pathlib.Path(argument).expanduser()
        except RuntimeError as error:  # ~name of nobody
            raise ValueError(str(error)) from None


class _NewFile(_Path):
    def parse(self, argument):
        path = super().parse(argument)
        if path.exists():
            raise ValueError("it is there already: name another file")
        if not path.parent.is_dir():
            raise ValueError(f"there is no folder {path.parent}: make it first")
        return path


def define_new_file(name: str, help: str, values: flags.FlagValues) -> None:
    """A flag whose value is the path of a file that can be written and is not there yet, or None."""
    flags.DEFINE(_NewFile(), name, None, help, flag_values=values)


def define_path(name: str, default: str | None, help: str, values: flags.FlagValues) -> None:
    """A flag whose value is a `pathlib.Path`, or None."""
    flags.DEFINE(_Path(), name, default, help, flag_values=values)


def parse(
    values: flags.FlagValues, arguments: Sequence[str] | None = None, doc: str = ""
) -> flags.FlagValues:
    """Fills `values` from the command line.

    Args:
        values: the script's own flags.
        arguments: without the program's name; those of the process by default.
        doc: what --help prints above the flags.

    Raises:
        InputError: an unknown flag, a bad value, or an argument that is no flag.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if {"--help", "-h"} & set(arguments):
        print(doc.strip(), values.get_help(), sep="\n")
        sys.exit(0)
    try:
        rest = values(["program", *arguments])
    except flags.Error as error:
        raise InputError(" ".join(str(error).split())) from None
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}: options start with --")
    return values


def change(config, assignment: str) -> None:
    """Sets a field from "group.field=value"; the value is read as what the field holds.

    Raises:
        InputError: no such field, or a value of another kind.
    """
    field, _, text = assignment.partition("=")
    group, _, name = field.partition(".")
    held = config.get(group)
    if not isinstance(held, ConfigDict) or name not in held:
        raise InputError(f"--set={assignment}: no field {field!r}, expected as in lora.rank=4")
    kind = type(held[name])
    read = {"true": True, "false": False}.__getitem__ if kind is bool else kind
    try:
        held[name] = read(text.lower() if kind is bool else text)
    except (KeyError, ValueError):
        raise InputError(f"--set={assignment}: expected a {kind.__name__}") from None


def main(action: Callable[[], str | None]) -> None:
    """Runs `action()`, prints what it returns and exits."""
    sys.exit(terminal.finish(action))

"""What the converters' command lines share: one line and exit code 2 for bad input."""

import argparse
import sys
from collections.abc import Callable, Sequence

from recapture_jax.errors import InputError


class Parser(argparse.ArgumentParser):
    """argparse that raises InputError where it would print its usage and exit."""

    def error(self, message: str):
        raise InputError(f"{message}; see --help")


def run(
    parser: Parser, argv: Sequence[str] | None, work: Callable[[argparse.Namespace], None]
) -> int:
    """Parses `argv` and works; returns the exit code (0, or 2 for bad input)."""
    try:
        work(parser.parse_args(argv))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0

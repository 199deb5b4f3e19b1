"""How every command of the package ends: what it prints, one line for what it refuses, exit codes.

Exit codes: 0 done, 1 a fault of ours, 2 bad input, 3 disk full, 130 interrupted (run again to go on).
"""

import _thread
import errno
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging

from recapture_jax.errors import InputError


def run(action: Callable[[], Any], example: str) -> None:
    """Parses the flags, calls `action()`, prints what it returns, if anything, and exits.

    Args:
        action: raises InputError for bad input, anything else is a fault of ours.
        example: a flag as it is meant, for the refusal of what is none.
    """
    app.run(lambda argv: _main(argv, action, example), flags_parser=_parse_flags)


def _hear_interrupts(unraisable) -> None:
    """Ctrl-C that fell into a callback of the garbage collector, as JAX has one, is not lost."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        threading.Timer(0.05, _thread.interrupt_main).start()  # at once it would fall into this one
    else:
        sys.__unraisablehook__(unraisable)


def _main(argv: list[str], action: Callable[[], Any], example: str) -> int:
    logging.set_verbosity(logging.WARNING)  # JAX tells of every backend that is not here
    if len(argv) > 1:
        return _refuse(f"unexpected argument {argv[1]!r}: options start with --, as in {example}")
    return finish(action)


def finish(action: Callable[[], Any]) -> int:
    """Calls `action()`, prints what it returns, if anything, and gives the exit code."""
    sys.unraisablehook = _hear_interrupts
    try:
        result = action()
    except InputError as error:
        return _refuse(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" on the disk of {error.filename}" if error.filename else ""
        print(
            f"error: no space left{where}; free some and run again, finished stages are kept",
            file=sys.stderr,
        )
        return 3
    except KeyboardInterrupt:
        print(
            "interrupted; run the same command again to go on from the last checkpoint",
            file=sys.stderr,
        )
        return 130
    if result is not None:
        try:
            print(result, flush=True)
        except BrokenPipeError:  # as of `| head`, which has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _refuse(message: str) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return 2


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parsing, with one line and our exit code for what it refuses."""
    try:
        return flags.FLAGS(argv)
    except Exception as error:  # config_flags lets through whatever a configuration file raises
        # ... and may put a whole traceback into the message, of which the last line counts.
        message = (
            str(error)
            .rpartition("InputError: ")[2]
            .strip()
            .replace("\\n", " ")
            .replace("\\", "")
            .replace("'", "")
        )
        sys.exit(_refuse(f"{message} (in the command's flags)"))

"""What the commands of a run share: the --config flag. Exit codes are those of `terminal`."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from absl import flags
from ml_collections import config_flags

from recapture_jax import terminal
from recapture_jax.errors import InputError

_EXAMPLE = "--config=configs/orbit.py"
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Configuration file; see configs/. A variant follows a colon: configs/orbit.py:svd_xt.",
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "One run over several processes (a pod, several hosts): start the same command in each of them.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0; not needed on TPU pods, under Slurm or Open MPI."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many; likewise.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process_id", None, "Which one this is, from 0; likewise.")


def run(action: Callable, alone: bool = False) -> None:
    """Parses the command line, calls `action(config)` and exits.

    What `action` returns is printed, if anything, by the first process.

    Args:
        alone: it is no work for several processes.
    """
    terminal.run(lambda: _run(action, alone), _EXAMPLE)


def _run(action: Callable, alone: bool):
    config = _config()
    if alone and _DISTRIBUTED.value:
        raise InputError("this command needs one process: leave out --distributed")
    told = (_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    if not _DISTRIBUTED.value:
        if any(x is not None for x in told):
            raise InputError("--coordinator, --num_processes and --process_id need --distributed")
        return action(config)
    from recapture_jax import processes

    processes.start(*told)
    result = together(lambda: action(config))
    return result if processes.is_main() else None


def together(action: Callable[[], Any]) -> Any:
    """`action()`, as one of several processes; an error of this one alone ends it at once (`_leave`)."""
    from recapture_jax import processes

    try:
        return action()
    except (processes.RefusedTogether, SystemExit):
        raise
    except BaseException as error:
        _leave(error)


def _leave(error: BaseException) -> NoReturn:
    """Ends this process as the error would, without the others, which only then learn that they wait in vain.

    JAX's own exit would wait minutes for them first, and kill this process as well.
    """

    def again():
        raise error

    try:
        code = terminal.finish(again)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _config():
    if _CONFIG.value is None:
        raise InputError(f"--config is missing: give a file of configs/, as in {_EXAMPLE}")
    try:
        _CONFIG.value["seed"]  # a file that could not be loaded fails on first use
    except OSError as error:
        reason = str(error).rpartition("] ")[2]
        raise InputError(f"the --config file cannot be loaded: {reason}") from None
    return _CONFIG.value

"""What the commands of a run share: the --config flag. Exit codes are those of `terminal`."""

from collections.abc import Callable

from absl import logging
from ml_collections import config_flags

from recapture_jax import terminal
from recapture_jax.errors import InputError

_EXAMPLE = "--config=configs/orbit.py"
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Configuration file; see configs/. A variant follows a colon: configs/orbit.py:svd_xt.",
)


def run(action: Callable) -> None:
    """Parses the command line, calls `action(config)` and exits.

    What `action` returns is printed, if anything.
    """
    terminal.run(lambda: action(_config()), _EXAMPLE)


def _config():
    if _CONFIG.value is None:
        raise InputError(f"--config is missing: give a file of configs/, as in {_EXAMPLE}")
    try:
        _CONFIG.value["seed"]  # a file that could not be loaded fails on first use
    except OSError as error:
        reason = str(error).rpartition("] ")[2]
        raise InputError(f"the --config file cannot be loaded: {reason}") from None
    logging.set_verbosity(logging.WARNING)
    return _CONFIG.value

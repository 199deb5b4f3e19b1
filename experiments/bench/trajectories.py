"""What a further camera move over the same clip costs, as a share of the first.

    python -m experiments.bench.trajectories [--moves=4] [--config=configs/orbit.py]

Times `python -m recapture_jax.matrix` as a user runs it, in a process of its own with every cache empty: with one
move, with several one after another, and with several tuned in one step (--together). A share is
(seconds of N moves - seconds of one) / (N - 1) / seconds of one.
"""

import subprocess
import sys
import tempfile
import time

from absl import flags

from experiments import command
from recapture_jax.errors import InputError

MOVES = ("orbit right 10", "dolly in 0.2", "truck left 0.2", "orbit left 8", "pedestal up 0.2")

_FLAGS = flags.FlagValues()
_COUNT = flags.DEFINE_integer(
    "moves", 4, "How many.", lower_bound=2, upper_bound=len(MOVES), flag_values=_FLAGS
)
_CONFIG = flags.DEFINE_string(
    "config", "configs/orbit.py", "Of the runs, with its variant.", flag_values=_FLAGS
)


def seconds(config: str, moves: tuple[str, ...], together: int) -> float:
    """Wall time of a matrix of these moves from nothing.

    Raises:
        InputError: it failed.
    """
    with tempfile.TemporaryDirectory() as root:
        options = ["--config.output.compilation_cache=False", f"--config.output.root={root}"]
        arguments = [f"--config={config}", *options, f"--together={together}"]
        arguments += [f"--move={move}" for move in moves]
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "recapture_jax.matrix", *arguments],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise InputError(f"the runs failed: {done.stderr[-300:]}")
        return time.perf_counter() - begin


def share(one: float, several: float, count: int) -> float:
    """Of the first move's seconds, what each further one took."""
    return (several - one) / (count - 1) / one


def _main() -> str:
    command.parse(_FLAGS, doc=__doc__)
    count, config = _COUNT.value, _CONFIG.value
    one = seconds(config, MOVES[:1], 1)
    lines = ["| moves | tuned | seconds | a further move |", "|---|---|---|---|"]
    lines.append(f"| 1 | alone | {one:.0f} | |")
    for together in (1, count):
        took = seconds(config, MOVES[:count], together)
        how = "in one step" if together > 1 else "one after another"
        lines.append(f"| {count} | {how} | {took:.0f} | {100 * share(one, took, count):.0f} % |")
    return "\n".join(lines)


if __name__ == "__main__":
    command.main(_main)

"""A run of several processes, as on a pod: how it starts, who writes, on what all must agree.

Every process runs the same program over one mesh of all devices. Process 0 alone keeps cache, checkpoints and results;
what it finds there the others receive from it, so that no disk has to be shared. A question whose answer decides what
is computed next is answered by process 0 for all (`agreed`): two answers would leave each waiting for the other.
"""

import contextlib
import io
import json
import pathlib
import tarfile
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from recapture_jax import progress
from recapture_jax.errors import InputError

_LONGEST_REFUSAL = 1024  # bytes that the other processes are told


class RefusedTogether(InputError):
    """Bad input of which every process knows, and at which every one ends."""


def start(
    coordinator: str | None = None, count: int | None = None, index: int | None = None
) -> None:
    """Joins the other processes; before anything else touches a device.

    Args:
        coordinator: `host:port` of process 0; None for all three: found out, as on TPU pods and under Slurm.
        count: of processes.
        index: of this one, from 0.

    Raises:
        InputError: some are given and some not, they cannot be found out, or not all processes came.
    """
    given = (coordinator, count, index)
    if any(x is not None for x in given) and any(x is None for x in given):
        raise InputError(
            "--coordinator, --num_processes and --process_id belong together: give all three, or none "
            "where they can be found out (TPU pods, Slurm, Open MPI)"
        )
    if index is not None and not 0 <= index < count:
        raise InputError(
            f"--process_id={index}: expected 0 to {count - 1} (--num_processes={count})"
        )
    try:
        jax.distributed.initialize(coordinator, count, index)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"the processes did not come together ({str(error)[:200]}): start the same command in every process, "
            "with --coordinator=HOST:PORT of process 0, --num_processes and --process_id"
        ) from None
    if not is_main():
        progress.silence()


def is_main() -> bool:
    """Whether this process writes."""
    return jax.process_index() == 0


def agreed(value: Any) -> Any:
    """Process 0's `value` (JSON-able) in every process."""
    if jax.process_count() == 1:
        return value
    return json.loads(_broadcast(json.dumps(value).encode()))


@contextlib.contextmanager
def refusing_together():
    """Bad input that one process finds, such as a file on its disk alone, ends all of them, not only it.

    Without, the others would wait for it. Around what every process does, and nothing in it that they do together.

    Raises:
        RefusedTogether: of this process, else of the first that has one; with one process its own InputError.
    """
    if jax.process_count() == 1:
        yield
        return
    own = None
    try:
        yield
    except InputError as error:
        own = error
    text = str(own).encode()[:_LONGEST_REFUSAL] if own else b""
    mine = np.zeros(_LONGEST_REFUSAL, np.uint8)
    mine[: len(text)] = np.frombuffer(text, np.uint8)
    everyones = multihost_utils.process_allgather(mine)
    if own:
        raise RefusedTogether(str(own)) from own
    for index, found in enumerate(everyones):
        if found.any():
            said = found.tobytes().rstrip(b"\0").decode(errors="ignore")
            raise RefusedTogether(f"process {index} stopped: {said}")


def same(tree: Any) -> Any:
    """Process 0's arrays in every process: a bit that differs would be another program's data."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.broadcast_one_to_all(jax.tree.map(np.asarray, tree))


def share_folder(folder: pathlib.Path) -> None:
    """Gives process 0's folder to the others, at their own `folder`."""
    if jax.process_count() == 1:
        return
    packed = io.BytesIO()
    if is_main():
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(folder, arcname=".")
    packed = io.BytesIO(_broadcast(packed.getvalue()))
    if not is_main():
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=packed) as archive:
            archive.extractall(folder, filter="data")


def _broadcast(data: bytes) -> bytes:
    length = int(multihost_utils.broadcast_one_to_all(np.uint32(len(data))))
    buffer = np.zeros(length, np.uint8)
    if is_main():
        buffer[:] = np.frombuffer(data, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes()

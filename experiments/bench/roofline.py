"""What the machine can do, beside which the achieved rates are read: the rate of one large matrix product."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import torch

from recapture_jax import xla


def matmul_peak(side: int | None = None, repeats: int = 10) -> dict[str, float]:
    """FLOP/s of a square product, the best of the repeats, by XLA and by torch.

    In the precision of the run: float32 on CPUs, bfloat16 on GPUs.

    Args:
      side: of the matrices; None for what keeps the device busy a tenth of a second or less.
    """
    cpu = jax.default_backend() == "cpu"
    side = side or (2048 if cpu else 8192)
    dtype = "float32" if cpu else "bfloat16"
    ours = jnp.ones((side, side), dtype)
    theirs = torch.ones((side, side), dtype=getattr(torch, dtype), device="cpu" if cpu else "cuda")
    product = xla.jit(lambda a: a @ a)

    def by_torch():
        theirs @ theirs
        if not cpu:
            torch.cuda.synchronize()

    calls = {"XLA": lambda: product(ours).block_until_ready(), "torch": by_torch}
    return {name: 2.0 * side**3 / _quickest(call, repeats) for name, call in calls.items()}


def seconds(call: Callable) -> float:
    """Wall clock of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _quickest(call: Callable, repeats: int) -> float:
    call()  # compiles
    return min(seconds(call) for _ in range(repeats))

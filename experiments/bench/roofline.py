"""What the machine can do, beside which the achieved rates are read: the rate of one large matrix product."""

import jax
import torch

from recapture_jax import cost


def matmul_peak(side: int | None = None, repeats: int = 10) -> dict[str, float]:
    """FLOP/s of a square product, the best of the repeats, by XLA and by torch.

    In the precision of the run: float32 on CPUs, bfloat16 on GPUs.

    Args:
      side: of the matrices; None: `cost.matmul_side`.
      repeats: timed ones, after one that compiles.
    """
    cpu = jax.default_backend() == "cpu"
    side = side or cost.matmul_side()
    dtype = "float32" if cpu else "bfloat16"
    x = torch.ones((side, side), dtype=getattr(torch, dtype), device="cpu" if cpu else "cuda")

    def by_torch():
        x @ x
        if not cpu:
            torch.cuda.synchronize()

    return {
        "XLA": cost.matmul_rate(dtype, side, repeats),
        "torch": 2.0 * side**3 / cost.quickest(by_torch, repeats),
    }

"""What a program costs before it runs: operations counted from its trace, and how fast the device multiplies."""

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from recapture_jax import xla


def flops(function: Callable, *args: Any) -> float:
    """Floating-point operations of all matrix products and convolutions, two for each multiply-add.

    Args:
        function: traced, never run.
        args: arrays or shapes (jax.ShapeDtypeStruct).
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        made = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2.0 * made * math.prod(shape[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * made * math.prod(kernel) / features
        else:
            inner = [_count(j) for j in _inner(params)]
            branches = max(inner, default=0.0) if name == "cond" else sum(inner)
            total += branches * (params["length"] if name == "scan" else 1)
    return total


def _inner(params: dict) -> Iterator:
    for value in params.values():
        for x in value if isinstance(value, tuple | list) else (value,):
            if hasattr(x, "jaxpr"):
                yield x.jaxpr
            elif hasattr(x, "eqns"):
                yield x


def matmul_side() -> int:
    """Of a square matrix product that keeps the device busy for a tenth of a second or less."""
    return 2048 if jax.default_backend() == "cpu" else 8192


@functools.cache
def matmul_rate(dtype, side: int, repeats: int = 3) -> float:
    """FLOP/s of a square matrix product on this process's first device, the best of the repeats.

    Args:
        dtype: of the matrices.
        side: of the matrices; see `matmul_side`.
        repeats: after one that compiles.
    """
    x = jnp.ones((side, side), dtype)
    multiply = xla.jit(lambda x: x @ x)
    return 2.0 * side**3 / quickest(lambda: multiply(x).block_until_ready(), repeats)


def quickest(call: Callable, repeats: int) -> float:
    """Seconds that a call takes, the least of the repeats, which follow one that may compile."""
    call()
    return min(seconds(call) for _ in range(repeats))


def seconds(call: Callable) -> float:
    """Wall clock of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin

"""What a program costs before it runs: operations counted from its trace, and how fast the device multiplies."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

_SIDE = 2048  # of the product that is timed: 17 GFLOP
_ROUNDS = 3


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


def matmul_rate(dtype) -> float:
    """FLOP/s of a large matrix product on this process's first device, the best of three."""
    x = jnp.ones((_SIDE, _SIDE), dtype)
    multiply = jax.jit(lambda x: x @ x)
    multiply(x).block_until_ready()
    best = math.inf
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        multiply(x).block_until_ready()
        best = min(best, time.perf_counter() - begin)
    return 2.0 * _SIDE**3 / best

"""How programs are compiled for the device at hand."""

import functools
from collections.abc import Callable
from typing import Any

import jax

# XLA:CPU hands convolutions and matrix products to a library whose convolutions reach half the speed of its
# own (jax 0.10). Other versions may not know the option.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}


@functools.cache
def compiler_options() -> dict[str, str] | None:
    """What `jax.jit` should be told on this process's default device; None for nothing."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda x: x + 1, compiler_options=_CPU_OPTIONS).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return None
    return dict(_CPU_OPTIONS)


def jit(function: Callable, **options: Any) -> Callable:
    """`jax.jit` with `compiler_options()`, for whole programs: not inside another compiled function."""
    return jax.jit(function, compiler_options=compiler_options(), **options)


def program(**options: Any) -> Callable[[Callable], Callable]:
    """`jit` as a decorator of a module's function, which looks for the device at the first call."""

    def decorate(function: Callable) -> Callable:
        compiled = functools.cache(lambda: jit(function, **options))

        @functools.wraps(function)
        def call(*args, **kwargs):
            return compiled()(*args, **kwargs)

        return call

    return decorate

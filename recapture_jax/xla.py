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


def jit(function: Callable | None = None, **options: Any) -> Callable:
    """`jax.jit` with `compiler_options()`, as a function or a decorator (with options, too).

    It looks for the device at the first call, so that importing a module starts none, and under a
    transformation it is plain `jax.jit`: only whole programs take compiler options.

    Returns:
        The compiled function, with `lower` as `jax.jit` has it.
    """
    if function is None:
        return functools.partial(jit, **options)
    inner = jax.jit(function, **options)
    outer = functools.cache(
        lambda: jax.jit(function, compiler_options=compiler_options(), **options)
    )

    @functools.wraps(function)
    def call(*args, **kwargs):
        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((args, kwargs)))
        return (inner if traced else outer())(*args, **kwargs)

    call.lower = lambda *args, **kwargs: outer().lower(*args, **kwargs)
    return call

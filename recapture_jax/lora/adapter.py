"""LoRA inside the forward pass: `y + scale * (x a) b` on the output of the targeted layers.

No full-rank gradient is ever formed: on toy blocks a training step through the merged weights costs
1.45 times the FLOPs and several times the memory of this one.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import linen as nn

from recapture_jax.errors import InputError
from recapture_jax.lora.tree import Lora, dimensions


@contextlib.contextmanager
def adapters(
    lora: Lora,
    scale: float | jax.Array = 1.0,
    *,
    prefix: str = "",
    require_all: bool = True,
) -> Iterator[set[str]]:
    """Adds the deltas to every Linen module of their paths that is called in the `with` body.

        def loss(lora, x):
            with adapters(lora):
                return jnp.mean(module.apply({"params": params}, x) ** 2)

    The two products run in the dtype the layer computes in (that of its output): the deltas stay
    float32 and are cast on use, so that their gradients and optimizer states are float32. Nested
    contexts add up. `nn.remat` inside works; layers under `nn.scan` have no path of their own.

    The body must be what is traced: enter the context inside a jitted function, not around its
    call, because a call that is already compiled never runs the body's Python. (Around such a
    call `require_all` raises.)

    Args:
      lora: deltas by module path; the module's `__call__` maps `[..., in]` to `[..., out]`.
      scale: factor of all deltas; may be traced.
      prefix: path of the module that the deltas' paths start from, if it is not the one applied.
      require_all: raise if a delta was never used.

    Yields:
      The set of paths hit so far, filled while the body runs. Tracing a layer again adds nothing.

    Raises:
      InputError: a delta was not reached (at the end of the body), or does not fit its layer.
    """
    start = prefix.strip("/") + "/" if prefix.strip("/") else ""
    deltas = {start + path: (path, delta) for path, delta in lora.items()}
    hits: set[str] = set()

    def add_delta(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if context.method_name != "__call__":
            return y
        found = deltas.get("/".join(context.module.path))
        if found is None:
            return y
        path, delta = found
        x = args[0] if args else next(iter(kwargs.values()))
        features_in, _, features_out = dimensions(path, delta)
        if (x.shape[-1], getattr(y, "shape", None)) != (features_in, (*x.shape[:-1], features_out)):
            raise InputError(
                f"LoRA does not fit the model: {path} is {features_in} -> {features_out}, "
                f"the layer maps {x.shape} to {getattr(y, 'shape', type(y).__name__)}"
            )
        hits.add(path)
        a, b = delta["a"].astype(y.dtype), delta["b"].astype(y.dtype)
        return y + jnp.asarray(scale, y.dtype) * ((x.astype(y.dtype) @ a) @ b)

    with nn.intercept_methods(add_delta):
        yield hits
    if require_all:
        require_hits(lora, hits)


def require_hits(lora: Lora, hits: set[str]) -> None:
    """Checks that every delta took part in the forward pass.

    Raises:
      InputError: naming deltas that did not.
    """
    missed = sorted(set(lora) - hits)
    if missed:
        raise InputError(
            f"{len(missed)} of {len(lora)} LoRA layers were not reached by the forward pass, such "
            f"as {missed[0]}: use a LoRA made for this model and leave out (lora.tree.split) the "
            "layers that this pass skips"
        )


def apply_with_lora(
    fn: Callable,
    lora: Lora,
    scale: float | jax.Array = 1.0,
    *,
    prefix: str = "",
    require_all: bool = True,
) -> Callable:
    """`fn` run inside `adapters(lora, ...)`; same arguments and result as `fn`."""

    @functools.wraps(fn)
    def adapted(*args, **kwargs):
        with adapters(lora, scale, prefix=prefix, require_all=require_all):
            return fn(*args, **kwargs)

    return adapted

"""How far rounded computations are from float32's: errors, and every module of a network beside its bfloat16 twin."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from recapture_jax.models import layers, resnet, transformer, vae

KINDS: dict[type, str] = {
    layers.TimestepMLP: "time embedding (MLP)",
    resnet.ResnetBlock: "resnet, spatial",
    resnet.TemporalResnetBlock: "resnet, temporal",
    resnet.SpatioTemporalResBlock: "resnet, both blended",
    transformer.TransformerBlock: "transformer block",
    transformer.SelfAttention: "self-attention",
    transformer.CrossAttention: "cross-attention",
    layers.FeedForward: "feed-forward",
    transformer.Transformer: "transformer, both blended",
    vae.Attention: "attention, one head",
    layers.MixFactor: "blend",
    layers.Downsample: "downsample",
    layers.Upsample: "upsample",
    layers.GroupNorm: "GroupNorm",
    layers.LayerNorm: "LayerNorm",
}
Errors = dict[str, dict[str, list[float]]]  # {kind: {"weights": of each module, "all": likewise}}


def cast(tree: Any, dtype) -> Any:
    """The floating-point leaves in `dtype`."""

    def one(x):
        floating = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.asarray(x, dtype) if floating else x

    return jax.tree.map(one, tree)


def error(found: Any, expected: Any) -> float:
    """RMS of the difference over the RMS of `expected`, over all leaves."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    pairs = [[np.asarray(x, np.float64).ravel() for x in pair] for pair in pairs]
    found, expected = (np.concatenate(x) for x in zip(*pairs, strict=True))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@contextlib.contextmanager
def probed(params: dict, low: dict) -> Iterator[Errors]:
    """Runs the twins of every module of KINDS that is applied in the body.

    Args:
      params: of the float32 network that the body applies, un-jitted.
      low: the same tree as a bfloat16 run has it.

    Yields:
      Errors, filled while the body runs.
    """
    found: Errors = {}
    in_twin = False

    def compare(call, args, kwargs, context):
        nonlocal in_twin
        expected = call(*args, **kwargs)
        module = context.module
        if in_twin or context.method_name != "__call__" or type(module) not in KINDS:
            return expected
        in_twin = True
        try:
            errors = found.setdefault(_kind(module), {"weights": [], "all": []})
            twin = module.clone(parent=None, name=None)
            own = cast(at(low, module.path), jnp.float32)
            answer = twin.apply({"params": own}, *args, **kwargs)
            errors["weights"].append(error(answer, expected))
            if hasattr(module, "dtype"):
                twin = twin.clone(dtype=jnp.bfloat16)
            rounded = cast((args, kwargs), jnp.bfloat16)
            answer = twin.apply({"params": at(low, module.path)}, *rounded[0], **rounded[1])
            errors["all"].append(error(answer, expected))
        finally:
            in_twin = False
        return expected

    with nn.intercept_methods(compare):
        yield found


def _kind(module: nn.Module) -> str:
    name = KINDS[type(module)]
    if isinstance(module, transformer.TransformerBlock | transformer.SelfAttention):
        name += ", temporal" if module.over_time else ", spatial"
    return name


def at(params: dict, path: tuple[str, ...]) -> Any:
    """What lies at a path of nested dicts."""
    for name in path:
        params = params[name]
    return params


def share(found: jax.Array, expected: jax.Array) -> float:
    """How much of `expected` is in `found`, by regression: rounding is noise on top, of another size."""
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    return float(np.vdot(found, expected) / np.vdot(expected, expected))

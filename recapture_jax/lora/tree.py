"""LoRA as a flat tree beside the parameters: `{module path: {'a': [in, r], 'b': [r, out]}}`.

A linear layer `y = x W` becomes `y = x W + scale * (x a) b` (Hu et al. 2021, arXiv 2106.09685).
The deltas stay float32 and outside the base tree, so the trainer differentiates and stores nothing
else.
"""

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from recapture_jax.errors import InputError
from recapture_jax.lora import targets as lora_targets

Lora = dict[str, dict[str, jax.Array]]


def init(
    key: jax.Array, params: Mapping[str, Any], targets: str | Iterable[str], rank: int
) -> Lora:
    """New deltas that change nothing yet: `a ~ N(0, (1/rank)^2)` (as peft's 'gaussian'), `b = 0`.

    A path's values depend on the key and on that path only, not on what else is targeted.

    Args:
      key: typed PRNG key.
      params: nested dict of arrays or `jax.ShapeDtypeStruct`s; layers with a 2-D `kernel` count.
      targets: see `targets.patterns`.
      rank: r >= 1.

    Returns:
      float32 deltas, in order of path.

    Raises:
      InputError: if a target matches no linear layer, or the rank is not a positive integer.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise InputError(f"LoRA rank {rank!r}: expected an integer >= 1")
    shapes = {path: kernel.shape for path, kernel in _kernels(params).items() if kernel.ndim == 2}
    lora = {}
    for path in lora_targets.select(targets, shapes):
        features_in, features_out = shapes[path]
        path_key = jax.random.fold_in(key, np.uint32(zlib.crc32(path.encode())))
        a = jax.random.normal(path_key, (features_in, rank), jnp.float32) / rank
        lora[path] = {"a": a, "b": jnp.zeros((rank, features_out), jnp.float32)}
    return lora


def merge(params: Mapping[str, Any], lora: Lora, scale: float | jax.Array = 1.0) -> dict[str, Any]:
    """Parameters with `W + scale * a b`, computed in float32 and cast to the dtype of each kernel.

    Returns a new tree that shares all other leaves with `params`. For sampling and export: training
    through it would form full-rank gradients, `adapter` does not. What bfloat16 kernels lose of a delta is below
    the network's own rounding (experiments/bench/precision.md).

    Raises:
      InputError: if a path does not exist in `params`, is no linear layer or has another shape.
    """
    check(params, lora)
    merged = _copy(params)
    for path, delta in lora.items():
        *branches, last = path.split("/")
        node = merged
        for name in branches:
            node = node[name]
        kernel = node[last]["kernel"]
        product = jnp.matmul(
            delta["a"].astype(jnp.float32),
            delta["b"].astype(jnp.float32),
            precision=jax.lax.Precision.HIGHEST,
        )
        node[last]["kernel"] = (kernel.astype(jnp.float32) + scale * product).astype(kernel.dtype)
    return merged


def check(params: Mapping[str, Any], lora: Lora) -> None:
    """Refuses deltas that do not fit the parameters.

    Raises:
      InputError: naming absent paths, other shapes, or deltas that are not {'a': 2-D, 'b': 2-D}.
    """
    kernels = _kernels(params)
    for path, delta in lora.items():
        features_in, _, features_out = dimensions(path, delta)
        if path not in kernels:
            absent = [p for p in lora if p not in kernels]
            raise InputError(
                f"LoRA does not fit the model: {len(absent)} of {len(lora)} layers are absent, "
                f"such as {path}; use a LoRA made for this model"
            )
        if kernels[path].shape != (features_in, features_out):
            raise InputError(
                f"LoRA does not fit the model: {path} is {features_in} -> {features_out}, the "
                f"model has a kernel of shape {kernels[path].shape}; use a LoRA made for this model"
            )


def dimensions(path: str, delta: Mapping[str, Any]) -> tuple[int, int, int]:
    """(in, rank, out) of one delta.

    Raises:
      InputError: if it is not {'a': [in, r], 'b': [r, out]}.
    """
    if set(delta) != {"a", "b"}:
        raise InputError(f"LoRA delta {path} has {sorted(delta)}, expected 'a' and 'b'")
    a, b = delta["a"].shape, delta["b"].shape
    if len(a) != 2 or len(b) != 2 or a[1] != b[0]:
        raise InputError(f"LoRA delta {path} has shapes {a} and {b}, expected (in, r) and (r, out)")
    return a[0], a[1], b[1]


def count(lora: Lora) -> int:
    """Number of trainable parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(lora))


def combine(*loras: Lora) -> Lora:
    """Disjoint union, in order of path. (To sum deltas of one layer, nest `adapter.adapters`.)

    Raises:
      InputError: if two of them have a path in common.
    """
    union: Lora = {}
    for lora in loras:
        common = sorted(set(union) & set(lora))
        if common:
            raise InputError(
                f"LoRAs overlap in {len(common)} layers, such as {common[0]}: "
                "combine expects disjoint ones"
            )
        union |= lora
    return {path: union[path] for path in sorted(union)}


def split(lora: Lora, targets: str | Iterable[str]) -> tuple[Lora, Lora]:
    """(deltas of the targets, all the others); either may be empty."""
    chosen = {path for path in lora if lora_targets.matches(targets, path)}
    return (
        {path: delta for path, delta in lora.items() if path in chosen},
        {path: delta for path, delta in lora.items() if path not in chosen},
    )


def scale(lora: Lora, factor: float | jax.Array) -> Lora:
    """The same deltas times a factor (put into `b`)."""
    return {path: {"a": delta["a"], "b": delta["b"] * factor} for path, delta in lora.items()}


def _kernels(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{module path: kernel} of every module that has one."""
    found = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            found |= _kernels(value, f"{prefix}{name}/")
        elif name == "kernel" and prefix:
            found[prefix[:-1]] = value
    return found


def _copy(params: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in params.items()}

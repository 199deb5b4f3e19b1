"""Makes one mistake at a time in the U-Net and measures its output against diffusers'.

    python -m experiments.mutations [--only='tanh GELU,"fps id 7, not 6"']

prints a Markdown table. Nothing is written and no file is changed: a mistake is a patch of the
running process, or an altered input. The network, its random weights and its inputs are those of
`tests/parity/test_unet.py` (needs torch, diffusers).
"""

import contextlib
import functools
import pathlib
import sys
import time
from collections.abc import Sequence
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import linen as nn

from experiments import command
from recapture_jax.errors import InputError
from recapture_jax.models import attention, layers, resnet, transformer, unet, unet_blocks

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tests" / "parity"))


def _everywhere(name: str, replacement) -> contextlib.ExitStack:
    """Replaces a layer in every module that imported it by name."""
    stack = contextlib.ExitStack()
    for module in (layers, resnet, transformer, unet, unet_blocks):
        if hasattr(module, name):
            stack.enter_context(mock.patch.object(module, name, replacement))
    return stack


def _intercept(change):
    """`change(module, args) -> args` of every module call."""

    def interceptor(run, args, kwargs, context):
        return run(*change(context.module, args), **kwargs)

    return nn.intercept_methods(interceptor)


class _OnePassGroupNorm(layers.GroupNorm):
    """E[x^2] - E[x]^2."""

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        grouped = x.reshape(x.shape[0], -1, self.num_groups, channels // self.num_groups)
        mean = grouped.mean(axis=(1, 3), keepdims=True)
        square = jnp.square(grouped).mean(axis=(1, 3), keepdims=True)
        variance = jnp.maximum(square - jnp.square(mean), 0.0)
        normed = ((grouped - mean) * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        return normed * scale[(None,) * (x.ndim - 1)] + bias[(None,) * (x.ndim - 1)]


def _rounded_softmax_product(query, key, value):
    logits = jnp.einsum("...nd,...md->...nm", query, key) * query.shape[-1] ** -0.5
    weights = jax.nn.softmax(logits, axis=-1).astype(jnp.bfloat16).astype(value.dtype)
    return jnp.einsum("...nm,...md->...nd", weights, value)


def _enlarged(x, size, resize):
    for axis, target in zip((2, 3), size or (2 * x.shape[2], 2 * x.shape[3]), strict=True):
        x = resize(x, axis, target)
    return x


class _ConvolveThenUpsample(layers.Upsample):
    @nn.compact
    def __call__(self, x, size=None):
        x = layers.per_frame(layers.conv2d(self.features, 3, "conv", self.dtype), x)
        return _enlarged(x, size, layers._nearest)


class _LinearUpsample(layers.Upsample):
    @nn.compact
    def __call__(self, x, size=None):
        x = _enlarged(x, size, _linear)
        return layers.per_frame(layers.conv2d(self.features, 3, "conv", self.dtype), x)


class _GateFirst(layers._GatedProjection):
    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(2 * self.features, dtype=self.dtype, name="proj")
        gate, value = jnp.split(dense(x), 2, axis=-1)
        return value * layers.gelu(gate)


class _PerFrameTemporalNorm(layers.GroupNorm):
    """Statistics of every frame on its own, also in the temporal blocks."""

    def __call__(self, x):
        return super().__call__(x.reshape(-1, *x.shape[-3:])).reshape(x.shape)


def _sine_first(positions, dim):
    cosine, sine = jnp.split(_SINUSOID(positions, dim), 2, axis=-1)
    return jnp.concatenate([sine, cosine], axis=-1)


def _linear(x, axis, target):
    shape = x.shape[:axis] + (target,) + x.shape[axis + 1 :]
    return jax.image.resize(x, shape, "linear")


def _swap_temporal_contexts(module, args):
    if isinstance(module, transformer.TransformerBlock) and module.over_time:
        return args[0], args[1][::-1]
    return args


def _positions_from_one(positions, dim):
    # Of all sinusoids only the frame positions are integers.
    shift = 1 if jnp.issubdtype(positions.dtype, jnp.integer) else 0
    return _SINUSOID(positions + shift, dim)


_SINUSOID = layers.sinusoid
_GROUPNORM, _LAYERNORM = layers.GroupNorm, layers.LayerNorm
_MIX, _DOWN = layers.MixFactor, layers.Downsample

# name -> context manager under which the network is built and traced
PATCHES = {
    "downsample padded (0, 1), not (1, 1)": lambda: _everywhere(
        "Downsample",
        lambda features, padding, dtype, name: _DOWN(features, (0, 1), dtype, name=name),
    ),
    "alpha blend swapped": lambda: _everywhere(
        "MixFactor", lambda start=0.5, swap=False, name=None: _MIX(start, not swap, name=name)
    ),
    "temporal contexts of the two clips swapped": lambda: _intercept(_swap_temporal_contexts),
    "convolution before upsampling": lambda: _everywhere("Upsample", _ConvolveThenUpsample),
    "bilinear upsampling": lambda: _everywhere("Upsample", _LinearUpsample),
    "sines before cosines": lambda: _everywhere("sinusoid", _sine_first),
    "frame positions from 1": lambda: _everywhere("sinusoid", _positions_from_one),
    "gate before value in GEGLU": lambda: _everywhere("_GatedProjection", _GateFirst),
    "temporal GroupNorm per frame": lambda: _everywhere("GroupNorm", _PerFrameTemporalNorm),
    "tanh GELU": lambda: _everywhere("_gated_gelu", lambda value, gate: value * jax.nn.gelu(gate)),
    "every GroupNorm epsilon 1e-5": lambda: _everywhere(
        "GroupNorm", lambda epsilon, groups, name: _GROUPNORM(1e-5, groups, name=name)
    ),
    "every GroupNorm epsilon 1e-6": lambda: _everywhere(
        "GroupNorm", lambda epsilon, groups, name: _GROUPNORM(1e-6, groups, name=name)
    ),
    "LayerNorm epsilon 1e-6": lambda: _everywhere(
        "LayerNorm", functools.partial(_LAYERNORM, epsilon=1e-6)
    ),
    "one-pass GroupNorm variance": lambda: _everywhere("GroupNorm", _OnePassGroupNorm),
    "attention weights rounded to bfloat16": lambda: mock.patch.object(
        attention, "_softmax_product", _rounded_softmax_product
    ),
}

# name -> inputs (sample, timestep, context, ids) the wrong way
INPUTS = {
    "contexts of the two clips swapped": lambda s, t, c, i: (s, t, c[::-1], i),
    "conditioning latents first": lambda s, t, c, i: (np.roll(s, 4, -1), t, c, i),
    "ids as fps, augmentation, motion": lambda s, t, c, i: (s, t, c, i[:, [0, 2, 1]]),
    "timestep times 1000": lambda s, t, c, i: (s, 1000 * t, c, i),
    "fps id 7, not 6": lambda s, t, c, i: (s, t, c, i + np.float32([1, 0, 0])),
}


NONE, HALF = "(none)", "whole network in bfloat16"
NAMES = (NONE, *INPUTS, *PATCHES, HALF)


def parse(arguments: Sequence[str] | None = None) -> flags.FlagValues:
    """The command line.

    Raises:
        InputError: a bad flag, or an unknown mistake.
    """
    values = flags.FlagValues()
    text = "names of mistakes joined by commas, those with commas in double quotes; default: all"
    flags.DEFINE_list("only", [], text, flag_values=values)
    command.parse(values, arguments, __doc__)
    if unknown := [name for name in values.only if name not in NAMES]:
        raise InputError(
            f"--only: no mistake is called {unknown[0]!r}; expected names of the table in "
            "experiments/mutations/README.md, those with commas in double quotes"
        )
    return values


def main(only: Sequence[str]) -> None:
    """Measures the mistakes named, all if none is, and prints the table."""
    jax.config.update("jax_default_matmul_precision", "highest")

    import diffusers
    import test_unet as suite
    import torch
    from torch_params import flax_from_torch, randomise, rel_error

    torch.manual_seed(0)
    reference = randomise(diffusers.UNetSpatioTemporalConditionModel(**suite.TINY), seed=1)
    params = flax_from_torch(reference)
    args = suite.inputs(2, 3, 16, 24)
    expected = suite.run_torch(reference, *args)
    unmutated = jax.jit(_network(suite.TINY))

    def rows():
        yield NONE, lambda: unmutated(params, args)
        for name, change in INPUTS.items():
            yield name, lambda change=change: unmutated(params, change(*args))
        for name, patch in PATCHES.items():
            yield name, lambda patch=patch: _patched(patch, suite.TINY, params, args)
        yield HALF, lambda: _in_bfloat16(suite.TINY, params, args)

    print("| mistake | relative change | seen at 2e-6 |\n|---|---|---|")
    start, table = time.time(), []
    for name, run in rows():
        if only and name not in only:
            continue
        error = rel_error(run(), expected)
        table.append((error, name))
        print(f"  {name}: {error:.1e}", file=sys.stderr, flush=True)
    for error, name in sorted(table, reverse=True):
        print(f"| {name} | {error:.1e} | {'yes' if error > suite.TOLERANCE else 'no'} |")
    print(f"\n{time.time() - start:.0f} s", file=sys.stderr)


def _network(config, **options):
    network = unet.UNet(unet.UNetConfig.from_dict(config), **options)
    return lambda params, args: network.apply({"params": params}, *args)


def _patched(patch, config, params, args):
    with patch():
        return jax.jit(_network(config))(params, args)


def _in_bfloat16(config, params, args):
    halves = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), params)
    return jax.jit(_network(config, dtype=jnp.bfloat16))(halves, args)


if __name__ == "__main__":
    command.main(lambda: main(parse().only))

"""Layers shared by the U-Net and the VAE, with the numerics SVD was trained with.

Video activations are `[B, T, H, W, C]`. Matrix products run in the module's `dtype`; norms, softmax
and sinusoids run in float32. Parameter names are those of the PyTorch checkpoints.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

NORM_GROUPS = 32  # of every GroupNorm of SVD; a configuration of narrow networks may ask for fewer


class GroupNorm(nn.Module):
    """Group normalisation over all axes between the first and the last, in float32.

    A `[B*T, H, W, C]` input is normalised frame by frame, a `[B, T, H, W, C]` input over time too:
    that is the difference between SVD's spatial and temporal norms.
    """

    epsilon: float
    num_groups: int = NORM_GROUPS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        if channels % self.num_groups:
            raise ValueError(f"{channels} channels are not divisible into {self.num_groups} groups")
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        grouped = x.astype(jnp.float32).reshape(
            x.shape[0], -1, self.num_groups, channels // self.num_groups
        )
        # Two passes: the one-pass variance loses digits where the mean is large.
        mean = grouped.mean(axis=(1, 3), keepdims=True)
        centred = grouped - mean
        variance = jnp.square(centred).mean(axis=(1, 3), keepdims=True)
        normed = (centred * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        shape = (1,) * (x.ndim - 1) + (channels,)
        out = normed * scale.astype(jnp.float32).reshape(shape)
        return (out + bias.astype(jnp.float32).reshape(shape)).astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis in float32 (epsilon 1e-5, as PyTorch)."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (1,) * (x.ndim - 1) + (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        out = (
            centred
            * jax.lax.rsqrt(variance + self.epsilon)
            * scale.astype(jnp.float32).reshape(shape)
        )
        return (out + bias.astype(jnp.float32).reshape(shape)).astype(x.dtype)


def conv2d(
    features: int,
    kernel: int,
    name: str | None,
    dtype,
    stride: int = 1,
    padding=None,
    precision: jax.lax.Precision | None = None,
) -> nn.Conv:
    """A 2-D convolution with PyTorch's symmetric padding (k // 2), not XLA's 'SAME'."""
    pad = padding if padding is not None else ((kernel // 2, kernel // 2),) * 2
    options = {"dtype": dtype, "precision": precision, "name": name}
    return nn.Conv(features, (kernel, kernel), (stride, stride), pad, **options)


def exact_conv2d(features: int, kernel: int, name: str | None = None) -> nn.Conv:
    """A float32 `conv2d` that really is one: TPUs multiply float32 in bfloat16 unless told not to, GPUs in TF32."""
    return conv2d(features, kernel, name, jnp.float32, precision=jax.lax.Precision.HIGHEST)


def per_frame(layer, x: jax.Array) -> jax.Array:
    """Applies a 2-D layer to every frame of `[B, T, H, W, C]`."""
    b, t = x.shape[:2]
    y = layer(x.reshape(b * t, *x.shape[2:]))
    return y.reshape(b, t, *y.shape[1:])


class TemporalConv(nn.Module):
    """Convolution (3, 1, 1) over time, zero padded, on `[B, T, H, W, C]`.

    Written as three matrix products on whole clips: 3-D convolutions with a 1x1 footprint are slow
    on every XLA backend. The kernel keeps the checkpoint's `[3, 1, 1, in, out]`.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (3, 1, 1, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x.astype(self.dtype)
        taps = kernel.astype(self.dtype).reshape(3, x.shape[-1], self.features)
        before, now, after = (
            jnp.einsum("bthwi,io->bthwo", x, taps[i], preferred_element_type=jnp.float32)
            for i in range(3)
        )
        edge = jnp.zeros_like(before[:, :1])
        out = now + jnp.concatenate([edge, before[:, :-1]], axis=1)
        out = out + jnp.concatenate([after[:, 1:], edge], axis=1)
        return (out + bias.astype(jnp.float32).reshape(1, 1, 1, 1, -1)).astype(self.dtype)


class MixFactor(nn.Module):
    """SVD's AlphaBlender: a learned scalar blends the spatial with the temporal branch.

    `spatial * a + temporal * (1 - a)` with `a = sigmoid(mix_factor)`; the VAE decoder swaps the two
    (`swap=True`, diffusers' `switch_spatial_to_temporal_mix`).
    """

    init_value: float = 0.5
    swap: bool = False

    @nn.compact
    def __call__(self, spatial: jax.Array, temporal: jax.Array) -> jax.Array:
        factor = self.param("mix_factor", nn.initializers.constant(self.init_value), (1,))
        alpha = jax.nn.sigmoid(factor.astype(jnp.float32))[0]
        alpha = 1.0 - alpha if self.swap else alpha
        # In float32: near 1, bfloat16 has only every 256th alpha, and the lesser branch would be lost.
        mixed = alpha * spatial.astype(jnp.float32) + (1.0 - alpha) * temporal.astype(jnp.float32)
        return mixed.astype(spatial.dtype)


def sinusoid(positions: jax.Array, dim: int) -> jax.Array:
    """Sinusoidal embedding `[..., dim]`, cosines first, in float32.

    Frequencies `10000^(-i / (dim/2))`; positions are used as they are (SVD feeds 0.25 ln sigma).
    """
    half = dim // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions.astype(jnp.float32)[..., None] * frequencies.reshape(
        (1,) * positions.ndim + (half,)
    )
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepMLP(nn.Module):
    """Linear, SiLU, Linear."""

    features: int
    out_features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(self.features, dtype=self.dtype, name="linear_1")(x.astype(self.dtype))
        return nn.Dense(self.out_features, dtype=self.dtype, name="linear_2")(jax.nn.silu(x))


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x Phi(x), by erf in float32.

    The exact form of jax.nn.gelu goes through erfc, which XLA:CPU does not fuse: its backward pass
    takes twice the time and two more arrays of the size of x.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


class MLP(nn.Module):
    """Two Dense layers around an activation, [..., C] -> [..., C], as in vision transformers."""

    width: int
    activation: Callable[[jax.Array], jax.Array] = gelu
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = self.activation(nn.Dense(self.width, dtype=self.dtype, name="fc1")(x))
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(hidden)


@jax.checkpoint
def _gated_gelu(value: jax.Array, gate: jax.Array) -> jax.Array:
    """GEGLU's product; the backward pass keeps its two inputs and none of the steps between."""
    return value * gelu(gate)


class FeedForward(nn.Module):
    """GEGLU feed-forward (inner width 4C, exact erf GELU)."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        gated = _GatedProjection(4 * width, self.dtype, name="net_0")(x)
        return nn.Dense(width, dtype=self.dtype, name="net_2")(gated)


class _GatedProjection(nn.Module):
    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        value, gate = jnp.split(
            nn.Dense(2 * self.features, dtype=self.dtype, name="proj")(x), 2, axis=-1
        )
        return _gated_gelu(value, gate)


class Downsample(nn.Module):
    """Halves height and width: 3x3 convolution, stride 2.

    The U-Net pads (1, 1), the VAE encoder (0, 1); mixing the two up changes the output by 100 %.
    """

    features: int
    padding: tuple[int, int]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return per_frame(conv2d(self.features, 3, "conv", self.dtype, 2, (self.padding,) * 2), x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling (x2, or to `size` = (height, width)), then a 3x3 convolution."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, size: Sequence[int] | None = None) -> jax.Array:
        double = (2 * x.shape[2], 2 * x.shape[3])
        size = tuple(size or double)
        # Elsewhere than on a CPU this was never timed.
        if size == double and jax.default_backend() == "cpu":
            return per_frame(_DoubleAndConvolve(self.features, self.dtype, name="conv"), x)
        for axis, target in zip((2, 3), size, strict=True):
            x = _nearest(x, axis, target)
        return per_frame(conv2d(self.features, 3, "conv", self.dtype), x)


class _DoubleAndConvolve(nn.Module):
    """Nearest-neighbour doubling and a 3x3 convolution in one, `[B, H, W, C]` -> `[B, 2H, 2W, features]`.

    The nine taps of an output pixel fall on four input pixels, so each of the four output phases is a 2x2
    convolution of the input with sums of taps: 4/9 of the multiplications, and no doubled input.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (3, 3, c, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x.astype(self.dtype)

        def phase(row: int, column: int) -> jax.Array:
            taps = kernel.astype(jnp.float32)  # the sums are rounded once
            taps = _summed_taps(_summed_taps(taps, 0, row), 1, column).astype(self.dtype)
            padding = ((1 - row, row), (1 - column, column))
            out = jax.lax.conv_general_dilated(
                x, taps, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            return out + bias.astype(self.dtype).reshape(1, 1, 1, -1)

        rows = [jnp.stack([phase(row, column) for column in (0, 1)], axis=3) for row in (0, 1)]
        return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, self.features)


def _summed_taps(kernel: jax.Array, axis: int, phase: int) -> jax.Array:
    """Three taps as two: (0, 1 + 2) for even output pixels, (0 + 1, 2) for odd ones."""
    first, middle, last = jnp.split(kernel, 3, axis)
    two = (first, middle + last) if phase == 0 else (first + middle, last)
    return jnp.concatenate(two, axis)


def _nearest(x: jax.Array, axis: int, target: int) -> jax.Array:
    """PyTorch's 'nearest': output i reads input floor(i * in / out)."""
    size = x.shape[axis]
    if target == 2 * size:
        return jnp.repeat(x, 2, axis=axis)
    return jnp.take(x, jnp.arange(target) * size // target, axis=axis)

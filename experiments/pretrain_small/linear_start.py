"""Where the autoencoder starts: at the best linear one its layers can express.

Without its norms, SiLUs and residual branches the VAE is a stack of convolutions that trains to the quality of
a patch-wise principal component analysis in minutes; from random weights the whole network needs hours for that.
`fit` trains the stack, `install` puts it into the network so that the two agree to a percent, and turns the
latents into coordinates in which errors are seen alike.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from experiments.pretrain_small.architecture import LATENT_CHANNELS, NORM_GROUPS
from recapture_jax import xla

# Two channels of each group before an output norm hold +CONSTANT and -CONSTANT: next to them the signal does not
# change the group's mean and variance, and the norm is a fixed scale.
CONSTANT = 30.0
LINEAR_BIAS = 8.0  # silu(x + 8) is x + 8 to 1e-2 for |x| < 4
POSTERIOR_LOGVAR = -6.0

_KERNELS = (
    "encoder/conv_in",
    "encoder/down_blocks_0/downsamplers_0/conv",
    "encoder/down_blocks_1/downsamplers_0/conv",
    "encoder/down_blocks_2/resnets_0/conv_shortcut",
    "encoder/conv_out",
    "decoder/conv_in",
    "decoder/up_blocks_0/upsamplers_0/conv",
    "decoder/up_blocks_1/resnets_0/spatial_res_block/conv_shortcut",
    "decoder/up_blocks_1/upsamplers_0/conv",
    "decoder/conv_out",
)
_ENCODER, _DECODER = _KERNELS[:5], _KERNELS[5:]


def is_signal(channels: int) -> np.ndarray:
    """`[channels]` bool: false for the two constant channels of each group."""
    per_group = np.ones(channels // NORM_GROUPS, bool)
    per_group[:2] = False
    return np.tile(per_group, NORM_GROUPS)


def _conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    pad = (0, 1) if stride == 2 else (kernel.shape[0] // 2,) * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def encode(kernels: dict, images: jax.Array) -> jax.Array:
    """Images `[N, H, W, 3]` in [-1, 1] to `[N, H/4, W/4, c]` by the linear stack."""
    x = images
    for name in _ENCODER:
        x = _conv(x, kernels[name], 2 if "downsamplers" in name else 1)
    return x


def decode(kernels: dict, latents: jax.Array) -> jax.Array:
    """The linear stack's inverse of `encode`."""
    x = latents
    for name in _DECODER:
        if "upsamplers" in name:
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        x = _conv(x, kernels[name])
    return x


def _start(flat: dict) -> dict:
    """The network's own initial kernels, cut to what the linear stack uses.

    The output convolutions are 1x1: behind them the network's padding is SiLU(0), not zero signal.
    """
    kernels = {}
    for name in _KERNELS:
        k = np.array(flat[f"{name}/kernel"])
        if name.endswith("conv_out"):
            k = k[1:2, 1:2, is_signal(k.shape[2])] * 3.0
        if name == "encoder/conv_out":
            k = k[..., :LATENT_CHANNELS]
        if name in (_ENCODER[3], _DECODER[3]):
            k = k[..., is_signal(k.shape[3])]
        kernels[name] = k
    return kernels


def fit(flat: dict, batch, steps: int = 1500) -> dict:
    """Trains the linear stack by Adam on squared error; `batch(i)` gives images `[N, H, W, 3]`."""
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    @xla.jit
    def step(kernels, state, images):
        def error(k):
            return jnp.square(decode(k, encode(k, images)) - images).mean()

        value, grads = jax.value_and_grad(error)(kernels)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(kernels, updates), state, value

    kernels = jax.tree.map(jnp.asarray, _start(flat))
    state = optimizer.init(kernels)
    values = []
    for i in range(steps):
        kernels, state, value = step(kernels, state, batch(i))
        values.append(value)
        if (i + 1) % 250 == 0:
            mse = float(np.mean(jax.device_get(values[-250:])))
            logging.info("linear start: step %d, PSNR %.2f dB", i + 1, -10 * np.log10(mse / 4))
    return jax.device_get(kernels)


def latent_basis(kernels: dict, images: np.ndarray) -> np.ndarray:
    """Matrix `[c, c]` to coordinates between "equal error in pixels" and "equal variance".

    In the first, diffusion at one noise level would leave the fine components to the last steps; in the second
    their errors would be seen most. Principal components, each scaled by the fourth root of its variance,
    with unit variance on average.
    """
    z = encode(kernels, images).reshape(-1, LATENT_CHANNELS)
    covariance = np.cov(np.asarray(z, np.float64).T)
    signs = np.sign(np.random.default_rng(0).normal(size=(1, 24, 24, 1)))
    fields = (
        signs * np.eye(LATENT_CHANNELS)[:, None, None, :]
    )  # one latent at a time, white in space
    pixels = np.asarray(decode(kernels, jnp.asarray(fields, jnp.float32)), np.float64)
    pixels = pixels.reshape(LATENT_CHANNELS, -1)
    values, vectors = np.linalg.eigh(pixels @ pixels.T / pixels.shape[1])
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    variances, axes = np.linalg.eigh(root @ covariance @ root)
    variances, axes = variances[::-1], axes[:, ::-1]
    scale = variances**-0.25 / np.sqrt(np.sqrt(variances).mean())
    return (scale[:, None] * axes.T) @ root


def install(flat: dict, kernels: dict, images: np.ndarray) -> dict:
    """The VAE's parameters, by path, with the linear stack inside and residual branches that start at zero.

    Args:
      flat: initial parameters by path.
      kernels: what `fit` returned.
      images: `[N, H, W, 3]` in [-1, 1], to scale features and latents by.
    """
    flat = {k: np.array(v, np.float32) for k, v in flat.items()}
    for name in flat:
        if name.endswith(("conv2/kernel", "to_out_0/kernel")):
            flat[name][:] = 0.0
    basis = latent_basis(kernels, images)
    kernels = {k: np.array(v) for k, v in kernels.items()}
    kernels["encoder/conv_out"] = kernels["encoder/conv_out"] @ basis.T
    kernels["decoder/conv_in"] = np.einsum(
        "ij,hwjo->hwio", np.linalg.inv(basis).T, kernels["decoder/conv_in"]
    )
    for half in (_ENCODER, _DECODER):
        _install_half(flat, kernels, half, images)
    c = LATENT_CHANNELS
    flat["quant_conv/kernel"] = np.eye(2 * c, dtype=np.float32)[None, None]
    flat["quant_conv/kernel"][..., c:] = 0.0
    flat["quant_conv/bias"][:] = np.where(np.arange(2 * c) < c, 0.0, POSTERIOR_LOGVAR)
    flat["decoder/time_conv_out/kernel"][:] = 0.0
    flat["decoder/time_conv_out/kernel"][1, 0, 0] = np.eye(3)
    return flat


def _install_half(flat: dict, kernels: dict, half: tuple, images: np.ndarray) -> None:
    """Encoder or decoder: kernels, the constants, and an output norm and SiLU that change nothing."""
    *_, features, output = half
    part = output.split("/")[0]
    # Features of unit size before the norm; the output convolution undoes it.
    one = np.eye(kernels[output].shape[2], dtype=np.float32)[None, None]
    stack = kernels | {output: one}
    x = encode(stack if half is _ENCODER else kernels, images)
    x = np.asarray(x if half is _ENCODER else decode(stack, x))
    size = np.sqrt(np.square(x).mean((0, 1, 2)))
    kernels = kernels | {
        features: kernels[features] / size,
        output: kernels[output] * size[:, None],
    }
    channels = flat[f"{features}/kernel"].shape[-1]
    signal = is_signal(channels)
    for name in half:
        flat[f"{name}/bias"][:] = 0.0
    for name in half[:-2]:
        flat[f"{name}/kernel"][:] = kernels[name]
    flat[f"{features}/kernel"][:] = 0.0
    flat[f"{features}/kernel"][..., signal] = kernels[features]
    flat[f"{features}/bias"][~signal] = np.tile([CONSTANT, -CONSTANT], NORM_GROUPS)
    flat[f"{output}/kernel"][:] = 0.0
    centre = flat[f"{output}/kernel"][1, 1]
    centre[signal, : kernels[output].shape[-1]] = kernels[output][0, 0]
    # The norm takes the mean of the group's signals from each; its first constant channel holds it still.
    groups = centre.reshape(NORM_GROUPS, -1, centre.shape[-1])
    groups[:, 0] = -groups.sum(1)
    flat[f"{output}/bias"][:] = -LINEAR_BIAS * centre.sum(0)
    unit = CONSTANT * np.sqrt(2.0 * NORM_GROUPS / channels)  # what the norm divides by
    behind = "encoder/mid_block" if half is _ENCODER else "decoder/up_blocks_2"
    for name, value in flat.items():
        reads = name.startswith(behind) and ("norm1" in name or "group_norm" in name)
        if name.endswith("/scale") and (reads or name == f"{part}/conv_norm_out/scale"):
            value[signal] = unit
    scale, bias = (flat[f"{part}/conv_norm_out/{name}"] for name in ("scale", "bias"))
    scale[:: channels // NORM_GROUPS] = unit
    bias[:] = LINEAR_BIAS
    bias[:: channels // NORM_GROUPS] -= CONSTANT

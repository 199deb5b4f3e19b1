"""Stage `vae`: a linear encoder, a decoder trained on short crops, and the latents of whole clips."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.pretrain_small import linear_start, loop
from experiments.pretrain_small.architecture import CONFIG
from recapture_jax import xla
from recapture_jax.models import zoo
from recapture_jax.models.vae import VAE

CROP, CROP_FRAMES, CROPS = 64, 2, 3


def reconstruction_loss(vae: VAE, params: dict, key: jax.Array, batch: dict) -> jax.Array:
    """L1 and L2 on pixels, L1 on their differences (edges) and on 4x4 means and their hue.

    Without the means, colour is learnt long after texture. The latents are drawn from the posterior.
    """
    images = batch["images"].astype(jnp.float32) / 127.5 - 1.0
    mean, logvar = vae.apply({"params": params}, images, method=VAE.posterior)
    noise = jax.random.normal(key, mean.shape)
    out = vae.apply({"params": params}, mean + jnp.exp(0.5 * logvar) * noise, method=VAE.decode)
    error = out - images
    edges = sum(jnp.abs(jnp.diff(error, axis=a)).mean() for a in (2, 3))
    b, t, h, w, c = error.shape
    coarse = error.reshape(b, t, h // 4, 4, w // 4, 4, c).mean((3, 5))
    chroma = coarse - coarse.mean(-1, keepdims=True)
    return (
        jnp.abs(error).mean()
        + 4.0 * jnp.square(error).mean()
        + 0.5 * edges
        + jnp.abs(coarse).mean()
        + 2.0 * jnp.abs(chroma).mean()
    )


def crops(frames: np.ndarray, seed: int, count: int, length: int) -> np.ndarray:
    """`[count, length, CROP, CROP, 3]` uint8: random pieces of clips, half of them mirrored."""
    rng = np.random.default_rng((7, seed))
    n, t, h, w, _ = frames.shape
    out = []
    for _ in range(count):
        i, f = rng.integers(n), rng.integers(t - length + 1)
        y, x = rng.integers(h - CROP + 1), rng.integers(w - CROP + 1)
        crop = frames[i, f : f + length, y : y + CROP, x : x + CROP]
        out.append(crop[:, :, ::-1] if rng.random() < 0.5 else crop)
    return np.stack(out)


def start(frames: np.ndarray) -> dict:
    """The best linear autoencoder (`linear_start`): the encoder for good, and where the decoder begins."""

    def batch(step: int, count: int = 8) -> np.ndarray:
        return crops(frames, step, count, 1)[:, 0].astype(np.float32) / 127.5 - 1.0

    flat = flatten_dict(zoo.init_params("vae", CONFIG, 1), sep="/")
    kernels = linear_start.fit(flat, batch)
    return unflatten_dict(linear_start.install(flat, kernels, batch(2**30, 64)), sep="/")


def train(
    workdir: pathlib.Path,
    params: dict,
    frames: np.ndarray,
    *,
    steps: int,
    rate: float,
    minutes: float,
) -> dict:
    """Trains the decoder of `params` on what the encoder keeps; returns all parameters.

    The rate is low: the start is good to 3 %, and the steps of Adam add noise to it that decays with the rate.
    """
    vae = zoo.build(CONFIG).vae

    def batch(step: int) -> dict:
        return {"images": crops(frames, step, CROPS, CROP_FRAMES)}

    def loss(decoder, key, inputs):
        return reconstruction_loss(vae, params | {"decoder": decoder}, key, inputs)

    decoder = loop.train(
        "vae",
        workdir,
        params["decoder"],
        loss,
        batch,
        steps=steps,
        learning_rate=rate,
        minutes=minutes,
        # Its inputs all stand at LINEAR_BIAS: a step of Adam on every weight at once is a jump of the output.
        slow=("conv_out", "conv_norm_out"),
    )
    return params | {"decoder": decoder}


def encoder(params: dict):
    """Jitted: uint8 frames `[B, T, H, W, 3]` and pixel noise strength `[B]` to unscaled latents."""
    vae = zoo.build(CONFIG).vae

    @xla.jit
    def encode(frames, noise_level, key):
        images = frames.astype(jnp.float32) / 127.5 - 1.0
        noise = jax.random.normal(key, images.shape)
        images = images + noise_level[:, None, None, None, None] * noise
        return vae.apply({"params": params}, images, method=VAE.encode)

    return encode


def psnr(params: dict, frames: np.ndarray) -> float:
    """Mean reconstruction PSNR in dB over clips `[N, T, H, W, 3]` uint8, decoded as whole clips."""
    vae = zoo.build(CONFIG).vae

    @xla.jit
    def error(clip):
        images = clip.astype(jnp.float32) / 127.5 - 1.0
        out = vae.apply(
            {"params": params},
            vae.apply({"params": params}, images, method=VAE.encode),
            method=VAE.decode,
        )
        return jnp.square(jnp.clip(out, -1, 1) - images).mean() / 4.0

    errors = np.array([error(clip[None]) for clip in frames])
    return float(np.mean(-10 * np.log10(errors)))

"""Stage `vae`: the autoencoder on short crops, and the latents of whole clips."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pretrain_small import loop
from experiments.pretrain_small.architecture import CONFIG
from recapture_jax.models import zoo
from recapture_jax.models.vae import VAE

CROP, CROP_FRAMES, CROPS = 64, 2, 3


def reconstruction_loss(vae: VAE, params: dict, key: jax.Array, batch: dict) -> jax.Array:
    """L1 and L2 on pixels, L1 on their differences (edges) and on 4x4 means and their hue, a weak KL term.

    Without the means, colour is learnt long after texture.
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
    kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar).mean()
    return (
        jnp.abs(error).mean()
        + 4.0 * jnp.square(error).mean()
        + 0.5 * edges
        + jnp.abs(coarse).mean()
        + 2.0 * jnp.abs(chroma).mean()
        + 2e-5 * kl
    )


def train(workdir: pathlib.Path, frames: np.ndarray, steps: int, minutes: float) -> dict:
    vae = zoo.build(CONFIG).vae
    params = loop.start_quiet(zoo.init_params("vae", CONFIG, 1), ("conv2", "to_out_0"))

    def batch(step: int) -> dict:
        rng = np.random.default_rng((7, step))
        n, t, h, w, _ = frames.shape
        out = []
        for _ in range(CROPS):
            i, f = rng.integers(n), rng.integers(t - CROP_FRAMES + 1)
            y, x = rng.integers(h - CROP + 1), rng.integers(w - CROP + 1)
            crop = frames[i, f : f + CROP_FRAMES, y : y + CROP, x : x + CROP]
            out.append(crop[:, :, ::-1] if rng.random() < 0.5 else crop)
        return {"images": np.stack(out)}

    def loss(params, key, inputs):
        return reconstruction_loss(vae, params, key, inputs)

    return loop.train(
        "vae", workdir, params, loss, batch, steps=steps, learning_rate=1.5e-3, minutes=minutes
    )


def encoder(params: dict):
    """Jitted: uint8 frames `[B, T, H, W, 3]` and pixel noise strength `[B]` to unscaled latents."""
    vae = zoo.build(CONFIG).vae

    @jax.jit
    def encode(frames, noise_level, key):
        images = frames.astype(jnp.float32) / 127.5 - 1.0
        noise = jax.random.normal(key, images.shape)
        images = images + noise_level[:, None, None, None, None] * noise
        return vae.apply({"params": params}, images, method=VAE.encode)

    return encode


def psnr(params: dict, frames: np.ndarray) -> float:
    """Mean reconstruction PSNR in dB over clips `[N, T, H, W, 3]` uint8, decoded as whole clips."""
    vae = zoo.build(CONFIG).vae

    @jax.jit
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

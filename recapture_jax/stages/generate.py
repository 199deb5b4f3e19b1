"""Stage 3: the clip itself. Sampling with both LoRAs, SDEdit with the spatial one, decoding.

Beyond the paper, whose tuned model alone carries the motion: with `generate.known_weight` the denoised estimate is
pulled towards the anchor's latents where the anchor is known, at the noise levels that decide what is where.
It makes up for a weak prior or few tuning steps; what the anchor blurs is left to the levels below. With
`generate.keep_pixels` the result has the anchor's own pixels there, which no autoencoder has been through.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from scipy import ndimage

from recapture_jax import progress
from recapture_jax.diffusion.guidance import Conditioning, guidance_ramp, unconditional
from recapture_jax.diffusion.karras import karras_sigmas, karras_tail
from recapture_jax.diffusion.sampling import sample_steps, start_from_noise, start_from_video
from recapture_jax.lora import tree as lora_tree
from recapture_jax.stages.anchor import Anchor
from recapture_jax.stages.tune import condition_on, known_mask
from recapture_jax.stages.video_model import VideoModel

FADE = 3.0  # pixels from a hole to where `keep_pixels` takes the anchor alone


def generate(
    model: VideoModel, anchor: Anchor, loras: dict[str, lora_tree.Lora], config, seed: int
) -> np.ndarray:
    """Samples the re-filmed clip.

    Args:
      model: the video model.
      anchor: its first frame is the image prompt.
      loras: 'spatial' and 'temporal' deltas; either may be empty.
      config: the `generate` group.
      seed: of all noise.

    Returns:
      Frames `[T, H, W, 3]` float32 in [0, 1].
    """
    key = jax.random.key(seed)
    num_frames = len(anchor.frames)
    # The same conditioning as in tuning, down to the noise on the image.
    cond = condition_on(
        model, jnp.asarray(anchor.frames[0]), num_frames, config, jax.random.fold_in(key, 2**20)
    )
    noise_keys = jax.random.split(jax.random.fold_in(key, 2**21))
    scales = guidance_ramp(config.min_guidance, config.max_guidance, num_frames)

    both = lora_tree.combine(*(loras.get(kind) or {} for kind in ("spatial", "temporal")))
    params = lora_tree.merge(model.params["unet"], both)
    sigmas = karras_sigmas(config.steps, config.sigma_min)
    noise = jax.random.normal(noise_keys[0], cond.latents.shape)
    x = start_from_noise(noise, sigmas[0])
    project = keep_known(model, anchor, config)
    latents = _run(model, params, x, sigmas, cond, scales, project, "sample")

    if config.sdedit_sigma > 0:
        params = lora_tree.merge(model.params["unet"], loras.get("spatial") or {})
        sigmas = karras_tail(config.sdedit_sigma, config.sdedit_steps)
        noise = jax.random.normal(noise_keys[1], latents.shape)
        x = start_from_video(latents, noise, sigmas[0])
        latents = _run(model, params, x, sigmas, cond, scales, project, "sdedit")

    frames = model.decode(latents[0], config.decode_chunk or num_frames)
    frames = np.asarray(frames, np.float32)
    return keep_pixels(frames, anchor) if config.keep_pixels else frames


def keep_pixels(frames: np.ndarray, anchor: Anchor) -> np.ndarray:
    """`frames` `[T, H, W, 3]` with the anchor's pixels where its mask has them, faded in over FADE pixels."""
    weight = np.ones(anchor.mask.shape, np.float32)
    for known, share in zip(anchor.mask, weight, strict=True):
        if not known.all():
            share[:] = np.clip(ndimage.distance_transform_edt(known) / FADE, 0.0, 1.0)
    return frames + weight[..., None] * (anchor.frames - frames)


def keep_known(model: VideoModel, anchor: Anchor, config) -> Partial | None:
    """The sampler's projection onto what the anchor knows, or None if `config.known_weight` is 0.

    `x0 + weight * mask * (anchor - x0)` at sigma >= `known_sigma_min`; a latent is known if all its pixels are.
    """
    if not config.known_weight:
        return None
    latents = model.encode_video(jnp.asarray(anchor.frames))[None]
    mask = known_mask(model, anchor)[..., None]
    return Partial(_pull, latents, config.known_weight * mask, jnp.float32(config.known_sigma_min))


def _pull(latents, weight, sigma_min, x0, sigma, step):
    del step
    return jnp.where(sigma >= sigma_min, x0 + weight * (latents - x0), x0)


def _run(
    model: VideoModel,
    params: dict,
    x: jax.Array,
    sigmas: np.ndarray,
    cond: Conditioning,
    scales,
    project: Partial | None,
    label: str,
) -> jax.Array:
    bar = progress.bar(label, len(sigmas) - 1)
    try:
        # Guidance doubles the batch, unconditional half first: the tables must be those of both halves.
        both = jax.tree.map(lambda u, c: jnp.concatenate([u, c]), unconditional(cond), cond)
        tables = model.tables(params, both if scales.max() > 1.0 else cond)
        denoise = Partial(model.sampling_denoiser, params, tables)
        return sample_steps(
            denoise,
            x,
            sigmas,
            cond,
            guidance=scales,
            project=project,
            callback=lambda *_: bar.update(),
        )
    finally:
        bar.close()

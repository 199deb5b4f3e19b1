"""Stage 3: the clip itself. Sampling with both LoRAs, SDEdit with the spatial one, decoding.

Beyond the paper, whose tuned model alone carries the motion: with `generate.known_weight` the denoised estimate is
pulled towards the anchor's latents where the anchor is known, at the noise levels that decide what is where.
It makes up for a weak prior or few tuning steps; what the anchor blurs is left to the levels below. With
`generate.keep_pixels` the result has the anchor's own pixels there, which no autoencoder has been through.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from scipy import ndimage

from recapture_jax import progress, sharding
from recapture_jax.diffusion.guidance import Conditioning, doubled, guidance_ramp
from recapture_jax.diffusion.karras import karras_sigmas, karras_tail
from recapture_jax.diffusion.sampling import sample_steps, start_from_noise, start_from_video
from recapture_jax.diffusion.windows import blend_weights
from recapture_jax.lora import tree as lora_tree
from recapture_jax.stages import tune
from recapture_jax.stages.anchor import Anchor
from recapture_jax.stages.video_model import VideoModel

FADE = 2.0  # pixels from a hole to where `keep_pixels` takes the anchor alone


def generate(
    model: VideoModel,
    anchor: Anchor,
    loras: dict[str, lora_tree.Lora],
    group,
    config,
    seed: int,
    mesh: jax.sharding.Mesh | None = None,
) -> np.ndarray:
    """Samples the re-filmed clip, a longer one than the model sees at once in windows.

    Args:
      model: the video model.
      anchor: its first frame, or that of each window, is the image prompt.
      loras: 'spatial' and 'temporal' deltas; either may be empty.
      group: the `model` group.
      config: the `generate` group.
      seed: of all noise.
      mesh: devices that share the denoising; None: the first one does it. Encoding and decoding every
        process does by itself.

    Returns:
      Frames `[T, H, W, 3]` float32 in [0, 1].

    Raises:
      InputError: windows that do not advance.
    """
    latents = _sample(model, anchor, loras, group, config, seed, mesh or sharding.one_device())
    frames = model.decode(latents, config.decode_chunk or len(anchor.frames))
    return keep_pixels(frames, anchor) if config.keep_pixels else frames


def _sample(model, anchor, loras, group, config, seed, mesh) -> jax.Array:
    """The clip's latents `[T, h, w, c]`. What the U-Net holds on the device is gone when this returns."""
    num_frames = len(anchor.frames)
    starts, length = tune.windows_of(model, num_frames, group)
    cond = tune.window_conditions(model, anchor, starts, length, config, seed)
    weights = blend_weights(num_frames, length, starts)
    unknown = _unknown_starts(model, anchor, starts, length)
    project = keep_known(model, anchor, config)
    noise_keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 2**21))
    shape = (1, num_frames, *cond.latents.shape[2:])
    first, second = (jax.random.normal(key, shape) for key in noise_keys)

    base = sharding.shard_weights(model.params["unet"], mesh)
    shared = (cond, starts, weights, unknown, project, loras, first, second)
    cond, starts, weights, unknown, project, loras, first, second = sharding.replicate(shared, mesh)
    sampler = _Sampler(model, mesh, cond, starts, weights, unknown, config, project)

    spatial = lora_tree.merge(base, loras.get("spatial") or {})
    both = lora_tree.merge(spatial, loras.get("temporal") or {})  # targets of both may overlap
    sigmas = karras_sigmas(config.steps, config.sigma_min)
    x = start_from_noise(first, sigmas[0])
    latents = sampler.run(both, x, sigmas, "sample")

    if config.sdedit_sigma > 0:
        sigmas = karras_tail(config.sdedit_sigma, config.sdedit_steps)
        x = start_from_video(latents, second, sigmas[0])
        latents = sampler.run(spatial, x, sigmas, "sdedit")

    return jnp.asarray(jax.device_get(latents[0]))


def keep_pixels(frames: np.ndarray, anchor: Anchor) -> np.ndarray:
    """`frames` `[T, H, W, 3]` with the anchor's pixels where it has any, faded in over FADE pixels.

    Also on the rim that `mask` leaves out: its colours are nearer to the truth than invented ones.
    """
    weight = np.ones(anchor.mask.shape, np.float32)
    for known, share in zip(anchor.raw_mask | anchor.mask, weight, strict=True):
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
    mask = tune.known_mask(model, anchor)[..., None]
    return Partial(_pull, latents, config.known_weight * mask, jnp.float32(config.known_sigma_min))


def _unknown_starts(
    model: VideoModel, anchor: Anchor, starts: np.ndarray, length: int
) -> np.ndarray:
    """`[K, h, w]` float32: 1 where the anchor does not know a window's first frame and the window before has it."""
    known = np.asarray(tune.known_mask(model, anchor)[0])[starts]
    had = np.diff(starts, prepend=-length) < length
    return (~known & had[:, None, None]).astype(np.float32)


def _pull(latents, weight, sigma_min, x0, sigma, step):
    del step
    return jnp.where(sigma >= sigma_min, x0 + weight * (latents - x0), x0)


@dataclasses.dataclass(frozen=True)
class _Sampler:
    """What all sampling of a clip shares: K windows with their conditioning, batch K."""

    model: VideoModel
    mesh: jax.sharding.Mesh
    cond: Conditioning
    starts: jax.Array
    weights: jax.Array
    unknown: jax.Array
    config: Any
    project: Partial | None

    def run(self, params: dict, x: jax.Array, sigmas: np.ndarray, label: str) -> jax.Array:
        """x `[1, T, h, w, c]` at `sigmas[0]` to the latents at the end, on every device."""
        bar = progress.bar(label, len(sigmas) - 1)
        scales = guidance_ramp(
            self.config.min_guidance, self.config.max_guidance, self.weights.shape[1]
        )
        try:
            denoise, scales = self._denoiser(params, scales)
            latents = sample_steps(
                denoise,
                x,
                sigmas,
                self.cond,
                guidance=scales,
                project=self.project,
                callback=lambda *_: bar.update(),
            )
            return sharding.gather(latents, self.mesh)
        finally:
            bar.close()

    def _denoiser(self, params: dict, scales: np.ndarray) -> tuple[Partial, np.ndarray | None]:
        """Of the whole clip, and the scales that are left for the sampler to guide it with."""
        model, guided = self.model, scales.max() > 1.0
        apart = guided and self.config.guidance_passes == "apart"
        place = sharding.Placement(self.mesh)
        tables = []
        for k in range(len(self.starts)):
            cond = jax.tree.map(lambda leaf, k=k: leaf[k : k + 1], self.cond)
            # Guidance doubles the batch, and so must the tables.
            tables.append(model.tables(params, doubled(cond) if guided else cond, apart))
        if len(tables) == 1:
            return Partial(model.sampling_denoiser(place, apart), params, tables[0]), scales
        denoise = model.window_denoiser(tuple(scales.tolist()) if guided else None, place, apart)
        tables = jax.tree.map(lambda *leaves: jnp.stack(leaves), *tables)
        return Partial(denoise, params, tables, self.starts, self.weights, self.unknown), None

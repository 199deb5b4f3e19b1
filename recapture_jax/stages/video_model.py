"""A video model at work: networks and parameters, between pixels in [0, 1] and denoisers.

Units of latents: the *video* latents that are diffused are scaled by the autoencoder's `scaling_factor`,
the *conditioning* latents are not (Stability's convention; see diffusers' SVD pipeline).
"""

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from recapture_jax import xla
from recapture_jax.diffusion import edm
from recapture_jax.diffusion.guidance import Conditioning
from recapture_jax.diffusion.windows import in_windows
from recapture_jax.models import zoo
from recapture_jax.models.attention import split_over
from recapture_jax.models.image_preprocess import clip_preprocess
from recapture_jax.models.transformer import TABLES
from recapture_jax.models.vae import VAE
from recapture_jax.sharding import Placement


@dataclasses.dataclass(frozen=True)
class VideoModel:
    """Networks with their parameters.

    Attributes:
      networks: modules.
      params: `{"unet": ..., "vae": ..., "image_encoder": ...}`; numpy's go to the device for each program anew.
      config: the dictionary the networks were built from.
    """

    networks: zoo.Networks
    params: dict[str, Any]
    config: dict[str, Any]

    @property
    def factor(self) -> int:
        return self.networks.vae.config.factor

    def rebuilt(self, dtype, **unet_options) -> "VideoModel":
        """The same parameters in networks with other options (`zoo.build`)."""
        return dataclasses.replace(self, networks=zoo.build(self.config, dtype, **unet_options))

    def network(
        self,
        unet_params: dict,
        image_only: bool = False,
        tables: dict | None = None,
        place: Placement | None = None,
    ):
        """F(c_in x, c_noise, cond), the raw U-Net, for `edm.precondition`; place: how its batch lies on devices."""

        def run(x: jax.Array, c_noise: jax.Array, cond: Conditioning) -> jax.Array:
            sample = jnp.concatenate([x, cond.latents.astype(x.dtype)], axis=-1)
            variables = {"params": unet_params}
            if tables is not None:
                variables[TABLES] = tables
            inputs = (sample, c_noise, cond.context, cond.added_time_ids)
            split = contextlib.nullcontext()
            if place is not None:
                split = split_over(place.mesh, place.axes(*x.shape[:2]))
            with split:
                return self.networks.unet.apply(variables, *inputs, image_only=image_only)

        return run

    def denoiser(self, unet_params: dict, **options):
        """x0 prediction `(x, sigma, cond) -> x0`: all that sampling and losses know of the model.

        options: of `network`.
        """
        return edm.precondition(self.network(unet_params, **options))

    def tables(self, unet_params: dict, cond: Conditioning, apart: bool = False) -> dict:
        """Constants of a sampling run (attn2 vectors, frame positions); pass them to `network`.

        apart: those of every clip of the batch by themselves, stacked, for `sampling_denoiser(apart=True)`.
        """
        if not apart:
            return self._tables(unet_params, cond)
        clips = [jax.tree.map(lambda x, i=i: x[i : i + 1], cond) for i in range(len(cond.context))]
        return jax.tree.map(lambda *x: jnp.stack(x), *(self._tables(unet_params, c) for c in clips))

    @functools.cached_property
    def sampling_denoiser(self):
        """`(place=None, apart=False) -> (unet_params, tables, x, sigma, cond) -> x0`.

        One function per model, `place` (`sharding.Placement`; None: nowhere) and `apart`, so it compiles once.
        apart: the clips of the batch one after another, in the memory of one; sigma is a scalar then.
        """

        def of(place=None, apart=False):
            def denoise(unet_params, tables, x, sigma, cond):
                if place is not None:
                    x, cond = place((x, cond), len(x))
                return self.denoiser(unet_params, tables=tables, place=place)(x, sigma, cond)

            def in_turn(unet_params, tables, x, sigma, cond):
                def one(clip):
                    table, *batch = clip
                    x, cond = jax.tree.map(lambda leaf: leaf[None], batch)
                    return denoise(unet_params, table, x, sigma, cond)[0]

                return jax.lax.map(one, (tables, x, cond))

            return in_turn if apart else denoise

        return functools.lru_cache(of)

    @functools.cached_property
    def window_denoiser(self):
        """`(scales, place=None, apart=False) -> windows.in_windows` of the denoiser above, guided by them."""
        scaling = float(self.networks.vae.config.scaling_factor)

        def of(scales, place=None, apart=False):
            return in_windows(self.sampling_denoiser(place, apart), scales, scaling)

        return functools.lru_cache(of)

    def embed_image(self, images: jax.Array) -> jax.Array:
        """Images `[B, H, W, 3]` in [0, 1] to contexts `[B, 1, D]`."""
        pixels = clip_preprocess(images, self.networks.image_encoder.config.image_size)
        return self._encode_image(self.params["image_encoder"], pixels)[:, None]

    def encode(self, frames: jax.Array) -> jax.Array:
        """Frames `[T, H, W, 3]` in [0, 1] to unscaled latents `[T, h, w, c]`, one frame at a time."""
        return self._encode(self.params["vae"], frames)

    def encode_video(self, frames: jax.Array) -> jax.Array:
        """The latents that are diffused, `[T, h, w, c]`, scaled."""
        return self.encode(frames) * self.networks.vae.config.scaling_factor

    def decode(self, latents: jax.Array, chunk: int) -> np.ndarray:
        """Scaled latents `[T, h, w, c]` to frames `[T, H, W, 3]` in [0, 1], at most `chunk` frames at a time.

        Every chunk is decoded as a clip of its own, as diffusers does; larger chunks flicker less. They are of
        equal length, give or take one: a last one of a single frame would look unlike the others.
        """
        latents = latents / self.networks.vae.config.scaling_factor
        chunks = jnp.array_split(latents, -(-len(latents) // chunk))
        # Fetched one by one: frames of a long clip would fill the device.
        return np.concatenate([np.asarray(self._decode(self.params["vae"], c)) for c in chunks])

    def condition(
        self,
        image: jax.Array,
        num_frames: int,
        *,
        fps: float,
        motion_bucket: float,
        noise_aug: float,
        key: jax.Array,
    ) -> Conditioning:
        """Conditioning of one clip on its first frame.

        Args:
          image: `[H, W, 3]` in [0, 1].
          num_frames: T.
          fps: frames per second as a person would say it (the id is one less).
          motion_bucket: 0..255.
          noise_aug: std of the noise added to the image in [-1, 1] before it is encoded.
          key: of that noise.
        """
        noise = 0.5 * noise_aug * jax.random.normal(key, image.shape)  # [0, 1] is half as wide
        latents = self.encode((image + noise)[None])
        return Conditioning(
            context=self.embed_image(image[None]),
            latents=jnp.repeat(latents[None], num_frames, axis=1),
            added_time_ids=jnp.array([[fps - 1.0, motion_bucket, noise_aug]], jnp.float32),
        )

    @functools.cached_property
    def _tables(self):
        def compute(params, cond):
            b, t, h, w, _ = cond.latents.shape
            sample = jnp.zeros((b, t, h, w, self.networks.unet.config.in_channels))
            args = (sample, jnp.zeros((b,)), cond.context, cond.added_time_ids)
            # All but the tables is dead code, which XLA drops.
            return self.networks.unet.apply({"params": params}, *args, mutable=[TABLES])[1][TABLES]

        return xla.jit(compute)

    @functools.cached_property
    def _encode_image(self):
        return xla.jit(lambda p, x: self.networks.image_encoder.apply({"params": p}, x))

    @functools.cached_property
    def _encode(self):
        def run(params, frames):
            def encode(frame):
                images = (2.0 * frame - 1.0)[None, None]
                return self.networks.vae.apply({"params": params}, images, method=VAE.encode)[0, 0]

            return jax.lax.map(encode, frames)

        return xla.jit(run)

    @functools.cached_property
    def _decode(self):
        def run(params, latents):
            out = self.networks.vae.apply({"params": params}, latents[None], method=VAE.decode)[0]
            return jnp.clip(0.5 * out + 0.5, 0.0, 1.0)

        return xla.jit(run)

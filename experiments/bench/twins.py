"""One model in float32, rounded and in bfloat16, and what is done with each: predictions, tuning, samples."""

import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from experiments.bench.probes import cast
from recapture_jax import config as configuration
from recapture_jax import weights, xla
from recapture_jax.diffusion import edm
from recapture_jax.diffusion.guidance import Conditioning, doubled, guidance_ramp
from recapture_jax.diffusion.karras import karras_sigmas
from recapture_jax.diffusion.sampling import sample_steps, start_from_noise
from recapture_jax.first_stage import FirstStage
from recapture_jax.lora import tree as lora_tree
from recapture_jax.lora.adapter import adapters
from recapture_jax.models import zoo
from recapture_jax.sharding import make_mesh
from recapture_jax.stages import tune
from recapture_jax.stages.video_model import VideoModel

MOVE = "orbit right 10"  # of the anchor that the LoRAs are tuned on


@dataclasses.dataclass(frozen=True)
class Models:
    """One model three times.

    Attributes:
      wide: float32.
      rounded: float32 with the parameters of `narrow`.
      narrow: bfloat16.
    """

    wide: VideoModel
    rounded: VideoModel
    narrow: VideoModel

    @classmethod
    def load(cls, path: pathlib.Path) -> "Models":
        wide, narrow = (weights.load_model(path, d) for d in (jnp.float32, jnp.bfloat16))
        return cls(wide, dataclasses.replace(wide, params=cast(narrow.params, jnp.float32)), narrow)


@dataclasses.dataclass(frozen=True)
class Data:
    """What the networks are given: of the float32 model.

    Attributes:
      frames: `[T, H, W, 3]` in [0, 1].
      anchor, source: the tuner's data.
      config: of the run.
    """

    frames: jax.Array
    anchor: Any
    source: Any
    config: Any

    @property
    def cond(self) -> Conditioning:
        return jax.tree.map(lambda x: x[:1], self.anchor.cond)

    @property
    def latents(self) -> jax.Array:
        """`[1, T, h, w, c]`."""
        return self.anchor.latents[:1]

    def noisy(self, sigma: float) -> jax.Array:
        noise = jax.random.normal(jax.random.key(1), self.latents.shape)
        return edm.add_noise(self.latents, noise, sigma)


def prepare(path: str, model: VideoModel, variant: str) -> Data:
    """The bundled clip, its anchor along MOVE and the tuner's data of both."""
    config = configuration.default_config(variant)
    config.model.path, config.camera.moves = path, MOVE
    with tempfile.TemporaryDirectory() as folder:
        config.output.cache = folder
        first = FirstStage(config, model.config)
        first.read()
        anchor = first.anchor(first.depth())
    frames = first.clip.frames
    return Data(
        jnp.asarray(frames),
        tune.anchor_data(model, anchor, config),
        tune.source_data(model, frames, config.tune, config.generate, config.seed),
        config,
    )


@functools.cache
def predictor(networks: zoo.Networks) -> Callable[..., jax.Array]:
    """`(unet_params, lora, x, sigma, cond) -> F`, compiled once per dtype."""

    def run(params, lora, x, sigma, cond):
        with adapters(lora):
            network = VideoModel(networks, {}, {}).network(params)
            return edm.predict_v(network, x, sigma, cond)

    return xla.jit(run)


def fit(model: VideoModel, data: Data, steps: int) -> dict[str, lora_tree.Lora]:
    """Both LoRAs, as a run tunes them."""
    config = data.config.copy_and_resolve_references()
    config.tune.steps = steps
    loras: dict[str, lora_tree.Lora] = {}
    for kind, group in (
        ("spatial", {"source": data.source}),
        ("temporal", {"anchor": data.anchor}),
    ):
        tuner = tune.Tuner(model, config, make_mesh())
        fitted, _ = tuner.fit((kind,), group, dict(loras), label=kind, folder=None, metrics=None)
        loras |= fitted
    return jax.tree.map(jnp.asarray, loras)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a clip is sampled.

    Attributes:
      steps: of the sampler.
      seed: of the noise.
    """

    steps: int
    seed: int = 3

    def run(
        self,
        model: VideoModel,
        cond: Conditioning,
        lora: lora_tree.Lora | None = None,
        merged: bool = True,
    ) -> jax.Array:
        """Latents `[1, T, h, w, c]` from noise, guided 1 to 3; the deltas merged or in the forward pass."""
        shape = (*cond.latents.shape[:-1], model.networks.unet.config.out_channels)
        sigmas = karras_sigmas(self.steps)
        x = start_from_noise(jax.random.normal(jax.random.key(self.seed), shape), sigmas[0])
        params, beside = model.params["unet"], lora or {}
        if merged:
            params, beside = lora_tree.merge(params, beside), {}
        tables = model.tables(params, doubled(cond))
        scales = guidance_ramp(1.0, 3.0, shape[1])
        call = Partial(_denoiser(model.networks), params, beside, tables)
        return sample_steps(call, x, sigmas, cond, guidance=scales)


@functools.cache
def _denoiser(networks: zoo.Networks) -> Callable[..., jax.Array]:
    """`(unet_params, lora, tables, x, sigma, cond) -> x0`: one function per dtype, so it compiles once."""

    def denoise(params, lora, tables, x, sigma, cond):
        with adapters(lora):
            return VideoModel(networks, {}, {}).denoiser(params, tables=tables)(x, sigma, cond)

    return denoise


def own_conditioning(model: VideoModel, data: Data) -> Conditioning:
    group = data.config.generate
    key = jax.random.key(data.config.seed)
    return tune.condition_on(model, data.frames[0], len(data.frames), group, key)

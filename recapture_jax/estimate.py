"""What each stage of a run holds on a device, and how much it computes, from shapes alone.

What a tuning step keeps from its forward to its backward pass is counted by tracing that very step. What else
is alive at a time is a number of the largest activations, taken from XLA:CPU's plans of Stable Video Diffusion at
14 x 256 x 384 and 14 x 576 x 1024 in float32: for tuning those in memory.md of `experiments/bench`, for the rest
compiled the same way by a script that was not kept. In bfloat16 three quarters of it are counted, since norms and
softmax stay float32. No plan of a GPU or TPU was at hand to check it.

Where `model.attention=xla` forces attention's plain form its logits are counted: one copy forward, two backward, as in
XLA:CPU's plans of `tests/tiny.py` at 4 x 256 x 384 (1.0 forward, 1.8 backward).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from recapture_jax import cost, sharding
from recapture_jax.diffusion.guidance import Conditioning
from recapture_jax.diffusion.windows import plan_windows
from recapture_jax.lora import tree as lora_tree
from recapture_jax.models import zoo
from recapture_jax.models.vae import VAE
from recapture_jax.stages import tune as tune_stage
from recapture_jax.stages.video_model import VideoModel
from recapture_jax.tuning import memory
from recapture_jax.tuning.step import AnchorData, SourceData, init_state, window_side

GIB = 2**30
# Activations alive at once, as float32 `[T, h, w, C0]` of the U-Net or `[H, W, C0]` of the decoder's last level.
_TUNE_UNITS, _SAMPLE_UNITS, _DECODE_UNITS, _ENCODE_UNITS = 46.0, 27.5, 7.5, 3.1
_ATTENTION = 0.75 * GIB  # blocks of logits, at most, unless the plain form is forced
_BACKWARD_LOGITS = 2  # the weights again and their gradient
_TOWERS = {
    "encode": ("vae", "image_encoder"),
    "tune": ("unet",),
    "sample": ("unet",),
    "decode": ("vae",),
}


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes a stage holds at once: weights and optimiser state, and everything that comes and goes."""

    stage: str
    weights: int
    working: int

    @property
    def total(self) -> int:
        return self.weights + self.working


class Estimate:
    """Memory of a run's stages.

    Args:
        model_config: of the model's folder.
        config: of the run.
        dtype: of weights and activations.
        frames: of the clip.
        size: (height, width) in pixels.
    """

    def __init__(self, model_config: dict, config, dtype, frames: int, size: tuple[int, int]):
        self.config, self.dtype = config, jnp.dtype(dtype)
        self.model_config = model_config
        group = config.model
        trained = int(model_config["num_frames"])
        starts, self.length = plan_windows(frames, trained, group.window, group.window_overlap)
        self.windows, self.frames, self.size = len(starts), frames, size
        self._params = {
            name: jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, self.dtype),
                zoo.abstract_params(name, model_config),
            )
            for name in zoo.COMPONENTS
        }
        self._held = {name: memory.nbytes(tree) for name, tree in self._params.items()}
        self._held["unet"] //= config.mesh.fsdp  # the rest is on other devices of the mesh
        self._weights = sum(self._held.values())
        self.networks = zoo.build(model_config, dtype)
        self.latent = tuple(side // self.networks.vae.config.factor for side in size)
        self._tuning = tune_stage.settings(config.tune, self.networks.unet.config.stride)
        self._sides = [window_side(n, self._tuning) for n in self.latent]  # that a step sees
        guided = max(config.generate.min_guidance, config.generate.max_guidance) > 1.0
        self.guided, self._clips = guided, 2 if guided else 1  # of one step of the sampler
        self._kept, self.operations = (  # what has to be traced
            functools.cache(method) for method in (self._kept, self.operations)
        )

    def tune(self, remat: str, together: int = 1) -> Need:
        """On one device of the mesh: the larger of both LoRAs' steps, or their sum with `tune.schedule` 'joint'.

        together: trajectories in a temporal step.
        """
        tune = self.config.tune
        steps = []  # (state and data, what comes and goes) of each
        if tune.spatial_weight > 0:
            steps.append(self._spatial(remat))
        if tune.temporal_weight > 0:
            steps.append(self._temporal(remat, together))
        if tune.schedule == "joint" and len(steps) == 2:
            own, working = map(sum, zip(*steps, strict=True))
        else:
            own, working = max(steps, key=sum, default=(0, 0))
        return Need("tune", self._weights + own, int(working))

    def _temporal(self, remat: str, together: int) -> tuple[int, float]:
        clips = self._tuning.draws
        own, kept = self._kept(remat, "temporal")
        alive = self._step_alive(clips * self.length, self._sides)
        over = sharding.axis_of_trajectories(self._mesh, together)
        used = self._devices(clips, over=over)
        return own * together, together * (kept + alive) / used

    def _spatial(self, remat: str) -> tuple[int, float]:
        clips = self._tuning.frames  # of one frame each, whole: `tune.window` is the other step's
        own, kept = self._kept(remat, "spatial")
        return own, (kept + self._step_alive(clips, self.latent)) / self._devices(clips, frames=1)

    def _kept(self, remat: str, kind: str) -> tuple[int, int]:
        """Bytes of state and data of the step of one LoRA, and of what it keeps for its backward pass."""
        attention = self.config.model.attention
        networks = zoo.build(self.model_config, self.dtype, attention=attention, remat=remat)
        model = VideoModel(networks, self._params, self.model_config)
        state, data = self._tuning_shapes(kind)
        unet = self._params["unet"]
        kept = memory.kept_bytes(model.network, self._tuning, state["lora"], unet, data)
        return memory.nbytes((state, data)), kept

    def sample(self, apart: bool = False) -> Need:
        """One step of the sampler; windows of a long clip go through the network one after another.

        apart: the two passes of guidance, too.
        """
        clips = 1 if apart else self._clips
        frames = clips * self.length
        units = _SAMPLE_UNITS * self._unit(frames, self.latent)
        alive = self._alive(units, self._logits(frames, self.latent))
        return Need("sample", self._weights, int(alive / self._devices(clips)))

    def decode(self, chunk: int) -> Need:
        """`chunk` frames through the decoder; 0: all."""
        return Need("decode", self._weights, self._coded(min(chunk or self.frames, self.frames)))

    def encode(self) -> Need:
        """Frames go through the encoder one by one."""
        return Need("encode", self._weights, self._coded(1, _ENCODE_UNITS))

    def offloaded(self, need: Need) -> Need:
        """The same with the weights in main memory that the stage does not use."""
        idle = sum(n for name, n in self._held.items() if name not in _TOWERS[need.stage])
        return dataclasses.replace(need, weights=need.weights - idle)

    def operations(self, remat: str) -> dict[str, float]:
        """FLOPs of each stage of the run on one device."""
        tune, generate = self.config.tune, self.config.generate
        networks = zoo.build(self.model_config, self.dtype, attention="xla")
        model = VideoModel(networks, self._params, self.model_config)
        latents, cond = self._window_shapes(1)
        sigma = jax.ShapeDtypeStruct((), jnp.float32)
        unet = self._params["unet"]
        forward = cost.flops(
            lambda unet, x, sigma, cond: model.denoiser(unet)(x, sigma, cond),
            *(unet, latents, sigma, cond),
        )
        frame = jax.ShapeDtypeStruct((1, 1, *self.size, 3), jnp.float32)
        latent = jax.ShapeDtypeStruct((1, 1, *latents.shape[2:]), jnp.float32)
        apply = functools.partial(_apply, networks.vae)
        encode = cost.flops(functools.partial(apply, VAE.encode), self._params["vae"], frame)
        decode = cost.flops(functools.partial(apply, VAE.decode), self._params["vae"], latent)

        # Forward and the gradients of activations; weights have none but for the LoRAs.
        step = forward * (3.0 if remat == "full" else 2.0)
        temporal = step * tune.draws * math.prod(self._sides) / math.prod(self.latent)
        spatial = step * tune.frames_per_step / self.length
        tuning = tune.steps * (
            temporal * (tune.temporal_weight > 0) / self._devices(tune.draws)
            + spatial * (tune.spatial_weight > 0) / self._devices(tune.frames_per_step, frames=1)
        )
        steps = generate.steps + (generate.sdedit_sigma > 0) * generate.sdedit_steps
        return {
            "encode": encode * self.frames * (1 + self._versions),
            "tune": tuning,
            "sample": forward * self._clips * steps * self.windows / self._devices(self._clips),
            "decode": decode * self.frames,
        }

    @property
    def _mesh(self) -> dict[str, int]:
        """Devices along each axis."""
        mesh = dict(self.config.mesh)
        if mesh["data"] == -1:
            mesh["data"] = max(1, jax.device_count() // (mesh["fsdp"] * mesh["frames"]))
        return mesh

    @property
    def _versions(self) -> int:
        """Of the source that the spatial step draws from."""
        return 2 * (1 + tune_stage.CROPS) if self.config.tune.augment else 1

    def _devices(self, clips: int, frames: int | None = None, over: str | None = None) -> int:
        """That share a program on so many clips; frames: of each, a window's if None."""
        return sharding.devices_used(self._mesh, clips, frames or self.length, over)

    def _share(self) -> float:
        return 1.0 if self.dtype.itemsize == 4 else 0.75

    def _alive(self, bytes32: float, logits: float) -> float:
        return self._share() * bytes32 + max(min(_ATTENTION, bytes32), logits)

    def _step_alive(self, frames: int, sides) -> float:
        """Bytes that come and go in a tuning step on so many frames."""
        logits = _BACKWARD_LOGITS * self._logits(frames, sides)
        return self._alive(_TUNE_UNITS * self._unit(frames, sides), logits)

    def _unit(self, frames: int, sides) -> float:
        channels = self.networks.unet.config.block_out_channels[0]
        return 4.0 * frames * math.prod(sides) * channels

    def _logits(self, frames: int, sides) -> float:
        """Bytes of the largest plain attention of the U-Net, all frames at once; 0 if it is not forced.

        sides: of the frames, in latents.
        """
        if self.config.model.attention != "xla":
            return 0.0
        unet = self.networks.unet.config
        last = len(unet.down_block_types) - 1
        levels = [
            unet.num_attention_heads[i] * math.prod(-(-side // 2**i) for side in sides) ** 2
            for i, kind in enumerate(unet.down_block_types)
            if kind.startswith("CrossAttn") or i == last  # the middle block attends there
        ]
        return frames * max(levels) * self._logit()

    def _logit(self) -> int:
        """Bytes of one: float32, its exponential in a narrower type beside it."""
        return 4 + (self.dtype.itemsize if self.dtype.itemsize < 4 else 0)

    def _coded(self, frames: int, units: float = _DECODE_UNITS) -> int:
        """Bytes that the autoencoder holds; the logits of its one head are gone where pixels are large."""
        pixels = 4.0 * math.prod(self.size) * self.networks.vae.config.block_out_channels[0]
        plain = self.config.model.attention == "xla"
        logits = plain * math.prod(self.latent) ** 2 * self._logit()
        return int(frames * max(self._share() * units * pixels, logits))

    def _tuning_shapes(self, kind: str):
        """State and data of the step of one LoRA."""
        config = self.config
        targets, rank = config.lora[f"{kind}_targets"], config.lora.rank

        def initialise(key):
            lora = lora_tree.init(key, self._params["unet"], targets, rank)
            return init_state({kind: lora}, self._tuning)

        state = jax.eval_shape(initialise, jax.eval_shape(lambda: jax.random.key(0)))
        if kind == "temporal":
            latents, cond = self._window_shapes(self.windows)
            mask = jax.ShapeDtypeStruct(latents.shape[:-1], jnp.bool_)
            return state, {"anchor": AnchorData(latents, mask, cond)}
        images = self.frames if config.tune.spatial_condition == "frame" else 1  # of a version
        one, cond = self._window_shapes(self._versions * images, 1)
        shape = (self._versions, self.frames, *one.shape[2:])
        return state, {"source": SourceData(jax.ShapeDtypeStruct(shape, jnp.float32), cond)}

    def _window_shapes(
        self, count: int, frames: int | None = None
    ) -> tuple[jax.ShapeDtypeStruct, Conditioning]:
        """Latents and conditioning of so many windows of the clip; frames: of each, if not all of a window's."""
        unet = self.networks.unet.config
        ids = unet.projection_class_embeddings_input_dim // unet.addition_time_embed_dim
        shapes = [
            (count, 1, unet.cross_attention_dim),
            (count, frames or self.length, *self.latent, unet.out_channels),
            (count, ids),
        ]
        cond = Conditioning(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
        return cond.latents, cond


def _apply(module, method, params, x):
    return module.apply({"params": params}, x, method=method)

"""Does it fit, and how long will it take? Each stage of a run, from shapes alone, before any work starts.

What a tuning step keeps from its forward to its backward pass is counted by tracing that very step. What else
is alive at a time is a number of the largest activations, taken from XLA:CPU's plans of Stable Video Diffusion at
14 x 256 x 384 and 14 x 576 x 1024 in float32: for tuning those in memory.md of `experiments/bench`, for the rest
compiled the same way by a script that was not kept. In bfloat16 three quarters of it are counted, since norms and
softmax stay float32. No plan of a GPU or TPU was at hand to check it.

Time is matrix products and convolutions, counted in the trace, over what the device does in a large matrix product,
times the share of it that each stage reached in `experiments.bench.steps` on two CPU cores; compilation comes on top.
"""

import dataclasses
import functools
import itertools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from recapture_jax import cost, progress, sharding
from recapture_jax.diffusion.guidance import Conditioning
from recapture_jax.diffusion.windows import plan_windows
from recapture_jax.errors import InputError
from recapture_jax.lora import tree as lora_tree
from recapture_jax.models import zoo
from recapture_jax.models.vae import VAE
from recapture_jax.stages import tune as tune_stage
from recapture_jax.stages.video_model import VideoModel
from recapture_jax.tuning import memory
from recapture_jax.tuning.step import AnchorData, init_state, window_side

GIB = 2**30
# Activations alive at once, as float32 `[T, h, w, C0]` of the U-Net or `[H, W, C0]` of the decoder's last level.
_TUNE_UNITS, _SAMPLE_UNITS, _DECODE_UNITS, _ENCODE_UNITS = 46.0, 27.5, 7.5, 3.1
_ATTENTION = 0.75 * GIB  # blocks of logits, at most
# Of a large matrix product's rate.
_EFFICIENCY = {"encode": 0.55, "tune": 0.36, "sample": 0.54, "decode": 0.45}
_TOWERS = {
    "encode": ("vae", "image_encoder"),
    "tune": ("unet",),
    "sample": ("unet",),
    "decode": ("vae",),
}
_SHARES = {"none": 0.7, "dots": 0.7, "full": 0.9}
"""Of a device's memory that a plan may take: rematerialising costs a third of the speed, running out all of it."""


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes a stage holds at once: weights and optimiser state, and everything that comes and goes."""

    stage: str
    weights: int
    working: int

    @property
    def total(self) -> int:
        return self.weights + self.working


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a run will be done on this device.

    `model.remat` and `offload`, `generate.decode_chunk`, and apart: `generate.guidance_passes`.
    """

    remat: str
    offload: bool
    apart: bool
    decode_chunk: int
    needs: tuple[Need, ...]
    limit: int
    seconds: dict[str, float]

    @property
    def guidance_passes(self) -> str:
        """As the configuration says it."""
        return "apart" if self.apart else "together"

    def report(self) -> dict[str, Any]:
        """For run.json, in GiB."""
        stages = {n.stage: round(n.total / GIB, 3) for n in self.needs}
        chosen = {
            "remat": self.remat,
            "offload": self.offload,
            "guidance_passes": self.guidance_passes,
            "decode_chunk": self.decode_chunk,
        }
        chosen |= {"gib": stages, "limit_gib": round(self.limit / GIB, 2)}
        return chosen | {"expected_seconds": {k: round(v, 1) for k, v in self.seconds.items()}}


def device_memory() -> int:
    """Bytes that one device offers to this process: of an accelerator what XLA may take, else free main memory."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux: nothing is known, nothing is refused
        return 2**63


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
        self._window = math.prod(window_side(n, self._tuning) for n in self.latent)
        guided = max(config.generate.min_guidance, config.generate.max_guidance) > 1.0
        self.guided, self._clips = guided, 2 if guided else 1  # of one step of the sampler
        self.tune, self.operations = (  # what has to be traced
            functools.cache(method) for method in (self.tune, self.operations)
        )

    def tune(self, remat: str, together: int = 1) -> Need:
        """One step of the temporal LoRA, the larger of the two, on one device of the mesh.

        together: trajectories in it.
        """
        networks = zoo.build(self.model_config, self.dtype, attention="chunked", remat=remat)
        model = VideoModel(networks, self._params, self.model_config)
        state, data = self._tuning_shapes()
        unet, draws = self._params["unet"], self._tuning.draws
        kept = memory.kept_bytes(model.network, self._tuning, state["lora"], unet, data)
        unit = self._unit(self._window) * draws
        own = memory.nbytes((state, data)) * together
        used = self._devices(draws)
        working = together * (kept + self._alive(_TUNE_UNITS * unit)) / used
        return Need("tune", self._weights + own, int(working))

    def sample(self, apart: bool = False) -> Need:
        """One step of the sampler; windows of a long clip go through the network one after another.

        apart: the two passes of guidance, too.
        """
        clips = 1 if apart else self._clips
        unit = self._unit(math.prod(self.latent)) * clips
        working = self._alive(_SAMPLE_UNITS * unit) / self._devices(clips)
        return Need("sample", self._weights, int(working))

    def decode(self, chunk: int) -> Need:
        """`chunk` frames through the decoder; 0: all."""
        unit = self._pixels() * min(chunk or self.frames, self.frames)
        return Need("decode", self._weights, int(self._share() * _DECODE_UNITS * unit))

    def encode(self) -> Need:
        """Frames go through the encoder one by one."""
        working = self._share() * _ENCODE_UNITS * self._pixels()
        return Need("encode", self._weights, int(working))

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
        temporal = step * tune.draws * self._window / math.prod(self.latent)
        spatial = step * tune.frames_per_step / self.length
        tuning = tune.steps * (
            temporal * (tune.temporal_weight > 0) / self._devices(tune.draws)
            + spatial * (tune.spatial_weight > 0)
        )
        versions = 2 * (1 + tune_stage.CROPS) if tune.augment else 1  # of the source
        steps = generate.steps + (generate.sdedit_sigma > 0) * generate.sdedit_steps
        return {
            "encode": encode * self.frames * (1 + versions),
            "tune": tuning,
            "sample": forward * self._clips * steps * self.windows / self._devices(self._clips),
            "decode": decode * self.frames,
        }

    def _devices(self, clips: int) -> int:
        mesh = dict(self.config.mesh)
        if mesh["data"] == -1:
            mesh["data"] = max(1, jax.device_count() // (mesh["fsdp"] * mesh["frames"]))
        return sharding.devices_used(mesh, clips, self.length)

    def _share(self) -> float:
        return 1.0 if self.dtype.itemsize == 4 else 0.75

    def _alive(self, bytes32: float) -> float:
        return self._share() * bytes32 + min(_ATTENTION, bytes32)

    def _unit(self, positions: int) -> float:
        return 4.0 * self.length * positions * self.networks.unet.config.block_out_channels[0]

    def _pixels(self) -> float:
        return 4.0 * math.prod(self.size) * self.networks.vae.config.block_out_channels[0]

    def _tuning_shapes(self):
        lora_config = self.config.lora

        def initialise(key):
            lora = lora_tree.init(
                key, self._params["unet"], lora_config.temporal_targets, lora_config.rank
            )
            return init_state({"temporal": lora}, self._tuning)

        state = jax.eval_shape(initialise, jax.eval_shape(lambda: jax.random.key(0)))
        latents, cond = self._window_shapes(self.windows)
        mask = jax.ShapeDtypeStruct(latents.shape[:-1], jnp.bool_)
        return state, {"anchor": AnchorData(latents, mask, cond)}

    def _window_shapes(self, count: int) -> tuple[jax.ShapeDtypeStruct, Conditioning]:
        """Latents and conditioning of so many windows of the clip."""
        unet = self.networks.unet.config
        ids = unet.projection_class_embeddings_input_dim // unet.addition_time_embed_dim
        shapes = [
            (count, 1, unet.cross_attention_dim),
            (count, self.length, *self.latent, unet.out_channels),
            (count, ids),
        ]
        cond = Conditioning(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
        return cond.latents, cond


def _apply(module, method, params, x):
    return module.apply({"params": params}, x, method=method)


@functools.lru_cache(maxsize=2)
def _estimate(model_config: str, config: str, dtype, frames: int, size) -> Estimate:
    """One for all runs of a process that are alike but for their clip and move; both given as JSON."""
    return Estimate(json.loads(model_config), ConfigDict(json.loads(config)), dtype, frames, size)


def plan(
    model_config: dict,
    config,
    dtype,
    frames: int,
    size,
    limit: int | None = None,
    together: int = 1,
) -> Plan:
    """How the run fits the device; says so in a line.

    What is free comes first: with `generate.guidance_passes` 'auto' the two passes of guidance run one after the
    other if they do not fit together, with `model.offload` 'auto' the weights that a stage does not use wait in main
    memory; `model.remat` 'auto' becomes the first of none, dots, full that fits; a decoder that does not
    fit takes fewer frames at once. Nothing else is changed by itself, since it would change the result.

    Args:
        As `Estimate`; limit: bytes of the device, found out if None; together: trajectories tuned in one step.

    Raises:
        InputError: it does not fit; with the numbers, and what to lower.
    """
    limit = device_memory() if limit is None else limit
    groups = {
        name: config[name].to_dict() for name in ("model", "lora", "tune", "generate", "mesh")
    }
    shared = json.dumps(model_config), json.dumps(groups)
    estimate = _estimate(*shared, jnp.dtype(dtype), frames, tuple(size))

    def fits(need: Need, remat: str = "full") -> bool:
        return need.total <= _SHARES[remat] * limit

    def placed(need: Need, offload: bool) -> Need:
        return estimate.offloaded(need) if offload else need

    given, passes = config.generate.decode_chunk, config.generate.guidance_passes
    chunk = given or frames
    offloads = _offload_choices(config.model.offload)
    together_fits = fits(placed(estimate.sample(), offloads[0]))
    apart = estimate.guided and (passes == "apart" or passes == "auto" and not together_fits)

    def others(chunk: int, offload: bool) -> tuple[Need, Need, Need]:
        needs = estimate.encode(), estimate.sample(apart), estimate.decode(chunk)
        return tuple(placed(need, offload) for need in needs)

    if not all(map(fits, others(chunk, offloads[0]))):
        offloads = offloads[-1:]
    for remat, offload in itertools.product(_remat_choices(config.model.remat), offloads):
        tuning = placed(estimate.tune(remat, together), offload)
        if fits(tuning, remat):
            break
    while chunk > 1 and not fits(others(chunk, offload)[-1]):
        chunk -= 1
    encoding, *rest = others(chunk, offload)
    needs = (encoding, tuning, *rest)
    rate = cost.matmul_rate(estimate.dtype, cost.matmul_side())
    seconds = {k: n / (rate * _EFFICIENCY[k]) for k, n in estimate.operations(remat).items()}
    chunk = given if chunk >= (given or frames) else chunk
    found = Plan(remat, offload, apart, chunk, needs, limit, seconds)
    _say(found, config)
    for need in needs:
        if not fits(need):
            raise InputError(_refusal(need, found, config, frames, size))
    return found


def _remat_choices(given: str) -> tuple[str, ...]:
    if given != "auto":
        return (given,)
    # XLA:CPU undoes rematerialisation: it costs time there and gains nothing.
    return ("none",) if jax.default_backend() == "cpu" else ("none", "dots", "full")


def _offload_choices(given: str) -> tuple[bool, ...]:
    if given != "auto":
        return (given == "always",)
    return (False,) if jax.default_backend() == "cpu" else (False, True)


def _say(found: Plan, config) -> None:
    largest = max(found.needs, key=lambda n: n.total)
    text = f"memory: at most about {_gib(largest.total)} ({largest.stage}) of {_gib(found.limit)}"
    if config.model.remat == "auto":
        text += f"; model.remat={found.remat}"
    if found.offload:
        text += "; weights wait in main memory between their uses"
    if found.apart and config.generate.guidance_passes == "auto":
        text += "; the passes of guidance one after the other"
    if found.decode_chunk != config.generate.decode_chunk:
        text += f"; decoding {found.decode_chunk} frames at once, or all would not fit"
    progress.say(text)
    parts = ", ".join(f"{k} {_duration(v)}" for k, v in found.seconds.items())
    progress.say(
        f"time: about {_duration(sum(found.seconds.values()))} ({parts}), compilation and depth apart"
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 100 else f"{max(1, round(seconds))} s"


def _refusal(need: Need, found: Plan, config, frames: int, size) -> str:
    advice = ["a smaller config.video.short_side", "fewer config.video.num_frames"]
    if need.stage == "tune":
        advice.insert(0, f"config.tune.window={2 * config.tune.window}")
        if config.model.remat not in ("auto", "full"):
            advice.insert(0, "config.model.remat=auto")
    if config.model.offload == "never":
        advice.insert(0, "config.model.offload=auto")
    if need.stage == "sample" and config.generate.guidance_passes == "together":
        advice.insert(0, "config.generate.guidance_passes=auto")
    if need.stage in ("tune", "sample") and frames > 8:
        advice.append("config.model.window=8")
    return (
        f"{frames} frames of {size[1]}x{size[0]} need about {_gib(need.total)} to {need.stage} (weights "
        f"{_gib(need.weights)}), this device has {_gib(found.limit)}; try {', or '.join(advice)}"
    )


def _gib(value: float) -> str:
    return f"{value / GIB:.1f} GiB" if value >= 0.1 * GIB else f"{value / 2**20:.0f} MiB"

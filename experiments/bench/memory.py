"""Memory and FLOPs of one temporal tuning step, sampling step or decoding, before any device is rented.

`python -m experiments.bench.memory [--stage=tune --frames=14 --height=576 --width=1024 --remat=full
--attention=chunked --dtype=bfloat16]`: nothing is allocated and nothing runs; all is from shapes.

* "saved" (tune): what automatic differentiation keeps from the forward to the backward pass, counted by
  tracing alone (`--trace_only` stops there). It holds for every device.
* "temporaries", FLOPs: the plan of XLA:CPU for the whole program (tune: temporal LoRA over the frozen
  U-Net, forward and backward, AdamW; sample: a guided step; decode: `--chunk` frames). Another compiler
  fuses and widens otherwise: see memory.md.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments import command
from experiments.bench.ours import guided_step
from recapture_jax.diffusion.guidance import Conditioning, doubled, guidance_ramp
from recapture_jax.lora import tree as lora_tree
from recapture_jax.models import zoo
from recapture_jax.models.clip_vision import CLIPVisionConfig
from recapture_jax.models.unet import UNetConfig
from recapture_jax.models.unet_blocks import REMAT_POLICIES
from recapture_jax.models.vae import VAE, VAEConfig
from recapture_jax.stages.video_model import VideoModel
from recapture_jax.tuning.memory import kept_bytes
from recapture_jax.tuning.step import AnchorData, Settings, init_state, make_step

FACTOR = 8  # pixels per latent
# XLA:CPU drops the barriers of jax.checkpoint before it schedules, which moves the recomputation
# next to the forward pass and undoes the saving. Kept for the plan (which is not for running). And it widens
# bfloat16 weights to float32, those of a loop all at once in front of it: here where they are used.
_DISABLED = (
    "cse_barrier_expander",
    "optimization_barrier_expander",
    "while-loop-invariant-code-motion",
    "while-loop-expensive-invariant-code-motion",
)
PLAN = {"xla_disable_hlo_passes": ",".join(_DISABLED)}


@dataclasses.dataclass(frozen=True)
class Case:
    """The networks and the clip of a program.

    Attributes:
      config: of the U-Net.
      frames, height, width: of the anchor; pixels, multiples of 8.
      remat, attention, dtype: the U-Net's; its frozen weights are stored in `dtype` too.
      rank: of the temporal LoRA.
      vae: configuration of the autoencoder.
    """

    config: UNetConfig
    frames: int
    height: int
    width: int
    remat: str = "none"
    attention: str = "auto"
    dtype: Any = jnp.float32
    rank: int = 16
    vae: VAEConfig = VAEConfig()

    @functools.cached_property
    def model(self) -> VideoModel:
        """The networks, without parameters."""
        encoder = dataclasses.asdict(CLIPVisionConfig.vit_h())
        parts = {"unet": dataclasses.asdict(self.config), "vae": self.vae.to_dict()}
        folder = parts | {"image_encoder": encoder, "num_frames": self.frames}
        networks = zoo.build(folder, self.dtype, attention=self.attention, remat=self.remat)
        return VideoModel(networks, {}, folder)

    def params(self, component: str):
        """Parameters of a network as shapes."""

        def cast(params):
            return zoo.cast_params({component: params}, self.dtype)[component]

        return jax.eval_shape(cast, zoo.abstract_params(component, self.model.config))

    def shapes(self):
        """Training state, frozen parameters and data as shapes."""
        params = self.params("unet")

        def initialise(key):
            lora = {"temporal": lora_tree.init(key, params, "temporal", self.rank)}
            return init_state(lora, Settings())

        latents = (1, self.frames, self.height // FACTOR, self.width // FACTOR)
        full = _shape((*latents, self.config.out_channels))
        context = _shape((1, 1, self.config.cross_attention_dim))
        cond = Conditioning(context, full, _shape((1, 3)))
        state = jax.eval_shape(initialise, jax.eval_shape(lambda: jax.random.key(0)))
        return state, params, {"anchor": AnchorData(full, _shape(latents, bool), cond)}


def saved_bytes(case: Case) -> int:
    """Bytes kept from the forward to the backward pass, the parameters apart."""
    state, params, data = case.shapes()
    return kept_bytes(case.model.network, Settings(), state["lora"], params, data)


def compile_step(case: Case) -> jax.stages.Compiled:
    """The whole step compiled for inspection."""
    state, params, data = case.shapes()
    step = make_step(case.model.network, Settings(), ("temporal",))
    lowered = jax.jit(step, donate_argnums=0).lower(state, {}, params, data)
    return lowered.compile(compiler_options=PLAN)


def compile_sample(case: Case, apart: bool = False) -> jax.stages.Compiled:
    """A guided step of the sampler compiled for inspection; apart: its passes one after the other."""
    model = case.model
    _, unet, data = case.shapes()
    cond = data["anchor"].cond
    tables = jax.eval_shape(lambda p, c: model.tables(p, doubled(c), apart), unet, cond)
    step = guided_step(model, guidance_ramp(1.0, 3.0, case.frames), apart)
    level = _shape(())
    lowered = jax.jit(step).lower(unet, tables, cond, data["anchor"].latents, level, level)
    return lowered.compile(compiler_options=PLAN)


def compile_decode(case: Case, chunk: int) -> jax.stages.Compiled:
    """The decoder on `chunk` frames, compiled for inspection."""
    vae, latents = case.model.networks.vae, case.shapes()[2]["anchor"].latents
    codes = _shape((1, chunk, *latents.shape[2:-1], case.vae.latent_channels), case.dtype)

    def decode(params, codes):
        return vae.apply({"params": params}, codes, method=VAE.decode)

    lowered = jax.jit(decode).lower(case.params("vae"), codes)
    return lowered.compile(compiler_options=PLAN)


def report(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Bytes of arguments, outputs and temporaries, and FLOPs, of a compiled program."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "flops": cost.get("flops", float("nan")),
    }


def _shape(shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def parse(arguments: Sequence[str] | None = None) -> flags.FlagValues:
    """The command line.

    Raises:
        InputError: a bad flag.
    """
    values = flags.FlagValues()
    own = {"flag_values": values}
    whole, pick = flags.DEFINE_integer, flags.DEFINE_enum
    pick("stage", "tune", ["tune", "sample", "decode"], "of a run", **own)
    whole("frames", 14, "of the anchor", lower_bound=1, **own)
    whole("height", 576, "pixels", lower_bound=FACTOR, **own)
    whole("width", 1024, "pixels", lower_bound=FACTOR, **own)
    pick("remat", "full", list(REMAT_POLICIES), "of the U-Net", **own)
    pick("attention", "chunked", ["auto", "xla", "chunked"], "of the U-Net", **own)
    pick("dtype", "bfloat16", ["bfloat16", "float32"], "of the U-Net", **own)
    whole("rank", 16, "of the temporal LoRA", lower_bound=1, **own)
    flags.DEFINE_bool("apart", False, "the passes of guidance one after the other", **own)
    whole("chunk", 7, "frames decoded at once", lower_bound=1, **own)
    flags.DEFINE_bool("trace_only", False, "do not compile", **own)
    return command.parse(values, arguments, __doc__)


def main(given: flags.FlagValues) -> None:
    """Prints what a tuning step keeps and, unless --trace_only, what the program's plan takes."""
    case = Case(
        UNetConfig(num_frames=given.frames),
        given.frames,
        given.height,
        given.width,
        given.remat,
        given.attention,
        jnp.dtype(given.dtype),
        given.rank,
    )
    print(
        f"{given.stage}: {case.frames} x {case.height} x {case.width}, {given.dtype}, remat {case.remat}, "
        f"attention {case.attention}, rank {case.rank}, decoding {given.chunk} frames at once"
    )
    start = time.time()
    if given.stage == "tune":
        print(f"  saved        {saved_bytes(case) / 2**30:.2f} GiB", flush=True)
    if not given.trace_only:
        compile_stage = {
            "tune": compile_step,
            "sample": lambda case: compile_sample(case, given.apart),
            "decode": lambda case: compile_decode(case, given.chunk),
        }[given.stage]
        for name, value in report(compile_stage(case)).items():
            text = f"{value / 1e12:.2f} T" if name == "flops" else f"{value / 2**30:.2f} GiB"
            print(f"  {name:12s} {text}")
    print(f"  {time.time() - start:.0f} s")


if __name__ == "__main__":
    command.main(lambda: main(parse()))

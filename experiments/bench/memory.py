"""Memory and FLOPs of one temporal tuning step, before any device is rented.

`python -m experiments.bench.memory [--frames=14 --height=576 --width=1024 --remat=full
--attention=chunked --dtype=bfloat16]`: nothing is allocated and nothing runs; all is from shapes.

* "saved": what automatic differentiation keeps from the forward to the backward pass, counted by
  tracing alone (`--trace_only` stops there). It holds for every device.
* "temporaries", FLOPs: the plan of XLA:CPU for the whole step (temporal LoRA over the frozen
  U-Net, forward and backward, AdamW). Another compiler fuses and widens otherwise: see memory.md.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments import command
from recapture_jax.diffusion.guidance import Conditioning
from recapture_jax.lora import tree as lora_tree
from recapture_jax.models.unet import UNet, UNetConfig
from recapture_jax.models.unet_blocks import REMAT_POLICIES
from recapture_jax.tuning.memory import kept_bytes
from recapture_jax.tuning.step import AnchorData, Settings, init_state, make_step

FACTOR = 8  # pixels per latent
# XLA:CPU drops the barriers of jax.checkpoint before it schedules, which moves the recomputation
# next to the forward pass and undoes the saving. Kept for the plan (which is not for running).
KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander,optimization_barrier_expander"}


@dataclasses.dataclass(frozen=True)
class Case:
    """One tuning step.

    Attributes:
      config: of the U-Net.
      frames, height, width: of the anchor; pixels, multiples of 8.
      remat, attention, dtype: the U-Net's; its frozen weights are stored in `dtype` too.
      rank: of the temporal LoRA.
    """

    config: UNetConfig
    frames: int
    height: int
    width: int
    remat: str = "none"
    attention: str = "auto"
    dtype: Any = jnp.float32
    rank: int = 16

    def network(self, params, image_only: bool):
        unet = UNet(self.config, dtype=self.dtype, attention=self.attention, remat=self.remat)

        def run(x, c_noise, cond):
            sample = jnp.concatenate([x, cond.latents], axis=-1)
            args = (sample, c_noise, cond.context, cond.added_time_ids)
            return unet.apply({"params": params}, *args, image_only=image_only)

        return run

    def shapes(self):
        """Training state, frozen parameters and data as shapes."""

        def initialise(key):
            config = self.config
            side = 2 ** (len(config.block_out_channels) - 1)  # enough to create all parameters
            sample = jnp.zeros((1, 2, side, side, config.in_channels))
            context = jnp.zeros((1, 1, config.cross_attention_dim))
            init = UNet(config).init
            params = init(key, sample, jnp.zeros((1,)), context, jnp.zeros((1, 3)))["params"]
            params = jax.tree.map(lambda p: p.astype(self.dtype), params)
            lora = {"temporal": lora_tree.init(key, params, "temporal", self.rank)}
            return init_state(lora, Settings()), params

        latents = (1, self.frames, self.height // FACTOR, self.width // FACTOR)
        full = _shape((*latents, self.config.out_channels))
        context = _shape((1, 1, self.config.cross_attention_dim))
        cond = Conditioning(context, full, _shape((1, 3)))
        state, params = jax.eval_shape(initialise, jax.eval_shape(lambda: jax.random.key(0)))
        return state, params, {"anchor": AnchorData(full, _shape(latents, bool), cond)}


def saved_bytes(case: Case) -> int:
    """Bytes kept from the forward to the backward pass, the parameters apart."""
    state, params, data = case.shapes()
    return kept_bytes(case.network, Settings(), state["lora"], params, data)


def compile_step(case: Case) -> jax.stages.Compiled:
    """The whole step compiled for inspection."""
    state, params, data = case.shapes()
    step = make_step(case.network, Settings(), ("temporal",))
    lowered = jax.jit(step, donate_argnums=0).lower(state, {}, params, data)
    return lowered.compile(compiler_options=KEEP_BARRIERS)


def report(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Bytes of arguments, outputs and temporaries, and FLOPs, of a compiled step."""
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
    whole("frames", 14, "of the anchor", lower_bound=1, **own)
    whole("height", 576, "pixels", lower_bound=FACTOR, **own)
    whole("width", 1024, "pixels", lower_bound=FACTOR, **own)
    pick("remat", "full", list(REMAT_POLICIES), "of the U-Net", **own)
    pick("attention", "chunked", ["auto", "xla", "chunked"], "of the U-Net", **own)
    pick("dtype", "bfloat16", ["bfloat16", "float32"], "of the U-Net", **own)
    whole("rank", 16, "of the temporal LoRA", lower_bound=1, **own)
    flags.DEFINE_bool("trace_only", False, "do not compile", **own)
    return command.parse(values, arguments, __doc__)


def main(given: flags.FlagValues) -> None:
    """Prints what the step keeps and, unless --trace_only, what its plan takes."""
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
        f"{case.frames} x {case.height} x {case.width}, {given.dtype}, remat {case.remat}, "
        f"attention {case.attention}, rank {case.rank}"
    )
    start = time.time()
    print(f"  saved        {saved_bytes(case) / 2**30:.2f} GiB", flush=True)
    if not given.trace_only:
        for name, value in report(compile_step(case)).items():
            text = f"{value / 1e12:.2f} T" if name == "flops" else f"{value / 2**30:.2f} GiB"
            print(f"  {name:12s} {text}")
    print(f"  {time.time() - start:.0f} s")


if __name__ == "__main__":
    command.main(lambda: main(parse()))

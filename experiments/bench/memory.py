"""Memory and FLOPs of one temporal tuning step, before any device is rented.

`python -m experiments.bench.memory [--frames 14 --height 576 --width 1024 --remat full
--attention chunked --dtype bfloat16]`: compiles the step (temporal LoRA over the frozen U-Net,
forward and backward, AdamW) from shapes alone; nothing is allocated and nothing runs. The numbers
are XLA:CPU's own plan; how they relate to an accelerator's: `memory.md` beside this file.
"""

import argparse
import time

import jax
import jax.numpy as jnp

from recapture_jax.diffusion.guidance import Conditioning
from recapture_jax.lora import tree as lora_tree
from recapture_jax.models.unet import UNet, UNetConfig
from recapture_jax.models.unet_blocks import REMAT_POLICIES
from recapture_jax.tuning.step import AnchorData, Settings, init_state, make_step

FACTOR = 8  # pixels per latent


def lower(
    config: UNetConfig,
    frames: int,
    height: int,
    width: int,
    *,
    remat: str = "none",
    attention: str = "auto",
    dtype=jnp.float32,
    rank: int = 16,
) -> jax.stages.Lowered:
    """The jitted temporal step, lowered from shapes.

    Args:
      config: of the U-Net.
      frames: T.
      height, width: pixels, multiples of 8.
      remat, attention, dtype: the U-Net's; its frozen weights are stored in `dtype` too.
      rank: of the temporal LoRA.
    """
    unet = UNet(config, dtype=dtype, attention=attention, remat=remat)
    latents = (1, frames, height // FACTOR, width // FACTOR)
    channels = config.out_channels
    cond = Conditioning(
        _shape((1, 1, config.cross_attention_dim)), _shape((*latents, channels)), _shape((1, 3))
    )
    data = {"anchor": AnchorData(_shape((*latents, channels)), _shape(latents, bool), cond)}

    def network_of(params, image_only):
        def network(x, c_noise, cond):
            sample = jnp.concatenate([x, cond.latents], axis=-1)
            args = (sample, c_noise, cond.context, cond.added_time_ids)
            return unet.apply({"params": params}, *args, image_only=image_only)

        return network

    settings = Settings()

    def initialise(key):
        smallest = 2 ** (
            len(config.block_out_channels) - 1
        )  # the sizes of parameters do not depend on it
        sample = jnp.zeros((1, 2, smallest, smallest, config.in_channels))
        context = jnp.zeros((1, 1, config.cross_attention_dim))
        params = unet.init(key, sample, jnp.zeros((1,)), context, jnp.zeros((1, 3)))["params"]
        params = jax.tree.map(lambda p: p.astype(dtype), params)
        lora = {"temporal": lora_tree.init(key, params, "temporal", rank)}
        return params, init_state(lora, settings)

    params, state = jax.eval_shape(initialise, jax.eval_shape(lambda: jax.random.key(0)))
    step = make_step(network_of, settings, ("temporal",), seed=0)
    return jax.jit(step, donate_argnums=0).lower(state, {}, params, data)


def report(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Bytes of arguments, outputs and temporaries, and FLOPs, of a compiled step."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "flops": cost.get("flops", float("nan")),
    }


def _shape(shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=14)
    parser.add_argument("--height", type=int, default=576, help="pixels")
    parser.add_argument("--width", type=int, default=1024, help="pixels")
    parser.add_argument("--remat", default="full", choices=REMAT_POLICIES)
    parser.add_argument("--attention", default="chunked", choices=("auto", "xla", "chunked"))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--rank", type=int, default=16)
    flags = parser.parse_args()

    start = time.time()
    lowered = lower(
        UNetConfig(num_frames=flags.frames),
        flags.frames,
        flags.height,
        flags.width,
        remat=flags.remat,
        attention=flags.attention,
        dtype=jnp.dtype(flags.dtype),
        rank=flags.rank,
    )
    traced = time.time() - start
    numbers = report(lowered.compile())
    print(f"{flags.frames} x {flags.height} x {flags.width}, {flags.dtype}, remat {flags.remat}, "
          f"attention {flags.attention}, rank {flags.rank}")  # fmt: skip
    for name, value in numbers.items():
        text = f"{value / 1e12:.2f} T" if name == "flops" else f"{value / 2**30:.2f} GiB"
        print(f"  {name:12s} {text}")
    print(f"  traced in {traced:.0f} s, compiled in {time.time() - start - traced:.0f} s")


if __name__ == "__main__":
    main()

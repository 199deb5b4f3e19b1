"""Our side of `steps`: the programs of a run, compiled."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from experiments.bench.sizes import RANK, Size
from recapture_jax import cost, xla
from recapture_jax.diffusion.guidance import Conditioning, doubled, guidance_ramp
from recapture_jax.diffusion.sampling import euler_step
from recapture_jax.lora import tree as lora_tree
from recapture_jax.models import zoo
from recapture_jax.stages.video_model import VideoModel
from recapture_jax.tuning.step import AnchorData, Settings, init_state, make_step


@dataclasses.dataclass(frozen=True)
class Program:
    """One part of one side.

    Attributes:
      run: does the work once and returns when the device has finished.
      parameters: of the network, and trained ones (0 where nothing is trained).
      flops: of one call.
    """

    run: Callable[[], None]
    parameters: tuple[int, int]
    flops: float


class Ours:
    """Programs of one size in bfloat16 on accelerators and float32 on CPUs.

    FLOPs are those of matrix products and convolutions, as the reference counts its own; fused attention
    kernels are left out.
    """

    name = "ours"

    def __init__(self, size: Size, checkpointing: bool = False):
        self.size = size
        self.dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        remat = "full" if checkpointing else "none"
        self.networks = zoo.build(size.config, self.dtype, remat=remat)
        self.inputs = jax.tree.map(jnp.asarray, size.draw())

    def program(self, part: str) -> Program:
        """Of "tune", "sample", "encode" or "decode"."""
        return getattr(self, f"_{part}")()

    @functools.cached_property
    def model(self) -> VideoModel:
        params = {n: zoo.init_params(n, self.size.config, 0) for n in ("unet", "vae")}
        params = jax.device_put(zoo.cast_params(params, self.dtype))
        return VideoModel(self.networks, params, self.size.config)

    @property
    def cond(self) -> Conditioning:
        return Conditioning(*(self.inputs[n] for n in ("context", "condition", "ids")))

    def _tune(self) -> Program:
        params, settings = self.model.params["unet"], Settings()
        lora = lora_tree.init(jax.random.key(0), params, "temporal", RANK)
        state = init_state({"temporal": lora}, settings)
        data = {"anchor": AnchorData(self.inputs["latents"], self.inputs["mask"], self.cond)}
        step = make_step(self.model.network, settings, ("temporal",))
        work = cost.flops(step, state, {}, params, data)
        compiled = xla.jit(step, donate_argnums=0).lower(state, {}, params, data).compile()
        holder = [state]

        def run():
            holder[0], _ = compiled(holder[0], {}, params, data)
            jax.block_until_ready(holder[0])

        return Program(run, (count(params), count(lora)), work)

    def _sample(self) -> Program:
        """A guided Euler step with the constants of the sampling run computed before, as in a run."""
        params, cond = self.model.params["unet"], self.cond
        tables = self.model.tables(params, doubled(cond))
        scales = guidance_ramp(1.0, 3.0, self.size.frames)

        step = guided_step(self.model, scales)
        levels = jnp.float32(10.0), jnp.float32(6.0)
        args = (params, tables, cond, self.inputs["noise"], *levels)
        compiled = xla.jit(step).lower(*args).compile()
        return Program(
            lambda: compiled(*args).block_until_ready(), (count(params), 0), cost.flops(step, *args)
        )

    def _encode(self) -> Program:
        params, video = self.model.params["vae"], self.inputs["video"].astype(self.dtype)
        return Program(
            lambda: self.model.encode(video).block_until_ready(),
            (count(params), 0),
            cost.flops(self.model._encode, params, video),
        )

    def _decode(self) -> Program:
        params, codes = self.model.params["vae"], self.inputs["codes"].astype(self.dtype)
        return Program(
            lambda: self.model.decode(codes, len(codes)),
            (count(params), 0),
            cost.flops(self.model._decode, params, codes),
        )


def guided_step(
    model: VideoModel, scales: np.ndarray, apart: bool = False
) -> Callable[..., jax.Array]:
    """`(unet_params, tables, cond, x, sigma, sigma_next) -> x`, one step of the sampler.

    apart: the two passes of guidance one after the other.
    """

    def step(params, tables, cond, x, sigma, sigma_next):
        denoise = Partial(model.sampling_denoiser(None, apart), params, tables)
        return euler_step(denoise, x, sigma, sigma_next, 0, cond, guidance=scales)[0]

    return step


def count(tree) -> int:
    """Parameters of a tree."""
    return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(tree))

"""One LoRA training step and one guided sampling step of the small model: ours against diffusers + peft.

    python -m experiments.bench.steps            # needs the [test] extra

Both sides hold random weights of the same network in float32 on the same device and are timed in turn, A B A
B, in one process; the ratio of the medians is what counts. Training: masked v-loss of the temporal rank-16 LoRA on one
14-frame clip, forward, backward and AdamW. Sampling: one guided Euler step (a batch of two).
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments.pretrain_small.architecture import CONFIG, HEIGHT, NUM_FRAMES, WIDTH
from recapture_jax import xla
from recapture_jax.diffusion.guidance import Conditioning, guidance_ramp
from recapture_jax.diffusion.sampling import euler_step
from recapture_jax.lora import tree as lora_tree
from recapture_jax.models import zoo
from recapture_jax.stages.video_model import VideoModel
from recapture_jax.tuning.step import AnchorData, Settings, init_state, make_step

_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds of each side.")
_RANK = 16


def latent_shape() -> tuple[int, ...]:
    factor = 2 ** (len(CONFIG["vae"]["block_out_channels"]) - 1)
    return (1, NUM_FRAMES, HEIGHT // factor, WIDTH // factor, CONFIG["unet"]["out_channels"])


def draw(seed: int = 0) -> dict[str, np.ndarray]:
    """The inputs of both sides."""
    rng = np.random.default_rng(seed)
    shape = latent_shape()
    return {
        "latents": rng.standard_normal(shape, dtype=np.float32),
        "noise": rng.standard_normal(shape, dtype=np.float32),
        "condition": rng.standard_normal(shape, dtype=np.float32),
        "context": rng.standard_normal(
            (1, 1, CONFIG["unet"]["cross_attention_dim"]), dtype=np.float32
        ),
        "ids": np.array([[6.0, 127.0, 0.02]], np.float32),
        "mask": rng.random(shape[:-1]) < 0.7,
    }


def ours(inputs: dict):
    """(training step, sampling step) as functions without arguments, compiled."""
    networks = zoo.build(CONFIG)
    params = jax.tree.map(jnp.asarray, zoo.init_params("unet", CONFIG, 0))
    model = VideoModel(networks, {"unet": params}, CONFIG)
    cond = Conditioning(*(jnp.asarray(inputs[n]) for n in ("context", "condition", "ids")))
    settings = Settings()
    state = init_state(
        {"temporal": lora_tree.init(jax.random.key(0), params, "temporal", _RANK)}, settings
    )
    data = {"anchor": AnchorData(jnp.asarray(inputs["latents"]), jnp.asarray(inputs["mask"]), cond)}
    step = xla.jit(make_step(model.network, settings, ("temporal",)), donate_argnums=0)
    holder = [state]

    def train():
        holder[0], _ = step(holder[0], {}, params, data)
        jax.block_until_ready(holder[0])

    scales = guidance_ramp(1.0, 3.0, NUM_FRAMES)

    @xla.jit
    def euler(params, x, sigma, sigma_next):
        return euler_step(model.denoiser(params), x, sigma, sigma_next, 0, cond, guidance=scales)[0]

    x = jnp.asarray(inputs["noise"])

    def sample():
        euler(params, x, jnp.float32(10.0), jnp.float32(6.0)).block_until_ready()

    return train, sample


def theirs(inputs: dict):
    """The same with diffusers' U-Net and peft, in eager PyTorch, as their users run it."""
    import diffusers
    import peft
    import torch

    def build():
        own = ("groupnorm_eps", "norm_num_groups")
        known = {k: v for k, v in CONFIG["unet"].items() if k not in own}
        unet = diffusers.UNetSpatioTemporalConditionModel(**known).requires_grad_(False)
        for module in unet.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.num_groups = CONFIG["unet"]["norm_num_groups"]
        return unet

    torch.manual_seed(0)
    unet = build()
    channels_first = (0, 1, 4, 2, 3)
    video = {
        n: torch.from_numpy(inputs[n].transpose(channels_first))
        for n in ("latents", "noise", "condition")
    }
    context, ids = torch.from_numpy(inputs["context"]), torch.from_numpy(inputs["ids"])
    mask = torch.from_numpy(inputs["mask"])[:, :, None].float()

    def predict(x, sigma, condition, context, ids):
        scaled = x / (sigma**2 + 1) ** 0.5
        t = torch.full((len(x),), 0.25 * np.log(sigma))
        return unet(torch.cat([scaled, condition], 2), t, context, ids).sample

    scale = torch.linspace(1, 3, NUM_FRAMES)[None, :, None, None, None]

    @torch.no_grad()
    def sample():
        sigma, after = 10.0, 6.0
        x = video["noise"]
        condition = torch.cat([torch.zeros_like(video["condition"]), video["condition"]])
        both = torch.cat([torch.zeros_like(context), context])
        v0, v1 = predict(torch.cat([x, x]), sigma, condition, both, torch.cat([ids, ids])).chunk(2)
        v = v0 + scale * (v1 - v0)
        x0 = x / (sigma**2 + 1) - sigma / (sigma**2 + 1) ** 0.5 * v
        return x0 + after / sigma * (x - x0)

    sample()  # before the adapters go in, as theirs would be merged too
    targets = r".*\.temporal_transformer_blocks\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)"
    plain_sample = sample
    tuned = build()
    peft.inject_adapter_in_model(
        peft.LoraConfig(
            r=_RANK, lora_alpha=_RANK, init_lora_weights="gaussian", target_modules=targets
        ),
        tuned,
    )
    trained = [p for n, p in tuned.named_parameters() if "lora_" in n]
    for p in trained:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=5e-4, weight_decay=1e-2)

    def train():
        sigma = float(np.exp(0.7))
        noise = torch.randn_like(video["latents"])
        x = video["latents"] + sigma * noise
        target = (noise - sigma * video["latents"]) / (sigma**2 + 1) ** 0.5
        t = torch.full((1,), 0.25 * np.log(sigma))
        scaled = x / (sigma**2 + 1) ** 0.5
        v = tuned(torch.cat([scaled, video["condition"]], 2), t, context, ids).sample
        loss = (mask * (v - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return train, plain_sample


def seconds(function) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def main(argv) -> None:
    del argv
    inputs = draw()
    sides = {"ours": ours(inputs), "diffusers + peft": theirs(inputs)}
    print(
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}, latents {latent_shape()}"
    )
    for index, what in enumerate(("LoRA training step", "guided sampling step")):
        for name, functions in sides.items():
            print(f"{what}, {name}: first call {seconds(functions[index]):.1f} s", flush=True)
            functions[index]()
        times = {name: [] for name in sides}
        for _ in range(_ROUNDS.value):
            for name, functions in sides.items():
                times[name].append(seconds(functions[index]))
        medians = {name: statistics.median(values) for name, values in times.items()}
        line = ", ".join(f"{name} {median:.3f} s" for name, median in medians.items())
        print(
            f"{what}: {line}; ratio {medians['diffusers + peft'] / medians['ours']:.2f}", flush=True
        )


if __name__ == "__main__":
    app.run(main)

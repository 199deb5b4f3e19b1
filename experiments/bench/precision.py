"""What bfloat16 costs: relative error against float32 of every kind of module, of a tuning step and of a sample.

`python -m experiments.bench.precision [--model=bundled:prior_small] [--steps=25] [--out=FILE.md]`

An error is the RMS of the difference over the RMS of the float32 output. "Weights" has the parameters rounded to
bfloat16 and computes in float32, "all" computes as a run with `--config.model.dtype=bfloat16` does. A module is
given the float32 network's own activations (rounded, for "all"), so its error is its own and not that of
the layers before it; modules run operation by operation, so that every rounding of the program takes place.
"""

import datetime
import importlib.metadata
import os
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import command
from experiments.bench.probes import Errors, at, cast, error, probed, share
from experiments.bench.twins import (
    MOVE,
    Data,
    Models,
    Sampling,
    fit,
    own_conditioning,
    predictor,
    prepare,
)
from recapture_jax import config as configuration
from recapture_jax import xla
from recapture_jax.diffusion import edm
from recapture_jax.evaluation.images import psnr
from recapture_jax.lora import tree as lora_tree
from recapture_jax.models import vae
from recapture_jax.stages import tune
from recapture_jax.stages.video_model import VideoModel
from recapture_jax.tuning.step import make_loss

SIGMAS = (0.02, 1.0, 10.0, 700.0)
GRADIENTS = 4  # tuning steps, each with its own noise
Row = tuple[str, float, float, str]  # what, error by weights, error of all, remark


# Whole networks


def unet_modules(models: Models, data: Data) -> Errors:
    """Errors of the U-Net's modules, over all SIGMAS."""
    everything: Errors = {}
    params = models.wide.params["unet"]
    for sigma in SIGMAS:
        with probed(params, models.narrow.params["unet"]) as found:
            edm.predict_v(models.wide.network(params), data.noisy(sigma), sigma, data.cond)
        for kind, errors in found.items():
            for name, values in errors.items():
                everything.setdefault(kind, {"weights": [], "all": []})[name] += values
    return everything


def vae_modules(models: Models, data: Data, frames: int = 4) -> Errors:
    """Errors of the autoencoder's modules, encoding and decoding the first few frames."""
    params, network = models.wide.params["vae"], models.wide.networks.vae
    with probed(params, models.narrow.params["vae"]) as found:
        images = 2.0 * data.frames[None, :frames] - 1.0
        latents = network.apply({"params": params}, images, method=vae.VAE.encode)
        network.apply({"params": params}, latents, method=vae.VAE.decode)
    return {f"VAE: {kind}": errors for kind, errors in found.items()}


def networks(models: Models, data: Data) -> list[Row]:
    """Rows of whole networks."""

    def both(run: Callable[[VideoModel], jax.Array]) -> tuple[float, float, jax.Array, jax.Array]:
        wide, narrow = run(models.wide), run(models.narrow)
        return error(run(models.rounded), wide), error(narrow, wide), wide, narrow

    rows = []
    for sigma in SIGMAS:
        x = data.noisy(sigma)

        def predict(model: VideoModel, x=x, sigma=sigma) -> jax.Array:
            return predictor(model.networks)(model.params["unet"], {}, x, sigma, data.cond)

        weight, whole, wide, narrow = both(predict)
        clean = [edm.denoised_from_v(v, x, sigma) for v in (narrow, wide)]
        rows.append((f"U-Net at sigma {sigma:g}", weight, whole, f"its x0: {error(*clean):.1e}"))
    weight, whole, *_ = both(lambda model: model.embed_image(data.frames[:1]))
    rows.append(("image encoder", weight, whole, ""))
    count = len(data.frames)
    weight, whole, wide, narrow = both(lambda model: model.encode_video(data.frames))
    pictures = [models.wide.decode(latents, count) for latents in (narrow, wide)]
    rows.append(("VAE encode", weight, whole, f"seen by float32: PSNR {psnr(*pictures):.1f} dB"))
    weight, whole, wide, narrow = both(lambda model: model.decode(data.latents[0], count))
    rows.append(("VAE decode", weight, whole, f"PSNR {psnr(narrow, wide):.1f} dB"))
    return rows


# Tuning


def gradients(models: Models, data: Data, loras: dict) -> list[Row]:
    """Rows of the gradients of GRADIENTS tuning steps with these LoRAs."""
    numbers = tune.settings(data.config.tune, models.wide.networks.unet.config.stride)
    batch = {"anchor": data.anchor, "source": data.source}

    def run(model: VideoModel, kind: str):
        loss = make_loss(model.network, numbers, (kind,))
        grad = xla.jit(jax.grad(lambda *args: loss(*args)[0]))
        frozen = {name: lora for name, lora in loras.items() if name != kind}
        keys = jax.random.split(jax.random.key(2), GRADIENTS)
        return [
            grad({kind: loras[kind]}, frozen, model.params["unet"], batch, key)[kind]
            for key in keys
        ]

    rows = []
    for kind in loras:
        wide, rounded, narrow = (
            run(model, kind) for model in (models.wide, models.rounded, models.narrow)
        )
        rows.append((f"gradient, {kind} LoRA", error(rounded, wide), error(narrow, wide), ""))
    return rows


# Sampling


def samples(models: Models, data: Data, loras: dict, steps: int) -> list[Row]:
    """Rows of whole guided samples, of the untuned and of the tuned model."""
    how = Sampling(steps)
    conds = {m: own_conditioning(getattr(models, m), data) for m in ("wide", "rounded", "narrow")}
    wide = how.run(models.wide, conds["wide"])
    rounded = how.run(models.rounded, conds["rounded"])
    narrow = how.run(models.narrow, conds["narrow"])
    same = how.run(models.narrow, conds["wide"])
    other = Sampling(steps, how.seed + 1).run(models.wide, conds["wide"])

    def decode(model, latents):
        return model.decode(latents[0], len(data.frames))

    frames = decode(models.wide, wide)
    pictures = [decode(models.rounded, rounded), decode(models.narrow, narrow)]
    values = [psnr(x, frames) for x in (*pictures, decode(models.wide, other))]
    finite = all(bool(jnp.isfinite(x).all()) for x in (narrow, *pictures))
    what = f"{steps}-step sample"
    rows = [
        (f"{what}, latents", error(rounded, wide), error(narrow, wide), ""),
        (f"{what}, latents, conditioning in float32", np.nan, error(same, wide), ""),
        (f"{what}, latents, another seed", np.nan, error(other, wide), "in float32, for scale"),
        (
            f"{what}, frames",
            error(pictures[0], frames),
            error(pictures[1], frames),
            f"PSNR {values[0]:.1f} and {values[1]:.1f} dB, another seed {values[2]:.1f} dB; "
            + ("all finite" if finite else "NOT FINITE"),
        ),
    ]
    lora = lora_tree.combine(*loras.values())
    right = how.run(models.wide, conds["wide"], lora)
    effect = error(right, wide)
    for name, merged in (("merged", True), ("in the forward pass", False)):
        found = error(how.run(models.narrow, conds["wide"], lora, merged), right)
        rows.append(
            (f"{what}, latents, LoRA {name}", np.nan, found, f"the LoRA's effect: {effect:.1e}")
        )
    return rows


# LoRA


def lora_rows(models: Models, data: Data, loras: dict) -> list[list[str]]:
    """What is left of a LoRA's effect on F, for the tuned one and for smaller ones.

    Effects are against the same network without; "right" is the float32 network with the parameters of the
    bfloat16 one, merged in float32.
    """
    lora = lora_tree.combine(*loras.values())
    return [_effect(models, data, lora_tree.scale(lora, f), f) for f in (1.0, 0.1, 0.01, 0.003)]


def _effect(models: Models, data: Data, lora: lora_tree.Lora, factor: float) -> list[str]:
    low, base = models.narrow.params["unet"], models.rounded.params["unet"]
    exact, merged = lora_tree.merge(base, lora), lora_tree.merge(low, lora)
    paths = [(*path.split("/"), "kernel") for path in lora]
    sizes = [error(at(exact, path), at(base, path)) for path in paths]
    cells: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        cells.setdefault(name, []).append(value)

    for sigma in (1.0, 10.0):
        x = data.noisy(sigma)

        def wide(params, x=x, sigma=sigma):
            return predictor(models.wide.networks)(params, {}, x, sigma, data.cond)

        def narrow(params, deltas, x=x, sigma=sigma):
            return predictor(models.narrow.networks)(params, deltas, x, sigma, data.cond)

        without, right, start = wide(base), wide(exact), narrow(low, {})
        note("effect", error(right, without))
        note("merge", error(wide(cast(merged, jnp.float32)) - without, right - without))
        for name, found in (("merged", narrow(merged, {})), ("beside", narrow(low, lora))):
            note(f"{name} kept", share(found - start, right - without))
            note(f"{name} error", error(found, right))
    mean = {name: float(np.mean(values)) for name, values in cells.items()}
    return [
        f"{factor:g}",
        f"{np.median(sizes):.1e}",
        f"{mean['effect']:.1e}",
        f"{100 * mean['merge']:.1f} %",
        *(f"{100 * mean[f'{name} kept']:.0f} %" for name in ("merged", "beside")),
        *(f"{mean[f'{name} error']:.2e}" for name in ("merged", "beside")),
    ]


# The page


def module_table(errors: Errors) -> str:
    lines = ["| module | calls | weights | all, median | all, worst |", "|---|---|---|---|---|"]
    for kind, found in errors.items():
        values = [np.median(found["weights"]), np.median(found["all"]), max(found["all"])]
        cells = " | ".join(f"{v:.1e}" for v in values)
        lines.append(f"| {kind} | {len(found['all'])} | {cells} |")
    return "\n".join(lines)


def row_table(rows: Sequence[Row]) -> str:
    lines = ["| what | weights | all | |", "|---|---|---|---|"]
    for what, weight, whole, remark in rows:
        cells = " | ".join("" if np.isnan(v) else f"{v:.1e}" for v in (weight, whole))
        lines.append(f"| {what} | {cells} | {remark} |")
    return "\n".join(lines)


def document(
    given: flags.FlagValues, size: str, tables: Sequence[str], loras: str, seconds: float
) -> str:
    """The page of --out."""
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("jax", "jaxlib", "flax"))
    device = jax.devices()[0]
    where = f"{os.cpu_count()} CPU cores" if device.platform == "cpu" else device.device_kind
    return f"""# What bfloat16 costs

Made by `python -m experiments.bench.precision --model={given.model} --steps={given.steps}` on
{datetime.date.today()}, {where}, {versions}, {seconds:.0f} s; {size}.

Relative errors against float32, the RMS of the difference over the RMS of the float32 output. Weights: only the
parameters are rounded to bfloat16. All: a bfloat16 run, in which weights and activations are bfloat16; norms, softmax,
blends, sinusoids, the layers that read or write latents, the sampler and the LoRAs' parameters stay float32. To round
an array of normal values once is an error of 1.7e-3.

## Modules

Each given the float32 network's own activations at sigma {", ".join(f"{s:g}" for s in SIGMAS)}, operation by operation.

{tables[0]}

## Networks, gradients, samples

Compiled as in a run; XLA may leave roundings out between operations that it fuses. The LoRAs are those of a run's own
tuning of the bundled clip along "{MOVE}"; gradients are of {GRADIENTS} steps. Samples are guided, 1 to 3, without the
projection onto the anchor that the shipped prior's configuration adds.

{tables[1]}

## The LoRA's effect

How much of what a LoRA changes in F (the U-Net's output; means over sigma 1 and 10) a bfloat16 network keeps. Merge:
error of the effect where nothing but the merged kernels is rounded. Kept: the share of the effect, by regression, of a
bfloat16 network with the LoRA merged or beside (in the forward pass). Error: of the whole output.

{loras}
"""


def parse(arguments: Sequence[str] | None = None) -> flags.FlagValues:
    """The command line.

    Raises:
        InputError: a bad flag.
    """
    values = flags.FlagValues()
    own = {"flag_values": values}
    flags.DEFINE_string("model", "bundled:prior_small", "bundled:NAME or a folder", **own)
    flags.DEFINE_integer("steps", 25, "of a sample", lower_bound=1, **own)
    flags.DEFINE_integer("tune_steps", 0, "of each LoRA; 0: as a run", lower_bound=0, **own)
    command.define_new_file("out", "file for the page", values)
    return command.parse(values, arguments, __doc__)


def main(given: flags.FlagValues) -> None:
    """Measures, prints the page and writes it to --out."""
    begin = time.time()
    models = Models.load(configuration.resolve_path(given.model))
    variant = "small" if given.model.startswith(configuration.BUNDLED) else "svd"
    data = prepare(given.model, models.wide, variant)
    modules = module_table(unet_modules(models, data) | vae_modules(models, data))
    print(modules, flush=True)
    rows = networks(models, data)
    print(row_table(rows), flush=True)
    loras = fit(models.wide, data, given.tune_steps or data.config.tune.steps)
    rows += gradients(models, data, loras)
    titles = "LoRA times|delta / W, median|effect / F|merge|kept merged|kept beside|error merged|error beside"
    titles = titles.split("|")
    lines = [titles, ["---"] * len(titles), *lora_rows(models, data, loras)]
    effects = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    print(row_table(rows), effects, sep="\n", flush=True)
    rows += samples(models, data, loras, given.steps)
    size = f"{len(data.frames)} frames of {data.frames.shape[1]} x {data.frames.shape[2]} pixels"
    text = document(given, size, (modules, row_table(rows)), effects, time.time() - begin)
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    command.main(lambda: main(parse()))

"""Several camera moves and seeds over one clip, tuned in one step: temporal LoRAs as deltas with a leading axis.

The base weights are read once for all of them, and the spatial LoRA is fitted once. Each temporal LoRA is what its own
run would have made, up to rounding; it goes into that run's place in the cache, where `pipeline.run` finds it.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from recapture_jax import cache as caching
from recapture_jax import progress
from recapture_jax.errors import InputError
from recapture_jax.first_stage import compilation
from recapture_jax.pipeline import Run, memory_errors
from recapture_jax.stages import tune as tune_stage
from recapture_jax.tuning.step import AnchorData


def tune_together(configs: Sequence, models: dict, most: int) -> None:
    """Tunes what can be tuned in one step and is not in the cache.

    What cannot, or fails, is said and left to its own run.

    Args:
        configs: of the runs, those over one clip next to each other; they differ in their moves and seeds alone.
        models: where loaded models are kept, as `pipeline.run` has it.
        most: trajectories in one step.
    """
    for _, same in itertools.groupby(configs, key=lambda c: (c.video.path, _spatial_seed(c))):
        same = list(same)
        count = min(most, len(same))
        with compilation(configs[0]):
            waiting = (pair for config in same if (pair := _prepare(config, models, count)))
            # A few at a time: each holds its clip.
            while len(batch := list(itertools.islice(waiting, count))) > 1:
                try:
                    with memory_errors(lambda: "tuning together"):
                        _tune(batch)
                except InputError as error:
                    progress.say(f"{len(batch)} runs are not tuned together: {error}")


def _spatial_seed(config) -> int:
    return tune_stage.seed_of(("spatial",), config)


def _prepare(config, models: dict, together: int) -> tuple[Run, AnchorData] | None:
    """A run and what its temporal LoRA is fitted to, if it still is to be, beside a finished spatial one."""
    tune = config.tune
    if tune.schedule != "spatial_first" or not tune.temporal_weight:
        return None
    try:
        this = Run(config, models)
        this.read()
        this.preflight(together)
        anchor = this.anchor(this.depth())
        if this.cached_lora("temporal") is not None:
            return None
        return this, this.anchor_data(anchor)
    except InputError as error:
        progress.say(
            f"{config.camera.moves}, seed {config.seed}: not tuned with the others ({error})"
        )
        return None


def _tune(batch: Sequence[tuple[Run, AnchorData]]) -> None:
    first, _ = batch[0]
    loras = {}
    if first.config.tune.spatial_weight:
        spatial = first.cached_lora("spatial")
        loras = {"spatial": spatial} if spatial else first.fit_loras(("spatial",), {})
    data = jax.tree.map(lambda *x: jnp.stack(x), *(data for _, data in batch))
    keys = [run.lora_keys["temporal"] for run, _ in batch]
    count, seeds = len(batch), [run.config.seed for run, _ in batch]
    label, key = f"temporal x{count}", caching.key("together", keys=keys)
    with first.cache.exclusive(label, key), first.tuning(label, key) as fit:
        fitted, metrics = fit(("temporal",), {"anchor": data}, loras, seeds=seeds)
        for i, (run, _) in enumerate(batch):
            lora = jax.tree.map(lambda x, i=i: x[i], fitted["temporal"])
            run.keep_lora("temporal", run.lora_keys["temporal"], lora, metrics)

"""The whole run: clip and camera move in, a folder with the re-filmed clip out.

Stages that were done before for the same inputs are taken from the cache: depth per clip, anchor per camera
path, spatial LoRA per clip (whatever the path), temporal LoRA and result per path. Every file or folder appears
whole or not at all.
"""

import contextlib
import dataclasses
import datetime
import functools
import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from recapture_jax import cache as caching
from recapture_jax import config as configuration
from recapture_jax import outputs, preflight, processes, progress, sharding, storage, weights
from recapture_jax.errors import InputError
from recapture_jax.first_stage import FirstStage, compilation, folder_name, folder_stem
from recapture_jax.lora.export import load_lora, save_lora
from recapture_jax.stages import generate as generate_stage
from recapture_jax.stages import tune as tune_stage
from recapture_jax.stages.anchor import Anchor


@dataclasses.dataclass(frozen=True)
class RunResult:
    """Where a run left its files, and what it did: stages to 'computed' or 'cached'."""

    folder: storage.Folder
    stages: dict[str, str]


def run(config, models: dict | None = None) -> RunResult:
    """Runs the pipeline of a configuration (`config.default_config`).

    Args:
      config: of the run.
      models: where loaded models are kept, for several runs of one process.

    Raises:
      InputError: for anything a user can mend, a device's memory included; nothing half-written is left
        behind, and finished stages are kept.
    """
    configuration.validate(config)
    with compilation(config):
        this = Run(config, {} if models is None else models)
        with memory_errors(lambda: list(this.stages)[-1]):
            return this.go()


@contextlib.contextmanager
def memory_errors(stage: Callable[[], str]):
    """Makes an InputError of a device's out-of-memory; `stage()`: where it happened."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            f"out of memory at stage {stage()}; finished stages are kept: run again with "
            "--config.model.remat=full, a smaller --config.generate.decode_chunk or "
            "--config.video.short_side"
        ) from error


class Run(FirstStage):
    """One run; a method per stage, on top of those that it shares with the preview."""

    def __init__(self, config, models: dict):
        self.model_path = configuration.resolve_path(config.model.path)
        with processes.refusing_together():
            super().__init__(config, weights.read_config(self.model_path))
        self.records: dict[str, Any] = {}
        self.dtype = weights.dtype_of(config.model.dtype)
        weights.check_attention(config.model.attention, self.dtype)
        self.mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.frames)
        self._models = models

    def go(self) -> RunResult:
        self.read()
        if (done := self._done()) is not None:
            return done
        asked = self.run_key
        self.preflight()
        # In shorter windows it is another run, found under its own key alone: with more memory it is none.
        if self.run_key != asked and (done := self._done()) is not None:
            return done
        target = self._target()
        if self.config.output.name and processes.agreed(target.exists()):
            raise _taken(target)
        depth = self.depth()
        anchor = self.anchor(depth)
        loras = self._tune(anchor)
        frames = self._generate(anchor, loras)
        with self.watch.stage("write"):
            if processes.is_main():
                target = self._write(target, anchor, loras, frames)
        target = storage.folder(processes.agreed(str(target)))
        with self.cache.writing("run", self.run_key, replace=True) as folder:
            (folder / "folder.txt").write_text(storage.absolute(target))
        progress.say(f"done: {target}")
        return RunResult(target, self.stages)

    @property
    def run_key(self) -> str:
        """Cache key of the whole run, in the windows of time that are settled by now."""
        groups = self.parts(*self.groups.keys() - {"output"})
        return caching.key("run", inputs=self.inputs, groups=groups)

    def _done(self) -> RunResult | None:
        """This run, if it was made before and its folder is still there, under the name asked for."""
        key = self.run_key
        if not self.cache.has("run", key):
            return None
        folder = storage.folder((self.cache.entry("run", key) / "folder.txt").read_text())
        named = self.config.output.name
        if named and folder.name != folder_name(named):
            return None
        if not processes.agreed((folder / "run.json").exists()):
            return None
        progress.say(f"already done, nothing to do: {folder}")
        return RunResult(folder, {"run": "cached"})

    def read(self) -> None:
        """As `FirstStage.read`, and the model's hash."""
        with self.watch.stage("read"), processes.refusing_together():
            super().read()
            model = caching.model_hash(self.model_path)
            self.inputs |= {"model": model, "dtype": str(jnp.dtype(self.dtype))}
        first = processes.agreed(self.inputs)
        with processes.refusing_together():
            if other := [name for name in first if first[name] != self.inputs.get(name)]:
                raise InputError(
                    f"its {', '.join(other)} is not that of process 0: every process needs the same files"
                )

    def preflight(self, together: int = 1) -> None:
        """Settles how the run fits the device, or refuses it; together: trajectories tuned in one step.

        The windows of time, which alone change the result, are those of all cache keys from here on.
        """
        frames = len(self.shown)
        args = (self.model_config, self.config, self.dtype, frames, self.clip.size)
        with self.watch.stage("preflight"):
            limit = processes.agreed(preflight.device_memory())
            self.plan_of_memory = preflight.plan(*args, limit, together)
        self.config = self.config.copy_and_resolve_references()  # the caller's stays as it was
        self.config.model.remat = self.plan_of_memory.remat
        self.config.model.offload = "always" if self.plan_of_memory.offload else "never"
        generate = self.config.generate
        generate.guidance_passes = self.plan_of_memory.guidance_passes
        generate.decode_chunk = self.plan_of_memory.decode_chunk
        for name in ("window", "window_overlap"):
            value = getattr(self.plan_of_memory, name)
            self.config.model[name] = self.groups["model"][name] = value

    @property
    def model(self):
        """Loaded when the first stage needs it: a run from the cache never does."""
        group = self.config.model
        kind = (self.model_path, str(self.dtype), self.mesh, group.offload)
        if kind not in self._models:
            self._models.clear()  # one at a time: full-size weights fill a device
            self._models[kind] = {}
        same_weights = self._models[kind]
        options = (group.attention, group.remat)
        if options not in same_weights:
            same_weights[options] = self._load(next(iter(same_weights.values()), None), *options)
        return same_weights[options]

    def _load(self, loaded, attention: str, remat: str):
        """The model with these options, its weights those of `loaded` if there is one."""
        options = {"attention": attention, "remat": remat}
        if loaded is not None:
            return loaded.rebuilt(self.dtype, **options)
        with self.watch.stage("load_model"):
            with processes.refusing_together():
                model = weights.load_model(self.model_path, self.dtype, on_host=True, **options)
            if self.config.model.offload == "never":
                unet = sharding.shard_weights(model.params.pop("unet"), self.mesh)
                model.params.update(jax.device_put(model.params), unet=unet)
        return model

    @functools.cached_property
    def lora_keys(self) -> dict[str, str]:
        """Cache keys of both LoRAs, once the anchor is made.

        The spatial one knows the frames shown, and neither a camera path nor windows of time.
        """

        def without(group: dict, *names: str) -> dict:
            return {n: v for n, v in group.items() if n not in names}

        groups = self.parts("model", "video", "lora", "tune") | {"seed": self.config.seed}
        groups["tune"] = without(groups["tune"], "checkpoint_every", "spatial_seed")
        told = {n: self.groups["generate"][n] for n in ("fps", "motion_bucket", "noise_aug")}
        unrelated = ("temporal_weight", "draws", "window", "known", "schedule")
        own = groups | {
            "tune": without(groups["tune"], *unrelated),
            "lora": without(groups["lora"], "temporal_targets"),
            "model": without(groups["model"], "window", "window_overlap"),
            "seed": tune_stage.seed_of(("spatial",), self.config),
        }
        inputs = without(self.inputs, "frames", "path", "poses", "depth", "sky")
        shown = np.unique(self.shown).tolist()
        spatial = caching.key("spatial", inputs=inputs, groups=own, told=told, shown=shown)
        temporal = caching.key(
            "temporal", anchor=self.anchor_key, spatial=spatial, groups=groups, told=told
        )
        return {"spatial": spatial, "temporal": temporal}

    def _tune(self, anchor: Anchor) -> dict:
        """Both LoRAs, from the cache or fitted.

        With 'spatial_first' the temporal LoRA is fitted beside the finished spatial one, which can
        be that of an earlier run. With 'joint' both are fitted in one step, always: were a cached
        spatial LoRA used, the result would depend on what had been run before.
        """
        cfg = self.config
        keys = self.lora_keys
        loras = {kind: lora for kind in keys if (lora := self.cached_lora(kind)) is not None}
        wanted = tuple(kind for kind in keys if cfg.tune[f"{kind}_weight"] > 0)
        missing = tuple(kind for kind in wanted if kind not in loras)
        if "temporal" in missing:  # refused before the spatial LoRA has taken its time
            tune_stage.learnable_mask(self.model, anchor, cfg.tune.known)
        together = cfg.tune.schedule == "joint" and "temporal" in missing and len(wanted) == 2
        rounds = [wanted] if together else [(kind,) for kind in missing]
        for trained in rounds:
            loras |= self.fit_loras(trained, loras, anchor)
        return loras

    def cached_lora(self, kind: str) -> dict | None:
        """A LoRA of this run, if it was fitted before."""
        key = self.lora_keys[kind]
        if not self.cache.has(kind, key):
            return None
        self.stages[kind] = "cached"
        return load_lora(self.cache.entry(kind, key) / "lora.safetensors")

    def fit_loras(
        self, trained: tuple[str, ...], loras: dict, anchor: Anchor | None = None
    ) -> dict:
        """Fits the LoRAs of the kinds in `trained` beside the others of `loras`, and caches them.

        anchor: for the temporal one.
        """
        keys = {kind: self.lora_keys[kind] for kind in trained}
        label, key = "+".join(trained), keys[trained[-1]]
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.cache.exclusive(label, key))
            found = {kind: self.cached_lora(kind) for kind in trained}
            if all(lora is not None for lora in found.values()):
                return found  # another run has made them meanwhile
            for kind in trained:
                stack.enter_context(self.stage(kind))
            data = {}
            if "spatial" in trained:
                data["source"] = self._source_data(tune_stage.seed_of(trained, self.config))
            if "temporal" in trained:
                data["anchor"] = self.anchor_data(anchor)
            frozen = {k: v for k, v in loras.items() if k not in trained}
            fit = stack.enter_context(self.tuning(label, key))
            fitted, metrics = fit(trained, data, frozen)
            for kind in trained:
                self.keep_lora(kind, keys[kind], fitted[kind], metrics)
        return fitted

    @contextlib.contextmanager
    def tuning(self, label: str, key: str):
        """Yields `fit(trained, data, frozen, **options) -> (LoRAs, metrics as text)`; see `Tuner.fit`.

        What it leaves for resuming goes when the body ends well.
        """
        work = self.cache.work(label, key)
        file = work / "metrics.jsonl"

        def fit(trained, data, frozen, **options):
            with progress.Metrics(file) as metrics:
                fitted, self.records[label] = tune_stage.Tuner(
                    self.model, self.config, self.mesh
                ).fit(
                    trained,
                    data,
                    frozen,
                    label=label,
                    folder=work / "checkpoints",
                    mirror=self.cache.mirror(work),
                    metrics=metrics,
                    **options,
                )
            return fitted, file.read_text()

        yield fit
        self.cache.finish(work)

    def keep_lora(self, kind: str, key: str, lora: dict, metrics: str) -> None:
        """Puts a fitted LoRA into the cache."""
        with self.cache.writing(kind, key) as folder:
            self.save_lora(folder / "lora.safetensors", kind, lora)
            (folder / "metrics.jsonl").write_text(metrics)

    def anchor_data(self, anchor: Anchor):
        """What the temporal LoRA is fitted to."""
        return tune_stage.anchor_data(self.model, anchor, self.config)

    def _source_data(self, seed: int):
        """Each source frame that is shown, once: a frozen one has no more to teach."""
        cfg = self.config
        frames = self.clip.frames[np.unique(self.shown, return_index=True)[1]]
        return tune_stage.source_data(self.model, frames, cfg.tune, cfg.generate, seed)

    def save_lora(self, path: pathlib.Path, kind: str, lora: dict) -> None:
        save_lora(
            path,
            lora,
            rank=self.config.lora.rank,
            targets=self.config.lora[f"{kind}_targets"],
            base_model=str(self.model_config.get("name", self.model_path.name)),
        )

    def _generate(self, anchor: Anchor, loras: dict) -> np.ndarray:
        cfg = self.config
        key = caching.key("result", loras=self.lora_keys, groups=self.parts("generate", "seed"))
        if self.cache.has("result", key):
            self.stages["result"] = "cached"
            return caching.load_arrays(self.cache.entry("result", key) / "frames.npz")["frames"]
        with self.stage("result"):
            frames = generate_stage.generate(
                self.model, anchor, loras, cfg.model, cfg.generate, cfg.seed, self.mesh
            )
            if not np.isfinite(frames).all():
                raise InputError(
                    "the sampled frames are not finite; run again with --config.model.dtype=float32"
                )
            with self.cache.writing("result", key) as folder:
                caching.save_arrays(folder / "frames.npz", {"frames": frames})
        return frames

    # Outputs

    def _target(self) -> storage.Folder:
        cfg = self.config
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        name = cfg.output.name or f"{folder_stem(self.clip_name, cfg.camera)}-{stamp}"
        return self.root / folder_name(name)

    def _write(
        self, target: storage.Folder, anchor: Anchor, loras: dict, frames: np.ndarray
    ) -> storage.Folder:
        """The folder that has the outputs: `target` or, of a run of the same second, `target-2` and so on.

        Raises:
          InputError: another run has taken the name that was asked for.
        """
        for number in itertools.count(1):
            folder = target if number == 1 else target.with_name(f"{target.name}-{number}")
            try:
                with storage.atomic_folder(folder, fresh=True) as files:
                    outputs.fill(files, self, anchor, loras, frames)
                return folder
            except FileExistsError:
                if self.config.output.name:
                    raise _taken(target) from None


def _taken(target: storage.Folder) -> InputError:
    return InputError(f"{target} exists; choose another --config.output.name or remove it")

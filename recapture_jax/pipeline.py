"""The whole run: clip and camera move in, a folder with the re-filmed clip out.

Stages that were done before for the same inputs are taken from the cache: depth per clip, anchor per camera
path, spatial LoRA per clip (whatever the path), temporal LoRA and result per path. Every file or folder appears
whole or not at all.
"""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import pathlib
import platform
import shutil
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import recapture_jax
from recapture_jax import cache as caching
from recapture_jax import config as configuration
from recapture_jax import preflight, progress, sharding, weights
from recapture_jax.camera.formats import nerfstudio_camera_path
from recapture_jax.errors import InputError
from recapture_jax.first_stage import FirstStage, compilation, folder_name, folder_stem
from recapture_jax.lora.export import load_lora, save_lora
from recapture_jax.stages import anchor as anchor_stage
from recapture_jax.stages import generate as generate_stage
from recapture_jax.stages import tune as tune_stage
from recapture_jax.stages.anchor import Anchor
from recapture_jax.video.write import side_by_side, write_video


@dataclasses.dataclass(frozen=True)
class RunResult:
    """Where a run left its files, and what it did: stages to 'computed' or 'cached'."""

    folder: pathlib.Path
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
        this = _Run(config, {} if models is None else models)
        try:
            return this.go()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise InputError(
                f"out of memory at stage {list(this.stages)[-1]}; finished stages are kept: run again with "
                "--config.model.remat=full, a smaller --config.generate.decode_chunk or "
                "--config.video.short_side"
            ) from error


class _Run(FirstStage):
    """One run; a method per stage, on top of those that it shares with the preview."""

    def __init__(self, config, models: dict):
        self.model_path = configuration.resolve_path(config.model.path)
        super().__init__(config, weights.read_config(self.model_path))
        self.records: dict[str, Any] = {}
        self.dtype = _dtype(config.model.dtype)
        _check_attention(config.model.attention, self.dtype)
        self._models = models

    def go(self) -> RunResult:
        with self.watch.stage("read"):
            self.read()
            self.inputs |= {"model": self._model_hash(), "dtype": str(jnp.dtype(self.dtype))}
        key = caching.key(
            "run", inputs=self.inputs, groups=self.parts(*self.groups.keys() - {"output"})
        )
        if self.cache.has("run", key):
            folder = pathlib.Path((self.cache.entry("run", key) / "folder.txt").read_text())
            if (folder / "run.json").exists():
                progress.say(f"already done, nothing to do: {folder}")
                return RunResult(folder, {"run": "cached"})
        target = self._target()
        if target.exists():
            raise InputError(f"{target} exists; choose another --config.output.name or remove it")
        self._preflight()
        depth = self.depth()
        anchor = self.anchor(depth)
        loras = self._tune(anchor)
        frames = self._generate(anchor, loras)
        with self.watch.stage("write"):
            self._write(target, anchor, loras, frames)
        if not self.cache.has("run", key):
            with self.cache.writing("run", key) as folder:
                (folder / "folder.txt").write_text(str(target.absolute()))
        progress.say(f"done: {target}")
        return RunResult(target, self.stages)

    def _preflight(self) -> None:
        """Settles how the run fits the device, or refuses it."""
        frames = len(self.shown)
        args = (self.model_config, self.config, self.dtype, frames, self.clip.size)
        with self.watch.stage("preflight"):
            self.plan_of_memory = preflight.plan(*args)
        self.config = ConfigDict(self.config)  # the caller's stays as it was, and so do cache keys
        self.config.model.remat = self.plan_of_memory.remat
        self.config.generate.decode_chunk = self.plan_of_memory.decode_chunk

    def _model_hash(self) -> str:
        """Content of the model: of its one file, or what the converter recorded of its source."""
        for name in ("model.safetensors", "source.json"):
            if (self.model_path / name).exists():
                config = caching.file_hash(self.model_path / "config.json")
                return config + caching.file_hash(self.model_path / name)
        return caching.file_hash(self.model_path)

    @property
    def model(self):
        """Loaded when the first stage needs it: a run from the cache never does."""
        options = {"attention": self.config.model.attention, "remat": self.config.model.remat}
        key = (self.model_path, str(self.dtype), *options.values())
        if key not in self._models:
            self._models.clear()  # one at a time: full-size weights fill a device
            with self.watch.stage("load_model"):
                self._models[key] = weights.load_model(self.model_path, self.dtype, **options)
        return self._models[key]

    def _lora_keys(self) -> dict[str, str]:
        """Cache keys of both LoRAs. The spatial one knows the frames shown, and no camera path."""
        groups = self.parts("model", "video", "lora", "tune") | {"seed": self.config.seed}
        told = {n: self.groups["generate"][n] for n in ("fps", "motion_bucket", "noise_aug")}
        unrelated = ("temporal_weight", "draws", "window", "schedule", "checkpoint_every")
        tune = {n: v for n, v in self.groups["tune"].items() if n not in unrelated}
        lora = {n: v for n, v in self.groups["lora"].items() if n != "temporal_targets"}
        inputs = {
            n: v for n, v in self.inputs.items() if n not in ("path", "poses", "depth", "sky")
        }
        own = {"inputs": inputs, "groups": groups | {"tune": tune, "lora": lora}, "told": told}
        own["shown"] = np.unique(self.shown).tolist()
        spatial = caching.key("spatial", **own)
        groups["tune"].pop("checkpoint_every")
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
        mesh = sharding.make_mesh(cfg.mesh.data, cfg.mesh.fsdp, cfg.mesh.frames)
        self.lora_keys = keys = self._lora_keys()
        loras = {}
        for kind, key in keys.items():
            if self.cache.has(kind, key):
                self.stages[kind] = "cached"
                loras[kind] = load_lora(self.cache.entry(kind, key) / "lora.safetensors")
        wanted = tuple(kind for kind in keys if cfg.tune[f"{kind}_weight"] > 0)
        missing = tuple(kind for kind in wanted if kind not in loras)
        together = cfg.tune.schedule == "joint" and "temporal" in missing and len(wanted) == 2
        rounds = [wanted] if together else [(kind,) for kind in missing]
        for trained in rounds:
            label = "+".join(trained)
            with contextlib.ExitStack() as stack:
                for kind in trained:
                    stack.enter_context(self.stage(kind))
                data = {}
                if "spatial" in trained:
                    # Each source frame that is shown, once: a frozen one has no more to teach.
                    frames = self.clip.frames[np.unique(self.shown, return_index=True)[1]]
                    data["source"] = tune_stage.source_data(
                        self.model, frames, cfg.tune, cfg.generate, cfg.seed
                    )
                if "temporal" in trained:
                    data["anchor"] = tune_stage.anchor_data(
                        self.model, anchor, cfg.model, cfg.generate, cfg.seed
                    )
                work = self.cache.work(label, keys[trained[-1]])
                work.mkdir(parents=True, exist_ok=True)
                metrics = stack.enter_context(progress.Metrics(work / "metrics.jsonl"))
                frozen = {k: v for k, v in loras.items() if k not in trained}
                fitted, self.records[label] = tune_stage.Tuner(self.model, cfg, mesh).fit(
                    trained, data, frozen, label=label, folder=work / "checkpoints", metrics=metrics
                )
                for kind in trained:
                    loras[kind] = fitted[kind]
                    with self.cache.writing(kind, keys[kind]) as folder:
                        self._save_lora(folder / "lora.safetensors", kind, fitted[kind])
                        (folder / "metrics.jsonl").write_text((work / "metrics.jsonl").read_text())
            shutil.rmtree(work, ignore_errors=True)
        return loras

    def _save_lora(self, path: pathlib.Path, kind: str, lora: dict) -> None:
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
                self.model, anchor, loras, cfg.model, cfg.generate, cfg.seed
            )
            if not np.isfinite(frames).all():
                raise InputError(
                    "the sampled frames are not finite; run again with --config.model.dtype=float32"
                )
            with self.cache.writing("result", key) as folder:
                caching.save_arrays(folder / "frames.npz", {"frames": frames})
        return frames

    # Outputs

    def _target(self) -> pathlib.Path:
        cfg = self.config
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        name = cfg.output.name or f"{folder_stem(self.clip_name, cfg.camera)}-{stamp}"
        return self.root / folder_name(name)

    def _write(self, target: pathlib.Path, anchor: Anchor, loras: dict, frames: np.ndarray) -> None:
        fps = self.clip.fps
        rough = np.where(anchor.raw_mask[..., None], anchor.frames, 0.0)
        mask = np.repeat(anchor.mask[..., None], 3, axis=-1).astype(np.float32)
        source = np.asarray(self.clip.frames)
        with caching.atomic_folder(target) as folder:
            write_video(folder / "result.mp4", frames, fps, self.clip.audio)
            write_video(folder / "anchor.mp4", rough, fps)
            write_video(folder / "mask.mp4", mask, fps)
            write_video(folder / "comparison.mp4", side_by_side([source, rough, frames]), fps)
            cameras = nerfstudio_camera_path(anchor.trajectory, *self.clip.size, fps)
            (folder / "cameras.json").write_text(json.dumps(cameras, indent=1) + "\n")
            (folder / "lora").mkdir()
            lines = ""
            for kind, lora in loras.items():
                self._save_lora(folder / "lora" / f"{kind}.safetensors", kind, lora)
                lines += (
                    self.cache.entry(kind, self.lora_keys[kind]) / "metrics.jsonl"
                ).read_text()
            (folder / "metrics.jsonl").write_text(lines)
            (folder / "run.json").write_text(json.dumps(self._report(anchor), indent=1) + "\n")

    def _report(self, anchor: Anchor) -> dict[str, Any]:
        packages = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
        device = jax.devices()[0]
        return {
            "config": self.groups,
            "inputs": self.inputs,
            "seed": self.config.seed,
            "versions": {
                "recapture_jax": recapture_jax.__version__,
                "python": platform.python_version(),
            }
            | {name: importlib.metadata.version(name) for name in packages},
            "device": {
                "platform": device.platform,
                "kind": device.device_kind,
                "count": len(jax.devices()),
            },
            "size": list(self.clip.size),
            "fps": float(self.clip.fps),
            "source_frames": self.shown.tolist(),
            "lens": self.camera.said,
            "intrinsics": np.asarray(self.clip.intrinsics).round(3).tolist(),
            "depth": self.depth_report,
            "pivot_depth": anchor.trajectory.pivot_depth,
            "stages": self.stages,
            "seconds": self.watch.seconds,
            "hole_share": anchor_stage.hole_shares(anchor),
            "memory": self.plan_of_memory.report(),
            "tuning": self.records,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }


def _dtype(name: str):
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def _check_attention(name: str, dtype) -> None:
    """Refuses a fused kernel of another platform, or of another precision, before any work."""
    needs = {"cudnn": "gpu", "flash": "tpu"}.get(name)
    here = jax.default_backend()
    if needs and needs != here:
        raise InputError(
            f"config.model.attention={name} runs on a {needs.upper()}, this machine has a {here.upper()}: "
            "set it to auto"
        )
    if name == "cudnn" and dtype == jnp.float32:
        raise InputError(
            "config.model.attention=cudnn cannot compute in float32: set config.model.dtype=bfloat16, or "
            "attention to auto"
        )

"""The whole run: clip and camera move in, a folder with the re-filmed clip out.

Stages that were done before for the same inputs are taken from the cache: depth per clip, anchor per camera
path, spatial LoRA per clip (whatever the path), temporal LoRA and result per path. Only this module writes
files, and every file or folder appears whole or not at all.
"""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import pathlib
import platform
import re
import shutil
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import recapture_jax
from recapture_jax import cache as caching
from recapture_jax import config as configuration
from recapture_jax import progress, sharding, weights
from recapture_jax.camera.formats import nerfstudio_camera_path
from recapture_jax.depth import align, base, precomputed
from recapture_jax.errors import InputError
from recapture_jax.lora.export import load_lora, save_lora
from recapture_jax.stages import anchor as anchor_stage
from recapture_jax.stages import generate as generate_stage
from recapture_jax.stages import tune as tune_stage
from recapture_jax.stages.anchor import Anchor
from recapture_jax.video import resize
from recapture_jax.video.read import read_clip
from recapture_jax.video.write import side_by_side, write_video

_SOURCE_PIXELS = (
    2**18
)  # a clip is read at no less than this before it is fitted to the model's size


@dataclasses.dataclass(frozen=True)
class RunResult:
    """Where a run left its files, and what it did: stages to 'computed' or 'cached'."""

    folder: pathlib.Path
    stages: dict[str, str]


def run(config) -> RunResult:
    """Runs the pipeline of a configuration (`config.default_config`).

    Raises:
      InputError: for anything a user can mend; nothing half-written is left behind.
    """
    configuration.validate(config)
    _compilation_cache(config)
    return _Run(config).go()


def _compilation_cache(config) -> None:
    if config.output.compilation_cache and not jax.config.jax_compilation_cache_dir:
        folder = pathlib.Path.home() / ".cache" / "recapture_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def plain(config) -> dict[str, Any]:
    """A ConfigDict as JSON-able data."""
    return json.loads(config.to_json())


class _Run:
    """One run; a method per stage."""

    def __init__(self, config):
        self.config = config
        self.groups = plain(config)
        self.root = pathlib.Path(config.output.root).expanduser()
        folder = (
            pathlib.Path(config.output.cache).expanduser()
            if config.output.cache
            else self.root / "cache"
        )
        self.cache = caching.StageCache(folder)
        self.watch = progress.Stopwatch()
        self.stages: dict[str, str] = {}
        self.records: dict[str, Any] = {}
        self.model_path = configuration.resolve_path(config.model.path)
        self.model_config = weights.read_config(self.model_path)
        self.dtype = _dtype(config.model.dtype)
        self._model = None

    def go(self) -> RunResult:
        with self.watch.stage("read"):
            self._read()
        key = caching.key(
            "run", inputs=self.inputs, groups=self._parts(*self.groups.keys() - {"output"})
        )
        if self.cache.has("run", key):
            folder = pathlib.Path((self.cache.entry("run", key) / "folder.txt").read_text())
            if (folder / "run.json").exists():
                progress.say(f"already done, nothing to do: {folder}")
                return RunResult(folder, {"run": "cached"})
        target = self._target()
        if target.exists():
            raise InputError(f"{target} exists; choose another --config.output.name or remove it")
        depth = self._depth()
        anchor = self._anchor(depth)
        loras = self._tune(anchor)
        frames = self._generate(anchor, loras)
        with self.watch.stage("write"):
            self._write(target, anchor, loras, frames)
        if not self.cache.has("run", key):
            with self.cache.writing("run", key) as folder:
                (folder / "folder.txt").write_text(str(target.absolute()))
        progress.say(f"done: {target}")
        return RunResult(target, self.stages)

    # Inputs

    def _read(self) -> None:
        video, model_frames = self.config.video, int(self.model_config["num_frames"])
        path = configuration.resolve_path(video.path)
        factor = 2 ** (len(self.model_config["vae"]["block_out_channels"]) - 1)
        if video.multiple % factor:
            raise InputError(
                f"config.video.multiple={video.multiple}: expected a multiple of {factor}, the pixels of one latent"
            )
        num_frames = video.num_frames or model_frames
        if num_frames > model_frames:
            progress.say(f"note: {num_frames} frames, the model was trained on {model_frames}")
        area = max(_SOURCE_PIXELS, 2 * video.short_side**2)
        self.source = read_clip(path, num_frames, video.start, video.stride, max_pixels=area)
        height, width = self.source.size
        size = resize.fit_size(height, width, short_side=video.short_side, multiple=video.multiple)
        frames, self.fit = resize.resize_to_cover_and_crop(self.source.frames, size)
        intrinsics = anchor_stage.source_intrinsics(self.source, self.config.camera.vertical_fov)
        self.clip = dataclasses.replace(
            self.source,
            frames=np.asarray(frames, np.float32),
            intrinsics=self.fit.intrinsics(intrinsics),
        )
        self.clip_name = path.stem
        self.clip_hash = caching.file_hash(path)
        self.inputs = {
            "clip": self.clip_hash,
            "model": self._model_hash(),
            "dtype": str(jnp.dtype(self.dtype)),
            "version": recapture_jax.__version__,
            "backend": jax.default_backend(),
        }
        if self.config.depth.estimator == "precomputed":
            depth_path = configuration.resolve_path(self.config.depth.path)
            if not depth_path.exists():
                raise InputError(f"config.depth.path={depth_path}: no such file or folder")
            self.inputs["depth"] = caching.file_hash(depth_path)

    def _model_hash(self) -> str:
        """Content of the model: of its one file, or what the converter recorded of its source."""
        for name in ("model.safetensors", "source.json"):
            if (self.model_path / name).exists():
                config = caching.file_hash(self.model_path / "config.json")
                return config + caching.file_hash(self.model_path / name)
        return caching.file_hash(self.model_path)

    def _parts(self, *names: str) -> dict[str, Any]:
        return {name: self.groups[name] for name in sorted(names)}

    @property
    def model(self):
        """Loaded when the first stage needs it: a run from the cache never does."""
        if self._model is None:
            options = {"attention": self.config.model.attention, "remat": self.config.model.remat}
            with self.watch.stage("load_model"):
                self._model = weights.load_model(self.model_path, self.dtype, **options)
        return self._model

    @contextlib.contextmanager
    def _stage(self, name: str):
        self.stages[name] = "computed"
        with self.watch.stage(name):
            yield

    # Stages

    def _depth(self) -> base.DepthMap:
        cfg = self.config.depth
        inputs = {k: v for k, v in self.inputs.items() if k in ("clip", "depth", "version")}
        key = caching.key("depth", inputs=inputs, groups=self._parts("video", "depth"))
        if self.cache.has("depth", key):
            self.stages["depth"] = "cached"
            stored = caching.load_arrays(self.cache.entry("depth", key) / "depth.npz")
            return base.DepthMap(stored["depth"], str(stored["kind"]), str(stored["source"]))
        with self._stage("depth"):
            height, width = self.source.size
            if cfg.estimator == "precomputed":
                path = configuration.resolve_path(cfg.path)
                depth = precomputed.load_depth(
                    path,
                    cfg.kind,
                    cfg.scale,
                    num_frames=self.source.num_frames,
                    height=height,
                    width=width,
                    encoding=cfg.encoding,
                )
            else:
                depth = base.get_estimator(cfg.estimator)(self.source.frames)
            if cfg.stabilise:
                depth = align.stabilise(depth, self.source.frames)
            fitted = np.asarray(resize.resize_depth(np.asarray(depth.depth), self.fit), np.float32)
            depth = base.DepthMap(fitted, depth.kind, depth.source)
            with self.cache.writing("depth", key) as folder:
                arrays = {
                    "depth": depth.depth,
                    "kind": np.array(depth.kind),
                    "source": np.array(depth.source),
                }
                caching.save_arrays(folder / "depth.npz", arrays)
        return depth

    def _anchor(self, depth: base.DepthMap) -> Anchor:
        path = anchor_stage.plan_trajectory(self.config.camera, self.clip, depth)
        inputs = {
            k: v for k, v in self.inputs.items() if k in ("clip", "depth", "version", "backend")
        }
        self.anchor_key = caching.key(
            "anchor", inputs=inputs, groups=self._parts("video", "camera", "depth", "anchor")
        )
        names = ("frames", "mask", "raw_mask")
        if self.cache.has("anchor", self.anchor_key):
            self.stages["anchor"] = "cached"
            stored = caching.load_arrays(self.cache.entry("anchor", self.anchor_key) / "anchor.npz")
            return Anchor(*(stored[n] for n in names), path)
        with self._stage("anchor"):
            fov = self.config.camera.vertical_fov
            anchor = anchor_stage.render(self.config.anchor, self.clip, depth, path, fov)
            with self.cache.writing("anchor", self.anchor_key) as folder:
                caching.save_arrays(folder / "anchor.npz", {n: getattr(anchor, n) for n in names})
        return anchor

    def _lora_keys(self) -> dict[str, str]:
        """Cache keys of both LoRAs. The spatial one knows nothing of the camera path."""
        groups = self._parts("model", "video", "lora", "tune") | {"seed": self.config.seed}
        told = {n: self.groups["generate"][n] for n in ("fps", "motion_bucket", "noise_aug")}
        unrelated = ("temporal_weight", "draws", "schedule", "checkpoint_every")
        tune = {n: v for n, v in self.groups["tune"].items() if n not in unrelated}
        lora = {n: v for n, v in self.groups["lora"].items() if n != "temporal_targets"}
        own = {"inputs": self.inputs, "groups": groups | {"tune": tune, "lora": lora}, "told": told}
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
        mesh = sharding.make_mesh(cfg.mesh.data)
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
                    stack.enter_context(self._stage(kind))
                data = {}
                if "spatial" in trained:
                    frames = self.clip.frames
                    data["source"] = tune_stage.source_data(
                        self.model, frames, cfg.tune, cfg.generate, cfg.seed
                    )
                if "temporal" in trained:
                    data["anchor"] = tune_stage.anchor_data(
                        self.model, anchor, cfg.generate, cfg.seed
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
        key = caching.key("result", loras=self.lora_keys, groups=self._parts("generate", "seed"))
        if self.cache.has("result", key):
            self.stages["result"] = "cached"
            return caching.load_arrays(self.cache.entry("result", key) / "frames.npz")["frames"]
        with self._stage("result"):
            frames = generate_stage.generate(self.model, anchor, loras, cfg.generate, cfg.seed)
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
        name = cfg.output.name or f"{self.clip_name}-{cfg.camera.moves}-{stamp}"
        return self.root / re.sub(r"[^\w.+-]+", "-", name).strip("-")

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
            "pivot_depth": anchor.trajectory.pivot_depth,
            "stages": self.stages,
            "seconds": self.watch.seconds,
            "hole_share": anchor_stage.hole_shares(anchor),
            "tuning": self.records,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }


def _dtype(name: str):
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)

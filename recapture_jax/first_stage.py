"""A run's clip, depth and anchor: what pipeline and preview share, so that both show the same pixels."""

import contextlib
import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import recapture_jax
from recapture_jax import cache as caching
from recapture_jax import config as configuration
from recapture_jax import processes, progress, source, storage
from recapture_jax.camera.formats import colmap
from recapture_jax.camera.timing import describe_time, source_frames
from recapture_jax.camera.trajectory import Trajectory
from recapture_jax.depth import base
from recapture_jax.diffusion.windows import plan_windows
from recapture_jax.errors import InputError
from recapture_jax.stages import anchor as anchor_stage
from recapture_jax.stages.anchor import Anchor
from recapture_jax.video import resize
from recapture_jax.video.read import read_clip

_LONGEST_NAME = 120  # of a move in the name of a folder; file systems take 255 bytes in all
# A clip for a model of much smaller frames is read with so many pixels, for depth and lens.
_SOURCE_PIXELS = 2**18
_FINER_PIXELS = 2**28  # 3 GiB: the most to read of a clip for frames that the path enlarges
_KEPT = 0.99  # share of the picture below which a crop is told
_LEFT_OUT = 0.1  # share of the clip above which frames that are not used are told


@contextlib.contextmanager
def compilation(config):
    """How programs are compiled for the time of a run.

    They are kept on disk, unless the configuration or the user's JAX say otherwise.
    """
    if config.output.compilation_cache and not jax.config.jax_compilation_cache_dir:
        folder = pathlib.Path.home() / ".cache" / "recapture_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # JAX keeps what took a second; a preview is a hundred programs of a twentieth.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", before or config.output.fast_compile)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def plain(config) -> dict[str, Any]:
    """A ConfigDict as JSON-able data."""
    return json.loads(config.to_json())


def folder_name(text: str) -> str:
    """The text with everything but letters, digits and `_.+-` replaced by '-'."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-")


def move_name(camera) -> str:
    """What a run of this `camera` group is called after."""
    name = pathlib.Path(camera.path).stem if camera.path else camera.moves
    return f"{name}; {camera.time}" if camera.time else name


def folder_stem(clip: str, camera) -> str:
    """What the folder of a run of this `camera` group over a clip is called after."""
    return f"{clip}-{move_name(camera)[:_LONGEST_NAME]}"


class FirstStage:
    """Clip, depth and anchor of a configuration, from the cache or computed.

    Attributes (after `read`): source, the clip as it was read; clip, at the size the model works
    at, its frame t being frame `shown[t]` of the source (`config.camera.time`; `time` has it in
    words); camera, the one that filmed the source; clip_name; inputs, the hashes of what was read.
    After `depth`: depth_report, what is said of it. stages: each stage done so far to
    'computed' or 'cached'.
    """

    def __init__(self, config, model_config: dict):
        """model_config: `num_frames` and `vae.block_out_channels` of the model that will follow."""
        self.config = config
        self.model_config = model_config
        self.groups = plain(config)
        self.root = storage.folder(config.output.root)
        own = config.output.cache
        self.cache_folder = storage.folder(own) if own else self.root / "cache"
        self.cache = caching.StageCache(self.cache_folder)
        self.watch = progress.Stopwatch()
        self.stages: dict[str, str] = {}

    def read(self) -> None:
        """Reads the clip and fits it to the model's size.

        Raises:
          InputError: no such clip or depth file, too few frames, sizes the model cannot take, a time
            that the clip does not have.
        """
        video, model_frames = self.config.video, int(self.model_config["num_frames"])
        path = configuration.resolve_path(video.path)
        factor = 2 ** (len(self.model_config["vae"]["block_out_channels"]) - 1)
        if video.multiple % factor:
            raise InputError(
                f"config.video.multiple={video.multiple}: expected a multiple of {factor}, the pixels of one latent"
            )
        self.source = read_clip(
            path,
            video.num_frames or model_frames,
            video.start,
            video.stride,
            size=self._size_to_read,
            at_most=not video.num_frames,
        )
        self._say_what_is_left_out()
        time = self.config.camera.time or "play", self.source.num_frames
        self.shown, self.time = source_frames(*time), describe_time(*time)
        model = self.config.model
        starts, length = plan_windows(
            len(self.shown), model_frames, model.window, model.window_overlap
        )
        if len(starts) > 1:
            progress.say(f"{len(self.shown)} frames, in {len(starts)} windows of {length}")
        size = self._model_size(self.source.origin.size)
        frames, self.fit = resize.resize_to_cover_and_crop(self.source.frames, size)
        kept = resize.cover(self.source.origin.size, size).kept
        if kept < _KEPT:
            progress.say(
                f"{1 - kept:.0%} of the picture is cropped at its edges, to {size[1]}x{size[0]} pixels "
                f"(multiples of config.video.multiple={video.multiple})"
            )
        self.clip_name = source.clip_name(self.config)
        self.clip_hash = caching.file_hash(path)
        self.inputs = {
            "clip": self.clip_hash,
            "frames": self.source.num_frames,  # the configuration may leave it to the model
            "version": recapture_jax.__version__,
            "backend": jax.default_backend(),
            **self._file_hashes(),
        }
        self.camera = source.camera(self.config, self.source)
        progress.say(self.camera.said)
        self.clip = dataclasses.replace(
            self.source,
            frames=np.asarray(frames, np.float32),
            intrinsics=self.fit.intrinsics(self.camera.intrinsics),
        ).shown(self.shown)
        if processes.is_main():
            for name, folder in (("root", self.root), ("cache", self.cache_folder)):
                storage.check_writable(folder, f"config.output.{name}")

    def _say_what_is_left_out(self) -> None:
        """A clip is as long as the model's unless the configuration says otherwise, which few people expect."""
        video, used = self.config.video, self.source.num_frames
        total = self.source.origin.num_frames
        end = video.start + video.stride * (used - 1) + 1
        if not video.num_frames and total - end > _LEFT_OUT * total:
            rest, seconds = total - video.start, used / float(self.source.fps)
            said = (
                f"{used} of the clip's {total} frames are used, {seconds:.2f} seconds; for all of them, in windows: "
                f"--config.video.num_frames={-(-rest // video.stride)}"
            )
            if (stride := rest // used) > video.stride:
                said += f"; for as many, spread over it: --config.video.stride={stride}"
            progress.say(said)

    def _model_size(self, file_size: tuple[int, int]) -> tuple[int, int]:
        video = self.config.video
        return resize.fit_size(*file_size, short_side=video.short_side, multiple=video.multiple)

    def _size_to_read(self, file_size: tuple[int, int]) -> tuple[int, int]:
        """From which the model's size is cut without resampling a second time, unless that is very small."""
        size = self._model_size(file_size)
        if 4 * math.prod(size) < _SOURCE_PIXELS:
            return resize.within(file_size, _SOURCE_PIXELS)
        found = resize.covering(file_size, size)
        return found if math.prod(found) <= math.prod(file_size) else file_size

    def _file_hashes(self) -> dict[str, Any]:
        """Of what the configuration names besides the clip, as far as the run depends on it."""
        files = {"camera.path": "path", "camera.poses": "poses", "depth.sky_mask": "sky"}
        if self.config.depth.estimator != "fastdepth":
            files["depth.path"] = "depth"
        hashes = {}
        for field, name in files.items():
            if value := configuration.get(self.config, field):
                file = configuration.resolve_path(value)
                if not file.exists():
                    raise InputError(f"config.{field}={file}: no such file or folder")
                folder = source.depth_folder(self.config) if name == "depth" else None
                if folder:
                    used = folder.files
                elif (record := file / "source.json").is_file():
                    # A converted network: what the converter recorded of its source, and how it is to be read.
                    used = file / "config.json", record
                else:
                    used = colmap.files(file)
                hashes[name] = [caching.file_hash(f) for f in used]
        return hashes

    def depth(self) -> base.DepthMap:
        """Depth of the clip, at its size: estimated or read, evened out over the source's time.

        Raises:
          InputError: an unreadable depth file, or one of another clip.
        """
        depth = self._source_depth()
        sky = None if depth.sky is None else depth.sky[self.shown]
        self.depth_report = source.depth_report(self.config, depth)
        return dataclasses.replace(depth, depth=depth.depth[self.shown], sky=sky)

    def _source_depth(self) -> base.DepthMap:
        """Depth of the source, at the size of the clip; the same whatever the camera group says."""
        names = ("clip", "frames", "depth", "sky", "version")
        inputs = {k: v for k, v in self.inputs.items() if k in names}
        groups, posed = self.parts("video", "depth"), bool(self.config.camera.poses)
        key = caching.key("depth", inputs=inputs, groups=groups, posed=posed)
        if self.cache.has("depth", key):
            self.stages["depth"] = "cached"
            stored = caching.load_arrays(self.cache.entry("depth", key) / "depth.npz")
            sky = stored["sky"] if stored["sky"].size else None
            said = str(stored["kind"]), str(stored["source"])
            return base.DepthMap(stored["depth"], *said, sky=sky)
        with self.stage("depth"):
            depth = source.depth(self.config, self.source, self.camera.poses is not None)
            fitted = np.asarray(resize.resize_depth(np.asarray(depth.depth), self.fit), np.float32)
            sky = None if depth.sky is None else resize.resize_depth(depth.sky, self.fit)
            depth = base.DepthMap(fitted, depth.kind, depth.source, sky=sky)
            with self.cache.writing("depth", key) as folder:
                arrays = {
                    "depth": depth.depth,
                    "kind": np.array(depth.kind),
                    "source": np.array(depth.source),
                    "sky": np.zeros(0, bool) if sky is None else sky,
                }
                caching.save_arrays(folder / "depth.npz", arrays)
        return depth

    def plan(self, camera, depth: base.DepthMap) -> Trajectory:
        """The cameras of a `camera` group for this clip.

        Raises:
          InputError: as `stages.anchor.plan_trajectory`.
        """
        sources, frames = self.source.num_frames, self.camera.frames
        return anchor_stage.plan_trajectory(
            camera, self.clip, depth, frames.start, frames.step, sources, self.camera.poses
        )

    def anchor(self, depth: base.DepthMap) -> Anchor:
        """The clip along the new camera path.

        Raises:
          InputError: as `stages.anchor.plan_trajectory` and `stages.anchor.render`.
        """
        path = self.plan(self.config.camera, depth)
        names = ("clip", "frames", "depth", "sky", "path", "poses", "version", "backend")
        inputs = {k: v for k, v in self.inputs.items() if k in names}
        self.anchor_key = caching.key(
            "anchor", inputs=inputs, groups=self.parts("video", "camera", "depth", "anchor")
        )
        names = ("frames", "mask", "raw_mask")
        if self.cache.has("anchor", self.anchor_key):
            self.stages["anchor"] = "cached"
            stored = caching.load_arrays(self.cache.entry("anchor", self.anchor_key) / "anchor.npz")
            return Anchor(*(stored[n] for n in names), path)
        with self.stage("anchor"):
            anchor = anchor_stage.render(self.config.anchor, self.clip, depth, path, self._finer)
            with self.cache.writing("anchor", self.anchor_key) as folder:
                caching.save_arrays(folder / "anchor.npz", {n: getattr(anchor, n) for n in names})
        return anchor

    def _finer(self, frames: np.ndarray) -> Iterator[np.ndarray]:
        """These frames of the clip with more pixels, from its file if that is not too much to read at once."""
        video, count = self.config.video, self.source.num_frames
        size = tuple(anchor_stage.DETAIL * side for side in self.clip.size)
        if count * math.prod(size) > _FINER_PIXELS:
            progress.say(
                f"{count} frames are too many to read at {size[1]}x{size[0]}: what the move enlarges is less sharp"
            )
            return anchor_stage.resampled(self.clip, frames)
        wanted = resize.covering(self.source.origin.size, size)
        path = configuration.resolve_path(video.path)
        clip = read_clip(
            path, count, video.start, video.stride, size=wanted, with_audio=False, at_most=True
        )
        return (
            resize.resize_to_cover_and_crop(clip.frames[t], size)[0] for t in self.shown[frames]
        )

    def parts(self, *names: str) -> dict[str, Any]:
        """Groups of the configuration as JSON-able data, for cache keys."""
        return {name: self.groups[name] for name in sorted(names)}

    @contextlib.contextmanager
    def stage(self, name: str):
        """Times a stage and records that it was computed."""
        self.stages[name] = "computed"
        with self.watch.stage(name):
            yield

"""Stage 2: the two LoRAs of a clip and a camera path (masked video fine-tuning)."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from recapture_jax import progress, sharding, storage
from recapture_jax.checkpoints import TrainCheckpoints
from recapture_jax.diffusion.guidance import Conditioning, unconditional
from recapture_jax.diffusion.windows import plan_windows
from recapture_jax.errors import InputError
from recapture_jax.geometry.masks import mean_pool, min_pool
from recapture_jax.lora import tree as lora_tree
from recapture_jax.stages.anchor import Anchor
from recapture_jax.stages.video_model import VideoModel
from recapture_jax.tuning import loop
from recapture_jax.tuning.step import (
    AnchorData,
    Settings,
    SourceData,
    batched,
    init_state,
    make_step,
    stack_states,
)

CROPS = 2  # random crops of the source beside the whole frames, each with its mirror image
_SMALLEST_CROP = 0.7
Box: TypeAlias = tuple[slice, slice]  # rows and columns


def settings(tune, stride: int) -> Settings:
    """The step's numbers from the `tune` group; stride: latents per position at the U-Net's bottom."""
    return Settings(
        learning_rate=tune.learning_rate,
        spatial_rate=tune.spatial_rate,
        weight_decay=tune.weight_decay,
        loss=tune.loss,
        temporal_weight=tune.temporal_weight,
        spatial_weight=tune.spatial_weight,
        sigma_mean=tune.sigma_mean,
        sigma_std=tune.sigma_std,
        draws=tune.draws,
        frames=tune.frames_per_step,
        window=tune.window,
        stride=stride,
    )


def seed_of(trained: tuple[str, ...], config) -> int:
    """The seed of a fit: `tune.spatial_seed` is that of a spatial LoRA by itself, if it is one."""
    tune = config.tune
    alone = trained == ("spatial",) and tune.schedule == "spatial_first"
    return tune.spatial_seed if alone and tune.spatial_seed >= 0 else config.seed


def condition_on(
    model: VideoModel, image: jax.Array, num_frames: int, config, key: jax.Array
) -> Conditioning:
    """The conditioning tuning and sampling share; `config` is the `generate` group."""
    return model.condition(
        image,
        num_frames,
        fps=config.fps,
        motion_bucket=config.motion_bucket,
        noise_aug=config.noise_aug,
        key=key,
    )


def known_mask(model: VideoModel, anchor: Anchor, rule: str = "all") -> jax.Array:
    """`[1, T, h, w]`: the latents of the anchor that count as known.

    `rule`: 'all', those whose pixels are all known (bool); 'any', those with one that is (bool); 'share',
    weights, the share of their pixels that is known (float32).
    """
    mask = jnp.asarray(anchor.mask)
    if rule == "all":
        return min_pool(mask, model.factor)[None]
    share = mean_pool(mask, model.factor)[None]
    return share if rule == "share" else share > 0


def learnable_mask(model: VideoModel, anchor: Anchor, rule: str) -> jax.Array:
    """`known_mask`, where there is something to learn the motion from.

    Raises:
      InputError: if no latent of the whole anchor is known.
    """
    mask = known_mask(model, anchor, rule)
    if not bool(mask.any()):
        raise InputError(
            "the anchor has no latent that is fully known, so there is nothing to learn the motion from; "
            "take a smaller move (config.camera.moves) or a smaller config.anchor.erode"
        )
    return mask


def windows_of(model: VideoModel, num_frames: int, group) -> tuple[np.ndarray, int]:
    """First frames `[K]` and length of the windows in which the model sees a clip.

    Args:
      num_frames: of the clip.
      group: the `model` group.

    Raises:
      InputError: windows that do not advance.
    """
    trained = int(model.config["num_frames"])
    return plan_windows(num_frames, trained, group.window, group.window_overlap)


def window_conditions(
    model: VideoModel, anchor: Anchor, starts: np.ndarray, length: int, generate, seed: int
) -> Conditioning:
    """Conditioning of each window on its own first frame, batch K; tuning and sampling share it."""
    base = jax.random.fold_in(jax.random.key(seed), 2**20)
    keys = [base, *(jax.random.fold_in(base, k) for k in range(1, len(starts)))]
    conds = [
        condition_on(model, jnp.asarray(anchor.frames[start]), length, generate, key)
        for start, key in zip(starts, keys, strict=True)
    ]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *conds)


def anchor_data(model: VideoModel, anchor: Anchor, config) -> AnchorData:
    """Encodes the anchor once; `config` is the whole configuration.

    Raises:
      InputError: as `learnable_mask`.
    """
    mask = learnable_mask(model, anchor, config.tune.known)
    starts, length = windows_of(model, len(anchor.frames), config.model)
    frames = starts[:, None] + np.arange(length)
    latents = model.encode_video(jnp.asarray(anchor.frames))
    cond = window_conditions(model, anchor, starts, length, config.generate, config.seed)
    return AnchorData(latents[frames], mask[0][frames], cond)


def source_data(model: VideoModel, frames: np.ndarray, tune, generate, seed: int) -> SourceData:
    """Encodes the source frames and their augmentations once.

    Each version is one transform of the whole clip, so its frames share their geometry, as the frames of
    a clip do. The paper does not say what a spatial step is conditioned on; `tune.spatial_condition`:
    'first', the first frame of the same version, as a clip's frames are; 'frame', the frame itself;
    'none', no image, as in the unconditional half of guidance.
    """
    frames, rng = np.asarray(frames), np.random.default_rng(seed)
    boxes: list[Box | None] = [None]
    if tune.augment:
        boxes += [_random_box(frames.shape[1:3], rng) for _ in range(CROPS)]
    versions = [(box, flip) for flip in (False, True)[: 1 + tune.augment] for box in boxes]
    latents, conds = [], []
    for i, version in enumerate(versions):  # one at a time, for a long clip fills the device
        key = jax.random.fold_in(jax.random.key(seed), 2**20 + 1 + i)
        version = _version(frames, *version)
        latents.append(model.encode_video(version))
        images = version if tune.spatial_condition == "frame" else version[:1]
        conds += [condition_on(model, image, 1, generate, key) for image in images]
    cond = jax.tree.map(lambda *x: jnp.concatenate(x), *conds)
    cond = unconditional(cond) if tune.spatial_condition == "none" else cond
    return SourceData(jnp.stack(latents), cond)


def _random_box(size: tuple[int, int], rng: np.random.Generator) -> Box:
    """0.7 to 1 of each side at a random place: the aspect is kept."""
    height, width = size
    share = rng.uniform(_SMALLEST_CROP, 1.0)
    h, w = max(2, round(share * height)), max(2, round(share * width))
    y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
    return slice(y, y + h), slice(x, x + w)


def _version(frames: np.ndarray, box: Box | None, flip: bool) -> jax.Array:
    """The clip, or a part of it at its size, perhaps mirrored."""
    version = jnp.asarray(frames if box is None else frames[:, *box])
    if box is not None:
        version = jnp.clip(jax.image.resize(version, frames.shape, "cubic"), 0.0, 1.0)
    return version[:, :, ::-1] if flip else version


@dataclasses.dataclass(frozen=True)
class Tuner:
    """Fits LoRAs to prepared data.

    Attributes:
      model: the video model; its U-Net parameters are frozen.
      config: the whole configuration.
      mesh: devices.
    """

    model: VideoModel
    config: Any
    mesh: jax.sharding.Mesh

    def init(self, kind: str, seed: int) -> lora_tree.Lora:
        """New deltas of one kind ('spatial' or 'temporal')."""
        key = jax.random.fold_in(jax.random.key(seed), 1 if kind == "spatial" else 2)
        targets = self.config.lora[f"{kind}_targets"]
        return lora_tree.init(key, self.model.params["unet"], targets, self.config.lora.rank)

    def fit(
        self,
        trained: tuple[str, ...],
        data: Mapping,
        frozen: Mapping,
        *,
        label: str,
        folder: pathlib.Path | None,
        mirror: storage.Folder | None = None,
        metrics: progress.Metrics | None,
        seeds: Sequence[int] = (),
    ) -> tuple[dict[str, lora_tree.Lora], dict]:
        """Fits the LoRAs named in `trained`, resuming from checkpoints in `folder`, or in its `mirror`.

        Args:
          trained: kinds.
          data: 'source' and 'anchor', as far as they are needed.
          frozen: LoRAs by kind that are there already.
          label: of the progress bar and of the metrics' records.
          folder: of the checkpoints.
          mirror: see `TrainCheckpoints`.
          metrics: records of the losses.
          seeds: of trajectories that are tuned in one step; `data` has them as a leading axis. Without any there
            is one, with the seed of the configuration.

        Returns:
          The LoRAs by kind, with that axis if there is one, and the loop's record.
        """
        tune = self.config.tune
        over = sharding.axis_of_trajectories(self.mesh.shape, len(seeds))
        if "anchor" in data:
            frames = data["anchor"].latents.shape[-4]
            used = sharding.devices_used(self.mesh.shape, tune.draws, frames, over)
            _say_what_is_idle(self.mesh, used, frames)
        numbers = settings(tune, self.model.networks.unet.config.stride)
        states = [
            init_state({kind: self.init(kind, seed) for kind in trained}, numbers, seed)
            for seed in seeds or (seed_of(trained, self.config),)
        ]
        state = stack_states(states) if seeds else states[0]
        step = _step(self.model.networks, numbers, trained, self.mesh, over, bool(seeds))
        with contextlib.ExitStack() as stack:
            checkpoints = None
            if folder is not None:
                checkpoints = stack.enter_context(
                    TrainCheckpoints(folder, tune.checkpoint_every, keep=2, mirror=mirror)
                )
            state, record = loop.fit(
                step,
                state,
                frozen,
                self.model.params["unet"],
                data,
                steps=tune.steps,
                mesh=self.mesh,
                label=label,
                checkpoints=checkpoints,
                checkpoint_every=tune.checkpoint_every,
                metrics=metrics,
            )
        return jax.device_get(state["lora"]), record


@functools.lru_cache(maxsize=8)  # as many as `loop` keeps compiled
def _step(networks, numbers: Settings, trained: tuple[str, ...], mesh, over, together: bool):
    """One function for all fits that are alike, so that it compiles once."""
    place = sharding.Placement(mesh, over)
    network = functools.partial(VideoModel(networks, {}, {}).network, place=place)
    step = make_step(network, numbers, trained, place)
    return batched(step, over) if together else step


def _say_what_is_idle(mesh: jax.sharding.Mesh, used: int, frames: int) -> None:
    if used < mesh.size:
        progress.say(
            f"tuning uses {used} of {mesh.size} devices: set config.mesh.frames to what divides {frames} frames, and "
            "config.tune.draws (noise draws of a step) to a multiple of the devices left for data and fsdp"
        )

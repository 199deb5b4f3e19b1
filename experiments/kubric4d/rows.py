"""The rows of the table: clips made from a source clip, its depth and the move.

Rows without a model come first; those with one go through the stages of a run, each with one
component more than the row before it.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import command
from experiments.kubric4d.protocol import Sample
from recapture_jax import config as configuration
from recapture_jax import sharding
from recapture_jax.depth.base import DepthMap
from recapture_jax.evaluation.optional import require
from recapture_jax.stages import anchor as anchor_stage
from recapture_jax.stages import generate as generate_stage
from recapture_jax.stages import tune as tune_stage
from recapture_jax.stages.anchor import Anchor
from recapture_jax.stages.video_model import VideoModel
from recapture_jax.video import resize
from recapture_jax.video.clip import Clip

CLASSICAL = ("source", "reprojection", "filled", "inpainted")
LADDER = ("vanilla", "temporal_unmasked", "temporal", "spatial", "full")
"""Rows sampled as the configuration says, each with one component more than the one before."""
FREE = tuple(f"free_{row}" for row in LADDER)
"""The same, sampled as the paper does: nothing but the LoRAs ties the sampler to the anchor."""
MODEL = (*LADDER, *FREE)
LABELS = {
    "source": "source copied",
    "reprojection": "point-cloud reprojection",
    "filled": "anchor, holes filled smoothly",
    "inpainted": "anchor, biharmonic inpainting",
    "vanilla": "image-to-video prior",
    "temporal_unmasked": "+ temporal LoRA, no mask",
    "temporal": "+ temporal LoRA, masked",
    "spatial": "+ spatial LoRA",
    "full": "+ SDEdit: full method",
}
LABELS |= {free: f"free: {LABELS[row]}" for row, free in zip(LADDER, FREE, strict=True)}
COMPARED = (
    *zip(LADDER[1:], LADDER, strict=False),
    *(("full", row) for row in ("source", "filled", "inpainted")),
    *zip(FREE[1:], FREE, strict=False),
)
"""Pairs (row, the row it is compared with): each component, and the whole against what needs no model."""
FPS = 24.0


def configured(variant: str, changes: Sequence[str] = ()) -> ConfigDict:
    """The configuration of the rows; changes: each "group.field=value".

    Raises:
        InputError: no such field, or a bad value.
    """
    config = configuration.default_config(variant)
    config.anchor.tearing = 0.0  # the depth is exact, so nothing is torn
    for assignment in changes:
        command.change(config, assignment)
    configuration.validate(config)
    return config


def groups(config: ConfigDict) -> dict:
    """What of a configuration the rows depend on, as JSON has it."""
    told = json.loads(config.to_json())
    return {n: told[n] for n in ("anchor", "model", "lora", "tune", "generate", "seed")}


def anchor_of(sample: Sample, config: ConfigDict) -> Anchor:
    """The anchor stage of a run on the sample, with its exact depth.

    Raises:
        InputError: nothing of the source is in view in some frame.
    """
    clip = Clip(sample.source, FPS, intrinsics=sample.intrinsics)
    depth = DepthMap(sample.depth, "metric", "recorded")
    return anchor_stage.render(config.anchor, clip, depth, sample.trajectory())


def inpaint(frames: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Unknown pixels filled by scikit-image's biharmonic inpainting, frame by frame.

    Args:
        frames: `[T, H, W, 3]` in [0, 1]; known: `[T, H, W]` bool.

    Raises:
        InputError: scikit-image is not installed.
    """
    restoration = require("skimage.restoration", "scikit-image", "the row 'inpainted'")
    filled = []
    for frame, mask in zip(frames, known, strict=True):
        image = np.where(mask[..., None], frame, 0.0)
        filled.append(restoration.inpaint_biharmonic(image, ~mask, channel_axis=-1))
    return np.clip(np.stack(filled), 0.0, 1.0).astype(np.float32)


def classical(sample: Sample, config: ConfigDict) -> dict[str, Callable[[], np.ndarray]]:
    """A function per row of `CLASSICAL` that makes its frames `[T, H, W, 3]`."""
    anchor = Lazy(lambda: anchor_of(sample, config))

    def reprojected():
        return np.where(anchor().raw_mask[..., None], anchor().frames, 0.0)

    return {
        "source": lambda: sample.source,
        "reprojection": reprojected,
        "filled": lambda: anchor().frames,
        "inpainted": lambda: inpaint(anchor().frames, anchor().raw_mask),
    }


class Lazy:
    """The result of a function, computed when it is first asked for."""

    def __init__(self, make: Callable):
        self._make, self._done = make, None

    def __call__(self):
        if self._done is None:
            self._done = self._make()
        return self._done


def at_size(sample: Sample, size: tuple[int, int]) -> Sample:
    """The sample's inputs at another (height, width) of the same aspect; the truth stays behind."""
    fit = resize.cover(sample.source.shape[1:3], size)
    return dataclasses.replace(
        sample,
        source=resize.apply_fit(sample.source, fit),
        depth=resize.resize_depth(sample.depth, fit),
        intrinsics=fit.intrinsics(sample.intrinsics),
    )


class ModelRows:
    """The rows of `MODEL` for one sample; LoRAs that rows share are fitted once.

    Args:
        model: video model.
        config: configuration of a run; its tuning fits every LoRA for `tune.steps`.
        sample: of any size; results come back at its size.
        size: (height, width) the model works at.

    Attributes:
        fitted: LoRAs by name, each with the seconds it took; one put there is not fitted again.
    """

    def __init__(
        self, model: VideoModel, config: ConfigDict, sample: Sample, size: tuple[int, int]
    ):
        self.model, self.config = model, config
        self.output_size = sample.source.shape[1:3]
        self.sample = at_size(sample, size)
        self.anchor = Lazy(lambda: anchor_of(self.sample, config))
        self.fitted: dict[str, tuple[dict, float]] = {}

    def frames(self, row: str, generate: ConfigDict | None = None) -> tuple[np.ndarray, float]:
        """The clip of a row, `[T, H, W, 3]` in [0, 1] at the sample's size, and what it took before this call:
        seconds of its LoRAs that another row has had fitted.

        generate: how it is sampled; None: as the configuration says.
        """
        generate = ConfigDict(generate or self.config.generate)
        if row in FREE:
            row = LADDER[FREE.index(row)]
            generate.known_weight, generate.keep_pixels = 0.0, False
        names = {}  # of the LoRAs by kind, the spatial one first: the other is fitted beside it
        if row in ("temporal", "temporal_unmasked"):
            names = {"temporal": row}
        elif row != "vanilla":
            names = {"spatial": "spatial", "temporal": "temporal_beside_spatial"}
        before = sum(self.fitted[n][1] for n in names.values() if n in self.fitted)
        loras = {kind: self._lora(name) for kind, name in names.items()}
        if row != "full":
            generate.sdedit_sigma = 0.0
        args = (self.config.model, generate, self.config.seed)
        made = generate_stage.generate(self.model, self.anchor(), loras, *args)
        return resize.resize(made, self.output_size), before

    def _lora(self, name: str) -> dict:
        if name not in self.fitted:
            begin = time.perf_counter()
            lora = self._fit(name)
            self.fitted[name] = lora, time.perf_counter() - begin
        return self.fitted[name][0]

    def _fit(self, name: str) -> dict:
        cfg, anchor = self.config, self.anchor()
        if name == "spatial":
            source = self.sample.source
            data = tune_stage.source_data(self.model, source, cfg.tune, cfg.generate, cfg.seed)
            return self._tuned("spatial", {"source": data}, {})
        if name == "temporal_unmasked":
            anchor = dataclasses.replace(anchor, mask=np.ones_like(anchor.mask))
        data = tune_stage.anchor_data(self.model, anchor, cfg)
        frozen = {"spatial": self._lora("spatial")} if name == "temporal_beside_spatial" else {}
        return self._tuned("temporal", {"anchor": data}, frozen)

    def _tuned(self, kind: str, data: dict, frozen: dict) -> dict:
        tuner = tune_stage.Tuner(self.model, self.config, sharding.make_mesh(1))
        fitted, _ = tuner.fit((kind,), data, frozen, label=kind, folder=None, metrics=None)
        return jax.device_get(fitted[kind])

"""What every experiment on rendered scenes is told, and how it measures clips of a scene."""

import functools
import time
from collections.abc import Callable, Sequence

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import command
from experiments.kubric4d import protocol, rows
from experiments.kubric4d.controls import Control
from experiments.kubric4d.protocol import SIZES, Sample
from experiments.kubric4d.records import Records
from recapture_jax import cache, weights
from recapture_jax import config as configuration
from recapture_jax.progress import say
from recapture_jax.scenes import photos
from recapture_jax.stages.video_model import VideoModel


def define_flags(values: flags.FlagValues, splits: Sequence[str], out: str) -> None:
    """The flags of scenes, configuration and results.

    Args:
        splits: that may be asked for, the default first.
        out: default folder of the results.
    """
    own = {"flag_values": values}
    whole, pick = flags.DEFINE_integer, flags.DEFINE_enum
    whole("scenes", 2, "how many", lower_bound=1, **own)
    whole("first", 0, "number of the first; Kubric-4D's test split: 2900", lower_bound=0, **own)
    whole("seed", 0, "of rendered scenes and drawn moves", lower_bound=0, **own)
    pick("split", splits[0], splits, "of rendered scenes", **own)
    told = "folder of photographs for some surfaces of rendered scenes; none: procedural ones only"
    command.define_path("textures", None, told, values)
    pick("size", "small", list(SIZES), "full is the published protocol", **own)
    pick("variant", "small", list(configuration.VARIANTS), "of the configuration", **own)
    changes = "group.field=value of the configuration, as lora.rank=4; may be repeated"
    flags.DEFINE_multi_string("set", [], changes, **own)
    command.define_path("out", out, "folder of the results", values)


def names(given: flags.FlagValues) -> list[str]:
    """Names of the scenes asked for."""
    return [f"scn{i:05d}" for i in range(given.first, given.first + given.scenes)]


def settings(given: flags.FlagValues, config: ConfigDict, lpips: Sequence[str]) -> dict:
    """What all records of a folder share."""
    what = f"rendered, {given.split} split, seed {given.seed}"
    if given.textures:
        what += f", photographs {cache.file_hash(given.textures)[:12]}"
    model = configuration.resolve_path(config.model.path)
    return {
        "size": list(SIZES[given.size]),
        "data": what,
        "model": cache.model_hash(model)[-12:] if model.is_dir() else "none",
        "lpips": list(lpips),
        "config": rows.groups(config),
    }


def source(given: flags.FlagValues) -> Callable[[str, Control], Sample]:
    """From a scene's name and its move to the sample.

    Raises:
        InputError: the folder of photographs cannot be used.
    """
    textures = photos.load(given.textures) if given.textures else None

    def make(name: str, control: Control) -> Sample:
        index, size = int(name.removeprefix("scn")), SIZES[given.size]
        return protocol.rendered_sample(index, control, size, given.split, given.seed, textures)

    return make


def models() -> Callable[[str], VideoModel]:
    """From `config.model.path` to the video model, each loaded when it is first asked for."""
    return functools.cache(lambda path: weights.load_model(configuration.resolve_path(path)))


def measure(
    records: Records,
    key: tuple[str, str, str],
    make: Callable[[], tuple[np.ndarray, float]],
    measures: Callable[[np.ndarray], dict],
    **more,
) -> np.ndarray:
    """Makes a clip, records what is measured of it and returns it.

    Args:
        records: where to.
        key: scene, sample and row.
        make: the clip, whose time is taken, and the seconds that it had cost before.
        measures: as `protocol.judge` returns it.
        more: of the record.
    """
    begin = time.perf_counter()
    frames, before = make()
    seconds = time.perf_counter() - begin + before
    record = dict(zip(("scene", "sample", "row"), key, strict=True))
    records.add(record | more | {"seconds": seconds} | measures(frames))
    say(f"{' '.join(key)}: {seconds:.1f} s")
    return frames

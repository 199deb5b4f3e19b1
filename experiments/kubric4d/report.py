"""The tables of a run: means over scenes with 95 % intervals, and paired differences of rows."""

import collections

import numpy as np

from experiments.kubric4d.rows import CLASSICAL, COMPARED, LABELS, MODEL
from recapture_jax.evaluation.images import AVERAGES, mean_over_frames
from recapture_jax.evaluation.intervals import interval, text

MEASURES = ("psnr_all", "ssim_all", "lpips_*_all", "psnr_occ", "ssim_occ", "lpips_*_occ")
DIGITS = {"psnr": 2, "ssim": 3, "lpips": 3}
Values = dict[str, dict[str, dict[str, float]]]


def by_scene(records: list[dict], average: str) -> Values:
    """{row: {measure: {scene: value}}}; a scene's value is the mean over its samples.

    Args:
        records: with per-frame "scores" and per-clip "flicker", "seconds" and perhaps "warp".
        average: one of `AVERAGES`.
    """
    collected = collections.defaultdict(lambda: collections.defaultdict(dict))
    for record in records:
        scores = {
            name: [np.nan if v is None else v for v in values]
            for name, values in record["scores"].items()
        }
        means = mean_over_frames(scores, AVERAGES[average])
        means |= {name: record[name] for name in ("flicker", "seconds")}
        if record.get("warp") is not None:
            means["warp"] = 1000.0 * record["warp"]
        for name, value in means.items():
            collected[record["row"]][name].setdefault(record["scene"], []).append(value)
    return {
        row: {
            name: {scene: _mean(values) for scene, values in scenes.items()}
            for name, scenes in measures.items()
        }
        for row, measures in collected.items()
    }


def _mean(values: list[float]) -> float:
    known = [v for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else float("nan")


def columns(values: Values) -> list[str]:
    """The measures that were taken, in the order of the table."""
    taken = {name for measures in values.values() for name in measures}
    found = []
    for wanted in MEASURES:
        head, _, tail = wanted.partition("*")
        found += [wanted] if wanted in taken else []
        found += sorted(n for n in taken if tail and n.startswith(head) and n.endswith(tail))
    return found


def heading(measure: str) -> str:
    """'PSNR all', 'LPIPS-vgg occ'."""
    name, *network, region = measure.split("_")
    return "-".join([name.upper(), *network]) + " " + region


def table(records: list[dict], average: str) -> str:
    """Markdown: a row per method, mean ± half-width of the 95 % interval over scenes."""
    values = by_scene(records, average)
    names = columns(values)
    lines = [
        "| row | " + " | ".join(heading(n) for n in names) + " | flicker | warp | seconds |",
        "|---" * (len(names) + 4) + "|",
    ]
    for row in (*CLASSICAL, *MODEL):
        if row in values:
            cells = [cell(values[row], n, DIGITS[n.split("_")[0]]) for n in names]
            cells += [cell(values[row], "flicker", 3), cell(values[row], "warp", 2)]
            cells.append(f"{_median(values[row]['seconds']):.1f}")
            lines.append(f"| {LABELS[row]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(measures: dict[str, dict[str, float]], name: str, digits: int) -> str:
    """Mean ± half-width of a measure over scenes, '-' where it was not taken."""
    return text(interval(list(measures[name].values())), digits) if name in measures else "-"


def difference(
    new: dict[str, dict[str, float]], old: dict[str, dict[str, float]], name: str, digits: int
) -> str:
    """The same of what a measure gained, paired by scene; bold if the interval excludes zero."""
    after, before = new.get(name, {}), old.get(name, {})
    found = interval([after[s] - before[s] for s in sorted(after.keys() & before.keys())])
    said = text(found, digits)
    return f"**{said}**" if found.excludes_zero else said


def _median(scenes: dict[str, float]) -> float:
    return float(np.median(list(scenes.values())))  # the first scene's holds the compilation


def differences(records: list[dict], average: str) -> str:
    """Markdown: for each pair of `COMPARED` the difference, paired by scene; '' without any.

    An interval that excludes zero is bold.
    """
    values = by_scene(records, average)
    names = columns(values)
    lines = []
    for row, before in COMPARED:
        if row in values and before in values:
            pair = values[row], values[before]
            cells = [difference(*pair, n, DIGITS[n.split("_")[0]]) for n in names]
            lines.append(f"| {LABELS[row]} against {LABELS[before]} | " + " | ".join(cells) + " |")
    if not lines:
        return ""
    head = "| difference | " + " | ".join(heading(n) for n in names) + " |"
    return "\n".join([head, "|---" * (len(names) + 1) + "|", *lines])


def distance_table(distances: dict[str, dict[str, float]]) -> str:
    """Markdown of FVD and FID by row, {row: {'fvd': ..., 'fid': ...}}; '' without any."""
    kinds = sorted({kind for found in distances.values() for kind in found})
    if not kinds:
        return ""
    lines = ["| row | " + " | ".join(k.upper() for k in kinds) + " |", "|---" * (len(kinds) + 1)]
    for row, found in distances.items():
        cells = [f"{found[k]:.1f}" if k in found else "-" for k in kinds]
        lines.append(f"| {LABELS[row]} | " + " | ".join(cells) + " |")
    return "\n".join([lines[0], lines[1] + "|", *lines[2:]])


def document(
    records: list[dict], settings: dict, distances: dict[str, dict[str, float]] | None = None
) -> str:
    """All tables of a run, with what they were made from.

    Args:
        records: of all scenes and rows.
        settings: what they share.
        distances: FVD and FID by row.
    """
    scenes = len({r["scene"] for r in records})
    height, width = settings["size"]
    parts = [
        f"{scenes} scenes, {width}x{height}, truth: {settings['truth']}, controls: "
        f"{settings['controls']}. Mean over scenes ± half-width of the 95 % interval; occ: pixels "
        "the source camera does not see; flicker: 1 is still; warp: error of each frame against the "
        "next one along the truth's exact flow, times 1000; seconds: median of a clip.",
    ]
    for average in ("1-13", "0-13", "last"):
        title = "last frame" if average == "last" else f"frames {average}"
        parts += [f"## {title}", table(records, average)]
        if found := differences(records, average):
            parts += ["Each component, paired by scene; bold: the interval excludes zero.", found]
    if distances and (found := distance_table(distances)):
        said = "Frechet distances to the truth: clips (I3D), frames 1-13 (Inception-v3)"
        parts += ["## Distances of all clips", f"{said}; few clips bias them upwards.", found]
    return "\n\n".join(parts) + "\n"

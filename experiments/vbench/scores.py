"""Scores of exported clips: the public package's, run in its environment, and our own."""

import json
import pathlib
import shutil
import subprocess

import numpy as np

from experiments.vbench import external
from recapture_jax.errors import InputError
from recapture_jax.evaluation.temporal import temporal_flickering
from recapture_jax.video.read import read_clip

DIMENSIONS = {
    "subject_consistency": "Subject",
    "background_consistency": "Background",
    "temporal_flickering": "Flicker",
    "motion_smoothness": "Smoothness",
    "dynamic_degree": "Dynamic",
    "aesthetic_quality": "Aesthetic",
    "imaging_quality": "Imaging",
    "object_class": "Object",
}
"""The eight dimensions of the paper's Table 1, in its order."""
WEIGHTLESS = ("temporal_flickering",)
_PER_CLIP = {"imaging_quality": 100.0}
"""What VBench gives of a clip where it gives 1 of all of them."""
Scores = dict[str, dict[str, float]]  # dimension, clip


def own(copies: dict[str, pathlib.Path]) -> Scores:
    """The dimensions that need no weights, of each clip, from the frames of its file."""
    clips = {name: read_clip(path).frames for name, path in copies.items()}
    return {"temporal_flickering": {n: temporal_flickering(f) for n, f in clips.items()}}


def run(
    python: str,
    folder: pathlib.Path,
    dimensions: tuple[str, ...],
    device: str = "cuda",
    local: bool = False,
) -> Scores:
    """VBench's scores of an exported folder; Object Class only if some clip was given an object.

    Args:
        python: interpreter of the environment that VBench is installed in, with its weights.
        folder: from `export.export`.
        dimensions: names.
        device: for VBench.
        local: take every network from VBENCH_CACHE_DIR; VBench downloads some of them otherwise.

    Raises:
        InputError: no such interpreter, or the package failed; the message has its last line.
    """
    if not json.loads((folder / "full_info.json").read_text()):
        dimensions = tuple(d for d in dimensions if d != "object_class")
    if not dimensions:
        return {}
    shutil.rmtree(folder / "results", ignore_errors=True)  # all that lies there is read
    job = folder / "job.json"
    told = {"folder": str(folder.absolute()), "device": device, "local": local}
    job.write_text(json.dumps(told | {"dimensions": dimensions}))
    try:
        done = subprocess.run([python, external.__file__, str(job)], capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"--python={python} cannot be run: {error.strerror}") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(
            f"VBench failed in the environment of {python}: {last}; it needs the package vbench and "
            "its weights: it downloads them, or with --local finds all of them in VBENCH_CACHE_DIR"
        )
    return read(folder / "results")


def read(folder: pathlib.Path) -> Scores:
    """All `*_eval_results.json` of a folder, per clip.

    Raises:
        InputError: there is none, or one has another form.
    """
    paths = sorted(folder.glob("*_eval_results.json"))
    if not paths:
        raise InputError(f"{folder}: expected VBench's *_eval_results.json")
    scores: Scores = {}
    for path in paths:
        try:
            for dimension, (_, clips) in json.loads(path.read_text()).items():
                one = _PER_CLIP.get(dimension, 1.0)
                scores[dimension] = {
                    pathlib.Path(c["video_path"]).stem: float(c["video_results"]) / one
                    for c in clips
                }
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is no result of VBench: {error!r}") from None
    return scores


def table(rows: dict[str, Scores]) -> str:
    """Markdown in percent: a row per method, the mean over its clips; '-' what was not measured."""
    used = [d for d in DIMENSIONS if any(d in scores for scores in rows.values())]
    lines = [
        "| row | clips | " + " | ".join(DIMENSIONS[d] for d in used) + " |",
        "|---" * (len(used) + 2) + "|",
    ]
    for label, scores in rows.items():
        count = max((len(clips) for clips in scores.values()), default=0)
        cells = [
            f"{100 * np.mean(list(scores[d].values())):.2f}" if scores.get(d) else "-" for d in used
        ]
        lines.append(f"| {label} | {count} | " + " | ".join(cells) + " |")
    return "\n".join(lines)

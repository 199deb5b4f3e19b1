"""Anchors against exact novel views of rendered scenes.

    python -m experiments.oracle [--clips=4] [--dst=table.md]

Every scene gives one frame with exact depth; every move gives the frame that a camera at its end
would really see. `--dst` gets the table, with the command that made it.
"""

import collections
import dataclasses
import time
from collections.abc import Sequence

import numpy as np
from absl import flags

from experiments import command
from experiments.oracle import measure, views
from recapture_jax.errors import InputError
from recapture_jax.stages import anchor

MOVES = (
    *("pan right 5", "pan right 15", "tilt up 4", "tilt up 12", "zoom in 1.5", "zoom in 3"),
    *("zoom out 1.5", "zoom out 3", "dolly in 0.2", "dolly in 0.5", "dolly out 0.3"),
    *("truck right 0.1", "truck right 0.3", "pedestal up 0.1", "pedestal up 0.25"),
    *("orbit right 10", "orbit right 20", "orbit right 35"),
)
SHARED = ("bilinear z-weighted", "ours")
Scores = dict[str, dict[str, list[measure.Score]]]


def run(clips: int, height: int, width: int, seed: int = 0, moves=MOVES) -> tuple[Scores, int]:
    """Scores by move and method, one per scene; and how many views had nothing to show."""
    scores: Scores = collections.defaultdict(lambda: collections.defaultdict(list))
    skipped = 0
    for index in range(clips):
        source = views.source(seed, index, height, width)
        for move in moves:
            path = source.trajectory(move)
            try:
                found = measure.warps(source, path)
            except InputError:  # nothing of the source in view
                skipped += 1
                continue
            truth = source.truth(path)
            for method, (colors, known) in (found | measure.detailed(source, path)).items():
                scores[move][method].append(measure.score(colors, known, truth))
            shared = np.logical_and.reduce([found[method][1] for method in SHARED])
            for method in SHARED:
                score = measure.score(found[method][0], shared, truth)
                scores[move][_shared(method)].append(score)
    return scores, skipped


def _shared(method: str) -> str:
    return f"{method}, shared pixels"


def table(scores: Scores, methods: Sequence[str] = measure.METHODS) -> str:
    """Markdown: per move and method, PSNR in dB / false-known in % / holes in %."""
    lines = ["| move | " + " | ".join(methods) + " |", "|---" * (1 + len(methods)) + "|"]
    everything: dict[str, list[measure.Score]] = collections.defaultdict(list)
    for move, by_method in scores.items():
        lines.append(_row(move, by_method, methods))
        for method, values in by_method.items():
            everything[method] += values
    return "\n".join([*lines, _row("**mean**", everything, methods)])


def _row(label: str, by_method: dict[str, list[measure.Score]], methods: Sequence[str]) -> str:
    cells = []
    for method in methods:
        values = np.array([dataclasses.astuple(s) for s in by_method[method]])
        psnr, false, _ = (
            values[np.isfinite(values[:, 0])].mean(0) if (values[:, 2] < 1).any() else [np.nan] * 3
        )
        holes = values[:, 2].mean()
        cells.append(f"{psnr:.1f} / {100 * false:.2f} / {100 * holes:.1f}")
    return f"| {label} | " + " | ".join(cells) + " |"


def document(scores: Scores, given: flags.FlagValues, skipped: int, seconds: float) -> str:
    """The README of this folder."""
    return f"""# Anchors against exact novel views

Made by `python -m experiments.oracle --clips={given.clips} --height={given.height} --width={given.width}
--seed={given.seed}`, {seconds:.0f} s. {given.clips} rendered scenes; the source frame has exact depth, the target is
the exact view of the camera at the end of the move, at the same moment. Views with nothing of the source in
them: {skipped}.

Each cell: PSNR on known pixels (dB, higher is better) / false-known (% of the known pixels with a channel off by more
than {measure.FALSE} of the full range, lower is better) / holes (% of the frame). A method that declares fewer pixels
known leaves more to the video model, but lies less to it.

* nearest z-buffer: one pixel per point, the nearest wins.
* bilinear z-weighted: the forward warper that most open projects share (`baselines.py`), known = any weight.
* bilinear, mask eroded: the same with {measure.ERODED} pixels taken off the mask at holes, the public code's option.
* ours: the anchor stage of a run, known = raw mask; ours, trusted: the mask that the losses use.
* ours, all points: known = raw mask, without the filter of points on torn depth. The filter is there for the smeared
  edges of depth networks; on exact depth it still keeps the mixed colours of the edge pixels out of the picture.

{table(scores)}

Methods know different pixels: a forward warper that leaves gaps when it enlarges knows those beside its samples, where
any picture is right. So once more, both on the pixels that both know:

{table(scores, [_shared(method) for method in SHARED])}

Frames that a move enlarges by more than {anchor.ENLARGED:g} are splatted from pictures with {anchor.DETAIL} times the
pixels a side. A run takes them from its file; above they are resampled, for nothing else is there. What it gives, with
the number of scenes in which that is so:

{table(_enlarged(scores), measure.DETAILS)}
"""


def _enlarged(scores: Scores) -> Scores:
    """By move and the number of its scenes that it enlarges so much."""
    first = measure.DETAILS[0]
    return {f"{m} ({len(found[first])})": found for m, found in scores.items() if first in found}


def parse(arguments: Sequence[str] | None = None) -> flags.FlagValues:
    """The command line.

    Raises:
        InputError: a bad flag.
    """
    values = flags.FlagValues()
    own = {"flag_values": values}
    whole = flags.DEFINE_integer
    whole("clips", 4, "scenes", lower_bound=1, **own)
    whole("height", 192, "pixels", lower_bound=16, **own)
    whole("width", 320, "pixels", lower_bound=16, **own)
    whole("seed", 0, "of the scenes", lower_bound=0, **own)
    command.define_new_file("dst", "file for the table", values)
    return command.parse(values, arguments, __doc__)


def main(given: flags.FlagValues) -> str:
    """Measures, writes the table to --dst and returns it."""
    begin = time.time()
    scores, skipped = run(given.clips, given.height, given.width, given.seed)
    text = document(scores, given, skipped, time.time() - begin)
    if given.dst:
        given.dst.write_text(text)
    return text


if __name__ == "__main__":
    command.main(lambda: main(parse()))

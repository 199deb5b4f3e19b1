"""Many clips, moves and seeds in one go.

    python -m recapture_jax.matrix --config=configs/orbit.py --move="orbit right 10" --move="dolly in 0.2" \\
        [--video=a.mp4 --video=b.mp4] [--seed=0 --seed=1] [--together=2]

Every combination is a run of its own in outputs/<clip>-<move>-seed<n>/. What combinations share is done once: the
model is loaded and compiled once, depth is found once per clip, the spatial LoRA fitted once per clip (with
`tune.spatial_seed`, by itself the first of the seeds), the anchor made once per clip and move. With --together=N the
temporal LoRAs of up to N moves and seeds of a clip are tuned in one step. A run that fails does not stop the others;
the same command again makes only what is missing. outputs/matrix.json has a line for each: its folder or what was
wrong, and seconds; lines of other runs stay.
"""

import dataclasses
import itertools
import json
import time

from absl import flags
from ml_collections import ConfigDict

from recapture_jax import command, processes, progress, storage
from recapture_jax import config as configuration
from recapture_jax.errors import InputError
from recapture_jax.first_stage import folder_name, folder_stem


@dataclasses.dataclass(frozen=True)
class Row:
    """One combination, the name of its run, and what became of it: `folder` or, if it failed, `error`."""

    name: str
    video: str
    moves: str
    seed: int
    seconds: float
    folder: str = ""
    error: str = ""


def combinations(config, videos: list[str], moves: list[str], seeds: list[int]) -> list[ConfigDict]:
    """A configuration for each combination, moves innermost; an empty list is the configuration's own.

    Raises:
        InputError: a bad configuration, two combinations of the same name, or a video that is not there.
    """
    if moves and config.camera.path:
        raise InputError("--move and config.camera.path exclude each other: give one of them")
    found, names = [], set()
    videos, moves = videos or [config.video.path], moves or [config.camera.moves]
    seeds = seeds or [config.seed]
    for video, seed, move in itertools.product(videos, seeds, moves):
        one = config.copy_and_resolve_references()
        one.video.path, one.seed, one.camera.moves = video, seed, move
        if len(seeds) > 1 and one.tune.spatial_seed < 0:
            one.tune.spatial_seed = seeds[0]
        path = configuration.resolve_path(video)
        if not path.exists():
            raise InputError(f"--video={video}: no such file or folder")
        stem = f"{folder_stem(path.stem, one.camera)}-seed{seed}"
        if config.output.name:
            stem = f"{config.output.name}-{stem}"
        one.output.name = folder_name(stem)
        if one.output.name in names:
            raise InputError(f"two runs would be called {one.output.name}: rename a clip")
        names.add(one.output.name)
        configuration.validate(one)
        found.append(one)
    return found


def run(configs: list[ConfigDict], report: storage.Folder, together: int = 1) -> list[Row]:
    """Runs all of them and keeps `report` (JSON) up to date.

    Args:
        configs: from `combinations`.
        report: the file.
        together: trajectories of a clip that are tuned in one step.

    Raises:
        InputError: some run failed; after all others were made.
    """
    from recapture_jax import pipeline  # a refusal should not wait for the networks
    from recapture_jax import together as batching

    with processes.refusing_together():
        if processes.is_main():
            _told(report)  # refused before any work
    rows: list[Row] = []
    models: dict = {}
    if together > 1:
        batching.tune_together(configs, models, together)
    for number, config in enumerate(configs, 1):
        what = str(config.video.path), str(config.camera.moves), int(config.seed)
        progress.say(f"[{number}/{len(configs)}] {what[0]}; {what[1]}; seed {what[2]}")
        begin, said = time.perf_counter(), {}
        try:
            said["folder"] = str(pipeline.run(config, models).folder)
        except InputError as error:
            said["error"] = " ".join(str(error).split())
            progress.say(f"failed: {said['error']}")
        took = round(time.perf_counter() - begin, 2)
        rows.append(Row(config.output.name, *what, took, **said))
        if processes.is_main():
            _tell(report, rows)
    if failed := [row for row in rows if row.error]:
        raise InputError(
            f"{len(failed)} of {len(rows)} runs failed, the first ({failed[0].moves}): {failed[0].error}; "
            f"all of them in {report}"
        )
    return rows


def _told(report: storage.Folder) -> list[dict]:
    """The rows of a report, none if it is not there.

    Raises:
        InputError: the file is no such report.
    """
    if not report.exists():
        return []
    try:
        return [dict(row) for row in json.loads(report.read_text())]
    except (ValueError, TypeError):
        raise InputError(f"{report} is no report of a matrix: remove or rename it") from None


def _tell(report: storage.Folder, rows: list[Row]) -> None:
    """Puts rows into a report, in place of those of the same names."""
    names = {row.name for row in rows}
    others = [row for row in _told(report) if row.get("name") not in names]
    told = [*others, *(dataclasses.asdict(row) for row in rows)]
    storage.write_text(report, json.dumps(told, indent=1) + "\n")


def _run(config) -> str:
    values = flags.FLAGS
    with processes.refusing_together():
        configs = combinations(config, values.video, values.move, values.seed)
    report = storage.folder(config.output.root) / "matrix.json"
    return "\n".join(f"{row.folder}/result.mp4" for row in run(configs, report, values.together))


def cli() -> None:
    """Entry point of the command."""
    command.run(_run)


if __name__ == "__main__":
    flags.DEFINE_multi_string("video", [], "Clip; may be repeated.")
    flags.DEFINE_multi_string("move", [], "Camera move; may be repeated.")
    flags.DEFINE_multi_integer("seed", [], "Seed; may be repeated.", lower_bound=0)
    flags.DEFINE_integer(
        "together", 1, "Moves and seeds of a clip tuned in one step.", lower_bound=1
    )
    cli()

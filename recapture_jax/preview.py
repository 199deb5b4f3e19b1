"""What a camera path will show of a clip, before any model runs.

    python -m recapture_jax.preview --config=configs/orbit.py [--config.video.path=CLIP.mp4]

Reads the clip, its depth and the anchor with the code and the cache of the run: the run that
follows takes them from there, pixel for pixel. Leaves in outputs/preview-<clip>-<move>/

    sheet.png     source | anchor (black where unknown) | mask, of the first, middle, last and worst frame
    cameras.png   the camera path from above and from the side
    report.json   the numbers, also printed in plain words

No weights are needed: without a model folder the sizes of the configuration's variant are taken.
"""

import dataclasses
import json

import numpy as np
from absl import flags

from recapture_jax import advice as advising
from recapture_jax import command, pictures, storage
from recapture_jax import config as configuration
from recapture_jax.camera.describe import describe
from recapture_jax.depth.base import DepthMap
from recapture_jax.errors import InputError
from recapture_jax.first_stage import FirstStage, compilation, folder_name, folder_stem, move_name
from recapture_jax.stages import anchor as anchor_stage
from recapture_jax.stages.anchor import Anchor
from recapture_jax.video.write import side_by_side, write_png

LIMIT = 0.3  # share of unknown pixels that the advice stays under
# What `first_stage` asks of a model that was not converted yet.
_MODELS = {
    name: {"num_frames": frames, "vae": {"block_out_channels": [128, 256, 512, 512]}}
    for name, frames in (("svd", 14), ("svd_xt", 25))
}


@dataclasses.dataclass(frozen=True)
class Preview:
    """A camera path over a clip.

    Attributes:
        source: `[T, H, W, 3]` float32 in [0, 1], at the size the model works at.
        anchor: what the run would train on.
        report: JSON-able numbers; shares in [0, 1], lengths in pixels, a value per frame.
    """

    source: np.ndarray
    anchor: Anchor
    report: dict

    def __str__(self) -> str:
        return _words(self.report)


def preview(config, limit: float = LIMIT) -> Preview:
    """Depth, anchor and their report for a configuration (`config.default_config`).

    Depth and anchor stay in the cache of the run; nothing else is written.

    Args:
        config: of the run.
        limit: share of unknown pixels, in (0, 1), that the advice stays under.

    Raises:
        InputError: for anything a user can mend.
    """
    if not 0 < limit < 1:
        raise InputError(f"limit {limit}: expected a share of unknown pixels between 0 and 1")
    configuration.validate(config)
    first = FirstStage(config, _model_config(config))
    with compilation(config):
        with first.watch.stage("read"):
            first.read()
        depth = first.depth()
        anchor = first.anchor(depth)
        with first.watch.stage("report"):
            report = _report(first, depth, anchor, limit)
    report["stages"], report["seconds"] = first.stages, first.watch.seconds
    return Preview(np.asarray(first.clip.frames), anchor, report)


def write(result: Preview, folder: storage.Folder, overwrite: bool = False) -> None:
    """Writes the files of a preview into a folder that appears whole or not at all.

    Raises:
        InputError: the folder exists and overwrite is False.
    """
    _refuse_existing(folder, overwrite)
    with storage.atomic_folder(folder, replace=overwrite) as temporary:
        write_png(temporary / "sheet.png", _sheet(result))
        plot = pictures.camera_plot(result.anchor.trajectory, result.source.shape[1:3])
        write_png(temporary / "cameras.png", plot)
        (temporary / "report.json").write_text(json.dumps(result.report, indent=1) + "\n")


def target(config) -> storage.Folder:
    """Where the preview of a configuration goes."""
    clip = configuration.resolve_path(config.video.path).stem
    name = config.output.name or folder_stem(clip, config.camera)
    return storage.folder(config.output.root) / folder_name(f"preview-{name}")


def _model_config(config) -> dict:
    path = configuration.resolve_path(config.model.path)
    if config.variant in _MODELS and not path.exists():
        return _MODELS[config.variant]
    from recapture_jax import weights  # half a second to import, with all networks

    return weights.read_config(path)


def _refuse_existing(folder: storage.Folder, overwrite: bool) -> None:
    if folder.exists() and not overwrite:
        raise InputError(f"{folder} exists; give --overwrite, or another --config.output.name")


def _report(first: FirstStage, depth: DepthMap, anchor: Anchor, limit: float) -> dict:
    config, path = first.config, anchor.trajectory
    intrinsics = np.asarray(first.clip.intrinsics)
    holes = anchor_stage.hole_shares(anchor)
    tearing = anchor_stage.tearing_threshold(config.anchor, first.clip.size)
    parallax, torn = advising.parallax_and_tears(
        depth.depth, intrinsics, path, tearing, depth.surfaces
    )
    magnified = anchor_stage.magnification(depth.depth, intrinsics, path)
    search = advising.HoleSearch(config.anchor, depth.depth, intrinsics, depth.surfaces)

    def plan(sentence: str):
        camera = config.camera.copy_and_resolve_references()
        camera.moves = sentence
        return first.plan(camera, depth)

    if config.camera.path:
        said = advising.as_it_is(path.name, np.asarray(holes), limit)
    else:
        said = advising.advise(config.camera.moves, plan, search, np.asarray(holes), limit)
    return {
        "clip": str(config.video.path),
        "moves": move_name(config.camera),
        "size": list(first.clip.size),
        "frames": first.clip.num_frames,
        "time": first.time,
        "source_frames": first.shown.tolist(),
        "lens": first.camera.said,
        "depth": first.depth_report,
        "pivot_depth": path.pivot_depth,
        "camera": describe(path).splitlines()[1:],
        "worst_frame": int(np.argmax(holes)),
        "hole_share": holes,
        "untrusted_share": [round(float(1 - m.mean()), 4) for m in anchor.mask],
        "longest_hole": advising.longest_holes(anchor.raw_mask),
        "magnification": [round(float(m), 3) for m in magnified],
        "parallax": [round(p, 2) for p in parallax],
        "tear_risk": [round(t, 4) for t in torn],
        "limit": limit,
        "advice": dataclasses.asdict(said),
    }


def _words(report: dict) -> str:
    """The report for a person."""
    height, width = report["size"]

    def worst(name: str) -> tuple[float, int]:
        values = report[name]
        return max(values), int(np.argmax(values))

    hole, at = worst("longest_hole")
    parallax, parallax_at = worst("parallax")
    torn, torn_at = worst("tear_risk")
    grown, grown_at = worst("magnification")
    shares = " ".join(f"{100 * share:.0f}" for share in report["hole_share"])
    return "\n".join(
        [
            f"{report['moves']}: {report['frames']} frames of {height}x{width}, "
            f"pivot at depth {report['pivot_depth']:.3g}",
            "the camera, seen from the source camera of the same frame, in pivot depths:",
            *report["camera"],
            f"time: {'; '.join(report['time'])}",
            *_sky_words(report["depth"]["sky"]),
            f"unknown in each frame: {shares} %",
            f"largest hole: {hole} pixels across (frame {at})",
            f"enlarged: what is in view by up to {grown:.2f} times, on average (frame {grown_at})",
            f"parallax: near and far things part by up to {parallax:.1f} pixels (frame {parallax_at})",
            f"tear risk: up to {100 * torn:.1f} % of the points lie on torn depth, no colour is taken "
            f"(frame {torn_at})",
            f"advice: {report['advice']['text']}",
        ]
    )


def _sky_words(sky: dict) -> list[str]:
    if not sky["share"]:
        return []
    return [f"sky: {100 * sky['share']:.0f} % of the clip, put at depth {sky['depth']:.3g}"]


def _sheet(result: Preview) -> np.ndarray:
    anchor, last = result.anchor, len(result.source) - 1
    picked = {"first": 0, "middle": last // 2, "last": last, "worst": result.report["worst_frame"]}
    rough = np.where(anchor.raw_mask[..., None], anchor.frames, 0.0)
    rows = []
    for label, t in picked.items():
        images = [side_by_side([v[t : t + 1]], 0)[0] for v in (result.source, rough, anchor.mask)]
        share, source = (result.report[name][t] for name in ("hole_share", "source_frames"))
        of = "" if source == t else f" (source frame {source})"
        rows.append((f"{label}: frame {t}{of}, {100 * share:.1f} % unknown", images))
    return pictures.contact_sheet(rows, ("source", "anchor", "mask"))


def _run(config) -> str:
    given = flags.FLAGS
    folder = target(config)
    _refuse_existing(folder, given.overwrite)  # before any work
    result = preview(config, given.limit)
    write(result, folder, given.overwrite)
    return f"{result}\n{folder}"


if __name__ == "__main__":
    flags.DEFINE_bool("overwrite", False, "Replace the preview that is there.")
    flags.DEFINE_float("limit", LIMIT, "Share of unknown pixels that the advice stays under.")
    command.run(_run, alone=True)

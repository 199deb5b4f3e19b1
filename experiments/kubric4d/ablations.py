"""The paper's open questions: what a changed configuration does to the result, on validation scenes.

    python -m experiments.kubric4d.ablations --scenes=10
    python -m experiments.kubric4d.ablations --questions=loss,rank --change=tune.loss=eps,lora.rank=4

Fields of the configuration are changed, and the result is compared with the unchanged one scene by scene: the full
method, sampled as the configuration says and freely, as in the paper (nothing but the LoRAs ties the sampler to the
anchor). A run that was stopped goes on where it was; questions can be added later.
"""

import functools
import json
from collections.abc import Callable, Iterator

from absl import flags
from ml_collections import ConfigDict

from experiments import command
from experiments.kubric4d import controls, generated, protocol, report, rows
from experiments.kubric4d.protocol import SIZES, Sample
from experiments.kubric4d.records import Records
from recapture_jax import config as configuration
from recapture_jax import first_stage
from recapture_jax.errors import InputError
from recapture_jax.evaluation import perceptual

QUESTIONS = {
    "condition": (
        "What image is the spatial step conditioned on? Default of the small prior: the frame itself",
        ("tune.spatial_condition=first", "tune.spatial_condition=none"),
    ),
    "loss": ("v- or eps-weighting of the losses? Default: v", ("tune.loss=eps",)),
    "targets": (
        "Which layers does the temporal LoRA adapt? Default: attention over time alone",
        ("lora.temporal_targets=temporal_all_linear",),
    ),
    "mask": (
        "When is a latent of the anchor known? Default: when all its pixels are",
        ("tune.known=share", "tune.known=any"),
    ),
    "augment": ("Is the source augmented? Default: yes", ("tune.augment=false",)),
    "guidance": (
        "How much guidance? Default of the small prior: none",
        tuple(f"generate.max_guidance={g}" for g in (1.5, 2.0, 3.0)),
    ),
    "known": (
        "Is the sampler held to what is known? Default of the small prior: in latents, and its pixels are kept",
        (
            "generate.keep_pixels=false",
            "generate.known_weight=0",
            "generate.known_weight=0.5",
            "generate.known_sigma_min=1",
        ),
    ),
    "sdedit": (
        "From which noise level does SDEdit start? Default of the small prior: 1",
        ("generate.sdedit_sigma=0.5", "generate.sdedit_sigma=2", "generate.sdedit_sigma=4"),
    ),
    "steps": ("How long is tuned? Default of the small prior: 150 steps", ("tune.steps=75",)),
    "rank": ("Which rank? Default: 16", ("lora.rank=4",)),
    "rate": (
        "Which rate has the spatial LoRA? Default of the small prior: a quarter of the temporal one's",
        ("tune.spatial_rate=1",),
    ),
}
DEFAULT = ""
MODES = {"full": "as configured", "free_full": "free"}
MEASURES = ("psnr_all", "lpips_vgg_all", "psnr_occ", "lpips_vgg_occ")
# What only matters where the sampler is held to the anchor.
_HELD = {"generate.known_weight", "generate.known_sigma_min", "generate.keep_pixels"}
_NOT_SPATIAL = {"lora.temporal_targets", "tune.known", "tune.draws", "tune.window"}


def parse(arguments: list[str] | None = None) -> flags.FlagValues:
    """The command line.

    Raises:
        InputError: a bad flag.
    """
    values = flags.FlagValues()
    own = {"flag_values": values}
    generated.define_flags(values, ("validation", "train"), "outputs/ablations")
    flags.DEFINE_list("questions", list(QUESTIONS), "which to ask; none: ''", **own)
    told = "a question of your own: group.field=value, several joined by commas; may be repeated"
    flags.DEFINE_multi_string("change", [], told, **own)
    flags.DEFINE_enum("lpips", "vgg", ["vgg", "none"], "network", **own)
    return command.parse(values, arguments, __doc__)


def fields(change: str) -> set[str]:
    """Names of the fields that a change changes."""
    return {part.partition("=")[0] for part in change.split(",")} - {""}


def changed(config: ConfigDict, change: str) -> ConfigDict:
    """A copy of the configuration with the fields of a change.

    Raises:
        InputError: no such field, or a bad value.
    """
    config = config.copy_and_resolve_references()
    for assignment in filter(None, change.split(",")):
        command.change(config, assignment)
    configuration.validate(config)
    return config


def modes(change: str) -> tuple[str, ...]:
    """The rows in which a change differs from the default."""
    return ("full",) if fields(change) and fields(change) <= _HELD else tuple(MODES)


class Fits:
    """The clips of one sample by change; changes that tune alike share their LoRAs.

    Args:
        models: from `model.path` to the video model.
        config: the default one.
        sample, size: as of `rows.ModelRows`.
    """

    def __init__(self, models: Callable, config: ConfigDict, sample: Sample, size: tuple[int, int]):
        self._args, self.config = (models, sample, size), config
        self._rows: dict[str, rows.ModelRows] = {}

    def frames(self, row: str, change: str):
        """The clip of a row under a change."""
        config = changed(self.config, change)
        return self._tuned(change, config).frames(row, config.generate)

    def _tuned(self, change: str, config: ConfigDict) -> rows.ModelRows:
        key = json.dumps([config[g].to_dict() for g in ("anchor", "model", "lora", "tune")])
        if key not in self._rows:
            models, sample, size = self._args
            model = models(config.model.path)
            made = self._rows[key] = rows.ModelRows(model, config, sample, size)
            default = self._tuned(DEFAULT, self.config)
            if fields(change) <= _NOT_SPATIAL and "spatial" in default.fitted:
                made.fitted["spatial"] = default.fitted["spatial"]
        return self._rows[key]


def asked(given: flags.FlagValues) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The questions of the command line.

    Raises:
        InputError: an unknown one.
    """
    names = [n for n in given.questions if n]
    if unknown := [n for n in names if n not in QUESTIONS]:
        raise InputError(f"--questions={unknown[0]}: expected some of {', '.join(QUESTIONS)}")
    own = {"own": ("Changes of the command line", tuple(given.change))} if given.change else {}
    return {n: QUESTIONS[n] for n in names} | own


def document(records: list[dict], questions: dict, about: str) -> str:
    """The page: for each question the differences to the default, paired by scene, frames 1-13."""
    values = report.by_scene(records, "1-13")
    names = [m for m in MEASURES if any(m in v for v in values.values())]
    scenes = len({r["scene"] for r in records})
    head = "| | sampled | " + " | ".join(report.heading(n) for n in names) + " |"
    head += "\n" + "|---" * (len(names) + 2) + "|\n"

    def rows_of(change: str, cell: Callable) -> Iterator[str]:
        for mode in modes(change):
            found, default = (values.get(_key(mode, c), {}) for c in (change, DEFAULT))
            cells = [cell(found, default, n, _digits(n)) for n in names]
            name = f"`{change}`" if change else "default"
            yield f"| {name} | {MODES[mode]} | " + " | ".join(cells) + " |"

    own = rows_of(DEFAULT, lambda found, _, *rest: report.cell(found, *rest))
    parts = [
        f"{scenes} scenes, {about}; frames 1-13, mean over scenes ± half-width of the 95 % interval. Rows of changes "
        "are differences to the default, paired by scene; bold: the interval excludes zero.",
        head + "\n".join(own),
    ]
    for question, changes in questions.values():
        lines = [row for change in changes for row in rows_of(change, report.difference)]
        parts += [f"## {question}", head + "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _key(mode: str, change: str) -> str:
    return f"{mode} {change}".strip()


def _digits(measure: str) -> int:
    return report.DIGITS[measure.split("_")[0]] + measure.startswith("lpips")


def run(given: flags.FlagValues) -> str:
    """Measures what is missing and returns the page.

    Raises:
        InputError: bad flags, or a package that a measure needs is missing.
    """
    questions = asked(given)
    config = rows.configured(given.variant, given.set)
    changes = list(dict.fromkeys([DEFAULT, *(v for _, vs in questions.values() for v in vs)]))
    for change in changes:
        changed(config, change)  # refuses a bad one before any work
    used = [] if given.lpips == "none" else [given.lpips]
    settings = generated.settings(given, config, used)
    sample_of, models = generated.source(given), generated.models()
    lpips, records = [perceptual.load(n) for n in used], Records(given.out, settings)
    wanted = [(mode, change) for change in changes for mode in modes(change)]
    moves = controls.generate(generated.names(given), seed=given.seed, split=given.split)
    with first_stage.compilation(config):
        for scene, drawn in moves.items():
            ((sample_name, control),) = drawn.items()
            missing = [w for w in wanted if not records.has(scene, sample_name, _key(*w))]
            if not missing:
                continue
            sample = sample_of(scene, control)
            fits = Fits(models, config, sample, SIZES[given.size])
            measures = protocol.judge(sample, lpips)
            for mode, change in missing:
                key = scene, sample_name, _key(mode, change)
                generated.measure(
                    records, key, functools.partial(fits.frames, mode, change), measures
                )
    page = document(records.lines, questions, settings["data"])
    (given.out / "ablations.md").write_text(page)
    return page


if __name__ == "__main__":
    command.main(lambda: run(parse()))

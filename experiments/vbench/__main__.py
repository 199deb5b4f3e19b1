"""VBench scores of one or more folders of clips, as a table.

    python -m experiments.vbench --row=ours=outputs/ours --row=anchor=outputs/anchors
        --prompts=prompts.json --dst=outputs/vbench [--python=/opt/vbench/bin/python]

Without --python only the dimension that needs no weights is measured. With it the public package
runs in its own environment (pip install vbench there) and measures --dimensions.
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from experiments import command
from experiments.vbench import export, scores
from recapture_jax.errors import InputError


def parse(arguments: Sequence[str] | None = None) -> flags.FlagValues:
    """The command line.

    Raises:
        InputError: a bad flag, or none where one is required.
    """
    values = flags.FlagValues()
    own = {"flag_values": values}
    word = flags.DEFINE_string
    flags.DEFINE_multi_string("row", None, "LABEL=FOLDER of clips; may be repeated", **own)
    command.define_path("prompts", None, "JSON: a prompt for each clip", values)
    command.define_path("dst", "outputs/vbench", "folder of the results", values)
    word("python", None, "interpreter of an environment with VBench and its weights", **own)
    word("dimensions", ",".join(scores.DIMENSIONS), "names joined by commas", **own)
    word("device", "cuda", "for VBench", **own)
    told = "VBench takes all weights from VBENCH_CACHE_DIR and downloads none"
    flags.DEFINE_bool("local", False, told, **own)
    flags.mark_flags_as_required(["row", "prompts"], values)
    return command.parse(values, arguments, __doc__)


def run(given: flags.FlagValues) -> str:
    """Exports, measures and returns the table.

    Raises:
        InputError: bad folders, prompts or dimensions, or VBench failed.
    """
    dimensions = tuple(given.dimensions.split(","))
    if unknown := [d for d in dimensions if d not in scores.DIMENSIONS]:
        known = ", ".join(scores.DIMENSIONS)
        raise InputError(f"--dimensions: {unknown[0]!r} is not one of {known}")
    prompts = export.read_prompts(given.prompts)
    rows = {}
    for entry in given.row:
        label, sign, source = entry.partition("=")
        if not (label and sign and source) or "/" in label:
            raise InputError(f"--row={entry}: expected LABEL=FOLDER")
        folder = given.dst / label
        copies = export.export(export.clips(pathlib.Path(source)), prompts, folder)
        rows[label] = scores.own(copies)
        if given.python:
            options = given.device, given.local
            rows[label] |= scores.run(given.python, folder, dimensions, *options)
    text = scores.table(rows)
    (given.dst / "table.md").write_text(text + "\n")
    return text


if __name__ == "__main__":
    command.main(lambda: run(parse()))

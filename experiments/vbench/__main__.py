"""VBench scores of one or more folders of clips, as a table.

    python -m experiments.vbench --row=ours=outputs/ours --row=anchor=outputs/anchors
        --prompts=prompts.json --dst=outputs/vbench [--python=/opt/vbench/bin/python]

Without --python only the dimension that needs no weights is measured. With it the public package
runs in its own environment (pip install vbench there) and measures --dimensions.
"""

import argparse
import pathlib
import sys

from experiments.vbench import export, scores
from recapture_jax import terminal
from recapture_jax.errors import InputError


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.vbench", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--row", action="append", required=True, help="LABEL=FOLDER of clips; may be repeated")
    add("--prompts", type=pathlib.Path, required=True, help="JSON: a prompt for each clip")
    add("--dst", type=pathlib.Path, default=pathlib.Path("outputs/vbench"))
    add("--python", help="interpreter of an environment with VBench and its weights")
    add("--dimensions", default=",".join(scores.DIMENSIONS), help="names joined by commas")
    add("--device", default="cuda", help="for VBench")
    return parser.parse_args(arguments)


def run(flags: argparse.Namespace) -> str:
    """Exports, measures and returns the table.

    Raises:
        InputError: bad folders, prompts or dimensions, or VBench failed.
    """
    dimensions = tuple(flags.dimensions.split(","))
    if unknown := [d for d in dimensions if d not in scores.DIMENSIONS]:
        known = ", ".join(scores.DIMENSIONS)
        raise InputError(f"--dimensions: {unknown[0]!r} is not one of {known}")
    prompts = export.read_prompts(flags.prompts)
    rows = {}
    for entry in flags.row:
        label, sign, source = entry.partition("=")
        if not (label and sign and source) or "/" in label:
            raise InputError(f"--row={entry}: expected LABEL=FOLDER")
        folder = flags.dst / label
        copies = export.export(export.clips(pathlib.Path(source)), prompts, folder)
        rows[label] = scores.own(copies)
        if flags.python:
            rows[label] |= scores.run(flags.python, folder, dimensions, flags.device)
    text = scores.table(rows)
    (flags.dst / "table.md").write_text(text + "\n")
    return text


if __name__ == "__main__":
    sys.exit(terminal.finish(lambda: run(parse())))

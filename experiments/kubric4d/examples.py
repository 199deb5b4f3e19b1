"""The data set `kubric4d` as examples, for the TFDS builder and for whoever wants it without TFDS."""

import pathlib
from collections.abc import Iterator

import numpy as np

from experiments.kubric4d import controls, layout, protocol, rig
from experiments.kubric4d.controls import Control
from experiments.kubric4d.protocol import Sample
from recapture_jax.errors import InputError
from recapture_jax.progress import say

SPLITS = {"train": range(2800), "validation": range(2800, 2900), "test": range(2900, 3000)}
"""Scene numbers of the published splits."""


def feature_shapes(size: tuple[int, int]) -> dict[str, tuple[tuple[int, ...], type]]:
    """Shape and type of every array of an example of (height, width)."""
    clip = (rig.NUM_FRAMES, *size)
    return {
        "source": ((*clip, 3), np.float32),
        "target": ((*clip, 3), np.float32),
        "depth": (clip, np.float32),
        "occluded": (clip, np.bool_),
        "intrinsics": ((3, 3), np.float32),
        "source_from_target": ((rig.NUM_FRAMES, 4, 4), np.float32),
        "spherical_end": ((3,), np.float32),
        "frames": ((rig.NUM_FRAMES,), np.int32),
    }


def example(sample: Sample, name: str, control: Control) -> dict:
    """An example: the arrays of `feature_shapes`, and the texts scene, sample and truth.

    Args:
        sample: of one move; name: of the move; control: the move.
    """
    return {
        "scene": sample.name,
        "sample": name,
        "truth": sample.kind,
        "source": sample.source,
        "target": sample.truth,
        "depth": sample.depth,
        "occluded": sample.occluded,
        "intrinsics": sample.intrinsics,
        "source_from_target": sample.source_from_target,
        "spherical_end": np.asarray(control.spherical_end, np.float32),
        "frames": control.frames().astype(np.int32),
    }


def recorded_splits(
    root: pathlib.Path, given: controls.Controls | None = None
) -> dict[str, list[str]]:
    """Scenes on disk by split; a split without any is left out.

    Args:
        root: folder of the scenes.
        given: moves by scene; one without any is left out, aloud. Without them every scene gets a drawn one.

    Raises:
        InputError: no scene at all, or none with a move.
    """
    numbers = {int(name.removeprefix("scn")): name for name in layout.scenes(root)}
    found = {}
    for split, wanted in SPLITS.items():
        there = [numbers[n] for n in sorted(numbers) if n in wanted]
        moved = [name for name in there if given is None or given.get(name)]
        if len(moved) < len(there):
            say(f"{split}: {len(there) - len(moved)} of {len(there)} scenes have no move")
        if moved:
            found[split] = moved
    if not found:
        moves = ", or none of them has a move" if given is not None else ""
        raise InputError(f"{root}: no scene of Kubric-4D's splits, scn00000 to scn02999{moves}")
    return found


def recorded(
    root: pathlib.Path,
    scenes: list[str],
    size: tuple[int, int],
    given: controls.Controls | None = None,
    **options,
) -> Iterator[tuple[str, dict]]:
    """(key, example) of every move of the scenes.

    Args:
        given: moves by scene, of each of them; without them one is drawn for each.
        options: of `protocol.recorded_sample`.
    """
    for scene in scenes:
        moves = (controls.generate([scene]) if given is None else given)[scene]
        for name, control in moves.items():
            sample = protocol.recorded_sample(root, scene, control, size, **options)
            yield f"{scene}_{name}", example(sample, name, control)


def rendered(split: str, count: int, size: tuple[int, int]) -> Iterator[tuple[str, dict]]:
    """(key, example) of the first scenes of our renderer in a split, a drawn move for each."""
    for index in range(count):
        scene = f"scn{index:05d}"
        for name, control in controls.generate([scene], split=split)[scene].items():
            sample = protocol.rendered_sample(index, control, size, split)
            yield f"{scene}_{name}", example(sample, name, control)

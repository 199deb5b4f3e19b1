"""One small scene of our renderer as the Kubric-4D protocol sees it, in memory and on disk."""

import functools
import pathlib

from experiments.kubric4d import controls, protocol, rendered, rig

SMALL = protocol.SIZES["tiny"]
VIEWS = range(5)  # the four from above and the source
MOVE = controls.Control(rig.SOURCE, (45.0, 20.0, 14.0), 0, 1)
INDEX, SPLIT = 3, "validation"


@functools.cache
def miniature_sample() -> protocol.Sample:
    return protocol.rendered_sample(INDEX, MOVE, SMALL, SPLIT)


def write_miniature(folder: pathlib.Path) -> pathlib.Path:
    """Five views of 14 frames in the real layout, under `folder/data`."""
    options = {"num_frames": 14, "size": SMALL, "views": VIEWS}
    rendered.write(folder / "data", [INDEX], split=SPLIT, **options)
    return folder

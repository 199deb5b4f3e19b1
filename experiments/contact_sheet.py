"""A picture of a run for the README: source | anchor | result, first, middle and last frame.

python -m experiments.contact_sheet --run=outputs/NAME --dst=docs/demo.png
"""

import pathlib

import numpy as np
from absl import app, flags

from recapture_jax.video.read import read_clip
from recapture_jax.video.write import write_png

_RUN = flags.DEFINE_string("run", None, "Folder of a finished run.", required=True)
_DST = flags.DEFINE_string("dst", None, "PNG to write.", required=True)
_ZOOM = flags.DEFINE_integer("zoom", 2, "Pixels of the picture per pixel of the video.")


def main(argv) -> None:
    del argv
    frames = read_clip(pathlib.Path(_RUN.value) / "comparison.mp4").frames
    picked = frames[[0, len(frames) // 2, -1]]
    rows = np.concatenate(
        [np.pad(f, ((0, 4), (0, 0), (0, 0)), constant_values=1.0) for f in picked]
    )
    zoomed = rows.repeat(_ZOOM.value, axis=0).repeat(_ZOOM.value, axis=1)
    pathlib.Path(_DST.value).parent.mkdir(parents=True, exist_ok=True)
    write_png(_DST.value, zoomed, overwrite=True)


if __name__ == "__main__":
    app.run(main)

"""How many frames of training clips the renderer of scenes makes in a second.

`python -m experiments.bench.scenes [--height=96 --width=160 --samples=1 --clips=4 --rounds=3]`: clips of 14 frames
with their depth, in batches, compiled before the clock starts; the quickest of the rounds.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import flags

from experiments import command
from recapture_jax import cost
from recapture_jax.scenes.clips import clip_key, render_clips

FRAMES = 14


def parse(arguments: Sequence[str] | None = None) -> flags.FlagValues:
    """The command line.

    Raises:
        InputError: a bad flag.
    """
    values = flags.FlagValues()
    own = {"flag_values": values, "lower_bound": 1}
    flags.DEFINE_integer("height", 96, "pixels", **own)
    flags.DEFINE_integer("width", 160, "pixels", **own)
    flags.DEFINE_integer("samples", 1, "rays of a pixel along each side", **own)
    flags.DEFINE_integer("clips", 4, "of a batch", **own)
    flags.DEFINE_integer("rounds", 3, "timed batches", **own)
    return command.parse(values, arguments, __doc__)


def main(given: flags.FlagValues) -> str:
    """Renders validation clips; the line that says how fast."""
    keys = jnp.stack([clip_key(0, "validation", i) for i in range(given.clips)])
    shape = {n: getattr(given, n) for n in ("height", "width", "samples")} | {"num_frames": FRAMES}
    spent = cost.quickest(lambda: jax.block_until_ready(render_clips(keys, **shape)), given.rounds)
    rate = given.clips * FRAMES / spent
    device = jax.devices()[0].device_kind
    return (
        f"{given.clips} clips of {FRAMES} x {given.height} x {given.width}, {given.samples} x {given.samples} rays a "
        f"pixel: {rate:.1f} frames/s on {device}"
    )


if __name__ == "__main__":
    command.main(lambda: main(parse()))

"""Cost and correctness of one splatted frame, ours against the public forward warper's rule.

`python -m experiments.bench.splat [--height=576 --width=1024 --frames=4 --repeats=5]`: one rendered
scene with exact depth, the same moves for all, and for each the time per frame of a clip (the best
of the repeats, wall clock and CPU seconds, as other work on the machine lengthens the former) beside
PSNR on known pixels, false-known rate and holes against the exact novel view.

The public rule is timed with one thread and with one per core, and the quicker counts: on a busy
machine its parallel additions wait for each other, several times as long. It comes in two forms:
"public rule" is lean, with matrix products over all pixels at once and the colours alone, which is
all that an anchor needs; "public, all" does what one call of the published code does
(`baselines.bilinear_with_depth`).
"""

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import flags

from experiments import command
from experiments.oracle import baselines, measure, views
from recapture_jax.config import default_config
from recapture_jax.geometry.splat import render_anchor
from recapture_jax.stages.anchor import tearing_threshold

MOVES = ("static", "pan right 8", "orbit right 12", "dolly in 0.4", "zoom in 3", "zoom out 2")
PUBLIC = {
    "public rule": baselines.bilinear_z_weighted,
    "public, all": baselines.bilinear_with_depth,
}


def compare(
    height: int, width: int, repeats: int, moves=MOVES, seed: int = 0, frames: int = 1
) -> list[dict]:
    """A record per move and method: name, wall, cpu (seconds per frame), score."""
    source = views.source(seed, 0, height, width)
    records = []
    for move in moves:
        path = source.trajectory(move)
        truth = source.truth(path)
        calls = {name: _public(warp, source, path, frames) for name, warp in PUBLIC.items()}
        for name, forms in (calls | {"ours": [_ours(source, path, frames)]}).items():
            runs = [timed(call, repeats) for call in forms]
            (colors, known), wall, cpu = min(runs, key=lambda run: run[1])
            wall, cpu = wall / frames, cpu / frames
            found = measure.score(np.asarray(colors), np.asarray(known), truth)
            records.append({"move": move, "name": name, "wall": wall, "cpu": cpu, "score": found})
    return records


def _public(warp: Callable, source: views.Source, path, frames: int) -> list[Callable]:
    """The warper with one thread and with one per core."""
    intrinsics = np.asarray(path.cameras.intrinsics[0])
    pose = np.asarray(path.cameras.world_from_camera[0])
    args = (source.colors, source.depth, source.intrinsics, intrinsics, pose)

    def call(threads):
        torch.set_num_threads(threads)
        for _ in range(frames):
            result = warp(*args)
        return result

    return [functools.partial(call, threads) for threads in (1, os.cpu_count())]


def _ours(source: views.Source, path, frames: int) -> Callable:
    """Tearing filter and splat, as in a run."""
    config = default_config().anchor

    def repeated(x):
        return jnp.repeat(jnp.asarray(x)[None], frames, axis=0)

    args = (repeated(source.colors), repeated(source.depth), jnp.asarray(source.intrinsics))
    cameras = jax.tree.map(lambda x: repeated(x[0]), path.cameras)
    path = dataclasses.replace(path, cameras=cameras)
    settings = {"taps": config.taps, "tau": config.tau}
    settings["tearing_threshold"] = tearing_threshold(config, source.depth.shape)

    def call():
        colors, known = jax.block_until_ready(render_anchor(*args, path, **settings))
        return colors[-1], known[-1]

    return call


def timed(call: Callable, repeats: int) -> tuple:
    """Result, wall-clock and CPU seconds of the quickest call after a first one."""
    result, wall, cpu = call(), [], []
    for _ in range(repeats):
        clocks = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - clocks[0])
        cpu.append(time.process_time() - clocks[1])
    return result, min(wall), min(cpu)


def table(records: list[dict]) -> str:
    """Markdown."""
    head = "| move | method | ms wall | ms CPU | PSNR dB | false-known % | holes % |"
    lines = [head, "|---" * 7 + "|"]
    for r in records:
        s = r["score"]
        lines.append(
            f"| {r['move']} | {r['name']} | {1e3 * r['wall']:.0f} | {1e3 * r['cpu']:.0f} | "
            f"{s.psnr:.1f} | {100 * s.false_known:.2f} | {100 * s.holes:.1f} |"
        )
    total = {
        name: {k: sum(r[k] for r in records if r["name"] == name) for k in ("wall", "cpu")}
        for name in (*PUBLIC, "ours")
    }
    for name in PUBLIC:
        wall, cpu = (total[name][k] / max(total["ours"][k], 1e-9) for k in ("wall", "cpu"))
        lines += [
            "",
            f"ours is {wall:.1f}x faster than {name} by the clock, {cpu:.1f}x in CPU time",
        ]
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> flags.FlagValues:
    """The command line.

    Raises:
        InputError: a bad flag.
    """
    values = flags.FlagValues()
    own = {"flag_values": values}
    whole = flags.DEFINE_integer
    whole("height", 576, "pixels", lower_bound=16, **own)
    whole("width", 1024, "pixels", lower_bound=16, **own)
    whole("frames", 4, "of the clip", lower_bound=1, **own)
    whole("repeats", 5, "timed calls, of which the quickest counts", lower_bound=1, **own)
    return command.parse(values, arguments, __doc__)


def main(given: flags.FlagValues) -> str:
    """Measures and returns the table."""
    return table(compare(given.height, given.width, given.repeats, frames=given.frames))


if __name__ == "__main__":
    command.main(lambda: main(parse()))

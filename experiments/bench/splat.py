"""Cost and correctness of one splatted frame, ours against the public forward warper's rule.

`python -m experiments.bench.splat [--height 576 --width 1024 --repeats 5]`: one rendered scene with
exact depth, the same moves for both, and for each the time per frame (the best of the repeats, wall
clock and CPU seconds, as other work on the machine lengthens the former) beside PSNR on known
pixels, false-known rate and holes against the exact novel view.
"""

import argparse
import time
from collections.abc import Callable

import jax
import numpy as np

from experiments.oracle import baselines, measure, views
from recapture_jax.config import default_config
from recapture_jax.geometry.splat import render_anchor
from recapture_jax.stages.anchor import tearing_threshold

MOVES = ("static", "pan right 8", "orbit right 12", "dolly in 0.4", "zoom in 3", "zoom out 2")


def compare(height: int, width: int, repeats: int, moves=MOVES, seed: int = 0) -> list[dict]:
    """A record per move and method: name, wall, cpu (seconds per frame), score."""
    source = views.source(seed, 0, height, width)
    records = []
    for move in moves:
        path = source.trajectory(move)
        truth = source.truth(path)
        for name, method in (("public rule", _public), ("ours", _ours)):
            call = method(source, path)
            (colors, known), wall, cpu = timed(call, repeats)
            found = measure.score(np.asarray(colors), np.asarray(known), truth)
            records.append({"move": move, "name": name, "wall": wall, "cpu": cpu, "score": found})
    return records


def _public(source: views.Source, path) -> Callable:
    intrinsics = np.asarray(path.cameras.intrinsics[0])
    pose = np.asarray(path.cameras.world_from_camera[0])
    args = (source.colors, source.depth, source.intrinsics, intrinsics, pose)
    return lambda: baselines.bilinear_z_weighted(*args)


def _ours(source: views.Source, path) -> Callable:
    """Tearing filter and splat, as in a run."""
    config = default_config().anchor
    args = jax.device_put((source.colors[None], source.depth[None], source.intrinsics))
    settings = {"taps": config.taps, "tau": config.tau}
    settings["tearing_threshold"] = tearing_threshold(config, source.depth.shape)

    def call():
        frames, known = jax.block_until_ready(render_anchor(*args, path, **settings))
        return frames[0], known[0]

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
        for name in ("public rule", "ours")
    }
    ratio = {k: total["public rule"][k] / total["ours"][k] for k in ("wall", "cpu")}
    return "\n".join(
        [
            *lines,
            "",
            f"ours is {ratio['wall']:.1f}x faster by the clock, {ratio['cpu']:.1f}x in CPU time",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--height", type=int, default=576, help="pixels")
    parser.add_argument("--width", type=int, default=1024, help="pixels")
    parser.add_argument("--repeats", type=int, default=5)
    flags = parser.parse_args()
    print(table(compare(flags.height, flags.width, flags.repeats)))


if __name__ == "__main__":
    main()

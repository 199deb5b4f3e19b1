"""Tuning step, guided sampling step, VAE encode and decode: ours against diffusers + peft.

    python -m experiments.bench.steps                              # needs the [test] extra
    python -m experiments.bench.steps --size=mid --reference=compiled --out=mid.md
    python -m experiments.bench.steps --size=svd --reference=compiled --checkpointing    # GPUs

Sizes: "small" is the shipped prior at 14 x 96 x 160 pixels. "mid" is SVD's own classes in narrower, 98 M
parameters in the U-Net at 14 x 24 x 40 latents and 24 M in the autoencoder at 14 x 128 x 192 pixels.
"svd" is Stable Video Diffusion itself at 14 x 576 x 1024, for GPUs.

Both sides hold random weights of the same network (the numbers of parameters must agree), in float32 on
CPUs and bfloat16 on GPUs, get the same inputs and are timed in turn, A B A B, in one process; the ratio of the
medians is what counts. Parts:

* tune: masked v-loss of the temporal rank-16 LoRA on one clip, forward, backward and AdamW.
* sample: one guided Euler step (a batch of two).
* encode, decode: all frames of a clip. Ours encodes frame by frame, the reference all at once.

--reference=compiled puts the reference's networks through torch.compile; --checkpointing recomputes activations
in the backward pass on both sides. The FLOPs of a call are XLA's count of our program as written (see `ours`) and
torch's of matrix products and convolutions; beside them stands the rate of one large matrix product.
"""

import dataclasses
import datetime
import importlib.metadata
import math
import os
import pathlib
import platform
import statistics
from collections.abc import Mapping, Sequence

import jax
from absl import flags

from experiments import command
from experiments.bench.ours import Ours, Program
from experiments.bench.reference import Reference
from experiments.bench.roofline import matmul_peak
from experiments.bench.sizes import SIZES, Size
from recapture_jax import cost, preflight
from recapture_jax.errors import InputError

PARTS = {
    "tune": "LoRA tuning step",
    "sample": "guided sampling step",
    "encode": "VAE encode",
    "decode": "VAE decode",
}
_VERSIONS = ("jax", "jaxlib", "torch", "diffusers", "peft")
# SVD's step in float32: 118 GiB kept for the backward pass (twice memory.md's; XLA:CPU gains nothing
# by rematerialising), the weights of both sides 12 GiB, and room to work.
_SVD_ON_CPU = 160 * 2**30


@dataclasses.dataclass(frozen=True)
class Record:
    """One part as measured.

    Attributes:
      part: one of `PARTS`.
      programs, first, times: of our side and of the reference: what ran, seconds of the first call
        (building and compiling included) and of each timed call.
    """

    part: str
    programs: tuple[Program, Program]
    first: tuple[float, float]
    times: tuple[list[float], list[float]]

    @property
    def medians(self) -> tuple[float, float]:
        ours, theirs = (statistics.median(times) for times in self.times)
        return ours, theirs


def compare(part: str, sides: Sequence, rounds: int) -> Record:
    """Builds one part on both sides and times it in turn.

    Raises:
        RuntimeError: the sides do not hold the same network.
    """
    programs, first = [], []

    def begin(side):
        programs.append(side.program(part))
        programs[-1].run()

    for side in sides:
        first.append(cost.seconds(lambda side=side: begin(side)))
        print(f"{PARTS[part]}, {side.name}: ready in {first[-1]:.0f} s", flush=True)
    sizes = [program.parameters for program in programs]
    if sizes[0] != sizes[1]:
        raise RuntimeError(f"{part}: parameters (all, trained) differ: {sizes}")
    times = ([], [])
    for _ in range(rounds):
        for program, found in zip(programs, times, strict=True):
            found.append(cost.seconds(program.run))
    return Record(part, tuple(programs), tuple(first), times)


def table(records: Sequence[Record], peak: float) -> str:
    """Markdown; `peak` FLOP/s of a matrix product."""
    lines = [
        "| part | ours, s | diffusers + peft, s | ratio | GFLOP ours / theirs "
        "| GFLOP/s ours / theirs | of the matmul's, % | first call, s |",
        "|---" * 8 + "|",
    ]
    for r in records:
        work = [program.flops for program in r.programs]
        rates = [flops / median for flops, median in zip(work, r.medians, strict=True)]
        spans = [
            f"{median:.3f} ({min(times):.3f} to {max(times):.3f})"
            for median, times in zip(r.medians, r.times, strict=True)
        ]
        cells = [
            PARTS[r.part],
            *spans,
            f"{r.medians[1] / r.medians[0]:.2f}",
            _pair(work, 1e-9),
            _pair(rates, 1e-9),
            _pair(rates, 100 / peak),
            f"{r.first[0]:.1f} / {r.first[1]:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _pair(values: Sequence[float], unit: float) -> str:
    return " / ".join("?" if math.isnan(v) else f"{v * unit:.0f}" for v in values)


def machine() -> str:
    """Device, versions and date in a line."""
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    if jax.default_backend() == "cpu":
        device = f"{_cpu()}, {os.cpu_count()} cores"
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _VERSIONS)
    return f"{device}; {versions}; {datetime.date.today().isoformat()}"


def _cpu() -> str:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        text = ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()


def report(
    size: Size, about: str, parts: Sequence[str], sides: Sequence, rounds: int, peak: Mapping
) -> str:
    """Measures; the whole text, Markdown."""
    records = []
    for part in parts:
        records.append(compare(part, sides, rounds))
        line = ", ".join(f"{t:.3f} s" for t in records[-1].medians)
        print(f"{PARTS[part]}: {line}", flush=True)
    what = "bfloat16" if jax.default_backend() == "gpu" else "float32"
    shape = " x ".join(str(n) for n in (size.frames, *size.latents))
    pixels = " x ".join(str(n) for n in (size.frames, *size.pixels))
    counts = {r.part: r.programs[0].parameters[0] for r in records}
    held = {"U-Net": counts.get("tune") or counts.get("sample")}
    held["autoencoder"] = counts.get("encode") or counts.get("decode")
    holds = ", ".join(f"{name} of {n:,} parameters" for name, n in held.items() if n)
    notes = [side.failure for side in sides if getattr(side, "failure", None)]
    rates = ", ".join(f"{rate / 1e9:.0f} by {name}" for name, rate in peak.items())
    lines = [
        f"{about}: {holds}; U-Net on {shape} latents, autoencoder on {pixels} pixels, {what}.",
        machine() + ".",
        f"One large matrix product: {rates} GFLOP/s. Median of {rounds} rounds in turn (range).",
        *notes,
    ]
    return "\n".join([*lines, "", table(records, max(peak.values()))])


def parse(arguments: Sequence[str] | None = None) -> flags.FlagValues:
    """The command line.

    Raises:
        InputError: a bad flag.
    """
    values = flags.FlagValues()
    own = {"flag_values": values}
    flags.DEFINE_enum("size", "small", list(SIZES), "of networks and clip, see above", **own)
    flags.DEFINE_list("parts", list(PARTS), "what to measure", **own)
    flags.DEFINE_enum("reference", "eager", ["eager", "compiled"], "torch.compile or not", **own)
    flags.DEFINE_bool("checkpointing", False, "recompute activations, both sides", **own)
    flags.DEFINE_integer("rounds", 5, "timed calls of each side", lower_bound=1, **own)
    command.define_new_file("out", "Markdown file to write as well", values)
    given = command.parse(values, arguments, __doc__)
    unknown = [part for part in given.parts if part not in PARTS]
    if unknown or not given.parts:
        raise InputError(f"--parts={','.join(given.parts)}: expected some of {','.join(PARTS)}")
    return given


def check_memory(size: str) -> None:
    """
    Raises:
        InputError: full size on a CPU that has no room for it.
    """
    free = preflight.device_memory()
    if size == "svd" and jax.default_backend() == "cpu" and free < _SVD_ON_CPU:
        raise InputError(
            f"--size=svd on a CPU takes about {_SVD_ON_CPU / 2**30:.0f} GiB of memory, "
            f"{free / 2**30:.0f} GiB are free: take a GPU or --size=mid"
        )


def main(given: flags.FlagValues) -> str:
    """Measures, writes the file asked for and returns its text."""
    # Both sides live on one device: jax would take most of its memory at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    check_memory(given.size)
    size, compiled = SIZES[given.size], given.reference == "compiled"
    sides = (
        Ours(size, given.checkpointing),
        Reference(size, compiled, given.checkpointing),
    )
    extra = ", checkpointing" if given.checkpointing else ""
    about = f"Size {given.size}, reference {given.reference}{extra}"
    text = report(size, about, given.parts, sides, given.rounds, matmul_peak())
    if given.out:
        given.out.write_text(text + "\n")
    return text


if __name__ == "__main__":
    command.main(lambda: main(parse()))

"""The benchmark against diffusers + peft: its flags, both its sides at a tiny size, its table."""

import math

import jax
import pytest
import tiny

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from experiments.bench import roofline, sizes, steps
from experiments.bench.ours import Ours, Program, count
from experiments.bench.reference import Reference
from recapture_jax import preflight
from recapture_jax.errors import InputError
from recapture_jax.models import zoo

# One level: compiling is nearly all that these tests do.
ONE_LEVEL = {
    "down_block_types": ["CrossAttnDownBlockSpatioTemporal"],
    "up_block_types": ["CrossAttnUpBlockSpatioTemporal"],
    "block_out_channels": [32],
    "num_attention_heads": [2],
    "norm_num_groups": 16,
}
CONFIG = tiny.CONFIG | {
    "unet": tiny.CONFIG["unet"] | ONE_LEVEL,
    "vae": tiny.CONFIG["vae"] | {"block_out_channels": [32, 32], "norm_num_groups": 16},
}
SIZE = sizes.Size(CONFIG, frames=2, latents=(4, 6), pixels=(8, 12))


def test_flags():
    given = steps.parse([])
    assert (given.size, given.reference, given.rounds) == ("small", "eager", 5)
    assert given.parts == list(steps.PARTS) and not given.checkpointing and given.out is None
    given = steps.parse(
        ["--size=mid", "--parts=encode,tune", "--reference=compiled", "--checkpointing"]
    )
    assert (given.size, given.parts, given.reference) == ("mid", ["encode", "tune"], "compiled")
    assert given.checkpointing


def test_refusals(tmp_path, monkeypatch):
    (tmp_path / "there.md").touch()
    for argument in ("--size=large", "--parts=tune,fly", f"--out={tmp_path}/there.md"):
        with pytest.raises(InputError):
            steps.parse([argument])
    monkeypatch.setattr(preflight, "device_memory", lambda: 24 * 2**30)
    steps.check_memory("mid")
    with pytest.raises(InputError, match="--size=svd on a CPU .* 24 GiB are free"):
        steps.check_memory("svd")


def test_sizes_as_stated():
    mid = sizes.SIZES["mid"].config
    assert count(zoo.abstract_params("unet", mid)) == 97_904_618
    assert count(zoo.abstract_params("vae", mid)) == 24_475_711


@pytest.mark.parametrize("part", steps.PARTS)
def test_both_sides_run_the_same_network(part):
    sides = (Ours(SIZE), Reference(SIZE, checkpointing=part == "tune"))
    record = steps.compare(part, sides, rounds=2)
    ours, theirs = record.programs
    assert ours.parameters == theirs.parameters
    assert (part == "tune") == (ours.parameters[1] > 0)
    # XLA counts more than products; ours leaves out attn2's queries and keys.
    assert 0.5 < ours.flops / theirs.flops < 2
    assert all(len(times) == 2 and min(times) > 0 for times in record.times)


def test_different_networks_are_no_comparison():
    class Side:
        def __init__(self, parameters):
            self.name = "a side"
            self.program = lambda part: Program(lambda: None, (parameters, 0), 1.0)

    with pytest.raises(RuntimeError, match="parameters"):
        steps.compare("encode", (Side(10), Side(11)), rounds=1)


def test_what_does_not_compile_is_timed_eager(monkeypatch):
    import torch

    def refuse(network, **_):
        raise RuntimeError("no C++ compiler\nand more lines")

    monkeypatch.setattr(torch, "compile", refuse)
    reference = Reference(SIZE, compiled=True)
    reference.program("decode").run()
    assert reference.failure.endswith("so it is eager: RuntimeError: no C++ compiler")


def test_table():
    programs = (Program(None, (1, 0), 4e9), Program(None, (1, 0), math.nan))
    record = steps.Record("decode", programs, (9.0, 1.5), ([3.0, 1.0, 2.0], [4.0, 5.0, 3.0]))
    head, rule, row = steps.table([record], peak=8e9).splitlines()
    assert head.count("|") == rule.count("|") == row.count("|")
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "VAE decode",
        "2.000 (1.000 to 3.000)",
        "4.000 (3.000 to 5.000)",
        "2.00",
        "4 / ?",
        "2 / ?",
        "25 / ?",
        "9.0 / 1.5",
    ]


def test_command_writes_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(steps.SIZES, "small", SIZE)
    monkeypatch.setattr(steps, "matmul_peak", lambda: roofline.matmul_peak(32, 1))
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    out = tmp_path / "table.md"
    given = steps.parse(["--parts=encode", "--rounds=1", f"--out={out}"])
    text = steps.main(given)
    assert out.read_text() == text + "\n"
    assert f"jax {jax.__version__}" in text and "by XLA" in text
    assert "autoencoder of" in text and "U-Net of" not in text
    assert text.splitlines()[-1].startswith("| VAE encode |")
    assert "VAE encode:" in capsys.readouterr().out

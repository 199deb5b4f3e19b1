"""Clips x moves x seeds in one process: what is shared, what fails, what is resumed."""

import contextlib
import json
import pathlib
import shutil

import numpy as np
import pytest
from test_pipeline import configure, home  # noqa: F401  a fixture

from recapture_jax import matrix, pipeline
from recapture_jax.errors import InputError
from recapture_jax.lora.export import load_lora

MOVES = ["orbit right 10", "pan right 170", "dolly in 0.1"]  # the second shows nothing of the clip


def test_runs_share_what_they_can_and_a_failure_stops_none(home, monkeypatch):  # noqa: F811
    loaded, run, done = [], pipeline.run, []
    load_model = pipeline.weights.load_model

    def load(*args, **kwargs):
        loaded.append(args)
        return load_model(*args, **kwargs)

    def watched(*args):
        done.append(run(*args))
        return done[-1]

    monkeypatch.setattr(pipeline.weights, "load_model", load)
    monkeypatch.setattr(pipeline, "run", watched)
    config = configure(home, root="matrix")
    report = home / "matrix" / "matrix.json"
    with pytest.raises(
        InputError, match="1 of 3 runs failed, the first .pan right 170.*matrix.json"
    ):
        matrix.run(matrix.combinations(config, [], MOVES, []), report)
    rows = json.loads(report.read_text())
    assert [bool(r["error"]) for r in rows] == [False, True, False]
    assert [r["moves"] for r in rows] == MOVES and "smaller move" in rows[1]["error"]
    assert rows[2]["folder"].endswith("clip-dolly-in-0.1-seed0")
    assert (home / "matrix" / "clip-dolly-in-0.1-seed0" / "result.mp4").exists()
    assert len(loaded) == 1  # the networks, for all of them
    first, last = done
    assert set(first.stages.values()) == {"computed"}
    assert {k for k, v in last.stages.items() if v == "cached"} == {"depth", "spatial"}

    again = matrix.run(matrix.combinations(config, [], MOVES[::2], []), report)
    assert [r.folder for r in again] == [rows[0]["folder"], rows[2]["folder"]]
    assert done[-1].stages == {"run": "cached"} and len(loaded) == 1
    kept = json.loads(report.read_text())
    assert [r["moves"] for r in kept] == [MOVES[1], MOVES[0], MOVES[2]] and kept[0] == rows[1]
    report.write_text("[3]")
    with pytest.raises(InputError, match="no report of a matrix"):
        matrix.run(matrix.combinations(config, [], MOVES[:1], []), report)
    assert report.read_text() == "[3]"


def test_seeds_share_the_spatial_lora_of_the_first(home):  # noqa: F811
    config = configure(home, root="seeds")
    rows = matrix.run(matrix.combinations(config, [], ["static"], [3, 4]), home / "seeds.json")
    told = [json.loads((pathlib.Path(r.folder) / "run.json").read_text()) for r in rows]
    assert [t["stages"]["spatial"] for t in told] == ["computed", "cached"]
    assert [t["stages"]["temporal"] for t in told] == ["computed"] * 2
    assert [t["config"]["tune"]["spatial_seed"] for t in told] == [3, 3]
    # A run of its own with the first seed has the same; another seed's is told of it by the configuration.
    alone = pipeline.run(configure(home, root="seeds", moves="static", seed=3))
    assert alone.stages["spatial"] == alone.stages["temporal"] == "cached"
    own = pipeline.run(configure(home, root="seeds", moves="static", seed=4))
    assert own.stages["spatial"] == own.stages["temporal"] == "computed"
    told = {"seed": 4, "tune.spatial_seed": 3}
    again = pipeline.run(configure(home, root="seeds", moves="static", **told))
    assert again.stages == {"run": "cached"}


@pytest.mark.parametrize(
    "moves, seeds, nearer", [(MOVES, [], 0.1), (["orbit right 10"], [3, 4], 0.3)]
)
def test_what_is_tuned_in_one_step_is_what_each_is_alone(home, moves, seeds, nearer):  # noqa: F811
    made = {}
    for together in (1, 2):
        root = f"together{together}-{len(moves)}"
        config = configure(home, root=root)
        configs = matrix.combinations(config, [], moves, seeds)
        failing = pytest.raises(InputError, match="1 of 3 runs failed")
        with contextlib.nullcontext() if seeds else failing:
            matrix.run(configs, home / root / "report.json", together)
        folders = [r["folder"] for r in json.loads((home / root / "report.json").read_text())]
        made[together] = [pathlib.Path(f) for f in folders if f]
    assert len(list((home / root / "cache").glob("spatial-*"))) == 1
    assert not list((home / root / "cache" / "work").iterdir())
    loras = {}
    for together, folders in made.items():
        stages = [json.loads((f / "run.json").read_text())["stages"]["temporal"] for f in folders]
        assert stages == ["cached" if together > 1 else "computed"] * 2
        deltas = [load_lora(f / "lora" / "temporal.safetensors") for f in folders]
        loras[together] = [np.concatenate([d["b"].ravel() for d in x.values()]) for x in deltas]
    # test_tuning holds them to rounding; here, that each run got its own. AdamW's first steps are of one size, so
    # rounding turns those of the smallest gradients around: a hundredth of the entries, a tenth of the norm.
    for i in range(2):
        off = [np.linalg.norm(loras[1][i] - other) for other in loras[2]]
        assert off[i] < nearer * off[1 - i]


def test_combinations_are_named_apart_and_checked_before_any_runs(home):  # noqa: F811
    config = configure(home)
    shutil.copy(home / "clip.mp4", home / "other.mp4")
    videos = [str(home / "clip.mp4"), str(home / "other.mp4")]
    found = matrix.combinations(config, videos, ["static", "pan left 5"], [0, 1])
    assert [c.output.name for c in found[:3]] == [
        "clip-static-seed0",
        "clip-pan-left-5-seed0",
        "clip-static-seed1",
    ]
    assert len({c.output.name for c in found}) == 8 and config.output.name == ""
    with pytest.raises(InputError, match="no such file"):
        matrix.combinations(config, ["gone.mp4"], [], [])
    with pytest.raises(InputError, match="two runs would be called clip-static-seed0"):
        matrix.combinations(config, [], ["static", "static"], [])
    with pytest.raises(InputError, match="sideways"):
        matrix.combinations(config, [], ["sideways 3"], [])
    config.camera.path = "poses.json"
    with pytest.raises(InputError, match="exclude each other"):
        matrix.combinations(config, [], ["static"], [])

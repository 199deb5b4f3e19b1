"""A run of two processes, four devices each, over gloo: what one process makes, written once, resumed."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from test_pipeline import configure, home  # noqa: F401 - a fixture

from recapture_jax import cache, pipeline, processes
from recapture_jax.errors import InputError
from recapture_jax.lora.export import load_lora

MESH = {"mesh.data": 1, "mesh.fsdp": 2, "mesh.frames": 4}


def settings(home, root, **mesh):  # noqa: F811
    depth = home / "depth-of-four.npy"
    np.save(depth, np.load(home / "depth.npy")[[0, 1, 2, 2]])
    changes = {"video.num_frames": 4, "model.window": 4, "generate.max_guidance": 2.0}
    changes["depth.path"] = str(depth)
    tune = {"tune.steps": 4, "tune.checkpoint_every": 2, "tune.draws": 2}
    # In a tiny network some gradients are of rounding alone, and AdamW's first steps are of one size whatever
    # the gradient: small ones leave the frames comparable.
    tune["tune.learning_rate"] = 5e-5
    return configure(home, root, **changes, **tune, **mesh)


def two_processes(home, *how) -> list[subprocess.CompletedProcess]:  # noqa: F811
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    here = pathlib.Path(__file__).parent
    paths = os.pathsep.join(map(str, (here, here.parent, here.parent.parent)))
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "worker", str(i), str(port), str(home), *how],
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "4", "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    done = []
    for process in started:
        out, err = process.communicate(timeout=900)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return done


@pytest.fixture(scope="module")
def runs(home):  # noqa: F811
    """What two processes said that were stopped after a checkpoint, and then that went on."""
    return two_processes(home, "stop"), two_processes(home)


def arrays(root: pathlib.Path, name: str) -> dict:
    (file,) = root.glob(f"cache/{name}")
    return cache.load_arrays(file)


def test_two_processes_make_what_one_makes(home, runs):  # noqa: F811
    assert [p.returncode for p in runs[1]] == [0, 0], runs[1][0].stderr + runs[1][1].stderr
    alone = pipeline.run(settings(home, "alone", **{"mesh.data": 1}))
    made = [home / root for root in ("outputs0", "alone")]
    frames = [arrays(root, "result-*/frames.npz")["frames"] for root in made]
    np.testing.assert_allclose(*frames, atol=2e-4)
    (folder,) = (p for p in made[0].glob("clip-*") if p.is_dir())
    ours, theirs = (load_lora(f / "lora" / "spatial.safetensors") for f in (folder, alone.folder))
    for name, delta in theirs.items():
        for part in "ab":
            off = np.linalg.norm(ours[name][part] - delta[part])
            assert off < 1e-4 * np.linalg.norm(delta[part]), name
    losses = [
        [json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()]
        for f in (folder, alone.folder)
    ]
    ours, theirs = ([r[f"loss_{r['stage']}"] for r in each] for each in losses)
    assert len(ours) == 8 and ours == pytest.approx(theirs, rel=1e-3)


def test_only_the_first_process_writes_and_speaks(home, runs):  # noqa: F811
    assert not (home / "outputs1").exists()
    assert "temporal" in runs[1][0].stderr and "temporal" not in runs[1][1].stderr


def test_both_go_on_from_the_first_ones_checkpoint(runs):
    for process in runs[0]:
        assert process.returncode == 3 and "left after a checkpoint" in process.stdout
    assert "spatial: resuming at step 2 of 4" in runs[1][0].stderr


def test_what_one_process_refuses_ends_both(home):  # noqa: F811
    first, second = two_processes(home, "lack")
    assert (first.returncode, second.returncode) == (2, 2), first.stderr + second.stderr
    assert "process 1 stopped:" in first.stderr and "nowhere.mp4" in first.stderr
    assert "error: " in second.stderr and "process 1 stopped" not in second.stderr
    assert not (home / "outputs1").exists()


def test_another_model_in_one_process_ends_both(home):  # noqa: F811
    first, second = two_processes(home, "other")
    assert (first.returncode, second.returncode) == (2, 2), first.stderr + second.stderr
    said = "its model is not that of process 0"
    assert f"process 1 stopped: {said}" in first.stderr and said in second.stderr


def test_a_fault_of_one_process_ends_it_at_once_and_the_other_soon(home):  # noqa: F811
    begin = time.monotonic()
    first, second = two_processes(home, "fail")
    assert first.returncode == 1 and "a fault of process 0" in first.stderr
    assert second.returncode != 0
    assert time.monotonic() - begin < 120  # JAX's own exit takes five minutes


@pytest.mark.parametrize(
    "told, says",
    [(("localhost:1", None, None), "belong together"), (("localhost:1", 2, 2), "expected 0 to 1")]
    + [((None, None, None), "did not come together")],
)
def test_processes_that_cannot_meet_are_refused(told, says):
    with pytest.raises(InputError, match=says):
        processes.start(*told)

"""One process of a run of two, for test_processes: `python -m worker INDEX PORT HOME [stop|lack|other|fail]`.

stop: leaves after a checkpoint; lack: process 1 has no clip; other: it has another model; fail: process 0 has a fault.
"""

import pathlib
import shutil
import sys

import conftest  # noqa: F401 - strict settings, before anything else touches JAX
import jax
from test_processes import MESH, settings

from recapture_jax import command, pipeline, processes, terminal
from recapture_jax.checkpoints import TrainCheckpoints

index, port, home, *how = sys.argv[1:]
processes.start(f"localhost:{port}", 2, int(index))
assert jax.device_count() == 8 and jax.local_device_count() == 4
if how == ["stop"]:
    save = TrainCheckpoints.save

    def save_and_leave(self, *args, **kwargs):
        save(self, *args, **kwargs)
        print("left after a checkpoint")
        raise SystemExit(3)

    TrainCheckpoints.save = save_and_leave
config = settings(pathlib.Path(home), f"outputs{index}", **MESH)
if how == ["lack"] and index == "1":
    config.video.path = "nowhere.mp4"
if how == ["other"] and index == "1":
    model = shutil.copytree(config.model.path, f"{config.model.path}-other", dirs_exist_ok=True)
    with open(f"{model}/config.json", "a") as file:
        file.write(" ")
    config.model.path = model


def run() -> str:
    if how == ["fail"] and index == "0":
        raise RuntimeError("a fault of process 0")
    return f"result {pipeline.run(config).folder}"


sys.exit(terminal.finish(lambda: command.together(run)))

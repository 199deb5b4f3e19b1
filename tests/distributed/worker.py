"""One process of a run of two, for test_processes: `python -m worker INDEX PORT HOME [stop]`."""

import pathlib
import sys

import conftest  # noqa: F401 - strict settings, before anything else touches JAX
import jax
from test_processes import MESH, settings

from recapture_jax import pipeline, processes
from recapture_jax.checkpoints import TrainCheckpoints

index, port, home, *stop = sys.argv[1:]
processes.start(f"localhost:{port}", 2, int(index))
assert jax.device_count() == 8 and jax.local_device_count() == 4
if stop:
    save = TrainCheckpoints.save

    def save_and_leave(self, *args, **kwargs):
        save(self, *args, **kwargs)
        print("left after a checkpoint")
        raise SystemExit(3)

    TrainCheckpoints.save = save_and_leave
print("result", pipeline.run(settings(pathlib.Path(home), f"outputs{index}", **MESH)).folder)

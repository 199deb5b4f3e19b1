"""The tuning step on 8 fake CPU devices gives what it gives on one."""

import os
import subprocess
import sys

import numpy as np

_SCRIPT = """
import sys
sys.path[:0] = {paths!r}
import conftest, jax, numpy as np
from recapture_jax import sharding
from recapture_jax.tuning.step import Settings
import test_tuning as t
from tiny import random_params, video_model
assert jax.device_count() == {devices}
params, settings = random_params(), Settings(draws=8, frames=8)
model, data = video_model(params), t.make_data()
place = sharding.place_batch(sharding.make_mesh())
state, record = t.run(model, params, data, 2, ("spatial", "temporal"), settings, place=place)
leaves = jax.tree.leaves(state["lora"])
assert all(len(leaf.sharding.device_set) == {devices} for leaf in leaves)
np.savez({out!r}, *[np.asarray(leaf) for leaf in leaves])
"""


def run(tmp_path, devices: int):
    here = os.path.dirname(os.path.dirname(__file__))
    out = str(tmp_path / f"{devices}.npz")
    script = _SCRIPT.format(paths=[os.path.dirname(here), here], devices=devices, out=out)
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with np.load(out) as file:
        return [file[name] for name in file.files]


def test_eight_devices_equal_one(tmp_path):
    for one, eight in zip(run(tmp_path, 1), run(tmp_path, 8), strict=True):
        np.testing.assert_allclose(one, eight, rtol=1e-3, atol=2e-5)

"""The tuning step on meshes of fake CPU devices gives what it gives on one, at a share of the cost."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from test_preflight import svd

from recapture_jax import sharding
from recapture_jax.errors import InputError
from recapture_jax.models import zoo

_SCRIPT = """
import json, sys
sys.path[:0] = {paths!r}
import conftest, jax, numpy as np
from recapture_jax import sharding
from recapture_jax.tuning.step import Settings
import test_tuning as t
from tiny import random_params, video_model
assert jax.device_count() == 8
jax.config.update("jax_disable_most_optimizations", True)  # quicker to compile, and all that is run
t.T = 8
params, records = random_params(), []
model, data = video_model(params), t.make_data()
if {together}:
    def several(x):
        return np.stack([np.roll(x, i, 1 if x.ndim > 3 else 0) for i in range({together})])
    data = dict(anchor=jax.tree.map(several, data["anchor"]))
for draws, shape in {runs!r}:
    mesh = sharding.make_mesh(*shape)
    settings = Settings(draws=draws, frames=8)
    over = "data" if {together} and shape[0] > 1 else None
    options = dict(place=sharding.Placement(mesh, over), mesh=mesh, seeds=range({together}), over=over)
    state, record = t.run(model, params, data, 2, {kinds!r}, settings, **options)
    leaves = jax.tree.leaves(state["lora"])
    assert all(len(leaf.sharding.device_set) == mesh.size for leaf in leaves)
    np.savez("%s/%d-%s.npz" % ({out!r}, draws, "x".join(map(str, shape))), *map(np.asarray, leaves))
    records.append(record)
print(json.dumps(records))
"""

_SAMPLING = """
import json, sys
sys.path[:0] = {paths!r}
import conftest, jax, numpy as np
from recapture_jax import sharding
from recapture_jax.config import default_config
from recapture_jax.diffusion import sampling
from recapture_jax.stages import generate
from recapture_jax.stages.anchor import Anchor
from tiny import random_params, video_model
jax.config.update("jax_disable_most_optimizations", True)
step, flops, results = sampling._compiled_step, [], []
def counted(*args):
    flops.append(step.lower(*args).compile().cost_analysis()["flops"])
    return step(*args)
sampling._compiled_step = counted
config = default_config("smoke")
config.model.window, config.generate.sdedit_sigma, config.generate.steps = 8, 0.0, 2
config.generate.max_guidance, config.generate.known_weight = {guidance}, 0.5
config.generate.guidance_passes = {passes!r}
model = video_model(random_params())
rng = np.random.default_rng(0)
frames = rng.random((8, 16, 32, 3), np.float32)
anchor = Anchor(frames, rng.random(frames.shape[:3]) < 0.9, np.ones(frames.shape[:3], bool), None)
for shape in {meshes!r}:
    mesh = sharding.make_mesh(*shape)
    results.append(generate.generate(model, anchor, {{}}, config.model, config.generate, 0, mesh))
np.savez({out!r} + "/frames.npz", *results)
print(json.dumps([flops[0], flops[-1]]))
"""


def run(folder, runs, kinds, together) -> list[dict]:
    """The records of tuning on meshes of eight devices; runs: (draws, mesh) each."""
    return on_eight_devices(_SCRIPT, out=str(folder), runs=runs, kinds=kinds, together=together)


def on_eight_devices(script, **values):
    """What the script prints last."""
    here = os.path.dirname(os.path.dirname(__file__))
    script = script.format(paths=[os.path.dirname(here), here], **values)
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def leaves(folder, draws, mesh):
    with np.load(folder / f"{draws}-{'x'.join(map(str, mesh))}.npz") as file:
        return [file[name] for name in file.files]


@pytest.mark.parametrize(
    "kinds, draws, meshes, together",
    [
        (("spatial", "temporal"), 8, ((1, 1, 1), (8, 1, 1)), 0),
        (("temporal",), 4, ((1, 1, 1), (2, 2, 2)), 0),
        (("temporal",), 1, ((1, 1, 1), (1, 1, 8)), 0),
        (("temporal",), 1, ((1, 1, 1), (4, 1, 2)), 4),
    ],
    ids=["data", "data-fsdp-frames", "frames", "trajectories-frames"],
)
def test_eight_devices_equal_one_at_an_eighth_of_the_cost(tmp_path, kinds, draws, meshes, together):
    one, eight = run(tmp_path, [(draws, mesh) for mesh in meshes], kinds, together)
    for a, b in zip(*(leaves(tmp_path, draws, mesh) for mesh in meshes), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)
    assert eight["flops_per_step"] == pytest.approx(one["flops_per_step"] / 8, rel=0.1)


@pytest.mark.parametrize(
    "guidance, passes, mesh",
    [(1.0, "auto", (1, 1, 8)), (2.0, "together", (1, 2, 4)), (2.0, "apart", (1, 1, 8))],
    ids=["frames", "guided-fsdp-frames", "apart-frames"],
)
def test_sampling_on_eight_devices_equals_one_at_an_eighth_of_the_cost(
    tmp_path, guidance, passes, mesh
):
    told = {"guidance": guidance, "passes": passes, "meshes": ((1, 1, 1), mesh)}
    one, eight = on_eight_devices(_SAMPLING, out=str(tmp_path), **told)
    with np.load(tmp_path / "frames.npz") as made:
        np.testing.assert_allclose(made["arr_0"], made["arr_1"], atol=2e-4)
    assert eight == pytest.approx(one / 8, rel=0.1)


def test_full_size_weights_are_split_evenly():
    """What each of eight devices holds of Stable Video Diffusion's U-Net."""
    mesh = jax.sharding.AbstractMesh((1, 8, 1), sharding.AXES)
    shapes = [x.shape for x in jax.tree.leaves(zoo.abstract_params("unet", svd(14)))]
    parts = [sharding.weight_sharding(s, mesh).shard_shape(s) for s in shapes]
    whole, part = (sum(int(np.prod(s)) for s in each) for each in (shapes, parts))
    assert part < 1.01 * whole / 8


@pytest.mark.parametrize("shape, says", [((-1, 3, 1), "divide"), ((2, 1, 1), "2 x 1 x 1")])
def test_meshes_that_do_not_fit_are_refused(monkeypatch, shape, says):
    monkeypatch.setattr(jax, "devices", lambda: [None])
    with pytest.raises(InputError, match=f"{says}.*1 devices"):
        sharding.make_mesh(*shape)


@pytest.mark.parametrize(
    "shape, draws, frames, used",
    [((8, 1, 1), 8, 14, 8), ((8, 1, 1), 1, 14, 1), ((2, 2, 2), 4, 14, 8), ((2, 2, 2), 2, 14, 4)]
    + [((2, 2, 2), 8, 14, 4), ((1, 1, 8), 1, 16, 8), ((1, 1, 8), 1, 14, 1)],
)
def test_how_many_devices_a_step_is_split_over(shape, draws, frames, used):
    mesh = dict(zip(sharding.AXES, shape, strict=True))
    assert sharding.devices_used(mesh, draws, frames) == used

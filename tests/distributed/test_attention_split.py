"""Attention whose batch lies on a mesh of fake devices: its values, what the devices exchange, lowering for TPUs."""

import pytest
from test_mesh import on_eight_devices

_KERNELS = """
import json, re, sys
sys.path[:0] = {paths!r}
import conftest, contextlib, jax, jax.numpy as jnp, numpy as np
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding, PartitionSpec as P
from recapture_jax import sharding
from recapture_jax.models import attention as module
module.CHUNK_LOGITS = 4 * 2 * 16  # four queries at a time
mesh, axes, taken, batch = sharding.make_mesh(*{shape!r}), {axes!r}, {taken!r}, {batch!r}
rng = np.random.default_rng(0)
lead = (4, batch) if taken else (batch,)
args = [jnp.asarray(rng.standard_normal((*lead, n, 2, 8)), jnp.float32) for n in (10, 16, 16)]

def run(kind, split):
    @jax.checkpoint
    def attend(q, k, v):
        with module.split_over(mesh, axes) if split else contextlib.nullcontext():
            return module.attention(jnp.sin(q), k, v, kind)
    def loss(*args):
        out = attend(*args)
        return jnp.square(out).sum(), out
    def both(*args):
        grads, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*args)
        return out, *grads
    program, placed = both, args
    if taken:
        program = jax.vmap(both, spmd_axis_name=taken if split else None)
    if split:
        even = batch % np.prod([mesh.shape[a] for a in axes], dtype=int) == 0
        spec = P(*([taken] if taken else []), axes if even else None)
        placed = jax.device_put(args, NamedSharding(mesh, spec))
    # The general interpreter: that of TPU programs waits for ever on eight devices.
    with pltpu.force_tpu_interpret_mode(True):
        compiled = jax.jit(program).lower(*placed).compile()
    return compiled.as_text(), [np.asarray(x) for x in compiled(*placed)]

exact, exchanged = run("xla", False)[1], {{}}
for kind in {kinds!r}:
    text, values = run(kind, True)
    for ours, plain in zip(values, exact, strict=True):
        assert np.linalg.norm(ours - plain) <= 2e-6 * np.linalg.norm(plain), kind
    exchanged[kind] = re.findall(r"(all-gather|all-reduce|all-to-all|collective-permute)[(-]", text)
print(json.dumps(exchanged))
"""

_LOWERED = """
import json, sys
sys.path[:0] = {paths!r}
import conftest, jax, jax.numpy as jnp, numpy as np
from recapture_jax import sharding
from recapture_jax.config import default_config
from recapture_jax.diffusion import sampling
from recapture_jax.models import attention
from recapture_jax.stages import generate, tune
from recapture_jax.stages.anchor import Anchor
from recapture_jax.tuning.step import Settings, init_state, stack_states
import test_tuning as t
from tiny import random_params, video_model
t.T, counts = 8, []
attention._FLASH_TOKENS = 16  # the upper level has 24
model, mesh = video_model(random_params()), sharding.make_mesh(*{shape!r})
base = sharding.shard_weights(model.params["unet"], mesh)

def count_kernels(function, *args, **static):
    run, backend = jax.jit(function, static_argnames=tuple(static)), jax.default_backend
    jax.default_backend = lambda: "tpu"
    lowered = run.trace(*args, **static).lower(lowering_platforms=("tpu",))
    jax.default_backend = backend
    counts.append(lowered.as_text().count("@tpu_custom_call"))

for remat, together in ("none", 0), ("full", 0), ("none", 4), ("full", 4):
    trained = ("temporal",) if together else ("spatial", "temporal")
    numbers, data = Settings(draws=4, frames=4), t.make_data()
    state = init_state(t.loras(model.params, trained), numbers)
    over = None
    if together:
        state = stack_states([state] * together)
        data = dict(anchor=jax.tree.map(lambda x: jnp.stack([x] * together), data["anchor"]))
        over = "data" if together % mesh.shape["data"] == 0 else None
    networks = model.rebuilt(jnp.float32, remat=remat).networks
    step = tune._step(networks, numbers, trained, mesh, over, bool(together))
    state, data = sharding.replicate((state, data), mesh)
    count_kernels(step, state, {{}}, base, data)

step = sampling._compiled_step
def counted(*args):
    count_kernels(step.__wrapped__, *args[:-1], scales=args[-1])
    return args[1], args[1]
sampling._compiled_step = counted
config = default_config("smoke")
config.model.window, config.generate.steps, config.generate.sdedit_sigma = 8, 1, 0.0
config.generate.max_guidance = 2.0
frames = np.random.default_rng(0).random((8, 32, 48, 3), np.float32)
known = np.ones(frames.shape[:3], bool)
anchor = Anchor(frames, known, known, None)
for config.generate.guidance_passes in "together", "apart":
    generate.generate(model, anchor, {{}}, config.model, config.generate, 0, mesh)
print(json.dumps(counts))
"""

_ALL = ("xla", "chunked", "flash")


@pytest.mark.parametrize(
    "shape, axes, taken, batch, kinds",
    [
        ((8, 1, 1), ("data", "fsdp", "frames"), None, 8, _ALL),
        ((2, 2, 2), ("data", "frames", "fsdp"), None, 8, _ALL),
        ((2, 2, 2), ("fsdp", "frames"), "data", 4, _ALL),
    ],
    ids=["data", "data-frames-fsdp", "trajectories"],
)
def test_split_attention_is_plain_and_exchanges_nothing(shape, axes, taken, batch, kinds):
    told = {"shape": shape, "axes": axes, "taken": taken, "batch": batch, "kinds": kinds}
    assert on_eight_devices(_KERNELS, **told) == {kind: [] for kind in kinds}


@pytest.mark.parametrize(
    "axes, taken, batch",
    [(("data",), None, 3), ((), None, 2), (("frames",), None, 2), (("fsdp",), "data", 2)],
    ids=["uneven", "whole", "idle", "trajectories-idle"],
)
def test_attention_that_not_all_devices_share_is_plain(axes, taken, batch):
    told = {"shape": (2, 2, 2), "axes": axes, "taken": taken, "batch": batch}
    on_eight_devices(_KERNELS, kinds=("chunked", "flash"), **told)


@pytest.mark.parametrize("shape", [(2, 2, 2), (8, 1, 1)], ids=["2x2x2", "8x1x1"])
def test_programs_on_a_mesh_lower_for_tpus_with_their_kernel(shape):
    """Tuning one path and several, with and without remat; sampling with both passes at once and apart."""
    counts = on_eight_devices(_LOWERED, shape=shape)
    assert len(counts) == 6 and min(counts) > 0

"""The tuning step and loop: gradients, reuse of the spatial LoRA, descent, resuming after kill -9."""

import dataclasses
import functools
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recapture_jax import sharding
from recapture_jax.config import default_config
from recapture_jax.diffusion.guidance import Conditioning
from recapture_jax.errors import InputError
from recapture_jax.lora import tree as lora_tree
from recapture_jax.stages.tune import source_data
from recapture_jax.tuning import loop
from recapture_jax.tuning.step import (
    AnchorData,
    Settings,
    SourceData,
    batched,
    init_state,
    make_loss,
    make_step,
    spatial_loss,
    stack_states,
    temporal_loss,
    window_side,
)

T, H, W, C = 3, 4, 6, 4


def conditioning(batch, frames, seed):
    rng = np.random.default_rng(seed)
    return Conditioning(
        context=jnp.asarray(rng.standard_normal((batch, 1, 16), dtype=np.float32)),
        latents=jnp.asarray(rng.standard_normal((batch, frames, H, W, C), dtype=np.float32)),
        added_time_ids=jnp.tile(jnp.array([[6.0, 127.0, 0.02]]), (batch, 1)),
    )


def make_data():
    rng = np.random.default_rng(0)
    mask = rng.random((1, T, H, W)) < 0.7
    latents = rng.standard_normal((1, T, H, W, C)).astype(np.float32)
    source = rng.standard_normal((2, T, H, W, C)).astype(np.float32)
    return {
        "anchor": AnchorData(jnp.asarray(latents), jnp.asarray(mask), conditioning(1, T, 1)),
        "source": SourceData(jnp.asarray(source), conditioning(2, 1, 2)),
    }


@pytest.fixture(scope="module")
def data():
    return make_data()


def loras(params, kinds=("spatial", "temporal"), rank=2):
    made = {}
    for i, kind in enumerate(kinds):
        lora = lora_tree.init(jax.random.key(i), params["unet"], kind, rank)
        rng = np.random.default_rng(i)
        made[kind] = {
            path: {
                "a": d["a"],
                "b": jnp.asarray(0.1 * rng.standard_normal(d["b"].shape), jnp.float32),
            }
            for path, d in lora.items()
        }
    return made


def test_a_spatial_step_reads_the_condition_of_its_version_or_of_its_frame():
    """Frames and conditions that hold their own numbers show which ones meet."""
    versions = 2
    count = jnp.arange(versions * T, dtype=jnp.float32)
    latents = jnp.broadcast_to(count.reshape(versions, T, 1, 1, 1), (versions, T, H, W, C))
    clean = Settings(frames=64, sigma_mean=-15.0, sigma_std=1e-3)  # nearly no noise

    def met(images):
        numbers, pairs = jnp.arange(images, dtype=jnp.float32), set()
        cond = conditioning(images, 1, 3)
        cond = dataclasses.replace(cond, context=numbers[:, None, None] + jnp.zeros((1, 1, 16)))

        def network(x, c_noise, cond):
            frames = np.round(np.asarray(x.mean((1, 2, 3, 4)))).astype(int)
            pairs.update(
                zip(frames.tolist(), np.asarray(cond.context[:, 0, 0]).tolist(), strict=True)
            )
            return jnp.zeros_like(x)

        spatial_loss(network, SourceData(latents, cond), jax.random.key(0), clean)
        return pairs

    assert met(versions) == {(n, n // T) for n in range(versions * T)}
    assert met(versions * T) == {(n, n) for n in range(versions * T)}


@pytest.mark.parametrize("kind, count", [("first", 1), ("frame", 3), ("none", 1)])
def test_what_the_spatial_step_is_conditioned_on(tiny_model, kind, count):
    config = default_config("smoke")
    config.tune.augment, config.tune.spatial_condition = False, kind
    frames = np.random.default_rng(0).random((3, 32, 48, 3), np.float32)
    cond = source_data(tiny_model, frames, config.tune, config.generate, 0).cond
    assert len(cond.context) == len(cond.latents) == len(cond.added_time_ids) == count
    if kind == "none":
        assert not np.asarray(cond.context).any() and not np.asarray(cond.latents).any()
    else:
        images = frames[:count]
        expected = np.asarray(tiny_model.embed_image(jnp.asarray(images)))
        np.testing.assert_allclose(cond.context, expected, atol=1e-5)


def test_windows_show_the_same_place_of_latents_mask_and_condition():
    h, w, n = 24, 40, 32
    place = jnp.arange(h * w, dtype=jnp.float32).reshape(1, 1, h, w, 1)
    images = jnp.broadcast_to(place, (1, T, h, w, C))
    latents = 0.01 * images
    cond = dataclasses.replace(conditioning(1, T, 1), latents=images)
    known = (place[..., 0] % 3 == 0) & jnp.ones((1, T, h, w), bool)
    clean = Settings(draws=n, window=2, stride=4, sigma_mean=-15.0, sigma_std=1e-3)
    corners = []

    def network(x, c_noise, cond):
        np.testing.assert_allclose(x, 0.01 * cond.latents, atol=0.02)
        assert x.shape == (n, T, 12, 20, C)
        corners.extend(np.asarray(cond.latents[:, 0, 0, 0, 0]).astype(int).tolist())
        return jnp.zeros_like(x)

    value = temporal_loss(network, AnchorData(latents, known, cond), jax.random.key(0), clean)
    rows, columns = np.divmod(corners, w)
    assert rows.max() <= 12 and columns.max() <= 20 and len(set(corners)) > n // 2
    # Without noise the target is -eps, of variance 1: the loss is the share that is known.
    assert float(value) == pytest.approx(1 / 3, abs=0.02)


@pytest.mark.parametrize("length, window, side", [(24, 2, 12), (36, 2, 20), (9, 3, 4), (6, 8, 4)])
def test_sides_of_windows(length, window, side):
    assert window_side(length, Settings(window=window, stride=4)) == side
    assert window_side(3, Settings(window=window, stride=4)) == 3  # never more than there is


def test_a_window_costs_its_share(tiny_model):
    lora = loras(tiny_model.params, ("temporal",))
    rng = np.random.default_rng(0)
    latents = jnp.asarray(rng.standard_normal((1, T, 16, 16, C), dtype=np.float32))
    cond = dataclasses.replace(conditioning(1, T, 1), latents=latents)
    inputs = {"anchor": AnchorData(latents, jnp.ones(latents.shape[:-1], bool), cond)}
    flops = []
    for window in (1, 2):
        settings = Settings(window=window, stride=tiny_model.networks.unet.config.stride)
        loss = make_loss(tiny_model.network, settings, ("temporal",))
        grad = jax.jit(jax.grad(loss, has_aux=True))
        arguments = (lora, {}, tiny_model.params["unet"], inputs, jax.random.key(0))
        flops.append(grad.lower(*arguments).compile().cost_analysis()["flops"])
    assert flops[1] < 0.35 * flops[0]


def gradient(tiny_model, settings, trained, lora, frozen, data):
    loss = make_loss(tiny_model.network, settings, trained)
    grad = jax.jit(jax.grad(loss, has_aux=True))
    return grad(lora, frozen, tiny_model.params["unet"], data, jax.random.key(5))


@pytest.fixture(scope="module")
def joint(tiny_model, tiny_params, data):
    """(gradients, losses) of the joint step."""
    return gradient(tiny_model, Settings(), ("spatial", "temporal"), loras(tiny_params), {}, data)


def test_each_lora_learns_from_its_own_loss_only(tiny_model, tiny_params, data, joint):
    """The joint gradient is that of the two losses taken apart: stop_gradient separates them."""
    both = loras(tiny_params)
    for kind, other in (("spatial", "temporal"), ("temporal", "spatial")):
        alone, losses = gradient(
            tiny_model, Settings(), (kind,), {kind: both[kind]}, {other: both[other]}, data
        )
        for a, b in zip(jax.tree.leaves(alone[kind]), jax.tree.leaves(joint[0][kind]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
            assert np.abs(a).max() > 0
        np.testing.assert_allclose(losses[kind], joint[1][kind], rtol=1e-5)


def test_masked_latents_have_exactly_no_gradient(tiny_model, tiny_params, data):
    """Neither the loss nor any delta depends on what the *target* says where the mask is False."""
    from recapture_jax.diffusion import edm
    from recapture_jax.lora.adapter import adapters
    from recapture_jax.tuning.losses import v_loss

    anchor, lora = data["anchor"], loras(tiny_params)["temporal"]

    def loss(lora, target):
        sigma, noise = jnp.array([1.3]), jnp.ones_like(anchor.latents)
        with adapters(lora):
            network = tiny_model.network(tiny_model.params["unet"])
            prediction = edm.predict_v(network, anchor.latents, sigma, anchor.cond)
        return v_loss(prediction, target, noise, sigma, anchor.mask), prediction

    def of_prediction(prediction):
        return v_loss(
            prediction, anchor.latents, jnp.ones_like(prediction), jnp.array([1.3]), anchor.mask
        )

    grad = jax.jit(jax.grad(lambda lora, t: loss(lora, t)[0]))
    clean = grad(lora, anchor.latents)
    spoiled = grad(lora, jnp.where(anchor.mask[..., None], anchor.latents, jnp.nan))
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(spoiled), strict=True):
        np.testing.assert_array_equal(a, b)
    at_prediction = jax.grad(of_prediction)(anchor.latents)
    assert (np.asarray(at_prediction)[~np.asarray(anchor.mask)] == 0).all()
    assert (np.asarray(at_prediction)[np.asarray(anchor.mask)] != 0).any()


def run(
    model,
    params,
    data,
    steps,
    trained=("temporal",),
    settings=None,
    frozen=None,
    place=None,
    mesh=None,
    seed=0,
    seeds=(),
    over=None,
    **options,
):
    """seeds: of trajectories, which are the first axis of data['anchor']."""
    settings = settings or Settings(learning_rate=5e-3)
    lora = {k: lora_tree.init(jax.random.key(3), params["unet"], k, 2) for k in trained}
    network = functools.partial(model.network, place=place)
    step = make_step(network, settings, trained, *([place] if place else []))
    state = init_state(lora, settings, seed)
    if seeds:
        step = batched(step, over)
        state = stack_states([init_state(lora, settings, seed) for seed in seeds])
    return loop.fit(
        step,
        state,
        frozen or {},
        model.params["unet"],
        data,
        steps=steps,
        mesh=mesh or sharding.make_mesh(),
        label="test",
        **options,
    )


@pytest.mark.parametrize("seeds", [(0, 0), (3, 5)])
def test_trajectories_tuned_in_one_step_are_what_each_is_alone(
    tiny_model, tiny_params, data, seeds
):
    anchor = data["anchor"]
    other = dataclasses.replace(anchor, latents=anchor.latents[:, ::-1], mask=anchor.mask[:, ::-1])
    pair = {"anchor": jax.tree.map(lambda *x: jnp.stack(x), anchor, other)}
    # Small steps: AdamW's are of one size, whatever the gradient, and rounding would decide their sign.
    options = {"trained": ("temporal",), "settings": Settings(learning_rate=1e-4)}
    both, record = run(tiny_model, tiny_params, pair, 3, seeds=seeds, **options)
    losses = []
    for i, one in enumerate((anchor, other)):
        alone, own = run(tiny_model, tiny_params, {"anchor": one}, 3, seed=seeds[i], **options)
        losses.append(own["last"]["loss_temporal"])
        for a, b in zip(jax.tree.leaves(both["lora"]), jax.tree.leaves(alone["lora"]), strict=True):
            np.testing.assert_allclose(a[i], b, atol=2e-5)
    assert abs(losses[0] - losses[1]) > 1e-3  # they are two tasks
    assert record["last"]["loss_temporal"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_joint_step_fits_the_same_spatial_lora_as_the_spatial_step(tiny_model, tiny_params, data):
    """What allows the stage cache to reuse a spatial LoRA for another camera path."""
    together, _ = run(tiny_model, tiny_params, data, 3, ("spatial", "temporal"))
    alone, _ = run(tiny_model, tiny_params, data, 3, ("spatial",))
    for a, b in zip(
        jax.tree.leaves(together["lora"]["spatial"]),
        jax.tree.leaves(alone["lora"]["spatial"]),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_spatial_rate_is_a_share_of_the_learning_rate(tiny_model, tiny_params, data):
    """A quarter of the rate moves everything a quarter as far in the first step."""

    def moved(rate):
        settings = Settings(spatial_rate=rate)
        state, _ = run(tiny_model, tiny_params, data, 1, ("spatial",), settings)
        before = lora_tree.init(jax.random.key(3), tiny_params["unet"], "spatial", 2)
        return jax.tree.map(lambda a, b: a - b, state["lora"]["spatial"], before)

    whole, part = moved(1.0), moved(0.25)
    assert max(np.abs(x).max() for x in jax.tree.leaves(whole)) > 1e-4
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
        np.testing.assert_allclose(0.25 * a, b, atol=1e-7)


def test_tuning_lowers_the_masked_loss(tiny_model, tiny_params, data):
    state, record = run(tiny_model, tiny_params, data, 100)
    loss = make_loss(tiny_model.network, Settings(draws=8), ("temporal",))
    value = jax.jit(
        lambda lora: loss(lora, {}, tiny_model.params["unet"], data, jax.random.key(99))[0]
    )
    before = lora_tree.init(jax.random.key(3), tiny_params["unet"], "temporal", 2)
    assert float(value(state["lora"])) < 0.9 * float(value({"temporal": before}))
    assert record["steps_per_second"] > 0


def test_non_finite_loss_stops_with_one_line(tiny_model, tiny_params, data):
    bad = dict(data)
    anchor = data["anchor"]
    bad["anchor"] = AnchorData(anchor.latents * jnp.inf, anchor.mask, anchor.cond)
    with pytest.raises(InputError, match="not finite at step 1") as error:
        run(tiny_model, tiny_params, bad, 3)
    assert "\n" not in str(error.value)


_CHILD = """
import sys, pathlib
sys.path[:0] = {paths!r}
import conftest, jax, numpy as np
import test_tuning as t
from tiny import random_params, video_model
from recapture_jax.checkpoints import TrainCheckpoints
from recapture_jax.progress import Metrics
params = random_params()
rng = np.random.default_rng(0)
data = t.make_data()
with (
    TrainCheckpoints(pathlib.Path(sys.argv[1]), 1, 2) as checkpoints,
    Metrics(pathlib.Path(sys.argv[1] + ".jsonl")) as metrics,
):
    options = {{"checkpoints": checkpoints, "checkpoint_every": 5, "metrics": metrics}}
    state, _ = t.run(video_model(params), params, data, 40, **options)
flat = {{"/".join(map(str, k)): np.asarray(v) for k, v in jax.tree_util.tree_flatten_with_path(state["lora"])[0]}}
np.savez(sys.argv[2], **flat)
"""


def test_killed_and_resumed_run_gives_the_same_lora(tmp_path):
    """kill -9 at a random step; the resumed run ends bit for bit where an uninterrupted one does, its metrics too."""
    here = os.path.dirname(__file__)
    script = tmp_path / "child.py"
    script.write_text(_CHILD.format(paths=[os.path.dirname(here), here]))

    def start(folder, out):
        return subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / folder), str(tmp_path / out)]
        )

    assert start("whole", "whole.npz").wait() == 0
    child = start("killed", "killed.npz")
    deadline = time.time() + 120
    while not list((tmp_path / "killed").glob("[0-9]*")) and time.time() < deadline:
        time.sleep(0.01)
    time.sleep(np.random.default_rng().uniform(0, 0.1))
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (tmp_path / "killed.npz").exists()
    assert start("killed", "killed.npz").wait() == 0
    whole, resumed = np.load(tmp_path / "whole.npz"), np.load(tmp_path / "killed.npz")
    assert set(whole.files) == set(resumed.files)
    for name in whole.files:
        np.testing.assert_array_equal(whole[name], resumed[name])
    metrics = [(tmp_path / f"{name}.jsonl").read_text() for name in ("whole", "killed")]
    assert metrics[0] == metrics[1] and len(metrics[0].splitlines()) == 40

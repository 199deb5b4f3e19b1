"""Memory of a run's stages, told before it starts: against XLA's plans, and what is done about it."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from tiny import CONFIG

from recapture_jax import cost, preflight
from recapture_jax.config import default_config
from recapture_jax.errors import InputError
from recapture_jax.models import zoo
from recapture_jax.models.clip_vision import CLIPVisionConfig
from recapture_jax.models.unet import UNetConfig
from recapture_jax.models.vae import VAEConfig

GIB = 2**30
FRAMES, SIZE = 4, (256, 384)


def svd(frames):
    """The configuration of a converted Stable Video Diffusion."""
    parts = {
        "unet": UNetConfig(num_frames=frames),
        "vae": VAEConfig(),
        "image_encoder": CLIPVisionConfig.vit_h(),
    }
    found = {name: dataclasses.asdict(part) for name, part in parts.items()}
    return found | {"num_frames": frames}


@pytest.fixture(scope="module")
def tiny_estimate():
    config = default_config("small")
    config.lora.rank, config.tune.window = 4, 1
    tiny = CONFIG | {"num_frames": FRAMES}
    return preflight.Estimate(tiny, config, jnp.float32, FRAMES, SIZE)


def test_full_size_in_half_precision():
    """25 x 576 x 1024 with rematerialisation: what one card of 32 GiB has to hold."""
    needs = preflight.Estimate(svd(25), default_config("svd"), jnp.bfloat16, 25, (576, 1024))
    assert needs.tune("full").total < 30 * GIB
    assert needs.sample().total < 18 * GIB
    assert needs.sample(apart=True).total < 12 * GIB
    assert needs.decode(4).working < 10 * GIB


def test_plan_takes_the_fastest_that_fits(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    config = default_config("svd")
    config.model.offload = "never"
    args = CONFIG, config, jnp.float32, 7, (128, 192)
    free = preflight.plan(*args, limit=80 * GIB)
    assert (free.remat, free.decode_chunk) == ("none", config.generate.decode_chunk)
    assert free.report()["gib"].keys() == {"encode", "tune", "sample", "decode"}
    most = {need.stage: need.total for need in free.needs}
    tight = preflight.plan(*args, limit=int(most["tune"] / 0.69))
    assert tight.remat == "none"
    tight = preflight.plan(*args, limit=int(most["tune"] / 0.71))
    assert tight.remat == "dots" and 1 < tight.decode_chunk < 7
    (decode,) = (need for need in tight.needs if need.stage == "decode")
    assert decode.total <= 0.9 * tight.limit


def test_weights_wait_in_main_memory_before_anything_is_computed_twice(monkeypatch):
    config = default_config("svd")
    args = CONFIG, config, jnp.float32, 7, (128, 192)
    assert not preflight.plan(*args, limit=80 * GIB).offload
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    free = preflight.plan(*args, limit=80 * GIB)
    assert not free.offload
    needs = {need.stage: need for need in free.needs}
    tight = preflight.plan(*args, limit=int(needs["tune"].total / 0.7) - 2)
    assert (tight.remat, tight.offload) == ("none", True)
    held = {need.stage: need.weights for need in tight.needs}
    sizes = {
        name: sum(x.size * 4 for x in jax.tree.leaves(zoo.abstract_params(name, CONFIG)))
        for name in zoo.COMPONENTS
    }
    assert held["sample"] == sizes["unet"] and held["decode"] == sizes["vae"]
    assert held["encode"] == sizes["vae"] + sizes["image_encoder"]
    assert needs["tune"].weights - held["tune"] == sizes["vae"] + sizes["image_encoder"]
    config.model.offload = "always"
    assert preflight.plan(*args, limit=80 * GIB).offload


def test_passes_of_guidance_run_apart_where_they_do_not_fit_together(capsys):
    config = default_config("svd")
    config.model.offload, config.tune.window = "never", 16
    args = CONFIG | {"num_frames": 28}, config, jnp.float32, 28, (128, 192)
    free = preflight.plan(*args, limit=80 * GIB)
    assert not free.apart and free.report()["guidance_passes"] == "together"
    needs = {need.stage: need for need in free.needs}
    assert needs["sample"].total > needs["tune"].total
    limit = int(needs["sample"].total / 0.9) - 2
    tight = preflight.plan(*args, limit=limit)
    assert tight.apart and "one after the other" in capsys.readouterr().err
    held = {need.stage: need for need in tight.needs}["sample"]
    assert held.working < 0.7 * needs["sample"].working
    config.generate.guidance_passes = "apart"
    assert preflight.plan(*args, limit=80 * GIB).apart
    config.generate.guidance_passes = "together"
    with pytest.raises(InputError, match=r"to sample .*config\.generate\.guidance_passes=auto"):
        preflight.plan(*args, limit=limit)
    config.generate.max_guidance = 1.0  # one pass alone
    config.generate.guidance_passes = "auto"
    assert not preflight.plan(*args, limit=limit).apart


def test_what_does_not_fit_is_refused_with_the_numbers(monkeypatch):
    config = default_config("svd")
    with pytest.raises(InputError) as error:
        preflight.plan(CONFIG, config, jnp.float32, 9, (128, 192), 2**20)
    text = str(error.value)
    assert "9 frames of 192x128 need about" in text and "1 MiB" in text and "\n" not in text
    assert "config.video.short_side" in text


def test_remat_costs_time_and_saves_nothing_on_a_cpu():
    found = preflight.plan(CONFIG, default_config("svd"), jnp.float32, 3, (64, 64))
    assert found.remat == "none" and found.limit > GIB


def test_windows_in_space_and_time_count(tiny_estimate):
    """A step sees a quarter of the frame; of a long clip one window."""
    tiny = CONFIG | {"num_frames": FRAMES}
    config = tiny_estimate.config.copy_and_resolve_references()
    config.tune.window = 2
    parts = preflight.Estimate(tiny, config, jnp.float32, 10, SIZE)
    assert parts.tune("none").working < 0.35 * tiny_estimate.tune("none").working


def test_a_mesh_shares_draws_frames_and_weights(tiny_estimate):
    tiny = CONFIG | {"num_frames": FRAMES}
    config = tiny_estimate.config.copy_and_resolve_references()
    config.tune.draws = 4
    config.mesh.data, config.mesh.fsdp, config.mesh.frames = 2, 2, 2
    one, many = (
        tiny_estimate.tune("full"),
        preflight.Estimate(tiny, config, jnp.float32, FRAMES, SIZE),
    )
    assert many.tune("full").working == pytest.approx(one.working / 2, rel=0.2)
    assert many.tune("full").weights < one.weights


def test_operations_are_those_of_xla():
    """Against the count of the compiler for the program as it is written, loops apart."""

    def program(x, kernel, w):
        y = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.checkpoint(lambda y: jnp.einsum("bhwc,cd->bhwd", y, w))(y)

    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 8, 8, 6), (3, 3, 6, 10), (10, 7))]
    exact = 2 * 2 * 4 * 4 * (9 * 6 * 10 + 10 * 7)
    assert cost.flops(program, *args) == exact
    x = jax.ShapeDtypeStruct((5, 4, 4), jnp.float32)
    assert cost.flops(lambda x: jax.lax.map(lambda a: a @ a, x), x) == 5 * 2 * 4**3
    pick = jax.ShapeDtypeStruct((), jnp.bool_)
    either = lambda p, a: jax.lax.cond(p, lambda a: a @ a @ a, lambda a: a, a)  # noqa: E731
    assert cost.flops(either, pick, jax.ShapeDtypeStruct((4, 4), jnp.float32)) == 2 * 2 * 4**3


def test_expected_time_follows_the_work(tiny_estimate, capsys):
    once = tiny_estimate.operations("none")
    assert once["tune"] < tiny_estimate.operations("full")["tune"]
    twice = default_config("small")
    twice.lora.rank, twice.tune.window = 4, 1
    twice.tune.steps *= 2
    twice.generate.steps, twice.generate.sdedit_steps = 4, 2
    twice.generate.max_guidance = 2.0
    args = (CONFIG | {"num_frames": FRAMES}, twice, jnp.float32)
    found = preflight.Estimate(*args, FRAMES, SIZE).operations("none")
    assert found["tune"] == pytest.approx(2 * once["tune"])
    assert found["sample"] == pytest.approx(4 * once["sample"])
    assert found["decode"] == once["decode"] and found["encode"] == once["encode"]
    report = preflight.plan(*args, FRAMES, SIZE, limit=64 * GIB).report()
    assert set(report["expected_seconds"]) == {"encode", "tune", "sample", "decode"}
    assert "time: about" in capsys.readouterr().err

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
    config.tune.window, config.tune.spatial_weight = 2, 0.0  # a spatial step sees whole frames
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


def test_plain_attention_counts_with_all_its_logits(tiny_estimate):
    """At full size half of a guided step's logits alone would fill a card; chunks of them are nothing."""
    estimates = {}
    for name in ("chunked", "xla"):
        config = default_config("svd")
        config.model.attention = name
        estimates[name] = preflight.Estimate(svd(14), config, jnp.bfloat16, 14, (576, 1024))
    logits = 28 * 5 * (72 * 128) ** 2 * 4
    assert estimates["chunked"].sample().total < 16 * GIB
    assert logits < estimates["xla"].sample().working < 2 * logits
    assert logits / 2 < estimates["xla"].sample(apart=True).working < logits
    config = tiny_estimate.config.copy_and_resolve_references()
    config.model.attention = "xla"
    tiny = CONFIG | {"num_frames": FRAMES}
    plain = preflight.Estimate(tiny, config, jnp.float32, FRAMES, SIZE)
    one = FRAMES * 2 * (32 * 48) ** 2 * 4  # of a level with two heads, and there are more of them
    for remat in ("none", "full"):
        more = plain.tune(remat).working - tiny_estimate.tune(remat).working
        assert 1.3 * one < more < 4.5 * one


def test_a_tuning_step_is_the_larger_of_both_or_their_sum(tiny_estimate):
    tiny = CONFIG | {"num_frames": FRAMES}

    def working(**tune):
        config = tiny_estimate.config.copy_and_resolve_references()
        config.tune.update(tune)
        need = preflight.Estimate(tiny, config, jnp.float32, FRAMES, SIZE).tune("full")
        return need.working

    many = {"window": 4, "frames_per_step": FRAMES}
    spatial = working(**many, temporal_weight=0.0)
    temporal = working(**many, spatial_weight=0.0)
    assert temporal < spatial / 4 < tiny_estimate.tune("full").working
    assert working(**many) == spatial
    assert working(**many, schedule="joint") == pytest.approx(spatial + temporal, abs=2)
    assert working(temporal_weight=0.0, spatial_weight=0.0) == 0
    assert working(window=1) == tiny_estimate.tune("full").working


@pytest.mark.parametrize(
    "mesh, together, draws, share",
    [
        ((8, 1, 1), 8, 1, 1.0),  # one trajectory on each device
        ((4, 1, 2), 4, 4, 4.0),  # draws of several lie on one, so no frames are split
        ((4, 1, 1), 3, 4, 3.0),  # draws are split, not the three trajectories
        ((1, 1, 1), 2, 1, 2.0),
    ],
)
def test_trajectories_are_split_as_the_tuner_splits_them(
    tiny_estimate, monkeypatch, mesh, together, draws, share
):
    config = tiny_estimate.config.copy_and_resolve_references()
    config.tune.draws, config.tune.spatial_weight = draws, 0.0
    config.mesh.data, config.mesh.fsdp, config.mesh.frames = mesh
    tiny = CONFIG | {"num_frames": FRAMES}
    many = preflight.Estimate(tiny, config, jnp.float32, FRAMES, SIZE)
    # What is kept is the same for all, and traced elsewhere.
    monkeypatch.setattr(many, "_kept", lambda remat, kind: (0, draws * 2**20))
    alone = preflight.Estimate(tiny, tiny_estimate.config, jnp.float32, FRAMES, SIZE)
    monkeypatch.setattr(alone, "_kept", lambda remat, kind: (0, 2**20))
    one = alone.tune("full").working
    assert many.tune("full", together).working == pytest.approx(share * one, abs=2)


def test_each_stage_is_told_with_what_the_device_has(capsys):
    found = preflight.plan(CONFIG, default_config("svd"), jnp.float32, 3, (64, 64), limit=80 * GIB)
    (line,) = (x for x in capsys.readouterr().err.splitlines() if "memory:" in x)
    assert "of 80.0 GiB (encode " in line and "model.remat=none" in line
    for need in found.needs:
        assert f"{need.stage} {preflight._gib(need.total)}" in line


def long_clip(**model):
    """Frames that are dear at once: arguments of `plan` but for the limit."""
    config = default_config("svd")
    config.tune.spatial_weight = 0.0
    config.model.update(model)
    return CONFIG | {"num_frames": 14}, config, jnp.float32, 20, (64, 96)


@pytest.fixture(scope="module")
def tuning_bytes():
    """Of windows of so many frames; 0: as trained."""
    found = {}
    for window in (0, 8, 6):
        needs = preflight.plan(*long_clip(window=window), limit=80 * GIB).needs
        found[window] = max(n.total for n in needs if n.stage in ("tune", "sample"))
    return found


def test_shorter_windows_are_taken_aloud_where_nothing_else_helps(tuning_bytes, capsys):
    def limit(window):
        return int(tuning_bytes[window] / 0.9) + 2

    free = preflight.plan(*long_clip(), limit=limit(0))
    assert (free.window, free.report()["window"]) == (0, 0)
    assert "windows" not in capsys.readouterr().err
    tight = preflight.plan(*long_clip(window_overlap=7), limit=limit(0) - 4)
    assert (tight.window, tight.window_overlap) == (8, 0)  # 7 of 8 would be shared
    assert "windows of 8 (model.window=8)" in capsys.readouterr().err
    held = {n.stage: n.total for n in tight.needs}
    assert max(held["tune"], held["sample"]) == tuning_bytes[8]
    tight = preflight.plan(*long_clip(window_overlap=3), limit=limit(8) - 4)
    assert (tight.window, tight.window_overlap) == (6, 3)
    with pytest.raises(InputError, match="20 frames .*; nor do windows of 6 frames fit; try"):
        preflight.plan(*long_clip(), limit=limit(6) - 4)


def test_windows_stay_as_asked_for_or_while_something_free_is_ruled_out(tuning_bytes):
    limit = int(tuning_bytes[0] / 0.9) - 2
    with pytest.raises(InputError, match=r"try config\.model\.offload=auto"):
        preflight.plan(*long_clip(offload="never"), limit=limit)
    with pytest.raises(InputError, match=r"config\.model\.window=8"):
        preflight.plan(*long_clip(window=14), limit=limit)
    with pytest.raises(InputError, match=r"config\.model\.window=8"):
        preflight.plan(*long_clip(), limit=limit, together=2)  # each by itself may still fit


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

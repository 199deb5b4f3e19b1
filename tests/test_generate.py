"""Sampling held to the anchor where it is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recapture_jax.config import default_config
from recapture_jax.lora import tree as lora_tree
from recapture_jax.stages import generate
from recapture_jax.stages.anchor import Anchor

MODEL = default_config("smoke").model


@pytest.fixture(scope="module")
def anchor():
    frames = np.random.default_rng(0).random((3, 16, 32, 3), np.float32)
    mask = np.ones(frames.shape[:3], bool)
    mask[1:, :, 16:] = False
    return Anchor(frames, mask, mask, None)


@pytest.fixture(scope="module")
def config():
    group = default_config("smoke").generate
    group.steps, group.sdedit_sigma, group.known_sigma_min = 2, 0.0, 0.0
    group.keep_pixels = False
    return group


def test_known_latents_are_the_anchors_and_the_rest_is_sampled(tiny_model, anchor, config):
    config.known_weight = 1.0
    project = generate.keep_known(tiny_model, anchor, config)
    sampled = jnp.full((1, *tiny_model.encode_video(anchor.frames).shape), 7.0)
    kept = np.asarray(project(sampled, jnp.float32(0.5), 0))[0]
    latents = np.asarray(tiny_model.encode_video(anchor.frames))
    half = latents.shape[2] // 2
    np.testing.assert_allclose(kept[:, :, :half], latents[:, :, :half], atol=1e-6)
    np.testing.assert_allclose(kept[0], latents[0], atol=1e-6)
    assert (kept[1:, :, half:] == 7.0).all()


def test_free_below_the_lowest_level_and_half_way_at_half_the_weight(tiny_model, anchor, config):
    config.known_weight, config.known_sigma_min = 0.5, 1.0
    project = generate.keep_known(tiny_model, anchor, config)
    latents = np.asarray(tiny_model.encode_video(anchor.frames))[None]
    zero = jnp.zeros(latents.shape)
    assert (np.asarray(project(zero, jnp.float32(0.99), 0)) == 0).all()
    at = np.asarray(project(zero, jnp.float32(1.0), 0))
    np.testing.assert_allclose(at[:, 0], 0.5 * latents[:, 0], atol=1e-6)
    config.known_sigma_min = 0.0


def test_the_whole_sampling_ends_at_a_fully_known_anchor(tiny_model, anchor, config):
    config.known_weight, config.known_sigma_min = 1.0, 0.0
    known = Anchor(anchor.frames, np.ones_like(anchor.mask), anchor.mask, None)
    result = generate.generate(tiny_model, known, {}, MODEL, config, seed=0)
    plain = tiny_model.decode(tiny_model.encode_video(anchor.frames), 3)
    np.testing.assert_allclose(result, plain, atol=1e-5)


@pytest.mark.parametrize("window", [0, 2])
def test_passes_of_guidance_apart_give_what_they_give_together(tiny_model, anchor, config, window):
    """But for rounding, which sampling amplifies; tests/test_shortcuts.py looks at one step."""
    group, both = MODEL.copy_and_resolve_references(), config.copy_and_resolve_references()
    group.window, both.known_weight, both.max_guidance = window, 0.0, 3.0
    made = {}
    for passes in ("together", "apart"):
        both.guidance_passes = passes
        made[passes] = generate.generate(tiny_model, anchor, {}, group, both, seed=0)
    assert np.linalg.norm(made["apart"] - made["together"]) < 1e-4 * np.linalg.norm(made["apart"])
    both.max_guidance = 1.0  # there is one pass alone
    alone = generate.generate(tiny_model, anchor, {}, group, both, seed=0)
    assert np.linalg.norm(alone - made["apart"]) > 1e-2 * np.linalg.norm(made["apart"])


def test_loras_of_the_same_layers_add_up(tiny_model, tiny_params, anchor, config):
    """As they did when the second was fitted beside the first."""
    config.known_weight = 0.0
    keys = jax.random.split(jax.random.key(5))
    drawn = [lora_tree.init(key, tiny_params["unet"], "spatial", 2) for key in keys]
    halves = [{p: {"a": d["a"], "b": d["b"] + 0.1} for p, d in lora.items()} for lora in drawn]
    both = {
        p: {
            "a": jnp.hstack([h[p]["a"] for h in halves]),
            "b": jnp.vstack([h[p]["b"] for h in halves]),
        }
        for p in halves[0]
    }
    loras = dict(zip(("spatial", "temporal"), halves, strict=True))
    sampled = generate.generate(tiny_model, anchor, loras, MODEL, config, seed=0)
    merged = generate.generate(tiny_model, anchor, {"temporal": both}, MODEL, config, seed=0)
    without = generate.generate(tiny_model, anchor, {}, MODEL, config, seed=0)
    np.testing.assert_allclose(sampled, merged, atol=1e-4)
    assert np.abs(sampled - without).max() > 1e-2


@pytest.mark.parametrize(
    "chunk, lengths", [(7, [5, 5, 5]), (14, [8, 7]), (15, [15]), (1, [1] * 15)]
)
def test_frames_are_decoded_in_even_chunks(tiny_model, monkeypatch, chunk, lengths):
    seen = []

    def decode(params, latents):
        seen.append(len(latents))
        return latents

    monkeypatch.setitem(vars(tiny_model), "_decode", decode)
    latents = jnp.arange(15.0)[:, None, None, None] * jnp.ones((1, 2, 2, 4))
    scaled = tiny_model.decode(latents, chunk) * tiny_model.networks.vae.config.scaling_factor
    np.testing.assert_allclose(scaled, latents, rtol=1e-6)
    assert seen == lengths


def test_no_weight_no_projection(tiny_model, anchor, config):
    config.known_weight = 0.0
    assert generate.keep_known(tiny_model, anchor, config) is None


def test_kept_pixels_are_the_anchors_and_fade_towards_holes(anchor):
    made = np.full(anchor.frames.shape, 0.5, np.float32)
    kept = generate.keep_pixels(made, anchor)
    np.testing.assert_allclose(kept[0], anchor.frames[0], atol=1e-6)  # nothing unknown
    away = 16 - int(generate.FADE) + 1  # columns as far from the hole as the fade reaches
    np.testing.assert_allclose(kept[1:, :, :away], anchor.frames[1:, :, :away], atol=1e-6)
    np.testing.assert_array_equal(kept[1:, :, 16:], made[1:, :, 16:])
    share = 1 / generate.FADE
    edge = share * anchor.frames[1:, :, 15] + (1 - share) * made[1:, :, 15]
    np.testing.assert_allclose(kept[1:, :, 15], edge, atol=1e-6)


def test_a_run_keeps_pixels_only_where_it_is_asked_to(tiny_model, anchor, config):
    config.known_weight = 0.0
    results = []
    for keep in (False, True):
        config.keep_pixels = keep
        results.append(generate.generate(tiny_model, anchor, {}, MODEL, config, seed=0))
    config.keep_pixels = False
    np.testing.assert_array_equal(results[1], generate.keep_pixels(results[0], anchor))
    assert np.abs(results[0] - results[1]).max() > 1e-3

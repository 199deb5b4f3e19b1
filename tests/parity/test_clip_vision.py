"""CLIP vision tower and its preprocessing against transformers and diffusers, random weights."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as svd
from torch_params import flax_from_torch, randomise, rel_error

from recapture_jax.errors import InputError
from recapture_jax.models import clip_vision
from recapture_jax.models.clip_vision import CLIPVision, CLIPVisionConfig
from recapture_jax.models.image_preprocess import CLIP_MEAN, CLIP_STD, clip_preprocess

TOLERANCE = 2e-6  # float32; measured 2.5e-7 to 3.3e-7, the mutations below give 9e-5 and more
TINY = CLIPVisionConfig(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=56,
    patch_size=14,
    projection_dim=32,
)


def torch_tower(config):
    torch.manual_seed(0)
    hf_config = transformers.CLIPVisionConfig(**dataclasses.asdict(config))
    return randomise(transformers.CLIPVisionModelWithProjection(hf_config), seed=1)


@pytest.fixture(scope="module")
def tiny():
    """Flax parameters, pixels and torch's image_embeds of the tiny exact-GELU tower."""
    model = torch_tower(TINY)
    pixels = np.random.default_rng(2).standard_normal((2, 56, 56, 3)).astype(np.float32)
    return flax_from_torch(model), pixels, embeds(model, pixels)


@torch.no_grad()
def embeds(model, pixels):
    return model(torch.from_numpy(pixels).permute(0, 3, 1, 2)).image_embeds


def run(config, params, pixels, dtype=jnp.float32):
    return CLIPVision(config, dtype).apply({"params": params}, pixels)


def test_tiny_tower(tiny):
    params, pixels, expected = tiny
    assert rel_error(run(TINY, params, pixels), expected) < TOLERANCE


def test_quick_gelu_at_224_pixels():
    config = dataclasses.replace(TINY, image_size=224, hidden_act="quick_gelu")
    model = torch_tower(config)
    pixels = np.random.default_rng(3).standard_normal((1, 224, 224, 3)).astype(np.float32)
    params = flax_from_torch(model)
    assert rel_error(run(config, params, pixels), embeds(model, pixels)) < TOLERANCE


@pytest.mark.parametrize(
    "change, at_least",
    [({"layer_norm_eps": 1e-6}, 5e-5), ({"hidden_act": "quick_gelu"}, 1e-3)],
)
def test_wrong_config_is_visible(tiny, change, at_least):
    params, pixels, expected = tiny
    wrong = run(dataclasses.replace(TINY, **change), params, pixels)
    assert rel_error(wrong, expected) > at_least > 10 * TOLERANCE


def test_tanh_gelu_is_visible(tiny, monkeypatch):
    params, pixels, expected = tiny
    monkeypatch.setitem(clip_vision.ACTIVATIONS, "gelu", jax.nn.gelu)
    assert rel_error(run(TINY, params, pixels), expected) > 5e-5 > 10 * TOLERANCE


def test_bfloat16_keeps_to_its_precision(tiny):
    params, pixels, expected = tiny
    result = run(TINY, params, pixels, jnp.bfloat16)
    assert result.dtype == jnp.bfloat16
    assert rel_error(result, expected) < 0.02  # 8 bits of mantissa; measured 0.0066


def test_parameter_tree_is_the_mechanical_map(tiny):
    init = CLIPVision(TINY).init
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 56, 56, 3)))["params"]
    assert jax.tree.map(jnp.shape, tiny[0]) == jax.tree.map(lambda x: x.shape, shapes)


def test_full_size_counts():
    pixels = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    model = CLIPVision(CLIPVisionConfig.vit_h())
    result, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), pixels)
    leaves = jax.tree.leaves(variables["params"])
    assert result.shape == (1, 1024)
    assert (sum(x.size for x in leaves), len(leaves)) == (632_076_800, 520)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"hidden_act": "relu"}, "expected one of"),
        ({"num_attention_heads": 5}, "not a multiple"),
        ({"patch_size": 57}, "larger than image_size"),
    ],
)
def test_bad_config_is_refused(change, match):
    with pytest.raises(InputError, match=match):
        dataclasses.replace(TINY, **change)


def test_wrong_image_size_is_refused():
    with pytest.raises(InputError, match=r"expected \[B, 56, 56, 3\]"):
        CLIPVision(TINY).apply({"params": {}}, jnp.zeros((1, 224, 224, 3)))


def test_config_from_dict(tmp_path):
    config = CLIPVisionConfig.vit_h()
    transformers.CLIPVisionConfig(**dataclasses.asdict(config)).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert CLIPVisionConfig.from_dict(values) == config  # with fields that are not ours
    del values["hidden_act"]
    with pytest.raises(InputError, match="lacks hidden_act"):
        CLIPVisionConfig.from_dict(values)


@pytest.mark.parametrize("height, width", [(576, 1024), (256, 384), (100, 150), (33, 47)])
def test_preprocess(height, width):
    # Torch in float64: in float32 its own rounding of sampling positions (6e-5 of a pixel at
    # column 1000) changes white noise by up to 1.6e-5, fifty times our error (up to 3.1e-7).
    images = np.random.default_rng(4).random((2, height, width, 3), dtype=np.float32)
    x = torch.from_numpy(images).double().permute(0, 3, 1, 2)
    x = (svd._resize_with_antialiasing(x * 2 - 1, (224, 224)) + 1) / 2
    mean, std = torch.tensor(CLIP_MEAN).double(), torch.tensor(CLIP_STD).double()
    expected = (x.permute(0, 2, 3, 1) - mean) / std
    assert rel_error(clip_preprocess(jnp.asarray(images)), expected) < 1e-6


def test_image_to_context_against_the_pipeline():
    """The pipeline's own float32 method from a PIL image on, with its processors."""
    config = dataclasses.replace(TINY, image_size=224)
    tower = torch_tower(config)
    processors = types.SimpleNamespace(
        image_encoder=tower,
        video_processor=VaeImageProcessor(),
        feature_extractor=transformers.CLIPImageProcessor(),
    )
    coarse = np.random.default_rng(5).integers(0, 256, (9, 16, 3), dtype=np.uint8)
    image = VaeImageProcessor.numpy_to_pil(coarse / 255.0)[0].resize((512, 288))
    with torch.no_grad():
        expected = svd.StableVideoDiffusionPipeline._encode_image(
            processors, image, "cpu", num_videos_per_prompt=1, do_classifier_free_guidance=True
        )
    pixels = clip_preprocess(jnp.asarray(image, jnp.float32)[None] / 255)
    context = run(config, flax_from_torch(tower), pixels)[:, None]
    assert not expected[:1].any()
    assert rel_error(context, expected[1:]) < 1e-5

"""Files written by diffusers and transformers themselves, converted and restored: equal values."""

import json

import jax
import numpy as np
import pytest
import svd_layouts as layouts
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from safetensors.numpy import save_file
from torch_params import flax_from_torch, randomise
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from converters import svd
from recapture_jax.checkpoints import restore_tree
from recapture_jax.models.zoo import abstract_params


@pytest.fixture(scope="module")
def models():
    configs = {
        name: {k: v for k, v in config.items() if k not in ("_class_name", "architectures")}
        for name, config in layouts.CONFIGS.items()
    }
    clip = configs["image_encoder"]
    clip.pop("model_type")
    return {
        "unet": randomise(UNetSpatioTemporalConditionModel(**configs["unet"]), 0),
        "vae": randomise(AutoencoderKLTemporalDecoder(**configs["vae"]), 1),
        "image_encoder": randomise(CLIPVisionModelWithProjection(CLIPVisionConfig(**clip)), 2),
    }


def _restore(dst, dtype=np.float32):
    config = json.loads((dst / "config.json").read_text())
    trees = {}
    for name in layouts.CONFIGS:
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), abstract_params(name, config)
        )
        trees[name] = layouts.flat(restore_tree(dst / name, abstract))
    return trees


def _assert_equal(got, models, through=torch.float32):
    """Bit for bit what torch holds, after the rounding that writing the file did."""
    for name, model in models.items():
        state = {
            key: value.to(through).float() if value.is_floating_point() else value
            for key, value in model.state_dict().items()
        }
        want = layouts.flat(flax_from_torch(state))
        assert got[name].keys() == want.keys()
        for path, leaf in want.items():
            np.testing.assert_array_equal(
                np.asarray(got[name][path], np.float32), leaf, err_msg=path
            )


@pytest.mark.parametrize(
    ("torch_dtype", "saving", "files"),
    [
        (torch.float32, {}, "diffusion_pytorch_model.safetensors"),
        (torch.float32, {"max_shard_size": "200KB"}, "diffusion_pytorch_model-00001-of-*"),
        (torch.float16, {"variant": "fp16"}, "diffusion_pytorch_model.fp16.safetensors"),
        (
            torch.bfloat16,
            {"variant": "bf16", "max_shard_size": "200KB"},
            "diffusion_pytorch_model.bf16-00001-of-*",
        ),
    ],
)
def test_saved_pipeline_folder(tmp_path, models, torch_dtype, saving, files):
    for name, model in models.items():
        state = model.state_dict()
        try:
            model.to(torch_dtype).save_pretrained(tmp_path / "src" / name, **saving)
        finally:
            model.to(torch.float32).load_state_dict(state)
    assert len(list((tmp_path / "src" / "unet").glob(files))) == 1
    assert svd.main(["--src", str(tmp_path / "src"), "--dst", str(tmp_path / "out")]) == 0
    _assert_equal(_restore(tmp_path / "out"), models, torch_dtype)


def test_single_file_gives_the_same_trees(tmp_path, models):
    dicts = {
        name: {key: value.numpy() for key, value in model.state_dict().items()}
        for name, model in models.items()
    }
    save_file(layouts.to_single_file(dicts), tmp_path / "svd.safetensors")
    svd.convert(tmp_path / "svd.safetensors", tmp_path / "out", configs=layouts.CONFIGS)
    _assert_equal(_restore(tmp_path / "out"), models)

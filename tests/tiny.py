"""A random video model of a few hundred thousand parameters, for tests of everything around it."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from recapture_jax.models import zoo
from recapture_jax.stages.video_model import VideoModel

CONFIG = {
    "name": "tiny",
    "num_frames": 3,
    "unet": {
        "in_channels": 8,
        "out_channels": 4,
        "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
        "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
        "block_out_channels": [32, 32],
        "num_attention_heads": [2, 2],
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "addition_time_embed_dim": 16,
        "projection_class_embeddings_input_dim": 48,
        "num_frames": 3,
    },
    "vae": {
        "block_out_channels": [32, 32, 32, 32],
        "layers_per_block": 1,
        "latent_channels": 4,
        "scaling_factor": 0.5,
    },
    "image_encoder": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "projection_dim": 16,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
    },
}


def random_params() -> dict:
    """All components, every parameter moved off its initial value so that no layer is an identity."""
    params = {name: zoo.init_params(name, CONFIG, i) for i, name in enumerate(zoo.COMPONENTS)}
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: x + 0.05 * rng.standard_normal(x.shape).astype(np.float32), params
    )


def video_model(params: dict) -> VideoModel:
    return VideoModel(zoo.build(CONFIG), jax.tree.map(jnp.asarray, params), CONFIG)


def write_model(folder: pathlib.Path, params: dict) -> pathlib.Path:
    """The model as a folder that `weights.load_model` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: np.asarray(v) for k, v in flatten_dict(params, sep="/").items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder

"""Tiny ZoeDepth checkpoints in both spellings of transformers, for the tests (no torch needed).

The spellings are written here from the library's module trees, in the direction opposite to the
converter's and by other means, so that the two cannot share a mistake by construction.
"""

import json
import math
import re
from pathlib import Path

import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors.numpy import save_file
from svd_layouts import flat

from converters.zoedepth import read_config
from recapture_jax.models.zoedepth import abstract_params

_SINGLE = {
    "architectures": ["ZoeDepthForDepthEstimation"],
    "model_type": "zoedepth",
    "backbone_config": {
        "model_type": "beit",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 5,
        "num_attention_heads": 2,
        "image_size": 64,
        "use_relative_position_bias": True,
        "reshape_hidden_states": False,
        "out_features": ["stage1", "stage2", "stage4", "stage5"],
    },
    "neck_hidden_sizes": [8, 12, 16, 20],
    "fusion_hidden_size": 24,
    "bottleneck_features": 24,
    "num_relative_features": 6,
    "num_attractors": [4, 3, 2, 1],
    "bin_embedding_dim": 16,
    "max_temp": 2.0,  # with the published 50, random weights would give every bin the same share
    "bin_configurations": [{"n_bins": 7, "min_depth": 0.001, "max_depth": 10.0}],
}
_DOMAINS = [
    {"name": "nyu", "n_bins": 7, "min_depth": 0.001, "max_depth": 10.0},
    {"name": "kitti", "n_bins": 9, "min_depth": 0.002, "max_depth": 80.0},
]
_CLASSIFIER = {
    "num_patch_transformer_layers": 4,
    "patch_transformer_hidden_size": 128,
    "patch_transformer_intermediate_size": 40,
    "patch_transformer_num_attention_heads": 4,
}
# What Hugging Face config.json files say, in small.
CONFIGS = {
    "single": _SINGLE,
    "normed": {**_SINGLE, "bin_centers_type": "normed"},
    "domains": {**_SINGLE, "bin_configurations": _DOMAINS, **_CLASSIFIER},
}
PREPROCESSOR = {
    "do_pad": True,
    "do_resize": True,
    "ensure_multiple_of": 32,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_processor_type": "ZoeDepthImageProcessor",
    "keep_aspect_ratio": True,
    "resample": 2,
    "size": {"height": 64, "width": 96},
}
_OLD_LAYER = {
    "relative_position_bias": "attention.attention.relative_position_bias",
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def random_tree(name: str) -> dict:
    """The network's tree with a different value everywhere, kernels of about unit gain."""
    rng = np.random.default_rng(0)
    leaves = {}
    for path, leaf in flat(abstract_params(read_config(CONFIGS[name]))).items():
        value = rng.standard_normal(leaf.shape, dtype=np.float32)
        gain = math.prod(leaf.shape[:-1]) ** -0.5 if path.endswith("kernel") else 1.0
        leaves[path] = (gain * value).astype(np.float32)
    return unflatten_dict(leaves, sep="/")


def torch_key(path: str, version: int) -> str:
    """Tree path -> key of transformers 4 or 5."""
    key = re.sub(r"(?<!lambda)_(\d+)(?=/)", r".\1", path).replace("/", ".")
    key = re.sub(r"\.(kernel|scale)$", ".weight", key)
    key = re.sub(
        r"^readout_projects\.(\d)\.projection", r"neck.reassemble_stage.readout_projects.\1.0", key
    )
    key = key.replace("embeddings.projection", "embeddings.patch_embeddings.projection")
    key = key.replace("metric_head.bins.", "metric_head.")
    key = re.sub(r"bins_(\w+)\.(\w+)\.", r"\2.\1.", key)
    key = re.sub(r"seed_bin_regressor\.(nyu|kitti)", r"seed_bin_regressors.\1", key)
    if version == 5:
        return re.sub(r"^backbone\.", "backbone.beit.", key)
    match = re.fullmatch(r"backbone\.layers\.(\d+)\.(.+)", key)
    if match is None:
        return key
    number, rest = match.groups()
    for new, old in _OLD_LAYER.items():
        if rest.startswith(new + "."):
            rest = old + rest.removeprefix(new)
    return f"backbone.encoder.layer.{number}.{rest}"


def torch_tensors(tree: dict, version: int) -> dict[str, np.ndarray]:
    """The checkpoint's tensors; those that no network uses are zeros."""
    tensors = {}
    for path, value in flat(tree).items():
        if path.endswith("kernel") and value.ndim == 2:
            value = value.T
        elif path.endswith("kernel") and re.search("stage/layers_[01]/resize", path):
            value = value.transpose(2, 3, 0, 1)
        elif path.endswith("kernel"):
            value = value.transpose(3, 2, 0, 1)
        tensors[torch_key(path, version)] = np.ascontiguousarray(value)
    unused = "neck.fusion_stage.layers.0.residual_layer1.convolution"
    for number in (1, 2):
        tensors[f"{unused}{number}.weight"] = np.zeros((24, 24, 3, 3), np.float32)
        tensors[f"{unused}{number}.bias"] = np.zeros(24, np.float32)
    return tensors


def write_folder(folder: Path, name: str, version: int = 4, tree: dict | None = None) -> Path:
    """A checkpoint folder as `save_pretrained` leaves it; returns it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    tree = random_tree(name) if tree is None else tree
    save_file(torch_tensors(tree, version), folder / "model.safetensors")
    return folder

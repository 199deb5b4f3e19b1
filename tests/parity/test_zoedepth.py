"""ZoeDepth against transformers on random weights, through the converter; keys at full size.

Sizes differ from the 4x4 patches that the bias tables were made for, in both directions. Measured:
1.6e-7 to 5.8e-7 for the network, against the library in float64 (its own float32: 1.9e-7 to 5.0e-7),
3.9e-7 to 1.8e-6 for the whole inference against the library in float32.
"""

import json
import math
import types

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import unflatten_dict
from safetensors import safe_open
from svd_layouts import flat
from torch_params import rel_error
from transformers import ZoeDepthConfig, ZoeDepthForDepthEstimation
from transformers.models.zoedepth import image_processing_pil_zoedepth as processing
from zoedepth_layouts import CONFIGS, PREPROCESSOR, torch_key

from converters import depth as converter
from converters.rules import build_tree, flat_shapes, plan
from converters.zoedepth import LEAVES, NAMES, UNUSED, read_config
from recapture_jax.depth.zoedepth import from_folder
from recapture_jax.models.beit import BeitConfig, offset_index
from recapture_jax.models.zoedepth import ZoeDepthNet, abstract_params

TOLERANCE = 1e-5
PUBLISHED_CLASSIFIER = {
    "num_patch_transformer_layers": 4,
    "patch_transformer_hidden_size": 128,
    "patch_transformer_intermediate_size": 1024,
    "patch_transformer_num_attention_heads": 4,
}


def make_model(name: str, domain: int | None = None) -> ZoeDepthForDepthEstimation:
    """Random weights of about unit gain; `domain` is made the one that the classifier chooses."""
    config = {k: v for k, v in CONFIGS[name].items() if k not in ("architectures", "model_type")}
    model = ZoeDepthForDepthEstimation(ZoeDepthConfig(**config)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.normal_(generator=generator)
            if key.endswith("bias") or "lambda" in key or "norm" in key:
                parameter.mul_(0.3).add_(0.0 if key.endswith("bias") else 1.0)
            elif key.endswith("weight"):  # not the class token or the tables of biases
                parameter.mul_(parameter[0].numel() ** -0.5)
        model.relative_head.conv3.bias.add_(2.0)  # not all of it behind the rectifier
        if domain is not None:
            model.metric_head.mlp_classifier.linear2.bias[domain] += 100.0
    return model


def converted(model, name: str) -> tuple:
    """The configuration and the tree that the converter makes of a model's own tensors."""
    config = read_config(CONFIGS[name])
    state = model.state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    fills = plan(shapes, flat_shapes(abstract_params(config)), (NAMES, LEAVES), UNUSED)
    return config, build_tree(fills, lambda key: state[key].numpy(), np.float32)


def images(height: int, width: int, count: int = 2) -> np.ndarray:
    rng = np.random.default_rng(height)
    return rng.uniform(-1, 1, (count, height, width, 3)).astype(np.float32)


def run_torch(model, pixels: np.ndarray):
    with torch.no_grad():
        return model(torch.from_numpy(pixels.transpose(0, 3, 1, 2)))


CASES = [
    ("single", None, (64, 64)),  # the size that the bias tables were made for
    ("single", None, (32, 96)),
    ("single", None, (128, 64)),
    ("normed", None, (32, 96)),
    ("domains", 0, (128, 64)),
    ("domains", 1, (32, 96)),
]


@pytest.mark.parametrize(("name", "domain", "size"), CASES, ids=str)
def test_network(name, domain, size):
    model = make_model(name, domain)
    config, params = converted(model, name)
    pixels = images(*size)
    own = run_torch(model, pixels)
    theirs = run_torch(model.double(), pixels.astype(np.float64))
    depth, logits = jax.jit(ZoeDepthNet(config).apply)({"params": params}, pixels)
    expected = theirs.predicted_depth.numpy()
    assert expected.shape == (2, *size) and expected.std() > 0.1 * expected.mean()
    error = rel_error(depth[:, domain or 0], expected)
    in_float32 = rel_error(own.predicted_depth, expected)
    print(f"\n{name} {domain} {size}: {error:.1e}, the library's own {in_float32:.1e}")
    assert error <= TOLERANCE
    if domain is None:
        assert logits is None and depth.shape[1] == 1
    else:
        assert int(np.argmax(logits.sum(axis=0))) == domain and depth.shape[1] == 2
        assert rel_error(logits, theirs.domain_logits) <= TOLERANCE


@pytest.mark.parametrize("name", ["single", "domains"])
def test_every_parameter_counts(name):
    """So that the network test sees each of them: zeroing any one is far above its tolerance.

    Not so the bias of a key, which adds the same to all logits of a query, and the last step to the
    relative depth, which only a single head takes in.
    """
    config, params = converted(make_model(name), name)
    pixels = images(64, 32, count=1)
    apply = jax.jit(lambda params: ZoeDepthNet(config).apply({"params": params}, pixels))
    before = apply(params)
    leaves = flat(params)
    for path, leaf in leaves.items():
        after = apply(unflatten_dict(leaves | {path: np.zeros_like(leaf)}, sep="/"))
        change = max(map(rel_error, jax.tree.leaves(after), jax.tree.leaves(before)))
        if path.endswith("key/bias") or (name == "domains" and "relative_head/conv3" in path):
            assert change < TOLERANCE, path
        else:
            assert change > 30 * TOLERANCE, path


def test_offset_index_is_the_definition():
    rows, columns = 2, 3
    index = offset_index(rows, columns)
    for query in range(rows * columns):
        for key in range(rows * columns):
            down = query // columns - key // columns + rows - 1
            right = query % columns - key % columns + columns - 1
            assert index[1 + query, 1 + key] == down * (2 * columns - 1) + right
    assert index[0, 1:].tolist() == [15] * 6 and index[1:, 0].tolist() == [16] * 6
    assert index[0, 0] == 17


def hf_inference(model, processor, frames: np.ndarray) -> np.ndarray:
    """Pad, flip and average with the library's own pre- and postprocessing: [T, H, W].

    All in one batch, which is how far the library lets the votes for a domain count together.
    """
    images = [frame.transpose(2, 0, 1) for frame in frames]
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        depth = model(torch.cat([pixels, torch.flip(pixels, dims=[3])])).predicted_depth
    plain, mirrored = (types.SimpleNamespace(predicted_depth=x) for x in depth.chunk(2))
    results = processor.post_process_depth_estimation(
        plain, source_sizes=[frames.shape[1:3]] * len(frames), outputs_flipped=mirrored
    )
    return np.stack([result["predicted_depth"].numpy() for result in results])


@pytest.fixture
def processor(monkeypatch):
    """The library's image processor; of torchvision it needs a resize that torch has as well."""

    def resize(x, size, interpolation, antialias):
        assert interpolation == "bicubic" and not antialias
        return torch.nn.functional.interpolate(x[None], size, mode="bicubic")[0]

    stand_in = types.SimpleNamespace(
        resize=resize, InterpolationMode=types.SimpleNamespace(BICUBIC="bicubic")
    )
    monkeypatch.setattr(processing, "tvF", stand_in, raising=False)
    options = {k: v for k, v in PREPROCESSOR.items() if k != "image_processor_type"}
    return processing.ZoeDepthImageProcessorPil(**options)


@pytest.mark.parametrize(
    ("name", "version", "size", "seen"),
    [
        ("single", 4, (40, 70), (64, 96)),
        ("domains", 5, (70, 50), (128, 96)),
        ("domains", 4, (130, 170), (64, 96)),
    ],
    ids=str,
)
def test_estimator_from_saved_folder(tmp_path, processor, name, version, size, seen):
    """Five frames, in batches of two, of an aspect that is not the network's."""
    model = make_model(name)
    model.save_pretrained(tmp_path / "src", save_original_format=version == 4)
    with safe_open(tmp_path / "src/model.safetensors", "numpy") as file:
        keys = {key for key in file.keys() if "layers.0.residual_layer1" not in key}  # noqa: SIM118
    assert keys == {torch_key(path, version) for path in flat(converted(model, name)[1])}
    processor.save_pretrained(tmp_path / "src")
    converter.convert(tmp_path / "src", tmp_path / "out")
    frames = np.random.default_rng(5).integers(0, 256, (5, *size, 3), dtype=np.uint8)
    expected = hf_inference(model, processor, frames)
    estimator = from_folder(tmp_path / "out")
    padded = [n + 2 * p for n, p in zip(size, estimator.preprocessing.padding(*size), strict=True)]
    assert estimator.preprocessing.network_size(*padded) == seen
    found = estimator(frames.astype(np.float32) / 255)
    assert found.kind == "metric" and found.depth.shape == (5, *size)
    error = rel_error(found.depth, expected)
    print(f"\n{name} {version} {size}: {error:.1e}, {found.source}")
    assert error <= TOLERANCE


@pytest.mark.parametrize(
    ("domains", "tensors", "parameters"),
    [(1, 553, 343_789_698), (2, 647, 345_073_307)],
)
def test_full_size_keys(domains, tensors, parameters):
    """BEiT-L as published: every key of the library's model has its place, whichever spelling."""
    names = ("nyu", "kitti")[:domains]
    bins = [{"name": n, "n_bins": 64, "min_depth": 1e-3, "max_depth": 10.0} for n in names]
    values = ZoeDepthConfig(
        neck_hidden_sizes=[256, 512, 1024, 1024],
        bin_configurations=bins,
        **(PUBLISHED_CLASSIFIER if domains > 1 else {}),
    )
    with torch.device("meta"):
        model = ZoeDepthForDepthEstimation(values)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert len(shapes) == tensors
    assert sum(math.prod(shape) for shape in shapes.values()) == parameters
    config = read_config(json.loads(values.to_json_string()))
    assert config.backbone == BeitConfig.large()
    target = flat_shapes(abstract_params(config))
    old = {torch_key(path, 5): torch_key(path, 4) for path in target}
    assert shapes.keys() - old.keys() == {
        key for key in shapes if "layers.0.residual_layer1" in key
    }
    for spelled in (shapes, {old.get(key, key): shape for key, shape in shapes.items()}):
        assert len(plan(spelled, target, (NAMES, LEAVES), UNUSED)) == len(target)

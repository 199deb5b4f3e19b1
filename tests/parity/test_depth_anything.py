"""Depth Anything V2 on random weights, float32: transformers, the authors' form, preprocessing."""

import dataclasses

import jax
import numpy as np
import pytest

from recapture_jax.depth import networks, sky
from recapture_jax.depth.depth_anything import DepthAnything
from recapture_jax.models import resize
from recapture_jax.models.depth_anything import DepthAnythingConfig, DepthAnythingNet
from recapture_jax.models.dinov2 import Dinov2Config
from recapture_jax.models.dpt import NeckConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from depth_reference import Upstream, authors_names, balance, image_batch  # noqa: E402
from torch_params import randomise, rel_error  # noqa: E402

from converters import depth_anything as converter  # noqa: E402
from converters.rules import build_tree, flat_shapes, plan  # noqa: E402
from recapture_jax.models import depth_anything as model  # noqa: E402

TOLERANCE = 1e-5
CONFIG = DepthAnythingConfig(
    Dinov2Config(32, 4, 2, (1, 2, 3, 4), image_size=56), NeckConfig((8, 16, 24, 32), 16), 8
)
METRIC = dataclasses.replace(CONFIG, kind="metric", max_depth=20.0)
SIZES = {"own size": (56, 56), "portrait": (84, 42), "wide": (28, 70), "one row": (14, 56)}


def hub_model(cfg, meta=False):
    """transformers' network of our configuration, with random weights."""
    backbone = dict(
        hidden_size=cfg.backbone.hidden_size,
        num_hidden_layers=cfg.backbone.num_hidden_layers,
        num_attention_heads=cfg.backbone.num_attention_heads,
        image_size=cfg.backbone.image_size,
        out_indices=list(cfg.backbone.out_indices),
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=transformers.Dinov2Config(**backbone),
        reassemble_hidden_size=cfg.backbone.hidden_size,
        neck_hidden_sizes=list(cfg.neck.neck_hidden_sizes),
        fusion_hidden_size=cfg.neck.fusion_hidden_size,
        head_hidden_size=cfg.head_hidden_size,
        depth_estimation_type=cfg.kind,
        max_depth=int(cfg.max_depth or 1),
    )
    torch.manual_seed(0)
    with torch.device("meta" if meta else "cpu"):
        network = transformers.DepthAnythingForDepthEstimation(config)
    return network if meta else balance(randomise(network, 0, 0.1), network.head.conv3, 2, 84, 42)


def params_of(state, cfg, table):
    """The tree that the converter makes of a state dict."""
    arrays = {key: value.numpy() for key, value in state.items()}
    fills = plan(
        {key: value.shape for key, value in arrays.items()},
        flat_shapes(model.abstract_params(cfg)),
        (table, converter._leaves(cfg)),
        converter.UNUSED,
    )
    return build_tree(fills, arrays.__getitem__, np.float32)


@pytest.fixture(scope="module")
def hub():
    return {cfg.kind: hub_model(cfg) for cfg in (CONFIG, METRIC)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cfg", [CONFIG, METRIC], ids=["relative", "metric"])
def test_matches_transformers(hub, cfg, size):
    """Measured: 7e-7 to 9e-7 relative, 3e-7 metric."""
    network = hub[cfg.kind]
    images, tensor = image_batch(2, *SIZES[size])
    with torch.no_grad():
        expected = network(tensor).predicted_depth
    params = params_of(network.state_dict(), cfg, converter.HUB)
    found = jax.jit(DepthAnythingNet(cfg).apply)({"params": params}, images)
    if size != "one row":
        assert expected.min() < 0.7 * expected.mean()  # so the activation does something
    assert rel_error(found, expected) < TOLERANCE


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cfg", [CONFIG, METRIC], ids=["relative", "metric"])
def test_matches_the_authors_form(hub, cfg, size):
    """The same weights in the authors' names; positions with their offset of 0.1. Errors as above."""
    reference = Upstream(cfg).eval()
    state = authors_names(hub[cfg.kind].state_dict())
    reference.load_state_dict(state, strict=True)
    images, tensor = image_batch(2, *SIZES[size])
    with torch.no_grad():
        expected = reference(tensor)
    cfg = dataclasses.replace(
        cfg, backbone=dataclasses.replace(cfg.backbone, interpolate_offset=0.1)
    )
    params = params_of(state, cfg, converter.AUTHORS)
    found = jax.jit(DepthAnythingNet(cfg).apply)({"params": params}, images)
    assert rel_error(found, expected) < TOLERANCE


def test_the_offset_is_seen(hub):
    """Without it the error is far above the tolerance, so the test above tells the two apart."""
    images, _ = image_batch(1, 84, 42)
    params = params_of(hub["relative"].state_dict(), CONFIG, converter.HUB)
    shifted = dataclasses.replace(
        CONFIG, backbone=dataclasses.replace(CONFIG.backbone, interpolate_offset=0.1)
    )
    one, other = (
        jax.jit(DepthAnythingNet(cfg).apply)({"params": params}, images)
        for cfg in (CONFIG, shifted)
    )
    assert rel_error(one, other) > 100 * TOLERANCE


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_full_size_keys(size):
    """Every tensor of the released networks has its place, in both spellings; nothing allocated."""
    cfg = model.config_of_size(size)
    state = hub_model(cfg, meta=True).state_dict()
    target = flat_shapes(model.abstract_params(cfg))
    for names, table in ((state, converter.HUB), (_authors_shapes(cfg), converter.AUTHORS)):
        shapes = {key: tuple(value.shape) for key, value in names.items()}
        fills = plan(shapes, target, (table, converter._leaves(cfg)), converter.UNUSED)
        assert len(fills) == len(target)
    expected = {"small": 24_785_089, "base": 97_470_785, "large": 335_315_649}[size]
    assert sum(value.numel() for value in state.values()) == expected


def _authors_shapes(cfg):
    with torch.device("meta"):
        return Upstream(cfg).state_dict()


# Resizing


@pytest.mark.parametrize("sizes", [((5, 7), (9, 4)), ((8, 8), (3, 13)), ((4, 6), (4, 1))])
def test_resizes_as_torch(sizes):
    images, tensor = image_batch(2, *sizes[0])
    for align in (True, False):
        expected = torch.nn.functional.interpolate(
            tensor, sizes[1], mode="bilinear", align_corners=align
        )
        found = resize.resize_linear(images, sizes[1], align)
        assert rel_error(found, expected.permute(0, 2, 3, 1)) < 1e-6
    expected = torch.nn.functional.interpolate(tensor, sizes[1], mode="bicubic")
    found = resize.resize_cubic(images, sizes[1])
    assert rel_error(found, expected.permute(0, 2, 3, 1)) < 1e-6


# Pictures in and out


def authors_size(height, width, side):
    """The rule as it is stated: scale to a lower bound, to the nearest multiple, never below."""
    scale = max(side / height, side / width)
    sizes = []
    for n in (height, width):
        rounded = int(np.round(scale * n / 14) * 14)
        sizes.append(rounded if rounded >= side else int(np.ceil(scale * n / 14) * 14))
    return tuple(sizes)


def test_sizes_are_the_authors():
    rng = np.random.default_rng(0)
    for height, width in [(1080, 1920), (1920, 1080), (518, 518), (360, 640), (14, 1000)] + [
        tuple(rng.integers(10, 4000, 2)) for _ in range(200)
    ]:
        found = networks.lower_bound_size(int(height), int(width), 518, 14)
        assert found == authors_size(height, width, 518)
    assert networks.lower_bound_size(1080, 1920, 518, 14) == (518, 924)


def test_pictures_are_those_of_the_image_processor():
    """Where nothing is resized, all pixels; where pictures shrink, the size (its cubic differs)."""
    processor = transformers.DPTImageProcessorPil(
        size={"height": 56, "width": 56},
        ensure_multiple_of=14,
        keep_aspect_ratio=True,
        image_mean=list(networks.IMAGENET_MEAN),
        image_std=list(networks.IMAGENET_STD),
    )
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (56, 70, 3), dtype=np.uint8)
    expected = processor(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    found = networks.preprocess(
        picture[None].astype(np.float32) / 255, networks.lower_bound_size(56, 70, 56, 14)
    )[0]
    assert rel_error(found, expected) < 1e-6
    for height, width in [(120, 200), (301, 77), (64, 65), (57, 300)]:
        pixels = processor(np.zeros((height, width, 3), np.uint8), return_tensors="np")
        size = networks.lower_bound_size(height, width, 56, 14)
        assert pixels["pixel_values"].shape[2:] == size


@pytest.mark.parametrize("cfg", [CONFIG, METRIC], ids=["relative", "metric"])
def test_estimator_is_the_authors_pipeline(hub, cfg):
    """Resize, normalise, network, resize back in torch, on 5 frames (batches of 4).

    Measured: 1.1e-6 relative, 8e-7 metric.
    """
    frames = np.random.default_rng(1).random((5, 40, 64, 3), dtype=np.float32)
    network = hub[cfg.kind]
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    size = authors_size(40, 64, cfg.backbone.image_size)
    mean, std = (
        torch.tensor(x).view(1, 3, 1, 1) for x in (networks.IMAGENET_MEAN, networks.IMAGENET_STD)
    )
    seen = (torch.nn.functional.interpolate(tensor, size, mode="bicubic") - mean) / std
    with torch.no_grad():
        values = network(seen).predicted_depth
    values = torch.nn.functional.interpolate(
        values[:, None], (40, 64), mode="bilinear", align_corners=True
    )[:, 0].numpy()
    estimator = DepthAnything(
        cfg, params_of(network.state_dict(), cfg, converter.HUB), near=2.0, far=8.0
    )
    depth = estimator(frames)
    assert (depth.kind, depth.depth.shape) == (cfg.kind, (5, 40, 64))
    if cfg.kind == "relative":
        ground = ~sky.areas(values <= 0)  # areas of 0 are sky and no end of the disparity
        np.testing.assert_array_equal(depth.surfaces, ground)
        low, high = values[ground].min(), values[ground].max()
        values = 1 / (1 / 8 + (1 / 2 - 1 / 8) * (values - low) / (high - low))
        found = depth.depth[ground]
        assert found.min() == pytest.approx(2) and found.max() == pytest.approx(8)
    assert rel_error(depth.depth[depth.surfaces], values[depth.surfaces]) < TOLERANCE

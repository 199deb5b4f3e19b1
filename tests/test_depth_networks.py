"""What converted depth networks share: pictures, meaning of the values, refusals; no torch needed."""

import dataclasses

import jax
import numpy as np
import pytest

from recapture_jax.depth import networks
from recapture_jax.depth.depth_anything import DepthAnything
from recapture_jax.depth.video_depth import VideoDepthAnything
from recapture_jax.errors import InputError
from recapture_jax.models import depth_anything, resize, video_depth_anything
from recapture_jax.models.depth_anything import DepthAnythingConfig, DepthAnythingNet
from recapture_jax.models.dinov2 import Dinov2, Dinov2Config
from recapture_jax.models.dpt import NeckConfig
from recapture_jax.models.video_depth_anything import VideoDepthAnythingConfig

BACKBONE = Dinov2Config(8, 4, 2, (1, 2, 3, 4), image_size=28)
CONFIG = DepthAnythingConfig(BACKBONE, NeckConfig((8, 8, 8, 8), 8), 4)
VIDEO = VideoDepthAnythingConfig(BACKBONE, NeckConfig((8, 8, 8, 8), 8), 4, norm_groups=4)


def random_params(model, config):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32),
        model.abstract_params(config),
    )


@pytest.fixture(scope="module")
def estimators():
    return {
        "frames": DepthAnything(CONFIG, random_params(depth_anything, CONFIG)),
        "video": VideoDepthAnything(VIDEO, random_params(video_depth_anything, VIDEO)),
    }


# Meaning of the values


def test_far_pixels_stay_finite():
    """Disparity 0 is `far`, however near to it others are; the order is that of the disparity."""
    disparity = np.float32([0, 1e-30, 1e-6, 0.5, 1]).reshape(1, 1, 5)
    depth = networks.depth_map(disparity, "relative", "test", 1.0, 20.0)
    np.testing.assert_allclose(depth.depth[0, 0], [20, 20, 20, 1 / 0.525, 1], rtol=1e-3)
    assert depth.kind == "relative"


def test_a_factor_and_an_offset_change_nothing():
    disparity = np.random.default_rng(0).random((3, 4, 5))
    one, other = (
        networks.depth_map(values, "relative", "test", 1.0, 20.0).depth
        for values in (disparity, 7 * disparity + 3)
    )
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_metric_depth_is_kept_and_above_zero():
    depth = networks.depth_map(np.float32([[[0, 0.5, 90]]]), "metric", "test", 1.0, 20.0)
    np.testing.assert_array_equal(depth.depth[0, 0], np.float32([1e-3, 0.5, 90]))
    assert depth.kind == "metric"


# Batches


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_batches_are_whole_and_give_every_frame_once(count):
    frames = np.arange(count * 2, dtype=np.float64).reshape(count, 2)
    sizes = []

    def double(batch):
        sizes.append(batch.shape)
        return 2 * batch

    np.testing.assert_array_equal(networks.in_batches(double, frames, 4), 2 * frames)
    assert set(sizes) == {(min(count, 4), 2)} and len(sizes) == -(-count // 4)


def test_resize_keeps_constants_and_ramps():
    ramp = np.linspace(0, 1, 5, dtype=np.float32).reshape(1, 5, 1, 1)
    found = resize.resize_linear(ramp, (9, 3), align_corners=True)[0, :, 0, 0]
    np.testing.assert_allclose(found, np.linspace(0, 1, 9), atol=1e-6)
    np.testing.assert_allclose(resize.resize_cubic(0 * ramp + 3, (7, 4)), 3, rtol=1e-6)


# Estimators


@pytest.mark.parametrize("name", ["frames", "video"])
def test_estimators_give_a_depth_map_of_the_clip(estimators, name):
    frames = np.random.default_rng(0).random((3, 20, 30, 3), dtype=np.float32)
    depth = estimators[name](frames)
    assert depth.depth.shape == (3, 20, 30) and depth.kind == "relative"
    ground = depth.depth[depth.surfaces]  # where the random network says 0 there is sky
    assert ground.min() == pytest.approx(1) and ground.max() == pytest.approx(20)


@pytest.mark.parametrize("name", ["frames", "video"])
@pytest.mark.parametrize(
    ("frames", "part"),
    [
        (np.zeros((20, 30, 3), np.float32), "expected \\[T, H, W, 3\\]"),
        (np.zeros((0, 20, 30, 3), np.float32), "expected \\[T, H, W, 3\\]"),
        (np.zeros((2, 20, 30, 3), np.uint8), "divide bytes by 255"),
    ],
)
def test_estimators_refuse_what_is_no_clip(estimators, name, frames, part):
    with pytest.raises(InputError, match=part):
        estimators[name](frames)


# Configurations and shapes


BAD_CONFIGS = {
    "heads": (lambda: dataclasses.replace(BACKBONE, num_attention_heads=3), "hidden_size 8"),
    "patches": (lambda: dataclasses.replace(BACKBONE, image_size=30), "image_size 30"),
    "layer 0": (lambda: dataclasses.replace(BACKBONE, out_indices=(0, 1)), "layers 1 to 4"),
    "levels": (
        lambda: dataclasses.replace(CONFIG, neck=NeckConfig((8, 8), 8, (4, 2))),
        "4 maps .* 2 widths",
    ),
    "kind": (lambda: dataclasses.replace(CONFIG, kind="disparity"), "relative or metric"),
    "limit": (
        lambda: dataclasses.replace(CONFIG, max_depth=20.0),
        "max_depth is 20.0 for relative",
    ),
    "video limit": (
        lambda: dataclasses.replace(VIDEO, kind="metric", max_depth=20.0),
        "no max_depth",
    ),
    "video groups": (lambda: dataclasses.replace(VIDEO, norm_groups=3), "3 groups"),
    "missing": (lambda: DepthAnythingConfig.from_dict({"kind": "metric"}), "backbone"),
    "unknown": (
        lambda: DepthAnythingConfig.from_dict({**CONFIG.to_dict(), "neck": {"widths": 3}}),
        "widths",
    ),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_refuses_bad_configs(case):
    make, part = BAD_CONFIGS[case]
    with pytest.raises(InputError, match=part):
        make()


@pytest.mark.parametrize("config", [CONFIG, VIDEO])
def test_config_survives_json(config):
    import json

    values = json.loads(json.dumps({"architecture": "x", **config.to_dict()}))
    assert type(config).from_dict(values) == config


@pytest.mark.parametrize("shape", [(1, 28, 30, 3), (1, 28, 28, 4), (28, 28, 3)])
def test_network_refuses_other_shapes(shape):
    with pytest.raises(InputError, match="multiples of 14"):
        jax.eval_shape(Dinov2(BACKBONE).init, jax.random.key(0), np.zeros(shape, np.float32))


def test_half_precision_is_near_and_ends_in_single():
    """bfloat16 has 8 bits, and what leaves the network is float32 all the same."""
    params = random_params(depth_anything, CONFIG)
    images = np.random.default_rng(0).normal(size=(1, 42, 28, 3)).astype(np.float32)
    single, half = (
        jax.jit(DepthAnythingNet(CONFIG, dtype).apply)({"params": params}, images)
        for dtype in ("float32", "bfloat16")
    )
    assert half.dtype == np.float32
    assert np.linalg.norm(half - single) < 0.05 * np.linalg.norm(single)

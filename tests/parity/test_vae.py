"""The Flax autoencoder against diffusers' AutoencoderKLTemporalDecoder on random weights, float32."""

import copy

import jax
import numpy as np
import pytest
from torch_params import flax_from_torch, randomise, rel_error

from recapture_jax.models.vae import VAE, VAEConfig

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TOLERANCE = 2e-6
TINY = dict(
    block_out_channels=(32, 64, 64),
    layers_per_block=2,
    latent_channels=4,
    down_block_types=("DownEncoderBlock2D",) * 3,
)


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLTemporalDecoder(**TINY).eval()
    randomise(model, seed=2)
    return model


@pytest.fixture(scope="module")
def params(reference):
    return flax_from_torch(reference)


def channels_first(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, -3)))


def apply(params, x, method, **config):
    vae = VAE(VAEConfig.from_dict(TINY | config))
    return jax.jit(lambda p, a: vae.apply({"params": p}, a, method=method))(params, x)


@pytest.mark.parametrize("height, width", [(32, 48), (35, 29)], ids=["even", "odd"])
def test_encode(reference, params, height, width):
    images = np.random.default_rng(0).uniform(-1, 1, (2, 1, height, width, 3)).astype(np.float32)
    with torch.no_grad():
        dist = reference.encode(channels_first(images[:, 0])).latent_dist
    mean, logvar = apply(params, images, VAE.posterior)
    for ours, theirs in ((mean, dist.mean), (logvar, dist.logvar)):
        assert rel_error(ours[:, 0], np.moveaxis(theirs.numpy(), 1, -1)) <= TOLERANCE


@pytest.mark.parametrize("chunk", [1, 2, 5], ids=["chunk-1", "chunk-2", "whole"])
def test_decode_in_chunks(reference, params, chunk):
    latents = np.random.default_rng(1).standard_normal((1, 5, 6, 10, 4)).astype(np.float32)
    ours, theirs = [], []
    for start in range(0, 5, chunk):
        part = latents[:, start : start + chunk]
        ours.append(np.asarray(apply(params, part, VAE.decode))[0])
        with torch.no_grad():
            out = reference.decode(channels_first(part[0]), num_frames=part.shape[1]).sample
        theirs.append(np.moveaxis(out.numpy(), 1, -1))
    assert rel_error(np.concatenate(ours), np.concatenate(theirs)) <= TOLERANCE


def test_decode_two_clips_at_once(reference, params):
    latents = np.random.default_rng(2).standard_normal((2, 3, 4, 4, 4)).astype(np.float32)
    with torch.no_grad():
        out = reference.decode(channels_first(latents.reshape(6, 4, 4, 4)), num_frames=3).sample
    ours = np.asarray(apply(params, latents, VAE.decode)).reshape(6, 16, 16, 3)
    assert rel_error(ours, np.moveaxis(out.numpy(), 1, -1)) <= TOLERANCE


def test_fewer_groups(reference, params):
    """diffusers' network has 32 groups; told to use 8 in every norm, it is ours with norm_num_groups=8."""
    model = copy.deepcopy(reference)
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.num_groups = 8
    images = np.random.default_rng(3).uniform(-1, 1, (1, 2, 16, 24, 3)).astype(np.float32)
    with torch.no_grad():
        mean = model.encode(channels_first(images[0])).latent_dist.mean
        out = model.decode(mean, num_frames=2).sample
    latents = np.moveaxis(mean.numpy(), 1, -1)
    encoded = apply(params, images, VAE.encode, norm_num_groups=8)[0]
    decoded = apply(params, latents[None], VAE.decode, norm_num_groups=8)[0]
    assert rel_error(encoded, latents) <= TOLERANCE
    assert rel_error(decoded, np.moveaxis(out.numpy(), 1, -1)) <= TOLERANCE

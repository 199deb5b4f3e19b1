"""The small prior's autoencoder starts as the linear one it was given."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

from experiments.pretrain_small import export, linear_start
from experiments.pretrain_small.architecture import CONFIG, LATENT_CHANNELS
from recapture_jax.config import default_config, resolve_path
from recapture_jax.models import zoo
from recapture_jax.models.vae import VAE
from recapture_jax.weights import load_model


@pytest.fixture(scope="module")
def images():
    """Smooth random colour fields in [-1, 1]."""
    coarse = np.random.default_rng(0).uniform(-1, 1, (6, 8, 8, 3)).astype(np.float32)
    return np.asarray(jax.image.resize(coarse, (6, 32, 32, 3), "linear"))


@pytest.fixture(scope="module")
def start(images):
    flat = flatten_dict(zoo.init_params("vae", CONFIG, 1), sep="/")
    kernels = linear_start.fit(flat, lambda step: images, steps=150)
    installed = linear_start.install(flat, kernels, images)
    vae, params = zoo.build(CONFIG).vae, {"params": unflatten_dict(installed, sep="/")}
    latents = vae.apply(params, images[:, None], method=VAE.encode)
    decoded = vae.apply(params, latents, method=VAE.decode)[:, 0]
    linear = linear_start.decode(kernels, linear_start.encode(kernels, images))
    return np.asarray(latents), np.asarray(decoded), np.asarray(linear)


def test_network_reconstructs_as_the_linear_stack(images, start):
    _, decoded, linear = start
    error = np.abs(decoded - linear).mean()
    assert error < 0.02, error
    assert np.square(linear - images).mean() < 0.5 * images.var()  # it did learn something


def test_latents_come_largest_first_with_unit_variance_on_average(start):
    variance = start[0].reshape(-1, LATENT_CHANNELS).var(0)
    assert 0.5 < variance.mean() < 1.5
    assert variance[0] == variance.max()


def test_constant_channels_are_two_of_each_group():
    signal = linear_start.is_signal(96)
    assert signal.reshape(8, 12).sum(1).tolist() == [10] * 8


def test_export_of_a_decoder_trained_further_keeps_the_rest_of_its_start(tmp_path):
    shipped = resolve_path(default_config("small").model.path)
    vae = load_model(shipped).params["vae"]
    vae = vae | {"decoder": jax.tree.map(lambda x: 0.5 * x, vae["decoder"])}
    export.save_params(tmp_path / "vae.npz", vae)
    export.write_model(tmp_path, tmp_path / "model", shipped)
    before, after = (load_file(f / "model.safetensors") for f in (shipped, tmp_path / "model"))
    assert before.keys() == after.keys()
    for name, value in before.items():
        share = np.float16(0.5 if name.startswith("vae/decoder/") else 1.0)
        np.testing.assert_array_equal(after[name], share * value, err_msg=name)
    assert (tmp_path / "model" / "config.json").read_text() == (shipped / "config.json").read_text()

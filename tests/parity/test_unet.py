"""The Flax U-Net against diffusers' on random weights, float32.

svd.md-style mutation study: the tolerance must be near 2e-6, since the subtle mistakes (tanh GELU, group
norm epsilon, layer norm epsilon) change the output by 8e-5, 2e-5 and 7e-6 only.
"""

import jax
import numpy as np
import pytest

from recapture_jax.models.unet import UNet, UNetConfig
from torch_params import flax_from_torch, randomise, rel_error

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TOLERANCE = 2e-6
TINY = dict(
    in_channels=8,
    out_channels=4,
    block_out_channels=(32, 64, 64, 64),
    layers_per_block=1,
    num_attention_heads=(2, 4, 4, 4),
    cross_attention_dim=32,
    addition_time_embed_dim=32,
    projection_class_embeddings_input_dim=96,
)


@pytest.fixture(scope="session")
def reference():
    torch.manual_seed(0)
    model = diffusers.UNetSpatioTemporalConditionModel(**TINY).eval()
    randomise(model, seed=1)
    return model


@pytest.fixture(scope="session")
def params(reference):
    return flax_from_torch(reference)


def inputs(batch, frames, height, width, seed=0):
    rng = np.random.default_rng(seed)
    sample = rng.standard_normal((batch, frames, height, width, 8), dtype=np.float32)
    timestep = rng.uniform(-1.5, 1.6, batch).astype(np.float32)
    context = rng.standard_normal((batch, 1, 32), dtype=np.float32)
    ids = np.array([[6.0, 127.0, 0.02], [11.0, 40.0, 0.1]], np.float32)[:batch]
    return sample, timestep, context, ids


def run_torch(model, sample, timestep, context, ids):
    with torch.no_grad():
        out = model(
            torch.from_numpy(sample).permute(0, 1, 4, 2, 3),
            torch.from_numpy(timestep),
            torch.from_numpy(context),
            torch.from_numpy(ids),
        ).sample
    return out.permute(0, 1, 3, 4, 2).numpy()


def run_flax(params, args, **options):
    image_only = options.pop("image_only", False)
    unet = UNet(UNetConfig.from_dict(TINY), **options)
    return jax.jit(lambda p, a: unet.apply({"params": p}, *a, image_only=image_only))(params, args)


@pytest.mark.parametrize(
    "batch, frames, height, width",
    [(1, 1, 16, 24), (2, 3, 16, 24), (1, 14, 8, 16), (1, 2, 15, 21)],
    ids=["one-frame", "two-contexts", "fourteen-frames", "odd-size"],
)
def test_matches_diffusers(reference, params, batch, frames, height, width):
    args = inputs(batch, frames, height, width)
    assert rel_error(run_flax(params, args), run_torch(reference, *args)) <= TOLERANCE

"""The Flax U-Net against diffusers' on random weights, float32.

The tolerance must be near 2e-6, since the subtle mistakes (tanh GELU, GroupNorm epsilon, LayerNorm
epsilon) change the output by 8e-5, 2e-5 and 7e-6 only; `experiments/mutations` measures them.
"""

import copy
import functools

import jax
import numpy as np
import pytest

from recapture_jax.models.unet import UNet, UNetConfig

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from diffusers.models.resnet import (  # noqa: E402
    AlphaBlender,
    ResnetBlock2D,
    TemporalResnetBlock,
)
from torch_params import flax_from_torch, randomise, rel_error  # noqa: E402

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


@functools.cache
def compiled(eps, image_only, groups=32):
    unet = UNet(UNetConfig.from_dict(TINY | {"groupnorm_eps": eps, "norm_num_groups": groups}))
    return jax.jit(lambda p, a: unet.apply({"params": p}, *a, image_only=image_only))


def run_flax(params, args, eps="diffusers", image_only=False):
    return compiled(eps, image_only)(params, args)


def with_stability_epsilon(model):
    """The network as Stability trained it: GroupNorm 1e-5 in every residual block."""
    model = copy.deepcopy(model)
    blocks = [m for m in model.modules() if isinstance(m, ResnetBlock2D | TemporalResnetBlock)]
    norms = [norm for block in blocks for norm in (block.norm1, block.norm2)]
    assert {norm.eps for norm in norms} == {1e-5, 1e-6}  # diffusers mixes the two
    for norm in norms:
        norm.eps = 1e-5
    return model


@pytest.mark.parametrize(
    "batch, frames, height, width",
    [(1, 1, 16, 24), (2, 3, 16, 24), (2, 14, 8, 16), (1, 2, 15, 21)],
    ids=["one-frame", "two-contexts", "fourteen-frames", "odd-size"],
)
def test_matches_diffusers(reference, params, batch, frames, height, width):
    args = inputs(batch, frames, height, width)
    assert rel_error(run_flax(params, args), run_torch(reference, *args)) <= TOLERANCE


def test_both_groupnorm_conventions_and_that_they_differ(reference, params):
    args = inputs(2, 3, 16, 24)
    theirs = {
        "diffusers": run_torch(reference, *args),
        "stability": run_torch(with_stability_epsilon(reference), *args),
    }
    for ours in theirs:
        out = run_flax(params, args, eps=ours)
        for name, expected in theirs.items():
            error = rel_error(out, expected)
            # About 2e-5 lies between the two, so the tolerance tells them apart.
            assert error <= TOLERANCE if name == ours else error > 4 * TOLERANCE, (ours, name)


def test_fewer_groups(reference, params):
    """diffusers' network has 32 groups; told to use 8 in every norm, it is ours with norm_num_groups=8."""
    args = inputs(2, 3, 16, 24)
    model = copy.deepcopy(reference)
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.num_groups = 8
    expected = run_torch(model, *args)
    assert rel_error(compiled("diffusers", False, 8)(params, args), expected) <= TOLERANCE
    assert rel_error(run_torch(reference, *args), expected) > 0.01


def test_image_only_is_the_original_with_its_indicator_set(reference, params, monkeypatch):
    """diffusers' forward hard-codes the indicator to zeros; here every blend is told it is one."""
    get_alpha = AlphaBlender.get_alpha
    monkeypatch.setattr(
        AlphaBlender, "get_alpha", lambda self, flag, ndims: get_alpha(self, flag * 0 + 1, ndims)
    )
    args = inputs(2, 3, 16, 24)
    expected = run_torch(reference, *args)
    assert rel_error(run_flax(params, args, image_only=True), expected) <= TOLERANCE
    monkeypatch.undo()
    assert rel_error(run_torch(reference, *args), expected) > 0.1  # the indicator matters

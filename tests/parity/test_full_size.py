"""The real configuration, 1.52 B parameters, against diffusers at float32: `pytest -m full -s`.

Random weights (the released ones are gated). At most one copy of the weights is alive: torch runs
first and keeps its answers, then every tensor is converted and freed: 9 GB and some minutes. At
1280 channels two float32 programs differ by almost the tolerance without a mistake in either, so
the reference is torch in float64; torch in float32 is printed beside ours.
"""

import math
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recapture_jax.models.unet import UNet, UNetConfig

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from torch_params import flax_from_torch, rel_error  # noqa: E402

TOLERANCE = 2e-6
PARAMETERS = 1_524_623_082


def build():
    """SVD's U-Net (diffusers' defaults but for the heads) on random weights of unit gain."""
    with torch.device("meta"):
        model = diffusers.UNetSpatioTemporalConditionModel(num_attention_heads=(5, 10, 20, 20))
    model = model.to("meta").to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(generator=generator)
            if parameter.ndim > 1:
                parameter.mul_(1 / math.sqrt(math.prod(parameter.shape[1:])))
            else:
                offset = (
                    0.5 if "mix_factor" in name else float("norm" in name and "bias" not in name)
                )
                parameter.mul_(0.05).add_(offset)
    return model


def inputs(frames=2, side=16):
    rng = np.random.default_rng(0)
    sample = rng.standard_normal((1, frames, side, side, 8), dtype=np.float32)
    context = rng.standard_normal((1, 1, 1024), dtype=np.float32)
    return sample, np.float32([0.7]), context, np.float32([[6.0, 127.0, 0.02]])


def run_torch(model, sample, *rest, dtype):
    with torch.no_grad():
        args = [torch.from_numpy(a).to(dtype) for a in rest]
        out = model(torch.from_numpy(sample).to(dtype).permute(0, 1, 4, 2, 3), *args).sample
    assert out.dtype == dtype
    return out.permute(0, 1, 3, 4, 2).numpy()


def in_double(model):
    """Computes in float64 though the weights stay float32: each layer is widened while it runs."""
    for module in model.modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_pre_hook(lambda module, _: (module.double(), None)[1])
            module.register_forward_hook(lambda module, *_: (module.float(), None)[1])
    return model


def drain(model):
    """The Flax tree of a model's weights; each torch tensor is freed once it is converted."""
    state = dict(model.state_dict())
    for parameter in model.parameters():
        parameter.data = torch.empty(0)
    params = {}
    for key in list(state):
        merge(params, flax_from_torch({key: state.pop(key)}))
    return params


def merge(tree, branch):
    for key, value in branch.items():
        if isinstance(value, dict):
            merge(tree.setdefault(key, {}), value)
        else:
            tree[key] = jnp.asarray(value)


@pytest.mark.full
def test_full_size_unet():
    clock = [time.time()]

    def lap():
        clock.append(time.time())
        return clock[-1] - clock[-2]

    model = build()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS
    built = lap()
    args = inputs()
    theirs = run_torch(model, *args, dtype=torch.float32)
    exact = run_torch(in_double(model), *args, dtype=torch.float64)
    in_torch = lap()
    params = drain(model)
    assert sum(p.size for p in jax.tree.leaves(params)) == PARAMETERS
    converted = lap()
    unet = UNet(UNetConfig(), attention="xla")
    ours = jax.jit(unet.apply)({"params": params}, *args)
    error = rel_error(ours, exact)
    in_jax = lap()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"\nrelative error {error:.2e} (torch's own {rel_error(theirs, exact):.2e}, "
        f"ours to torch's {rel_error(ours, theirs):.2e}); peak {peak:.1f} GiB\n"
        f"build {built:.0f} s, torch {in_torch:.0f}, convert {converted:.0f}, jax {in_jax:.0f}"
    )
    assert error <= TOLERANCE

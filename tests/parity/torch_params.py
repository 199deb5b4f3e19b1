"""Shared by the parity tests: torch weights as a Flax parameter tree, and a relative error.

Import it as `from torch_params import flax_from_torch, randomise, rel_error` (pytest puts the
folder of a test file on `sys.path`).
"""

import re
from collections.abc import Mapping

import numpy as np
import torch

# SVD's scheduler/scheduler_config.json.
SCHEDULER = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
    interpolation_type="linear",
    use_karras_sigmas=True,
    sigma_min=0.002,
    sigma_max=700.0,
    timestep_spacing="leading",
    timestep_type="continuous",
    steps_offset=1,
)


def flax_from_torch(module_or_state_dict: torch.nn.Module | Mapping[str, torch.Tensor]) -> dict:
    """Nested dict of float32 numpy arrays, named and laid out by one mechanical rule.

    Names: ".<digits>" joins the previous name with "_", the other dots open a sub-tree. A leaf
    called `weight` becomes

    * `scale`, unchanged, if it is 1-D (GroupNorm, LayerNorm);
    * `embedding`, unchanged, for an Embedding: known by its type if a module is given, else a 2-D
      weight whose owner's name ends in "embedding" or "embeddings";
    * `kernel` otherwise: Linear (out, in) -> (in, out), Conv (O, I, *k) -> (*k, I, O), and, if a
      module is given, ConvTranspose (I, O, *k) -> (*k, I, O) with its taps not flipped.

    Every other leaf (`bias`, `class_embedding`, `mix_factor`) keeps its name and layout. Integer
    buffers (`position_ids`) are left out.

    Raises:
        ValueError: two keys map to the same path.
    """
    if isinstance(module_or_state_dict, torch.nn.Module):
        owners = dict(module_or_state_dict.named_modules())
        state_dict = module_or_state_dict.state_dict()
    else:
        owners, state_dict = {}, module_or_state_dict

    params: dict = {}
    for key, tensor in state_dict.items():
        if not tensor.is_floating_point():
            continue
        value = tensor.detach().to(torch.float32).cpu().numpy()
        owner, _, name = key.rpartition(".")
        if name == "weight":
            name, value = _weight(owner, owners.get(owner), value)
        path = f"{owner}.{name}" if owner else name
        *branches, leaf = re.sub(r"\.(\d+)(?=\.|$)", r"_\1", path).split(".")
        node = params
        for branch in branches:
            node = node.setdefault(branch, {})
        if leaf in node:
            raise ValueError(f"{key} maps to a path that another key has filled")
        # A copy: state_dict tensors share memory with the module, which tests go on changing.
        node[leaf] = np.array(value, order="C")
    return params


def _weight(owner: str, module: torch.nn.Module | None, value: np.ndarray):
    if value.ndim == 1:
        return "scale", value
    named_embedding = module is None and value.ndim == 2 and re.search(r"embeddings?$", owner)
    if isinstance(module, torch.nn.Embedding) or named_embedding:
        return "embedding", value
    spatial = tuple(range(2, value.ndim))
    if isinstance(module, torch.nn.modules.conv._ConvTransposeNd):
        return "kernel", value.transpose(*spatial, 0, 1)
    return "kernel", value.transpose(*spatial, 1, 0)


def randomise(module: torch.nn.Module, seed: int, scale: float = 0.05) -> torch.nn.Module:
    """Adds scale * N(0, 1) to every parameter in place; returns the module in eval mode.

    Without it layers that start at zero or one (output projections, norms, mix factors) would hide
    mistakes. The same seed gives the same weights whatever torch's global generator holds, as
    far as the module's own initial values do.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.add_(scale * noise.to(parameter.dtype))
    return module.eval()


def rel_error(a, b) -> float:
    """||a - b|| / ||b||, both L2 norms over all elements in float64; b is the reference.

    Raises:
        ValueError: the shapes differ.
    """
    a, b = (
        x.detach().to(torch.float64).cpu().numpy()
        if isinstance(x, torch.Tensor)
        else np.asarray(x, np.float64)
        for x in (a, b)
    )
    if a.shape != b.shape:
        raise ValueError(f"shapes {a.shape} and {b.shape} differ")
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))

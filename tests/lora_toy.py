"""A toy network with the paths of the U-Net, the full-size tree, random LoRAs."""

import json
import re
from pathlib import Path

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from recapture_jax.lora import tree

KEYS = Path(__file__).parent / "data" / "svd_keys" / "unet_sd.json"
FLOAT32 = 1e-6  # relative error allowed between two float32 evaluation orders


class Attention(nn.Module):
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, context):
        def dense(name, bias=False):
            return nn.Dense(x.shape[-1], use_bias=bias, dtype=self.dtype, name=name)

        q, k, v = dense("to_q")(x), dense("to_k")(context), dense("to_v")(context)
        weights = jax.nn.softmax(jnp.einsum("bnc,bmc->bnm", q, k), axis=-1)
        return dense("to_out_0", True)(jnp.einsum("bnm,bmc->bnc", weights, v))


class Block(nn.Module):
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = x + Attention(self.dtype, name="attn1")(x, x)
        return x + nn.Dense(x.shape[-1], dtype=self.dtype, name="proj")(jnp.tanh(x))


class Toy(nn.Module):
    """Paths as in the U-Net: transformer_blocks_0/attn1/to_q, temporal_transformer_blocks_0/..."""

    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, temporal=True):
        block = nn.remat(Block) if self.remat else Block
        x = nn.Dense(8, dtype=self.dtype, name="linear_1")(x)
        x = block(self.dtype, name="transformer_blocks_0")(x)
        if temporal:
            x = block(self.dtype, name="temporal_transformer_blocks_0")(x)
        return x


@pytest.fixture(scope="module")
def toy():
    x = jax.random.normal(jax.random.key(0), (2, 5, 6))
    return Toy().init(jax.random.key(1), x)["params"], x


def random_lora(params, targets, rank=3, seed=2):
    """Both factors random, so that every delta changes the output."""
    lora = tree.init(jax.random.key(seed), params, targets, rank)
    for i, delta in enumerate(lora.values()):
        delta["b"] = 0.3 * jax.random.normal(jax.random.key(100 * seed + i), delta["b"].shape)
    return lora


def rel_error(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def nested(flat):
    params = {}
    for path, value in flat.items():
        *branches, leaf = path.split("/")
        node = params
        for name in branches:
            node = node.setdefault(name, {})
        node[leaf] = value
    return params


def kernels(params):
    """Module paths that have a kernel, written independently of the package."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    paths = ["/".join(key.key for key in path) for path, _ in leaves]
    return {path.removesuffix("/kernel") for path in paths if path.endswith("/kernel")}


@pytest.fixture(scope="module")
def full_size():
    """(torch names of the Linear layers, shapes of the full-size U-Net as a parameter tree)."""
    linear, flat = [], {}
    for key, shape in json.loads(KEYS.read_text()).items():
        owner, leaf = key.rsplit(".", 1)
        leaf = {"weight": "kernel" if len(shape) > 1 else "scale"}.get(leaf, leaf)
        if leaf == "kernel" and len(shape) == 2:
            linear.append(owner)
        path = re.sub(r"\.(\d+)", r"_\1", owner).replace(".", "/")
        flat[f"{path}/{leaf}"] = jax.ShapeDtypeStruct(tuple(shape[::-1]), jnp.bfloat16)
    return linear, nested(flat)

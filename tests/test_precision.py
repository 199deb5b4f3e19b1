"""The precision policy: bfloat16 weights and activations; norms, softmax, blends, sampler and LoRA in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from recapture_jax.lora import tree as lora_tree
from recapture_jax.models import layers, zoo
from recapture_jax.stages.video_model import VideoModel
from recapture_jax.tuning.step import Settings, init_state

BF16 = jnp.bfloat16


def model_in(params, dtype) -> VideoModel:
    return VideoModel(zoo.build(tiny.CONFIG, dtype), zoo.cast_params(params, dtype), tiny.CONFIG)


@pytest.fixture(scope="module")
def narrow(tiny_params):
    return model_in(tiny_params, BF16)


def test_what_is_stored_in_which_dtype(narrow):
    """Weights in bfloat16 but for the layers that read or write latents; deltas and AdamW in float32."""
    flat = jax.tree_util.tree_leaves_with_path(narrow.params)
    wide = {
        jax.tree_util.keystr(path[:-1], simple=True, separator="/")
        for path, leaf in flat
        if leaf.dtype == jnp.float32
    }
    assert wide == {"unet/conv_in", "unet/conv_out", "vae/encoder/conv_out", "vae/quant_conv"}
    assert all(leaf.dtype in (BF16, jnp.float32) for _, leaf in flat)
    lora = lora_tree.init(jax.random.key(0), narrow.params["unet"], "temporal", 2)
    state = init_state({"temporal": lora}, Settings())
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert floats and all(x.dtype == jnp.float32 for x in floats)


@pytest.mark.parametrize("swap", [False, True])
def test_the_lesser_branch_of_a_blend_is_kept(swap):
    """1 - sigmoid(7) is 0.0009; bfloat16 has nothing between 1 and 0.996, so there it would be 0."""
    mixer = layers.MixFactor(swap=swap)
    little, much = jnp.zeros((1, 2, 2, 2, 4), BF16), jnp.ones((1, 2, 2, 2, 4), BF16)
    branches = (much, little) if swap else (little, much)
    got = mixer.apply({"params": {"mix_factor": jnp.array([7.0], BF16)}}, *branches)
    np.testing.assert_allclose(np.asarray(got, np.float32), 1.0 / (1.0 + np.exp(7.0)), rtol=2**-8)
    assert 1 - jax.nn.sigmoid(jnp.array(7.0, BF16)) == 0.0

"""The loss the small prior is trained by: clips, and single frames without the temporal layers."""

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from tiny import CONFIG

from experiments.pretrain_small import diffusion
from recapture_jax.models import zoo


def test_images_add_a_loss_of_the_spatial_layers_alone(tiny_params):
    networks = zoo.build(CONFIG)
    rng = np.random.default_rng(0)
    side, clip = CONFIG["image_encoder"]["image_size"], (1, 3, 4, 6, 4)
    batch = {
        "video": rng.standard_normal(clip).astype(np.float32),
        "first": rng.standard_normal((1, 4, 6, 4)).astype(np.float32),
        "pixels": rng.standard_normal((1, side, side, 3)).astype(np.float32),
        "ids": np.array([[6.0, 40.0, 0.02]], np.float32),
        "sigma": np.array([1.5], np.float32),
    }
    frames = {"images": batch["video"][0], "image_sigma": np.array([0.3, 1.0, 4.0], np.float32)}

    def added(params):
        """What the images add to the loss."""
        key, args = jax.random.key(3), (networks, params)
        both = diffusion.training_loss(*args, key, batch | frames)
        return both - diffusion.training_loss(*args, key, batch)

    params = {name: jax.tree.map(jnp.asarray, tiny_params[name]) for name in tiny_params}
    value, grads = jax.jit(jax.value_and_grad(added))(params)
    assert value > 0.05
    norms = {p: float(jnp.linalg.norm(g)) for p, g in flatten_dict(grads["unet"], sep="/").items()}
    temporal = {p for p in norms if "temporal" in p or "mix" in p or "time_pos" in p}
    spatial = {p for p in norms if "spatial_res_block/conv" in p and p.endswith("kernel")}
    assert len(temporal) > 20 and len(spatial) > 5
    assert max(norms[p] for p in temporal) < 1e-3 * min(norms[p] for p in spatial)

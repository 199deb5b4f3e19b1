"""The three networks of one video model, built from one configuration dictionary.

The dictionary is what a converted model's `config.json` holds:
`{"unet": {...}, "vae": {...}, "image_encoder": {...}, "num_frames": 14}`.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from recapture_jax.models.clip_vision import CLIPVision, CLIPVisionConfig
from recapture_jax.models.unet import UNet, UNetConfig
from recapture_jax.models.vae import VAE, VAEConfig

COMPONENTS = ("unet", "vae", "image_encoder")

# Layers that read or write latents compute in float32 and are stored in it: few parameters, whose rounding no
# later layer averages out.
_FLOAT32 = re.compile(r"unet/conv_(in|out)/\w+|vae/(encoder/conv_out|quant_conv)/\w+")


@dataclasses.dataclass(frozen=True)
class Networks:
    """Modules without parameters.

    Attributes:
      unet, vae, image_encoder: Linen modules.
      num_frames: length of the clips the model was trained on.
    """

    unet: UNet
    vae: VAE
    image_encoder: CLIPVision
    num_frames: int


def build(config: Mapping[str, Any], dtype=jnp.float32, **unet_options) -> Networks:
    """Modules from the configuration; `unet_options` are UNet's (attention, remat, ...).

    Raises:
      ValueError: for a configuration the networks cannot express.
    """
    unet = UNetConfig.from_dict(config["unet"])
    attention = unet_options.get("attention", "auto")
    return Networks(
        UNet(unet, dtype=dtype, **unet_options),
        # One 512-wide head: outside the limits of the fused kernel.
        VAE(
            VAEConfig.from_dict(config["vae"]), dtype, "auto" if attention == "cudnn" else attention
        ),
        CLIPVision(CLIPVisionConfig.from_dict(config["image_encoder"]), dtype),
        int(config.get("num_frames", unet.num_frames)),
    )


def _example_inputs(component: str, networks: Networks) -> tuple:
    """The smallest inputs that create every parameter."""
    if component == "unet":
        cfg = networks.unet.config
        side = 2 ** (len(cfg.block_out_channels) - 1)
        ids = cfg.projection_class_embeddings_input_dim // cfg.addition_time_embed_dim
        shapes = [
            (1, 2, side, side, cfg.in_channels),
            (1,),
            (1, 1, cfg.cross_attention_dim),
            (1, ids),
        ]
    elif component == "vae":
        side = networks.vae.config.factor
        shapes = [(1, 2, side, side, networks.vae.config.in_channels)]
    elif component == "image_encoder":
        side = networks.image_encoder.config.image_size
        shapes = [(1, side, side, 3)]
    else:
        raise ValueError(f"component {component!r}: expected one of {COMPONENTS}")
    return tuple(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)


def abstract_params(component: str, config: Mapping[str, Any]) -> dict:
    """The parameter tree of one component as shapes; `config` holds all three components."""
    networks = build(config)
    module = getattr(networks, component)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(module.init, key, *_example_inputs(component, networks))["params"]


def cast_params(params: Mapping[str, Any], dtype) -> dict[str, Any]:
    """The parameters of all components as a run in `dtype` holds them, on the host or on a device as they were."""
    flat = flatten_dict(params, sep="/")
    kept = {path: jnp.float32 if _FLOAT32.fullmatch(path) else dtype for path in flat}
    return unflatten_dict({path: x.astype(kept[path]) for path, x in flat.items()}, sep="/")


def init_params(component: str, config: Mapping[str, Any], seed: int) -> dict:
    """Random parameters of one component as numpy (for training from scratch and for tests).

    Kernels ~ N(0, 1 / fan_in), norms one, biases zero, mix factors the checkpoints' start. Compiling the
    modules' own initialisers would take minutes: a thousand tensors, each with its own random stream.
    """
    flat = flatten_dict(abstract_params(component, config), sep="/")
    rng = np.random.default_rng(seed)
    start = {"scale": 1.0, "bias": 0.0, "mix_factor": 0.0 if component == "vae" else 0.5}

    def value(path: str, shape: tuple[int, ...]) -> np.ndarray:
        leaf = path.rpartition("/")[2]
        if leaf in start:
            return np.full(shape, start[leaf], np.float32)
        spread = math.prod(shape[:-1]) ** -0.5 if leaf == "kernel" else 0.02
        return spread * rng.standard_normal(shape, dtype=np.float32)

    return unflatten_dict({path: value(path, leaf.shape) for path, leaf in flat.items()}, sep="/")

"""Finds and loads a video model: a folder of `converters.svd`, or the small prior of the package."""

import json
import pathlib

import jax
import jax.numpy as jnp

from recapture_jax.checkpoints import restore_safetensors, restore_tree
from recapture_jax.errors import InputError
from recapture_jax.models import zoo
from recapture_jax.models.attention import device_has_cudnn
from recapture_jax.stages.video_model import VideoModel


def read_config(path: pathlib.Path) -> dict:
    """The model's `config.json`.

    Raises:
      InputError: if the folder is none of ours.
    """
    if not path.is_dir():
        raise InputError(
            f"model folder {path} does not exist: convert the weights first with "
            f"`python -m converters.svd --src SRC --dst {path}`, or use --config.model.path=bundled:prior_small"
        )
    file = path / "config.json"
    try:
        config = json.loads(file.read_text())
        missing = [name for name in zoo.COMPONENTS if name not in config]
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file} cannot be read ({error}): expected a folder written by converters.svd"
        ) from None
    if missing:
        raise InputError(
            f"{file} lacks {', '.join(missing)}: expected a folder written by converters.svd"
        )
    return config


def load_model(
    path: pathlib.Path, dtype=jnp.float32, on_host: bool = False, **unet_options
) -> VideoModel:
    """Networks and parameters, in `dtype` but for what `zoo.cast_params` keeps.

    Args:
      path: the folder.
      dtype: of weights and activations.
      on_host: the parameters stay in main memory; a program takes its own to the device while it runs.
      unet_options: see `zoo.build`.

    Raises:
      InputError: for a missing folder, or parameters that do not fit the configuration.
    """
    config = read_config(path)
    try:
        networks = zoo.build(config, dtype, **unet_options)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path / 'config.json'}: {error}") from None
    shapes = {name: zoo.abstract_params(name, config) for name in zoo.COMPONENTS}
    single = path / "model.safetensors"
    if single.exists():
        params = restore_safetensors(single, shapes)
    else:
        params = {name: restore_tree(path / name, shapes[name], True) for name in zoo.COMPONENTS}
    params = zoo.cast_params(params, dtype)
    return VideoModel(networks, params if on_host else jax.device_put(params), config)


def dtype_of(name: str):
    """Of weights and activations, from `config.model.dtype`."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def check_attention(name: str, dtype) -> None:
    """Refuses a fused kernel of another platform, or of another precision, before any work.

    Raises:
      InputError: with what to set.
    """
    needs = {"cudnn": "gpu", "flash": "tpu"}.get(name)
    here = jax.default_backend()
    if needs and needs != here:
        raise InputError(
            f"config.model.attention={name} runs on a {needs.upper()}, this machine has a {here.upper()}: "
            "set it to auto"
        )
    if name == "cudnn" and not device_has_cudnn():
        raise InputError(
            "config.model.attention=cudnn needs a GPU of compute capability 8.0 or above (Ampere), this one is a "
            f"{jax.devices()[0].device_kind}: set it to auto"
        )
    if name == "cudnn" and dtype == jnp.float32:
        raise InputError(
            "config.model.attention=cudnn cannot compute in float32: set config.model.dtype=bfloat16, or "
            "attention to auto"
        )

"""Parameters on disk: npz while training, one half-precision safetensors file when shipped."""

import copy
import json
import os
import pathlib

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from experiments.pretrain_small.architecture import CONFIG
from recapture_jax.weights import load_model


def save_params(path: pathlib.Path, params: dict) -> None:
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, **{k: np.asarray(v) for k, v in flatten_dict(params, sep="/").items()})
    os.replace(temporary, path)


def load_params(path: pathlib.Path) -> dict:
    with np.load(path) as file:
        return unflatten_dict(dict(file), sep="/")


def write_model(workdir: pathlib.Path, dst: pathlib.Path, start: pathlib.Path | None) -> None:
    """`config.json` and `model.safetensors` (float16) of the trained prior.

    start: the model whose autoencoder was trained further, where no U-Net was.
    """
    if (workdir / "unet.npz").exists() or start is None:
        trained = load_params(workdir / "unet.npz")
        scale = float(trained.pop("scaling_factor"))
    else:
        model = load_model(start)
        trained = {name: model.params[name] for name in ("unet", "image_encoder")}
        scale = model.networks.vae.config.scaling_factor
    params = {"vae": load_params(workdir / "vae.npz")} | trained
    config = copy.deepcopy(CONFIG)
    config["vae"]["scaling_factor"] = scale
    flat = {k: np.asarray(v, np.float16) for k, v in flatten_dict(params, sep="/").items()}
    if not all(np.isfinite(v).all() for v in flat.values()):
        raise FloatingPointError("a parameter does not fit float16")
    dst.mkdir(parents=True, exist_ok=True)
    save_file(flat, dst / "model.safetensors.tmp", {"format": "flax"})
    os.replace(dst / "model.safetensors.tmp", dst / "model.safetensors")
    (dst / "config.json").write_text(json.dumps(config, indent=2) + "\n")

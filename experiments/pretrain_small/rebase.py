"""A U-Net trained on one autoencoder's latents, made to start well on another's."""

import numpy as np
from absl import logging

from recapture_jax.weights import VideoModel


def rebase(model: VideoModel, frames: np.ndarray, latents: np.ndarray, scale: float) -> dict:
    """Parameters `unet` and `image_encoder` of `model` for other latents.

    A linear map between the two latents, fitted to the same frames, goes into the first and the last layer.
    What the map does not explain, and the noise that it colours, is left to training.

    Args:
      model: the trained model, with its own autoencoder.
      frames: `[N, T, H, W, 3]` uint8.
      latents: `[N, T, h, w, c]`, the new autoencoder's, not scaled.
      scale: what training multiplies them by.
    """
    old = np.stack([np.asarray(model.encode_video(f.astype(np.float32) / 255.0)) for f in frames])
    new = np.asarray(latents, np.float32) * scale
    to_old, to_new = _linear_map(new, old), _linear_map(old, new)
    unet = dict(model.params["unet"])
    kernel = np.asarray(unet["conv_in"]["kernel"], np.float32)
    noisy, first = np.split(kernel, 2, axis=2)
    # The conditioning latents are not scaled, on either side.
    change = scale / model.config["vae"]["scaling_factor"]
    halves = (np.einsum("hwio,ni->hwno", k, to_old) for k in (noisy, change * first))
    unet["conv_in"] = dict(unet["conv_in"]) | {"kernel": np.concatenate(list(halves), axis=2)}
    unet["conv_out"] = {k: np.asarray(v, np.float32) @ to_new for k, v in unet["conv_out"].items()}
    return {"unet": unet, "image_encoder": model.params["image_encoder"]}


def _linear_map(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """`[c, d]`: the best linear map of channels, means aside."""
    x = source.reshape(-1, source.shape[-1])
    y = target.reshape(-1, target.shape[-1])
    x, y = x - x.mean(0), y - y.mean(0)
    matrix = np.linalg.lstsq(x, y, rcond=None)[0]
    logging.info(
        "rebase: %s explained", np.round(1 - np.square(x @ matrix - y).mean(0) / y.var(0), 2)
    )
    return matrix

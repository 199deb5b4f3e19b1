"""Sky: what is infinitely far away has no depth, yet belongs into the picture.

Sky are areas, at least 3x3 pixels wide, of infinite depth, of disparity 0, or of a depth far beyond
that of the clip; and whatever a mask says. Narrower specks of infinity are holes of a sensor, which
`precomputed` fills. Sky is put on one plane far behind everything, where a move of the camera shifts
it by (nearly) nothing and a turn shifts it as it should. It counts in no statistics of the depth: not
in the scales and medians of `align`, not in near and far of disparity, not in the pivot of a move.
"""

import dataclasses
from typing import Any

import numpy as np

from recapture_jax.depth.base import DepthMap
from recapture_jax.errors import InputError

FAR = 1000.0  # median depths; a truck by 0.1 of them shifts what is there by 1e-4 focal lengths
BEYOND = 50.0  # times the quantile; `align` cuts depth at about as much
QUANTILE = 0.25  # low, for much of the picture may be sky


def areas(mask: np.ndarray) -> np.ndarray:
    """The parts of [T, H, W] bool that 3x3 pixels fit into; beyond the frame they go on."""
    from scipy.ndimage import binary_dilation, binary_erosion

    window = np.ones((1, 3, 3), bool)
    return binary_dilation(binary_erosion(mask, window, border_value=1), window)


def mark(
    depth: DepthMap, mask: np.ndarray | None = None, beyond: float = BEYOND, far: float = FAR
) -> DepthMap:
    """The depth with its sky marked and on the far plane.

    Args:
        depth: [T, H, W]; what its `sky` says already stays sky.
        mask: [T, H, W] bool, True where there is sky.
        beyond: sky are also areas farther than this many times the lower quartile of the clip's
            depth; 0 for none.
        far: depth of the plane in medians of the clip.

    Raises:
        InputError: the mask is of another shape, all of the clip is sky, or a bad argument.
    """
    if not (np.isfinite(far) and far >= 1 and np.isfinite(beyond) and (beyond == 0 or beyond > 1)):
        raise InputError(
            f"sky beyond {beyond} quartiles on a plane at {far} medians; expected 0 or above 1, "
            "and at least 1"
        )
    sky = ~depth.surfaces
    if mask is not None:
        if mask.shape != sky.shape:
            raise InputError(f"sky mask has shape {mask.shape}, expected {sky.shape}")
        sky |= mask
    values = depth.depth
    if beyond and not sky.all():
        sky |= areas((values > beyond * np.quantile(values[~sky], QUANTILE)) | sky)
    if not sky.any():
        return dataclasses.replace(depth, sky=None)
    if sky.all():
        raise InputError(
            f"all of {depth.source} is sky; expected a surface in some frame: check the sky mask "
            "and the kind of the depth"
        )
    plane = np.float32(far * np.median(values[~sky]))
    return dataclasses.replace(depth, depth=np.where(sky, plane, values), sky=sky)


def report(depth: DepthMap) -> dict[str, Any]:
    """Share of the clip that is sky, and the depth it is at (None without any)."""
    if depth.sky is None:
        return {"share": 0.0, "depth": None}
    share, plane = float(depth.sky.mean()), float(depth.depth[depth.sky].max())
    return {"share": round(share, 4), "depth": plane}

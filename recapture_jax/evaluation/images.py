"""PSNR and SSIM of frames, over all, the occluded and the visible pixels, by the definitions of GCD.

Generative Camera Dolly (Van Hoorick et al. 2024) scores float frames with scikit-image: SSIM is its
7x7 uniform window with sample covariance, channels averaged, a border of 3 pixels left out. Over a
region, PSNR takes the region's pixels; SSIM takes the map's mean over the region after three erosions
with the 4-connected cross, so that no window of the mean reaches far out of it. An empty region is
nan, and nan frames drop out of means (`mean_over_frames`).
"""

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from recapture_jax.errors import InputError
from recapture_jax.evaluation.optional import require

SSIM_RADIUS = 3  # of the 7x7 window
LOWEST_ERROR = 1e-10  # mean squared; equal frames would be infinitely good and spoil every mean
REGIONS = ("all", "occ", "vis")
AVERAGES = {"0-13": slice(0, None), "1-13": slice(1, None), "last": slice(-1, None)}
"""Which frames of a clip a mean takes: all, all but the input view, the end of the move."""


def psnr(result: np.ndarray, truth: np.ndarray, region: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB, at most 100; nan over an empty region.

    Args:
        result, truth: `[H, W, C]` in [0, 1].
        region: `[H, W]` bool, pixels to score, or None for all.
    """
    error = np.square(np.asarray(result, np.float64) - truth)
    if region is not None:
        error = error[region]
    if error.size == 0:
        return float("nan")
    return -10 * float(np.log10(max(error.mean(), LOWEST_ERROR)))


def ssim_map(result: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Structural similarity `[H - 6, W - 6]` around every pixel a whole window fits around.

    Args:
        result, truth: `[H, W, C]` in [0, 1], at least 7 pixels a side.

    Raises:
        InputError: smaller frames, or scikit-image is not installed.
    """
    height, width = truth.shape[:2]
    if min(height, width) <= 2 * SSIM_RADIUS:
        raise InputError(f"SSIM of {height}x{width} pixels: expected at least 7 a side")
    metrics = require("skimage.metrics", "scikit-image", "SSIM")
    full = metrics.structural_similarity(
        np.asarray(result, np.float64),
        np.asarray(truth, np.float64),
        data_range=1.0,
        channel_axis=-1,
        full=True,
    )[1]
    return _cropped(full).mean(-1)


def ssim_mean(similarity: np.ndarray, region: np.ndarray | None = None) -> float:
    """Mean of a `ssim_map` over the eroded region `[H, W]`, or over all; nan if nothing is left."""
    if region is None:
        return float(similarity.mean())
    core = _cropped(ndimage.binary_erosion(region, iterations=SSIM_RADIUS))
    return float(similarity[core].mean()) if core.any() else float("nan")


def _cropped(image: np.ndarray) -> np.ndarray:
    return image[SSIM_RADIUS:-SSIM_RADIUS, SSIM_RADIUS:-SSIM_RADIUS]


def regions(occluded: np.ndarray) -> dict[str, np.ndarray | None]:
    """The masks of `REGIONS` for a mask of occluded pixels; None stands for all pixels."""
    return {"all": None, "occ": occluded, "vis": ~occluded}


def frame_scores(
    result: np.ndarray, truth: np.ndarray, occluded: np.ndarray
) -> dict[str, list[float]]:
    """PSNR and SSIM of every frame: `psnr_all`, `psnr_occ`, `psnr_vis`, `ssim_all`, ...

    Args:
        result, truth: `[T, H, W, 3]` in [0, 1].
        occluded: `[T, H, W]` bool, what the source camera does not see.

    Raises:
        InputError: shapes that differ, or frames that are not finite.
    """
    result, truth, occluded = (np.asarray(x) for x in (result, truth, occluded))
    if result.shape != truth.shape or occluded.shape != truth.shape[:-1]:
        raise InputError(
            f"frames {result.shape}, truth {truth.shape} and mask {occluded.shape} do not belong "
            "together: expected [T, H, W, 3] twice and [T, H, W]"
        )
    if not np.isfinite(result).all():
        raise InputError("the frames to score contain NaN or infinity")
    scores: dict[str, list[float]] = {f"{m}_{r}": [] for m in ("psnr", "ssim") for r in REGIONS}
    for frame, true, hidden in zip(result, truth, occluded, strict=True):
        similarity = ssim_map(frame, true)
        for name, region in regions(hidden).items():
            scores[f"psnr_{name}"].append(psnr(frame, true, region))
            scores[f"ssim_{name}"].append(ssim_mean(similarity, region))
    return scores


def mean_over_frames(
    scores: Mapping[str, list[float]], frames: slice = AVERAGES["0-13"]
) -> dict[str, float]:
    """Mean of each list over the frames that are not nan; nan where none is left."""
    means = {}
    for name, values in scores.items():
        picked = np.asarray(values, np.float64)[frames]
        known = picked[~np.isnan(picked)]
        means[name] = float(known.mean()) if known.size else float("nan")
    return means

"""Makes depth agree over a clip: one scale for all frames, no flicker where nothing moves.

Three steps, all in log depth, where a factor is a difference:

1. Alignment. The factor between two frames is the median over pixels of their log ratio, taken
   where the colour stays the same, so an object that moves does not count, however large. The
   log scales s_t of all frames are the weighted least squares solution of the differences measured
   between frames 1, 2, 4 and 8 apart. How much of s_t is an error is a question of `mode`:

       clip      all of it: right for a camera that keeps its distance, and for networks that see
                 one frame at a time, whose scale wanders
       smooth    its departure from a smooth curve: right where the depth can be trusted but for
                 jitter, as it keeps the change of depth of a camera that approaches
       affine    as clip, and 1/depth has its own offset in each frame too (disparity networks)
       none      nothing

   'auto' is smooth for metric depth and clip for relative depth.
2. Smoothing over a few frames: a mean in which a pixel of another frame counts the less, the more
   its colour or depth differs. Moving edges stay sharp, as what is across them differs in one.
3. Clamping to [0.02, 50] times the median of the clip.

Depth that agrees already is returned unchanged, and so is the sky, which counts in no step.
"""

import dataclasses

import numpy as np

from recapture_jax.depth.base import DepthMap
from recapture_jax.errors import InputError

MODES = ("auto", "clip", "smooth", "affine", "none")
CLAMP = (0.02, 50.0)  # times the median
_STEPS = (1, 2, 4, 8)  # frames between those that are compared
_PIXELS = 2**14  # per frame, enough for a median
_SAME_COLOUR = 0.03  # mean absolute difference of [0, 1] colours of what did not move
_ENOUGH = 0.05  # share of such pixels from which on the others are left out
_HALF_WINDOW = 6  # frames to either side that the smooth curve sees


def stabilise(
    depth: DepthMap,
    frames: np.ndarray,
    *,
    mode: str = "auto",
    radius: int = 2,
    sigma_colour: float = 0.03,
    sigma_depth: float = 0.1,
) -> DepthMap:
    """Evens out scale and flicker; see the module's docstring.

    Args:
        depth: [T, H, W].
        frames: [T, H, W, 3] in [0, 1], the pictures it belongs to.
        mode: 'auto', 'clip', 'smooth', 'affine' or 'none'.
        radius: frames to either side that are averaged; 0 turns smoothing off.
        sigma_colour: colour difference (mean over channels) at which a pixel counts by exp(-1/2).
        sigma_depth: the same for log depth.

    Returns:
        The same kind of depth, with the same median over the clip in the modes clip and affine.

    Raises:
        InputError: the frames do not fit the depth, or a bad argument.
    """
    if mode not in MODES:
        raise InputError(f"stabilise mode is {mode!r}, expected one of {', '.join(MODES)}")
    if radius < 0 or not (sigma_colour > 0 and sigma_depth > 0):
        raise InputError(
            f"stabilise got radius {radius}, sigma_colour {sigma_colour}, sigma_depth "
            f"{sigma_depth}; expected at least 0, above 0, above 0"
        )
    if tuple(frames.shape) != (*depth.depth.shape, 3):
        raise InputError(
            f"frames have shape {tuple(frames.shape)}, depth {tuple(depth.depth.shape)}; expected "
            "[T, H, W, 3] and [T, H, W] of the same clip"
        )
    values, frames, valid = np.asarray(depth.depth), np.asarray(frames), depth.surfaces
    if mode == "auto":
        mode = "smooth" if depth.kind == "metric" else "clip"
    if mode == "affine":
        values = _align_affine(values, frames, valid)
    elif mode != "none":
        scales = log_scales(values, frames, valid)
        error = scales - (np.median(scales) if mode == "clip" else smooth_curve(scales))
        values = values * np.exp(-error).astype(np.float32)[:, None, None]
    if radius:
        values = _smooth(values, frames, radius, sigma_colour, sigma_depth)
    median = np.median(values[valid])
    low, high = (np.float32(factor * median) for factor in CLAMP)
    values = np.where(valid, np.clip(values, low, high), depth.depth)
    return dataclasses.replace(depth, depth=values)


def log_scales(
    depth: np.ndarray, frames: np.ndarray, valid: np.ndarray | None = None
) -> np.ndarray:
    """Log of each frame's scale, [T] float64 with median 0, from [T, H, W] and [T, H, W, 3].

    Only pixels that are `valid` [T, H, W] bool in both frames of a pair are compared.
    """
    count = len(depth)
    log_depth = np.log(_thin(depth))
    colours = _thin(frames)
    valid = np.ones(log_depth.shape, bool) if valid is None else _thin(valid) > 0
    rows, ratios, weights = [], [], []
    for step in _STEPS:
        for t in range(count - step):
            still = _still(colours[t], colours[t + step], valid[t] & valid[t + step])
            if not still.any():
                continue
            ratio = (log_depth[t + step] - log_depth[t])[still]
            middle = np.median(ratio)
            row = np.zeros(count)
            row[t], row[t + step] = -1, 1
            rows.append(row)
            ratios.append(middle)
            # frames that share little differ by much besides the factor
            weights.append(1 / (1e-3 + np.median(np.abs(ratio - middle))))
    if not rows:
        return np.zeros(count)
    weights = np.sqrt(weights)
    scales = np.linalg.lstsq(np.array(rows) * weights[:, None], ratios * weights, rcond=None)[0]
    return scales - np.median(scales)


def smooth_curve(values: np.ndarray) -> np.ndarray:
    """[T] -> [T]: a local parabola at each point (a line in short series) that ignores outliers.

    Cleveland 1979: tricube weights in time, bisquare weights on the residuals.
    """
    count = len(values)
    degree = min(2 if count >= 8 else 1, count - 1)
    curve = np.empty(count)
    for t in range(count):
        near = np.arange(max(0, t - _HALF_WINDOW), min(count, t + _HALF_WINDOW + 1))
        x = (near - t) / (_HALF_WINDOW + 1)
        basis = np.vander(x, degree + 1, increasing=True)
        robust = np.ones(len(near))
        for _ in range(6):
            weight = np.sqrt((1 - np.abs(x) ** 3) ** 3 * robust)
            fit = np.linalg.lstsq(basis * weight[:, None], values[near] * weight, rcond=None)[0]
            residual = np.abs(values[near] - basis @ fit)
            limit = 6 * np.median(residual) + 1e-6  # 1e-6: an exact fit has no outliers
            robust = (1 - np.minimum(residual / limit, 1) ** 2) ** 2
        curve[t] = fit[0]
    return curve


def disparity_to_depth(
    disparity: np.ndarray,
    near: float | None,
    far: float | None,
    valid: np.ndarray | None = None,
) -> np.ndarray:
    """Depth from what is large where it is near.

    With near < far: 1 / (A d + B), where d is the disparity brought to [0, 1] by the extremes of
    the clip, A = 1/near - 1/far and B = 1/far; the nearest pixel gets depth `near`, the farthest
    `far`. Disparity networks leave both open, so this is a choice and the depth is relative.
    With None for both: 1 / disparity, which then has to be above 0.

    Args:
        disparity: [T, H, W], finite.
        near, far: depth of the nearest and farthest pixel of the clip.
        valid: [T, H, W] bool; the others (sky) do not count and come out like the farthest pixel.

    Returns:
        [T, H, W] float64 > 0.

    Raises:
        InputError: near and far are not 0 < near < far, the disparity is the same everywhere, or
            not above 0 where it has to be.
    """
    disparity = np.asarray(disparity, np.float64)
    if valid is not None and not valid.all():
        counted = disparity[valid]
        disparity = np.where(valid, disparity, counted.min() if counted.size else 1.0)
    low, high = disparity.min(), disparity.max()
    if near is None and far is None:
        if low <= 0:
            raise InputError(f"disparity goes down to {low:g}, expected above 0; state near, far")
        return 1 / disparity
    if near is None or far is None or not 0 < near < far < np.inf:
        raise InputError(f"near is {near}, far {far}; expected 0 < near < far, or None for both")
    if not low < high:
        raise InputError(f"disparity is {low:g} everywhere; expected the output of a depth network")
    return 1 / ((1 / near - 1 / far) * ((disparity - low) / (high - low)) + 1 / far)


def _thin(values: np.ndarray) -> np.ndarray:
    """[T, H, W, ...] on a coarser grid, flattened to [T, pixels, ...], float32."""
    height, width = values.shape[1:3]
    step = max(1, int(np.ceil(np.sqrt(height * width / _PIXELS))))
    values = values[:, ::step, ::step]
    return values.reshape(len(values), -1, *values.shape[3:]).astype(np.float32)


def _still(a: np.ndarray, b: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Which valid ones of [pixels, 3] kept their colour; all valid ones if hardly any did."""
    still = (np.abs(a - b).mean(axis=-1) < _SAME_COLOUR) & valid
    return still if still.sum() >= _ENOUGH * valid.sum() else valid


def _align_affine(depth: np.ndarray, frames: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Brings the disparity of every frame to that of one of them by a factor and an offset.

    Least absolute deviations, by reweighting. The frame of reference is the one whose median depth
    is the median.
    """
    disparity, colours, valid = 1 / _thin(depth).astype(np.float64), _thin(frames), _thin(valid) > 0
    medians = np.array(
        [np.median(d[v]) if v.any() else np.nan for d, v in zip(disparity, valid, strict=True)]
    )
    reference = int(np.argsort(medians)[np.isfinite(medians).sum() // 2])  # nan is sorted last
    aligned = np.empty_like(depth)
    for t in range(len(depth)):
        still = _still(colours[t], colours[reference], valid[t] & valid[reference])
        x, y = disparity[t][still], disparity[reference][still]
        factor, offset = 1.0, 0.0
        if t != reference and x.size and x.std() > 1e-3 * x.mean():
            weight = np.ones_like(x)
            for _ in range(30):
                basis = np.stack([x, np.ones_like(x)], axis=1) * weight[:, None]
                fit = np.linalg.lstsq(basis, y * weight, rcond=None)[0]
                residual = np.abs(y - fit[0] * x - fit[1])
                weight = 1 / np.sqrt(np.maximum(residual, 1e-7 * medians[reference]))
                weight /= weight.max()
            if fit[0] > 0:  # else the two frames have nothing in common
                factor, offset = fit
        # an offset may push what is far away beyond infinity
        floor = medians[reference] / CLAMP[1]
        aligned[t] = 1 / np.maximum(factor / depth[t].astype(np.float64) + offset, floor)
    return aligned


def _smooth(
    depth: np.ndarray, frames: np.ndarray, radius: int, sigma_colour: float, sigma_depth: float
) -> np.ndarray:
    """Bilateral mean over time of [T, H, W] log depth."""
    count = len(depth)
    log_depth = np.log(depth)
    colours = [_box(frame) for frame in frames]
    smooth = np.empty_like(depth)
    for t in range(count):
        change, weight = np.zeros(depth.shape[1:]), np.ones(depth.shape[1:])
        for other in range(max(0, t - radius), min(count, t + radius + 1)):
            if other == t:
                continue
            step = log_depth[other] - log_depth[t]
            colour = np.abs(colours[other] - colours[t]).mean(axis=-1)
            share = np.exp(-0.5 * ((colour / sigma_colour) ** 2 + (step / sigma_depth) ** 2))
            change, weight = change + share * step, weight + share
        smooth[t] = depth[t] * np.exp(change / weight)
    return smooth


def _box(frame: np.ndarray) -> np.ndarray:
    """3x3 mean of [H, W, 3]: single pixels are too noisy to compare."""
    height, width = frame.shape[:2]
    padded = np.pad(frame, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = sum(padded[k : k + height] for k in range(3))
    return sum(rows[:, k : k + width] for k in range(3)) / 9

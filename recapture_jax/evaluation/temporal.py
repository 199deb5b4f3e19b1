"""Steadiness of a clip over time: flickering, consistency of features, error after warping."""

import numpy as np
from scipy import ndimage

from recapture_jax.errors import InputError


def temporal_flickering(frames: np.ndarray) -> float:
    """VBench's score in [0, 1], 1 for a still picture.

    (255 - m) / 255, m the mean absolute difference of consecutive frames of bytes, averaged over the
    pairs. It is meant for scenes without motion: a moving camera lowers it.

    Args:
        frames: `[T, H, W, 3]` uint8, or floats in [0, 1], which are rounded to bytes.

    Raises:
        InputError: fewer than two frames.
    """
    frames = np.asarray(frames)
    _at_least_two(frames)
    if frames.dtype != np.uint8:
        frames = np.round(np.clip(frames, 0.0, 1.0) * 255.0).astype(np.uint8)
    pairs = zip(frames[:-1], frames[1:], strict=True)
    changes = [np.abs(b.astype(np.int16) - a).mean(dtype=np.float64) for a, b in pairs]
    return float((255.0 - np.mean(changes)) / 255.0)


def feature_consistency(features: np.ndarray) -> float:
    """VBench's subject or background consistency in [0, 1] from a feature vector per frame.

    For each frame after the first, the mean of its cosine with the frame before and with the first
    one, negative ones counted as 0; averaged over the frames. With DINO features it is the subject's,
    with CLIP's image features the background's.

    Args:
        features: `[T, D]`.

    Raises:
        InputError: fewer than two frames.
    """
    features = np.asarray(features, np.float64)
    _at_least_two(features)
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    before = np.maximum((unit[1:] * unit[:-1]).sum(-1), 0.0)
    first = np.maximum((unit[1:] * unit[:1]).sum(-1), 0.0)
    return float((0.5 * (before + first)).mean())


def warp_error(frames: np.ndarray, flow: np.ndarray, valid: np.ndarray) -> float:
    """Mean squared difference of each frame and the next one warped back onto it.

    The measure of Lai et al. 2018 (Learning blind video temporal consistency), with a flow that is
    given: with the exact one no network's error enters.

    Args:
        frames: `[T, H, W, 3]` in [0, 1].
        flow: `[T-1, H, W, 2]` pixels (right, down) from each pixel of frame t to frame t + 1.
        valid: `[T-1, H, W]` bool, pixels of frame t that are seen in frame t + 1.

    Returns:
        The mean over channels, valid pixels and then pairs; nan when no pixel is valid.

    Raises:
        InputError: shapes that do not belong together.
    """
    frames, flow, valid = (np.asarray(x) for x in (frames, flow, valid))
    _at_least_two(frames)
    expected = (len(frames) - 1, *frames.shape[1:3])
    if flow.shape != (*expected, 2) or valid.shape != expected:
        raise InputError(
            f"flow {flow.shape} and mask {valid.shape} do not fit frames {frames.shape}: expected "
            f"{(*expected, 2)} and {expected}"
        )
    errors = []
    for t in range(len(flow)):
        if valid[t].any():
            difference = sample_at(frames[t + 1], flow[t]) - frames[t]
            errors.append(float(np.square(difference)[valid[t]].mean()))
    return float(np.mean(errors)) if errors else float("nan")


def sample_at(frame: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """`frame` `[H, W, C]` read bilinearly at every pixel plus `flow` `[H, W, 2]`; edges repeat."""
    rows, columns = np.indices(flow.shape[:2], np.float64)
    where = (rows + flow[..., 1], columns + flow[..., 0])
    channels = np.moveaxis(np.asarray(frame, np.float64), -1, 0)
    read = [ndimage.map_coordinates(c, where, order=1, mode="nearest") for c in channels]
    return np.stack(read, axis=-1)


def _at_least_two(frames: np.ndarray) -> None:
    if len(frames) < 2:
        raise InputError(f"{len(frames)} frame is no video: expected two or more")

"""Frechet distance of two sets of features: FID with Inception's, FVD with I3D's.

|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)). With S = F^T F the last trace is the sum of the
singular values of F_a F_b^T, which needs no square root of a matrix and keeps what rank a small set
has.
"""

import numpy as np

from recapture_jax.errors import InputError


def frechet_distance(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """Between Gaussians fitted to two sets of features `[N, D]` and `[M, D]` (sample covariance).

    With few samples the distance is biased upwards: compare sets of equal size only.

    Raises:
        InputError: shapes that do not belong together, fewer than two samples, or not finite.
    """
    sets = [np.asarray(f, np.float64) for f in (features_a, features_b)]
    shapes = " and ".join(str(f.shape) for f in sets)
    if any(f.ndim != 2 or len(f) < 2 for f in sets) or sets[0].shape[1] != sets[1].shape[1]:
        raise InputError(f"features have shapes {shapes}: expected [N, D] and [M, D], N, M >= 2")
    if not all(np.isfinite(f).all() for f in sets):
        raise InputError("features contain NaN or infinity")
    means = [f.mean(0) for f in sets]
    factors = [(f - m) / np.sqrt(len(f) - 1) for f, m in zip(sets, means, strict=True)]
    return _distance(*means, *factors)


def gaussian_distance(
    mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray
) -> float:
    """Between two Gaussians with means `[D]` and covariances `[D, D]` (positive semidefinite)."""
    return _distance(mean_a, mean_b, _factor(covariance_a), _factor(covariance_b))


def _factor(covariance: np.ndarray) -> np.ndarray:
    """F with F^T F = covariance."""
    values, vectors = np.linalg.eigh(covariance)
    return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T


def _distance(mean_a, mean_b, factor_a, factor_b) -> float:
    cross = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    spread = np.square(factor_a).sum() + np.square(factor_b).sum() - 2.0 * cross
    return float(np.square(np.asarray(mean_a) - mean_b).sum() + max(spread, 0.0))

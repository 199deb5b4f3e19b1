"""Noise schedules: the levels a sampler visits (Karras et al. 2022, arXiv 2206.00364, eq. 5).

    s_i = (max^(1/rho) + i / (n - 1) (min^(1/rho) - max^(1/rho)))^rho   for i = 0 .. n-1,   s_n = 0

Schedules are constants of a run: numpy arrays, computed in float64 and returned in float32.
"""

import math

import numpy as np

from recapture_jax.diffusion.edm import SIGMA_MAX, SIGMA_MIN
from recapture_jax.errors import InputError


def karras_sigmas(
    n: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = 7.0
) -> np.ndarray:
    """Levels of an `n`-step run: `[n + 1]` float32, strictly falling from sigma_max, ending in 0.

    With n = 1 the only level is sigma_max: one jump to the denoiser's answer.

    Raises:
      InputError: if n < 1 or not 0 < sigma_min < sigma_max < inf or rho <= 0.
    """
    if n < 1:
        raise InputError(f"{n} sampling steps: expected 1 or more; raise the number of steps")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise InputError(
            f"noise levels from {sigma_max} down to {sigma_min}: expected finite levels with"
            " 0 < sigma_min < sigma_max; raise the first or lower the second"
        )
    if not rho > 0:
        raise InputError(f"rho {rho}: expected a positive number; 7 is the usual choice")
    ramp = np.linspace(0.0, 1.0, n)
    start, stop = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return np.append((start + ramp * (stop - start)) ** rho, 0.0).astype(np.float32)


def karras_tail(
    sigma_start: float, n: int, sigma_min: float = SIGMA_MIN, rho: float = 7.0
) -> np.ndarray:
    """Levels of an `n`-step SDEdit run that starts from a video noised to `sigma_start`.

    The start is a noise level and not a share of some schedule's indices: half of SVD's 25 indices
    is already sigma 10 to 16, nearly pure noise. Useful levels lie between about 0.7 and 10.

    Returns:
      `[n + 1]` float32, strictly falling from `sigma_start`, ending in 0.

    Raises:
      InputError: as `karras_sigmas`, thus also if sigma_start <= sigma_min.
    """
    return karras_sigmas(n, sigma_min, sigma_start, rho)

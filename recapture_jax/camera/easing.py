"""How a move gets under way and ends: progress along it against time, both from 0 to 1."""

from collections.abc import Callable

import numpy as np

EASINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda s: s,
    "ease-in": lambda s: s**2,
    "ease-out": lambda s: 1 - (1 - s) ** 2,
    "ease-in-out": lambda s: s**2 * (3 - 2 * s),
}

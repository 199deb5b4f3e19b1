"""Means over scenes with their uncertainty."""

from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean with the half-width of its confidence interval.

    Attributes:
        mean: nan without samples.
        half: half-width; nan with fewer than two samples.
        count: samples that were not nan.
    """

    mean: float
    half: float
    count: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return bool(abs(self.mean) > self.half)  # false for nan


def interval(values, confidence: float = 0.95) -> Interval:
    """Student's interval of the mean of `values`; nan values are left out."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    count = len(values)
    mean = float(values.mean()) if count else float("nan")
    if count < 2:
        return Interval(mean, float("nan"), count)
    reach = float(stats.t.ppf(0.5 + confidence / 2, count - 1))
    return Interval(mean, reach * float(values.std(ddof=1)) / count**0.5, count)


def text(found: Interval, digits: int = 2) -> str:
    """'20.31 ± 0.42', without the interval where there is none, '-' without a mean."""
    if np.isnan(found.mean):
        return "-"
    spread = "" if np.isnan(found.half) else f" ± {found.half:.{digits}f}"
    return f"{found.mean:.{digits}f}{spread}"

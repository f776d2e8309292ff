"""What a healthy start of readings says is normal: a level and a sigma that outliers cannot bend.

The level is a mean without outliers, the sigma 1.4826 times the median absolute deviation (where that is 0, the
root mean square deviation, the largest 5 % cut down to the next). Readings that depend on the one before make
sums wander further; their sigma is widened by sqrt((1 + r) / (1 - r)), as for a first-order autoregression
(Johnson and Bagshaw, "The effect of serial correlation on the performance of CUSUM tests", Technometrics 1974).
The correlation r with the next reading is Blomqvist's (Annals of Mathematical Statistics 1950), by signs, for
normally distributed readings.
"""

from __future__ import annotations

import numpy as np

from detectors.base import Floats
from detectors.kernels import compiled

__all__ = ["normal"]

_SIGMAS = 1.4826
"""Sigmas of normally distributed readings per median absolute deviation."""
_TRUSTED = 0.95
"""Quantile of the deviations at which they are cut down where more than half of them are 0."""
_MOST_DEPENDENT = 0.95
"""Largest correlation that the sigma is widened for: 6.2 times."""
_CENTER_SIGMAS = 3.0
"""Readings further off count as if they were so many sigmas from the median."""


@compiled("float64(float64[::1], float64)")
def _dependence(start: Floats, center: float) -> float:
    """Correlation of a reading with the next by that of their signs about the median, from 0 up."""
    signs = np.sign(start - center)
    mean, spread = np.mean(signs), np.var(signs)
    together = np.mean((signs[1:] - mean) * (signs[:-1] - mean))
    r = np.sin(0.5 * np.pi * min(together / spread, 1.0)) if spread > 0 else 0.0
    return float(min(max(r, 0.0), _MOST_DEPENDENT))


@compiled("UniTuple(float64, 2)(float64[::1], float64, float64)")
def normal(start: Floats, floor: float, floor_relative: float) -> tuple[float, float]:
    """Level and sigma of these readings (n,), finite, in order of time.

    >>> normal(np.array([1.0, 3.0, 2.0, 1.0, 3.0, 900.0, 1.0, 3.0, 2.0, 2.0]), 1e-9, 1e-6)
    (2.44478, 1.4826)
    """
    center = np.median(start)
    least = max(floor, floor_relative * abs(center))
    off = np.sort(np.abs(start - center))
    sigma = _SIGMAS * np.median(off)
    if sigma <= least:
        sigma = np.sqrt(np.mean(np.minimum(off, off[int(_TRUSTED * len(off))]) ** 2))
    total = 0.0
    for value in start:
        total += min(max(value - center, -_CENTER_SIGMAS * sigma), _CENTER_SIGMAS * sigma)
    r = _dependence(start, center)
    return center + total / len(start), max(sigma * np.sqrt((1.0 + r) / (1.0 - r)), least)

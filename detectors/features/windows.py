"""Statistics of a window of values, oldest first: each from the values themselves, so that nothing adds up errors."""

from __future__ import annotations

import numpy as np

from detectors.base import Floats
from detectors.kernels import compiled

__all__ = ["STATISTICS", "correlation", "crossings", "slope", "statistic"]

STATISTICS = ("mean", "std", "min", "max", "median", "range", "rms", "skew", "kurtosis")
"""By their number; `slope` needs times besides."""
_MEAN, _STD, _MIN, _MAX, _MEDIAN, _RANGE, _RMS, _SKEW, _KURTOSIS = range(len(STATISTICS))


@compiled("float64(int64, float64[::1])")
def statistic(which: int, x: Floats) -> float:
    """One of `STATISTICS`, by its number, of values (n,); NaN where it is not defined."""
    n = len(x)
    if which == _MEDIAN:
        return float(np.median(x))
    low, high, total = x[0], x[0], 0.0
    for value in x:
        low, high = min(low, value), max(high, value)
        total += value
    if which == _MIN:
        return float(low)
    if which == _MAX:
        return float(high)
    if which == _RANGE:
        return float(high - low)
    mean = total / n
    if which == _MEAN:
        return mean
    squares = 0.0
    if which == _RMS:
        for value in x:
            squares += value * value
        return float(np.sqrt(squares / n))
    if low == high:
        return 0.0 if which == _STD else np.nan
    for value in x:
        squares += (value - mean) * (value - mean)
    if which == _STD:
        return float(np.sqrt(squares / (n - 1)))
    sigma, moment = np.sqrt(squares / n), 0.0
    for value in x:
        z = (value - mean) / sigma
        moment += z * z * z if which == _SKEW else z * z * z * z
    return float(moment / n) - (3.0 if which == _KURTOSIS else 0.0)


@compiled("float64(float64[::1], float64[::1])")
def slope(x: Floats, t: Floats) -> float:
    """Of the least-squares line of values (n,) over times (n,); NaN where all times are the same."""
    n, x_mean, t_mean = len(x), 0.0, 0.0
    for i in range(n):
        x_mean += x[i] / n
        t_mean += (t[i] - t[0]) / n
    together = spread = 0.0
    for i in range(n):
        since = t[i] - t[0] - t_mean
        together += since * (x[i] - x_mean)
        spread += since * since
    return together / spread


@compiled("float64(float64[::1], float64[::1])")
def correlation(x: Floats, y: Floats) -> float:
    """Pearson's, of two columns (n,), -1 to 1; NaN where one is flat."""
    n, x_mean, y_mean = len(x), 0.0, 0.0
    x_flat = y_flat = True
    for i in range(n):
        x_mean += x[i] / n
        y_mean += y[i] / n
        x_flat &= x[i] == x[0]
        y_flat &= y[i] == y[0]
    if x_flat or y_flat:
        return np.nan
    xx = yy = xy = 0.0
    for i in range(n):
        a, b = x[i] - x_mean, y[i] - y_mean
        xx += a * a
        yy += b * b
        xy += a * b
    return float(min(max(xy / (np.sqrt(xx) * np.sqrt(yy)), -1.0), 1.0))


@compiled("float64(float64[::1], float64)")
def crossings(x: Floats, level: float) -> float:
    """How often values (n,) go from one side of a level to the other; one on it stays on its side."""
    count, side = 0, 0
    for value in x:
        here = int(value > level) - int(
            value < level
        )  # no branches: noise would be guessed wrong every other time
        count += int(here * side < 0)
        side = here if here != 0 else side
    return float(count)

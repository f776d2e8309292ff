"""Exponential histograms: long windows of readings in few buckets of 1, 2, 4 … readings, each its mean and squares.

Datar, Gionis, Indyk and Motwani, "Maintaining stream statistics over sliding windows", SIAM Journal on Computing
2002. A window is three arrays: `buckets` (levels,), how many of each size; `mean` and `squares` (about the mean) of
each, the oldest first, (levels, BUCKETS + 1).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats
from detectors.kernels import compiled

__all__ = ["BUCKETS", "add", "drop", "merged", "walk"]

BUCKETS: Final = 5
"""Buckets of one size at most."""


@compiled("UniTuple(float64, 3)(float64, float64, float64, float64, float64, float64)")
def merged(
    count: float, mean: float, squares: float, more: float, its_mean: float, its_squares: float
) -> tuple[float, float, float]:
    """Count, mean and squares about the mean of two parts together (Chan, Golub and LeVeque 1979)."""
    total = count + more
    apart = its_mean - mean
    return total, mean + apart * more / total, squares + its_squares + apart * apart * count * more / total


@compiled("UniTuple(float64, 4)(int64[::1], float64[:,::1], float64[:,::1], float64[:,::1])")
def walk(
    buckets: NDArray[np.int64], mean: Floats, squares: Floats, parts: Floats
) -> tuple[float, float, float, float]:
    """The window's readings, mean, squares and borders; `parts` (2, n) takes readings and mean up to each border."""
    count, center, around, borders = 0.0, 0.0, 0.0, 0
    for level in range(len(buckets) - 1, -1, -1):
        size = float(1 << level)
        for b in range(buckets[level]):
            count, center, around = merged(count, center, around, size, mean[level, b], squares[level, b])
            parts[0, borders], parts[1, borders] = count, center
            borders += 1
    return count, center, around, float(borders)


@compiled("void(int64[::1], float64[:,::1], float64[:,::1], float64)")
def add(buckets: NDArray[np.int64], mean: Floats, squares: Floats, value: float) -> None:
    """Append a reading; where there are too many buckets of a size, the two oldest become one of the next size.

    >>> buckets, mean, squares = np.zeros(3, np.int64), np.zeros((3, 6)), np.zeros((3, 6))
    >>> for value in range(8):
    ...     add(buckets, mean, squares, float(value))
    >>> buckets, mean[1, :2], mean[0, :4]
    (array([4, 2, 0]), array([0.5, 2.5]), array([4., 5., 6., 7.]))
    """
    size, its_mean, its_squares = 1.0, value, 0.0
    for level in range(len(buckets)):
        kept = buckets[level]
        mean[level, kept], squares[level, kept] = its_mean, its_squares
        if kept < BUCKETS:
            buckets[level] = kept + 1
            return
        _, its_mean, its_squares = merged(
            size, mean[level, 0], squares[level, 0], size, mean[level, 1], squares[level, 1]
        )
        gone = 1 if level == len(buckets) - 1 else 2  # nothing is larger: the oldest is forgotten
        for b in range(gone, kept + 1):
            mean[level, b - gone], squares[level, b - gone] = mean[level, b], squares[level, b]
        buckets[level] = kept + 1 - gone
        size *= 2.0


@compiled("void(int64[::1], float64[:,::1], float64[:,::1], float64)")
def drop(buckets: NDArray[np.int64], mean: Floats, squares: Floats, readings: float) -> None:
    """Forget the oldest buckets, so many readings in all."""
    for level in range(len(buckets) - 1, -1, -1):
        gone = min(int(readings) >> level, buckets[level])
        for b in range(gone, buckets[level]):
            mean[level, b - gone], squares[level, b - gone] = mean[level, b], squares[level, b]
        buckets[level] -= gone
        readings -= float(gone << level)

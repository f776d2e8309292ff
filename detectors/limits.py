"""Control limits of multivariate charts: T² by the F distribution, squared residuals by their eigenvalues."""

from __future__ import annotations

import math

import numpy as np

from detectors.base import Floats
from detectors.kernels import compiled

__all__ = ["hotelling_limit", "hotelling_table", "residual_limit", "table_row"]

_STEPS = 4
"""Rows of the table for each doubling of the number of readings."""
_DOUBLINGS = 40
_NO_RESIDUAL = 1e-18
_LEAST = 1e-9


def hotelling_limit(rows: int, dimensions: int, level: float) -> float:
    """T² that a new normal reading stays below with probability `level`, mean and covariance from so many rows.

    Infinite where there are not more rows than dimensions.
    """
    from scipy import special  # a tenth of a second, for those who need it

    if rows <= dimensions:
        return math.inf
    factor = dimensions * (rows - 1) * (rows + 1) / (rows * (rows - dimensions))
    return float(factor * special.fdtri(dimensions, rows - dimensions, level))


def hotelling_table(n_sensors: int, level: float) -> Floats:
    """`hotelling_limit` for kernels: [row, dimensions - 1], the row of a number of readings by `table_row`."""
    rows = [math.floor(2.0 ** (step / _STEPS)) for step in range(_STEPS * _DOUBLINGS + 1)]
    return np.array([[hotelling_limit(n, k, level) for k in range(1, n_sensors + 1)] for n in rows])


@compiled("int64(float64)")
def table_row(readings: float) -> int:
    """The row of `hotelling_table` for a number of readings: that of the next smaller number in it."""
    return min(int(_STEPS * math.log2(max(readings, 1.0))), _STEPS * _DOUBLINGS)


@compiled("float64(float64[::1], float64)")
def residual_limit(eigenvalues: Floats, normal: float) -> float:
    """Limit of SPE from the eigenvalues that are left out; `normal`: the normal quantile of the level.

    Jackson and Mudholkar, Technometrics 1979. Where their power transform breaks down, a chi-square of matched mean
    and variance (Box 1954), its quantile by Wilson and Hilferty (1931).
    """
    first, second, third = 0.0, 0.0, 0.0
    for value in eigenvalues:
        first += value
        second += value * value
        third += value * value * value
    if second <= _NO_RESIDUAL:
        return _LEAST
    h = 1.0 - 2.0 * first * third / (3.0 * second * second)
    if h <= 1e-3:
        freedom = first * first / second
        spread = 2.0 / (9.0 * freedom)
        root = 1.0 - spread + normal * math.sqrt(spread)
        return first * root * root * root
    moved = normal * math.sqrt(2.0 * second * h * h) / first
    power = moved + 1.0 + second * h * (h - 1.0) / (first * first)
    return first * math.exp(math.log(power) / h)

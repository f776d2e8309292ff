"""What detectors that forecast share: residuals in sigmas, a spread that faults do not inflate, and reasons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from detectors.base import Contributions, Floats, Rows, Slots
from detectors.kernels import compiled
from detectors.table import Column, Table

__all__ = ["LARGEST_SCORE", "LARGEST_VALUE", "ResidualModel", "bounded", "clipped", "next_variance", "sigmas"]

LARGEST_VALUE: Final = 1e100
"""Beyond it values are taken as if they were it: their squares must stay finite."""
LARGEST_SCORE: Final = 1e6
_TRUSTED_AFTER: Final = 10
"""Residuals after which a variance is good enough to clip by, doubly wide until it is warm."""
_STEP_SIGMA: Final = 0.5
"""Sigma of a flat sensor that moves, as a fraction of its first step."""


class ResidualModel:
    """A model whose score is the largest residual among the sensors; kernels fill `_deviations`, `_expected`."""

    def __init__(self, sensors: tuple[str, ...], threshold: float, columns: Mapping[str, Column]) -> None:
        self.sensors = sensors
        self.threshold = threshold
        self._table = Table(columns)
        self._deviations: Floats = np.zeros((0, len(sensors)))
        self._expected: Floats = np.zeros((0, len(sensors)))

    def contributions(self, rows: NDArray[np.int64]) -> Contributions:
        """Shares by squared residual in sigmas; expected is the forecast before the reading."""
        squares = self._deviations[rows] ** 2
        total = squares.sum(axis=1, keepdims=True)
        shares = np.sign(self._deviations[rows]) * squares / np.where(total > 0, total, 1.0)
        return Contributions(shares, self._expected[rows])

    def snapshot(self, slots: Slots) -> Rows:
        """Every array of the state, first axis (k,)."""
        return self._table.snapshot(slots)

    def restore(self, slots: Slots, rows: Rows) -> None:
        """See `Model`. Raises ValueError on negative counts and variances, too."""
        for name in ("count", "seen", "age", "variance"):
            if name in rows and np.size(rows[name]) and np.min(rows[name]) < 0:
                raise ValueError(f"state {name!r} is negative")
        self._table.restore(slots, rows)


@compiled("float64(float64)")
def bounded(value: float) -> float:
    """The value within what can be squared."""
    return min(max(value, -LARGEST_VALUE), LARGEST_VALUE)


@compiled("float64(float64, float64, float64, float64)")
def sigmas(residual: float, variance: float, weight: float, least: float) -> float:
    """The residual in sigmas, within a million. While the sigma lies below `least`, as of a flat sensor, it is what
    it would be had this residual been learned already, with this weight."""
    sigma = np.sqrt(variance)
    scale = sigma if sigma > least else np.sqrt(least * least + weight * residual * residual)
    z = residual / scale if scale > 0.0 else 0.0
    return min(max(z, -LARGEST_SCORE), LARGEST_SCORE)


@compiled("float64(float64, float64, float64, float64, int64, int64)")
def clipped(residual: float, variance: float, least: float, clip: float, seen: int, warmup: int) -> float:
    """The residual as it is learned: within `clip` sigmas, doubly wide during warm-up, once there is a sigma."""
    sigma = np.sqrt(variance)
    if sigma <= least or seen < _TRUSTED_AFTER:
        return residual
    most: float = sigma * (clip if seen >= warmup else 2.0 * clip)
    return min(max(residual, -most), most)


@compiled("float64(float64, float64, float64, float64, int64)")
def next_variance(variance: float, residual: float, weight: float, least: float, seen: int) -> float:
    """The variance with one residual (clipped) of so much weight learned; a flat sensor's first step is its scale."""
    learned: float = (1.0 - weight) * variance + weight * residual * residual
    if np.sqrt(variance) <= least and seen >= _TRUSTED_AFTER:
        learned = max(learned, _STEP_SIGMA * _STEP_SIGMA * residual * residual)
    return learned

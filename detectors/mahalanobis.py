"""Mahalanobis distance from a key's running mean: readings whose sensors do not go together as they use to."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from detectors.base import Contributions, Detector, Floats, Mask, Rows, Slots
from detectors.charting import shrunk_distance
from detectors.kernels import compiled, floats, learned, slot_numbers
from detectors.limits import hotelling_table, table_row
from detectors.moments import learn, memory, standardise
from detectors.table import Column, Table

__all__ = ["Mahalanobis", "MahalanobisModel"]


class Mahalanobis(Detector, frozen=True, kw_only=True):
    """Scores by Hotelling's T² of a single reading, with all sensors' correlations, as a multiple of its limit.

    Hotelling, "Multivariate quality control", 1947, as used for single readings by Tracy, Young and Mason, Journal of
    Quality Technology 1992; the limit by the F distribution. Mean and covariance are exponentially weighted; the
    correlations are shrunk towards none by as much as they are in doubt (Schäfer and Strimmer, Statistical
    Applications in Genetics and Molecular Biology 2005). Missing sensors are left out: the others' own distance is
    taken, with the limit of so many.

    Fails on curved relations and several regimes (take `knn`), on many sensors of which most are irrelevant, on
    small shifts that stay (take `mewma` with `statistic: t2`, which is this distance with a memory), and on changes
    slow enough to be learned.

    >>> x = np.sin(np.arange(301.0))
    >>> values = np.stack([x, 2 * x + 0.1 * np.cos(7 * np.arange(301.0))], axis=1)
    >>> values[300] = 0.5, -1.0
    >>> model = Mahalanobis(warmup=50).build(("x", "double"))
    >>> scores = model.score_learn(np.zeros(301, np.int64), values, np.arange(301.0))
    >>> bool(scores[:300].max() < model.threshold < scores[300])
    True
    >>> model.contributions(np.array([300])).expected.round(1)
    array([[-0.5,  1. ]])
    """

    kind: ClassVar[str] = "mahalanobis"

    level: Annotated[float, Meta(gt=0.5, lt=1)] = 0.9999
    """Share of normal readings below the limit, where sensors are normally distributed; 1 is the limit."""
    half_life: Annotated[float, Meta(ge=5)] = 500.0
    """Learned readings after which one counts half."""
    warmup: Annotated[int, Meta(ge=10)] = 100
    """Readings of a key's sensor before it is scored; at least three for each sensor in any case."""
    clip: Annotated[float, Meta(gt=1)] = 4.0
    """Sigmas beyond which a sensor's deviation is learned no further."""
    floor: Annotated[float, Meta(ge=0)] = 1e-9
    """Least sigma, in the sensors' units."""
    floor_relative: Annotated[float, Meta(ge=0)] = 1e-6
    """Least sigma as a fraction of the mean's size."""

    def build(self, sensors: tuple[str, ...]) -> MahalanobisModel:
        """A fresh model; its threshold is 1, the limit. Raises ValueError if `half_life` is short for the sensors."""
        return MahalanobisModel(self, sensors)


class MahalanobisModel:
    """State per key of d sensors: how often each was seen, mean and covariance; 8 d (d + 2) bytes."""

    def __init__(self, recipe: Mahalanobis, sensors: tuple[str, ...]) -> None:
        self.sensors = sensors
        self.threshold = 1.0 if recipe.threshold is None else recipe.threshold
        self._recipe = recipe
        d = len(sensors)
        self.warmup_readings = max(recipe.warmup, 3 * d)
        self._rate, self._most = memory(recipe.half_life)
        if self._most < 3 * d:
            raise ValueError(f"half_life: {recipe.half_life} readings are too few for {d} sensors")
        self._limits = hotelling_table(d, recipe.level)
        self._table = Table(
            {
                "count": Column(np.int64, (d,)),
                "mean": Column(np.float64, (d,)),
                "covariance": Column(np.float64, (d, d)),
            }
        )
        self._shares: Floats = np.zeros((0, d))
        self._expected: Floats = np.zeros((0, d))

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """Scores (n,), 1 at the limit; see `Model`. About 1.5 µs per reading of 8 sensors."""
        slots, values = slot_numbers(slots), floats(values)
        recipe, table = self._recipe, self._table
        table.reserve(slots)
        scores = np.zeros(len(slots))
        self._shares, self._expected = np.zeros(values.shape), np.empty(values.shape)
        _score_learn(
            slots,
            values,
            learned(learn, len(slots)),
            table["count"],
            table["mean"],
            table["covariance"],
            self._limits,
            self.warmup_readings,
            self._most,
            (self._rate, recipe.clip, recipe.floor, recipe.floor_relative),
            scores,
            self._shares,
            self._expected,
        )
        return scores

    def contributions(self, rows: NDArray[np.int64]) -> Contributions:
        """Each sensor's terms d_j (R⁻¹ d)_j, negative ones left out; expected is what the others make likely.

        Of a sensor that is missing or still warming up, its mean.
        """
        shares = self._shares[rows]
        total = np.abs(shares).sum(axis=1, keepdims=True)
        return Contributions(shares / np.where(total > 0, total, 1.0), self._expected[rows])

    def snapshot(self, slots: Slots) -> Rows:
        """`count` and `mean` (k, n_sensors), `covariance` (k, n_sensors, n_sensors)."""
        return self._table.snapshot(slots)

    def restore(self, slots: Slots, rows: Rows) -> None:
        """See `Model`. Raises ValueError also on a negative count."""
        if (np.asarray(rows.get("count", 0)) < 0).any():
            raise ValueError("state 'count' is negative")
        self._table.restore(slots, rows)


@compiled("float64(float64[:,::1], int64, int64, float64[::1])")
def _precision(lower: Floats, width: int, at: int, column: Floats) -> float:
    """A diagonal element of R⁻¹ from R's Cholesky factor in the lower half: |L⁻¹ e|²."""
    total = 0.0
    for j in range(at, width):
        column[j] = 1.0 if j == at else 0.0
        for k in range(at, j):
            column[j] -= lower[j, k] * column[k]
        column[j] /= lower[j, j]
        total += column[j] * column[j]
    return total


@compiled(
    "void(int64[::1], float64[:,::1], boolean[::1], int64[:,::1], float64[:,::1], float64[:,:,::1], float64[:,::1],"
    " int64, float64, UniTuple(float64, 4), float64[::1], float64[:,::1], float64[:,::1])"
)
def _score_learn(
    slots: Slots,
    values: Floats,
    taught: Mask,
    count: NDArray[np.int64],
    mean: Floats,
    covariance: Floats,
    limits: Floats,
    warmup: int,
    most: float,
    learning: tuple[float, float, float, float],
    scores: Floats,
    shares: Floats,
    expected: Floats,
) -> None:
    d = values.shape[1]
    z, scale, force, column = np.empty(d), np.empty(d), np.empty(d), np.empty(d)
    known, index, part = np.empty(d, np.bool_), np.empty(d, np.int64), np.empty((d, d))
    for i in range(values.shape[0]):
        slot, width = slots[i], 0
        standardise(values[i], count[slot], mean[slot], covariance[slot], warmup, learning, z, scale, known)
        few = most
        for j in range(d):
            expected[i, j] = mean[slot, j] if count[slot, j] else np.nan
            if known[j]:
                index[width], force[width] = j, z[j]
                few = min(few, float(count[slot, j]))
                width += 1
        if width:
            for a in range(width):
                for b in range(a + 1):
                    part[a, b] = covariance[slot, index[a], index[b]]
            squared = max(shrunk_distance(part, force, int(few), width), 0.0)
            scores[i] = squared / limits[table_row(few), width - 1]
            for a in range(width):
                j = index[a]
                likely = z[j] - force[a] / _precision(part, width, a, column)
                expected[i, j] = mean[slot, j] + scale[j] * likely
                shares[i, j] = max(z[j] * force[a], 0.0) * np.sign(z[j])
        if taught[i]:
            learn(values[i], count[slot], mean[slot], covariance[slot], warmup, learning, z, scale)

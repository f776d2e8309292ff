"""Principal components that follow a key: readings off its plane of normal, or far out on it, score high."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from detectors.base import Contributions, Detector, Floats, Mask, Rows, Slots
from detectors.kernels import compiled, floats, learned, slot_numbers
from detectors.limits import hotelling_table, residual_limit, table_row
from detectors.moments import axes, learn, memory, standardise
from detectors.plane import measure
from detectors.table import Column, Table

__all__ = ["OnlinePCA", "OnlinePCAModel"]

_UNLIMITED = 1e300
"""Limit of SPE where all components are kept: there is nothing off the plane."""


class OnlinePCA(Detector, frozen=True, kw_only=True):
    """Scores by Hotelling's T² on a key's plane of normal and SPE off it, each over its limit; the larger counts.

    MacGregor and Kourti, "Statistical process control of multivariate processes", Control Engineering Practice 1995,
    made adaptive as in Li, Yue, Valle-Cervantes and Qin, "Recursive PCA for adaptive process monitoring", Journal of
    Process Control 2000. Limits: T² by the F distribution, SPE by Jackson and Mudholkar, "Control procedures for
    residuals associated with principal component analysis", Technometrics 1979. Mean and covariance are exponentially
    weighted; the components of the correlations are taken anew every `refresh` learned readings of a key, whatever
    the batches. Missing sensors are filled with what fits the plane best.

    Fails on relations that are curved, on several regimes (the plane then holds the way between them: take `knn`),
    on a relation that breaks slowly, which is learned, and with few sensors that have nothing to do with each
    other (take `mahalanobis`).

    >>> x = np.sin(np.arange(301.0))
    >>> values = np.stack([x, 2 * x + 0.01 * np.cos(7 * np.arange(301.0))], axis=1)
    >>> values[300] = 0.5, -1.0
    >>> model = OnlinePCA(warmup=50).build(("x", "double"))
    >>> scores = model.score_learn(np.zeros(301, np.int64), values, np.arange(301.0))
    >>> bool(scores[:300].max() < model.threshold < scores[300])
    True
    """

    kind: ClassVar[str] = "online_pca"

    variance: Annotated[float, Meta(gt=0, le=1)] = 0.9
    """Share of the variance that the kept components explain at least."""
    level: Annotated[float, Meta(gt=0.5, lt=1)] = 0.9999
    """Share of normal readings below the limits, where sensors are normally distributed; 1 is the limit."""
    half_life: Annotated[float, Meta(ge=5)] = 500.0
    """Learned readings after which one counts half."""
    warmup: Annotated[int, Meta(ge=10)] = 100
    """Readings of a key before it is scored; at least three for each sensor in any case."""
    refresh: Annotated[int, Meta(ge=1)] = 50
    """Learned readings of a key from one set of components to the next."""
    shrinkage: Annotated[float, Meta(gt=0, le=1)] = 0.01
    """Share of no correlation mixed into the correlations: keeps sensors that copy each other usable."""
    clip: Annotated[float, Meta(gt=1)] = 4.0
    """Sigmas beyond which a sensor's deviation is learned no further."""
    floor: Annotated[float, Meta(ge=0)] = 1e-9
    """Least sigma, in the sensors' units."""
    floor_relative: Annotated[float, Meta(ge=0)] = 1e-6
    """Least sigma as a fraction of the mean's size."""

    def build(self, sensors: tuple[str, ...]) -> OnlinePCAModel:
        """A fresh model; its threshold is 1, the limit. Raises ValueError if `half_life` is short for the sensors."""
        return OnlinePCAModel(self, sensors)


class OnlinePCAModel:
    """State per key of d sensors: mean, covariance, components and limits, 8 (2 d² + 3 d + 4) + d bytes."""

    def __init__(self, recipe: OnlinePCA, sensors: tuple[str, ...]) -> None:
        from scipy import special  # a tenth of a second, for those who need it

        self.sensors = sensors
        self.threshold = 1.0 if recipe.threshold is None else recipe.threshold
        self._recipe = recipe
        d = len(sensors)
        self.warmup_readings = max(recipe.warmup, 3 * d)
        self._rate, self._most = memory(recipe.half_life)
        if self._most < 3 * d:
            raise ValueError(f"half_life: {recipe.half_life} readings are too few for {d} sensors")
        self._limits = hotelling_table(d, recipe.level)
        self._normal = float(special.ndtri(recipe.level))
        self._table = Table(
            {
                "count": Column(np.int64, (d,)),
                "mean": Column(np.float64, (d,)),
                "covariance": Column(np.float64, (d, d)),
                "readings": Column(np.int64),
                "kept": Column(np.int64),
                "used": Column(np.bool_, (d,)),
                "components": Column(np.float64, (d, d)),
                "variances": Column(np.float64, (d,)),
                "limits": Column(np.float64, (2,), 1.0),
            }
        )
        self._shares: Floats = np.zeros((0, d))
        self._expected: Floats = np.zeros((0, d))

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """Scores (n,), 1 at the limit; see `Model`. About 1 µs per reading of 8 sensors."""
        slots, values = slot_numbers(slots), floats(values)
        recipe, table = self._recipe, self._table
        table.reserve(slots)
        scores = np.zeros(len(slots))
        self._shares, self._expected = np.zeros(values.shape), np.empty(values.shape)
        _score_learn(
            slots,
            values,
            learned(learn, len(slots)),
            (table["count"], table["readings"], table["kept"]),
            (table["mean"], table["variances"], table["limits"]),
            (table["covariance"], table["components"]),
            table["used"],
            self._limits,
            (self.warmup_readings, recipe.refresh),
            (self._rate, recipe.clip, recipe.floor, recipe.floor_relative),
            (recipe.variance, recipe.shrinkage, self._normal, self._most),
            scores,
            self._shares,
            self._expected,
        )
        return scores

    def contributions(self, rows: NDArray[np.int64]) -> Contributions:
        """Each sensor's terms in the statistic that decided, negative ones left out.

        Expected is the reading's foot on the plane where SPE decided or the sensor is missing; where T² did, the
        mean: on the plane the foot is the reading itself.
        """
        shares = self._shares[rows]
        total = np.abs(shares).sum(axis=1, keepdims=True)
        return Contributions(shares / np.where(total > 0, total, 1.0), self._expected[rows])

    def snapshot(self, slots: Slots) -> Rows:
        """`mean`, `covariance`, `count`, and what the latest refresh made of them: `components` in rows, `kept`,
        their `variances`, the sensors `used`, `limits` (k, 2) of T² and SPE."""
        return self._table.snapshot(slots)

    def restore(self, slots: Slots, rows: Rows) -> None:
        """See `Model`. Raises ValueError also on counters and limits that cannot be."""
        for name, least, most in (("kept", 0, len(self.sensors)), ("count", 0, None), ("readings", 0, None)):
            found = np.asarray(rows.get(name, 0))
            if (found < least).any() or (most is not None and (found > most).any()):
                raise ValueError(f"state {name!r} is out of range")
        if (np.asarray(rows.get("limits", 1.0)) <= 0).any():
            raise ValueError("state 'limits' must be positive")
        self._table.restore(slots, rows)


@compiled(
    "int64(float64[:,::1], int64[::1], float64[:,::1], float64[::1], float64[::1], boolean[::1], float64[:,::1],"
    " int64, UniTuple(float64, 4), int64)"
)
def _refresh(
    covariance: Floats,
    count: NDArray[np.int64],
    components: Floats,
    variances: Floats,
    limits: Floats,
    used: Mask,
    table: Floats,
    warmup: int,
    plane: tuple[float, float, float, float],
    readings: int,
) -> int:
    """Take the components of the correlations anew, of the sensors that are warm; how many are kept."""
    share, shrinkage, normal, most = plane
    size = 0
    index = np.empty(len(count), np.int64)
    for j in range(len(count)):
        used[j] = count[j] >= warmup
        if used[j]:
            index[size] = j
            size += 1
    components[:] = 0.0
    variances[:] = 0.0
    if size == 0:
        return 0
    matrix, vectors = np.empty((size, size)), np.empty((size, size))
    for a in range(size):
        matrix[a, a] = 1.0
        for b in range(a):
            j, k = index[a], index[b]
            scale = np.sqrt(covariance[j, j]) * np.sqrt(covariance[k, k])
            r = covariance[j, k] / scale if scale > 0.0 else 0.0
            matrix[a, b] = matrix[b, a] = (1.0 - shrinkage) * min(max(r, -1.0), 1.0)
    axes(matrix, vectors)
    left, total = np.empty(size), 0.0
    for a in range(size):  # pairs learned from different readings may give an eigenvalue below the least
        left[a] = max(matrix[a, a], shrinkage)
        total += left[a]
    kept, explained = 0, 0.0
    while kept < size and explained < share * total - 1e-12:
        explained += left[kept]
        variances[kept] = left[kept]
        for b in range(size):
            components[kept, index[b]] = vectors[kept, b]
        kept += 1
    limits[0] = table[table_row(min(float(readings), most)), kept - 1]
    limits[1] = residual_limit(left[kept:], normal) if kept < size else _UNLIMITED
    return kept


@compiled(
    "void(int64[::1], float64[:,::1], boolean[::1], Tuple((int64[:,::1], int64[::1], int64[::1])),"
    " UniTuple(float64[:,::1], 3), UniTuple(float64[:,:,::1], 2), boolean[:,::1], float64[:,::1], UniTuple(int64, 2),"
    " UniTuple(float64, 4), UniTuple(float64, 4), float64[::1], float64[:,::1], float64[:,::1])"
)
def _score_learn(
    slots: Slots,
    values: Floats,
    taught: Mask,
    counters: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    vectors: tuple[Floats, Floats, Floats],
    matrices: tuple[Floats, Floats],
    used: Mask,
    table: Floats,
    counts: tuple[int, int],
    learning: tuple[float, float, float, float],
    plane: tuple[float, float, float, float],
    scores: Floats,
    shares: Floats,
    expected: Floats,
) -> None:
    count, readings, kept = counters
    mean, variances, limits = vectors
    covariance, components = matrices
    warmup, refresh = counts
    d = values.shape[1]
    z, scale, rebuilt, inner = np.empty(d), np.empty(d), np.empty(d), np.empty(d)
    known = np.empty(d, np.bool_)
    for i in range(values.shape[0]):
        slot = slots[i]
        for j in range(d):
            expected[i, j] = mean[slot, j] if count[slot, j] else np.nan
        n = kept[slot]
        if n:
            standardise(
                values[i], count[slot], mean[slot], covariance[slot], warmup, learning, z, scale, known
            )
            anything = False
            for j in range(d):
                known[j] = known[j] and used[slot, j]
                z[j] = z[j] if known[j] else 0.0
                anything = anything or known[j]
            if anything:
                scores[i], off_plane = measure(
                    z,
                    known,
                    components[slot, :n],
                    variances[slot, :n],
                    limits[slot, 0],
                    limits[slot, 1],
                    inner,
                    rebuilt,
                    shares[i],
                )
                for j in range(d):
                    if used[slot, j] and (off_plane or not known[j]):
                        expected[i, j] = mean[slot, j] + scale[j] * rebuilt[j]
        if taught[i] and learn(
            values[i], count[slot], mean[slot], covariance[slot], warmup, learning, z, scale
        ):
            readings[slot] += 1
            if readings[slot] >= warmup and (readings[slot] - warmup) % refresh == 0:
                kept[slot] = _refresh(
                    covariance[slot],
                    count[slot],
                    components[slot],
                    variances[slot],
                    limits[slot],
                    used[slot],
                    table,
                    warmup,
                    plane,
                    readings[slot],
                )

"""How far a sensor is from its rolling median, in robust sigmas, which outliers neither shift nor widen."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from detectors.base import Contributions, Detector, Floats, Mask, Rows, Slots
from detectors.kernels import compiled, floats, learned, slot_numbers
from detectors.ordered import in_order, renew
from detectors.table import Column, Table

__all__ = ["RobustZ", "RobustZModel"]

_LARGEST_VALUE = 1e100
"""Beyond it values are taken as if they were it: their squares must stay finite."""
_LARGEST_SCORE = 1e6
_SIGMAS = 1.4826
"""Sigmas of normally distributed readings per median absolute deviation."""


class RobustZ(Detector, frozen=True, kw_only=True):
    """Scores a reading by its largest deviation among the sensors from the rolling median, in robust sigmas.

    The sigma is 1.4826 times the median absolute deviation (MAD) of the last `window` readings. Hampel, "The
    influence curve and its role in robust estimation", JASA 1974; Iglewicz and Hoaglin, "How to detect and
    handle outliers", 1993, who call readings beyond 3.5 outliers. Nearly half of the window may be faulty, also
    of the warm-up, before median and sigma break, and nothing has to be held back. A level that stays is normal
    once it fills half of the window.

    Where more than half of the window is one value, the MAD is 0; the sigma then is the root mean square
    deviation from the median, the reading itself included. So the first move of a flat sensor scores at most
    sqrt(window + 1) (10 by default), and the same again less each time. The sigma is at least about `floor` and
    `floor_relative` of the median. Set `floor` to the sensor's resolution where a flat line that moves by one
    step must not count.

    Fails on drift faster than the window, on seasons, on several regimes (those that fill less than half of the
    window are outliers), and on shifts of few sigmas that stay (use `cusum`).

    >>> model = RobustZ(warmup=5).build(("pressure",))
    >>> values = np.array([[1.0], [2.0], [3.0], [2.0], [900.0], [3.0], [9.0]])
    >>> model.score_learn(np.zeros(7, np.int64), values, np.arange(7.0)).round(2)
    array([0.  , 0.  , 0.  , 0.  , 0.  , 0.67, 8.77])
    >>> model.contributions(np.array([6]))
    Contributions(shares=array([[1.]]), expected=array([[2.5]]))
    """

    kind: ClassVar[str] = "robust_z"

    window: Annotated[int, Meta(ge=5, le=4096)] = 100
    """Readings of a key's sensor of which median and MAD are taken; each takes 16 bytes, 8 of them in a
    checkpoint."""
    warmup: Annotated[int, Meta(ge=5)] = 50
    """Readings of a key's sensor before it is scored."""
    floor: Annotated[float, Meta(ge=0)] = 1e-9
    """Least sigma, in the sensors' units."""
    floor_relative: Annotated[float, Meta(ge=0)] = 1e-6
    """Least sigma as a fraction of the median's size."""

    def __post_init__(self) -> None:
        if self.warmup > self.window:
            raise ValueError(f"warmup: {self.warmup} readings do not fit into a window of {self.window}")

    def build(self, sensors: tuple[str, ...]) -> RobustZModel:
        """A fresh model; its threshold is 6 sigmas where the recipe states none."""
        return RobustZModel(self, sensors)


class RobustZModel:
    """State per key and sensor: the last readings, 808 bytes at the defaults; once more, sorted, in memory
    only."""

    def __init__(self, recipe: RobustZ, sensors: tuple[str, ...]) -> None:
        self.sensors = sensors
        self.threshold = 6.0 if recipe.threshold is None else recipe.threshold
        self.warmup_readings = recipe.warmup
        self._recipe = recipe
        width = (len(sensors),)
        self._table = Table(
            {"count": Column(np.int64, width), "window": Column(np.float64, (*width, recipe.window))}
        )
        self._ordered = Table({"window": Column(np.float64, (*width, recipe.window))})
        self._deviations: Floats = np.zeros((0, len(sensors)))
        self._expected: Floats = np.zeros((0, len(sensors)))

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """Scores (n,) in robust sigmas, at most a million; see `Model`. About 0.2 µs per reading and sensor."""
        slots, values = slot_numbers(slots), floats(values)
        recipe, table = self._recipe, self._table
        table.reserve(slots)
        self._ordered.reserve(slots)
        scores = np.zeros(len(slots))
        self._deviations = np.zeros(values.shape)
        self._expected = np.full(values.shape, np.nan)
        _score_learn(
            slots,
            values,
            learned(learn, len(slots)),
            table["count"],
            table["window"],
            self._ordered["window"],
            recipe.warmup,
            recipe.floor,
            recipe.floor_relative,
            scores,
            self._deviations,
            self._expected,
        )
        return scores

    def contributions(self, rows: NDArray[np.int64]) -> Contributions:
        """Shares by squared deviation; expected is the median before the reading."""
        squares = self._deviations[rows] ** 2
        total = squares.sum(axis=1, keepdims=True)
        shares = np.sign(self._deviations[rows]) * squares / np.where(total > 0, total, 1.0)
        return Contributions(shares, self._expected[rows])

    def forget_recent(self, slots: Slots, sensors: Mask) -> None:
        """See `ForgettingModel`: the window is all that it has, and begins anew."""
        self._table.reserve(slots)
        self._table["count"][np.ix_(slots, np.flatnonzero(sensors))] = 0

    def snapshot(self, slots: Slots) -> Rows:
        """`count` (k, n_sensors), the readings learned, and `window` (k, n_sensors, window), a ring of the
        last."""
        return self._table.snapshot(slots)

    def restore(self, slots: Slots, rows: Rows) -> None:
        """See `Model`. Raises ValueError also on negative counts."""
        if (np.asarray(rows.get("count", 0)) < 0).any():
            raise ValueError("state: a count of readings is negative")
        self._table.restore(slots, rows)
        self._ordered.reserve(slots)
        self._ordered["window"][slots] = in_order(self._table["window"][slots], self._table["count"][slots])


@compiled("float64(float64[::1], int64, float64, int64)")
def _reach(ordered: Floats, kept: int, center: float, k: int) -> float:
    """Distance of the k-th nearest of the first `kept` ordered values: the k nearest stand side by side."""
    low, high = 0, kept - k
    while low < high:
        middle = (low + high) // 2
        if center - ordered[middle] > ordered[middle + k] - center:
            low = middle + 1
        else:
            high = middle
    return float(max(center - ordered[low], ordered[low + k - 1] - center))


@compiled("float64(float64[::1], int64, float64, float64, float64)")
def _sigma(ordered: Floats, kept: int, center: float, deviation: float, least: float) -> float:
    """The robust sigma; where the MAD is none, what the sigma would be had the deviation been learned already."""
    mad = 0.5 * (
        _reach(ordered, kept, center, (kept + 1) // 2) + _reach(ordered, kept, center, kept // 2 + 1)
    )
    if mad * _SIGMAS > least:
        return float(mad * _SIGMAS)
    total = deviation * deviation
    for e in range(kept):
        total += (ordered[e] - center) ** 2
    return float(np.sqrt(least * least + total / (kept + 1)))


@compiled(
    "void(int64[::1], float64[:,::1], boolean[::1], int64[:,::1], float64[:,:,::1], float64[:,:,::1], int64, float64,"
    " float64, float64[::1], float64[:,::1], float64[:,::1])"
)
def _score_learn(
    slots: Slots,
    values: Floats,
    learn: Mask,
    count: NDArray[np.int64],
    window: Floats,
    ordered: Floats,
    warmup: int,
    floor: float,
    floor_relative: float,
    scores: Floats,
    deviations: Floats,
    expected: Floats,
) -> None:
    length = window.shape[2]
    for i in range(values.shape[0]):
        slot = slots[i]
        for j in range(values.shape[1]):
            seen, own = count[slot, j], ordered[slot, j]
            kept = min(seen, length)
            center = 0.5 * (own[(kept - 1) // 2] + own[kept // 2]) if kept else 0.0
            if kept:
                expected[i, j] = center
            if not np.isfinite(values[i, j]):
                continue
            value = min(max(values[i, j], -_LARGEST_VALUE), _LARGEST_VALUE) + 0.0  # there is but one zero
            if seen >= warmup:
                deviation = value - center
                sigma = _sigma(own, kept, center, deviation, max(floor, floor_relative * abs(center)))
                z = deviation / sigma if sigma > 0 else 0.0
                deviations[i, j] = min(max(z, -_LARGEST_SCORE), _LARGEST_SCORE)
                scores[i] = max(scores[i], abs(deviations[i, j]))
            if not learn[i]:
                continue
            renew(window[slot, j], own, seen, value)
            count[slot, j] = seen + 1

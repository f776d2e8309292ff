"""What a key's first readings look like: their rate, whether sensors have a memory, how fine they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats, Rows, Slots
from detectors.kernels import compiled
from detectors.table import Column, Table

__all__ = ["Acquaintance", "Portrait"]

_LEVELS = 16
"""Values of a sensor that are told apart; one with no more is discrete."""
_UNITS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))


@dataclass(frozen=True, slots=True)
class Portrait:
    """A key as it was seen so far: `readings` looked at, seconds from one to the next (NaN of fewer than two,
    negative where the newest come first), the largest correlation of successive readings among the sensors, and how
    many sensors are discrete."""

    readings: int
    interval: float
    correlation: float
    discrete: int

    @property
    def pace(self) -> str:
        """The interval as people say it.

        >>> Portrait(400, 3600.0, 0.5, 0).pace
        'a reading each 1 h'
        >>> Portrait(400, -0.5, 0.5, 0).pace
        'a reading each 0.5 s'
        """
        apart = abs(self.interval)
        if not apart > 0.0:
            return "readings at one time" if apart == 0.0 else "at a pace not known"
        unit, size = next(((u, s) for u, s in _UNITS if apart >= s), _UNITS[-1])
        return f"a reading each {apart / size:.3g} {unit}"


class Acquaintance:
    """State per key, until `look` readings were seen: 176 bytes a sensor and 32 a key.

    The correlation with the reading before is 1 less half of von Neumann's ratio (von Neumann 1941), which no large
    offset can hurt. A sensor is discrete that had no more than 16 different values.
    """

    def __init__(self, sensors: int, look: int) -> None:
        self._look = look
        self._table = Table(
            {
                "count": Column(np.int64),
                "first": Column(np.float64),
                "last": Column(np.float64),
                "correlation": Column(np.float64),
                "discrete": Column(np.int64),
                "pairs": Column(np.int64, (sensors,)),
                "sums": Column(np.float64, (sensors, 4)),
                "levels": Column(np.float64, (sensors, _LEVELS)),
                "distinct": Column(np.int64, (sensors,)),
            }
        )

    def look(self, slots: Slots, values: Floats, times: Floats) -> NDArray[np.int64]:
        """Readings of each key that brought a value, up to each of these (n,), itself among them; the first ones are
        looked at."""
        table, counts = self._table, np.zeros(len(slots), np.int64)
        table.reserve(slots)
        columns = (table["count"], table["first"], table["last"], table["correlation"], table["discrete"])
        sensors = (table["pairs"], table["sums"], table["levels"], table["distinct"])
        _look(slots, values, times, *columns, *sensors, self._look, counts)
        return counts

    def correlations(self, slots: Slots) -> Floats:
        """Largest correlation (n,) of successive readings, 0 before it is known."""
        found: Floats = self._table["correlation"][slots]
        return found

    def discrete(self, slots: Slots) -> NDArray[np.int64]:
        """How many sensors (n,) are discrete, 0 before it is known."""
        found: NDArray[np.int64] = self._table["discrete"][slots]
        return found

    def portrait(self, slot: int) -> Portrait:
        """What was seen of a key."""
        row = {name: column[0] for name, column in self._table.snapshot(np.array([slot])).items()}
        readings = min(int(row["count"]), self._look)
        interval = (row["last"] - row["first"]) / (readings - 1) if readings > 1 else np.nan
        return Portrait(readings, float(interval), float(row["correlation"]), int(row["discrete"]))

    def snapshot(self, slots: Slots) -> Rows:
        """The state by column, the key first."""
        return self._table.snapshot(slots)

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Put rows back. Raises ValueError on a mismatch, and on counts that cannot be."""
        distinct = np.asarray(rows.get("distinct", 0))
        if distinct.size and (distinct.min() < 0 or distinct.max() > _LEVELS + 1):
            raise ValueError("state 'distinct' counts what cannot be")
        self._table.restore(slots, rows)


_LAST, _MEAN, _SQUARES, _STEPS = range(4)


@compiled("void(float64[::1], int64[::1], float64[:,::1], float64[:,::1], int64[::1])")
def _meet(
    values: Floats, pairs: NDArray[np.int64], sums: Floats, levels: Floats, distinct: NDArray[np.int64]
) -> None:
    """Sums of squared successive differences and of squared deviations, and the different values so far."""
    for j in range(len(values)):
        if not np.isfinite(values[j]):
            continue
        value = min(max(values[j], -1e100), 1e100)
        row = sums[j]
        step, off = value - row[_LAST], value - row[_MEAN]
        pairs[j] += 1
        if pairs[j] == 1:
            row[_MEAN] = value
        else:
            row[_MEAN] += off / pairs[j]
            row[_SQUARES] += off * (value - row[_MEAN])
            row[_STEPS] += step * step
        row[_LAST] = value
        known = distinct[j] > _LEVELS
        for k in range(min(distinct[j], _LEVELS)):
            known = known or levels[j, k] == value
        if not known:
            if distinct[j] < _LEVELS:
                levels[j, distinct[j]] = value
            distinct[j] += 1


@compiled("float64(float64[:,::1])")
def _largest(sums: Floats) -> float:
    """Largest correlation of successive readings, by von Neumann's ratio."""
    largest = 0.0
    for j in range(sums.shape[0]):
        if sums[j, _SQUARES] > 0.0:
            largest = max(largest, 1.0 - 0.5 * sums[j, _STEPS] / sums[j, _SQUARES])
    return largest


@compiled(
    "void(int64[::1], float64[:,::1], float64[::1], int64[::1], float64[::1], float64[::1], float64[::1], int64[::1],"
    " int64[:,::1], float64[:,:,::1], float64[:,:,::1], int64[:,::1], int64, int64[::1])"
)
def _look(
    slots: Slots,
    values: Floats,
    times: Floats,
    count: NDArray[np.int64],
    first: Floats,
    last: Floats,
    correlation: Floats,
    discrete: NDArray[np.int64],
    pairs: NDArray[np.int64],
    sums: Floats,
    levels: Floats,
    distinct: NDArray[np.int64],
    look: int,
    counts: NDArray[np.int64],
) -> None:
    for i in range(values.shape[0]):
        slot = slots[i]
        told = np.isfinite(values[i]).any()
        count[slot] += told
        counts[i] = count[slot]
        if count[slot] > look or not told:
            continue
        if count[slot] == 1:
            first[slot] = times[i]
        last[slot] = times[i]
        _meet(values[i], pairs[slot], sums[slot], levels[slot], distinct[slot])
        if count[slot] == look:
            correlation[slot] = _largest(sums[slot])
            for j in range(values.shape[1]):
                discrete[slot] += distinct[slot, j] <= _LEVELS

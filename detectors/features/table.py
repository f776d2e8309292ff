"""Features of many keys at once: state in a table by slot, one compiled loop over readings in arrival order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats, Mask, Rows, Slots
from detectors.features.declared import Feature
from detectors.features.program import OPERATIONS, TIME, Program, columns_of, program
from detectors.features.spectrum import band_power, twiddles
from detectors.features.windows import correlation, crossings, slope, statistic
from detectors.features.zones import local_seconds
from detectors.kernels import compiled, floats, slot_numbers
from detectors.table import Column, Table

__all__ = ["FeatureTable"]

_LARGEST = 1e100
"""Beyond it values are remembered as if they were it: their squares must stay finite."""
(
    _STATISTIC,
    _SLOPE,
    _LAG,
    _CHANGE,
    _RATE,
    _BAND,
    _CROSSINGS,
    _CORRELATION,
    _RATIO,
    _DIFFERENCE,
    _PRODUCT,
    _SUM,
    _HOUR,
    _WEEKDAY,
    _WEEKEND,
) = range(len(OPERATIONS))
_DAY, _WEEK = 86400.0, 7 * 86400.0
_THURSDAY = 3 * _DAY
"""1970 began so long after a Monday's midnight."""


class FeatureTable:
    """Computes declared features (`detectors.features.declared`), reading by reading, for every key.

    State per key: the last values of each sensor that a feature looks back on, as long as the longest window over
    it; 8 bytes a value. Where the stream is cut into batches changes nothing.

    >>> from detectors.features import Change, Ratio
    >>> table = FeatureTable(("a", "b"), {"step": Change(of="a", change=1), "part": Ratio(ratio=("a", "b"))})
    >>> table.columns
    ('a', 'b', 'step', 'part')
    >>> table.compute(np.zeros(2, np.int64), np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([0.0, 1.0]))
    array([[1.  , 2.  ,  nan, 0.5 ],
           [3.  , 4.  , 2.  , 0.75]])
    """

    def __init__(self, sensors: Sequence[str], features: Mapping[str, Feature]) -> None:
        """Features by name. Raises ValueError where one reads what is neither a sensor nor a feature before it."""
        self.columns = (*sensors, *columns_of(features))
        """The names of the columns that `compute` gives: the sensors, then the features."""
        self._program = program(sensors, features)
        self._width = len(sensors)
        self._made_of = _made_of(self._program, len(sensors))
        self._twiddles = twiddles(self._program.transform)
        self._table = Table(
            {
                "count": Column(np.int64, (len(self._program.rings),)),
                "recent": Column(np.float64, (self._program.cells,)),
            }
        )

    def compute(self, slots: Slots, values: Floats, times: Floats) -> Floats:
        """The readings and their features, (n, n_sensors + n_features), in arrival order; remembers them.

        `slots` (n,), `values` (n, n_sensors), NaN where a sensor is missing; `times` (n,) epoch seconds. A feature is
        finite or NaN, and knows nothing of later readings. Inputs may be read-only and are never kept or changed.
        """
        slots, times, plan = slot_numbers(slots), floats(times), self._program
        wide = np.full((len(slots), len(self.columns)), np.nan)
        wide[:, : self._width] = values
        local = np.empty((len(plan.zones), len(slots)))
        for row, zone in zip(local, plan.zones, strict=True):
            row[:] = local_seconds(times, zone)
        self._table.reserve(slots)
        _compute(
            slots,
            times,
            local,
            wide,
            plan.steps,
            plan.numbers,
            plan.arguments,
            plan.rings,
            plan.tapers,
            *self._twiddles,
            self._table["recent"],
            self._table["count"],
            np.empty((4, plan.longest)),
        )
        return wide

    def forget_recent(self, slots: Slots, sensors: Mask) -> Mask:
        """Of these keys (k,), drop the latest values of these sensors (n_sensors,) and of what is made of them:
        features are missing until they have as many new ones as they need. Which columns (n_columns,) are such."""
        self._table.reserve(slots)
        gone = np.asarray(self._made_of[:, sensors].any(axis=1), dtype=np.bool_)
        sources, partners = self._program.rings[:, 1], self._program.rings[:, 2]
        rings = gone[partners] | (gone[sources] & (sources != TIME))
        self._table["count"][np.ix_(slots, np.flatnonzero(rings))] = 0
        return gone

    def snapshot(self, slots: Slots) -> Rows:
        """`recent` (k, n_values) and how many values of each ring there were, `count` (k, n_rings); see `Model`."""
        return self._table.snapshot(slots)

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Put rows back. Raises ValueError on rows that do not fit."""
        if "count" in rows and np.size(rows["count"]) and np.min(rows["count"]) < 0:
            raise ValueError("state 'count' is negative")
        self._table.restore(slots, rows)


def _made_of(plan: Program, width: int) -> Mask:
    """Which columns are made of which of so many sensors, (n_columns, n_sensors)."""
    found = np.eye(width + len(plan.steps), width, dtype=np.bool_)
    for place, step in enumerate(plan.steps.tolist(), width):
        found[place] = found[plan.arguments[step[2] : step[2] + step[3]]].any(axis=0)
    return found


@compiled("void(float64[::1], int64[::1], int64[:,::1], int64, float64[::1], float64)")
def _remember(
    recent: Floats, count: NDArray[np.int64], rings: NDArray[np.int64], ring: int, wide: Floats, time: float
) -> None:
    """Put a reading's value into a key's ring, where it is there, and so is its partner's."""
    source, partner = rings[ring, 1], rings[ring, 2]
    value = time if source == TIME else wide[source]
    if np.isfinite(value) and np.isfinite(wide[partner]):
        recent[rings[ring, 3] + count[ring] % rings[ring, 4]] = min(max(value, -_LARGEST), _LARGEST)
        count[ring] += 1


@compiled("void(float64[::1], int64, int64, int64, float64[::1])")
def _last(recent: Floats, start: int, length: int, count: int, found: Floats) -> None:
    """The last values (k,) of a ring that has seen `count`, at least k of them, oldest first."""
    place = (count - len(found)) % length
    for i in range(len(found)):
        found[i] = recent[start + place]
        place = place + 1 if place + 1 < length else 0


@compiled("float64(int64, float64[::1], int64[::1])")
def _of_this_reading(operation: int, wide: Floats, arguments: NDArray[np.int64]) -> float:
    """Features of several sensors that need no past."""
    value = wide[arguments[0]]
    for argument in arguments[1:]:
        if operation == _RATIO:
            value = value / wide[argument]
        elif operation == _DIFFERENCE:
            value = value - wide[argument]
        elif operation == _PRODUCT:
            value = value * wide[argument]
        else:
            value = value + wide[argument]
    return float(value)


@compiled("float64(int64, int64, float64)")
def _of_the_clock(operation: int, which: int, local: float) -> float:
    """Features of local time."""
    week = (local + _THURSDAY) % _WEEK
    if operation == _WEEKEND:
        return 1.0 if week >= 5 * _DAY else 0.0
    angle = 2.0 * np.pi * (week / _WEEK if operation == _WEEKDAY else (week % _DAY) / _DAY)
    return float(np.sin(angle) if which == 0 else np.cos(angle))


@compiled("float64(float64[::1], float64[::1], float64, float64)")
def _rate(x: Floats, t: Floats, seconds: float, falls: float) -> float:
    """Of the last two values (2,) at times (2,), per so many seconds. `falls`: what a counter does that falls: 0
    nothing special, -1 it began anew, else it went round there."""
    by, since = x[1] - x[0], t[1] - t[0]
    if since <= 0:
        return np.nan
    if falls < 0 and by < 0:
        by = x[1]
    elif falls > 0 and by < 0:
        by = by % falls
    return float(by / since * seconds)


@compiled(
    "float64(int64[::1], float64[::1], int64[:,::1], float64[::1], float64[::1], float64[::1], float64[::1],"
    " int64[::1], float64[:,::1])"
)
def _of_the_past(
    step: NDArray[np.int64],
    numbers: Floats,
    rings: NDArray[np.int64],
    tapers: Floats,
    cosines: Floats,
    sines: Floats,
    recent: Floats,
    count: NDArray[np.int64],
    room: Floats,
) -> float:
    """Features of the last values of a ring or two; NaN where there are too few. `room` (2, longest) to work in."""
    operation, which, ring, second, window = step[0], step[1], step[4], step[5], step[6]
    if count[ring] < window:
        return np.nan
    start, length, seen = rings[ring, 3], rings[ring, 4], count[ring]
    if operation in (_LAG, _CHANGE):
        before = recent[start + (seen - window) % length]
        newest = recent[start + (seen - 1) % length]
        return float(before if operation == _LAG else newest - before)
    x, y = room[0, :window], room[1, :window]
    _last(recent, start, length, seen, x)
    if operation == _STATISTIC:
        return statistic(which, x)
    if operation == _CROSSINGS:
        return crossings(x, statistic(0, x) if which else numbers[0])
    if operation == _BAND:
        taper = tapers[int(numbers[2]) : int(numbers[2]) + window]
        half = int(numbers[3]) // 2
        re, im = room[2, :half], room[3, :half]
        return band_power(x, taper, int(numbers[0]), int(numbers[1]), which == 1, re, im, cosines, sines)
    _last(recent, rings[second, 3], rings[second, 4], count[second], y)
    if operation == _SLOPE:
        return slope(x, y)
    if operation == _RATE:
        return _rate(x, y, numbers[0], numbers[1])
    return correlation(x, y)


@compiled(
    "void(int64[::1], float64[::1], float64[:,::1], float64[:,::1], int64[:,::1], float64[:,::1], int64[::1],"
    " int64[:,::1], float64[::1], float64[::1], float64[::1], float64[:,::1], int64[:,::1], float64[:,::1])"
)
def _compute(
    slots: Slots,
    times: Floats,
    local: Floats,
    wide: Floats,
    steps: NDArray[np.int64],
    numbers: Floats,
    arguments: NDArray[np.int64],
    rings: NDArray[np.int64],
    tapers: Floats,
    cosines: Floats,
    sines: Floats,
    recent: Floats,
    count: NDArray[np.int64],
    room: Floats,
) -> None:
    width = wide.shape[1] - len(steps)
    for i in range(len(slots)):
        row, past, seen, ring = wide[i], recent[slots[i]], count[slots[i]], 0
        for j in range(len(steps)):
            while ring < len(rings) and rings[ring, 0] < width + j:
                _remember(past, seen, rings, ring, row, times[i])
                ring += 1
            step = steps[j]
            operation, complete = step[0], True
            of = arguments[step[2] : step[2] + step[3]]
            for argument in of:
                complete &= np.isfinite(row[argument])
            if not complete:
                continue
            if operation >= _HOUR:
                value = _of_the_clock(operation, step[1], local[step[5], i])
            elif operation >= _RATIO:
                value = _of_this_reading(operation, row, of)
            else:
                value = _of_the_past(step, numbers[j], rings, tapers, cosines, sines, past, seen, room)
            if np.isfinite(value):
                row[width + j] = value

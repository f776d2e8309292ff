"""How often each key is read: the seconds between its readings, exponentially weighted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats, Rows, Slots
from detectors.kernels import compiled, floats, slot_numbers
from detectors.table import Column, Table

__all__ = ["Rates"]

_RATE = 0.01
"""Weight of the newest interval, once there have been a hundred."""
_LONGEST = 10.0
"""A gap counts as at most so many intervals: a pause is not a slower sensor."""


class Rates:
    """State per key: intervals seen, their mean, and the time of the newest reading; 24 bytes.

    >>> rates = Rates()
    >>> rates.update(np.zeros(3, np.int64), np.array([0.0, 60.0, 120.0]))
    (array([ 0., 60., 60.]), array([1, 2, 3]))
    """

    def __init__(self) -> None:
        columns = {"count": Column(np.int64), "interval": Column(np.float64), "newest": Column(np.float64)}
        self._table = Table(columns)

    def update(self, slots: Slots, times: Floats) -> tuple[Floats, NDArray[np.int64]]:
        """Seconds (n,) between a key's readings up to each of these, in arrival order (0 before there are two), and
        how many readings (n,) there were.

        Readings that are not newer than the key's newest do not count. About 10 ns per reading."""
        slots, times = slot_numbers(slots), floats(times)
        self._table.reserve(slots)
        intervals, numbers = np.zeros(len(slots)), np.zeros(len(slots), np.int64)
        table = self._table
        _update(slots, times, table["count"], table["interval"], table["newest"], intervals, numbers)
        return intervals, numbers

    def snapshot(self, slots: Slots) -> Rows:
        """`count`, `interval` and `newest`, each (k,)."""
        return self._table.snapshot(slots)

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Put rows back. Raises ValueError on a mismatch."""
        self._table.restore(slots, rows)


@compiled("void(int64[::1], float64[::1], int64[::1], float64[::1], float64[::1], float64[::1], int64[::1])")
def _update(
    slots: Slots,
    times: Floats,
    count: NDArray[np.int64],
    interval: Floats,
    newest: Floats,
    intervals: Floats,
    numbers: NDArray[np.int64],
) -> None:
    for i in range(len(slots)):
        slot = slots[i]
        if count[slot] == 0:
            newest[slot] = times[i]
            count[slot] = 1
        elif times[i] > newest[slot]:
            gap = times[i] - newest[slot]
            newest[slot] = times[i]
            if count[slot] > 1:
                gap = min(gap, _LONGEST * interval[slot])
            interval[slot] += (gap - interval[slot]) * max(_RATE, 1.0 / count[slot])
            count[slot] += 1
        intervals[i] = interval[slot]
        numbers[i] = count[slot]

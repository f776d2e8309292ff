"""What a key did last: its most recent readings, for the window an alert shows."""

from __future__ import annotations

import numpy as np

from detectors.base import Floats, Rows, Slots
from detectors.table import Column, Table

__all__ = ["RecentWindow"]


class RecentWindow:
    """The last readings of every key, as rings in a table by slot.

    Score a batch first (`window` looks at the rings as they were before the batch, plus the batch), then
    `push` it. Where the stream is cut into batches changes nothing.

    >>> recent = RecentWindow(1, 2)
    >>> slots, values, times = np.array([0, 0, 0]), np.array([[1.0], [2.0], [3.0]]), np.array([1.0, 2.0, 3.0])
    >>> recent.window(0, slots, values, times, 2)
    (array([2., 3.]), array([[2.],
           [3.]]))
    >>> recent.push(slots, values, times)
    """

    def __init__(self, n_sensors: int, length: int = 24) -> None:
        """Keep `length` readings of `n_sensors` sensors per key."""
        self.length = length
        self._table = Table(
            {
                "count": Column(np.int64),
                "times": Column(np.float64, (length,)),
                "values": Column(np.float64, (length, n_sensors), fresh=np.nan),
            }
        )

    def window(
        self, slot: int, slots: Slots, values: Floats, times: Floats, upto: int
    ) -> tuple[Floats, Floats]:
        """Times (k,) and values (k, n_sensors), oldest first, k <= length, of a key up to and with row `upto`.

        `slots` (n,), `values` (n, n_sensors) and `times` (n,) are the current batch, which is not pushed yet.
        """
        self._table.reserve(np.array([slot]))
        rows = np.flatnonzero(slots[: upto + 1] == slot)[-self.length :]
        count = int(self._table["count"][slot])
        kept = min(count, self.length, self.length - len(rows))
        ring = np.arange(count - kept, count) % self.length
        return (
            np.concatenate((self._table["times"][slot, ring], times[rows])),
            np.concatenate((self._table["values"][slot, ring], values[rows])),
        )

    def push(self, slots: Slots, values: Floats, times: Floats) -> None:
        """Remember a batch: `slots` (n,), `values` (n, n_sensors), `times` (n,), in arrival order."""
        if not len(slots):
            return
        self._table.reserve(slots)
        order = np.argsort(slots, kind="stable")
        keys, starts, sizes = np.unique(slots[order], return_index=True, return_counts=True)
        rank = np.arange(len(slots)) - np.repeat(starts, sizes)
        last = rank >= np.repeat(sizes, sizes) - self.length
        rows, count = order[last], self._table["count"]
        place = (count[slots[rows]] + rank[last]) % self.length
        self._table["times"][slots[rows], place] = times[rows]
        self._table["values"][slots[rows], place] = values[rows]
        count[keys] += sizes

    def snapshot(self, slots: Slots) -> Rows:
        """Copies of the rings of these slots; see `Model`."""
        return self._table.snapshot(slots)

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Put rings back. Raises ValueError on rows that do not fit."""
        if "count" in rows and np.size(rows["count"]) and np.min(rows["count"]) < 0:
            raise ValueError("state 'count' is negative")
        self._table.restore(slots, rows)

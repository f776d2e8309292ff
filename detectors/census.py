"""How many keys are known, as of each reading: what keys share is divided by it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detectors.base import Rows, Slots
from detectors.kernels import compiled, slot_numbers
from detectors.table import Column, Table

__all__ = ["Census"]


class Census:
    """State per key: how many keys were known at its latest reading, itself among them; 8 bytes.

    The count of all is the largest of them, so whoever restores the key that was read last has it.

    >>> Census().update(np.array([0, 0, 4, 1, 4]))
    array([1, 1, 2, 3, 3])
    """

    def __init__(self) -> None:
        self._table = Table({"known": Column(np.int64)})
        self._known = 0

    def update(self, slots: Slots) -> NDArray[np.int64]:
        """Keys known (n,) as of each of these readings, in arrival order."""
        slots = slot_numbers(slots)
        self._table.reserve(slots)
        found = np.zeros(len(slots), np.int64)
        self._known = _update(slots, self._table["known"], self._known, found)
        return found

    def snapshot(self, slots: Slots) -> Rows:
        """`known` (k,)."""
        return self._table.snapshot(slots)

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Put rows back. Raises ValueError on a mismatch."""
        self._table.restore(slots, rows)
        if len(slots):
            self._known = max(self._known, int(self._table["known"][slots].max()))


@compiled("int64(int64[::1], int64[::1], int64, int64[::1])")
def _update(slots: Slots, known: NDArray[np.int64], total: int, found: NDArray[np.int64]) -> int:
    for i in range(len(slots)):
        if known[slots[i]] == 0:
            total += 1
        known[slots[i]] = total
        found[i] = total
    return total

"""State of many keys as named arrays whose first axis is the slot: growth, snapshot and restore."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from detectors.base import Rows, Slots

__all__ = ["Column", "Table"]

_STEP = 2**19
"""Bytes by which a table grows at most, once it has as many: short enough not to be noticed."""
_MOVED = 2**22
"""Bytes up to which an array is moved to a place of twice its size: a moment's work."""
_RESERVED = 2**32
"""Bytes of address space that a larger array gets at once, so that it need not be moved again. What nobody has
written to takes no memory."""


class Column(NamedTuple):
    """One array of a table: its type, the shape of one key's row, and what a fresh key starts with."""

    dtype: DTypeLike
    shape: tuple[int, ...] = ()
    fresh: float = 0


class Table:
    """Arrays by name, grown as slots come; a slot never seen before has fresh rows.

    >>> table = Table({"mean": Column(np.float64, (2,))})
    >>> table.reserve(np.array([3]))
    >>> table.snapshot(np.array([3]))["mean"]
    array([[0., 0.]])
    """

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self._columns = dict(columns)
        self._arrays = {name: self._fresh(name, 0) for name in columns}
        self._places = dict(self._arrays)
        """Where the arrays are, with room to grow."""
        self._size = 0

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    def reserve(self, slots: Slots) -> None:
        """Make room for these slots. Raises ValueError on a negative one."""
        if not len(slots):
            return
        if (largest := int(slots.view(np.uint64).max())) < self._size:  # a negative one is huge
            return
        if slots.min() < 0:
            raise ValueError(f"slot {slots.min()} is negative")
        needed = largest + 1
        row = sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape, _ in self._columns.values())
        size = max(needed, self._size + min(self._size, _STEP // max(row, 1) + 1))
        for name in list(self._arrays):
            self._grow(name, size)
        self._size = size

    def snapshot(self, slots: Slots) -> Rows:
        """Copies of the rows of these slots."""
        self.reserve(slots)
        return {name: array[slots] for name, array in self._arrays.items()}

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Put rows back. Raises ValueError on other names, shapes or types, and on numbers that are not finite."""
        if set(rows) != set(self._columns):
            raise ValueError(f"state has {sorted(rows)}, expected {sorted(self._columns)}")
        for name, column in self._columns.items():
            found, shape = np.asarray(rows[name]), (len(slots), *column.shape)
            if found.shape != shape or found.dtype != np.dtype(column.dtype):
                raise ValueError(
                    f"state {name!r} is {found.dtype}{found.shape}, expected {np.dtype(column.dtype)}{shape}"
                )
            if found.dtype.kind == "f" and np.isfinite(column.fresh) and not np.isfinite(found).all():
                raise ValueError(f"state {name!r} holds numbers that are not finite")
        self.reserve(slots)
        for name, array in self._arrays.items():
            array[slots] = rows[name]

    def clear(self, slots: Slots) -> None:
        """Make the rows of these slots fresh."""
        self.reserve(slots)
        for name, array in self._arrays.items():
            array[slots] = self._fresh(name, len(slots))

    def _grow(self, name: str, size: int) -> None:
        fresh, place = self._columns[name].fresh, self._places[name]
        if size > len(place):
            place = self._places[name] = self._moved(place, size)
        if fresh != 0 and place.dtype != object:
            place[self._size : size] = fresh
        self._arrays[name] = place[:size]

    @staticmethod
    def _moved(array: NDArray[Any], size: int) -> NDArray[Any]:
        """The array in a place with room for this size, and more. Zeros follow, or None."""
        shape, room = array.shape[1:], max(size, 2 * len(array))
        row = max(array.dtype.itemsize * math.prod(shape), 1)
        if array.dtype == object:
            place = np.empty((room, *shape), object)
            place[: len(array)] = array
            return place
        if room * row > _MOVED:
            room = max(size, _RESERVED // row)
        while True:
            try:
                place = np.zeros((room, *shape), array.dtype)
                break
            except MemoryError:  # the system grants less
                if room == size:
                    raise
                room = max(size, room // 2)
        place[: len(array)] = array
        return place

    def _fresh(self, name: str, size: int) -> NDArray[Any]:
        dtype, shape, fresh = self._columns[name]
        return np.full((size, *shape), fresh if np.dtype(dtype) != object else None, dtype=dtype)

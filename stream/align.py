"""One sensor per message becomes rows: values of one machine that belong to one instant."""

from __future__ import annotations

import numpy as np

from detectors.base import Floats, Rows, Slots
from stream.errors import ReadingRejected

__all__ = ["Aligner"]


class Aligner:
    """Per key, the row that is being gathered: a table by slot, part of the checkpoint.

    A row is complete, and leaves, when every sensor has a value; or when a value arrives that is too late to
    belong to it (`within` seconds or more after its first), or repeats a sensor. Driven by the readings'
    own times, never by a clock, so a replay gathers the same rows.
    """

    def __init__(self, n_sensors: int, within: float) -> None:
        self._within = within
        self._time = np.full(0, np.nan)
        self._left = np.full(0, -np.inf)
        self._values = np.full((0, n_sensors), np.nan)

    def push(self, slot: int, time: float, values: Floats) -> list[tuple[float, Floats]]:
        """Add one message's values (n_sensors,), NaN elsewhere; the rows (time, values) that leave, in order.

        Raises ReadingRejected("late") when the row it belongs to has left.
        """
        self._grow(slot)
        start = self._time[slot]
        if time <= self._left[slot] or (not np.isnan(start) and time <= start - self._within):
            raise ReadingRejected("late", "its row has already left; widen align_within or send in order")
        rows: list[tuple[float, Floats]] = []
        given = ~np.isnan(values)
        pending = self._values[slot]
        if not np.isnan(start) and (time >= start + self._within or bool((given & ~np.isnan(pending)).any())):
            rows.append(self._leave(slot))
        if np.isnan(self._time[slot]):
            self._time[slot] = time
        pending[given] = values[given]
        if not np.isnan(pending).any():
            rows.append(self._leave(slot))
        return rows

    def snapshot(self, slots: Slots) -> Rows:
        """The rows being gathered, by slot."""
        if len(slots):
            self._grow(int(slots.max()))
        return {"left": self._left[slots], "time": self._time[slots], "values": self._values[slots]}

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Put back what `snapshot` returned."""
        if len(slots):
            self._grow(int(slots.max()))
        self._left[slots], self._time[slots], self._values[slots] = rows["left"], rows["time"], rows["values"]

    def _leave(self, slot: int) -> tuple[float, Floats]:
        time, values = float(self._time[slot]), self._values[slot].copy()
        self._left[slot] = time
        self._time[slot] = np.nan
        self._values[slot] = np.nan
        return time, values

    def _grow(self, slot: int) -> None:
        if (missing := slot + 1 - len(self._time)) > 0:
            more = max(missing, len(self._time))
            self._time = np.concatenate([self._time, np.full(more, np.nan)])
            self._left = np.concatenate([self._left, np.full(more, -np.inf)])
            self._values = np.vstack([self._values, np.full((more, self._values.shape[1]), np.nan)])

"""What came already: per machine the newest time and sequence number, to know duplicates and late readings."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats, Rows, Slots
from detectors.table import Column, Table

__all__ = ["UNNUMBERED", "Arrivals", "Verdict"]

Ints = NDArray[np.int64]

UNNUMBERED = -(2**63)
"""Instead of a sequence number, where a reading has none: below every number, also those of times before 1970."""


class Verdict(IntEnum):
    """What a reading is, seen from its machine's past."""

    NEW = 0
    DUPLICATE = 1
    LATE = 2


class Arrivals:
    """Per key (and per sensor, where each comes by itself) the newest time and sequence number.

    A reading is a duplicate when its sequence number is not above the highest one, and its time not above the
    newest: a machine whose counter began anew goes on with newer times, and is not shut out. A reading without
    a number (`UNNUMBERED`) is never one. It is late when it is more than `lateness` seconds older than the newest.

    `lives` keeps the newest time and the highest number of all that came before a counter last began anew: what a
    queue brings again from there is a duplicate, too, though its number is above that of the present life. So a
    clock that is put back after its counter began anew must not go back behind that time.
    """

    def __init__(self, width: int, lateness: float) -> None:
        self._width = width
        self._lateness = lateness
        self._table = Table(
            {
                "time": Column(np.float64, (width,), -np.inf),
                "seq": Column(np.int64, (width,), UNNUMBERED),
                "row": Column(np.int64, (width,), -1),
            }
        )
        # A table of its own: a checkpoint of before has none, and its machines start with one life.
        self.lives = Table(
            {
                "time": Column(np.float64, (width,), -np.inf),
                "seq": Column(np.int64, (width,), UNNUMBERED),
                "row": Column(np.int64, (width,), -1),
            }
        )

    def judge(
        self, slots: Slots, lanes: Ints, times: Floats, seqs: Ints, rows: Ints, *, spared: NDArray[np.bool_]
    ) -> NDArray[np.int8]:
        """A `Verdict` for each reading (n,), in order. `lanes` (n,) is the sensor's column, 0 where readings
        are whole; `rows` (n,) the place within a message; `spared` (n,) readings are new whatever they say."""
        verdicts = np.zeros(len(slots), dtype=np.int8)
        if not len(slots):
            return verdicts
        self._table.reserve(slots)
        self.lives.reserve(slots)
        keys = slots * self._width + lanes
        newest, highest, last = (self._table[name].reshape(-1) for name in ("time", "seq", "row"))
        ended, most, row_of_most = (self.lives[name].reshape(-1) for name in ("time", "seq", "row"))
        if not spared.any() and self._in_order(keys, times, seqs, rows):
            np.maximum.at(newest, keys, times)
            numbered = seqs != UNNUMBERED
            highest[keys[numbered]], last[keys[numbered]] = seqs[numbered], rows[numbered]
            return verdicts
        each = zip(keys.tolist(), times.tolist(), seqs.tolist(), rows.tolist(), spared.tolist(), strict=True)
        for i, (key, time, seq, row, free) in enumerate(each):
            if free:
                continue
            if seq != UNNUMBERED:
                place, top, past = (seq, row), (highest[key], last[key]), (most[key], row_of_most[key])
                if (place <= top and time <= newest[key]) or (place <= past and time <= ended[key]):
                    verdicts[i] = Verdict.DUPLICATE
                    continue
                if place <= top:  # and newer: the counter began anew
                    ended[key], (most[key], row_of_most[key]) = newest[key], max(top, past)
                highest[key], last[key] = place
            if time < newest[key] - self._lateness:
                verdicts[i] = Verdict.LATE
            newest[key] = max(newest[key], time)
        return verdicts

    def snapshot(self, slots: Slots) -> Rows:
        """Copies of the rows of these slots."""
        return self._table.snapshot(slots)

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Put back what `snapshot` returned."""
        self._table.restore(slots, rows)

    def _in_order(self, keys: Ints, times: Floats, seqs: Ints, rows: Ints) -> bool:
        """Every reading is newer than the one before it of its key: nothing to judge, the common case."""
        order = np.argsort(keys, kind="stable")
        k, t, s, r = keys[order], times[order], seqs[order], rows[order]
        first = np.ones(len(k), dtype=bool)
        first[1:] = k[1:] != k[:-1]
        newest, highest, last = (self._table[name].reshape(-1)[k] for name in ("time", "seq", "row"))
        before = np.where(first, newest, np.roll(t, 1))
        if not (t >= before).all():
            return False
        if (s == UNNUMBERED).all():
            return True
        s0, r0 = np.where(first, highest, np.roll(s, 1)), np.where(first, last, np.roll(r, 1))
        return bool(((s > s0) | ((s == s0) & (r > r0))).all() and (s != UNNUMBERED).all())

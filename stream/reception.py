"""Which readings are taken at all: no duplicate, none too late, and those that come by sensor as whole rows."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats, Slots
from stream.align import Aligner
from stream.arrivals import Arrivals, Verdict
from stream.ensemble import Stateful
from stream.errors import ReadingRejected
from stream.readings import Batch
from stream.source import Source

__all__ = ["Received", "Reception"]


class Received(NamedTuple):
    """The rows that are taken, their slots and offsets (n,); messages that become dead letters, by index; and
    readings without effect: index of the message, and the policy."""

    batch: Batch
    slots: Slots
    offsets: NDArray[np.int64]
    refused: list[tuple[int, ReadingRejected]]
    dropped: list[tuple[int, str]]


class Reception:
    """What came already of each machine, and the rows that are not complete yet."""

    def __init__(self, source: Source) -> None:
        narrow = source.layout == "narrow"
        self._source = source
        self._width = len(source.names)
        self._arrivals = Arrivals(self._width if narrow else 1, source.lateness)
        self._aligner = Aligner(self._width, source.align_within) if narrow else None

    def take(
        self, batch: Batch, slots: Slots, offsets: NDArray[np.int64], replayed: Collection[int]
    ) -> Received:
        """What is taken of a batch. `replayed` messages, by index, are neither duplicate nor late."""
        received = self._arrive(batch, slots, offsets, replayed)
        if self._aligner is None:
            return received
        return self._align(self._aligner, received, replayed)

    def tables(self) -> Iterator[tuple[str, Stateful]]:
        """The tables of state by their names in the checkpoint."""
        yield "arrivals", self._arrivals
        yield "lives", self._arrivals.lives
        if self._aligner is not None:
            yield "align", self._aligner

    def _arrive(
        self, batch: Batch, slots: Slots, offsets: NDArray[np.int64], replayed: Collection[int]
    ) -> Received:
        """Leave out duplicates and late readings, as the source says."""
        source = self._source
        narrow = self._aligner is not None
        columns = (
            np.argmin(np.isnan(batch.values), axis=1) if narrow else np.zeros(len(batch), dtype=np.int64)
        )
        spared = np.isin(batch.messages, list(replayed))
        judged = self._arrivals.judge(slots, columns, batch.times, batch.seqs, batch.rows, spared=spared)
        if not judged.any():
            return Received(batch, slots, offsets, [], [])
        refused: dict[int, ReadingRejected] = {}
        dropped: list[tuple[int, str]] = []
        keep = np.ones(len(batch), dtype=bool)
        policies = {Verdict.DUPLICATE: source.duplicate, Verdict.LATE: source.late}
        for row in np.flatnonzero(judged).tolist():
            verdict = Verdict(judged[row])
            message, name = int(batch.messages[row]), verdict.name.lower()
            if policies[verdict] == "deadletter":
                detail = f"row {batch.rows[row]}: the machine's newest reading is newer"
                refused.setdefault(message, ReadingRejected(name, detail))
            elif policies[verdict] == "drop":
                keep[row] = False
                dropped.append((message, name))
        keep &= ~np.isin(batch.messages, list(refused))
        dropped = [(message, name) for message, name in dropped if message not in refused]
        return Received(batch.select(keep), slots[keep], offsets[keep], list(refused.items()), dropped)

    def _align(self, aligner: Aligner, received: Received, replayed: Collection[int]) -> Received:
        """Narrow messages as whole rows; a row bears the position of the message that made it leave.

        A replayed one whose row has left is a row by itself."""
        batch, slots, offsets, before, dropped = received
        refused: dict[int, ReadingRejected] = {}
        index: list[int] = []
        rows: list[int] = []
        times: list[float] = []
        values: list[Floats] = []
        for i, slot in enumerate(slots.tolist()):
            try:
                left = aligner.push(slot, float(batch.times[i]), batch.values[i])
            except ReadingRejected as error:
                if batch.messages[i] not in replayed:
                    refused.setdefault(int(batch.messages[i]), error)  # a message is one dead letter
                    continue
                left = [(float(batch.times[i]), batch.values[i])]
            for number, (time, row) in enumerate(left):
                index.append(i)
                rows.append(2 * int(batch.rows[i]) + number)
                times.append(time)
                values.append(row)
        aligned = Batch(
            [batch.machines[i] for i in index],
            np.array(times, dtype=np.float64),
            np.array(values, dtype=np.float64).reshape(len(index), self._width),
            batch.messages[index],
            np.array(rows, dtype=np.int64),
            batch.seqs[index],
        )
        return Received(aligned, slots[index], offsets[index], before + list(refused.items()), dropped)

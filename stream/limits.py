"""From which score a reading is anomalous, as the budget has it and its machine is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats, Mask, Slots
from detectors.census import Census
from detectors.rates import Rates
from stream.binding import Binding
from stream.ensemble import Part, Stateful
from stream.readings import Batch
from stream.settings import epoch
from stream.topology import Topology

__all__ = ["Limits"]

_DAY = 86400.0
_LEAST_PROBABILITY, _LARGEST_PROBABILITY = 1e-12, 0.05
"""Bounds of what a budget asks for: beyond them no calibration can tell, and too much is no anomaly."""
_KNOWN = 1000.0
_YOUNG = 200
"""Readings from which alpha spending counts, and below which a machine counts as having so many."""


class Limits:
    """How often each machine is read, how many share a budget, and when somebody works on one.

    A budget is a machine's, or the topology's: where several detectors alert each by itself, each has an equal part
    of it."""

    def __init__(self, topology: Topology) -> None:
        self._rule = topology.alert
        alone = topology.detectors.values() if topology.combine is None else ()
        self._alone = [Binding(spec.machines) if spec.machines else None for spec in alone]
        """Which machines each detector scores that alerts by itself, None: all."""
        self._rates = Rates()
        self._census = Census() if self._rule.shares_budget else None

    def part(
        self, batch: Batch, columns: Floats, slots: Slots, offsets: NDArray[np.int64]
    ) -> tuple[Part, float]:
        """Readings with the scores from which they are anomalous, as the budget has it and the machine is read; and
        the seconds that they cover."""
        rule = self._rule
        intervals, numbers = self._rates.update(slots, batch.times)
        limits = None
        if rule.budget is not None:
            share = rule.budget if self._census is None else rule.budget / self._census.update(slots)
            probability = share / self._deciding(batch.machines) * intervals / _DAY
            limits = -np.log10(np.clip(probability, _LEAST_PROBABILITY, _LARGEST_PROBABILITY))
        rise = np.zeros(len(slots))
        if rule.alpha_spending:
            rise = rule.alpha_spending * np.log10(np.maximum(numbers, _YOUNG) / _KNOWN)
        part = Part(batch, columns, slots, offsets, limits, rise, numbers, self._quiet(batch))
        return part, float(intervals.sum())

    def _deciding(self, machines: Sequence[str]) -> Floats:
        """How many detectors alert of each machine (n,), each by itself: they share its budget."""
        if all(binding is None for binding in self._alone):
            return np.full(len(machines), float(max(len(self._alone), 1)))
        names, rows = np.unique(np.array(machines, np.str_), return_inverse=True)
        counts = [
            sum(binding is None or binding.matches(name) for binding in self._alone)
            for name in names.tolist()
        ]
        shared: Floats = np.maximum(np.array(counts, np.float64), 1.0)[rows]
        return shared

    def _quiet(self, batch: Batch) -> Mask:
        """The readings (n,) taken while somebody worked on the machine."""
        quiet = np.zeros(len(batch), np.bool_)
        for pause in self._rule.maintenance:
            start, end = epoch(pause.start), epoch(pause.end)
            since = batch.times - start
            inside = (since >= 0) & ((since % pause.every if pause.every else since) < end - start)
            for i in np.flatnonzero(inside).tolist():
                quiet[i] |= any(fnmatchcase(batch.machines[i], pattern) for pattern in pause.machines)
        return quiet

    def readings(self, slot: int) -> int:
        """How many readings a machine has had."""
        return int(self._rates.snapshot(np.array([slot]))["count"][0])

    def newest(self, slots: Slots) -> Floats:
        """The time of each machine's newest reading, epoch seconds (n,)."""
        newest: Floats = self._rates.snapshot(slots)["newest"]
        return newest

    def tables(self) -> Iterator[tuple[str, Stateful]]:
        """The tables of state by their names in the checkpoint."""
        yield "rates", self._rates
        if self._census is not None:
            yield "census", self._census

"""Which alerts stand open, reading by reading, as the alert events tell it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from detectors.base import Mask
from stream.alerts import PROCESS, Alert
from stream.scorer import Scored
from stream.state import Group

__all__ = ["Stand", "Standing"]


@dataclass(frozen=True, slots=True)
class Stand:
    """How alerts stood at a batch's scored readings, masks (n,) by what raises them: `open` where one opened or
    was still open after the reading, `changed` where one opened or closed."""

    open: dict[str, Mask]
    changed: dict[str, Mask]


class Standing:
    """Follows the open alerts of all machines through batches in order. `raised_by`: what raises alerts."""

    def __init__(self, raised_by: Iterable[str]) -> None:
        self._open: dict[str, set[str]] = {name: set() for name in raised_by}

    def clear(self) -> None:
        """Nothing stands open."""
        for standing in self._open.values():
            standing.clear()

    def resume(self, groups: Iterable[Group]) -> None:
        """Take over the open alerts of machines that a checkpoint knows."""
        for group in groups:
            for name, standing in self._open.items():
                rows = group.components.get(f"alert:{name}")
                if rows is None:
                    continue
                for machine, severity in zip(group.machines, rows["severity"].tolist(), strict=True):
                    (standing.add if severity >= 0 else standing.discard)(machine)

    def follow(self, scored: Scored) -> Stand:
        """The next batch."""
        machines, n = scored.batch.machines, len(scored.batch)
        stand = Stand(
            {
                name: np.fromiter((machine in standing for machine in machines), np.bool_, n)
                if standing
                else np.zeros(n, np.bool_)
                for name, standing in self._open.items()
            },
            {name: np.zeros(n, np.bool_) for name in self._open},
        )
        for row, alert in _rows(scored, [alert for alert in scored.alerts if alert.type == PROCESS]):
            if alert.event == "updated":
                continue
            opens, name = alert.event == "opened", alert.detector
            open_, changed = stand.open[name], stand.changed[name]
            own = row + np.flatnonzero(scored.slots[row:] == scored.slots[row])
            moment = bool(changed[row])  # it opened with this very reading, and closes with it
            open_[own] = opens
            open_[row] = opens or moment
            changed[row] = True
            (self._open[name].add if opens else self._open[name].discard)(alert.machine)
        return stand


def _rows(scored: Scored, alerts: Sequence[Alert]) -> Iterator[tuple[int, Alert]]:
    """The row of the batch that each alert event came of: they come in its order."""
    offsets, numbers, machines = scored.offsets, scored.batch.rows, scored.batch.machines
    start = 0
    for alert in alerts:
        at = alert.position
        found = start + np.flatnonzero((offsets[start:] == at.offset) & (numbers[start:] == at.row))
        start = next(row for row in found.tolist() if machines[row] == alert.machine)
        yield start, alert

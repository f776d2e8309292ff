"""What a run produced, kept in memory for a report: readings, scores, thresholds, alerts, swaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats
from stream.alerts import Alert
from stream.control import Receipt
from stream.scorer import Scored

__all__ = ["Episode", "Recording", "Series"]


@dataclass(frozen=True, slots=True)
class Series:
    """All rows of a run as columns: `offsets`, `times` (n,), `values` (n, n_sensors), scores and thresholds (n,)
    by detector; `machines` n names."""

    machines: NDArray[np.str_]
    offsets: NDArray[np.int64]
    times: Floats
    values: Floats
    scores: Mapping[str, Floats]
    thresholds: Mapping[str, Floats]


@dataclass(frozen=True, slots=True)
class Episode:
    """An alert from its opening to its last event; `closed` is None while it is open."""

    opened: Alert
    last: Alert
    closed: Alert | None


@dataclass(slots=True)
class Recording:
    """Collects one topology's run; pass `add` to the worker as observer."""

    topology: str
    sensors: tuple[str, ...]
    parts: list[Scored] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)
    readings: int = 0
    dead_letters: dict[str, int] = field(default_factory=dict)
    """Messages that could not be used, by reason."""

    def add(self, scored: Scored) -> None:
        """Note one batch."""
        self.parts.append(scored)
        self.alerts.extend(scored.alerts)
        self.readings += len(scored.batch)

    def series(self) -> Series:
        """Everything recorded so far."""
        parts = self.parts
        names = list(parts[0].scores) if parts else []
        columns = {name: [part.scores[name] for part in parts] for name in names}
        limits = {name: [part.thresholds[name] for part in parts] for name in names}
        return Series(
            np.array([machine for part in parts for machine in part.batch.machines]),
            np.concatenate([part.offsets for part in parts] or [np.zeros(0, np.int64)]),
            np.concatenate([part.batch.times for part in parts] or [np.zeros(0)]),
            np.vstack([part.batch.values for part in parts] or [np.zeros((0, len(self.sensors)))]),
            {name: np.concatenate(columns[name]) for name in names},
            {name: np.concatenate(limits[name]) for name in names},
        )

    def episodes(self) -> list[Episode]:
        """The alerts, each from opening to its last event, in order of opening."""
        return _episodes(self.alerts)


def _episodes(alerts: Sequence[Alert]) -> list[Episode]:
    found: dict[str, list[Alert]] = {}
    for alert in alerts:
        found.setdefault(alert.id, []).append(alert)
    return [
        Episode(events[0], events[-1], events[-1] if events[-1].event == "closed" else None)
        for events in found.values()
    ]

"""The life of an alert, written once more and plainly: one machine, one detector, reading by reading."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, fields

import numpy as np

__all__ = ["Episode", "Scored", "close", "step"]

_SEVERITIES = ("warning", "critical")
"""From the threshold on, and from twice the threshold."""
_CALM = 0.9
_CLOSE_AFTER = 2
_SETTLING = 3
"""Of what was accepted: until so many normal readings in a row, only twice the threshold opens an alert."""
_SETTLED = 50
_MEMORY = 90 * 86400.0
"""Seconds after which an alert that was closed counts half."""
_TYPES = {
    "recent": np.int64,
    "calm": np.int32,
    "severity": np.int8,
    "updates": np.int32,
    "readings": np.int64,
    "alerts": np.float64,
    "accepted": np.int8,
    "closed_number": np.int64,
    "offset": np.int64,
    "row": np.int64,
}


@dataclass(frozen=True, slots=True)
class Scored:
    """A reading with its score: `number` counts the machine's readings, `offset` tells where it stands."""

    time: float
    score: float
    threshold: float
    number: int
    offset: int


@dataclass(slots=True)
class Episode:
    """Where a machine stands with a detector; as the checkpoint has it."""

    recent: int = 0
    calm: int = 0
    severity: int = -1
    updates: int = 0
    readings: int = 0
    peak: float = 0.0
    first_seen: float = math.nan
    last_seen: float = math.nan
    closed_at: float = -math.inf
    closed_number: int = -(2**62)
    offset: int = -1
    row: int = -1
    alerts: float = 0.0
    accepted: int = 0

    @property
    def open(self) -> bool:
        """Whether an alert is open."""
        return self.severity >= 0

    @property
    def learns(self) -> bool:
        """Whether the next reading is learned."""
        return self.accepted != 0 if self.open else self.accepted != 2

    @property
    def word(self) -> str:
        """Its severity; of one that is open."""
        return _SEVERITIES[self.severity]

    def copy(self) -> Episode:
        """As it is now."""
        return copy.copy(self)

    def columns(self) -> dict[str, bytes]:
        """What the checkpoint must hold of it, bit for bit."""
        names = [field.name for field in fields(self)]
        return {name: np.array(getattr(self, name), _TYPES.get(name, np.float64)).tobytes() for name in names}


def step(life: Episode, reading: Scored) -> str | None:
    """One reading: the event that comes of it, `opened`, `updated` or `closed`.

    A reading from before the last alert closed opens none."""
    score, threshold = reading.score, reading.threshold
    if not life.open:
        if life.accepted == _SETTLING and score < 2.0 * threshold:
            life.calm = life.calm + 1 if score < threshold * _CALM else 0
            if life.calm >= _SETTLED:
                life.accepted = life.calm = 0
            return None
        if life.accepted == _SETTLING:
            life.accepted = life.calm = 0
        if life.accepted:  # an operator closed it: until it has calmed down, or is worse, it opens no more
            if score < threshold or _level(threshold, score) <= _level(threshold, life.peak):
                life.calm = life.calm + 1 if score < threshold * _CALM else 0
                if life.calm >= _CLOSE_AFTER:
                    life.accepted, life.calm = _SETTLING if life.accepted == 1 else 0, 0
                return None
            life.accepted = life.calm = 0
        if score < threshold or reading.time < life.closed_at:
            return None
        life.first_seen, life.readings, life.peak, life.recent = reading.time, 0, 0.0, 1
        _count(life, reading)
        life.severity, life.updates, life.calm = _level(threshold, score), 0, 0
        life.offset, life.row = reading.offset, 0
        return "opened"
    if score < threshold * _CALM:
        life.calm += 1
        if life.calm < _CLOSE_AFTER:
            return None
        settling = life.accepted != 0
        close(life, reading.time, reading.number)
        life.accepted = _SETTLING if settling else 0
        return "closed"
    life.calm = 0
    if score < threshold:
        return None
    _count(life, reading)
    if (level := _level(threshold, life.peak)) <= life.severity:
        return None
    life.severity, life.updates = level, life.updates + 1
    return "updated"


def close(life: Episode, time: float, number: int) -> None:
    """It ends with the machine's reading of this time and number."""
    faded = 0.5 ** (max(time - life.closed_at, 0.0) / _MEMORY) if life.alerts else 0.0
    life.alerts = life.alerts * faded + 1.0
    life.severity, life.recent, life.calm, life.accepted = -1, 0, 0, 0
    life.closed_at, life.closed_number = time, number


def _count(life: Episode, reading: Scored) -> None:
    life.readings += 1
    life.last_seen, life.peak = reading.time, max(life.peak, reading.score)


def _level(threshold: float, score: float) -> int:
    return 1 if score >= 2.0 * threshold else 0

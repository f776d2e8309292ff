"""When scores become an alert, and when it ends: open, update, close, per key and detector."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats, Rows, Slots
from stream.topology import AlertRule

__all__ = ["AlertTable", "Episode", "Event", "EventKind", "severity", "step"]


class EventKind(StrEnum):
    """What happened to an alert."""

    OPENED = "opened"
    UPDATED = "updated"
    CLOSED = "closed"


@dataclass(slots=True)
class Episode:
    """Where one key stands with one detector. Times are the readings' (epoch seconds)."""

    run: int = 0
    """Anomalous readings in a row, while closed."""
    calm: int = 0
    """Normal readings in a row, while open."""
    severity: int = -1
    """Index of the highest severity reached; -1 while closed."""
    updates: int = 0
    readings: int = 0
    """Anomalous readings of this episode."""
    peak: float = 0.0
    first_seen: float = np.nan
    last_seen: float = np.nan
    closed_at: float = -np.inf
    offset: int = -1
    """Position of the reading that opened the alert: message offset, and row within the message."""
    row: int = -1


@dataclass(frozen=True, slots=True)
class Event:
    """One event of an alert's life, with the episode as it stands at that reading."""

    index: int
    """Row of the batch."""
    kind: EventKind
    episode: Episode


_DTYPES = {
    "run": np.int32,
    "calm": np.int32,
    "severity": np.int8,
    "updates": np.int32,
    "readings": np.int64,
    "peak": np.float64,
    "first_seen": np.float64,
    "last_seen": np.float64,
    "closed_at": np.float64,
    "offset": np.int64,
    "row": np.int64,
}


def step(
    rule: AlertRule, threshold: float, episode: Episode, time: float, score: float, offset: int, row: int
) -> EventKind | None:
    """Advance an episode by one scored reading, in place; the event it causes, if any. Pure otherwise."""
    is_open = episode.severity >= 0
    if is_open and score < threshold * (1 - rule.hysteresis):
        episode.calm += 1
        if episode.calm < rule.close_after:
            return None
        episode.severity, episode.run, episode.calm = -1, 0, 0
        episode.closed_at = time
        return EventKind.CLOSED
    if score < threshold:
        if is_open:
            episode.calm = 0
        else:
            episode.run = 0
        return None
    if not is_open:
        if time < episode.closed_at + rule.cooldown:
            return None
        if episode.run == 0:
            episode.first_seen, episode.readings, episode.peak = time, 0, 0.0
        episode.run += 1
    episode.calm = 0
    episode.readings += 1
    episode.last_seen = time
    episode.peak = max(episode.peak, score)
    if not is_open and episode.run < rule.hold:
        return None
    level = _level(rule, threshold, episode.peak)
    if is_open:
        if level <= episode.severity:
            return None
        episode.severity = level
        episode.updates += 1
        return EventKind.UPDATED
    episode.severity, episode.updates = level, 0
    episode.offset, episode.row = offset, row
    return EventKind.OPENED


def severity(rule: AlertRule, threshold: float, peak: float) -> str:
    """The name of the severity that a peak score reaches."""
    return list(rule.severities)[_level(rule, threshold, peak)]


def _level(rule: AlertRule, threshold: float, peak: float) -> int:
    return max(sum(peak >= threshold * ratio for ratio in rule.severities.values()) - 1, 0)


class AlertTable:
    """The episodes of all keys for one detector: a table by slot, part of the checkpoint."""

    def __init__(self, rule: AlertRule) -> None:
        self._rule = rule
        self._columns = {name: np.zeros(0, dtype) for name, dtype in _DTYPES.items()}

    def decide(
        self,
        threshold: float,
        slots: Slots,
        times: Floats,
        scores: Floats,
        offsets: NDArray[np.int64],
        rows: NDArray[np.int64],
    ) -> list[Event]:
        """The events of a batch of scored readings (all arrays (n,)), in arrival order."""
        if not len(slots):
            return []
        self._grow(int(slots.max()))
        busy = (self._columns["severity"] >= 0) | (self._columns["run"] > 0)
        busy[slots[scores >= threshold]] = True
        events: list[Event] = []
        touched: dict[int, Episode] = {}
        for index in np.flatnonzero(busy[slots]).tolist():
            slot = int(slots[index])
            if slot not in touched:
                touched[slot] = self._load(slot)
            episode = touched[slot]
            position = int(offsets[index]), int(rows[index])
            kind = step(self._rule, threshold, episode, float(times[index]), float(scores[index]), *position)
            if kind is not None:
                events.append(Event(index, kind, _copy(episode)))
        for slot, episode in touched.items():
            for name, column in self._columns.items():
                column[slot] = getattr(episode, name)
        return events

    def open_slots(self) -> Slots:
        """The slots with an open alert."""
        return np.flatnonzero(self._columns["severity"] >= 0)

    def snapshot(self, slots: Slots) -> Rows:
        """Copies of the rows of these slots."""
        if len(slots):
            self._grow(int(slots.max()))
        return {name: column[slots] for name, column in self._columns.items()}

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Put back what `snapshot` returned."""
        if len(slots):
            self._grow(int(slots.max()))
        for name, column in self._columns.items():
            column[slots] = rows[name]

    def _load(self, slot: int) -> Episode:
        return Episode(**{name: column[slot].item() for name, column in self._columns.items()})

    def _grow(self, slot: int) -> None:
        size = len(self._columns["run"])
        if slot < size:
            return
        fresh = Episode()
        more = max(slot + 1 - size, size)
        for name, dtype in _DTYPES.items():
            new = np.full(more, getattr(fresh, name), dtype)
            self._columns[name] = np.concatenate([self._columns[name], new])


def _copy(episode: Episode) -> Episode:
    return Episode(**{name: getattr(episode, name) for name in _DTYPES})

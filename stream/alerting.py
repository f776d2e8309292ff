"""When scores become an alert, and when it ends: open, update, close, per key and detector."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats, Mask, Rows, Slots
from detectors.table import Column, Table
from stream.rules import AlertRule

__all__ = ["AlertTable", "Episode", "Event", "EventKind", "Judged", "Place", "close", "raised", "step"]


class EventKind(StrEnum):
    """What happened to an alert."""

    OPENED = "opened"
    UPDATED = "updated"
    CLOSED = "closed"
    RELEASED = "released"
    """Told nobody: what an operator closed as normal may be learned, or alert, again."""
    SETTLED = "settled"
    """Told nobody: a regime that was accepted is known."""


@dataclass(slots=True)
class Episode:
    """Where one key stands with one detector. Times are the readings' (epoch seconds)."""

    recent: int = 0
    """While closed: which of the latest readings were anomalous, a bit each, the newest lowest."""
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
    closed_number: int = -(2**62)
    """The machine's count of readings then."""
    offset: int = -1
    """Position of the reading that opened the alert: message offset, and row within the message."""
    row: int = -1
    alerts: float = 0.0
    """Alerts that were closed, those of long ago counted less."""
    accepted: int = 0
    """1: an operator says that this is normal now; it is learned. While closed it opens no alert until it has calmed
    down, or is worse than before; 2: and until then it is not learned. 3: closed after it was accepted, by a word
    or by time, and settling: what is normal now is still being learned, see `_settles`."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event of an alert's life, with the episode as it stands at that reading."""

    index: int
    """Row of the batch."""
    kind: EventKind
    episode: Episode
    severity: str
    threshold: float


@dataclass(frozen=True, slots=True)
class Judged:
    """A scored reading as the rule sees it. `number` counts the machine's readings; `quiet`: no alert opens,
    somebody works on the machine."""

    time: float
    score: float
    threshold: float
    offset: int
    row: int
    number: int = 0
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where readings stand, all arrays (n,): message offset, row in the message, the machine's count of readings,
    and whether somebody works on the machine."""

    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]
    numbers: NDArray[np.int64]
    quiet: Mask


_SETTLING = 3
_SETTLED = 50
"""Normal readings in a row after which an accepted regime is known: half-learned, it scores around the threshold."""
_FAR = 2.0
"""Times the threshold at which an alert opens also while a regime is being learned: its own readings stay below."""

_DTYPES = {
    "recent": np.int64,
    "calm": np.int32,
    "severity": np.int8,
    "updates": np.int32,
    "readings": np.int64,
    "peak": np.float64,
    "first_seen": np.float64,
    "last_seen": np.float64,
    "closed_at": np.float64,
    "closed_number": np.int64,
    "offset": np.int64,
    "row": np.int64,
    "alerts": np.float64,
    "accepted": np.int8,
}


def step(rule: AlertRule, episode: Episode, reading: Judged) -> EventKind | None:
    """Advance an episode by one scored reading, in place; the event it causes, if any. Pure otherwise.

    With `close_after` 0 an alert stays open until `close` ends it with the same reading."""
    if episode.severity < 0:
        return _opens(rule, episode, reading)
    if reading.score < reading.threshold * (1 - rule.hysteresis):
        episode.calm += 1
        if episode.calm < rule.close_after:
            return None
        accepted = episode.accepted
        close(rule, episode, reading)
        episode.accepted = _SETTLING if accepted else 0
        return EventKind.CLOSED
    episode.calm = 0
    if reading.score < reading.threshold:
        return None
    _count(episode, reading)
    level = _level(rule, reading.threshold, episode.peak)
    if level <= episode.severity:
        return None
    episode.severity = level
    episode.updates += 1
    return EventKind.UPDATED


def raised(rule: AlertRule, episode: Episode, threshold: float, time: float) -> float:
    """The threshold of a key that had alerts before."""
    if not rule.escalation or not episode.alerts:
        return threshold
    return threshold + rule.escalation * math.log10(1.0 + _remembered(rule, episode, time))


def close(rule: AlertRule, episode: Episode, reading: Judged) -> None:
    """End an open episode with this reading, in place."""
    episode.alerts = _remembered(rule, episode, reading.time) + 1.0
    episode.severity, episode.recent, episode.calm, episode.accepted = -1, 0, 0, 0
    episode.closed_at, episode.closed_number = reading.time, reading.number


def _opens(rule: AlertRule, episode: Episode, reading: Judged) -> EventKind | None:
    if not episode.accepted:
        return _may_open(rule, episode, reading)
    if episode.accepted == _SETTLING:
        return _settles(rule, episode, reading)
    if reading.score >= reading.threshold and _is_worse(rule, episode, reading):
        episode.accepted = episode.calm = 0
        return _may_open(rule, episode, reading) or EventKind.RELEASED
    episode.calm = episode.calm + 1 if reading.score < reading.threshold * (1 - rule.hysteresis) else 0
    if episode.calm < rule.close_after:
        return None
    episode.accepted, episode.calm = _SETTLING if episode.accepted == 1 else 0, 0
    return EventKind.RELEASED


def _settles(rule: AlertRule, episode: Episode, reading: Judged) -> EventKind | None:
    """An accepted regime is learned until it has been normal for long: only what is far off opens an alert before."""
    if reading.score >= reading.threshold * _FAR:
        episode.accepted = episode.calm = 0
        return _may_open(rule, episode, reading) or EventKind.SETTLED
    episode.calm = episode.calm + 1 if reading.score < reading.threshold * (1 - rule.hysteresis) else 0
    if episode.calm < max(_SETTLED, rule.close_after):
        return None
    episode.accepted = episode.calm = 0
    return EventKind.SETTLED


def _is_worse(rule: AlertRule, episode: Episode, reading: Judged) -> bool:
    """Whether a reading is of a higher severity than what was closed."""
    return _level(rule, reading.threshold, reading.score) > _level(rule, reading.threshold, episode.peak)


def _may_open(rule: AlertRule, episode: Episode, reading: Judged) -> EventKind | None:
    anomalous = reading.score >= reading.threshold
    resting = reading.time < episode.closed_at + rule.cooldown
    if rule.cooldown_readings:  # which readings that are not newer do not shorten
        resting |= reading.number - episode.closed_number <= rule.cooldown_readings
    if resting or reading.quiet:
        episode.recent = 0
        return None
    earlier = (episode.recent << 1) & ((1 << (rule.within or rule.hold)) - 1)
    if anomalous and not earlier:
        episode.first_seen, episode.readings, episode.peak = reading.time, 0, 0.0
    episode.recent = earlier | anomalous
    if not anomalous:
        return None
    _count(episode, reading)
    at_once = rule.at_once is not None and reading.score >= reading.threshold * rule.at_once
    if episode.recent.bit_count() < rule.hold and not at_once:
        return None
    episode.severity, episode.updates, episode.calm = _level(rule, reading.threshold, episode.peak), 0, 0
    episode.offset, episode.row = reading.offset, reading.row
    return EventKind.OPENED


def _count(episode: Episode, reading: Judged) -> None:
    episode.readings += 1
    episode.last_seen = reading.time
    episode.peak = max(episode.peak, reading.score)


def _remembered(rule: AlertRule, episode: Episode, time: float) -> float:
    """Alerts of the past as they count now."""
    if not episode.alerts:
        return 0.0
    decayed: float = episode.alerts * 0.5 ** (max(time - episode.closed_at, 0.0) / rule.escalation_memory)
    return decayed


def _level(rule: AlertRule, threshold: float, peak: float) -> int:
    return max(sum(peak >= threshold * ratio for ratio in rule.severities.values()) - 1, 0)


class AlertTable:
    """The episodes of all keys for one decision: a table by slot, part of the checkpoint.

    An alert open for `silence` seconds is accepted by time; what an operator closes, or what was accepted, is silent
    for so long at the most."""

    def __init__(self, rule: AlertRule, silence: float = math.inf) -> None:
        self._rule = rule
        self._silence = silence
        fresh = Episode()
        self._columns = Table(
            {name: Column(dtype, (), getattr(fresh, name)) for name, dtype in _DTYPES.items()}
        )

    def decide(
        self,
        thresholds: Floats,
        slots: Slots,
        times: Floats,
        scores: Floats,
        place: Place,
        lasting: Floats | None = None,
    ) -> list[Event]:
        """The events of a batch of scored readings (all arrays (n,)), in arrival order. `lasting` are the scores that
        count while an alert is open, None: the same.

        A score that is NaN decides nothing."""
        if not len(slots):
            return []
        self._columns.reserve(slots)
        columns = self._columns
        lasting = scores if lasting is None else lasting
        busy = (columns["severity"][slots] >= 0) | (columns["recent"][slots] != 0)
        busy |= (columns["accepted"][slots] != 0) | np.isin(slots, slots[scores >= thresholds])
        events: list[Event] = []
        touched: dict[int, Episode] = {}
        for index in np.flatnonzero(busy & ~np.isnan(scores)).tolist():
            slot, time = int(slots[index]), float(times[index])
            if slot not in touched:
                touched[slot] = self._load(slot)
            reading = Judged(
                time,
                float((scores if touched[slot].severity < 0 else lasting)[index]),
                raised(self._rule, touched[slot], float(thresholds[index]), time),
                int(place.offsets[index]),
                int(place.rows[index]),
                int(place.numbers[index]),
                bool(place.quiet[index]),
            )
            events += self._advance(index, touched[slot], reading)
        for slot, episode in touched.items():
            for name in _DTYPES:
                self._columns[name][slot] = getattr(episode, name)
        return events

    def _advance(self, index: int, episode: Episode, reading: Judged) -> Iterator[Event]:
        before, over = episode.severity, None
        if before < 0 and episode.accepted and reading.time - episode.closed_at >= self._silence:
            over = EventKind.SETTLED if episode.accepted == _SETTLING else EventKind.RELEASED
            episode.accepted = 0
        kind = step(self._rule, episode, reading) or over
        if kind is EventKind.CLOSED and reading.time - episode.first_seen >= self._silence:
            episode.accepted = _SETTLING  # by time
        if kind is None:
            return
        names = list(self._rule.severities)
        severity = names[before if kind is EventKind.CLOSED else max(episode.severity, 0)]
        yield Event(index, kind, _copy(episode), severity, reading.threshold)
        if kind is EventKind.OPENED and self._rule.close_after == 0:
            close(self._rule, episode, reading)
            yield Event(index, EventKind.CLOSED, _copy(episode), severity, reading.threshold)

    def is_open(self, slots: Slots, times: Floats, accept_after: float) -> Mask:
        """Which readings (n,) meet an open alert that is not accepted, neither by time nor by an operator; or one
        that was closed by an operator, and is not learned until it has calmed down, from then on for as long."""
        if not len(slots):
            return np.zeros(0, np.bool_)
        self._columns.reserve(slots)
        columns = self._columns
        accepted = columns["accepted"][slots]
        is_open = columns["severity"][slots] >= 0
        open_: Mask = np.where(is_open, accepted == 0, accepted == 2)
        began = np.where(is_open, columns["first_seen"][slots], columns["closed_at"][slots])
        recent: Mask = times - began < accept_after
        return open_ & recent

    def is_changing(self, slots: Slots, times: Floats, accept_after: float) -> Mask:
        """Which readings (n,) are of a regime that is taken for normal, or soon will be, and that detectors do not
        know yet: while their alert is open, and until it has settled. Their scores are those of no regime, and say
        nothing of what is rare. Bounded, for a regime may stay as unusual as it began."""
        if not len(slots):
            return np.zeros(0, np.bool_)
        self._columns.reserve(slots)
        columns = self._columns
        is_open = columns["severity"][slots] >= 0
        lasts = is_open & (times - columns["first_seen"][slots] < 2 * accept_after)
        settles = ~is_open & np.isin(columns["accepted"][slots], (1, _SETTLING))
        settles &= times - columns["closed_at"][slots] < accept_after
        return np.asarray(lasts | settles, dtype=np.bool_)

    def accept(self, slots: Slots) -> Slots:
        """An operator takes the open alerts of these slots for normal; the slots that have one."""
        self._columns.reserve(slots)
        found = slots[self._columns["severity"][slots] >= 0]
        self._columns["accepted"][found] = 1
        return found

    def close(self, slot: int, time: float, number: int, *, learned: bool) -> tuple[Episode, str] | None:
        """An operator says that the open alert of a slot is none: it ends with the machine's reading of this time and
        number. The episode as it was, with its severity; None where none is open."""
        self._columns.reserve(np.array([slot]))
        episode = self._load(slot)
        if episode.severity < 0:
            return None
        before = _copy(episode)
        close(self._rule, episode, Judged(time, 0.0, 0.0, -1, -1, number))
        episode.accepted = 1 if learned else 2
        for name in _DTYPES:
            self._columns[name][slot] = getattr(episode, name)
        return before, list(self._rule.severities)[before.severity]

    def episode(self, slot: int) -> Episode:
        """Where a slot stands."""
        self._columns.reserve(np.array([slot]))
        return self._load(slot)

    def correct(self, slot: int, *, learned: bool) -> bool:
        """An operator says something else of what was taken for normal and lasts: from here on it is learned, or is
        not. Whether that changes anything."""
        before = self.episode(slot)
        if not before.accepted:
            return False
        kept_back = 0 if before.severity >= 0 else 2
        self._columns["accepted"][slot] = 1 if learned else kept_back
        return bool(self._columns["accepted"][slot] != before.accepted)

    def open_slots(self) -> Slots:
        """The slots with an open alert."""
        return np.flatnonzero(self._columns["severity"] >= 0)

    def snapshot(self, slots: Slots) -> Rows:
        """Copies of the rows of these slots."""
        return self._columns.snapshot(slots)

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Put back what `snapshot` returned."""
        self._columns.restore(slots, rows)

    def _load(self, slot: int) -> Episode:
        return Episode(**{name: self._columns[name][slot].item() for name in _DTYPES})


def _copy(episode: Episode) -> Episode:
    return Episode(**{name: getattr(episode, name) for name in _DTYPES})

"""How a shadow compares with its champion: agreement, alerts, drift of scores, time; in all, and by windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats, Mask
from stream.windows import Elapsed

__all__ = ["Comparison", "Readings", "Side", "Tally"]

_EDGES = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0])
"""Between the classes of scores, as multiples of what they are held against."""


class Side(msgspec.Struct):
    """One of the two: alerts opened, seconds that its model took, and how many scores fell into each class."""

    alerts: int = 0
    seconds: float = 0.0
    scores: list[int] = msgspec.field(default_factory=lambda: [0] * (len(_EDGES) + 1))


class Tally(msgspec.Struct):
    """What was counted over a stretch of readings, from `since` to `until` by their own times."""

    both: int = 0
    """Readings that both call anomalous."""
    neither: int = 0
    champion_only: int = 0
    shadow_only: int = 0
    unscored: int = 0
    """Readings for which one of them gave no score; they count nowhere else."""
    missed: int = 0
    """Those for which only the champion gave one."""
    champion: Side = msgspec.field(default_factory=Side)
    shadow: Side = msgspec.field(default_factory=Side)
    since: float | None = None
    until: float | None = None

    @property
    def readings(self) -> int:
        """Readings that were compared."""
        return self.both + self.neither + self.champion_only + self.shadow_only

    @property
    def agreement(self) -> float:
        """The share of readings that both call anomalous, or neither does; 0 before the first."""
        return (self.both + self.neither) / self.readings if self.readings else 0.0

    @property
    def missing(self) -> float:
        """The share of the champion's readings for which the shadow gave no score."""
        return self.missed / max(self.readings + self.missed, 1)

    @property
    def kappa(self) -> float:
        """Agreement beyond chance (Cohen 1960): 1 for complete, 0 for what chance gives."""
        n = self.readings
        if not n:
            return 0.0
        first, second = (self.both + self.champion_only) / n, (self.both + self.shadow_only) / n
        chance = first * second + (1 - first) * (1 - second)
        return 1.0 if chance >= 1.0 else (self.agreement - chance) / (1 - chance)

    @property
    def drift(self) -> float:
        """The largest distance between the two distributions of scores (Kolmogorov and Smirnov), 0 to 1."""
        if not self.readings:
            return 0.0
        each = [np.cumsum(side.scores) / self.readings for side in (self.champion, self.shadow)]
        return float(np.abs(each[0] - each[1]).max())

    def figures(self) -> dict[str, Any]:
        """For people, and for receipts."""
        n = max(self.readings, 1)
        return {
            "readings": self.readings,
            "unscored": self.unscored,
            "missed": self.missed,
            "agreement": round(self.agreement, 6),
            "kappa": round(self.kappa, 6),
            "drift": round(self.drift, 6),
            "alerts": {"champion": self.champion.alerts, "shadow": self.shadow.alerts},
            "us_per_reading": {
                "champion": round(1e6 * self.champion.seconds / n, 2),
                "shadow": round(1e6 * self.shadow.seconds / n, 2),
            },
            "since": self.since,
            "until": self.until,
        }


@dataclass(frozen=True, slots=True)
class Readings:
    """Readings that both have judged, all arrays (n,): whose, when, scores as multiples of what they are held against
    (NaN where there is none), and which opened an alert; seconds that the models took."""

    machines: Sequence[str]
    times: Floats
    champion: Floats
    shadow: Floats
    champion_opened: Mask
    shadow_opened: Mask
    champion_seconds: float
    shadow_seconds: float

    @property
    def compared(self) -> Mask:
        """Which of them both gave a score for."""
        return ~(np.isnan(self.champion) | np.isnan(self.shadow))


class Comparison:
    """The tally since a shadow began, and that of the last whole window of so many readings, or seconds.

    Windows are cut at readings, so the cut of batches changes nothing but the seconds."""

    def __init__(
        self,
        *,
        readings: int | None,
        seconds: float | None,
        saved: Mapping[str, Any] | None = None,
        elapsed: Elapsed | None = None,
    ) -> None:
        """`elapsed`: the first window, with the machines that it waits for."""
        self._readings, self._seconds = readings, seconds
        saved = saved or {}
        self.total = msgspec.convert(saved.get("total", {}), Tally)
        self._current = msgspec.convert(saved.get("current", {}), Tally)
        self._elapsed = elapsed or Elapsed()
        if "elapsed" in saved:
            self._elapsed = msgspec.convert(saved["elapsed"], Elapsed)
        self.window = msgspec.convert(saved.get("window"), Tally | None)
        """The last whole one; None before the first has ended."""

    def saved(self) -> dict[str, Any]:
        """As plain data, for the checkpoint."""
        found: dict[str, Any] = msgspec.to_builtins(
            {
                "total": self.total,
                "current": self._current,
                "elapsed": self._elapsed,
                "window": self.window,
            }
        )
        return found

    def add(self, found: Readings) -> None:
        """Count readings, in order."""
        start, n = 0, len(found.times)
        while start < n:
            end, whole = self._end(found, start)
            rows = np.arange(start, end)
            for tally in (self.total, self._current):
                _count(tally, found, rows)
            if whole:
                self.window, self._current, self._elapsed = self._current, Tally(), self._elapsed.after()
            start = end

    def _end(self, found: Readings, start: int) -> tuple[int, bool]:
        """Where the window at hand ends, at the latest after these readings; and whether it does. For one of so many
        readings, those count that both gave a score for."""
        if self._readings is not None:
            compared = np.cumsum(found.compared[start:]) + self._current.readings
            last = int(np.searchsorted(compared, self._readings))
        elif self._seconds is not None:
            over = self._elapsed.until(found.machines[start:], found.times[start:], self._seconds)
            last = len(found.times) if over is None else over
        else:
            last = len(found.times)
        whole = start + last < len(found.times)
        return min(start + last + 1, len(found.times)), whole


def _count(tally: Tally, found: Readings, rows: NDArray[np.int64]) -> None:
    first, second, times = found.champion[rows], found.shadow[rows], found.times[rows]
    known = found.compared[rows]
    one, other = first[known] >= 1.0, second[known] >= 1.0
    tally.both += int((one & other).sum())
    tally.neither += int((~one & ~other).sum())
    tally.champion_only += int((one & ~other).sum())
    tally.shadow_only += int((~one & other).sum())
    tally.unscored += int((~known).sum())
    tally.missed += int((np.isnan(second) & ~np.isnan(first)).sum())
    share = len(rows) / len(found.times)
    sides = (
        (tally.champion, first[known], found.champion_opened, found.champion_seconds),
        (tally.shadow, second[known], found.shadow_opened, found.shadow_seconds),
    )
    for side, scores, opened, seconds in sides:
        side.alerts += int(opened[rows].sum())
        side.seconds += seconds * share
        classes = np.bincount(np.searchsorted(_EDGES, scores, side="right"), minlength=len(_EDGES) + 1)
        side.scores = [a + b for a, b in zip(side.scores, classes.tolist(), strict=True)]
    if tally.since is None:
        tally.since = float(times[0])
    tally.until = float(times.max()) if tally.until is None else max(tally.until, float(times.max()))

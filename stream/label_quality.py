"""How good alerts were, by what people said: the last word on each moment of a machine counts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats
from detectors.quality import events, harmonic
from stream.feedback import Feedback

__all__ = ["Found", "label_quality"]


@dataclass(frozen=True, slots=True)
class Found:
    """How good alerts were, of which so many were labelled; NaN where that is not known."""

    labels: int = 0
    precision: float = math.nan
    """Share of the labelled alerts that were right; NaN where none was labelled."""
    recall: float = math.nan
    """Share of the events that were found; NaN where there was none."""
    f1: float = math.nan
    """0 where nothing that was labelled was right; NaN where neither of the two is known."""
    false_alarms_per_day: float = math.nan
    """Of a machine."""

    def of(self, metric: str) -> float:
        """One of them by its name."""
        value: float = getattr(self, metric)
        return value


class _Word(NamedTuple):
    """What somebody said at some time of another time, both ends in it."""

    at: float
    start: float
    end: float
    anomaly: bool


class _Course:
    """A machine's time as the last words have it: an anomaly, normal, or nothing said.

    Each moment that begins or ends a word is a cell of its own, as is the time between two of them."""

    def __init__(self, words: Sequence[_Word]) -> None:
        self._points = np.unique([time for word in words for time in (word.start, word.end)])
        self._said = np.zeros(2 * len(self._points) + 1, np.int8)
        for word in sorted(words, key=lambda word: word.at):
            first, last = self.cells(np.array([word.start, word.end])).tolist()
            self._said[first : last + 1] = 1 if word.anomaly else -1

    def cells(self, times: Floats) -> NDArray[np.int64]:
        """In which cells these times (n,) are."""
        after = np.searchsorted(self._points, times)
        return np.asarray(after + np.searchsorted(self._points, times, side="right"), np.int64)

    def said(self, cells: NDArray[np.int64]) -> NDArray[np.int8]:
        """1 in an anomaly, -1 in what was normal, 0 where nothing was said."""
        return self._said[cells]

    def anomalies(self) -> list[tuple[int, int, float, float]]:
        """First cell, the cell after the last, start and end of each."""
        runs = events(self._said == 1).tolist()
        points = self._points
        return [
            (first, after, float(points[(first - 1) // 2]), float(points[(after - 1) // 2]))
            for first, after in runs
        ]


def label_quality(
    feedback: Feedback,
    detector: str,
    since: float,
    until: float,
    *,
    scored: Callable[[str], bool] = lambda machine: True,
    days: Callable[[], float] = lambda: math.nan,
) -> Found:
    """How good the alerts were that a detector opened between two times on the machines that are `scored`.

    The words are the windows of a machine, and the labels of this detector's alerts, each for as long as its alert
    lasted. An alert is right where it opened in an anomaly. An event is an anomaly without a gap; it is found where
    an alert opened in it. What was found before `since` is left out; so is what had ended by then. `days`: on which
    machines were watched since then, in all.
    """
    words: defaultdict[str, list[_Word]] = defaultdict(list)
    opened: defaultdict[str, list[float]] = defaultdict(list)
    for alert in (*feedback.alerts.values(), *feedback.labelled.values()):
        if alert.detector == detector and scored(alert.machine):
            opened[alert.machine].append(alert.opened)
            if alert.label is not None:
                end = math.inf if alert.end is None else alert.end
                word = _Word(alert.at, alert.first_seen, end, alert.label == "true")
                words[alert.machine].append(word)
    for window in feedback.windows.values():
        if scored(window.machine):
            word = _Word(window.at, window.start, window.end, window.label == "anomaly")
            words[window.machine].append(word)
    right = wrong = found = missed = 0
    for machine, told in words.items():
        course, times = _Course(told), np.array(opened[machine], np.float64)
        cells, recent = course.cells(times), (times >= since) & (times <= until)
        right += int((course.said(cells[recent]) == 1).sum())
        wrong += int((course.said(cells[recent]) == -1).sum())
        for first, after, start, end in course.anomalies():
            within = (cells >= first) & (cells < after)
            found += bool((within & recent).any())
            missed += not within.any() and start <= until and end >= since
    precision, recall = _share(right, right + wrong), _share(found, found + missed)
    per_day = _share(wrong, days()) if right + wrong + missed else math.nan
    return Found(right + wrong + missed, precision, recall, harmonic(precision, recall), per_day)


def _share(part: int, whole: float) -> float:
    return part / whole if whole else math.nan

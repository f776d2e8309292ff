"""How good alerts were, by what people said: the last word on each moment of a machine counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats
from detectors.quality import events, harmonic
from stream.feedback import Feedback

__all__ = ["Found", "label_quality"]

_ANOMALY, _NORMAL = 1, -1


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
    """What somebody said at some time of a machine's time, both ends in it."""

    at: float
    machine: str
    start: float
    end: float
    anomaly: bool


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
    words = sorted(_words(feedback, detector, scored), key=lambda word: word.at)
    if not words:
        return Found()
    number = {machine: i for i, machine in enumerate(dict.fromkeys(word.machine for word in words))}
    raised = (*feedback.alerts.values(), *feedback.labelled.values())
    alerts = [alert for alert in raised if alert.detector == detector and alert.machine in number]
    whose = [number[word.machine] for word in words]
    starts, ends = _moments(whose, [it.start for it in words]), _moments(whose, [it.end for it in words])
    course = _Course(np.unique(np.concatenate([starts, ends])))
    course.tell(starts, ends, [word.anomaly for word in words])

    opened = np.array([alert.opened for alert in alerts], np.float64)
    cells = course.cells(_moments([number[alert.machine] for alert in alerts], opened))
    recent = (opened >= since) & (opened <= until)
    right, wrong = (int((course.said[cells[recent]] == said).sum()) for said in (_ANOMALY, _NORMAL))

    first, after = events(course.said == _ANOMALY).T
    lasts = (course.time(first) <= until) & (course.time(after - 1) >= since)
    found = int((_within(first, after, cells[recent]) > 0).sum())
    missed = int((lasts & (_within(first, after, cells) == 0)).sum())
    precision, recall = _share(right, right + wrong), _share(found, found + missed)
    labels = right + wrong + missed
    per_day = _share(wrong, days()) if labels else math.nan
    return Found(labels, precision, recall, harmonic(precision, recall), per_day)


class _Course:
    """The machines' time, and what was said of it last. Each of the `points` (moments in order) is a cell, and so is
    the time before, between and after them."""

    def __init__(self, points: NDArray[np.complex128]) -> None:
        self._points = points
        self.said = np.zeros(2 * len(points) + 1, np.int8)

    def tell(
        self, starts: NDArray[np.complex128], ends: NDArray[np.complex128], anomalies: Iterable[bool]
    ) -> None:
        """Words (n,), the last one last."""
        for first, last, anomaly in zip(self.cells(starts), self.cells(ends), anomalies, strict=True):
            self.said[first : last + 1] = _ANOMALY if anomaly else _NORMAL

    def cells(self, moments: NDArray[np.complex128]) -> NDArray[np.int64]:
        """In which cells these are, (n,)."""
        before = np.searchsorted(self._points, moments)
        return np.asarray(before + np.searchsorted(self._points, moments, side="right"), np.int64)

    def time(self, cells: NDArray[np.int64]) -> Floats:
        """When these begin, (n,): none is the first."""
        return self._points[(cells - 1) // 2].imag


def _words(feedback: Feedback, detector: str, scored: Callable[[str], bool]) -> Iterator[_Word]:
    for alert in feedback.labelled.values():
        if alert.detector == detector and scored(alert.machine):
            end = math.inf if alert.end is None else alert.end
            yield _Word(alert.at, alert.machine, alert.first_seen, end, alert.label == "true")
    for window in feedback.windows.values():
        if scored(window.machine):
            yield _Word(window.at, window.machine, window.start, window.end, window.label == "anomaly")


def _moments(machines: Sequence[int], times: Sequence[float] | Floats) -> NDArray[np.complex128]:
    """Times (n,) of machines as numbers that are in order by machine, and then by time."""
    moments = np.empty(len(machines), np.complex128)
    moments.real, moments.imag = machines, times
    return moments


def _within(
    first: NDArray[np.int64], after: NDArray[np.int64], cells: NDArray[np.int64]
) -> NDArray[np.int64]:
    """How many of these cells are in each of so many ranges (k,)."""
    ordered = np.sort(cells)
    return np.asarray(np.searchsorted(ordered, after) - np.searchsorted(ordered, first), np.int64)


def _share(part: int, whole: float) -> float:
    return part / whole if whole else math.nan

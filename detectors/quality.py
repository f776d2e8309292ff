"""How good a detector is: ranking of scores, and alerts against labelled events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detectors.base import Floats

__all__ = ["EventQuality", "event_quality", "events", "roc_auc"]

_DAY = 86400.0


@dataclass(frozen=True, slots=True)
class EventQuality:
    """Counts of labelled events and of alert episodes, and what follows from them; NaN where undefined."""

    events: int
    found: int
    """Events in which at least one alert began."""
    episodes: int
    false_alarms: int
    """Episodes that began outside every event."""
    false_alarms_per_day: float
    median_delay: float
    """Seconds from an event's start to its first alert, over the events found."""

    @property
    def precision(self) -> float:
        """Share of episodes that began within an event."""
        return (self.episodes - self.false_alarms) / self.episodes if self.episodes else float("nan")

    @property
    def recall(self) -> float:
        """Share of events found."""
        return self.found / self.events if self.events else float("nan")

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 where either is 0 or undefined."""
        precision, recall = self.precision, self.recall
        return 2 * precision * recall / (precision + recall) if precision > 0 and recall > 0 else 0.0


def roc_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Chance that an anomaly scores above a normal reading, ties counted half (Mann-Whitney), 0 to 1.

    `labels` (n,) is true for anomalies. NaN where one of the classes is empty. Raises ValueError on
    scores that are NaN.

    >>> roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
    0.875
    """
    truth, values = _labels(labels), np.asarray(scores, np.float64)
    if truth.shape != values.shape or np.isnan(values).any():
        raise ValueError("labels and scores must be of one length, scores not NaN")
    _, rank, size = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(size) - (size - 1) / 2
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return float("nan")
    above = middle[rank][truth].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def events(labels: ArrayLike) -> NDArray[np.int64]:
    """Runs of true labels as rows (start, end), the end exclusive: shape (k, 2).

    >>> events([0, 1, 1, 0, 1])
    array([[1, 3],
           [4, 5]])
    """
    truth = _labels(labels)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], truth, [False])).astype(np.int8)))
    return edges.reshape(-1, 2).astype(np.int64)


def event_quality(times: ArrayLike, labels: ArrayLike, alerts: ArrayLike) -> EventQuality:
    """Judge alerts of one key, event by event; an alert episode counts where it begins.

    `times` (n,) ascending seconds; `labels` (n,) true within an event; `alerts` (n,) true while an alert is
    open. An event counts as found if an episode begins in it; one already open when the event begins does
    not count. False alarms per day divide by the time spanned outside events. Raises ValueError on lengths
    that differ.

    >>> quality = event_quality([0, 60, 120, 180], [0, 1, 1, 0], [0, 0, 1, 1])
    >>> quality.recall, quality.precision, quality.median_delay
    (1.0, 1.0, 60.0)
    """
    when: Floats = np.asarray(times, np.float64)
    truth, alert = _labels(labels), _labels(alerts)
    if not when.shape == truth.shape == alert.shape:
        raise ValueError("times, labels and alerts must be of one length")
    spans, begins = events(truth), events(alert)[:, 0]
    hits = [begins[(begins >= start) & (begins < end)] for start, end in spans]
    delays = [when[hit[0]] - when[start] for hit, (start, _) in zip(hits, spans, strict=True) if len(hit)]
    false_alarms = int((~truth[begins]).sum())
    normal = float(np.diff(when)[~truth[1:]].sum()) if len(when) > 1 else 0.0
    return EventQuality(
        events=len(spans),
        found=len(delays),
        episodes=len(begins),
        false_alarms=false_alarms,
        false_alarms_per_day=false_alarms * _DAY / normal if normal > 0 else float("nan"),
        median_delay=float(np.median(delays)) if delays else float("nan"),
    )


def _labels(labels: ArrayLike) -> NDArray[np.bool_]:
    return np.asarray(labels).astype(bool)

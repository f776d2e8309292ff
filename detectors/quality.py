"""How good a detector is: ranking of scores, and alerts against labelled events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detectors.base import Floats

__all__ = ["EventQuality", "event_quality", "events", "harmonic", "roc_auc", "vus_pr"]

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
        """See `harmonic`."""
        return harmonic(self.precision, self.recall)


def harmonic(precision: float, recall: float) -> float:
    """F1: the harmonic mean of the two. 0 where one of them is, also where the other is undefined: nothing was
    alerted to, or there was nothing to find. NaN where both are undefined.

    >>> harmonic(0.5, 1.0), harmonic(float("nan"), 0.0)
    (0.6666666666666666, 0.0)
    """
    known = [share for share in (precision, recall) if share == share]
    if not known or 0.0 in known:
        return 0.0 if known else float("nan")
    return 2 * precision * recall / (precision + recall)


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


def event_quality(
    times: ArrayLike, labels: ArrayLike, alerts: ArrayLike, keys: ArrayLike | None = None
) -> EventQuality:
    """Judge alerts, event by event; an alert episode counts where it begins.

    `times` (n,) ascending seconds; `labels` (n,) true within an event; `alerts` (n,) true while an alert is
    open; `keys` (n,) whose row it is, for each key has events, alerts and days of its own (None: one key). An
    event counts as found if an episode begins in it; one already open when the event begins does not count.
    False alarms per day divide by the time spanned outside events. Raises ValueError on lengths that differ.

    >>> quality = event_quality([0, 60, 120, 180], [0, 1, 1, 0], [0, 0, 1, 1])
    >>> quality.recall, quality.precision, quality.median_delay
    (1.0, 1.0, 60.0)
    """
    when: Floats = np.asarray(times, np.float64)
    truth, alert = _labels(labels), _labels(alerts)
    who = np.zeros(len(when), np.int64) if keys is None else np.unique(keys, return_inverse=True)[1]
    if not when.shape == truth.shape == alert.shape == who.shape:
        raise ValueError("times, labels, alerts and keys must be of one length")
    known = episodes = false_alarms = 0
    delays: list[float] = []
    normal = 0.0
    for key in range(int(who.max()) + 1 if len(who) else 0):
        rows = who == key
        spans, begins = events(truth[rows]), events(alert[rows])[:, 0]
        clock = when[rows]
        hits = [begins[(begins >= start) & (begins < end)] for start, end in spans]
        delays += [
            clock[hit[0]] - clock[start] for hit, (start, _) in zip(hits, spans, strict=True) if len(hit)
        ]
        known += len(spans)
        episodes += len(begins)
        false_alarms += int((~truth[rows][begins]).sum())
        normal += float(np.diff(clock)[~truth[rows][1:]].sum())
    return EventQuality(
        events=known,
        found=len(delays),
        episodes=episodes,
        false_alarms=false_alarms,
        false_alarms_per_day=false_alarms * _DAY / normal if normal > 0 else float("nan"),
        median_delay=float(np.median(delays)) if delays else float("nan"),
    )


def vus_pr(labels: ArrayLike, scores: ArrayLike, *, window: int = 100, thresholds: int = 250) -> float:
    """Volume under the surface of precision and recall, 0 to 1: how well scores rank events without a threshold.

    `labels` (n,) true within an event; `scores` (n,), NaN refused. For each width w from 0 to `window` rows, an event
    counts for half of w rows more at both ends, less the further they are (the square root of 1 - distance / w);
    recall is cut by the share of events that no row reaches. The area under precision and recall, at `thresholds`
    scores evenly spread by rank, is averaged over the widths. Paparrizos et al., "Volume Under the Surface", VLDB
    2022. NaN without events. It fails where events are much longer than `window`: then it is an average precision.

    >>> vus_pr([0, 0, 1, 1, 0, 0], [0.0, 0.1, 0.9, 0.8, 0.1, 0.0], window=0)
    1.0
    """
    truth, values = _labels(labels), np.asarray(scores, np.float64)
    if truth.shape != values.shape or np.isnan(values).any():
        raise ValueError("labels and scores must be of one length, scores not NaN")
    spans = events(truth)
    if not len(spans):
        return float("nan")
    descending = -np.sort(-values)
    levels = descending[np.linspace(0, len(values) - 1, thresholds).astype(np.int64)]
    reached = np.searchsorted(-levels, -values)  # the first threshold at which a row is predicted
    predicted = _by_threshold(reached, np.ones(len(values)), thresholds)
    areas = []
    for width in range(window + 1):
        weights = _widened(truth, spans, width)
        hits = _by_threshold(reached, weights, thresholds)
        beyond = _by_threshold(reached, np.where(truth, 0.0, weights), thresholds)
        whole = float(truth.sum())
        first = np.array([reached[start:end].min() for start, end in _joined(spans, width // 2, len(values))])
        found = np.searchsorted(np.sort(first), np.arange(thresholds), side="right") / len(first)
        recall = np.minimum(hits / (whole + beyond / 2), 1.0) * found
        precision = np.where(predicted > 0, hits / np.maximum(predicted, 1.0), 1.0)
        areas.append(float(np.diff(recall, prepend=0.0) @ precision))
    return float(np.mean(areas))


def _by_threshold(reached: NDArray[np.int64], weights: Floats, thresholds: int) -> Floats:
    """The sum of the weights of all rows predicted at each threshold."""
    return np.cumsum(np.bincount(reached, weights=weights, minlength=thresholds))


def _widened(truth: NDArray[np.bool_], spans: NDArray[np.int64], width: int) -> Floats:
    """How much each row counts as anomalous: 1 within an event, less towards half a width away from it."""
    weights = truth.astype(np.float64)
    distance = np.arange(1, width // 2 + 1)
    ramp = np.sqrt(1.0 - distance / max(width, 1))
    for start, end in spans:
        for rows in (start - distance, end - 1 + distance):
            inside = (rows >= 0) & (rows < len(weights))
            weights[rows[inside]] += ramp[inside]
    return np.minimum(weights, 1.0)


def _joined(spans: NDArray[np.int64], reach: int, size: int) -> list[tuple[int, int]]:
    """Events longer by `reach` at both ends; those that then touch are one."""
    found: list[tuple[int, int]] = []
    for start, end in spans.tolist():
        if found and start - reach < found[-1][1]:
            found[-1] = (found[-1][0], min(end + reach, size))
        else:
            found.append((max(start - reach, 0), min(end + reach, size)))
    return found


def _labels(labels: ArrayLike) -> NDArray[np.bool_]:
    return np.asarray(labels).astype(bool)

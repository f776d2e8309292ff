"""Measures of quality, on examples worked out by hand and against scikit-learn."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from detectors.quality import event_quality, events, roc_auc, vus_pr


def test_roc_auc_equals_scikit_learns_with_ties() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.random(500) < 0.1, rng.integers(0, 20, 500) / 20
    assert roc_auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


def test_roc_auc_of_one_class_is_undefined_and_nan_scores_are_refused() -> None:
    assert np.isnan(roc_auc([0, 0], [1.0, 2.0]))
    assert np.isnan(roc_auc([], []))
    with pytest.raises(ValueError, match="not NaN"):
        roc_auc([0, 1], [np.nan, 1.0])


def test_events_reach_both_ends() -> None:
    assert events([1, 1, 0, 1]).tolist() == [[0, 2], [3, 4]]
    assert events([]).shape == (0, 2)


def test_an_alert_counts_where_it_begins() -> None:
    labels = np.array([0, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0])
    alerts = np.array([0, 1, 1, 0, 1, 1, 0, 0, 1, 0, 1, 0])
    quality = event_quality(np.arange(12) * 3600.0, labels, alerts)
    assert (quality.events, quality.found, quality.episodes, quality.false_alarms) == (2, 2, 4, 2)
    assert quality.precision == 0.5
    assert quality.recall == 1.0
    assert quality.f1 == pytest.approx(2 / 3)
    assert quality.median_delay == 1.5 * 3600
    assert quality.false_alarms_per_day == pytest.approx(2 * 24 / 6)


def test_nothing_found_is_not_an_error() -> None:
    quality = event_quality([0.0, 1.0], [0, 1], [0, 0])
    assert quality.recall == 0
    assert quality.f1 == 0
    assert np.isnan(quality.precision)
    assert np.isnan(quality.median_delay)
    with pytest.raises(ValueError, match="one length"):
        event_quality([0.0], [0, 1], [0, 0])


def test_f1_is_undefined_only_where_nothing_happened_and_nothing_was_told() -> None:
    assert np.isnan(event_quality([0.0, 1.0], [0, 0], [0, 0]).f1)
    assert event_quality([0.0, 1.0], [0, 0], [0, 1]).f1 == 0


def test_each_key_has_events_and_days_of_its_own() -> None:
    """Two machines whose rows alternate: one has one long event, with one alert in it; the other has nothing."""
    times = np.repeat(np.arange(20.0) * 3600, 2)
    keys = np.tile(["a", "b"], 20)
    labels = (keys == "a") & (times >= 5 * 3600) & (times < 15 * 3600)
    alerts = (keys == "a") & (times >= 6 * 3600) & (times < 8 * 3600)
    found = event_quality(times, labels, alerts, keys)
    assert (found.events, found.found, found.episodes, found.false_alarms) == (1, 1, 1, 0)
    assert found.median_delay == 3600.0


def test_vus_pr_is_what_its_definition_says() -> None:
    for labels, scores in _examples():
        for window, thresholds in ((0, 250), (7, 20), (24, 30)):
            if len(labels) < 60:
                wanted = _plain_vus_pr(labels, scores, window, thresholds)
                found = vus_pr(labels, scores, window=window, thresholds=thresholds)
                assert found == pytest.approx(wanted, abs=1e-12)
    assert np.isnan(vus_pr([0, 0], [1.0, 2.0]))
    with pytest.raises(ValueError, match="one length"):
        vus_pr([0, 1], [1.0])


def test_vus_pr_is_the_outside_judge_s() -> None:
    """Where the judge is at hand, beside the project; its definition is written out above for where it is not."""
    path = Path(__file__).resolve().parents[3] / "shared" / "judge" / "score.py"
    if not path.exists():
        assert vus_pr([0, 1, 1, 0], [0.0, 1.0, 1.0, 0.0], window=0) == 1.0
        return
    spec = importlib.util.spec_from_file_location("judge", path)
    assert spec is not None
    assert spec.loader is not None
    judge = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(judge)
    for labels, scores in _examples():
        assert vus_pr(labels, scores) == pytest.approx(judge.vus_pr(labels, scores), abs=1e-12)


def _examples() -> list[tuple[NDArray[np.bool_], NDArray[np.float64]]]:
    rng = np.random.default_rng(4)
    found = []
    for n in (2, 9, 40, 55, 300, 2000):
        for digits in (0, 6):
            labels = np.zeros(n, np.bool_)
            for start in rng.integers(0, n, 4):
                labels[start : start + int(rng.integers(1, 12))] = True
            found.append((labels, np.round(rng.normal(size=n) + 2.0 * labels, digits).astype(np.float64)))
    return found


def _plain_vus_pr(labels: NDArray[np.bool_], scores: NDArray[np.float64], window: int, count: int) -> float:
    """Row by row and threshold by threshold."""
    n, spans = len(labels), [(int(s), int(e) - 1) for s, e in events(labels)]
    ranked = sorted(scores.tolist(), reverse=True)
    levels = [ranked[int(i)] for i in np.linspace(0, n - 1, count)]
    areas = []
    for width in range(window + 1):
        half, area, recall_before = width // 2, 0.0, 0.0
        weight = [float(label) for label in labels]
        for start, end in spans:
            for row in range(n):
                away = max(start - row, row - end)
                if 0 < away <= half:
                    weight[row] = min(1.0, weight[row] + (1 - away / width) ** 0.5)
        regions = [[max(spans[0][0] - half, 0), 0]]
        for (_, end), (start, _) in itertools.pairwise(spans):
            if end + half < start - half:
                regions[-1][1] = end + half
                regions.append([start - half, 0])
        regions[-1][1] = min(spans[-1][1] + half, n - 1)
        for level in levels:
            rows = [row for row in range(n) if scores[row] >= level]
            hits = sum(weight[row] for row in rows)
            size = sum(labels) + sum(weight[row] for row in rows if not labels[row])
            reached = [any(first <= row <= last for row in rows) for first, last in regions]
            recall = min(hits / ((sum(labels) + size) / 2), 1.0) * sum(reached) / len(reached)
            area += (recall - recall_before) * (hits / len(rows))
            recall_before = recall
        areas.append(area)
    return sum(areas) / len(areas)

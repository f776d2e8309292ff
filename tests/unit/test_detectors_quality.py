"""Measures of quality, on examples worked out by hand and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from detectors.quality import event_quality, events, roc_auc


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


def test_each_key_has_events_and_days_of_its_own() -> None:
    """Two machines whose rows alternate: one has one long event, with one alert in it; the other has nothing."""
    times = np.repeat(np.arange(20.0) * 3600, 2)
    keys = np.tile(["a", "b"], 20)
    labels = (keys == "a") & (times >= 5 * 3600) & (times < 15 * 3600)
    alerts = (keys == "a") & (times >= 6 * 3600) & (times < 8 * 3600)
    found = event_quality(times, labels, alerts, keys)
    assert (found.events, found.found, found.episodes, found.false_alarms) == (1, 1, 1, 0)
    assert found.median_delay == 3600.0

"""A budget is of alerts: whatever the scores are made of, and however many readings the rule asks for, it holds."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.budget import BUDGETS, KINDS, RULES, realised
from detectors.base import Floats
from detectors.calibration import Calibration
from detectors.openings import OpeningRule, Openings
from stream.alerting import AlertTable, EventKind, Place
from stream.rules import AlertRule

BOUNDED = {"uniform"}
"""Full to a bound that calibration cannot see coming: alarms are too rare, never too many."""


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_alerts_open_as_often_as_budgeted(kind: str, rule: str) -> None:
    for name in ("1 in 300", "1 in 1,000"):
        ratio = realised(kind, RULES[rule], BUDGETS[name], readings=25_000)
        assert (0.2 if kind in BOUNDED else 0.5) < ratio < 2.0, name


@pytest.mark.parametrize("kind", ["normal", "t(3)", "beta(2, 5)", "AR(1) 0.9, exponential"])
def test_rare_alerts_too(kind: str) -> None:
    assert 0.4 < realised(kind, RULES["1"], BUDGETS["1 in 10,000"], readings=100_000) < 2.5


@pytest.mark.parametrize("kind", ["normal", "t(3)"])
def test_conformal_calibration_keeps_a_budget_within_and_beyond_its_history(kind: str) -> None:
    conformal = Calibration(method="conformal")
    for name, readings in (("1 in 300", 25_000), ("1 in 1,000", 25_000), ("1 in 10,000", 100_000)):
        ratio = realised(kind, RULES["1"], BUDGETS[name], calibration=conformal, readings=readings)
        assert 0.4 < ratio < 2.5, name


def exponential(n: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).exponential(1 / np.log(10), n)


def thresholds(rule: OpeningRule, scores: Floats, wanted: float = 3.0, learn: object = None) -> Floats:
    n = len(scores)
    mask = None if learn is None else np.asarray(learn)
    return Openings(rule).thresholds(
        np.zeros(n, np.int64), scores, np.arange(n, dtype=np.float64), np.full(n, wanted), mask
    )


def test_independent_readings_of_which_one_is_enough_keep_the_threshold_of_their_probability() -> None:
    found = thresholds(OpeningRule(close_after=0), exponential(50_000))
    assert found[0] == 3.0
    assert abs(found[-1] - 3.0) < 0.15


def test_threshold_never_depends_on_the_reading_it_is_for_nor_on_later_ones() -> None:
    scores = exponential(5000)
    other = np.concatenate([scores[:3000], np.full(2000, 9.0)])
    rule = OpeningRule(hold=2, within=3)
    np.testing.assert_array_equal(thresholds(rule, scores)[:3001], thresholds(rule, other)[:3001])


def test_some_faults_far_out_hardly_move_it() -> None:
    scores = exponential(50_000)
    faulty = scores.copy()
    for start in range(5000, 50_000, 5000):
        faulty[start : start + 20] = 25.0
    assert thresholds(OpeningRule(), faulty)[-1] < thresholds(OpeningRule(), scores)[-1] + 0.4


def test_what_is_not_learned_does_not_count() -> None:
    scores = exponential(6000)
    loud = np.insert(scores, 3000, np.full(500, 20.0))
    learn = np.ones(len(loud), np.bool_)
    learn[3000:3500] = False
    found = thresholds(OpeningRule(), loud, learn=learn)
    np.testing.assert_array_equal(np.delete(found, slice(3000, 3500)), thresholds(OpeningRule(), scores))


@pytest.mark.parametrize(
    "rule",
    [
        AlertRule(),
        AlertRule(hold=2, within=4, close_after=1, hysteresis=0.3),
        AlertRule(close_after=0, cooldown_readings=7),
        AlertRule(close_after=2, cooldown=9.0),
    ],
)
def test_each_level_opens_as_the_rule_itself_would_there(rule: AlertRule) -> None:
    n, scores = 4000, exponential(4000)
    times, slots = np.arange(n, dtype=np.float64), np.zeros(n, np.int64)
    openings = Openings(rule.openings)
    openings.thresholds(slots, scores, times, np.full(n, 3.0))
    counts = openings.snapshot(np.array([0]))["counts"][0]
    numbers = np.arange(1, n + 1)
    place = Place(numbers, np.zeros(n, np.int64), numbers, np.zeros(n, np.bool_))
    for j in (2, 9, 14, 19):
        limits = np.full(n, 0.1 * (j + 1))
        events = AlertTable(rule).decide(limits, slots, times, scores, place)
        assert counts[j] == sum(event.kind is EventKind.OPENED for event in events)


def test_splits_keys_and_restores_change_nothing() -> None:
    rng = np.random.default_rng(5)
    slots, scores = rng.integers(0, 3, 3000), exponential(3000, 5)
    times, wanted, learn = np.arange(3000.0), rng.uniform(1.0, 4.0, 3000), rng.random(3000) < 0.9
    for rule in (
        OpeningRule(hold=2, within=3),
        OpeningRule(hold=3, within=3, at_once=1.5),
        OpeningRule(cooldown=5.0, cooldown_readings=2, close_after=0),
    ):
        whole = Openings(rule).thresholds(slots, scores, times, wanted, learn)
        model, parts = Openings(rule), []
        for cut in np.array_split(np.arange(3000), 17):
            parts.append(model.thresholds(slots[cut], scores[cut], times[cut], wanted[cut], learn[cut]))
            rows = model.snapshot(np.arange(3))
            model = Openings(rule)
            model.restore(np.arange(3), rows)
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_odd_state_is_refused() -> None:
    openings = Openings(OpeningRule())
    rows = dict(openings.snapshot(np.array([0])))
    with pytest.raises(ValueError, match="no level"):
        openings.restore(np.array([0]), {**rows, "top": np.array([999])})

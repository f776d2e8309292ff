"""Adaptive z: unbiased when young, robust to faults, adapting to what stays, sane on flat lines."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.base import Floats
from detectors.statistical import AdaptiveZ, AdaptiveZModel


def _feed(model: AdaptiveZModel, values: Floats, slot: int = 0) -> Floats:
    values = values.reshape(len(values), -1)
    return model.score_learn(np.full(len(values), slot), values, np.arange(len(values), dtype=np.float64))


def test_mean_and_variance_of_a_short_warm_up_are_the_plain_ones() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, 40)
    model = AdaptiveZ(warmup=50).build(("x",))
    _feed(model, values)
    state = model.snapshot(np.array([0]))
    assert state["mean"][0, 0] == pytest.approx(values.mean())
    assert state["variance"][0, 0] == pytest.approx(values.var())


def test_mean_and_variance_become_exponentially_weighted() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, 5000)
    model = AdaptiveZ(half_life=100, clip=1e9).build(("x",))
    _feed(model, values)
    weights = 0.5 ** (np.arange(5000)[::-1] / 100)
    mean = np.average(values, weights=weights)
    state = model.snapshot(np.array([0]))
    assert state["mean"][0, 0] == pytest.approx(mean)
    assert state["variance"][0, 0] == pytest.approx(
        np.average((values - mean) ** 2, weights=weights), rel=1e-6
    )


def test_scores_are_zero_while_warming_up_and_count_per_sensor() -> None:
    values = np.random.default_rng(0).normal(size=(100, 2))
    values[:60, 1] = np.nan
    model = AdaptiveZ(warmup=30).build(("x", "late"))
    scores = _feed(model, values)
    assert not scores[:30].any()
    assert scores[30:].all()
    shares, expected = model.contributions(np.arange(100))
    assert not shares[:90, 1].any()
    assert np.isnan(expected[:61, 1]).all()
    assert shares[90:, 1].all()


def test_score_is_the_largest_deviation_and_its_sensor_has_the_share() -> None:
    values = np.random.default_rng(0).normal(size=(300, 3))
    model = AdaptiveZ().build(("a", "b", "c"))
    _feed(model, values)
    score = _feed(model, np.array([[0.0, -10.0, 0.0]]))
    shares, expected = model.contributions(np.array([0]))
    assert 8 < score[0] < 12
    assert shares[0].argmin() == 1
    assert shares[0, 1] < -0.95
    assert abs(expected[0, 1]) < 0.3


def test_a_fault_does_not_spoil_the_state_but_a_lasting_level_is_learned() -> None:
    rng = np.random.default_rng(0)
    model = AdaptiveZ(half_life=100).build(("x",))
    _feed(model, rng.normal(size=500))
    fault = _feed(model, np.full(3, 1e9))
    assert (fault > 1e3).all()
    normal = _feed(model, rng.normal(size=200))
    assert normal.max() < 6
    shifted = _feed(model, 20.0 + rng.normal(size=2000))
    assert shifted[0] > 6
    assert shifted[1000:].max() < 6


def test_a_flat_sensor_that_moves_scores_once_and_finitely_and_then_has_a_scale() -> None:
    model = AdaptiveZ().build(("valve",))
    assert not _feed(model, np.zeros(1000)).any()
    first = _feed(model, np.ones(1))
    assert 6 < first[0] < 18
    assert _feed(model, np.ones(50)).max() < 6
    assert _feed(model, np.full(1, 9.0))[0] > 6


def test_the_floor_is_the_least_sigma() -> None:
    model = AdaptiveZ(floor=1.0).build(("valve",))
    _feed(model, np.zeros(1000))
    assert _feed(model, np.ones(1))[0] < 1.01


def test_a_missing_sensor_is_neither_scored_nor_learned() -> None:
    model = AdaptiveZ(warmup=10).build(("x", "y"))
    rng = np.random.default_rng(0)
    _feed(model, rng.normal(size=(100, 2)))
    before = model.snapshot(np.array([0]))
    scores = _feed(model, np.array([[np.nan, 50.0], [np.inf, np.nan]]))
    after = model.snapshot(np.array([0]))
    assert scores[0] > 20
    assert scores[1] == 0
    assert after["mean"][0, 0] == before["mean"][0, 0]
    assert after["count"][0].tolist() == [100, 101]


def test_the_threshold_is_six_sigmas_unless_stated() -> None:
    assert AdaptiveZ().build(("x",)).threshold == 6.0
    assert AdaptiveZ(threshold=4.0).build(("x",)).threshold == 4.0


def test_a_negative_slot_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        _feed(AdaptiveZ().build(("x",)), np.zeros(3), slot=-1)


def test_state_that_is_not_finite_is_refused() -> None:
    model = AdaptiveZ().build(("x",))
    state = dict(model.snapshot(np.array([0])))
    state["mean"] = np.full((1, 1), np.nan)
    with pytest.raises(ValueError, match="not finite"):
        model.restore(np.array([0]), state)

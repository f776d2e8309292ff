"""Robust z: the window's median and MAD, unmoved by outliers, sane on flat lines and on sensors with few values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.base import Floats, Mask
from detectors.medians import RobustZ, RobustZModel
from detectors.ordered import renew


def _feed(model: RobustZModel, values: Floats, learn: Mask | None = None) -> Floats:
    values = values.reshape(len(values), -1)
    return model.score_learn(
        np.zeros(len(values), np.int64), values, np.arange(len(values), dtype=np.float64), learn
    )


def _plain(values: Floats, window: int, warmup: int) -> Floats:
    """The definition, from a list of the last readings."""
    scores = []
    for i, value in enumerate(values):
        past = values[max(i - window, 0) : i]
        if len(past) < warmup:
            scores.append(0.0)
            continue
        median = np.median(past)
        sigma = 1.4826 * np.median(np.abs(past - median))
        if sigma <= 1e-6 * abs(median):
            squares = np.append(past, value) - median
            sigma = np.sqrt(np.mean(squares**2) + (1e-6 * median) ** 2)
        scores.append(abs(value - median) / sigma if sigma > 0 else 0.0)
    return np.array(scores)


@pytest.mark.parametrize(("window", "warmup"), [(5, 5), (20, 8), (101, 50)])
@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_scores_are_those_of_the_definition(window: int, warmup: int, decimals: int) -> None:
    values = np.random.default_rng(3).normal(0.0, 0.7, 600).round(decimals)
    values[200:260] = values[200]
    scores = _feed(RobustZ(window=window, warmup=warmup).build(("x",)), values)
    np.testing.assert_allclose(scores, np.minimum(_plain(values, window, warmup), 1e6), rtol=1e-9, atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(values=st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=40), length=st.integers(1, 9))
def test_the_ordered_window_is_the_sorted_window(values: list[float], length: int) -> None:
    ring, ordered = np.zeros(length), np.zeros(length)
    for count, value in enumerate(values):
        renew(ring, ordered, count, value)
        kept = min(count + 1, length)
        assert ordered[:kept].tolist() == sorted(values[max(count + 1 - length, 0) : count + 1])
        assert sorted(ring[:kept]) == ordered[:kept].tolist()


def test_a_third_of_outliers_in_warm_up_and_window_changes_little() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=1000)
    values[rng.random(1000) < 0.3] += 1e4
    scores = _feed(RobustZ().build(("x",)), values)
    normal = values < 1e3
    assert scores[50:][~normal[50:]].min() > 1e3
    assert (scores[50:][normal[50:]] > 6).mean() < 0.005


def test_a_level_that_stays_is_normal_once_it_fills_half_of_the_window() -> None:
    values = np.random.default_rng(0).normal(size=600)
    values[300:] += 20.0
    scores = _feed(RobustZ().build(("x",)), values)
    assert (scores[300:340] > 6).all()
    assert (scores[400:] < 6).all()


def test_a_flat_sensor_that_moves_scores_less_each_time_and_then_has_a_scale() -> None:
    model = RobustZ().build(("valve",))
    assert not _feed(model, np.full(500, 3.0)).any()
    moves = _feed(model, np.full(10, 4.0))
    assert moves[0] == pytest.approx(np.sqrt(101), rel=1e-6)
    assert (np.diff(moves) < 0).all()
    assert moves[3] < 6


def test_the_floor_is_the_least_sigma() -> None:
    model = RobustZ(floor=1.0).build(("valve",))
    _feed(model, np.zeros(200))
    assert _feed(model, np.ones(1))[0] < 1.01


def test_what_is_held_back_leaves_the_window_as_it_is() -> None:
    model = RobustZ(warmup=10).build(("x",))
    _feed(model, np.random.default_rng(0).normal(size=200))
    before = model.snapshot(np.array([0]))
    assert (_feed(model, np.full(300, 50.0), np.zeros(300, np.bool_)) > 20).all()
    after = model.snapshot(np.array([0]))
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_the_sensor_that_is_off_has_the_share_and_its_median_is_expected() -> None:
    rng = np.random.default_rng(0)
    model = RobustZ().build(("a", "b"))
    values = rng.normal((0.0, 5.0), 1.0, (101, 2))
    values[100, 1] = -5.0
    _feed(model, values)
    shares, expected = model.contributions(np.array([100]))
    assert shares[0, 1] < -0.9
    assert expected[0, 1] == np.median(values[:100, 1])


def test_settings_and_state_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit into a window of 20"):
        RobustZ(window=20)
    model = RobustZ().build(("x",))
    state = dict(model.snapshot(np.array([0])))
    with pytest.raises(ValueError, match="negative"):
        model.restore(np.array([0]), {**state, "count": np.full((1, 1), -1)})
    assert model.threshold == 6.0
    assert RobustZ(threshold=3.5).build(("x",)).threshold == 3.5

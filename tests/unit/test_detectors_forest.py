"""Half-space trees: river's scores to the last bit, reasons from the same walk."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from river import anomaly, preprocessing

from detectors.base import Floats
from detectors.forest import HalfSpaceTrees

SENSORS = ("pressure", "flow", "a", "current")


def _values(seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(1200, 4)) * [1, 5, 0.1, 0] + [0, 20, 3, 7]
    values[rng.integers(100, 1200, 20)] *= 3
    return values


def _river_scores(detector: Any, values: Floats) -> Floats:
    scores = []
    for row in values:
        features = dict(zip(SENSORS, row.tolist(), strict=True))
        scores.append(float(detector.score_one(features)))
        detector.learn_one(features)
    return np.array(scores)


@pytest.mark.parametrize("seed", [42, 7])
def test_scores_equal_rivers_min_max_pipeline_bit_for_bit(seed: int) -> None:
    values = _values(seed)
    theirs = preprocessing.MinMaxScaler() | anomaly.HalfSpaceTrees(
        n_trees=10, height=6, window_size=100, seed=seed
    )
    model = HalfSpaceTrees(n_trees=10, height=6, window_size=100, seed=seed).build(SENSORS)
    scores = model.score_learn(np.zeros(1200, np.int64), values, np.arange(1200.0))
    assert np.array_equal(scores, _river_scores(theirs, values))
    assert scores.max() > 0.5


def test_scores_equal_rivers_own_limits_bit_for_bit() -> None:
    values = _values(1)
    limits = {"pressure": (-4.0, 4.0), "flow": (0.0, 60.0), "current": (0.0, 30.0)}
    theirs = anomaly.HalfSpaceTrees(n_trees=7, height=8, window_size=50, seed=3, limits=limits)
    recipe = HalfSpaceTrees(n_trees=7, height=8, window_size=50, seed=3, scale="none", limits=limits)
    scores = recipe.build(SENSORS).score_learn(np.zeros(1200, np.int64), values, np.arange(1200.0))
    assert np.array_equal(scores, _river_scores(theirs, values))


@pytest.mark.parametrize("gone", [0, 1000])
def test_a_sensor_that_was_missing_for_windows_is_as_normal_as_before_when_it_is_back(gone: int) -> None:
    """River's rule lets the side visited more often take all mass: half of normal was an anomaly then."""
    values = np.random.default_rng(0).normal(size=(5000, 3))
    holed = values.copy()
    holed[gone:4000, 0] = np.nan
    whole, back = (
        HalfSpaceTrees().build(("a", "b", "c")).score_learn(np.zeros(5000, np.int64), it, np.arange(5000.0))
        for it in (values, holed)
    )
    first = slice(4000, 4250)
    if gone:
        assert abs(np.quantile(back[first], [0.5, 0.9]) - np.quantile(whole[first], [0.5, 0.9])).max() < 0.03
    assert np.quantile(back[4300:], 0.9) < np.quantile(whole[4300:], 0.9) + 0.03


def test_the_share_points_at_the_sensor_that_left_its_range() -> None:
    rng = np.random.default_rng(0)
    model = HalfSpaceTrees().build(SENSORS)
    values = rng.normal(size=(1000, 4))
    model.score_learn(np.zeros(1000, np.int64), values, np.arange(1000.0))
    odd = np.array([[0.0, -9.0, 0.0, 0.0]])
    score = model.score_learn(np.zeros(1, np.int64), odd, np.zeros(1))
    shares, expected = model.contributions(np.array([0]))
    assert score[0] > 0.5
    assert shares[0].argmin() == 1
    assert abs(expected[0]).max() < 0.5


@pytest.mark.parametrize("limits", [{"a": [1, 1]}, {"a": [2, 1]}, {"a": [0, float("inf")]}])
def test_limits_that_are_no_range_are_refused(limits: dict[str, list[float]]) -> None:
    with pytest.raises(msgspec.ValidationError, match="lower limit"):
        msgspec.convert({"limits": limits}, HalfSpaceTrees)


def test_limits_of_an_unknown_sensor_are_refused() -> None:
    with pytest.raises(ValueError, match='"speed" is not a sensor'):
        HalfSpaceTrees(limits={"speed": (0.0, 1.0)}).build(SENSORS)


def test_a_snapshot_holds_leaves_only_and_odd_masses_are_refused() -> None:
    recipe = HalfSpaceTrees(n_trees=3, height=4, window_size=50)
    model = recipe.build(SENSORS)
    model.score_learn(np.zeros(120, np.int64), _values(0)[:120], np.arange(120.0))
    state = dict(model.snapshot(np.array([0, 1])))
    assert state["reference"].shape == (2, 3, 16)
    assert state["reference"].dtype == np.uint16
    assert state["reference"][0].sum(axis=1).tolist() == [50] * 3
    for name, index in (
        ("reference", (0, 0, 0)),
        ("latest", (1, 2, 3)),
        ("counter", (0, 0)),
        ("counter", (1, 1)),
    ):
        odd = {**state, name: state[name].copy()}
        odd[name][index] += 1
        with pytest.raises(ValueError, match="do not add up"):
            recipe.build(SENSORS).restore(np.array([0, 1]), odd)

"""LODA online: histograms that agree with numpy's, forgetting, missing sensors, reasons, Shuttle over four seeds."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.base import Floats
from detectors.datasets import DATASETS
from detectors.projections import LODA, LODAModel
from detectors.quality import roc_auc


def _feed(model: LODAModel, values: Floats) -> Floats:
    values = np.asarray(values, np.float64).reshape(len(values), -1)
    return model.score_learn(
        np.zeros(len(values), np.int64), values, np.arange(len(values), dtype=np.float64)
    )


def test_the_score_of_one_sensor_is_that_of_a_plain_histogram() -> None:
    values = np.random.default_rng(0).normal(size=4000)
    model = LODA(n_projections=1, half_life=1e12, warmup=1000, held=1e9).build(("x",))
    _feed(model, values)
    state = model.snapshot(np.array([0]))
    counts = state["bins"][0, 0]
    assert counts.sum() == pytest.approx(3500, rel=1e-6)  # the first 500 only set the scale
    score = _feed(model, np.array([2.5]))[0]
    z = (2.5 - state["mean"][0, 0]) / np.sqrt(state["variance"][0, 0])
    edges = np.sinh(np.linspace(-5.3, 5.3, 47))
    standard = (values[500:] - state["mean"][0, 0]) / np.sqrt(state["variance"][0, 0])
    plain, _ = np.histogram(standard, edges)
    own = plain[np.searchsorted(edges, z) - 1], plain[::-1][np.searchsorted(edges, z) - 1]
    wanted = [np.log((plain.max() + 0.5) / (count + 0.5)) for count in own]
    assert min(abs(score - each) for each in wanted) < 0.35
    assert score > 2


def test_forgetting_keeps_the_histograms_bounded_and_follows_a_new_normal() -> None:
    rng = np.random.default_rng(0)
    model = LODA(half_life=200, patience=50).build(("x", "y", "z"))
    _feed(model, rng.normal(size=(20_000, 3)))
    state = model.snapshot(np.array([0]))
    assert 1 <= state["weight"][0] <= 1.01e6
    assert state["bins"][0].sum(axis=1) / state["weight"][0] == pytest.approx(np.full(40, 289.0), rel=0.02)
    moved = _feed(model, 8.0 + rng.normal(size=(5000, 3)))
    assert moved[:40].min() > 2
    assert np.median(moved[-500:]) < 1


def test_rare_readings_score_high_and_their_sensor_has_the_share() -> None:
    rng = np.random.default_rng(0)
    names = tuple("abcdefghi")
    model = LODA(n_projections=100).build(names)
    scores = _feed(model, rng.normal(size=(3000, 9)))
    far = np.zeros((1, 9))
    far[0, 4] = -30.0
    score = _feed(model, far)[0]
    assert score > np.quantile(scores, 0.999)
    shares, expected = model.contributions(np.array([0]))
    assert shares[0].argmin() == 4
    assert shares[0, 4] < -0.5
    assert abs(expected[0, 4]) < 0.2


def test_a_projection_without_its_sensor_is_left_out() -> None:
    rng = np.random.default_rng(0)
    model = LODA().build(("x", "y", "z"))
    _feed(model, rng.normal(size=(1000, 3)))
    blind = _feed(model, np.array([[np.nan, 20.0, 0.0], [np.nan, 0.0, 0.0], [np.nan, np.nan, np.nan]]))
    assert blind[0] > 2 > blind[1]
    assert blind[2] == 0


def test_state_that_does_not_add_up_is_refused() -> None:
    model = LODA().build(("x",))
    state = dict(model.snapshot(np.array([0])))
    for name, value in (("weight", np.zeros(1)), ("bins", -np.ones((1, 40, 48), np.float32))):
        with pytest.raises(ValueError, match="add up"):
            model.restore(np.array([0]), {**state, name: value})


@pytest.mark.parametrize("seed", range(4))
def test_shuttle_is_told_apart_online_at_the_default_settings(seed: int) -> None:
    data = DATASETS["shuttle"]()
    scores = _feed(LODA(seed=seed).build(tuple(data.frame.columns)), data.frame.to_numpy())
    assert roc_auc(data.labels, scores) > 0.98

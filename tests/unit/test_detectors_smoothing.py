"""Trained exponential smoothing: rates that minimise forecast errors, one-step forecasts, a past that is recent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from detectors import registry
from detectors.base import Floats, Weights
from detectors.kernels import floats
from detectors.smoothing import ExponentialSmoothing, ExponentialSmoothingModel

KEY = np.array([0])


def _wandering(n: int, alpha: float, seed: int = 0) -> Floats:
    """Readings whose best forecast is exponential smoothing at this rate (Muth 1960)."""
    noise = np.random.default_rng(seed).normal(size=n)
    return np.asarray(50.0 + alpha * np.concatenate([[0.0], np.cumsum(noise[:-1])]) + noise)


def _feed(model: ExponentialSmoothingModel, values: NDArray[Any]) -> Floats:
    values = floats(values.reshape(len(values), -1))
    return model.score_learn(np.zeros(len(values), np.int64), values, np.arange(len(values), dtype=float))


def _squared_errors(values: Floats, alpha: float, beta: float, damping: float) -> float:
    level, trend, total = float(np.mean(values[:10])), 0.0, 0.0
    for value in values.tolist():
        forecast = level + damping * trend
        total += (value - forecast) ** 2
        before, level = level, alpha * value + (1 - alpha) * forecast
        trend = beta * (level - before) + (1 - beta) * damping * trend
    return total


def _trained(values: Floats, **settings: Any) -> tuple[Weights, ExponentialSmoothingModel]:
    weights = ExponentialSmoothing(**settings).fit(pd.DataFrame(values))
    return weights, ExponentialSmoothing.load(weights)


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.9])
def test_the_rate_of_the_process_is_recovered(alpha: float) -> None:
    weights, _ = _trained(_wandering(5000, alpha))
    assert weights.arrays["rates"][0, 0] == pytest.approx(alpha, abs=0.05)
    assert weights.arrays["sigma"][0] == pytest.approx(1.0, abs=0.05)


def test_no_other_rates_forecast_the_training_data_better() -> None:
    values = np.cumsum(_wandering(500, 0.4) - 50.0) + np.random.default_rng(1).normal(0.0, 5.0, 500)
    weights, _ = _trained(values)
    alpha, beta = weights.arrays["rates"][0]
    found = _squared_errors(values, alpha, beta, 0.98)
    assert 500 * weights.arrays["sigma"][0] ** 2 == pytest.approx(found, rel=1e-6)
    grid = [
        _squared_errors(values, a, b, 0.98) for a in np.linspace(0.01, 1, 25) for b in np.linspace(0, 1, 25)
    ]
    assert found <= min(grid) * (1 + 1e-6)


def test_scores_are_the_forecast_errors_of_the_recursion_in_sigmas() -> None:
    values = _wandering(700, 0.3)
    weights, model = _trained(values[:600], clip=1e9)
    scores = _feed(model, values[600:])
    alpha, beta = weights.arrays["rates"][0]
    level, trend = weights.arrays["level"][0], weights.arrays["trend"][0]
    for value, score in zip(values[600:].tolist(), scores.tolist(), strict=True):
        forecast = level + 0.98 * trend
        assert score == pytest.approx(abs(value - forecast) / weights.arrays["sigma"][0], rel=1e-9)
        before, level = level, alpha * value + (1 - alpha) * forecast
        trend = beta * (level - before) + (1 - beta) * 0.98 * trend


def test_the_season_is_found_and_goes_on_where_the_training_data_ended() -> None:
    pattern = np.array([0.0, 4.0, 9.0, 4.0, 0.0, -8.0, -9.0])
    rng = np.random.default_rng(0)
    values = pattern[np.arange(1000) % 7] + 0.02 * np.arange(1000) + rng.normal(0.0, 0.5, 1000)
    weights, model = _trained(values[:702], season=7)
    np.testing.assert_allclose(weights.arrays["season"][0], pattern - pattern.mean(), atol=0.2)
    scores = _feed(model, values[702:])
    assert (scores >= model.threshold).mean() < 0.01
    plain, _ = _trained(values[:702])
    assert weights.arrays["sigma"][0] < 0.6 < 2.0 < plain.arrays["sigma"][0]
    moved = ExponentialSmoothing.load(weights)
    moved_scores = _feed(moved, values[704:])  # two readings were lost
    assert (moved_scores >= moved.threshold).mean() > 0.3


def test_an_even_season_is_found_too() -> None:
    pattern = np.array([3.0, -1.0, -5.0, 3.0])
    weights, _ = _trained(
        pattern[np.arange(400) % 4] + np.random.default_rng(0).normal(0.0, 0.1, 400), season=4
    )
    np.testing.assert_allclose(weights.arrays["season"][0], pattern, atol=0.05)


def test_a_spike_does_not_throw_the_level_and_a_jump_is_the_recent_past_after_patience() -> None:
    weights, model = _trained(_wandering(600, 0.3))
    level = weights.arrays["level"][0]
    spike = _feed(model, np.array([level + 1e6, level]))
    assert spike[0] > 1e5
    assert spike[1] < 2.0
    jump = _feed(model, np.full(30, level + 1000.0))
    assert (jump[:10] > 100).all()
    assert (jump[10:] < 3).all()


def test_readings_to_both_sides_are_no_jump() -> None:
    weights, model = _trained(_wandering(600, 0.3), patience=3)
    level = weights.arrays["level"][0]
    scores = _feed(model, level + np.array([1e3, 1e3, -1e3, 1e3, 1e3, 0.0, 1e3, 1e3, 0.0]))
    assert scores[[5, 8]].max() < 4
    assert scores[[0, 1, 2, 3, 4, 6, 7]].min() > 900


def test_missing_readings_are_bridged_and_do_not_break_a_run() -> None:
    weights, model = _trained(_wandering(600, 0.3), patience=3)
    level = weights.arrays["level"][0] + 1000.0
    scores = _feed(model, np.array([level, np.nan, level, np.nan, level, level]))
    assert scores[[1, 3]].tolist() == [0.0, 0.0]
    assert scores[4] > 100 > scores[5]
    expected = model.contributions(np.array([1])).expected
    assert np.isfinite(expected).all()


def test_keys_have_a_past_each_and_all_begin_at_the_end_of_the_training_data() -> None:
    weights, model = _trained(_wandering(600, 0.3))
    level = weights.arrays["level"][0] + weights.arrays["trend"][0] * 0.98
    slots = np.array([0, 1, 0, 1])
    values = np.array([[level], [level + 1.0], [level], [level + 1.0]])
    scores = model.score_learn(slots, values, np.zeros(4))
    assert scores[0] == pytest.approx(0.0, abs=1e-9)
    assert scores[3] < scores[1]
    assert model.snapshot(np.array([0, 1, 2]))["count"].tolist() == [2, 2, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": np.zeros(1)}, "sigma"),
        ({"rates": np.array([[1.5, 0.0]])}, "rates"),
        ({"rates": np.array([[np.nan, 0.0]])}, "finite"),
        ({"phase": np.array([7.0])}, "phase"),
        ({"phase": np.array([-1.0])}, "phase"),
        ({"season": np.zeros((2, 7))}, "season"),
        ({"season": np.zeros((1, 0))}, "phase"),
        ({"level": np.zeros(2)}, "level"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: dict[str, NDArray[Any]], message: str) -> None:
    weights, _ = _trained(_wandering(100, 0.3), season=7)
    with pytest.raises(ValueError, match=message):
        registry.load(replace(weights, arrays={**weights.arrays, **change}))
    with pytest.raises(ValueError, match="settings"):
        registry.load(replace(weights, settings={"patience": "long"}))


def test_training_needs_three_seasons() -> None:
    with pytest.raises(ValueError, match="at least 72"):
        ExponentialSmoothing(season=24).fit(pd.DataFrame(_wandering(71, 0.3)))

"""Autoregression: the least squares it claims to solve, the likelihood it claims to score by, and safety at rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.signal import lfilter

from detectors.autoregressive import Autoregressive, AutoregressiveModel
from detectors.base import Floats, Mask
from detectors.kernels import floats

KEY = np.array([0])


def _feed(model: AutoregressiveModel, values: NDArray[Any], learn: Mask | None = None) -> Floats:
    values = floats(values.reshape(len(values), -1))
    return model.score_learn(
        np.zeros(len(values), np.int64), values, np.arange(len(values), dtype=float), learn
    )


def _process(n: int, *coefficients: float, seed: int = 0) -> Floats:
    noise = np.random.default_rng(seed).normal(size=n + 200)
    return np.asarray(lfilter([1.0], [1.0, *(-c for c in coefficients)], noise))[200:]


def _least_squares(values: Floats, order: int, half_life: float) -> tuple[Floats, Floats]:
    """Coefficients, and the standardised forecasts before each reading, by normal equations solved anew each time."""
    kept = 0.5 ** (1.0 / half_life)
    mean, scatter = 0.0, 0.0
    information, moment = np.eye(order) / 100.0, np.zeros(order)
    forecasts = np.full(len(values), np.nan)
    for t, value in enumerate(values.tolist()):
        if t >= max(order, 10):
            inputs = (values[t - order : t][::-1] - mean) / np.sqrt(scatter)
            coefficients = np.linalg.solve(information, moment)
            forecasts[t] = mean + np.sqrt(scatter) * float(coefficients @ inputs)
            information = kept * (information + np.outer(inputs, inputs))
            moment = kept * (moment + inputs * (value - mean) / np.sqrt(scatter))
        weight = max(1 / (t + 1), 1 - kept)
        away = value - mean
        mean += weight * away
        scatter = (1 - weight) * (scatter + weight * away**2)
    return np.asarray(np.linalg.solve(information, moment), np.float64), forecasts


@pytest.mark.parametrize("order", [1, 2, 4])
def test_coefficients_and_forecasts_are_those_of_discounted_least_squares(order: int) -> None:
    values = 5.0 + _process(600, 0.6, -0.3)
    model = Autoregressive(order=order, half_life=100, clip=1e9).build(("x",))
    _feed(model, values)
    coefficients, forecasts = _least_squares(values, order, 100)
    np.testing.assert_allclose(model.snapshot(KEY)["coefficients"][0, 0], coefficients, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(
        model.contributions(np.arange(600)).expected[:, 0], forecasts, rtol=1e-6, atol=1e-9
    )


def test_the_process_that_made_the_readings_is_recovered() -> None:
    model = Autoregressive(order=2, half_life=5000).build(("x",))
    _feed(model, 100.0 + 7.0 * _process(20_000, 1.6, -0.8))
    state = model.snapshot(KEY)
    assert state["coefficients"][0, 0] == pytest.approx([1.6, -0.8], abs=0.03)
    assert np.sqrt(state["variance"][0, 0]) == pytest.approx(7.0, rel=0.05)


@pytest.mark.parametrize("warmed", [110, 5000])
def test_the_score_is_the_root_of_twice_the_log_likelihood_ratio_of_the_forecast(warmed: int) -> None:
    values = _process(warmed, 0.8)
    model = Autoregressive(order=2).build(("x",))
    _feed(model, values)
    state = {name: array[0, 0] for name, array in model.snapshot(KEY).items()}
    score = _feed(model, values[-1:] + 3.0)[0]
    expected = model.contributions(KEY).expected[0, 0]
    inputs = (values[-1:-3:-1] - state["mean"]) / np.sqrt(state["scatter"])
    width = 1.0 + inputs @ state["covariance"] @ inputs
    z = (values[-1] + 3.0 - expected) / np.sqrt(state["variance"] * width)
    freedom = min(int(state["seen"]), 1.0 / (1.0 - 0.5 ** (1 / 500)))
    ratio = stats.t.logpdf(0.0, freedom) - stats.t.logpdf(z, freedom)
    assert score == pytest.approx(np.sqrt(2.0 * ratio))
    assert score < abs(z)


def test_gaussian_noise_scores_as_often_as_gaussian_tails_say() -> None:
    for values in (_process(40_000, 1.6, -0.8), np.random.default_rng(3).normal(size=40_000)):
        scores = _feed(Autoregressive().build(("x",)), values)
        assert 0.7 < (scores >= 3).mean() / 0.0027 < 1.4
        assert not (scores >= 6).any()


def test_a_break_of_the_pattern_scores_within_the_range_of_the_readings() -> None:
    values = _process(3000, 1.6, -0.8)
    values[2500] = values[2499] - 9.0 * np.sign(values[2499])
    assert np.abs(values[2500]) < np.abs(values).max()
    scores = _feed(Autoregressive().build(("x",)), values)
    assert scores[2500] > 6
    assert scores[:2500].max() < 6
    assert scores[2506:].max() < 6


def test_a_sensor_at_rest_does_not_wind_the_covariance_up() -> None:
    values = np.concatenate([_process(2000, 0.8), np.full(20_000, 0.5), _process(2000, 0.8, seed=1)])
    model = Autoregressive(half_life=100).build(("x",))
    scores = _feed(model, values)
    assert np.trace(model.snapshot(KEY)["covariance"][0, 0]) <= 4 * 100.0
    assert np.isfinite(scores).all()
    assert scores[23_000:].max() < 6
    flat = Autoregressive(half_life=5).build(("x",))
    assert not _feed(flat, np.full(50_000, 3.0)).any()
    covariance = flat.snapshot(KEY)["covariance"][0, 0]
    assert np.array_equal(covariance, covariance.T)
    assert 0 < np.diag(covariance).min() <= np.diag(covariance).max() <= 400.0


def test_covariance_stays_symmetric_and_positive_on_smooth_signals() -> None:
    values = np.sin(np.arange(100_000) / 50.0) * 1e6
    model = Autoregressive(order=8, half_life=50).build(("x",))
    scores = _feed(model, values)
    covariance = model.snapshot(KEY)["covariance"][0, 0]
    assert np.array_equal(covariance, covariance.T)
    assert np.linalg.eigvalsh(covariance).min() > -1e-9
    assert scores.max() < 6


def test_a_fault_is_not_learned_at_once() -> None:
    values = _process(3000, 0.8)
    clean, spoiled = Autoregressive().build(("x",)), Autoregressive().build(("x",))
    _feed(clean, values)
    values[2000:2003] = 1e9, -1e9, 1e9
    scores = _feed(spoiled, values)
    assert scores[2000:2003].min() > 20
    expected = spoiled.contributions(np.arange(2000, 2010)).expected
    assert np.abs(expected).max() < 30, "what follows is forecast as if they had been 5 deviations off"
    assert scores[2010:].max() < 6
    one, other = clean.snapshot(KEY), spoiled.snapshot(KEY)
    assert other["coefficients"][0, 0] == pytest.approx(one["coefficients"][0, 0], abs=0.15)


def test_forecasts_stand_in_for_missing_readings() -> None:
    values = 50.0 + _process(1000, 0.9)
    values[900:] = np.nan
    model = Autoregressive(order=1).build(("x",))
    scores = _feed(model, values)
    state, expected = model.snapshot(KEY), model.contributions(np.arange(1000)).expected[:, 0]
    assert not scores[900:].any()
    mean, coefficient = state["mean"][0, 0], state["coefficients"][0, 0, 0]
    np.testing.assert_allclose(expected[901:] - mean, coefficient * (expected[900:-1] - mean), rtol=1e-9)
    assert state["count"][0, 0] == 900


def test_what_is_held_back_is_a_past_reading_and_nothing_more() -> None:
    values, learn = _process(1000, 0.9), np.ones(1000, np.bool_)
    learn[700:] = False
    model, before = Autoregressive(order=1).build(("x",)), Autoregressive(order=1).build(("x",))
    held = _feed(model, values, learn)
    _feed(before, values[:700])
    state, frozen = model.snapshot(KEY), before.snapshot(KEY)
    for name in ("count", "seen", "mean", "scatter", "variance", "coefficients", "covariance"):
        assert np.array_equal(state[name], frozen[name]), name
    assert state["lags"][0, 0, 0] == values[-1]
    taught = _feed(Autoregressive(order=1).build(("x",)), values)
    assert held[700] == taught[700]
    assert held[700:].max() < 6

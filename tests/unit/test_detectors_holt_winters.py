"""Holt-Winters: the textbook's recursions, states that outliers do not throw, seasons that turn over gaps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors.base import Floats, Mask
from detectors.holt_winters import HoltWinters, HoltWintersModel
from detectors.kernels import floats

SEASON = 12
KEY = np.array([0])


def _feed(model: HoltWintersModel, values: NDArray[Any], learn: Mask | None = None) -> Floats:
    values = floats(values.reshape(len(values), -1))
    return model.score_learn(
        np.zeros(len(values), np.int64), values, np.arange(len(values), dtype=float), learn
    )


def _expected(model: HoltWintersModel, n: int) -> Floats:
    return model.contributions(np.arange(n)).expected[:, 0]


def _wave(n: int, seed: int = 0, noise: float = 1.0) -> Floats:
    pattern = 10.0 * np.sin(2 * np.pi * np.arange(SEASON) / SEASON)
    values: Floats = pattern[np.arange(n) % SEASON] + np.random.default_rng(seed).normal(0, noise, n)
    return values


def _forecasts(values: Floats, recipe: HoltWinters) -> list[float]:
    """One-step forecasts from level, trend and season as Holt and Winters write them, on readings as they are."""
    length = recipe.season or 0
    start = max(length, 1)
    level, trend = float(np.mean(values[:start])), 0.0
    season = [float(value) - level for value in values[:length]] or [0.0]
    forecasts = [float("nan")] * start
    for i, value in enumerate(values[start:].tolist()):
        phase = i % max(length, 1)
        alpha = max(recipe.level_rate, 1 / (i + 1 + start))
        gamma = max(recipe.season_rate, 1 / ((i + start) // start + 1)) if length else 0.0
        forecasts.append(level + recipe.damping * trend + season[phase])
        before = level + recipe.damping * trend
        level = alpha * (value - season[phase]) + (1 - alpha) * before
        step = level - before + recipe.damping * trend
        trend = recipe.trend_rate * step + (1 - recipe.trend_rate) * recipe.damping * trend
        season[phase] = gamma * (value - level) + (1 - gamma) * season[phase]
    return forecasts


@pytest.mark.parametrize("season", [None, SEASON])
def test_forecasts_are_those_of_the_textbook(season: int | None) -> None:
    values = _wave(200) + 0.1 * np.arange(200)
    recipe = HoltWinters(season=season, clip=1e9, level_rate=0.3, trend_rate=0.1, season_rate=0.2)
    model = recipe.build(("x",))
    _feed(model, values)
    np.testing.assert_allclose(_expected(model, 200), _forecasts(values, recipe), rtol=1e-9, atol=1e-9)


def test_the_score_is_the_forecast_error_in_sigmas_of_the_errors_before() -> None:
    values = _wave(400)
    model = HoltWinters(season=SEASON, clip=1e9, half_life=1e9).build(("x",))
    scores = _feed(model, values)
    errors = values[SEASON:] - _expected(model, 400)[SEASON:]
    sigma = [np.sqrt(np.mean(errors[:i] ** 2)) for i in range(50, len(errors))]
    assert not scores[: SEASON + 50].any()
    np.testing.assert_allclose(scores[SEASON + 50 :], np.abs(errors[50:]) / sigma, rtol=1e-5)


def test_two_seasons_pass_before_anything_is_scored() -> None:
    pattern = 10.0 * np.sin(2 * np.pi * np.arange(400) / 100)
    scores = _feed(HoltWinters(season=100).build(("x",)), pattern + np.random.default_rng(0).normal(size=400))
    assert not scores[:200].any()
    assert scores[200:].all()


@pytest.mark.parametrize("season", [None, SEASON])
def test_gaussian_noise_scores_as_often_as_gaussian_tails_say(season: int | None) -> None:
    values = _wave(40_000) if season else np.random.default_rng(1).normal(size=40_000)
    scores = _feed(HoltWinters(season=season).build(("x",)), values)
    assert 0.8 < (scores >= 3).mean() / 0.0027 < 1.6
    assert not (scores >= 6).any()


def test_a_reading_at_the_wrong_phase_scores_and_at_the_right_one_does_not() -> None:
    values = _wave(600)
    values[480 + 3], values[540 + 9] = values[480 + 9], values[540 + 9]  # the trough at the crest's place
    scores = _feed(HoltWinters(season=SEASON).build(("x",)), values)
    assert scores[483] > 10
    assert scores[549] < 4
    assert (scores >= 6).sum() == 1


def test_an_outlier_throws_neither_level_nor_spread() -> None:
    clean, spoiled = _wave(500), _wave(500)
    spoiled[400] += 1e6
    one, other = HoltWinters(season=SEASON).build(("x",)), HoltWinters(season=SEASON).build(("x",))
    _feed(one, clean)
    scores = _feed(other, spoiled)
    assert scores[400] > 1e5
    assert np.abs(_expected(one, 500)[401:] - _expected(other, 500)[401:]).max() < 1.0
    assert scores[401:].max() < 6


def test_a_level_that_stays_is_learned_in_the_end() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    values[1000:] += 100.0
    scores = _feed(HoltWinters().build(("x",)), values)
    assert scores[1000:1020].min() > 6
    assert scores[1200:].max() < 6


def test_a_trend_is_followed() -> None:
    values = 0.5 * np.arange(2000.0) + np.random.default_rng(0).normal(size=2000)
    with_trend, without = HoltWinters().build(("x",)), HoltWinters(trend_rate=0.0).build(("x",))
    _feed(with_trend, values)
    _feed(without, values)
    lags = [np.mean(values[1000:] - _expected(model, 2000)[1000:]) for model in (with_trend, without)]
    assert lags[1] == pytest.approx(0.5 / 0.2, rel=0.1)  # what exponential smoothing lags behind a ramp
    assert lags[0] < 0.6 * lags[1]


def test_the_season_turns_over_a_gap_and_forecasts_stand_in() -> None:
    values = _wave(500, noise=0.1)
    values[300:349] = np.nan
    model = HoltWinters(season=SEASON).build(("x",))
    scores = _feed(model, values)
    assert not scores[300:349].any()
    assert np.abs(_expected(model, 500) - _wave(500, noise=0.0))[300:400].max() < 1.0
    assert scores[349:].max() < 6


def test_what_is_held_back_is_scored_and_otherwise_as_if_it_were_missing() -> None:
    values, learn = _wave(400), np.ones(400, np.bool_)
    values[300:340] += 50.0
    learn[300:340] = False
    holed = values.copy()
    holed[300:340] = np.nan
    held, missing = HoltWinters(season=SEASON).build(("x",)), HoltWinters(season=SEASON).build(("x",))
    scores, _ = _feed(held, values, learn), _feed(missing, holed)
    assert scores[300:340].min() > 6
    for name, array in held.snapshot(KEY).items():
        assert np.array_equal(array, missing.snapshot(KEY)[name]), name


@pytest.mark.parametrize("season", [None, SEASON])
def test_a_flat_sensor_is_silent_and_its_first_step_scores_once(season: int | None) -> None:
    values = np.zeros(1000)
    values[600:] = 1.0
    scores = _feed(HoltWinters(season=season).build(("x",)), values)
    assert not scores[:600].any()
    assert 6 < scores[600] < 18
    assert scores[601:].max() < 6


def test_a_sensor_that_comes_late_has_a_season_of_its_own() -> None:
    values = np.column_stack([_wave(400), _wave(400, seed=1)])
    values[:101, 1] = np.nan
    model = HoltWinters(season=SEASON).build(("x", "late"))
    _feed(model, values)
    alone = HoltWinters(season=SEASON).build(("late",))
    _feed(alone, values[101:, 1])
    expected = model.contributions(np.arange(400)).expected[101:, 1]
    np.testing.assert_array_equal(expected, _expected(alone, 299))


def test_state_with_a_negative_count_is_refused() -> None:
    model = HoltWinters().build(("x",))
    state = {**model.snapshot(KEY), "age": np.full((1, 1), -1)}
    with pytest.raises(ValueError, match="negative"):
        model.restore(KEY, state)

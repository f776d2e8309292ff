"""Seasonal profile: weighted means by phase, whatever the sampling; a value at the wrong time is an anomaly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors.base import Floats, Mask
from detectors.kernels import floats
from detectors.profiles import SeasonalProfile, SeasonalProfileModel

KEY = np.array([0])
DAY = 86_400.0
START = 19_000 * DAY
"""A midnight."""


def _feed(
    model: SeasonalProfileModel, values: NDArray[Any], times: Floats, learn: Mask | None = None
) -> Floats:
    values = floats(values.reshape(len(values), -1))
    return model.score_learn(np.zeros(len(values), np.int64), values, times, learn)


def _regular(days: float, step: float = 900.0) -> Floats:
    return START + np.arange(0.0, days * DAY, step)


def _irregular(days: float, mean_step: float, seed: int = 0) -> Floats:
    """Readings at random moments, as a Poisson process."""
    steps = np.random.default_rng(seed).exponential(mean_step, int(days * DAY / mean_step))
    return START + np.cumsum(steps)


def _load(times: Floats, seed: int = 0, noise: float = 1.0) -> Floats:
    """High at noon, low at midnight: 30 and 10."""
    curve = 20.0 - 10.0 * np.cos(2 * np.pi * times / DAY)
    return np.asarray(curve + np.random.default_rng(seed).normal(0.0, noise, len(times)))


def test_mean_and_variance_of_a_bin_are_those_of_its_readings_weighted_by_age() -> None:
    times = _irregular(20, 1200.0)
    values = _load(times)
    recipe = SeasonalProfile(bins=24, clip=1e9, half_life=3.0)
    model = recipe.build(("x",))
    _feed(model, values, times)
    state = model.snapshot(KEY)
    for cell in range(24):
        own = [(t, v) for t, v in zip(times, values, strict=True) if int(t % DAY // 3600) == cell]
        weights = [0.5 ** ((own[-1][0] - t) / (3.0 * DAY)) for t, _ in own]
        mean = sum(w * v for w, (_, v) in zip(weights, own, strict=True)) / sum(weights)
        squares = sum(w * (v - mean) ** 2 for w, (_, v) in zip(weights, own, strict=True))
        assert state["mean"][0, 0, cell] == pytest.approx(mean, rel=1e-6)
        assert state["variance"][0, 0, cell] == pytest.approx(squares / sum(weights), rel=1e-4)
        assert state["weight"][0, 0, cell] == pytest.approx(sum(weights), rel=1e-4)
        days = {t // DAY: t for t, _ in reversed(own)}  # the first reading of each visit
        visits = sum(0.5 ** ((own[-1][0] - t) / (3.0 * DAY)) for t in days.values())
        assert state["visits"][0, 0, cell] == pytest.approx(visits, rel=1e-4)


def test_a_value_at_the_wrong_phase_scores_and_at_the_right_one_does_not() -> None:
    times = _regular(21)
    values = _load(times)
    midnight, noon = 96 * 18, 96 * 18 + 48
    values[midnight] = values[noon]
    model = SeasonalProfile().build(("load",))
    scores = _feed(model, values, times)
    assert scores[midnight] > 10
    assert scores[noon] < 4
    assert np.flatnonzero(scores >= 6).tolist() == [midnight]
    shares, expected = model.contributions(np.array([midnight, noon]))
    assert shares[0, 0] == 1.0
    assert expected[:, 0] == pytest.approx([10.0, 30.0], abs=1.0)


@pytest.mark.parametrize("sampling", ["regular", "irregular"])
def test_gaussian_noise_scores_as_often_as_gaussian_tails_say(sampling: str) -> None:
    times = _regular(300) if sampling == "regular" else _irregular(300, 900.0)
    scores = _feed(SeasonalProfile().build(("x",)), _load(times), times)
    assert 0.7 < (scores >= 3).mean() / 0.0027 < 1.7
    assert not (scores >= 6).any()


def test_days_that_differ_as_a_whole_are_allowed_for() -> None:
    times = _regular(120)
    values = _load(times, noise=0.3) + np.random.default_rng(5).normal(0.0, 2.0, 120).repeat(96)
    scores = _feed(SeasonalProfile().build(("x",)), values, times)
    assert (scores >= 6).mean() < 1e-3


def test_a_small_deviation_in_quiet_hours_scores_and_the_same_in_busy_ones_does_not() -> None:
    times = _regular(40)
    night = (times % DAY) < 6 * 3600
    noise = np.random.default_rng(0).normal(size=len(times)) * np.where(night, 0.1, 1.0)
    values = _load(times, noise=0.0) * 0.0 + noise
    values[96 * 35 + 10] += 3.0
    values[96 * 35 + 60] += 3.0
    scores = _feed(SeasonalProfile().build(("x",)), values, times)
    assert scores[96 * 35 + 10] > 6
    assert scores[96 * 35 + 60] < 5


def test_gaps_do_no_harm() -> None:
    times = _regular(60)
    values = _load(times)
    there = (times < START + 20 * DAY) | (times > START + 33.4 * DAY)
    scores = _feed(SeasonalProfile().build(("x",)), values[there], times[there])
    assert not (scores >= 6).any()
    rare = _regular(60, step=DAY * 1.37)  # less than one reading in a season
    scores = _feed(SeasonalProfile(bins=8).build(("x",)), _load(rare), rare)
    assert not (scores >= 6).any()


def test_a_young_bin_borrows_from_its_neighbours() -> None:
    levels = np.array([0.0, 10.0, 50.0, 30.0])
    times = START + np.arange(7) * DAY / 4 + 60.0
    model = SeasonalProfile(bins=4).build(("x",))
    _feed(model, levels[np.arange(7) % 4], times)
    _, expected = model.contributions(np.array([4]))
    visits, weights = 0.5 ** (1 / 7), 0.5 ** (np.arange(3, -1, -1) / 28.0)
    overall = (weights * levels).sum() / weights.sum()
    borrowed = (1.0 * levels[1] + 1.0 * levels[3] + 0.5 * overall) / 2.5
    assert expected[0, 0] == pytest.approx((visits * 0.0 + (2 - visits) * borrowed) / 2, rel=1e-6)


def test_nothing_is_scored_in_the_first_seasons_nor_in_a_bin_never_read() -> None:
    times = _regular(10)
    values = _load(times)
    values[100] = 1e6
    scores = _feed(SeasonalProfile().build(("x",)), values, times)
    assert not scores[: 2 * 96].any()
    assert scores[2 * 96 :].all()
    working = times[(times % DAY) < DAY / 2]
    model = SeasonalProfile().build(("x",))
    _feed(model, _load(working), working)
    assert _feed(model, np.array([1e6]), np.array([times[-1]]))[0] == 0.0


def test_errors_count_from_the_second_season_on() -> None:
    times = _regular(3)
    model = SeasonalProfile().build(("x",))
    seen = []
    for day in (slice(0, 96), slice(96, 192)):
        _feed(model, _load(times)[day], times[day])
        seen.append(model.snapshot(KEY)["overall"][0, 0, 2])
    assert seen[0] == 0.0
    assert 90 < seen[1] <= 96


def test_an_outlier_moves_its_bin_by_little_and_a_new_level_is_learned_in_the_end() -> None:
    times = _regular(80)
    values = _load(times)
    values[96 * 30] = 1e9
    values[96 * 40 :] += 20.0
    scores = _feed(SeasonalProfile(half_life=3.0).build(("x",)), values, times)
    assert scores[96 * 30] > 1e5
    assert scores[96 * 30 + 1 : 96 * 40].max() < 6
    assert scores[96 * 40] > 6
    assert scores[96 * 70 :].max() < 6


def test_what_is_held_back_changes_nothing() -> None:
    times = _regular(20)
    learn = times < START + 15 * DAY
    held, before = SeasonalProfile().build(("x",)), SeasonalProfile().build(("x",))
    values = _load(times) + np.where(learn, 0.0, 30.0)
    scores = _feed(held, values, times, learn)
    _feed(before, values[learn], times[learn])
    assert scores[~learn].min() > 6
    for name, array in held.snapshot(KEY).items():
        assert np.array_equal(array, before.snapshot(KEY)[name]), name


def test_a_sensor_that_is_missing_has_an_expected_value_and_learns_nothing() -> None:
    times = _regular(20)
    values = np.column_stack([_load(times), _load(times, seed=1)])
    values[96 * 15 :, 1] = np.nan
    model, before = SeasonalProfile().build(("x", "y")), SeasonalProfile().build(("x", "y"))
    _feed(model, values, times)
    _feed(before, values[: 96 * 15], times[: 96 * 15])
    shares, expected = model.contributions(np.array([96 * 19 + 48]))
    assert shares[0, 1] == 0.0
    assert expected[0, 1] == pytest.approx(30.0, abs=1.5)
    for name in ("mean", "variance", "weight"):
        assert np.array_equal(model.snapshot(KEY)[name][0, 1], before.snapshot(KEY)[name][0, 1])


def test_a_week_has_its_days() -> None:
    times = _regular(70, step=3600.0)
    weekend = (times // DAY % 7) >= 5
    values = _load(times) - 15.0 * weekend
    daily, weekly = SeasonalProfile().build(("x",)), SeasonalProfile(period=7 * DAY, bins=168).build(("x",))
    monday = int(np.flatnonzero(~weekend & (times > START + 60 * DAY) & (times % DAY == DAY / 2))[0])
    values[monday] -= 15.0  # a weekday that reads like the weekend
    assert _feed(weekly, values, times)[monday] > 6
    assert _feed(daily, values, times)[monday] < 6


def test_times_that_are_none_are_survived() -> None:
    times = _regular(10)
    values = _load(times)
    spoiled = times.copy()
    spoiled[500:504] = np.nan, np.inf, 1e308, -1e308
    model = SeasonalProfile().build(("x",))
    scores = _feed(model, values, spoiled)
    assert np.isfinite(scores).all()
    assert all(np.isfinite(array).all() for array in model.snapshot(KEY).values())

"""Control charts: right statistics, limits that hold on dependent and drifting readings, small shifts seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import lfilter

from detectors.base import Floats, Mask
from detectors.control_charts import MCUSUM, MEWMA, ControlChartModel
from detectors.kernels import floats

SENSORS = ("a", "b", "c", "d")


def _feed(model: ControlChartModel, values: NDArray[Any], learn: Mask | None = None) -> Floats:
    return model.score_learn(
        np.zeros(len(values), np.int64), floats(values), np.arange(len(values), dtype=np.float64), learn
    )


def _autoregressive(seed: int, n: int, coefficient: float, d: int = len(SENSORS)) -> Floats:
    noise = np.random.default_rng(seed).normal(size=(n + 200, d))
    return np.asarray(lfilter([1.0], [1.0, -coefficient], noise, axis=0))[200:]


def _block_sigma(train: Floats, block: int, wander: float) -> Floats:
    """The scale, the plain way."""
    means = train[: len(train) // block * block].reshape(-1, block, train.shape[1]).mean(axis=1)
    k = len(means)
    variance = np.maximum(train.var(axis=0) / block, means.var(axis=0, ddof=1) * (1 + 1 / k))
    spread = ((means - means.mean(axis=0)) ** 2).sum(axis=0)
    moves = (np.diff(means, axis=0) ** 2).sum(axis=0)
    widened: Floats = np.sqrt(variance * np.maximum(1.0, wander * spread / moves))
    return widened


def test_largest_deviation_equals_the_plain_computation() -> None:
    values = _autoregressive(0, 700, 0.5) * [1.0, 2.0, 3.0, 4.0] + [0.0, 10.0, 100.0, -5.0]
    values[:, 3] += np.arange(700) * 0.02
    scores = _feed(MEWMA(half_life=None, limit=5.0, clip=1e6).build(SENSORS), values)
    average = np.asarray(lfilter([0.1], [1.0, -0.9], values - values[0], axis=0)) + values[0]
    train = values[:400]
    expected = np.abs(average - train.mean(axis=0)) / _block_sigma(train, 10, 1.0) / 5.0
    assert not scores[:400].any()
    np.testing.assert_allclose(scores[400:], expected.max(axis=1)[400:], rtol=1e-9)


def test_t2_of_single_readings_is_the_mahalanobis_distance() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(4, 4))
    values: Floats = rng.normal(size=(6000, 4)) @ mixing
    recipe = MEWMA(rate=1.0, statistic="t2", half_life=None, warmup=5000, limit=4.0, wander=0.0, clip=1e6)
    scores = _feed(recipe.build(SENSORS), values)[5000:]
    train = values[:5000]
    away = values[5000:] - train.mean(axis=0)
    r: Floats = np.asarray(np.corrcoef(train.T))
    apart = np.triu_indices(4, 1)
    doubt = float(((1 - r[apart] ** 2) ** 2).sum() / (5000 - 1) / (r[apart] ** 2).sum())
    shrunk = r * (1 - max(doubt, 0.01)) + np.eye(4) * max(doubt, 0.01)
    z = away / train.std(axis=0, ddof=1) / np.sqrt(1 + 1 / 5000)
    distance = np.sqrt(np.einsum("ij,jk,ik->i", z, np.linalg.inv(shrunk), z))
    np.testing.assert_allclose(scores, distance / np.sqrt(3 + 16), rtol=1e-6)


def test_cumulative_sum_equals_crosiers_scheme() -> None:
    values = _autoregressive(1, 700, 0.0)
    values[500:] += 1.0
    recipe = MCUSUM(half_life=None, limit=1e3, clip=1e6, block=10, slack=0.7)
    scores = _feed(recipe.build(SENSORS), values)[400:]
    train = values[:400]
    z = (values[400:] - train.mean(axis=0)) / (_block_sigma(train, 10, 1.0) * np.sqrt(10))
    total, expected = np.zeros(4), []
    for row in z:
        total = total + row
        total = total * np.where(np.abs(total) <= 0.7, 0.0, 1.0 - 0.7 / np.maximum(np.abs(total), 0.7))
        expected.append(np.abs(total).max() / 1e3)
    np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("recipe", [MEWMA(), MEWMA(statistic="t2"), MCUSUM()], ids=str)
@pytest.mark.parametrize("coefficient", [0.0, 0.5, 0.8])
def test_false_alarms_stay_rare_on_readings_that_depend_on_each_other(
    recipe: MEWMA | MCUSUM, coefficient: float
) -> None:
    scores = [_feed(recipe.build(SENSORS), _autoregressive(seed, 1200, coefficient)) for seed in range(40)]
    above = np.mean([(s[400:] >= 1).mean() for s in scores])
    assert above < 0.03


def test_limits_without_blocks_do_not_hold_there() -> None:
    """The reason for the blocks: with the limit of independent readings most of a healthy run is above it."""
    values = _autoregressive(3, 20_000, 0.9)
    average = np.asarray(lfilter([0.1], [1.0, -0.9], values, axis=0))
    naive = np.abs(average - values[:400].mean(axis=0)) / values[:400].std(axis=0) / np.sqrt(0.1 / 1.9)
    scores = _feed(MEWMA().build(SENSORS), values)
    assert (naive[400:].max(axis=1) >= 4.5).mean() > 0.3
    assert (scores[400:] >= 1).mean() < 0.03


def test_a_drifting_sensor_is_widened_and_the_others_still_see() -> None:
    above: dict[float, list[float]] = {1.0: [], 0.0: []}
    seen = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        values = rng.normal(size=(1100, 4))
        values[:, 0] = np.cumsum(rng.normal(size=1100)) * 0.3 + 80.0
        for wander, shares_above in above.items():
            scores = _feed(MEWMA(wander=wander, half_life=None, patience=10_000).build(SENSORS), values)
            shares_above.append(float((scores[400:] >= 1).mean()))
        values[700:, 2] += 2.5
        model = MEWMA().build(SENSORS)
        seen.append((_feed(model, values)[720:760] >= 1).mean())
        shares, expected = model.contributions(np.array([740]))
        assert shares[0, 2] > 0.3
        assert abs(expected[0, 2]) < 0.5
    assert np.mean(above[1.0]) < 0.1
    assert np.mean(above[0.0]) > 0.2
    assert np.mean(seen) > 0.95


@pytest.mark.parametrize("recipe", [MEWMA(), MEWMA(statistic="t2"), MCUSUM()], ids=str)
def test_a_small_shift_that_stays_is_seen_with_its_direction(recipe: MEWMA | MCUSUM) -> None:
    values = np.random.default_rng(5).normal(size=(900, 4))
    values[600:, 1] -= 2.5
    model = recipe.build(SENSORS)
    learn = np.arange(900) < 600
    scores = _feed(model, values, learn)
    first = int(np.argmax(scores >= 1))
    assert 600 <= first <= 620
    assert (scores[640:] >= 1).all()
    shares, _ = model.contributions(np.array([700]))
    assert shares[0].argmin() == 1
    assert shares[0, 1] < -0.9
    assert scores[-1] <= 4.0 or not isinstance(recipe, MCUSUM)


def test_units_do_not_matter() -> None:
    values = _autoregressive(7, 900, 0.6)
    values[700:, 1] += 3.0
    for recipe in (MEWMA(), MEWMA(statistic="t2"), MCUSUM()):
        scores = _feed(recipe.build(SENSORS), values)
        scaled = _feed(recipe.build(SENSORS), values * [1.0, 1000.0, 1.0, 1e-3])
        np.testing.assert_allclose(scores, scaled, rtol=1e-6, atol=1e-9)


def test_a_spike_counts_little_and_is_forgotten() -> None:
    values = np.random.default_rng(0).normal(size=(600, 4))
    values[500, 0] = 1e9
    scores = _feed(MEWMA().build(SENSORS), values)
    assert scores[500] < 1.1
    assert (scores[515:] < 1).all()


def test_what_an_alert_holds_back_does_not_become_normal() -> None:
    values = np.random.default_rng(0).normal(size=(2000, 4))
    values[600:, 0] += 4.0
    held = _feed(MEWMA().build(SENSORS), values, np.arange(2000) < 620)
    learned = _feed(MEWMA().build(SENSORS), values)
    assert (held[620:] >= 1).all()
    assert (learned[-100:] < 1).all()


def test_a_warm_up_of_less_than_three_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="warmup: 20 readings are too few: at least 30"):
        MEWMA(warmup=20)
    with pytest.raises(ValueError, match="at least 60"):
        MCUSUM(warmup=40, block=20)


@pytest.mark.parametrize("recipe", [MEWMA(), MEWMA(statistic="t2"), MCUSUM()], ids=str)
@pytest.mark.parametrize(("before", "after"), [(0.0, 1.0), (0.0, 5000.0), (230.0, 253.0), (-1e6, 0.0)])
def test_a_constant_sensor_that_moves_for_good_is_seen(
    recipe: MEWMA | MCUSUM, before: float, after: float
) -> None:
    values = _autoregressive(1, 900, 0.5)
    values[:, 2] = before
    values[600:, 2] = after
    held = np.arange(900) < 603
    model = recipe.build(SENSORS)
    scores = _feed(model, values, held)
    assert (scores[400:600] < 1).all()
    assert (scores[620:] >= 1).all()
    shares, expected = model.contributions(np.array([650]))
    assert abs(shares[0, 2]) > 0.5
    assert np.sign(shares[0, 2]) == np.sign(after - before)
    assert expected[0, 2] == pytest.approx(before, abs=0.05 * abs(after - before))


@pytest.mark.parametrize("recipe", [MEWMA(), MEWMA(statistic="t2"), MCUSUM()], ids=str)
def test_a_constant_sensor_that_rounds_or_flickers_by_a_step_of_its_resolution_is_normal(
    recipe: MEWMA | MCUSUM,
) -> None:
    rng = np.random.default_rng(0)
    rounding, flicker = _autoregressive(2, 3000, 0.5), _autoregressive(2, 3000, 0.5)
    rounding[:, 1] = 0.1 + rng.integers(-3, 4, 3000) * 1e-17
    rounding[400:, 2] = 20.1 * (1.0 + 1e-15 * rng.integers(-3, 4, 2600))
    rounding[:400, 2] = 20.1
    assert (_feed(recipe.build(SENSORS), rounding)[400:] < 1).all()
    for level in (20.0, 4.0, 0.0):
        flicker[:, 3] = level
        flicker[500:, 3] += rng.integers(0, 2, 2500)
        assert (_feed(recipe.build(SENSORS), flicker)[500:] >= 1).mean() < 0.01


@pytest.mark.parametrize("recipe", [MEWMA(), MCUSUM(), MEWMA(statistic="t2")], ids=str)
def test_a_level_that_was_accepted_is_learned_anew_and_what_is_held_back_is_not(
    recipe: MEWMA | MCUSUM,
) -> None:
    values = _autoregressive(3, 2400, 0.5)
    values[800:, 1] += 500.0
    held = _feed(recipe.build(SENSORS), values, np.arange(2400) < 800)
    assert (held[830:] >= 1).all(), "an alert that is open teaches nothing"
    accepted = np.ones(2400, np.bool_)
    accepted[803:1000] = False
    scores = _feed(recipe.build(SENSORS), values, accepted)
    assert (scores[830:1100] >= 1).all()
    assert (scores[1220:] < 1).all()
    values[2300:, 1] += 20.0
    again = _feed(recipe.build(SENSORS), values, accepted)
    assert (again[2330:] >= 1).all(), "and what leaves it is seen"

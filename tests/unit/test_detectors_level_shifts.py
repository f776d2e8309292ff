"""CUSUM and Page-Hinkley: the papers' sums, few false alarms, small shifts seen in time, what stays is learned."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from detectors.base import Floats, Mask
from detectors.level_shifts import CUSUM, LevelShiftModel, PageHinkley
from detectors.starts import normal


def _feed(model: LevelShiftModel, values: Floats, learn: Mask | None = None) -> Floats:
    values = values.reshape(len(values), -1)
    return model.score_learn(
        np.zeros(len(values), np.int64), values, np.arange(len(values), dtype=np.float64), learn
    )


def _many(recipe: CUSUM | PageHinkley, values: Floats) -> Floats:
    """Scores (n, keys) of as many keys, one sensor each."""
    n, keys = values.shape
    model, slots = recipe.build(("x",)), np.tile(np.arange(keys), n)
    return model.score_learn(slots, values.reshape(-1, 1), np.arange(n * keys, dtype=np.float64)).reshape(
        n, keys
    )


def _autoregressive(seed: int, n: int, keys: int, coefficient: float) -> Floats:
    noise = np.random.default_rng(seed).normal(size=(n + 200, keys))
    series = np.asarray(lfilter([1.0], [1.0, -coefficient], noise, axis=0))[200:]
    return np.ascontiguousarray(series * np.sqrt(1.0 - coefficient**2))


def _start(values: Floats) -> tuple[float, float]:
    """Level and sigma of a warm-up, the plain way."""
    median = float(np.median(values))
    sigma = 1.4826 * float(np.median(np.abs(values - median)))
    signs = np.sign(values - median)
    same = ((signs[1:] - signs.mean()) * (signs[:-1] - signs.mean())).mean() / signs.var()
    r = float(np.clip(np.sin(np.pi / 2 * same), 0.0, 0.95))
    level = float(np.clip(values, median - 3 * sigma, median + 3 * sigma).mean())
    return level, sigma * float(np.sqrt((1 + r) / (1 - r)))


@pytest.mark.parametrize("half_life", [None, 30.0])
def test_scores_are_pages_two_sided_sums(half_life: float | None) -> None:
    values = _autoregressive(0, 700, 1, 0.4)[:, 0] * 3.0 + 20.0
    values[500:] -= 4.0
    scores = _feed(CUSUM(half_life=half_life, clip=4.0, threshold=100.0).build(("x",)), values)
    level, sigma = _start(values[:200])
    rate = 0.0 if half_life is None else 1 - 0.5 ** (1 / half_life)
    up = down = 0.0
    expected = []
    for value in values[200:]:
        z = min(max((value - level) / sigma, -4.0), 4.0)
        up, down = max(0.0, up + z - 0.5), max(0.0, down - z - 0.5)
        expected.append(max(up, down))
        level += rate * z * sigma
    assert not scores[:200].any()
    np.testing.assert_allclose(scores[200:], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("forget", "half_life"), [(1.0, None), (0.99, 300.0)])
def test_scores_are_those_of_the_page_hinkley_test(forget: float, half_life: float | None) -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 900)
    values[600:] += 3.0
    recipe = PageHinkley(delta=0.2, forget=forget, half_life=half_life, threshold=1e3, clip=1e3)
    scores = _feed(recipe.build(("x",)), values)
    mean, sigma = _start(values[:200])
    rate = 0.0 if half_life is None else 1 - 0.5 ** (1 / half_life)
    up = down = lowest = highest = 0.0
    expected = []
    for seen, value in enumerate(values[200:], 200):
        off = (value - mean) / sigma
        if forget == 1.0:  # the published form: cumulative sums, and how far they are from their extremes
            up, down = up + off - 0.2, down + off + 0.2
            lowest, highest = min(lowest, up), max(highest, down)
            expected.append(max(up - lowest, highest - down))
        else:
            up, down = max(0.0, forget * up + off - 0.2), max(0.0, forget * down - off - 0.2)
            expected.append(max(up, down))
        mean += max(rate, 1 / (seen + 1)) * (value - mean)
    np.testing.assert_allclose(scores[200:], expected, rtol=1e-8, atol=1e-8)


def test_the_normal_start_is_not_bent_by_outliers_and_knows_dependence() -> None:
    values = _autoregressive(2, 4000, 1, 0.6)[:, 0]
    level, sigma = normal(values, 1e-9, 1e-6)
    assert (level, sigma) == pytest.approx(_start(values), rel=1e-9)
    assert sigma == pytest.approx(2.0, rel=0.1)  # sqrt((1 + .6) / (1 - .6)) sigmas
    values[::10] = 1e9
    spoilt, widened = normal(values, 1e-9, 1e-6)
    assert abs(spoilt - level) < 0.5 * sigma
    assert 0.5 * sigma < widened < 1.5 * sigma


@pytest.mark.parametrize(("coefficient", "most"), [(0.0, 2e-5), (0.5, 1e-4), (0.8, 2e-4)])
@pytest.mark.parametrize("recipe", [CUSUM(), PageHinkley()], ids=lambda recipe: recipe.kind)
def test_false_alarms_are_as_rare_as_stated_also_on_dependent_readings(
    recipe: CUSUM | PageHinkley, coefficient: float, most: float
) -> None:
    above = _many(recipe, _autoregressive(4, 4200, 100, coefficient)) >= (recipe.limit())
    alarms = (above[1:] & ~above[:-1]).sum()
    assert alarms / (4000 * 100) <= most


@pytest.mark.parametrize(
    ("recipe", "shift", "within"),
    [
        (CUSUM(), 1.0, 60),
        (CUSUM(), -2.0, 15),
        (PageHinkley(), 0.75, 130),
        (PageHinkley(), 1.0, 80),
        (PageHinkley(), -2.0, 30),
    ],
    ids=str,
)
def test_a_small_shift_is_seen_in_time(recipe: CUSUM | PageHinkley, shift: float, within: int) -> None:
    values = np.random.default_rng(5).normal(size=(1500, 100))
    values[1000:] += shift
    above = _many(recipe, values)[1000:] >= recipe.limit()
    assert above[:within].any(axis=0).mean() > 0.95


def test_a_spike_does_not_reach_the_threshold() -> None:
    values = np.random.default_rng(0).normal(size=600)
    values[400] = 1e12
    assert _feed(CUSUM().build(("x",)), values).max() < 12
    assert _feed(PageHinkley().build(("x",)), values).max() < 30


def test_the_alert_of_a_cusum_lasts_as_long_as_the_shift_and_ends_soon_after() -> None:
    values = np.random.default_rng(0).normal(size=1500)
    values[500:1000] += 4.0
    scores = _feed(CUSUM().build(("x",)), values, np.arange(1500) < 505)
    assert (scores[510:1000] >= 12).all()
    assert scores.max() == 48.0
    assert (scores[1090:] < 12).all()


def test_a_level_that_is_learned_long_enough_becomes_normal() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    values[500:] += 8.0
    model = CUSUM(half_life=None).build(("x",))
    scores = _feed(model, values)
    assert (scores[505:1000] >= 12).all()
    assert (scores[1005:] < 12).all()
    assert model.contributions(np.array([1999])).expected[0, 0] == pytest.approx(8.0, abs=0.4)


def test_a_drift_is_told_once_by_page_hinkley_and_what_follows_is_normal() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    values[800:] += 2.0
    model = PageHinkley().build(("score",))
    scores = _feed(model, values)
    told = np.flatnonzero(scores >= model.threshold)
    assert len(told) == 1
    assert 800 < told[0] < 830
    shares, expected = model.contributions(np.array([told[0], 1999]))
    assert shares[0, 0] == 1.0
    assert expected[:, 0] == pytest.approx([0.0, 2.0], abs=0.2)


def test_what_is_held_back_moves_the_sums_and_nothing_else() -> None:
    values = np.random.default_rng(0).normal(size=900)
    values[400:] += 5.0
    model = CUSUM().build(("x",))
    _feed(model, values[:400])
    before = model.snapshot(np.array([0]))
    scores = _feed(model, values[400:], np.zeros(500, np.bool_))
    after = model.snapshot(np.array([0]))
    assert (scores[5:] >= 12).all()
    assert all(np.array_equal(before[name], after[name]) for name in before if name != "sums")
    assert after["sums"][0, 0].tolist() == [48.0, 0.0]


def test_a_flat_sensor_is_judged_by_the_floor() -> None:
    flat = np.concatenate((np.full(300, 7.0), np.full(10, 7.5)))
    assert (_feed(CUSUM().build(("valve",)), flat)[303:] >= 12).all()
    assert _feed(CUSUM(floor=1.0).build(("valve",)), flat).max() < 1
    assert not _feed(CUSUM().build(("valve",)), flat)[:300].any()


def test_a_sensor_with_few_values_has_a_sigma() -> None:
    values = (np.random.default_rng(0).random(2000) < 0.1).astype(np.float64)
    assert _feed(CUSUM().build(("starts",)), values).max() < 12
    values[1000:] = np.random.default_rng(1).random(1000) < 0.9
    assert (_feed(CUSUM().build(("starts",)), values)[1030:1400] >= 12).all()


def test_units_do_not_matter() -> None:
    values = _autoregressive(7, 900, 1, 0.6)
    values[700:] += 3.0
    for recipe in (CUSUM(), PageHinkley()):
        scores = _feed(recipe.build(("x",)), values)
        np.testing.assert_allclose(scores, _feed(recipe.build(("x",)), 1e-5 * values), rtol=1e-6, atol=1e-9)


def test_settings_and_state_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="no decision limit"):
        CUSUM(threshold=0.0)
    model = PageHinkley().build(("x",))
    state = dict(model.snapshot(np.array([0])))
    with pytest.raises(ValueError, match="negative"):
        model.restore(np.array([0]), {**state, "count": np.full((1, 1), -1)})
    assert (CUSUM().build(("x",)).threshold, model.threshold) == (12.0, 30.0)
    assert CUSUM(threshold=5.0).build(("x",)).threshold == 5.0

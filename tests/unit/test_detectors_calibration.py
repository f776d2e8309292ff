"""What a calibrated score promises: so rare among normal readings, whatever the scores are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detectors import Calibration
from detectors.base import Floats
from detectors.rates import Rates

N = 40_000


def surprise(recipe: Calibration, scores: Floats, slots: Any = None, learn: Any = None) -> Floats:
    where = np.zeros(len(scores), np.int64) if slots is None else slots
    return recipe.build().score_learn(where, scores, learn)


NORMAL: dict[str, Any] = {
    "exponential": lambda rng, n: rng.exponential(2.0, n),
    "gaussian": lambda rng, n: np.abs(rng.normal(size=n)),
    "in thousands": lambda rng, n: 1000.0 * rng.exponential(2.0, n),
}


@pytest.mark.parametrize("name", NORMAL)
def test_one_in_a_thousand_is_one_in_a_thousand(name: str) -> None:
    scores = NORMAL[name](np.random.default_rng(0), N)
    found = surprise(Calibration(), scores)[2000:]
    assert 0.1e-3 < (found >= 3.0).mean() < 2.5e-3
    assert 0.4e-2 < (found >= 2.0).mean() < 1.6e-2


def test_scores_with_an_upper_bound_are_judged_with_care() -> None:
    found = surprise(Calibration(), np.random.default_rng(0).random(N))[2000:]
    assert (found >= 3.0).mean() <= 1e-3
    assert (found >= 1.0).mean() == pytest.approx(0.1, rel=0.1)


def test_heavy_tail_may_be_heavy() -> None:
    scores = np.random.default_rng(1).pareto(2.5, N)
    thin = (surprise(Calibration(largest_shape=0.0), scores)[2000:] >= 4.0).mean()
    heavy = (surprise(Calibration(), scores)[2000:] >= 4.0).mean()
    assert heavy < 0.5 * thin, "an exponential tail takes a heavy one for full of anomalies"


def test_conformal_counts_as_far_as_its_history_reaches_and_then_asks_the_tail() -> None:
    recipe = Calibration(method="conformal", history=500)
    scores = np.random.default_rng(2).exponential(1.0, N)
    found = surprise(recipe, scores)[1000:]
    assert recipe.reach == pytest.approx(np.log10(501))
    for level in (0.5, 1.0, 2.0, 3.0):
        assert (found >= level - 1e-9).mean() == pytest.approx(
            10.0**-level, rel=0.3 if level == 3.0 else 0.15
        )
    beyond = found > recipe.reach + 1e-9
    assert 0 < beyond.sum() <= (found >= recipe.reach - 1e-9).sum()


def test_rank_agrees_with_the_definition() -> None:
    recipe = Calibration(method="conformal", history=100)
    scores = np.random.default_rng(3).normal(size=400)
    found = surprise(recipe, scores)
    past = scores[250:350].astype(np.float32)
    share = (np.sum(past >= np.float32(scores[350])) + 1) / 101
    assert found[350] == pytest.approx(-np.log10(share))


def test_unit_of_the_scores_does_not_matter() -> None:
    scores = np.random.default_rng(4).exponential(1.0, 2000)
    np.testing.assert_allclose(surprise(Calibration(), 4096.0 * scores), surprise(Calibration(), scores))


def test_splits_keys_and_restores_change_nothing() -> None:
    rng = np.random.default_rng(5)
    slots, scores = rng.integers(0, 3, 3000), rng.exponential(1.0, 3000)
    learn = rng.random(3000) < 0.9
    for recipe in (Calibration(), Calibration(method="conformal", largest_shape=0.3)):
        whole = recipe.build().score_learn(slots, scores, learn)
        parts = []
        model = recipe.build()
        for cut in np.array_split(np.arange(3000), 17):
            parts.append(model.score_learn(slots[cut], scores[cut], learn[cut]))
            rows = model.snapshot(np.arange(3))
            model = recipe.build()
            model.restore(np.arange(3), rows)
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        own = slots == 1
        alone = recipe.build().score_learn(np.zeros(own.sum(), np.int64), scores[own], learn[own])
        np.testing.assert_array_equal(alone, whole[own])


def test_nothing_is_said_while_warming_up_nor_of_a_detector_that_is() -> None:
    scores = np.concatenate([np.zeros(300), np.ones(99), [50.0], np.ones(5)])
    found = surprise(Calibration(warmup=100), scores)
    assert not found[:400].any()
    assert found[400:].max() < 1.0


def test_constant_scores_are_no_surprise_and_their_first_move_is() -> None:
    scores = np.concatenate([np.full(500, 2.0), [2.1], np.full(5, 2.0)])
    found = surprise(Calibration(), scores)
    assert found[:500].max() < 1.0
    assert found[500] == 30.0


def test_what_is_not_learned_stays_a_surprise() -> None:
    scores = np.concatenate([np.random.default_rng(6).exponential(1.0, 1000), np.full(500, 20.0)])
    held = np.arange(1500) < 1000
    assert surprise(Calibration(), scores, learn=held)[-1] > 5.0
    assert surprise(Calibration(), scores)[-1] < 1.0


def test_odd_settings_and_state_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit into a history of 60"):
        Calibration(history=60)
    calibrator = Calibration().build()
    rows = dict(calibrator.snapshot(np.array([0])))
    with pytest.raises(ValueError, match="negative"):
        calibrator.restore(np.array([0]), {**rows, "count": np.array([-1])})


def test_rate_is_the_time_between_readings_and_a_pause_does_not_change_it_much() -> None:
    times = np.concatenate([np.arange(0.0, 6000.0, 60.0), [100_000.0, 100_060.0, 100_050.0]])
    intervals, numbers = Rates().update(np.zeros(103, np.int64), times)
    assert intervals[50] == pytest.approx(60.0)
    assert 60.0 < intervals[-1] < 70.0, "a day's pause counts as ten intervals"
    assert numbers.tolist() == [*range(1, 103), 102], "an older reading does not count"


def test_scores_that_were_always_0_calibrate_once_the_detector_has_warmed_up() -> None:
    scores = np.zeros(400)
    scores[300] = 1e-3
    where, warm = np.zeros(400, np.int64), np.arange(400) >= 50
    recipe = Calibration(warmup=100)
    found = recipe.build().score_learn(where, scores, warm=warm)
    assert found[300] == 30.0, "what never moved and does is as rare as can be"
    assert not np.delete(found, 300).any()
    assert not recipe.build().score_learn(where, scores).any(), "unless all of it is a warm-up"


def test_score_that_came_before_is_no_rarer_than_it_came_where_repeats_are_counted() -> None:
    scores = np.zeros(5000)
    scores[500::500] = 8.0
    scores[-1] = 8.0
    slots = np.zeros(5000, np.int64)
    recipe = Calibration(history=5000, repeats="count")
    counted, by_tail = (
        it.build().score_learn(slots, scores)[-1] for it in (recipe, Calibration(history=5000))
    )
    assert counted == pytest.approx(np.log10(4499 / 9)), "zeros before the first other score are left out"
    assert by_tail > counted
    scores[-1] = 8.5
    assert recipe.build().score_learn(slots, scores)[-1] > counted + 1.0

"""KSWIN: the exact test on the samples it says, right false alarms, changed levels, spreads and shapes told once."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ks_2samp

from detectors.base import Floats, Mask
from detectors.draws import uniform
from detectors.statistical import AdaptiveZ
from detectors.two_samples import KSWIN, KSWINModel, _draw


def _feed(model: KSWINModel, values: Floats, learn: Mask | None = None) -> Floats:
    values = values.reshape(len(values), -1)
    return model.score_learn(
        np.zeros(len(values), np.int64), values, np.arange(len(values), dtype=np.float64), learn
    )


def _many(recipe: KSWIN, values: Floats) -> Floats:
    """Scores (n, keys) of as many keys, one sensor each."""
    n, keys = values.shape
    model, slots = recipe.build(("x",)), np.tile(np.arange(keys), n)
    return model.score_learn(slots, values.reshape(-1, 1), np.arange(n * keys, dtype=np.float64)).reshape(
        n, keys
    )


def _sample(older: list[float], size: int, seed: int, counter: int) -> Floats:
    """Ranks are drawn until there are enough; the rarer of those taken and those left out."""
    few = min(size, len(older) - size)
    drawn: set[int] = set()
    tries = 0
    while len(drawn) < few:
        drawn.add(int(uniform(seed, counter, tries) * len(older)))
        tries += 1
    ranks = drawn if len(drawn) == size else set(range(len(older))) - drawn
    return np.sort(older)[sorted(ranks)]


def _plain(recipe: KSWIN, values: Floats, learn: Mask, threshold: float) -> list[float]:
    """The definition, with lists and scipy's exact test."""
    recent: list[tuple[float, bool]] = []
    older: list[float] = []
    scores = []
    for counter, (value, kept) in enumerate(zip(values.tolist(), learn.tolist(), strict=True)):
        recent.append((value, kept))
        if len(recent) > recipe.recent:
            leaving, was_learned = recent.pop(0)
            if was_learned:
                older = [*older, leaving][-(recipe.window - recipe.recent) :]
        score = 0.0
        if len(older) >= recipe.recent:
            sample = _sample(older, recipe.recent, recipe.seed, counter)
            p = ks_2samp([v for v, _ in recent], sample, method="exact").pvalue
            score = max(-float(np.log10(p)), 0.0)
            if kept and score >= threshold:
                older, recent = [], [(v, False) for v, _ in recent]
        scores.append(score)
    return scores


@pytest.mark.parametrize("decimals", [0, 9])
@pytest.mark.parametrize(
    "recipe", [KSWIN(window=60, recent=20, threshold=3.0), KSWIN(window=24, recent=12, threshold=3.5, seed=1)]
)
def test_scores_are_those_of_the_definition(recipe: KSWIN, decimals: int) -> None:
    values = np.random.default_rng(0).normal(size=400).round(decimals)
    values[200:] *= 4.0
    values[300:] += 20.0
    learn = np.random.default_rng(1).random(400) < 0.8
    model = recipe.build(("x",))
    scores = _feed(model, values, learn)
    np.testing.assert_allclose(scores, _plain(recipe, values, learn, model.threshold), rtol=1e-9, atol=1e-12)
    assert (scores >= model.threshold).any()


@pytest.mark.parametrize("kept", [10, 13, 20, 40])
def test_every_older_reading_is_drawn_as_often(kept: int) -> None:
    older, drawn, sample = np.arange(50.0), np.empty(50, np.bool_), np.empty(10)
    counts = np.zeros(50)
    for counter in range(4000):
        _draw(older, kept, 42, counter, drawn, sample)
        assert len(set(sample)) == 10
        counts[sample.astype(int)] += 1
    chance = 10 / kept
    assert counts[kept:].sum() == 0
    assert np.abs(counts[:kept] / 4000 - chance).max() <= 4.5 * np.sqrt(chance * (1 - chance) / 4000)


def test_a_test_is_wrong_as_rarely_as_its_score_says() -> None:
    rng = np.random.default_rng(3)
    recipe = KSWIN(window=200, recent=50, threshold=99.0)
    for values in (rng.normal(size=(1500, 60)), rng.poisson(2.0, size=(1500, 60)).astype(np.float64)):
        scores = _many(recipe, values)[100:]
        for level in (1.0, 2.0, 3.0):
            assert (scores >= level).mean() <= 1.1 * 10**-level
    assert (scores > 0).mean() > 0.1


def test_false_drifts_are_as_rare_as_stated() -> None:
    told = _many(KSWIN(), np.random.default_rng(4).normal(size=(4000, 40))) >= 4.0
    assert told.mean() <= 1e-4


@pytest.mark.parametrize(
    ("change", "within"),
    [("level", 90), ("level 2", 50), ("spread", 110), ("flat", 60), ("shape", 150)],
)
def test_a_changed_distribution_is_told_in_time_and_once(change: str, within: int) -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(size=(1500, 40))
    after = values[600:]
    values[600:] = {
        "level": after + 1.0,
        "level 2": after - 2.0,
        "spread": after * 5.0,
        "flat": np.zeros_like(after),
        "shape": np.sign(after),  # mean and variance as before
    }[change]
    told = _many(KSWIN(), values)[600:] >= 4.0
    assert told[:within].any(axis=0).mean() > 0.9
    assert told.sum(axis=0).mean() < 1.2


def test_the_sensor_that_changed_has_the_share_with_its_direction_and_the_old_median_is_expected() -> None:
    values = np.random.default_rng(0).normal((0.0, 50.0), 1.0, (700, 2))
    values[500:, 1] -= 3.0
    model = KSWIN().build(("a", "b"))
    told = np.flatnonzero(_feed(model, values) >= 4.0)
    assert len(told) == 1
    shares, expected = model.contributions(told)
    assert shares[0, 1] < -0.8
    assert expected[0, 1] == pytest.approx(50.0, abs=0.4)


def test_what_is_held_back_is_tested_and_does_not_become_old() -> None:
    rng = np.random.default_rng(0)
    model = KSWIN().build(("x",))
    _feed(model, rng.normal(size=600))
    fault = _feed(model, rng.normal(4.0, 1.0, 2000), np.zeros(2000, np.bool_))
    assert (fault[100:] >= 4).all()
    over = _feed(model, rng.normal(size=300), np.zeros(300, np.bool_))
    assert (over[100:] < 4).all()
    assert model.snapshot(np.array([0]))["older"].max() < 4.0


def test_one_spike_is_not_seen() -> None:
    values = np.random.default_rng(0).normal(size=800)
    values[500] = 1e9
    usual = np.random.default_rng(0).normal(size=800)
    assert np.abs(_feed(KSWIN().build(("x",)), values) - _feed(KSWIN().build(("x",)), usual)).max() < 1


def test_it_watches_the_scores_of_another_detector() -> None:
    values = np.random.default_rng(0).normal(size=(3000, 2))
    values[2000:] *= 2.0
    slots, times = np.zeros(3000, np.int64), np.arange(3000.0)
    scores = AdaptiveZ(half_life=1e5).build(("a", "b")).score_learn(slots, values, times)
    told = KSWIN().build(("score",)).score_learn(slots, scores[100:, np.newaxis], times[100:]) >= 4.0
    assert not told[:1900].any()
    assert told[1900:2000].any()


def test_settings_and_state_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="at least twice recent, 200"):
        KSWIN(window=150)
    model = KSWIN().build(("x",))
    state = dict(model.snapshot(np.array([0])))
    with pytest.raises(ValueError, match="negative"):
        model.restore(np.array([0]), {**state, "joined": np.full((1, 1), -1)})
    assert model.threshold == 4.0
    assert sum(array.nbytes for array in state.values()) == 3316

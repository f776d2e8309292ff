"""ADWIN: the paper's window and bound, river's drifts, its promise on false alarms, changes told once and in time."""

from __future__ import annotations

import numpy as np
import pytest
from river import drift

from detectors.adaptive_windows import ADWIN, ADWINModel
from detectors.base import Floats, Mask
from detectors.statistical import AdaptiveZ


def _feed(model: ADWINModel, values: Floats, learn: Mask | None = None) -> Floats:
    values = values.reshape(len(values), -1)
    return model.score_learn(
        np.zeros(len(values), np.int64), values, np.arange(len(values), dtype=np.float64), learn
    )


def _many(recipe: ADWIN, values: Floats) -> Floats:
    """Scores (n, keys) of as many keys, one sensor each."""
    n, keys = values.shape
    model, slots = recipe.build(("x",)), np.tile(np.arange(keys), n)
    return model.score_learn(slots, values.reshape(-1, 1), np.arange(n * keys, dtype=np.float64)).reshape(
        n, keys
    )


class _Plain:
    """The definition: all readings of the window in a list, and the sizes of its buckets, the oldest first."""

    def __init__(self, recipe: ADWIN, largest: int) -> None:
        self.recipe, self.largest = recipe, largest
        self.window: list[float] = []
        self.sizes: list[int] = []
        self.held: list[float] = []

    def cut(self) -> tuple[float, int]:
        """Ratio of the largest cut, and the readings before it."""
        window = np.array(self.window + self.held)
        borders = np.cumsum(self.sizes) if self.held else np.cumsum(self.sizes)[:-1]
        best, at, n = 0.0, 0, len(window)
        for n0 in borders:
            if min(n0, n - n0) < 5:
                continue
            m = 1 / (n0 - 4) + 1 / (n - n0 - 4)
            doubt = np.log(2 * np.log(n) / self.recipe.delta)
            span = window.std() if self.recipe.span is None else self.recipe.span
            bound = np.sqrt(2 * m * window.var() * doubt) + 2 / 3 * doubt * m * span
            ratio = abs(window[:n0].mean() - window[n0:].mean()) / bound
            if ratio > best:
                best, at = ratio, int(n0)
        return best, at

    def add(self, value: float) -> None:
        self.window.append(value)
        self.sizes.append(1)
        size = 1
        while self.sizes.count(size) > 5:
            first = self.sizes.index(size)
            if size == self.largest:
                self.drop(size)
            else:
                self.sizes[first : first + 2] = [2 * size]
            size *= 2

    def drop(self, readings: int) -> None:
        self.window = self.window[readings:]
        while readings > 0:
            readings -= self.sizes.pop(0)
        assert readings == 0

    def score(self, value: float, learn: bool) -> float:
        window = np.array(self.window)
        if self.recipe.span is None and len(window) >= self.recipe.warmup and window.std() > 1e-6:
            value = window.mean() + np.clip((value - window.mean()) / window.std(), -5, 5) * window.std()
        self.held.append(value)
        ratio, _ = self.cut()
        warm = len(self.window) + len(self.held) > self.recipe.warmup
        if learn:
            self.held = []
            self.add(value)
            again = ratio
            while warm and again >= 1:
                self.drop(self.cut()[1])
                if len(self.window) < self.recipe.warmup:
                    self.window, self.sizes = [], []
                again, _ = self.cut()
        return ratio if warm else 0.0


@pytest.mark.parametrize(
    ("recipe", "largest"), [(ADWIN(), 512), (ADWIN(max_window=100, delta=0.3), 16), (ADWIN(span=3.0), 512)]
)
def test_scores_are_those_of_the_definition(recipe: ADWIN, largest: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(5.0, 1.0, 700)
    values[300:] += 2.0
    values[500:] -= 1.0
    learn = np.ones(700, np.bool_)
    learn[200:220] = learn[350:380] = False
    plain = _Plain(recipe, largest)
    expected = [plain.score(value, bool(kept)) for value, kept in zip(values, learn, strict=True)]
    scores = _feed(recipe.build(("x",)), values, learn)
    np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-9)
    assert (scores >= 1).sum() >= 2


@pytest.mark.parametrize("seed", range(5))
def test_drifts_are_rivers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [(0.3, 1000), (0.5, 1500), (0.45, 1000), (0.2, 1000)]
    values = np.clip(np.concatenate([rng.normal(mean, 0.1, n) for mean, n in parts]), 0.0, 1.0)
    river, theirs = drift.ADWIN(clock=1), []
    for i, value in enumerate(values.tolist()):
        river.update(value)
        if river.drift_detected:
            theirs.append(i)
    ours = np.flatnonzero(_feed(ADWIN(span=1.0).build(("x",)), values) >= 1)
    assert len(ours) == len(theirs) == 3
    assert ours[0] == theirs[0]
    assert np.abs(ours - theirs).max() <= 25


@pytest.mark.parametrize("delta", [0.002, 0.05, 0.3])
def test_false_alarms_are_rarer_than_delta(delta: float) -> None:
    rng = np.random.default_rng(1)
    for values in (rng.normal(size=(2000, 40)), (rng.random((2000, 40)) < 0.2).astype(np.float64)):
        told = _many(ADWIN(delta=delta), values)[30:] >= 1
        assert told.mean() <= delta / 10


def test_readings_that_depend_on_each_other_are_told_as_drift() -> None:
    """The limit that the docstring states: it is for independent readings."""
    noise = np.random.default_rng(2).normal(size=(3000, 20))
    values = noise.copy()
    for i in range(1, 3000):
        values[i] += 0.5 * values[i - 1]
    rate = (_many(ADWIN(), values) >= 1).mean()
    assert 2e-4 < rate < 5e-3
    assert (_many(ADWIN(), noise) >= 1).mean() < 2e-5


@pytest.mark.parametrize(("shift", "within"), [(0.5, 250), (1.0, 60), (-2.0, 25), (1e6, 10)])
def test_a_shift_is_told_in_time_and_once(shift: float, within: int) -> None:
    values = np.random.default_rng(3).normal(size=(2500, 60))
    values[1500:] += shift
    told = _many(ADWIN(), values)[1500:] >= 1
    assert told[:within].any(axis=0).mean() > 0.95
    assert 1.0 <= told.sum(axis=0).mean() < 1.1


def test_after_a_drift_the_new_level_is_expected_and_a_change_back_is_told_as_well() -> None:
    values = np.random.default_rng(0).normal(size=3000)
    values[1000:2000] += 3.0
    model = ADWIN().build(("x",))
    told = np.flatnonzero(_feed(model, values) >= 1)
    assert len(told) == 2
    assert np.all((told - [1000, 2000]) < 20)
    shares, expected = model.contributions(np.append(told, 1900))
    assert shares[:2, 0].tolist() == [1.0, -1.0]
    assert expected[:, 0] == pytest.approx([0.0, 3.0, 3.0], abs=0.3)


def test_what_is_held_back_is_compared_and_then_forgotten() -> None:
    rng = np.random.default_rng(0)
    model = ADWIN().build(("x",))
    _feed(model, rng.normal(size=1000))
    before = model.snapshot(np.array([0]))
    fault = _feed(model, rng.normal(4.0, 1.0, 500), np.zeros(500, np.bool_))
    assert (fault[10:] >= 1).all()
    over = _feed(model, rng.normal(size=300), np.zeros(300, np.bool_))
    assert (over[150:] < 1).all()
    after = model.snapshot(np.array([0]))
    assert all(np.array_equal(before[name], after[name]) for name in before if name != "held")
    assert _feed(model, rng.normal(size=300)).max() < 1
    assert not model.snapshot(np.array([0]))["held"].any()


def test_a_lone_spike_is_not_drift_and_a_flat_line_that_moves_is() -> None:
    values = np.random.default_rng(0).normal(size=5000)
    values[[600, 4500]] = 1e6
    assert _feed(ADWIN().build(("x",)), values).max() < 1
    flat = np.concatenate((np.full(500, 3.0), np.full(100, 3.1)))
    told = np.flatnonzero(_feed(ADWIN().build(("x",)), flat) >= 1)
    assert len(told) == 1
    assert 500 < told[0] < 510
    assert not (_feed(ADWIN(floor=1.0).build(("x",)), flat) >= 1).any()


def test_units_do_not_matter_without_a_span() -> None:
    values = np.random.default_rng(4).normal(size=800)
    values[500:] += 2.0
    scores = _feed(ADWIN().build(("x",)), values)
    np.testing.assert_allclose(scores, _feed(ADWIN().build(("x",)), 1e-6 * values + 0.0), rtol=1e-6)


def test_it_watches_the_scores_of_another_detector() -> None:
    values = np.random.default_rng(0).normal(size=(3000, 2))
    values[2000:] *= 2.0
    slots, times = np.zeros(3000, np.int64), np.arange(3000.0)
    scores = AdaptiveZ(half_life=1e5).build(("a", "b")).score_learn(slots, values, times)
    told = ADWIN().build(("score",)).score_learn(slots, scores[100:, np.newaxis], times[100:]) >= 1
    assert not told[:1900].any()
    assert told[1900:2000].any()


def test_numbers_of_buckets_that_cannot_be_are_refused() -> None:
    model = ADWIN().build(("x",))
    state = dict(model.snapshot(np.array([0])))
    for odd in (-1, 6):
        with pytest.raises(ValueError, match="0 to 5 buckets"):
            model.restore(np.array([0]), {**state, "buckets": np.full_like(state["buckets"], odd)})
    assert model.threshold == 1.0
    assert sum(array.nbytes for array in state.values()) == 1064

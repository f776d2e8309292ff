"""Properties for all splits, mixes of keys and values: of models, of the recent window, of quality."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from detectors.adaptive_windows import ADWIN
from detectors.autoregressive import Autoregressive
from detectors.base import Detector, Floats, Slots
from detectors.features import RecentWindow
from detectors.forest import HalfSpaceTrees
from detectors.holt_winters import HoltWinters
from detectors.level_shifts import CUSUM, PageHinkley
from detectors.medians import RobustZ
from detectors.profiles import SeasonalProfile
from detectors.quality import events, roc_auc
from detectors.statistical import AdaptiveZ
from detectors.two_samples import KSWIN

N = 60
RECIPES = [
    AdaptiveZ(warmup=3, half_life=5),
    HalfSpaceTrees(window_size=5, n_trees=3, height=3),
    RobustZ(window=6, warmup=5),
    CUSUM(warmup=20, patience=2),
    PageHinkley(warmup=20, threshold=3.0),
    ADWIN(warmup=10, delta=0.9),
    KSWIN(window=20, recent=10, threshold=1.0),
    Autoregressive(order=2, warmup=3, half_life=5),
    HalfSpaceTrees(window_size=5, n_trees=3, height=3),
    HoltWinters(season=3, warmup=3, half_life=5, damping=1.0),
    SeasonalProfile(period=6, bins=3, half_life=2, warmup=1),
]
values = npst.arrays(np.float64, (N, 2), elements=st.floats(width=64) | st.floats(-10, 10))
slots = npst.arrays(np.int64, N, elements=st.integers(0, 4) | st.just(0))
cuts = st.lists(st.integers(0, N), max_size=8).map(sorted)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.kind)
@settings(max_examples=60, deadline=None)
@given(slots=slots, values=values, cuts=cuts)
def test_splits_change_nothing_whatever_the_values(
    recipe: Detector, slots: Slots, values: Floats, cuts: list[int]
) -> None:
    times = np.arange(N, dtype=np.float64)
    whole, split = recipe.build(("x", "y")), recipe.build(("x", "y"))
    expected = whole.score_learn(slots, values, times)
    assert np.isfinite(expected).all()
    assert (expected >= 0).all()
    edges = [0, *cuts, N]
    parts = [slice(start, end) for start, end in pairwise(edges)]
    scores = [split.score_learn(slots[part], values[part], times[part]) for part in parts]
    assert np.array_equal(np.concatenate(scores), expected)
    keys = np.arange(5)
    one, other = whole.snapshot(keys), split.snapshot(keys)
    for name in one:
        assert np.array_equal(one[name], other[name])
        assert np.isfinite(one[name]).all()


@settings(max_examples=100, deadline=None)
@given(slots=slots, cuts=cuts, length=st.integers(1, 30), row=st.integers(0, N - 1))
def test_the_window_is_the_keys_last_readings_wherever_the_stream_is_split(
    slots: Slots, cuts: list[int], length: int, row: int
) -> None:
    values, times = np.arange(2.0 * N).reshape(N, 2), np.arange(float(N))
    own = np.flatnonzero(slots[: row + 1] == slots[row])[-length:]
    recent = RecentWindow(2, length)
    edges = [0, *cuts, N]
    for start, end in pairwise(edges):
        part = slice(start, end)
        if start <= row < end:
            found = recent.window(int(slots[row]), slots[part], values[part], times[part], row - start)
            assert np.array_equal(found[0], times[own])
            assert np.array_equal(found[1], values[own])
        recent.push(slots[part], values[part], times[part])
        state = recent.snapshot(np.arange(5))
        recent = RecentWindow(2, length)
        recent.restore(np.arange(5), state)


@settings(max_examples=100, deadline=None)
@given(labels=npst.arrays(np.bool_, st.integers(0, 40)))
def test_events_are_exactly_the_true_labels(labels: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
    again = np.zeros_like(labels)
    for start, end in events(labels):
        assert start < end
        again[start:end] = True
    assert np.array_equal(labels, again)


@settings(max_examples=100, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=30).filter(
        lambda pairs: len({label for label, _ in pairs}) == 2
    )
)
def test_roc_auc_counts_pairs(pairs: list[tuple[bool, int]]) -> None:
    high = [score for label, score in pairs if label]
    low = [score for label, score in pairs if not label]
    wins = sum((h > n) + 0.5 * (h == n) for h in high for n in low)
    found = roc_auc([label for label, _ in pairs], [float(score) for _, score in pairs])
    assert found == pytest.approx(wins / (len(high) * len(low)))

"""The left matrix profile is what its definition says, and finds what has no like in the past."""

from __future__ import annotations

import numpy as np
import pytest

from detectors import LeftMatrixProfile
from detectors.base import Floats
from detectors.datasets import DATASETS


def scored(recipe: LeftMatrixProfile, values: Floats, learn: np.ndarray | None = None) -> Floats:
    n = len(values)
    model = recipe.build(("x",))
    return model.score_learn(np.zeros(n, np.int64), values.reshape(n, 1), np.arange(float(n)), learn)


def by_definition(values: Floats, length: int, history: int) -> Floats:
    """Root mean square distance of each stretch to the nearest before it, as numpy does it."""
    found = np.full(len(values), np.nan)
    for i in range(length - 1, len(values)):
        stretch = values[i - length + 1 : i + 1]
        lags = range(max(1, length // 2), min(i + 1, history) - length)
        others = [values[i - lag - length + 1 : i - lag + 1] for lag in lags]
        if others:
            found[i] = np.sqrt(np.mean((np.array(others) - stretch) ** 2, axis=1).min())
    return found


@pytest.mark.parametrize("length", [1, 2, 5, 24])
def test_scores_are_the_definition_s_in_units_of_the_first_distances(length: int) -> None:
    rng = np.random.default_rng(length)
    values = np.cumsum(rng.normal(size=900)) + 1e4
    values[400] += 1e6  # what was large once leaves no rounding error behind
    scores = scored(LeftMatrixProfile(length=length, history=200), values)
    expected = by_definition(values, length, 200)
    first = expected[np.isfinite(expected)][:50].mean()
    late = slice(int(np.flatnonzero(np.isfinite(expected))[60]), None)
    np.testing.assert_allclose(scores[late], expected[late] / first, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("length", [1, 8])
def test_further_neighbours_are_half_a_length_from_the_nearer_ones(length: int) -> None:
    values = np.cumsum(np.random.default_rng(length).normal(size=500))
    expected = np.full(500, np.nan)
    for i in range(length - 1, 500):
        stretch = values[i - length + 1 : i + 1]
        lags = np.arange(max(1, length // 2), min(i + 1, 120) - length)
        distances = np.array(
            [np.sqrt(np.mean((values[i - lag - length + 1 : i - lag + 1] - stretch) ** 2)) for lag in lags]
        )
        for _ in range(2):
            if len(lags):
                far = np.abs(lags - lags[np.argmin(distances)]) >= max(1, length // 2)
                lags, distances = lags[far], distances[far]
        if len(lags):
            expected[i] = distances.min()
    scores = scored(LeftMatrixProfile(length=length, history=120, neighbours=3), values)
    first = expected[np.isfinite(expected)][:50].mean()
    np.testing.assert_allclose(scores[200:], expected[200:] / first, rtol=1e-6)


def test_what_came_once_is_not_yet_normal_with_two_neighbours() -> None:
    values = np.random.default_rng(4).normal(size=900)
    for start in (300, 500, 700):
        values[start : start + 20] = 20.0 + np.arange(20.0)
    one, two = (scored(LeftMatrixProfile(length=8, neighbours=k), values) for k in (1, 2))
    assert one[515] < 0.5
    assert two[515] > 3.0
    assert two[715] < 0.5


def test_stretch_that_comes_again_scores_low_and_a_new_one_high() -> None:
    rng = np.random.default_rng(0)
    daily = np.tile(np.sin(np.linspace(0, 2 * np.pi, 48, endpoint=False)), 40)
    values = daily + rng.normal(scale=0.05, size=len(daily))
    values[1500:1512] = 0.0
    scores = scored(LeftMatrixProfile(length=24, history=960), values)
    normal = np.r_[scores[200:1500], scores[1560:]]
    assert scores[1500:1530].max() > 3 * normal.max()


def test_unit_of_the_sensor_does_not_matter() -> None:
    values = np.random.default_rng(1).normal(size=600)
    once = scored(LeftMatrixProfile(length=8), values)
    np.testing.assert_allclose(scored(LeftMatrixProfile(length=8), 1024.0 * values), once, rtol=1e-12)


def test_what_is_not_learned_is_no_neighbour() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=800)
    values[400:420] += 20.0
    values[600:620] = values[400:420]
    held = np.ones(800, np.bool_)
    held[400:420] = False
    again = slice(607, 608)
    assert scored(LeftMatrixProfile(length=8), values)[again].max() < 0.5
    assert scored(LeftMatrixProfile(length=8), values, held)[again].max() > 5.0


def test_water_flow_s_long_lows_are_the_least_likely_days() -> None:
    data = DATASETS["water_flow"]()
    values = data.frame.to_numpy(dtype=np.float64)[:, 0]
    scores = scored(LeftMatrixProfile(length=24, history=1200), values)
    top = np.argsort(scores)[-20:]
    assert data.labels[top].mean() > 0.3, "20 highest of 1,268, of which 4 % are labelled"


def test_size_of_a_new_value_is_told_apart_though_the_first_were_all_alike() -> None:
    values = np.full(300, 5e6)
    values[200], values[250] = 6e6, 9e6
    scores = scored(LeftMatrixProfile(length=1), values)
    assert not scores[:200].any()
    assert scores[250] == pytest.approx(3 * scores[200])


def test_first_scores_are_no_giants_where_most_values_repeat() -> None:
    values = np.random.default_rng(3).poisson(0.2, 400).astype(np.float64)
    assert 1.0 < scored(LeftMatrixProfile(length=1), values)[:50].max() <= 50.0


def test_stretch_is_told_as_it_was_compared_whatever_the_neighbour() -> None:
    values = np.cumsum(np.random.default_rng(6).normal(size=400))
    times = 10.0 * np.arange(400.0)
    for neighbours in (1, 2):
        model = LeftMatrixProfile(length=8, neighbours=neighbours).build(("x",))
        model.score_learn(np.zeros(400, np.int64), values[:, None], times)
        rows = np.array([399, 200, 3])
        told = model.stretches(rows)
        assert told.readings.tolist() == [8, 8, 0]
        assert told.since[:2].tolist() == [3920.0, 1930.0]
        assert told.rank.tolist() == [neighbours, neighbours, 0]
        expected = model.contributions(rows).expected[0, 0]
        ends = np.flatnonzero(values == expected)  # where the stretch compared with ends
        gap = values[392:400] - values[ends[0] - 7 : ends[0] + 1]
        assert told.distances[0, 0] == pytest.approx(np.sqrt(np.mean(gap**2)))
        assert told.shifts[0, 0] == pytest.approx(gap.mean())


def test_history_must_hold_three_stretches() -> None:
    with pytest.raises(ValueError, match="no three stretches of 24"):
        LeftMatrixProfile(length=24, history=60)


@pytest.mark.parametrize("spike", [1e9, 1e120, -1e149])
def test_spike_of_any_size_spoils_no_distance_once_it_is_past(spike: float) -> None:
    values = np.random.default_rng(3).normal(size=300)
    values[200] = spike
    model = LeftMatrixProfile(length=16, history=400).build(("a",))
    model.score_learn(np.zeros(300, np.int64), values[:, None], np.arange(300.0))
    for row in range(216, 300):
        newest = values[row - 15 : row + 1]
        ends = range(15, row - 7)
        nearest = min(np.sqrt(np.mean((newest - values[end - 15 : end + 1]) ** 2)) for end in ends)
        assert model.stretches(np.array([row])).distances[0, 0] == pytest.approx(nearest)


def test_value_whose_square_does_not_fit_scores_the_most_and_no_other_is_taken_for_its_like() -> None:
    values = np.random.default_rng(4).normal(size=200)
    values[100], values[150] = 1e200, 1e140
    for length in (1, 16):
        model = LeftMatrixProfile(length=length).build(("a",))
        scores = model.score_learn(np.zeros(200, np.int64), values[:, None], np.arange(200.0))
        assert scores[100] == 1e30
        assert np.isfinite(scores).all()
        assert scores[150] > 1e20

"""Nearest neighbours online: brute-force distances, clusters that are not learned, regimes that are, Shuttle."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors.automatic import Auto
from detectors.base import Detector, Floats
from detectors.datasets import DATASETS
from detectors.draws import uniform
from detectors.neighbours import KNN, KNNModel
from detectors.quality import roc_auc


def _feed(model: KNNModel, values: Floats) -> Floats:
    values = np.asarray(values, np.float64).reshape(len(values), -1)
    return model.score_learn(
        np.zeros(len(values), np.int64), values, np.arange(len(values), dtype=np.float64)
    )


def test_scores_are_brute_force_distances_to_the_kth_of_the_latest_readings() -> None:
    values = np.random.default_rng(0).normal(size=(120, 3)) * [1.0, 10.0, 0.1] + [0.0, 50.0, 3.0]
    recipe = KNN(k=3, capacity=40, warmup=20, reservoir="sliding", held=1e9)
    model = recipe.build(("a", "b", "c"))
    for i in range(120):
        state = model.snapshot(np.array([0]))
        score = _feed(model, values[i : i + 1])[0]
        if i < 20:
            assert score == 0
            continue
        scaled = (values - values[i]) / np.sqrt(state["variance"][0])
        distances = np.sqrt((scaled[max(0, i - 40) : i] ** 2).sum(axis=1))
        if i > 20:
            assert score == pytest.approx(np.sort(distances)[2] / state["typical"][0], rel=1e-9)
        _, expected = model.contributions(np.array([0]))
        assert np.array_equal(expected[0], values[max(0, i - 40) : i][distances.argsort()[2]])
        assert model.nearest_distances(np.array([0]))[0] == pytest.approx(distances.min(), rel=1e-9)


def test_the_sample_is_uniform_at_first_and_forgets_beyond_the_horizon() -> None:
    model = KNN(k=1, capacity=200, warmup=2, held=1e9, horizon=2000).build(("x",))
    values = np.random.default_rng(0).permutation(2000).astype(np.float64)
    _feed(model, np.stack([values, np.arange(2000.0)], axis=1)[:, 1])
    kept = model.snapshot(np.array([0]))["examples"][0, :, 0]
    assert np.histogram(kept, bins=4, range=(0, 2000))[0] == pytest.approx([50] * 4, abs=20)
    _feed(model, np.arange(2000.0, 12000.0))
    assert np.median(model.snapshot(np.array([0]))["examples"][0, :, 0]) > 9000


def test_normal_readings_score_about_one_and_a_cluster_of_anomalies_is_not_learned() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6000, 4))
    anomalous = rng.random(6000) < 0.05
    anomalous[:100] = False
    values[anomalous] = 6.0 + 0.3 * rng.normal(size=(anomalous.sum(), 4))
    scores = _feed(KNN().build(("a", "b", "c", "d")), values)
    assert np.median(scores[~anomalous][100:]) == pytest.approx(1.0, abs=0.1)
    assert (scores[~anomalous] >= 5).mean() < 0.001
    assert (scores[anomalous][-100:] > 3).all()
    assert roc_auc(anomalous, scores) > 0.999


def test_a_new_regime_is_learned_when_it_stays_and_the_old_one_is_still_known() -> None:
    rng = np.random.default_rng(0)
    model = KNN(patience=100, reservoir="sliding", capacity=256).build(("x", "y"))
    _feed(model, rng.normal(size=(500, 2)))
    moved = _feed(model, 12.0 + rng.normal(size=(250, 2)))
    assert (moved[:100] > 3).all()
    assert np.median(moved[150:]) < 3
    assert _feed(model, rng.normal(size=(50, 2))).max() < 5


def test_the_reason_is_the_sensor_that_differs_from_the_kth_nearest_example() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=1000)
    model = KNN().build(("x", "double", "own"))
    _feed(model, np.stack([x, 2 * x, rng.normal(size=1000)], axis=1))
    _feed(model, np.array([[0.0, 0.0, -9.0]]))
    shares, expected = model.contributions(np.array([0]))
    assert shares[0, 2] < -0.9
    assert -5 < expected[0, 2] < 0
    assert model.nearest_distances(np.array([0]))[0] > 4


def test_a_missing_sensor_is_left_out_of_the_comparison_and_comes_back() -> None:
    rng = np.random.default_rng(0)
    model = KNN().build(("x", "y"))
    values = rng.normal(size=(600, 2))
    values[200:400, 1] = np.nan
    scores = _feed(model, values)
    assert np.median(scores[200:400]) < 2
    assert (scores < 5).mean() > 0.97
    assert _feed(model, np.array([[np.nan, 30.0]]))[0] > 5


def _with_gaps(gaps: str, rng: np.random.Generator) -> tuple[Floats, NDArray[np.int64]]:
    """Readings of three sensors, the second off by 13 in the rows that are returned with them."""
    values = rng.normal(size=(3400, 3))
    for i in range(1, len(values)):
        values[i] += 0.8 * values[i - 1]
    values[3200:3300, 1] += 13.0
    match gaps:
        case "some lost":
            values[rng.random(values.shape) < 0.03] = np.nan
        case "one dead from the start":
            values[:, 0] = np.nan
            values[rng.random(values.shape) < 0.03] = np.nan
        case "one dies":
            values[3000:, 0] = np.nan
            values[rng.random(values.shape) < 0.03] = np.nan
        case "one in every second reading":
            values[::2, 1] = np.nan
        case "one heard late":
            values[:2500, 1] = np.nan
        case "one pauses for long":
            values[1000:3000, 1] = np.nan
    return values, np.flatnonzero(np.isfinite(values[:, 1]) & (np.arange(3400) // 100 == 32))


@pytest.mark.parametrize("reservoir", ["sampled", "sliding"])
@pytest.mark.parametrize(
    "gaps",
    [
        "none",
        "some lost",
        "one dead from the start",
        "one dies",
        "one in every second reading",
        "one heard late",
        "one pauses for long",
    ],
)
@pytest.mark.parametrize("kind", [KNN, Auto])
def test_examples_with_gaps_hide_no_fault_and_blame_no_other_sensor(
    kind: type[Detector], gaps: str, reservoir: str
) -> None:
    recipe: Detector = KNN(reservoir=reservoir) if kind is KNN else Auto()  # type: ignore[arg-type]
    values, fault = _with_gaps(gaps, np.random.default_rng(2))
    model = recipe.build(("a", "b", "c"))
    learn = np.arange(3400) < 3200
    scores = model.score_learn(np.zeros(3400, np.int64), values, np.arange(3400.0), learn)
    anomalous = fault[scores[fault] >= model.threshold]
    assert len(anomalous) >= 0.9 * len(fault)
    shares, expected = model.contributions(anomalous)
    assert np.abs(shares).sum(axis=1) == pytest.approx(1.0)
    assert (np.abs(shares).argmax(axis=1) == 1).all()
    assert (shares[:, 1] > 0).all()
    assert (values[anomalous, 1] - expected[:, 1] > 4.0).all()
    assert (scores[1000:3200] >= model.threshold).mean() < 0.01


def test_a_reading_that_becomes_an_example_takes_what_it_lacks_from_the_nearest() -> None:
    rng = np.random.default_rng(0)
    on = rng.integers(0, 2, 400)
    values = rng.normal(size=(400, 2)) * 0.1 + np.stack([on * 50.0, 20.0 - on * 10.0], axis=1)
    values[rng.random(400) < 0.3, 1] = np.nan
    model = KNN(warmup=40).build(("load", "level"))
    _feed(model, values)
    examples = model.snapshot(np.array([0]))["examples"][0]
    assert examples[:, 1] == pytest.approx(np.where(examples[:, 0] > 25, 10.0, 20.0), abs=1.0)


def test_gaps_in_the_examples_of_an_older_state_are_filled() -> None:
    rng = np.random.default_rng(0)
    model = KNN().build(("x", "y", "never"))
    _feed(model, np.stack([*rng.normal(size=(2, 500)), np.full(500, np.nan)], axis=1))
    state = {name: rows.copy() for name, rows in model.snapshot(np.array([0])).items()}
    whole = state["examples"].copy()
    gaps = rng.random(128) < 0.3
    state["examples"][0, gaps, 1] = 1e300
    older = KNN().build(("x", "y", "never"))
    older.restore(np.array([0]), state)
    filled = older.snapshot(np.array([0]))["examples"]
    assert np.array_equal(filled[0, ~gaps], whole[0, ~gaps])
    assert np.isin(filled[0, gaps, 1], whole[0, ~gaps, 1]).all()
    assert (filled[0, :, 2] == 1e300).all()
    assert _feed(older, np.array([[0.0, 30.0, np.nan]]))[0] > 5


def test_the_reason_is_no_copy_of_the_reading_among_the_examples() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 2))
    values[[10, 20]] = 40.0
    model = KNN().build(("x", "y"))
    _feed(model, values)
    score = _feed(model, np.array([[40.0, 40.0]]))[0]
    shares, expected = model.contributions(np.array([0]))
    assert score > model.threshold
    assert shares.sum() == pytest.approx(1.0)
    assert (expected < 5).all()
    assert model.nearest_distances(np.array([0]))[0] == 0.0


def test_a_flat_sensor_does_not_drown_the_others_and_its_move_is_seen() -> None:
    rng = np.random.default_rng(0)
    model = KNN().build(("flat", "x"))
    _feed(model, np.stack([np.full(500, 7.0), rng.normal(size=500)], axis=1))
    assert 5 < _feed(model, np.array([[8.0, 0.0]]))[0] < 100


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="warmup"):
        KNN(k=30)
    model = KNN().build(("x",))
    state = dict(model.snapshot(np.array([0])))
    with pytest.raises(ValueError, match="state"):
        model.restore(np.array([0]), {**state, "counter": np.array([[200, 0, 0]])})


def test_draws_are_uniform_and_the_streams_unrelated() -> None:
    draws = np.array([[uniform(42, i, stream) for i in range(20000)] for stream in range(3)])
    for row in draws:
        assert row.mean() == pytest.approx(0.5, abs=0.01)
        assert row.var() == pytest.approx(1 / 12, rel=0.02)
    for one, other in itertools.combinations(draws, 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.03


def test_shuttle_is_told_apart_online_at_the_default_settings() -> None:
    data = DATASETS["shuttle"]()
    model = KNN().build(tuple(data.frame.columns))
    scores = _feed(model, data.frame.to_numpy())
    assert roc_auc(data.labels, scores) > 0.993
    assert (scores[data.labels] >= model.threshold).mean() > 0.98
    assert (scores[~data.labels] >= model.threshold).mean() < 0.01


def test_healthy_readings_are_learned_whatever_they_score() -> None:
    rng = np.random.default_rng(0)
    on = (np.arange(600) // 60) % 2
    values = rng.normal(size=(600, 1)) * 0.1 + 50.0 * on[:, np.newaxis]
    slots, times = np.zeros(600, np.int64), np.arange(600.0)
    unknown = KNN().build(("a",)).score_learn(slots, values, times)
    known = KNN(healthy=200).build(("a",)).score_learn(slots, values, times)
    assert (unknown[on == 1][-60:] >= 5.0).all()
    assert (known[200:] < 5.0).mean() > 0.95


@pytest.mark.parametrize("present", [2, 5])
def test_sensors_that_come_back_are_no_anomaly(present: int) -> None:
    """Neighbours are the nearer the fewer sensors there are, which must not narrow what is typical of whole readings;
    nor do examples made of half a reading crowd out whole ones."""
    values = np.random.default_rng(3).normal(size=(6000, 6))
    rows = np.arange(6000)
    values[2000:2500, 1:] = np.nan
    values[(rows >= 3000) & (rows % present != 0), 1:] = np.nan
    scores = _feed(KNN().build(tuple("abcdef")), values)
    whole = np.isfinite(values).all(axis=1)
    assert (scores[whole][300:] > 5.0).sum() == 0
    assert (scores[~whole] > 5.0).mean() < 0.005
    fault = np.append(np.zeros(3), [12.0, 0.0, 0.0])
    assert _feed(KNN().build(tuple("abcdef")), np.vstack([values, fault]))[-1] > 5.0

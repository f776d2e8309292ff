"""Running components and Mahalanobis distance: the papers' formulas written out in numpy, limits, missing sensors."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from detectors.base import Floats, Model
from detectors.charting import shrunk_distance
from detectors.limits import hotelling_limit, hotelling_table, residual_limit, table_row
from detectors.mahalanobis import Mahalanobis
from detectors.moments import axes
from detectors.online_pca import OnlinePCA

SENSORS = ("a", "b", "c", "d")
MIX = np.random.default_rng(5).normal(size=(2, 4))


def _plane(n: int, seed: int) -> Floats:
    """Readings near a plane in four sensors of different levels and sizes."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, 2)) @ MIX + 0.1 * rng.normal(size=(n, 4))
    return np.asarray(values * [1.0, 10.0, 0.1, 5.0] + [0.0, 50.0, 3.0, -7.0], dtype=np.float64)


def _score(model: Model, values: Floats) -> Floats:
    return model.score_learn(
        np.zeros(len(values), np.int64), values, np.arange(len(values), dtype=np.float64)
    )


def _moments(values: Floats, half_life: float) -> tuple[Floats, Floats]:
    """Mean and covariance by their definition: weighted sums over all readings, the first counting as one of many."""
    rate, n = 1 - 0.5 ** (1 / half_life), len(values)
    weights = np.zeros(n)
    for i in range(n):
        share = max(1 / (i + 1), rate)
        weights[:i] *= 1 - share
        weights[i] = share
    mean = weights @ values
    centred = values - mean
    return mean, (weights * centred.T) @ centred


def _effective(n: int, half_life: float) -> float:
    rate = float(1 - 0.5 ** (1 / half_life))
    return min(n, (2 - rate) / rate)


def _f_limit(n: float, p: int, level: float) -> float:
    """T² limit at the next smaller number of readings that is tabulated: four a doubling."""
    rows = int(2 ** (int(4 * np.log2(n)) / 4))
    return float(p * (rows**2 - 1) / (rows * (rows - p)) * stats.f.ppf(level, p, rows - p))


def _jackson_mudholkar(left: Floats, level: float) -> float:
    theta = [(left**i).sum() for i in (1, 2, 3)]
    h = 1 - 2 * theta[0] * theta[2] / (3 * theta[1] ** 2)
    root = stats.norm.ppf(level) * np.sqrt(2 * theta[1] * h**2) / theta[0]
    return float(theta[0] * (root + 1 + theta[1] * h * (h - 1) / theta[0] ** 2) ** (1 / h))


@pytest.mark.parametrize("variance", [0.8, 1.0])
def test_scores_are_t2_and_spe_over_their_limits(variance: float) -> None:
    values = _plane(260, 0)
    values[255:] += np.random.default_rng(1).normal(size=(5, 4)) * [3.0, 20.0, 0.3, 20.0]
    recipe = OnlinePCA(variance=variance, warmup=60, refresh=40, half_life=80, clip=1e9, level=0.999)
    model = recipe.build(SENSORS)
    scores = _score(model, values)
    shares, expected = model.contributions(np.arange(260))
    assert not scores[:60].any()
    decided = set()
    for i in range(60, 260):
        mean, covariance = _moments(values[:i], 80)
        sigma = np.sqrt(np.diag(covariance))
        at = 60 + (i - 60) // 40 * 40
        _, then = _moments(values[:at], 80)
        correlation = 0.99 * then / np.sqrt(np.outer(np.diag(then), np.diag(then))) + 0.01 * np.eye(4)
        eigenvalues, vectors = np.linalg.eigh(correlation)
        eigenvalues, vectors = eigenvalues[::-1], vectors[:, ::-1]
        kept = int(np.searchsorted(np.cumsum(eigenvalues) / 4, variance - 1e-9)) + 1
        z = (values[i] - mean) / sigma
        inner = z @ vectors[:, :kept]
        foot = vectors[:, :kept] @ inner
        t2 = (inner**2 / eigenvalues[:kept]).sum() / _f_limit(_effective(at, 80), kept, 0.999)
        spe = ((z - foot) ** 2).sum() / _jackson_mudholkar(eigenvalues[kept:], 0.999) if kept < 4 else 0.0
        assert scores[i] == pytest.approx(max(t2, spe), rel=1e-6)
        decided.add(spe > t2)
        terms = (z - foot) * abs(z - foot)
        if spe <= t2:
            gradient = vectors[:, :kept] @ (inner / eigenvalues[:kept])
            terms = np.maximum(z * gradient, 0) * np.sign(z)
        np.testing.assert_allclose(shares[i], terms / abs(terms).sum(), atol=1e-6)
        np.testing.assert_allclose(expected[i], mean + sigma * foot if spe > t2 else mean, rtol=1e-6)
    assert decided == ({True, False} if variance < 1 else {False})


def test_mahalanobis_is_the_distance_by_shrunk_correlations_over_its_limit() -> None:
    values = _plane(150, 2)
    model = Mahalanobis(warmup=50, half_life=60, clip=1e9, level=0.99).build(SENSORS)
    scores = _score(model, values)
    shares, expected = model.contributions(np.arange(150))
    assert not scores[:50].any()
    for i in range(50, 150):
        mean, covariance = _moments(values[:i], 60)
        sigma, n = np.sqrt(np.diag(covariance)), _effective(i, 60)
        r = covariance / np.outer(sigma, sigma)
        off = r[np.triu_indices(4, 1)]
        doubt = ((1 - off**2) ** 2 / (int(n) - 1)).sum() / (off**2).sum()
        shrunk = r * (1 - max(doubt, 0.01)) + np.eye(4) * max(doubt, 0.01)
        z = (values[i] - mean) / sigma
        force = np.linalg.solve(shrunk, z)
        assert scores[i] == pytest.approx(z @ force / _f_limit(n, 4, 0.99), rel=1e-6)
        terms = np.maximum(z * force, 0) * np.sign(z)
        np.testing.assert_allclose(shares[i], terms / abs(terms).sum(), atol=1e-7)
        likely = mean + sigma * (z - force / np.diag(np.linalg.inv(shrunk)))
        np.testing.assert_allclose(expected[i], likely, rtol=1e-6)


def test_mahalanobis_without_a_sensor_is_that_of_the_others() -> None:
    train, probe = _plane(200, 3), _plane(20, 4)
    holed = probe.copy()
    holed[:, 1] = np.nan
    rest = [0, 2, 3]
    for values, sensors in ((train, SENSORS), (train[:, rest], ("a", "c", "d"))):
        model = Mahalanobis(warmup=50).build(sensors)
        _score(model, np.ascontiguousarray(values))
        given = holed if len(sensors) == 4 else np.ascontiguousarray(probe[:, rest])
        learn = np.zeros(20, np.bool_)
        found = model.score_learn(np.zeros(20, np.int64), given, np.zeros(20), learn)
        if len(sensors) == 4:
            first = found
    np.testing.assert_allclose(first, found, rtol=0.1)


@pytest.mark.parametrize("recipe", [OnlinePCA(), Mahalanobis()])
def test_few_normal_readings_reach_the_limit_and_a_broken_relation_does(
    recipe: OnlinePCA | Mahalanobis,
) -> None:
    model = recipe.build(SENSORS)
    scores = _score(model, _plane(10_000, 6))
    assert (scores >= 1).mean() < 1e-3
    broken = _plane(50, 7)
    broken[:, 3] = broken[::-1, 3]
    learn = np.zeros(50, np.bool_)
    found = model.score_learn(np.zeros(50, np.int64), broken, np.zeros(50), learn)
    assert (found >= 1).mean() > 0.4
    shares, expected = model.contributions(np.arange(50))
    assert np.median(abs(shares[found >= 1, 3])) > 0.2
    assert np.isfinite(expected).all()


def test_components_follow_a_relation_that_changes() -> None:
    model = OnlinePCA(half_life=100, refresh=20).build(SENSORS)
    _score(model, _plane(500, 8))
    other = _plane(1500, 9)[:, [1, 0, 3, 2]].copy()
    scores = _score(model, other)
    assert np.median(scores[:10]) > 5
    assert (scores[-500:] >= 1).mean() < 0.02


def test_eigenvalues_and_axes_are_those_of_lapack() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 20):
        half = rng.normal(size=(size, size))
        matrix = half @ half.T
        found, vectors = matrix.copy(), np.empty((size, size))
        axes(found, vectors)
        np.testing.assert_allclose(np.diag(found), np.linalg.eigvalsh(matrix)[::-1], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(vectors.T * np.diag(found) @ vectors, matrix, atol=1e-9)


def test_limits_are_met_by_as_many_normal_readings_as_they_say() -> None:
    rng = np.random.default_rng(0)
    for eigenvalues in ([1.0, 0.5, 0.2], [3.0] + [0.01] * 30):
        spe = rng.normal(size=(200_000, len(eigenvalues))) ** 2 @ np.array(eigenvalues)
        limit = residual_limit(np.array(eigenvalues), float(stats.norm.ppf(0.99)))
        assert (spe < limit).mean() == pytest.approx(0.99, abs=0.005)
    fresh = rng.normal(size=(4000, 25, 3))
    seen, new = fresh[:, :24], fresh[:, 24]
    centred = seen - seen.mean(axis=1, keepdims=True)
    covariance = np.einsum("nij,nik->njk", centred, centred) / 23
    away = new - seen.mean(axis=1)
    t2 = np.einsum("nj,nj->n", away, np.linalg.solve(covariance, away[:, :, None])[:, :, 0])
    assert (t2 < hotelling_limit(24, 3, 0.99)).mean() == pytest.approx(0.99, abs=0.005)
    assert hotelling_table(3, 0.99)[table_row(24.0), 2] >= hotelling_limit(24, 3, 0.99)
    assert hotelling_limit(3, 3, 0.99) == np.inf


def test_half_life_that_is_short_for_the_sensors_is_refused() -> None:
    many = tuple(f"s{i}" for i in range(30))
    for recipe in (OnlinePCA(half_life=20.0), Mahalanobis(half_life=20.0)):
        with pytest.raises(ValueError, match=r"half_life: 20.0 readings are too few for 30 sensors"):
            recipe.build(many)


def test_state_that_cannot_be_is_refused() -> None:
    model = OnlinePCA(warmup=20).build(SENSORS)
    _score(model, _plane(50, 0))
    state = model.snapshot(np.array([0]))
    for name, value in (("kept", 5), ("kept", -1), ("count", -1), ("limits", 0.0)):
        odd = np.full_like(state[name], value)
        with pytest.raises(ValueError, match=f"state '{name}'"):
            model.restore(np.array([0]), {**state, name: odd})
    distance = Mahalanobis().build(SENSORS)
    state = distance.snapshot(np.array([0]))
    with pytest.raises(ValueError, match="negative"):
        distance.restore(np.array([0]), {**state, "count": state["count"] - 1})


@pytest.mark.parametrize("recipe", [Mahalanobis(half_life=60, warmup=30), OnlinePCA(half_life=60, warmup=30)])
def test_sensors_that_start_late_or_never_meet_alarm_no_more_than_others(
    recipe: Mahalanobis | OnlinePCA,
) -> None:
    values = 1000.0 + _plane(3000, 11)
    values[:70, 1] = values[:150, 2] = np.nan
    patchy = values.copy()
    for sensor in range(4):
        patchy[np.random.default_rng(sensor).random(3000) < 0.6, sensor] = np.nan
    patchy[1000:2000, :2][np.arange(1000) % 2 == 0] = np.nan
    for clean in (values, patchy):
        scores = _score(recipe.build(SENSORS), clean)
        assert np.isfinite(scores).all()
        assert (scores >= 1.0).mean() < 0.01
        assert scores.max() < 20.0


def test_correlations_that_contradict_each_other_are_shrunk_until_they_do_not() -> None:
    scatter = np.array([[1.0, 0.0, 0.0], [0.9, 1.0, 0.0], [0.9, -0.9, 1.0]])
    assert np.linalg.eigvalsh(scatter).min() < 0
    away = np.array([1.0, -1.0, 1.0])
    assert 0 < shrunk_distance(scatter, away, 1_000_000, 3) < 1000.0
    assert np.isfinite(away).all()

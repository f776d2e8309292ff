"""Trained neighbours: scikit-learn's distances and local outlier factors, weights that are checked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.neighbors import LocalOutlierFactor as Theirs
from sklearn.neighbors import NearestNeighbors

from detectors.base import Floats, Model
from detectors.density import LocalOutlierFactor, TrainedKNN


def _frame(n: int = 500) -> pd.DataFrame:
    """A dense and a thin regime, sensors in different units."""
    rng = np.random.default_rng(0)
    dense = rng.normal([0.0, 100.0, 0.0], [0.1, 1.0, 0.001], (n // 2, 3))
    thin = rng.normal([10.0, 300.0, 0.1], [2.0, 20.0, 0.02], (n - n // 2, 3))
    return pd.DataFrame(np.concatenate([dense, thin]), columns=["a", "b", "c"])


def _new(n: int = 200) -> Floats:
    return np.random.default_rng(1).uniform([-5.0, 50.0, -0.1], [20.0, 400.0, 0.2], (n, 3))


def _score(model: Model, values: Floats) -> Floats:
    return model.score_learn(np.zeros(len(values), np.int64), values, np.zeros(len(values)))


def _standard(values: Floats) -> Floats:
    matrix = _frame().to_numpy()
    standard: Floats = (values - matrix.mean(axis=0)) / matrix.std(axis=0)
    return standard


@pytest.mark.parametrize("k", [1, 5, 20])
def test_local_outlier_factors_equal_scikit_learns(k: int) -> None:
    frame = _frame()
    model = LocalOutlierFactor.load(LocalOutlierFactor(k=k).fit(frame))
    theirs = Theirs(n_neighbors=k, novelty=True).fit(_standard(frame.to_numpy()))
    np.testing.assert_allclose(_score(model, _new()), -theirs.score_samples(_standard(_new())), rtol=1e-9)
    np.testing.assert_allclose(_score(model, frame.to_numpy()), -theirs.negative_outlier_factor_, rtol=1e-9)


@pytest.mark.parametrize("k", [1, 5])
def test_distances_equal_scikit_learns(k: int) -> None:
    frame = _frame()
    weights = TrainedKNN(k=k).fit(frame)
    theirs = NearestNeighbors(n_neighbors=k).fit(_standard(frame.to_numpy()))
    distances, _ = theirs.kneighbors(_standard(_new()))
    scores = _score(TrainedKNN.load(weights), _new())
    np.testing.assert_allclose(scores * weights.arrays["limit"][0], distances[:, -1], rtol=1e-9)


def test_a_reading_just_outside_the_dense_regime_is_local_and_expects_an_example() -> None:
    frame, odd = _frame(), np.array([[1.0, 100.0, 0.0]])
    local = LocalOutlierFactor.load(LocalOutlierFactor(quantile=0.99).fit(frame))
    far = TrainedKNN.load(TrainedKNN(quantile=0.99).fit(frame))
    assert _score(far, odd)[0] < far.threshold
    assert _score(local, odd)[0] > 2 * local.threshold
    shares, expected = local.contributions(np.array([0]))
    assert shares[0, 0] > 0.9
    assert np.isclose(frame.to_numpy(), expected[0], rtol=1e-9, atol=1e-12).all(axis=1).any()


def test_a_missing_sensor_is_left_out_of_the_comparison() -> None:
    model = TrainedKNN.load(TrainedKNN().fit(_frame()))
    scores = _score(model, np.array([[0.0, np.nan, 0.0], [0.0, np.nan, 9.0], [np.nan] * 3]))
    assert scores[0] < 1 < scores[1]
    assert scores[2] == 0


def test_weights_that_do_not_fit_are_refused() -> None:
    weights = LocalOutlierFactor().fit(_frame())
    for name, array in (
        ("density", np.zeros(500)),
        ("reach", np.zeros(3)),
        ("examples", np.full((500, 3), np.nan)),
        ("scale", -np.ones(3)),
    ):
        with pytest.raises(ValueError, match="weights"):
            LocalOutlierFactor.load(replace(weights, arrays={**weights.arrays, name: array}))
    with pytest.raises(ValueError, match="do not fit"):
        LocalOutlierFactor.load(replace(weights, settings={"k": 10_000}))
    with pytest.raises(ValueError, match="kind"):
        TrainedKNN.load(weights)

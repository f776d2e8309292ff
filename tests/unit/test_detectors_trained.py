"""Trained detectors: scikit-learn's scores, reasons that add up, weights that are checked before they are used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn import ensemble

from detectors import registry
from detectors.base import Floats, Model, Weights
from detectors.envelope import EllipticEnvelope
from detectors.isolation import IsolationForest
from detectors.subspace import PCA

KINDS = sorted(set(registry.TRAINABLE) - {"onnx"})
"""Of a file of one's own: test_detectors_onnx.py."""
NEAREST = {"autoencoder", "knn_trained", "local_outlier_factor"}


def _frame(n: int = 400) -> pd.DataFrame:
    """Two sensors that move together, one of its own, one that never moves."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=n)
    return pd.DataFrame(
        {"x": x, "double": 2 * x + 0.1 * rng.normal(size=n), "own": rng.normal(5, 3, n), "flat": 4.0}
    )


def _score(model: Model, values: Any) -> Floats:
    values = np.asarray(values, np.float64)
    return model.score_learn(np.zeros(len(values), np.int64), values, np.zeros(len(values)))


@pytest.mark.parametrize("kind", KINDS)
def test_an_anomaly_scores_above_the_threshold_and_its_sensor_has_the_share(kind: str) -> None:
    model = registry.load(registry.TRAINABLE[kind]().fit(_frame()))
    scores = _score(model, [[0.0, 0.0, 5.0, 4.0], [0.0, 0.0, 60.0, 4.0], [9.0, -18.0, 60.0, 4.0]])
    assert scores[0] < scores[1]
    assert scores[0] < model.threshold <= scores[2]
    shares, expected = model.contributions(np.array([1]))
    assert shares[0].argmax() == 2
    if kind in NEAREST:  # they expect the nearest reading they know, here one near the highest, 13.6
        assert 5.0 < expected[0, 2] < 20.0
    else:
        assert expected[0, 2] == pytest.approx(5.0, abs=1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_repeatable_and_its_weights_are_numbers(kind: str) -> None:
    first, second = (registry.TRAINABLE[kind]().fit(_frame()) for _ in range(2))
    assert first.kind == kind
    assert first.sensors == ("x", "double", "own", "flat")
    assert set(first.arrays) == set(second.arrays)
    for name, array in first.arrays.items():
        assert array.dtype.kind in "iuf"
        assert np.array_equal(array, second.arrays[name])


@pytest.mark.parametrize("kind", KINDS)
def test_the_threshold_lets_the_wanted_share_of_the_training_data_pass(kind: str) -> None:
    frame = _frame(2000)
    model = registry.load(registry.TRAINABLE[kind](quantile=0.98).fit(frame))
    assert (_score(model, frame) >= model.threshold).mean() == pytest.approx(0.02, abs=0.002)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_with_missing_values_are_left_out_of_training(kind: str) -> None:
    frame = _frame()
    holed = pd.concat([frame, frame.assign(own=np.nan)], ignore_index=True)
    one, other = (registry.TRAINABLE[kind]().fit(data) for data in (frame, holed))
    for name in one.arrays:
        assert np.array_equal(one.arrays[name], other.arrays[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (_frame(10), "at least"),
        (_frame().assign(own=np.nan), '"own"'),
        (_frame().assign(own="text"), "not numeric"),
        (_frame()[[]], "columns"),
    ],
    ids=["few", "missing", "text", "none"],
)
def test_training_data_that_does_not_suffice_is_refused(kind: str, frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        registry.TRAINABLE[kind]().fit(frame)


@pytest.mark.parametrize("kind", KINDS)
def test_data_that_never_moves_trains_a_model_that_stays_silent_on_it(kind: str) -> None:
    frame = pd.DataFrame({"on": np.ones(100), "off": np.zeros(100)})
    model = registry.load(registry.TRAINABLE[kind]().fit(frame))
    assert (_score(model, frame) < model.threshold).all()


def test_isolation_forest_scores_equal_scikit_learns() -> None:
    frame = _frame()
    model = IsolationForest.load(IsolationForest(seed=3).fit(frame))
    theirs = ensemble.IsolationForest(n_estimators=100, max_samples=256, random_state=3).fit(frame.to_numpy())
    values = np.random.default_rng(1).normal(0, 5, (500, 4))
    np.testing.assert_allclose(_score(model, values), -theirs.score_samples(values), rtol=0, atol=1e-9)


def test_pca_finds_a_broken_relation_and_expects_the_relation() -> None:
    model = PCA.load(PCA().fit(_frame()))
    scores = _score(model, [[1.0, 2.0, 5.0, 4.0], [1.0, 0.0, 5.0, 4.0]])
    assert scores[0] < 1 <= scores[1]
    shares, expected = model.contributions(np.array([1]))
    assert shares[0, 1] < -0.3
    assert 0 < expected[0, 1] < 2


def test_pca_fills_a_missing_sensor_from_the_others() -> None:
    model = PCA.load(PCA(variance=0.7).fit(_frame()))
    scores = _score(model, [[1.0, np.nan, 5.0, 4.0], [np.nan] * 4])
    assert (scores < 1).all()
    _, expected = model.contributions(np.array([0]))
    assert expected[0, 1] == pytest.approx(2.0, abs=0.2)


def test_theoretical_limits_hold_for_normal_data() -> None:
    frame = pd.DataFrame(
        np.random.default_rng(0).normal(size=(5000, 4)) @ np.random.default_rng(1).normal(size=(4, 4))
    )
    for recipe in (
        PCA(limit="theory", quantile=0.99, variance=0.8),
        EllipticEnvelope(limit="theory", quantile=0.99),
    ):
        model = recipe.load(recipe.fit(frame))
        assert 0.003 < (_score(model, frame) >= 1).mean() < 0.03


def test_elliptic_envelope_expects_what_the_other_sensors_say() -> None:
    model = EllipticEnvelope.load(EllipticEnvelope().fit(_frame()))
    scores = _score(model, [[1.0, -2.0, 5.0, 4.0], [1.0, np.nan, 5.0, 4.0]])
    assert scores[1] < 1 <= scores[0]
    _, expected = model.contributions(np.array([0, 1]))
    assert expected[:, 1] == pytest.approx([2.0, 2.0], abs=0.3)


def test_elliptic_envelope_is_not_tilted_by_anomalies_in_the_training_data() -> None:
    frame = _frame()
    spoiled = frame.copy()
    spoiled.loc[:60, ["x", "double"]] = [8.0, -16.0]
    clean, robust = (EllipticEnvelope().fit(data).arrays["center"] for data in (frame, spoiled))
    np.testing.assert_allclose(clean, robust, atol=0.5)


def _with(weights: Weights, name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Weights:
    return replace(weights, arrays={**weights.arrays, name: change(weights.arrays[name].copy())})


def _put(index: Any, value: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def change(array: NDArray[Any]) -> NDArray[Any]:
        array[index] = value
        return array

    return change


FOREST = IsolationForest(n_trees=5).fit(_frame())
PLANE = PCA(variance=0.6).fit(_frame())
ELLIPSE = EllipticEnvelope().fit(_frame())
INNER = int(np.flatnonzero(FOREST.arrays["feature"] >= 0)[1])


@pytest.mark.parametrize(
    "weights",
    [
        _with(FOREST, "left", _put(INNER, 0)),
        _with(FOREST, "left", _put(INNER, INNER)),
        _with(FOREST, "right", _put(INNER, 10**6)),
        _with(FOREST, "right", _put(INNER, -5)),
        _with(FOREST, "feature", _put(INNER, 99)),
        _with(FOREST, "roots", _put(0, 1)),
        _with(FOREST, "roots", _put(1, 10**6)),
        _with(FOREST, "roots", lambda array: array[:0]),
        _with(FOREST, "split", _put(INNER, np.nan)),
        _with(FOREST, "split", lambda array: array[:-1]),
        _with(FOREST, "depth", _put(0, -1.0)),
        _with(FOREST, "normal_depth", _put(0, 0.0)),
        _with(FOREST, "median", lambda array: array[:-1]),
        _with(FOREST, "median", lambda array: array.astype(object)),
        replace(FOREST, arrays={}),
        replace(FOREST, sensors=("x",)),
        replace(FOREST, kind="pca"),
        replace(FOREST, kind="nothing"),
        replace(FOREST, threshold=float("nan")),
        _with(PLANE, "components", lambda array: array.T.copy()),
        _with(PLANE, "components", lambda array: 2 * array),
        _with(PLANE, "variances", lambda array: array[:-1]),
        _with(PLANE, "variances", lambda array: -array),
        _with(PLANE, "scale", _put(0, 0.0)),
        _with(PLANE, "limits", _put(0, np.inf)),
        _with(ELLIPSE, "precision", lambda array: -array),
        _with(ELLIPSE, "precision", _put((0, 1), 1e3)),
        _with(ELLIPSE, "limit", _put(0, 0.0)),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights: Weights) -> None:
    with pytest.raises(ValueError, match=r"weights|unknown kind"):
        registry.load(weights)

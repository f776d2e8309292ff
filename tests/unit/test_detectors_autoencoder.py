"""Autoencoder: the network's own outputs, curves that a plane cannot follow, weights that are checked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest

from detectors.autoencoder import Autoencoder
from detectors.base import Floats, Model
from detectors.quality import roc_auc
from detectors.subspace import PCA


def _curve(n: int, seed: int) -> Floats:
    """Readings on a closed curve in three sensors."""
    rng = np.random.default_rng(seed)
    turn = rng.uniform(0, 2 * np.pi, n)
    values: Floats = np.stack([np.cos(turn), np.sin(turn), np.cos(2 * turn)], axis=1)
    return values + 0.02 * rng.normal(size=(n, 3))


def _score(model: Model, values: Floats) -> Floats:
    return model.score_learn(np.zeros(len(values), np.int64), values, np.zeros(len(values)))


FRAME = pd.DataFrame(_curve(1000, 0), columns=["x", "y", "z"])
WEIGHTS = Autoencoder().fit(FRAME)


def test_scores_are_those_of_the_network_written_out_in_numpy() -> None:
    arrays, values = WEIGHTS.arrays, _curve(50, 1) * 1.3
    graph = onnx.load_model_from_string(arrays["graph"].tobytes()).graph
    inside = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    standard = (values - arrays["center"]) / arrays["scale"]
    signal = np.clip(standard, -6, 6)
    for layer in range(4):
        signal = signal @ inside[f"weights_{layer}"] + inside[f"offsets_{layer}"]
        signal = np.tanh(signal) if layer < 3 else signal
    model = Autoencoder.load(WEIGHTS)
    errors = ((standard - signal) ** 2).mean(axis=1) / arrays["limits"][1]
    np.testing.assert_allclose(_score(model, values), errors, rtol=1e-9)
    _, expected = model.contributions(np.arange(50))
    np.testing.assert_allclose(expected, signal * arrays["scale"] + arrays["center"], rtol=1e-9, atol=1e-12)


def test_readings_off_a_curve_are_told_apart_better_than_by_a_plane() -> None:
    normal, odd = _curve(500, 2), np.random.default_rng(3).uniform(-1, 1, (500, 3))
    values, labels = np.concatenate([normal, odd]), np.arange(1000) >= 500
    auc = roc_auc(labels, _score(Autoencoder.load(WEIGHTS), values))
    plane = roc_auc(labels, _score(PCA.load(PCA(variance=0.6).fit(FRAME)), values))
    assert auc > 0.85
    assert auc > plane + 0.05


def test_a_missing_sensor_is_rebuilt_from_the_others() -> None:
    model = Autoencoder.load(WEIGHTS)
    values = _curve(200, 4)
    holed = values.copy()
    holed[:, 2] = np.nan
    assert np.median(_score(model, holed)) < 1
    _, expected = model.contributions(np.arange(200))
    assert np.corrcoef(expected[:, 2], values[:, 2])[0, 1] > 0.5
    assert _score(model, np.full((1, 3), np.nan))[0] == 0


def test_one_sensor_can_be_trained() -> None:
    model = Autoencoder.load(Autoencoder(epochs=50).fit(FRAME[["x"]]))
    assert _score(model, np.array([[50.0]]))[0] > 1


def test_weights_that_do_not_fit_are_refused() -> None:
    for name, array in (
        ("graph", WEIGHTS.arrays["graph"][:-1]),
        ("graph", Autoencoder(epochs=1).fit(FRAME[["x", "y"]]).arrays["graph"]),
        ("scale", np.zeros(3)),
        ("limits", np.zeros(2)),
    ):
        with pytest.raises(ValueError, match=r"weights|ONNX|graph|input"):
            Autoencoder.load(replace(WEIGHTS, arrays={**WEIGHTS.arrays, name: array}))


def test_the_same_rows_give_the_same_bytes() -> None:
    again = Autoencoder().fit(FRAME)
    assert again.arrays["graph"].tobytes() == WEIGHTS.arrays["graph"].tobytes()


def test_graph_alone_rebuilds_readings_for_anybody_who_loads_it() -> None:
    session = onnxruntime.InferenceSession(WEIGHTS.arrays["graph"].tobytes())
    model, values = Autoencoder.load(WEIGHTS), _curve(20, 5)
    _score(model, values)
    [rebuilt] = session.run(None, {"reading": values})
    np.testing.assert_allclose(rebuilt, model.contributions(np.arange(20)).expected, rtol=1e-9)

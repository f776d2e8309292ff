"""Autoencoder: a small network that can only rebuild what normal looks like; what it cannot rebuild scores high."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from msgspec import Meta

from detectors.base import Floats, TrainableDetector, Weights
from detectors.fitting import LEAST_LIMIT, made, spread, training_matrix
from detectors.onnx import ONNXModel, rebuilding

if TYPE_CHECKING:  # takes a while, for those who train
    import pandas as pd

__all__ = ["Autoencoder"]

_SEEN = 6.0
"""The network sees deviations of at most so many sigmas: beyond it nothing was trained."""


class Autoencoder(TrainableDetector, frozen=True, kw_only=True):
    """Scores by the mean squared error, in sigmas, with which the network rebuilds a reading; threshold 1.

    Kramer, "Nonlinear principal component analysis using autoassociative neural networks", AIChE Journal 1991:
    sensors, `hidden` tanh units, `code` units in the bottleneck, `hidden` units, sensors; trained with Adam by
    scikit-learn's MLPRegressor on standardised rows, each also with one sensor put to its mean (denoising,
    Vincent et al., ICML 2008), which is what a missing sensor counts as. The network is stored as an ONNX graph,
    scaling included, and scored by onnxruntime. Fails on little training data, where several sensors are missing at
    once, and where a fault happens to lie on the curve between regimes that the network has drawn.

    >>> import pandas as pd
    >>> x = np.sin(np.arange(400.0))
    >>> model = Autoencoder.load(Autoencoder(code=1).fit(pd.DataFrame({"x": x, "double": 2 * x})))
    >>> model.score_learn(np.zeros(2, np.int64), np.array([[0.9, 1.8], [0.5, -1.0]]), np.zeros(2)) >= 1
    array([False,  True])
    """

    kind: ClassVar[str] = "autoencoder"

    hidden: Annotated[int, Meta(ge=1, le=512)] = 16
    code: Annotated[int, Meta(ge=1, le=512)] = 2
    """Units of the bottleneck; fewer than sensors, or everything can be rebuilt."""
    epochs: Annotated[int, Meta(ge=1, le=10_000)] = 200
    """Passes over the training data."""
    seed: int = 42

    def fit(self, frame: pd.DataFrame) -> Weights:
        """Train on complete rows, at least 50. Raises ValueError if there are fewer. Some seconds at 2,000 rows."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPRegressor

        sensors, matrix = training_matrix(frame, 50)
        center = matrix.mean(axis=0)
        scale = spread(matrix, center)
        standard = np.clip((matrix - center) / scale, -_SEEN, _SEEN)
        network = MLPRegressor(
            hidden_layer_sizes=(self.hidden, self.code, self.hidden),
            activation="tanh",
            max_iter=self.epochs,
            learning_rate_init=0.005,
            random_state=self.seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # `epochs` is the stopping rule
            network.fit(*_lessons(standard, self.seed))
        layers = list(zip(network.coefs_, network.intercepts_, strict=True))
        graph = rebuilding(center, scale, _SEEN, layers)
        arrays = {"graph": graph, "center": center, "scale": scale, "limits": np.array([0.0, 1.0])}
        weights = made(self, sensors, 1.0, arrays)
        errors = ONNXModel(weights, self.kind).raw(matrix)
        limit = max(float(np.quantile(errors, self.quantile)), LEAST_LIMIT)
        return replace(weights, arrays={**arrays, "limits": np.array([0.0, limit])})

    @classmethod
    def load(cls, weights: Weights) -> ONNXModel:
        """The model of these weights. Raises ValueError on shapes, numbers or a graph that do not fit."""
        return ONNXModel(weights, cls.kind)


def _lessons(standard: Floats, seed: int) -> tuple[Floats, Floats]:
    """What the network is given and what it must say: every row, and again with one sensor at its mean."""
    if standard.shape[1] == 1:
        return standard, standard[:, 0]
    holed = standard.copy()
    holed[np.arange(len(holed)), np.random.default_rng(seed).integers(0, holed.shape[1], len(holed))] = 0.0
    return np.concatenate([standard, holed]), np.concatenate([standard, standard])

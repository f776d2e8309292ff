"""Autoencoder: a small network that can only rebuild what normal looks like; what it cannot rebuild scores high."""

from __future__ import annotations

import warnings
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
from msgspec import Meta
from numpy.typing import NDArray

from detectors.base import Contributions, Floats, Mask, Rows, Slots, TrainableDetector, Weights
from detectors.fitting import LARGEST_DEVIATION, LEAST_LIMIT, checked, made, spread, training_matrix
from detectors.kernels import compiled, floats

__all__ = ["Autoencoder", "AutoencoderModel"]

_SEEN = 6.0
"""The network sees deviations of at most so many sigmas: beyond it nothing was trained."""


class Autoencoder(TrainableDetector, frozen=True, kw_only=True):
    """Scores by the mean squared error, in sigmas, with which the network rebuilds a reading; threshold 1.

    Kramer, "Nonlinear principal component analysis using autoassociative neural networks", AIChE Journal 1991:
    sensors, `hidden` tanh units, `code` units in the bottleneck, `hidden` units, sensors; trained with Adam by
    scikit-learn's MLPRegressor on standardised rows, each also with one sensor put to its mean (denoising,
    Vincent et al., ICML 2008), which is what a missing sensor counts as. The weights are plain arrays. Fails on
    little training data, where several sensors are missing at once, and where a fault happens to lie on the
    curve between regimes that the network has drawn.

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
        arrays: dict[str, NDArray[np.float64]] = {"center": center, "scale": scale, "limit": np.ones(1)}
        for layer in range(4):
            arrays[f"weights_{layer}"] = np.ascontiguousarray(network.coefs_[layer].T, np.float64)
            arrays[f"offsets_{layer}"] = np.array(network.intercepts_[layer], np.float64)
        model = AutoencoderModel(made(self, sensors, 1.0, arrays))
        errors = model.score_learn(np.zeros(len(matrix), np.int64), matrix, np.zeros(len(matrix)))
        arrays["limit"] = np.array([max(float(np.quantile(errors, self.quantile)), LEAST_LIMIT)])
        return made(self, sensors, 1.0, arrays)

    @classmethod
    def load(cls, weights: Weights) -> AutoencoderModel:
        """The model of these weights. Raises ValueError on shapes or numbers that do not fit."""
        return AutoencoderModel(weights)


class AutoencoderModel:
    """The network; no state per key."""

    def __init__(self, weights: Weights) -> None:
        n = len(weights.sensors)
        shapes: dict[str, tuple[int | None, ...]] = {"center": (n,), "scale": (n,), "limit": (1,)}
        for layer in range(4):
            shapes[f"weights_{layer}"] = (None, None)
            shapes[f"offsets_{layer}"] = (None,)
        arrays = checked(weights, Autoencoder.kind, shapes)
        width = n
        for layer in range(4):
            matrix = arrays[f"weights_{layer}"]
            if matrix.shape[1] != width or len(arrays[f"offsets_{layer}"]) != len(matrix):
                raise ValueError("weights: the network's layers do not fit together")
            width = len(matrix)
        if width != n or (arrays["scale"] <= 0).any() or (arrays["limit"] <= 0).any():
            raise ValueError("weights: the network must give every sensor; scale and limit must be positive")
        self.sensors = weights.sensors
        self.threshold = weights.threshold
        self._arrays = arrays
        self._layers = tuple((arrays[f"weights_{layer}"], arrays[f"offsets_{layer}"]) for layer in range(4))
        self._errors: Floats = np.zeros((0, n))
        self._expected: Floats = np.zeros((0, n))

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """Scores (n,), 1 at the limit; nothing is learned. See `Model`. Some 1.2 µs per reading of 8 sensors."""
        values, arrays = floats(values), self._arrays
        scores = np.zeros(len(values))
        self._errors, self._expected = np.zeros(values.shape), np.zeros(values.shape)
        _score(
            values,
            arrays["center"],
            arrays["scale"],
            self._layers,
            arrays["limit"][0],
            scores,
            self._errors,
            self._expected,
        )
        return scores

    def contributions(self, rows: NDArray[np.int64]) -> Contributions:
        """Shares by squared error; expected is what the network rebuilt."""
        squares = self._errors[rows] ** 2
        total = squares.sum(axis=1, keepdims=True)
        shares = np.sign(self._errors[rows]) * squares / np.where(total > 0, total, 1.0)
        return Contributions(shares, self._expected[rows])

    def snapshot(self, slots: Slots) -> Rows:
        """Nothing: the model has no state per key."""
        return {}

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Raises ValueError if there is any state to put back."""
        if rows:
            raise ValueError(f"state has {sorted(rows)}, expected none")


def _lessons(standard: Floats, seed: int) -> tuple[Floats, Floats]:
    """What the network is given and what it must say: every row, and again with one sensor at its mean."""
    if standard.shape[1] == 1:
        return standard, standard[:, 0]
    holed = standard.copy()
    holed[np.arange(len(holed)), np.random.default_rng(seed).integers(0, holed.shape[1], len(holed))] = 0.0
    return np.concatenate([standard, holed]), np.concatenate([standard, standard])


@compiled(
    "void(float64[:,::1], float64[::1], float64[::1], UniTuple(Tuple((float64[:,::1], float64[::1])), 4), float64,"
    " float64[::1], float64[:,::1], float64[:,::1])"
)
def _score(
    values: Floats,
    center: Floats,
    scale: Floats,
    layers: tuple[tuple[Floats, Floats], ...],
    limit: float,
    scores: Floats,
    errors: Floats,
    expected: Floats,
) -> None:
    n_sensors = values.shape[1]
    widest = n_sensors
    for matrix, _ in layers:
        widest = max(widest, matrix.shape[0])
    z, known = np.empty(n_sensors), np.empty(n_sensors, np.bool_)
    given, result = np.empty(widest), np.empty(widest)
    for i in range(values.shape[0]):
        n_known = 0
        for j in range(n_sensors):
            known[j] = np.isfinite(values[i, j])
            n_known += known[j]
            z[j] = (values[i, j] - center[j]) / scale[j] if known[j] else 0.0
            z[j] = min(max(z[j], -LARGEST_DEVIATION), LARGEST_DEVIATION)
            given[j] = min(max(z[j], -_SEEN), _SEEN)
        for layer in range(4):
            matrix, offsets = layers[layer]
            for a in range(matrix.shape[0]):
                total = offsets[a]
                for b in range(matrix.shape[1]):
                    total += matrix[a, b] * given[b]
                result[a] = np.tanh(total) if layer < 3 else total
            for a in range(matrix.shape[0]):
                given[a] = result[a]
        for j in range(n_sensors):
            expected[i, j] = center[j] + scale[j] * given[j]
            if known[j]:
                errors[i, j] = z[j] - given[j]
                scores[i] += errors[i, j] * errors[i, j] / (n_known * limit)

"""Trained on examples: distance to the nearest ones, and how much thinner they lie here than around them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from detectors.base import Contributions, Floats, Mask, Rows, Slots, TrainableDetector, Weights
from detectors.fitting import LARGEST_DEVIATION, LEAST_LIMIT, checked, made, spread, training_matrix
from detectors.kernels import compiled, floats

if TYPE_CHECKING:  # takes a while, for those who train
    import pandas as pd

__all__ = ["ExamplesModel", "LocalOutlierFactor", "TrainedKNN"]

_LEAST_FACTOR = 1.001
"""A threshold of local outlier factors lies above 1, that of a reading as dense as its neighbours."""
_LEAST_REACH = 1e-10
"""scikit-learn's: keeps the density of copies finite."""


class TrainedKNN(TrainableDetector, frozen=True, kw_only=True):
    """Scores by the distance to the k-th nearest training example, in standardised units; threshold 1.

    Ramaswamy, Rastogi and Shim, "Efficient algorithms for mining outliers from large data sets", SIGMOD 2000.
    The distance is divided by its `quantile` on the training data, where no row counts as its own neighbour.
    Missing sensors are left out of the comparison. Fails where normal regimes differ much in density (use
    `LocalOutlierFactor`) and where many sensors are irrelevant.

    >>> import pandas as pd
    >>> frame = pd.DataFrame({"x": np.sin(np.arange(300.0))})
    >>> model = TrainedKNN.load(TrainedKNN().fit(frame))
    >>> model.score_learn(np.zeros(2, np.int64), np.array([[0.5], [3.0]]), np.zeros(2)) >= 1
    array([False,  True])
    """

    kind: ClassVar[str] = "knn_trained"

    k: Annotated[int, Meta(ge=1, le=100)] = 5
    sample: Annotated[int, Meta(ge=20, le=100_000)] = 1000
    """Training rows kept as examples, drawn at random; the cost of a score grows with them."""
    seed: int = 42

    def fit(self, frame: pd.DataFrame) -> Weights:
        """Train on complete rows, at least 20 and twice k. Raises ValueError if there are fewer."""
        sensors, arrays, matrix = _examples(frame, self.k, self.sample, self.seed)
        distances, _ = _scores(matrix, arrays, self.k)
        limit = max(float(np.quantile(distances, self.quantile)), LEAST_LIMIT)
        return made(self, sensors, 1.0, {**arrays, "limit": np.array([limit])})

    @classmethod
    def load(cls, weights: Weights) -> ExamplesModel:
        """The model of these weights. Raises ValueError on shapes or numbers that do not fit."""
        return ExamplesModel(weights, cls.kind)


class LocalOutlierFactor(TrainableDetector, frozen=True, kw_only=True):
    """Scores by how many times thinner training examples lie around a reading than around its neighbours.

    Breunig, Kriegel, Ng and Sander, "LOF: identifying density-based local outliers", SIGMOD 2000. Scores equal
    those of scikit-learn's `LocalOutlierFactor(novelty=True)` on the standardised examples, except that a
    reading equal to an example leaves one such example out, which gives training rows the scores of new
    ones. The threshold is the `quantile` of the training scores. Missing sensors are left out of the
    comparison. Fails where k or more anomalies of one sort are in the training data.

    >>> import pandas as pd
    >>> frame = pd.DataFrame({"x": np.sin(np.arange(300.0))})
    >>> model = LocalOutlierFactor.load(LocalOutlierFactor().fit(frame))
    >>> model.score_learn(np.zeros(2, np.int64), np.array([[0.5], [3.0]]), np.zeros(2)) >= model.threshold
    array([False,  True])
    """

    kind: ClassVar[str] = "local_outlier_factor"

    k: Annotated[int, Meta(ge=1, le=100)] = 20
    sample: Annotated[int, Meta(ge=20, le=100_000)] = 1000
    """Training rows kept as examples, drawn at random; the cost of a score grows with them."""
    seed: int = 42

    def fit(self, frame: pd.DataFrame) -> Weights:
        """Train on complete rows, at least 20 and twice k. Raises ValueError if there are fewer."""
        sensors, arrays, matrix = _examples(frame, self.k, self.sample, self.seed)
        _, factors = _scores(matrix, arrays, self.k)
        threshold = max(float(np.quantile(factors, self.quantile)), _LEAST_FACTOR)
        return made(self, sensors, threshold, {**arrays, "limit": np.ones(1)})

    @classmethod
    def load(cls, weights: Weights) -> ExamplesModel:
        """The model of these weights. Raises ValueError on shapes or numbers that do not fit."""
        return ExamplesModel(weights, cls.kind)


class ExamplesModel:
    """The examples with their densities; no state per key."""

    def __init__(self, weights: Weights, kind: str) -> None:
        n = len(weights.sensors)
        shapes: dict[str, tuple[int | None, ...]] = {"center": (n,), "scale": (n,), "examples": (None, n)}
        self._arrays = checked(weights, kind, {**shapes, "reach": (None,), "density": (None,), "limit": (1,)})
        k = weights.settings.get("k")
        if not {len(self._arrays[name]) for name in ("examples", "reach", "density")} == {
            len(self._arrays["examples"])
        } or not (isinstance(k, int) and 1 <= k < len(self._arrays["examples"])):
            raise ValueError("weights: k, examples, reach and density do not fit")
        if any((self._arrays[name] <= 0).any() for name in ("scale", "density", "limit")):
            raise ValueError("weights: scale, density and limit must be positive")
        self.sensors = weights.sensors
        self.threshold = weights.threshold
        self._k = k
        self._local = kind == LocalOutlierFactor.kind
        self._differences: Floats = np.zeros((0, n))
        self._expected: Floats = np.zeros((0, n))

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """Scores (n,); nothing is learned. See `Model`. 22 µs per reading of 8 sensors, 1,000 examples."""
        values, arrays = floats(values), self._arrays
        distances, factors = np.zeros(len(values)), np.zeros(len(values))
        self._differences, self._expected = np.zeros(values.shape), np.full(values.shape, np.nan)
        _score(
            values,
            arrays["center"],
            arrays["scale"],
            arrays["examples"],
            arrays["reach"],
            arrays["density"],
            self._k,
            distances,
            factors,
            self._differences,
            self._expected,
        )
        return factors if self._local else distances / arrays["limit"][0]

    def contributions(self, rows: NDArray[np.int64]) -> Contributions:
        """Shares by squared difference, in sigmas, to the nearest example; expected is that example."""
        squares = self._differences[rows] ** 2
        total = squares.sum(axis=1, keepdims=True)
        shares = np.sign(self._differences[rows]) * squares / np.where(total > 0, total, 1.0)
        return Contributions(shares, self._expected[rows])

    def nearest_distances(self, rows: NDArray[np.int64]) -> Floats:
        """Distance (k,) to the nearest training example, in standard deviations of the training data."""
        distances: Floats = np.sqrt((self._differences[rows] ** 2).sum(axis=1))
        return np.where(np.isfinite(self._expected[rows]).any(axis=1), distances, np.nan)

    def snapshot(self, slots: Slots) -> Rows:
        """Nothing: the model has no state per key."""
        return {}

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Raises ValueError if there is any state to put back."""
        if rows:
            raise ValueError(f"state has {sorted(rows)}, expected none")


def _examples(
    frame: pd.DataFrame, k: int, sample: int, seed: int
) -> tuple[tuple[str, ...], dict[str, Floats], Floats]:
    """Sensors, the arrays that describe the examples (standardised), and all training rows."""
    sensors, matrix = training_matrix(frame, max(20, 2 * k))
    center = matrix.mean(axis=0)
    scale = spread(matrix, center)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(matrix))[: max(sample, 2 * k)])
    examples = np.ascontiguousarray(((matrix - center) / scale)[chosen])
    m = len(examples)
    arrays = {
        "center": center,
        "scale": scale,
        "examples": examples,
        "reach": np.zeros(m),
        "density": np.ones(m),
    }
    reach, _ = _scores(matrix[chosen], arrays, k)
    arrays["reach"] = reach
    _, factors = _scores(matrix[chosen], arrays, k)  # all densities are 1 yet: the mean reachability distance
    arrays["density"] = 1.0 / factors
    return sensors, arrays, matrix


def _scores(matrix: Floats, arrays: dict[str, Floats], k: int) -> tuple[Floats, Floats]:
    """Distances to the k-th nearest example and local outlier factors of rows, both (n,)."""
    distances, factors = np.zeros(len(matrix)), np.zeros(len(matrix))
    _score(
        floats(matrix),
        arrays["center"],
        arrays["scale"],
        arrays["examples"],
        arrays["reach"],
        arrays["density"],
        k,
        distances,
        factors,
        np.zeros(matrix.shape),
        np.zeros(matrix.shape),
    )
    return distances, factors


@compiled(
    "void(float64[:,::1], float64[::1], float64[::1], float64[:,::1], float64[::1], float64[::1], int64,"
    " float64[::1], float64[::1], float64[:,::1], float64[:,::1])"
)
def _score(
    values: Floats,
    center: Floats,
    scale: Floats,
    examples: Floats,
    reach: Floats,
    density: Floats,
    k: int,
    distances: Floats,
    factors: Floats,
    differences: Floats,
    expected: Floats,
) -> None:
    n_sensors = values.shape[1]
    z, known = np.empty(n_sensors), np.empty(n_sensors, np.bool_)
    best, nearest = np.empty(k), np.empty(k, np.int64)
    for i in range(values.shape[0]):
        n_known = 0
        for j in range(n_sensors):
            known[j] = np.isfinite(values[i, j])
            n_known += known[j]
            z[j] = (values[i, j] - center[j]) / scale[j] if known[j] else 0.0
            z[j] = min(max(z[j], -LARGEST_DEVIATION), LARGEST_DEVIATION)
        if n_known == 0:
            continue
        best[:] = np.inf
        nearest[:] = 0
        itself = n_known == n_sensors  # one example equal to the reading is taken for the reading
        for e in range(examples.shape[0]):
            total = 0.0
            for j in range(n_sensors):
                if known[j]:
                    total += (z[j] - examples[e, j]) * (z[j] - examples[e, j])
                    if total >= best[k - 1]:
                        break
            if total == 0.0 and itself:
                itself = False
                continue
            if total >= best[k - 1]:
                continue
            place = k - 1
            while place > 0 and best[place - 1] > total:
                best[place], nearest[place] = best[place - 1], nearest[place - 1]
                place -= 1
            best[place], nearest[place] = total, e
        reachable, neighbours = 0.0, 0.0
        for place in range(k):
            distance = np.sqrt(best[place] * n_sensors / n_known)
            reachable += max(distance, reach[nearest[place]])
            neighbours += density[nearest[place]]
        distances[i] = np.sqrt(best[k - 1] * n_sensors / n_known)
        factors[i] = neighbours / k * (reachable / k + _LEAST_REACH)
        for j in range(n_sensors):
            expected[i, j] = center[j] + scale[j] * examples[nearest[0], j]
            if known[j]:
                differences[i, j] = z[j] - examples[nearest[0], j]

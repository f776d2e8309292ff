"""Principal components: readings off the plane of normal operation, or too far out on it, score high."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import pandas as pd
from msgspec import Meta
from numpy.typing import NDArray

from detectors.base import Contributions, Floats, Mask, Rows, Slots, TrainableDetector, Weights
from detectors.fitting import LARGEST_DEVIATION, LEAST_LIMIT, checked, made, spread, training_matrix
from detectors.kernels import compiled, floats

__all__ = ["PCA", "PCAModel"]

_MOST_ROUNDS = 100
"""Bound on the iteration that fills missing sensors."""


class PCA(TrainableDetector, frozen=True, kw_only=True):
    """Scores by Hotelling's T² (distance within the plane) and SPE (squared distance from it).

    Jackson and Mudholkar, "Control procedures for residuals associated with principal component analysis",
    Technometrics 1979. Each statistic is divided by its own limit and the larger counts, so the threshold
    is 1. Missing sensors are filled with the values that fit the plane best (projection to the known data,
    Nelson et al. 1996). Fails where sensors relate in curves or operate in several regimes, and where the
    training data holds many anomalies (they tilt the plane).

    >>> x = np.sin(np.arange(300.0))
    >>> frame = pd.DataFrame({"x": x, "double": 2 * x + 0.01 * np.cos(7 * np.arange(300.0))})
    >>> model = PCA.load(PCA().fit(frame))
    >>> model.score_learn(np.zeros(2, np.int64), np.array([[0.5, 1.0], [0.5, 0.5]]), np.zeros(2)) >= 1
    array([False,  True])
    """

    kind: ClassVar[str] = "pca"

    variance: Annotated[float, Meta(gt=0, le=1)] = 0.9
    """Share of the variance that the kept components must explain."""
    limit: Literal["quantile", "theory"] = "quantile"
    """`theory`: limits by the F distribution and Jackson-Mudholkar at the level `quantile`, for normal data.
    `quantile`: the same, multiplied so that this share of the training data lies below the threshold."""
    seed: int = 42

    def fit(self, frame: pd.DataFrame) -> Weights:
        """Train on complete rows, at least 20 and five per sensor. Raises ValueError if there are fewer."""
        from sklearn import decomposition  # takes a second, which only training needs to pay

        sensors, matrix = training_matrix(frame, max(20, 5 * frame.shape[1]))
        center = matrix.mean(axis=0)
        scale = spread(matrix, center)
        standard = (matrix - center) / scale
        with np.errstate(divide="ignore", invalid="ignore"):  # data without any variance
            pca = decomposition.PCA(svd_solver="full", random_state=self.seed).fit(standard)
        eigenvalues = np.maximum(pca.explained_variance_, 0.0)
        explained = np.cumsum(eigenvalues) / max(eigenvalues.sum(), 1e-300)
        kept = min(int(np.searchsorted(explained, self.variance - 1e-12)) + 1, len(eigenvalues))
        components, variances = pca.components_[:kept], np.maximum(eigenvalues[:kept], 1e-9)
        inner = standard @ components.T
        distance = (inner**2 / variances).sum(axis=1)
        error = ((standard - inner @ components) ** 2).sum(axis=1)
        theory = [_hotelling(len(matrix), kept, self.quantile), _residual(eigenvalues[kept:], self.quantile)]
        limits = np.maximum(theory, 1e-9)
        if self.limit == "quantile":
            ratios = np.maximum(distance / limits[0], error / limits[1])
            limits *= max(float(np.quantile(ratios, self.quantile)), LEAST_LIMIT)
        arrays = {
            "center": center,
            "scale": scale,
            "components": np.ascontiguousarray(components),
            "variances": variances,
            "limits": limits,
        }
        return made(self, sensors, 1.0, arrays)

    @classmethod
    def load(cls, weights: Weights) -> PCAModel:
        """The model of these weights. Raises ValueError on shapes or numbers that do not fit."""
        return PCAModel(weights)


class PCAModel:
    """The plane; no state per key."""

    def __init__(self, weights: Weights) -> None:
        n = len(weights.sensors)
        arrays = checked(
            weights,
            PCA.kind,
            {"center": (n,), "scale": (n,), "components": (None, n), "variances": (None,), "limits": (2,)},
        )
        if len(arrays["components"]) != len(arrays["variances"]) or len(arrays["components"]) > n:
            raise ValueError("weights: components and their variances do not fit")
        if any((arrays[name] <= 0).any() for name in ("scale", "variances", "limits")):
            raise ValueError("weights: scale, variances and limits must be positive")
        product = arrays["components"] @ arrays["components"].T
        if not np.allclose(product, np.eye(len(product)), atol=1e-6):
            raise ValueError("weights: components are not orthonormal")
        self.sensors = weights.sensors
        self.threshold = weights.threshold
        self._arrays = arrays
        self._shares: Floats = np.zeros((0, n))
        self._expected: Floats = np.zeros((0, n))

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """Scores (n,), 1 at the limit; nothing is learned. See `Model`. Under 1 µs per reading of 8 sensors."""
        values, arrays = floats(values), self._arrays
        scores = np.zeros(len(values))
        self._shares, self._expected = np.zeros(values.shape), np.zeros(values.shape)
        _score(
            values,
            arrays["center"],
            arrays["scale"],
            arrays["components"],
            arrays["variances"],
            arrays["limits"],
            scores,
            self._shares,
            self._expected,
        )
        return scores

    def contributions(self, rows: NDArray[np.int64]) -> Contributions:
        """Exact terms of the statistic that dominates.

        SPE: squared residuals; expected is the reconstruction. T²: each sensor's terms in the sum (complete
        decomposition, negative ones left out); expected is the training mean, of a missing sensor its
        reconstruction.
        """
        shares = self._shares[rows]
        total = np.abs(shares).sum(axis=1, keepdims=True)
        return Contributions(shares / np.where(total > 0, total, 1.0), self._expected[rows])

    def snapshot(self, slots: Slots) -> Rows:
        """Nothing: the model has no state per key."""
        return {}

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Raises ValueError if there is any state to put back."""
        if rows:
            raise ValueError(f"state has {sorted(rows)}, expected none")


def _hotelling(rows: int, kept: int, level: float) -> float:
    """Limit of T² for a new reading, from the F distribution."""
    from scipy import stats

    factor = kept * (rows - 1) * (rows + 1) / (rows * (rows - kept))
    return float(factor * stats.f.ppf(level, kept, rows - kept))


def _residual(eigenvalues: Floats, level: float) -> float:
    """Limit of SPE by Jackson and Mudholkar from the eigenvalues that are left out."""
    from scipy import stats

    first, second, third = (float((eigenvalues**power).sum()) for power in (1, 2, 3))
    if second <= 1e-18:
        return 1e-9
    h = 1.0 - 2.0 * first * third / (3.0 * second**2)
    if h <= 1e-3:  # then a chi-square of matched mean and variance (Box 1954)
        return float(second / first * stats.chi2.ppf(level, first**2 / second))
    spread_term = stats.norm.ppf(level) * np.sqrt(2.0 * second * h**2) / first
    return float(first * (spread_term + 1.0 + second * h * (h - 1.0) / first**2) ** (1.0 / h))


@compiled(
    "void(float64[:,::1], float64[::1], float64[::1], float64[:,::1], float64[::1], float64[::1],"
    " float64[::1], float64[:,::1], float64[:,::1])"
)
def _score(
    values: Floats,
    center: Floats,
    scale: Floats,
    components: Floats,
    variances: Floats,
    limits: Floats,
    scores: Floats,
    shares: Floats,
    expected: Floats,
) -> None:
    n_kept, n_sensors = components.shape
    z, rebuilt = np.empty(n_sensors), np.empty(n_sensors)
    known = np.empty(n_sensors, np.bool_)
    inner = np.empty(n_kept)
    for i in range(values.shape[0]):
        complete = True
        for j in range(n_sensors):
            known[j] = np.isfinite(values[i, j])
            complete = complete and known[j]
            deviation = (values[i, j] - center[j]) / scale[j] if known[j] else 0.0
            z[j] = min(max(deviation, -LARGEST_DEVIATION), LARGEST_DEVIATION)
        for _ in range(1 if complete else _MOST_ROUNDS):
            rebuilt[:] = 0.0
            for c in range(n_kept):
                inner[c] = 0.0
                for j in range(n_sensors):
                    inner[c] += components[c, j] * z[j]
                for j in range(n_sensors):
                    rebuilt[j] += inner[c] * components[c, j]
            change = 0.0
            for j in range(n_sensors):
                if not known[j]:
                    change = max(change, abs(rebuilt[j] - z[j]))
                    z[j] = min(max(rebuilt[j], -LARGEST_DEVIATION), LARGEST_DEVIATION)
            if change < 1e-9:
                break
        distance, error = 0.0, 0.0
        for c in range(n_kept):
            distance += inner[c] * inner[c] / variances[c]
        for j in range(n_sensors):
            if known[j]:
                error += (z[j] - rebuilt[j]) ** 2
        scores[i] = max(distance / limits[0], error / limits[1])
        if error / limits[1] >= distance / limits[0]:
            for j in range(n_sensors):
                expected[i, j] = center[j] + scale[j] * rebuilt[j]
                if known[j]:
                    shares[i, j] = (z[j] - rebuilt[j]) * abs(z[j] - rebuilt[j])
            continue
        for j in range(n_sensors):
            expected[i, j] = center[j] if known[j] else center[j] + scale[j] * rebuilt[j]
            gradient = 0.0
            for c in range(n_kept):
                gradient += inner[c] / variances[c] * components[c, j]
            if known[j]:
                shares[i, j] = max(z[j] * gradient, 0.0) * np.sign(z[j])

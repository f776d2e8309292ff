"""Elliptic envelope: readings far from the robust centre, measured by how sensors vary together, score high."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from detectors.base import Contributions, Floats, Mask, Rows, Slots, TrainableDetector, Weights
from detectors.fitting import LARGEST_DEVIATION, LEAST_LIMIT, checked, made, spread, training_matrix
from detectors.kernels import compiled, floats

if TYPE_CHECKING:  # takes a while, for those who train
    import pandas as pd

__all__ = ["EllipticEnvelope", "EllipticEnvelopeModel"]

_MOST_ROUNDS = 100
"""Bound on the iteration that fills missing sensors."""
_MOST_ROWS = 20_000
"""Rows the robust covariance is estimated from; more change nothing but the time."""


class EllipticEnvelope(TrainableDetector, frozen=True, kw_only=True):
    """Scores by the squared Mahalanobis distance from a robust centre, divided by its limit: threshold 1.

    Rousseeuw and Van Driessen, "A fast algorithm for the minimum covariance determinant estimator",
    Technometrics 1999, by scikit-learn; up to half of the training rows but one in four by default may be
    anomalous without tilting the ellipse. A missing sensor is filled with what the others make most likely.
    Fails on normal operation that is not one ellipse: several regimes, curved relations, seasons.

    >>> import pandas as pd
    >>> x = np.random.default_rng(0).normal(size=(300, 1))
    >>> frame = pd.DataFrame(np.hstack([x, x + 0.1 * np.random.default_rng(1).normal(size=(300, 1))]))
    >>> model = EllipticEnvelope.load(EllipticEnvelope().fit(frame))
    >>> model.score_learn(np.zeros(2, np.int64), np.array([[1.0, 1.0], [1.0, -1.0]]), np.zeros(2)) >= 1
    array([False,  True])
    """

    kind: ClassVar[str] = "elliptic_envelope"

    support: Annotated[float, Meta(ge=0.5, le=1)] = 0.75
    """Share of the rows taken as normal while estimating."""
    shrinkage: Annotated[float, Meta(gt=0, le=1)] = 0.01
    """Share of the sensors' plain variance mixed in: keeps sensors that hardly move, or copy another, usable."""
    limit: Literal["quantile", "theory"] = "quantile"
    """The limit: `quantile` of the training data's distances, or of the chi-square distribution."""
    seed: int = 42

    def fit(self, frame: pd.DataFrame) -> Weights:
        """Train on complete rows, at least 20 and ten per sensor. Raises ValueError if there are fewer."""
        from scipy import stats  # both take a second, which only training needs to pay
        from sklearn.covariance import MinCovDet

        sensors, matrix = training_matrix(frame, max(20, 10 * frame.shape[1]))
        middle = np.median(matrix, axis=0)
        scale = spread(matrix, matrix.mean(axis=0))
        standard = (matrix - middle) / scale
        rng = np.random.default_rng(self.seed)
        chosen = rng.choice(len(standard), min(len(standard), _MOST_ROWS), replace=False)
        # The jitter, a thousandth of a sigma, keeps quantised and constant sensors from a singular subset.
        sample = standard[chosen] + 1e-3 * rng.normal(size=(len(chosen), len(sensors)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rank and determinant warnings: the shrinkage below settles both
            robust = MinCovDet(support_fraction=self.support, random_state=self.seed).fit(sample)
        covariance = (1 - self.shrinkage) * robust.covariance_ + self.shrinkage * np.eye(len(sensors))
        precision = np.linalg.inv(covariance)
        precision = (precision + precision.T) / 2
        centered = standard - robust.location_
        distance = np.einsum("ij,jk,ik->i", centered, precision, centered)
        theory = float(stats.chi2.ppf(self.quantile, len(sensors)))
        limit = theory if self.limit == "theory" else float(np.quantile(distance, self.quantile))
        limit = max(limit, LEAST_LIMIT * theory)
        arrays = {
            "center": middle + scale * robust.location_,
            "scale": scale,
            "precision": precision,
            "limit": np.array([limit]),
        }
        return made(self, sensors, 1.0, arrays)

    @classmethod
    def load(cls, weights: Weights) -> EllipticEnvelopeModel:
        """The model of these weights. Raises ValueError on shapes or numbers that do not fit."""
        return EllipticEnvelopeModel(weights)


class EllipticEnvelopeModel:
    """The ellipse; no state per key."""

    def __init__(self, weights: Weights) -> None:
        n = len(weights.sensors)
        arrays = checked(
            weights,
            EllipticEnvelope.kind,
            {"center": (n,), "scale": (n,), "precision": (n, n), "limit": (1,)},
        )
        precision = arrays["precision"]
        if (arrays["scale"] <= 0).any() or arrays["limit"][0] <= 0:
            raise ValueError("weights: scale and limit must be positive")
        if not np.allclose(precision, precision.T) or np.linalg.eigvalsh(precision).min() <= 0:
            raise ValueError("weights: precision is not symmetric and positive definite")
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
            arrays["precision"],
            float(arrays["limit"][0]),
            scores,
            self._shares,
            self._expected,
        )
        return scores

    def contributions(self, rows: NDArray[np.int64]) -> Contributions:
        """Each sensor's terms d_j (P d)_j of the distance; expected is what the other sensors make likely."""
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


@compiled(
    "void(float64[:,::1], float64[::1], float64[::1], float64[:,::1], float64, float64[::1], float64[:,::1],"
    " float64[:,::1])"
)
def _score(
    values: Floats,
    center: Floats,
    scale: Floats,
    precision: Floats,
    limit: float,
    scores: Floats,
    shares: Floats,
    expected: Floats,
) -> None:
    n_sensors = values.shape[1]
    d, force = np.empty(n_sensors), np.empty(n_sensors)
    known = np.empty(n_sensors, np.bool_)
    for i in range(values.shape[0]):
        missing = 0
        for j in range(n_sensors):
            known[j] = np.isfinite(values[i, j])
            missing += not known[j]
            deviation = (values[i, j] - center[j]) / scale[j] if known[j] else 0.0
            d[j] = min(max(deviation, -LARGEST_DEVIATION), LARGEST_DEVIATION)
        for _ in range(_MOST_ROUNDS if missing else 0):  # Gauss-Seidel: the likeliest values given the known
            change = 0.0
            for j in range(n_sensors):
                if known[j]:
                    continue
                pull = 0.0
                for k in range(n_sensors):
                    pull += precision[j, k] * d[k]
                step = pull / precision[j, j]
                d[j] = min(max(d[j] - step, -LARGEST_DEVIATION), LARGEST_DEVIATION)
                change = max(change, abs(step))
            if change < 1e-9:
                break
        distance = 0.0
        for j in range(n_sensors):
            force[j] = 0.0
            for k in range(n_sensors):
                force[j] += precision[j, k] * d[k]
            distance += d[j] * force[j]
            likely = d[j] - force[j] / precision[j, j]
            expected[i, j] = center[j] + scale[j] * likely
            if known[j]:
                shares[i, j] = max(d[j] * force[j], 0.0) * np.sign(d[j] - likely)
        scores[i] = max(distance, 0.0) / limit

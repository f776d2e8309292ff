"""Forecasts by exponential smoothing whose rates, season and spread were fitted to training data."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from detectors.base import Floats, Mask, Slots, TrainableDetector, Weights
from detectors.fitting import LEAST_LIMIT, checked, made, training_matrix
from detectors.kernels import compiled, floats, slot_numbers
from detectors.residuals import LARGEST_SCORE, ResidualModel, bounded
from detectors.table import Column

if TYPE_CHECKING:  # takes a while, for those who train
    import pandas as pd

__all__ = ["ExponentialSmoothing", "ExponentialSmoothingModel"]

_LEAST_RATE = 0.01
"""Bound of the level's rate, so that no level is remembered for ever."""
_LEVEL_RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)
_TREND_RATES = (0.0, 0.01, 0.05, 0.2, 0.5)
"""Where the search for the rates begins: the best of these pairs."""
_FIRST = 10
"""Rows whose mean is the level that the fit starts from."""


class ExponentialSmoothing(TrainableDetector, frozen=True, kw_only=True):
    """Scores by how far a reading is from a forecast whose smoothing was fitted to training data, in sigmas.

    Level, damped trend and, where `season` is given, a pattern that repeats after so many readings (Holt 1957,
    Winters 1960, Gardner and McKenzie 1985). Per sensor the rates of level and trend minimise the squared
    one-step forecast errors of the training data (Hyndman, Koehler, Ord and Snyder, "Forecasting with
    Exponential Smoothing", 2008), their root mean square is the sigma, and the season is the mean by phase of
    what a centred moving average leaves.

    Rates, sigma, season and threshold stay as trained. What a key carries is its recent past: level and trend,
    which follow every reading whatever the `learn` mask says, for the next forecast starts from them. A reading
    more than `clip` sigmas off moves them as if it were `clip` sigmas off; after `patience` such readings in a
    row to one side the level is where they are. A missing reading is replaced by its forecast. A key begins
    with level, trend and phase of the end of the training data, as if it went on from there.

    Fails on slow faults, which the level follows, on machines that were not trained on and behave otherwise,
    and, with a season, on keys that do not begin where the training data ended and on lost readings (the phase
    is then wrong: use `seasonal_profile`). Training data with many anomalies gives wide sigmas.

    >>> import pandas as pd
    >>> rng = np.random.default_rng(0)
    >>> walk = np.cumsum(rng.normal(size=601))
    >>> model = ExponentialSmoothing.load(ExponentialSmoothing().fit(pd.DataFrame({"level": walk[:600]})))
    >>> after = np.array([[walk[600]], [walk[600] + 9.0]])
    >>> model.score_learn(np.zeros(2, np.int64), after, np.arange(2.0)) >= model.threshold
    array([False,  True])
    """

    kind: ClassVar[str] = "exponential_smoothing"

    season: Annotated[int, Meta(ge=2, le=100_000)] | None = None
    """Readings after which a pattern repeats; null: none. Training needs three of these."""
    damping: Annotated[float, Meta(gt=0, le=1)] = 0.98
    """What is left of the trend after each reading (phi)."""
    clip: Annotated[float, Meta(gt=1)] = 3.0
    """Sigmas beyond which a deviation moves the level no further."""
    patience: Annotated[int, Meta(ge=2)] = 10
    """Readings beyond `clip` in a row, to one side, after which the level is taken from them."""

    def fit(self, frame: pd.DataFrame) -> Weights:
        """Train on complete rows in order of time, at least 20 and three seasons. Raises ValueError if too few."""
        sensors, matrix = training_matrix(frame, max(20, 3 * (self.season or 0)))
        season = np.zeros((len(sensors), self.season or 1))
        if self.season:
            season = np.array([_season(column, self.season) for column in matrix.T])
        rest = matrix - season[:, np.arange(len(matrix)) % season.shape[1]].T
        level = rest[:_FIRST].mean(axis=0)
        rates = np.array([_fitted(column, self.damping) for column in rest.T])
        errors = [_squares(floats(c), r[0], r[1], self.damping) for c, r in zip(rest.T, rates, strict=True)]
        sigma = np.sqrt(np.array(errors) / len(matrix))
        center = np.abs(matrix).mean(axis=0)
        flat = sigma <= 1e-9 * center
        sigma[flat] = np.where(center == 0.0, 1.0, 1e-3 * center)[flat]
        arrays = {
            "rates": rates,
            "sigma": sigma,
            "season": season,
            "level": level,
            "trend": np.zeros(len(sensors)),
            "phase": np.zeros(1),
        }
        begin = made(self, sensors, 1.0, arrays)
        model, key = ExponentialSmoothingModel(begin), np.zeros(1, np.int64)
        scores = model.score_learn(np.zeros(len(matrix), np.int64), matrix, np.zeros(len(matrix)))
        state = model.snapshot(key)
        end = {"level": state["level"][0], "trend": state["trend"][0]}
        phase = np.array([float(len(matrix) % season.shape[1])])
        threshold = max(float(np.quantile(scores, self.quantile)), LEAST_LIMIT)
        return replace(begin, threshold=threshold, arrays={**arrays, **end, "phase": phase})

    @classmethod
    def load(cls, weights: Weights) -> ExponentialSmoothingModel:
        """The model of these weights. Raises ValueError on shapes or numbers that do not fit."""
        return ExponentialSmoothingModel(weights)


class ExponentialSmoothingModel(ResidualModel):
    """The fitted rates; state per key: readings so far, and per sensor level, trend and a run, 8 + 24 bytes a sensor.

    The state is in the sensors' units and of the same shape whatever was trained.
    """

    def __init__(self, weights: Weights) -> None:
        n = len(weights.sensors)
        shapes: dict[str, tuple[int | None, ...]] = {
            "rates": (n, 2),
            "sigma": (n,),
            "season": (n, None),
            "level": (n,),
            "trend": (n,),
            "phase": (1,),
        }
        self._arrays = checked(weights, ExponentialSmoothing.kind, shapes)
        rates, length = self._arrays["rates"], self._arrays["season"].shape[1]
        if (self._arrays["sigma"] <= 0.0).any() or (rates < 0.0).any() or (rates > 1.0).any():
            raise ValueError("weights: sigma must be positive, rates between 0 and 1")
        if not 0 <= self._arrays["phase"][0] < length:
            raise ValueError(f"weights: phase must lie within the season of {length}")
        try:
            self._recipe = msgspec.convert(dict(weights.settings), ExponentialSmoothing)
        except msgspec.ValidationError as error:
            raise ValueError(f"weights: settings do not fit: {error}") from error
        columns = {
            "count": Column(np.int64),
            "level": Column(np.float64, (n,)),
            "trend": Column(np.float64, (n,)),
            "run": Column(np.int64, (n,)),
        }
        super().__init__(weights.sensors, weights.threshold, columns)

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """Scores (n,) in sigmas, at most a million; see `Model`. `learn` changes nothing: the recent past is
        remembered of every reading, and no more is. About 0.1 µs per reading of 8 sensors."""
        slots, values = slot_numbers(slots), floats(values)
        table, arrays, recipe = self._table, self._arrays, self._recipe
        table.reserve(slots)
        scores = np.zeros(len(slots))
        self._deviations, self._expected = np.zeros(values.shape), np.full(values.shape, np.nan)
        _score(
            slots,
            values,
            table["count"],
            table["level"],
            table["trend"],
            table["run"],
            arrays["rates"],
            arrays["sigma"],
            arrays["season"],
            arrays["level"],
            arrays["trend"],
            int(arrays["phase"][0]),
            recipe.damping,
            recipe.clip,
            recipe.patience,
            scores,
            self._deviations,
            self._expected,
        )
        return scores

    def forget_recent(self, slots: Slots, sensors: Mask) -> None:
        """See `ForgettingModel`: level and trend are those that the training ended with."""
        table, arrays, columns = self._table, self._arrays, np.flatnonzero(sensors)
        table.reserve(slots)
        at = np.ix_(slots[table["count"][slots] > 0], columns)
        table["level"][at], table["trend"][at] = arrays["level"][columns], arrays["trend"][columns]
        table["run"][at] = 0


def _season(values: Floats, length: int) -> Floats:
    """Mean by phase (length,) of what a centred moving average over a season leaves of values (n,); sums to 0."""
    window = np.ones(length) if length % 2 else np.r_[0.5, np.ones(length - 1), 0.5]
    half = len(window) // 2
    rest = values[half : len(values) - half] - np.convolve(values, window / length, mode="valid")
    phases = (half + np.arange(len(rest))) % length
    mean = np.bincount(phases, rest, length) / np.bincount(phases, minlength=length)
    return np.asarray(mean - mean.mean(), dtype=np.float64)


def _fitted(values: Floats, damping: float) -> tuple[float, float]:
    """Rates of level and trend that minimise the squared one-step errors."""
    from scipy import optimize  # takes a moment, which only training needs to pay

    values = floats(values)
    unit = max(float(np.abs(values).max()), 1e-300)
    scaled = floats(values / unit)
    pairs = [(alpha, beta) for alpha in _LEVEL_RATES for beta in _TREND_RATES]
    errors = [_squares(scaled, alpha, beta, damping) for alpha, beta in pairs]
    best = int(np.argmin(errors))
    if errors[best] <= 0.0:
        return pairs[best]
    found = optimize.minimize(
        lambda rates: _squares(scaled, float(rates[0]), float(rates[1]), damping) / errors[best],
        pairs[best],
        method="Nelder-Mead",
        bounds=[(_LEAST_RATE, 1.0), (0.0, 1.0)],
        options={"xatol": 1e-4, "fatol": 1e-8},
    )
    return float(found.x[0]), float(found.x[1])


@compiled("float64(float64[::1], float64, float64, float64)")
def _squares(values: Floats, alpha: float, beta: float, damping: float) -> float:
    """Sum of squared one-step forecast errors of values (n,)."""
    first = min(_FIRST, len(values))
    level, trend, total = 0.0, 0.0, 0.0
    for i in range(first):
        level += values[i] / first
    for i in range(len(values)):
        residual = values[i] - level - damping * trend
        total += residual * residual
        level += damping * trend + alpha * residual
        trend = damping * trend + alpha * beta * residual
    return total


@compiled(
    "void(int64[::1], float64[:,::1], int64[::1], float64[:,::1], float64[:,::1], int64[:,::1], float64[:,::1],"
    " float64[::1], float64[:,::1], float64[::1], float64[::1], int64, float64, float64, int64, float64[::1],"
    " float64[:,::1], float64[:,::1])"
)
def _score(
    slots: Slots,
    values: Floats,
    count: NDArray[np.int64],
    level: Floats,
    trend: Floats,
    run: NDArray[np.int64],
    rates: Floats,
    sigma: Floats,
    season: Floats,
    first_level: Floats,
    first_trend: Floats,
    first_phase: int,
    damping: float,
    clip: float,
    patience: int,
    scores: Floats,
    deviations: Floats,
    expected: Floats,
) -> None:
    for i in range(values.shape[0]):
        slot = slots[i]
        if count[slot] == 0:
            level[slot] = first_level
            trend[slot] = first_trend
        phase = (first_phase + count[slot]) % season.shape[1]
        count[slot] += 1
        for j in range(values.shape[1]):
            slope = damping * trend[slot, j]
            base = bounded(level[slot, j] + slope)
            forecast = base + season[j, phase]
            expected[i, j] = forecast
            residual = 0.0
            if np.isfinite(values[i, j]):
                value = bounded(values[i, j])
                z = (value - forecast) / sigma[j]
                z = min(max(z, -LARGEST_SCORE), LARGEST_SCORE)
                deviations[i, j] = z
                scores[i] = max(scores[i], abs(z))
                side = (1 if z > clip else 0) - (1 if z < -clip else 0)
                run[slot, j] = run[slot, j] + side if side * run[slot, j] > 0 else side
                if abs(run[slot, j]) >= patience:
                    run[slot, j], trend[slot, j] = 0, 0.0
                    level[slot, j] = value - season[j, phase]
                    continue
                residual = min(max(z, -clip), clip) * sigma[j]
            level[slot, j] = base + rates[j, 0] * residual
            trend[slot, j] = bounded(slope + rates[j, 0] * rates[j, 1] * residual)

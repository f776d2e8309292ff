"""What a sensor should read next by its last readings: an autoregression that learns as it goes."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from detectors.base import Detector, Floats, Mask, Slots
from detectors.kernels import compiled, floats, learned, slot_numbers
from detectors.residuals import ResidualModel, bounded, clipped, next_variance, sigmas
from detectors.table import Column

__all__ = ["Autoregressive", "AutoregressiveModel"]

_REACH = 5.0
"""Standard deviations from the mean beyond which a past reading counts no further."""
_SETTLED = 10
"""Readings after which mean and deviation are good enough to standardise by."""
_PRIOR = 100.0
"""Variance of a coefficient nothing is known of, in units of the forecast error's; the covariance's bound."""


class Autoregressive(Detector, frozen=True, kw_only=True):
    """Scores a reading by how unlikely it is after the key's last `order` readings, in sigmas.

    An autoregression per key and sensor, by recursive least squares with forgetting: the sequentially
    discounting AR of Takeuchi and Yamanishi, "A unifying framework for detecting outliers and change points
    from time series", IEEE TKDE 2006, in the Bayesian form of West and Harrison, "Bayesian Forecasting and
    Dynamic Models", 1997: a forecast is Student-t, as wide as coefficients and variance are uncertain. The
    score is the root of twice the negative log-likelihood ratio (against a reading as forecast), sqrt((v + 1)
    log(1 + z² / v)) with z in sigmas and v degrees of freedom, 1 / (1 - 0.5^(1 / half_life)) in the end: sigmas
    where readings were many, less where they were few, and finite where a tail probability is 0.

    Readings are standardised by an exponentially weighted mean and deviation. What is learned of a reading goes
    no further than `clip` sigmas, and what a past reading says no further than 5 deviations. Coefficients start
    with a prior, and their covariance never grows beyond it: a sensor that rests does not wind it up. A missing
    reading is replaced by its forecast. What the `learn` mask holds back is remembered as a past reading;
    coefficients, mean and spreads stay.

    Fails on outliers in a row (up to `order` readings after one score more, for they follow from it), on slow
    faults (every reading follows from the last one), on irregular sampling, and on a level far from the mean of
    the half-life.

    >>> noise = np.random.default_rng(0).normal(size=1000)
    >>> values = np.zeros((1000, 1))
    >>> for t in range(2, 1000):
    ...     values[t] = 1.6 * values[t - 1] - 0.8 * values[t - 2] + noise[t]
    >>> values[990] -= 9.0
    >>> model = Autoregressive(order=2).build(("vibration",))
    >>> scores = model.score_learn(np.zeros(1000, np.int64), values, np.arange(1000.0))
    >>> int(np.argmax(scores >= model.threshold)), bool(abs(values[990, 0]) < np.abs(values).max())
    (990, True)
    """

    kind: ClassVar[str] = "autoregressive"
    relative: ClassVar[float] = 4.0

    order: Annotated[int, Meta(ge=1, le=64)] = 4
    """Past readings that a forecast uses (p)."""
    half_life: Annotated[float, Meta(gt=0)] = 500.0
    """Readings after which a reading counts half."""
    warmup: Annotated[int, Meta(ge=2)] = 100
    """Forecast errors of a key's sensor before it is scored."""
    clip: Annotated[float, Meta(gt=1)] = 3.0
    """Sigmas beyond which a deviation is learned no further."""
    floor: Annotated[float, Meta(ge=0)] = 1e-9
    """Least sigma, in the sensors' units."""
    floor_relative: Annotated[float, Meta(ge=0)] = 1e-6
    """Least sigma as a fraction of the mean's size."""

    def build(self, sensors: tuple[str, ...]) -> AutoregressiveModel:
        """A fresh model; its threshold is 6 sigmas where the recipe states none."""
        return AutoregressiveModel(self, sensors)


class AutoregressiveModel(ResidualModel):
    """State per key and sensor: 8 (6 + 2 order + order²) bytes; 240 at the defaults."""

    def __init__(self, recipe: Autoregressive, sensors: tuple[str, ...]) -> None:
        self._recipe = recipe
        width, order = (len(sensors),), recipe.order
        columns = {
            "count": Column(np.int64, width),
            "seen": Column(np.int64, width),
            "age": Column(np.int64, width),
            "mean": Column(np.float64, width),
            "scatter": Column(np.float64, width),
            "variance": Column(np.float64, width),
            "lags": Column(np.float64, (*width, order)),
            "coefficients": Column(np.float64, (*width, order)),
            "covariance": Column(np.float64, (*width, order, order)),
        }
        super().__init__(sensors, 6.0 if recipe.threshold is None else recipe.threshold, columns)
        self.warmup_readings = recipe.warmup + order

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """Scores (n,) in sigmas; see `Model`. Some 0.3 µs per reading and sensor."""
        slots, values = slot_numbers(slots), floats(values)
        recipe, table = self._recipe, self._table
        table.reserve(slots)
        scores = np.zeros(len(slots))
        self._deviations, self._expected = np.zeros(values.shape), np.full(values.shape, np.nan)
        _score_learn(
            slots,
            values,
            learned(learn, len(slots)),
            table["count"],
            table["seen"],
            table["age"],
            table["mean"],
            table["scatter"],
            table["variance"],
            table["lags"],
            table["coefficients"],
            table["covariance"],
            1.0 - 0.5 ** (1.0 / recipe.half_life),
            recipe.warmup,
            recipe.clip,
            recipe.floor,
            recipe.floor_relative,
            scores,
            self._deviations,
            self._expected,
        )
        return scores


@compiled("void(float64[:,::1])")
def _prepare(covariance: Floats) -> None:
    """Begin with the prior, and go back to it should rounding have spoiled the covariance."""
    order, sound = len(covariance), True
    for k in range(order):
        sound = sound and 0.0 < covariance[k, k] <= order * _PRIOR
    if not sound:
        covariance[:] = 0.0
        for k in range(order):
            covariance[k, k] = _PRIOR


@compiled("float64(float64[::1], float64[:,::1], float64[::1])")
def _gain(inputs: Floats, covariance: Floats, gain: Floats) -> float:
    """Covariance times inputs, into `gain`; the forecast's variance in units of the error's."""
    width = 1.0
    for k in range(len(inputs)):
        gain[k] = 0.0
        for m in range(len(inputs)):
            gain[k] += covariance[k, m] * inputs[m]
        width += gain[k] * inputs[k]
    return max(width, 1.0)


@compiled("void(float64, float64, float64, float64[::1], float64[::1], float64[:,::1])")
def _correct(
    residual: float, width: float, kept: float, gain: Floats, coefficients: Floats, covariance: Floats
) -> None:
    """Learn one standardised residual: coefficients and their covariance, kept symmetric; then forget, by widening
    the covariance by what is not `kept`, where that leaves it within the prior."""
    order, trace, part = len(gain), 0.0, 1.0 / width
    for k in range(order):
        coefficients[k] += gain[k] * residual * part
        trace += covariance[k, k] - gain[k] * gain[k] * part
    widened = 1.0 / kept if trace <= kept * order * _PRIOR else 1.0
    for k in range(order):
        for m in range(k + 1):
            covariance[k, m] = widened * (covariance[k, m] - gain[k] * gain[m] * part)
            covariance[m, k] = covariance[k, m]


@compiled(
    "void(int64[::1], float64[:,::1], boolean[::1], int64[:,::1], int64[:,::1], int64[:,::1], float64[:,::1],"
    " float64[:,::1], float64[:,::1], float64[:,:,::1], float64[:,:,::1], float64[:,:,:,::1], float64, int64,"
    " float64, float64, float64, float64[::1], float64[:,::1], float64[:,::1])"
)
def _score_learn(
    slots: Slots,
    values: Floats,
    learn: Mask,
    count: NDArray[np.int64],
    seen: NDArray[np.int64],
    age: NDArray[np.int64],
    mean: Floats,
    scatter: Floats,
    variance: Floats,
    lags: Floats,
    coefficients: Floats,
    covariance: Floats,
    rate: float,
    warmup: int,
    clip: float,
    floor: float,
    floor_relative: float,
    scores: Floats,
    deviations: Floats,
    expected: Floats,
) -> None:
    order = lags.shape[2]
    inputs, gain = np.empty(order), np.empty(order)
    for i in range(values.shape[0]):
        slot = slots[i]
        for j in range(values.shape[1]):
            known = np.isfinite(values[i, j])
            if not known and age[slot, j] == 0:
                continue
            past, phi, own = lags[slot, j], coefficients[slot, j], covariance[slot, j]
            center = mean[slot, j]
            least = max(floor, floor_relative * abs(center))
            unit = max(np.sqrt(scatter[slot, j]), least)
            forecast, width, errors = center, 1.0, seen[slot, j]
            ready = age[slot, j] >= order and count[slot, j] >= _SETTLED
            if ready:
                for k in range(order):
                    away = (past[k] - center) / unit if unit > 0.0 else 0.0
                    inputs[k] = min(max(away, -_REACH), _REACH)
                    forecast += unit * phi[k] * inputs[k]
                forecast = bounded(forecast)
                expected[i, j] = forecast
            value = bounded(values[i, j]) if known else forecast
            if ready and known:
                _prepare(own)
                width = _gain(inputs, own, gain)
                residual = value - forecast
                error = variance[slot, j] * width
                weight = max(1.0 / (errors + 1), rate)
                if errors >= warmup:
                    z = sigmas(residual, error, weight, least)
                    freedom = min(float(errors), 1.0 / rate)
                    surprise = np.sqrt((freedom + 1.0) * np.log1p(z * z / freedom))
                    deviations[i, j] = surprise if z >= 0.0 else -surprise
                    scores[i] = max(scores[i], surprise)
                if learn[i]:
                    residual = clipped(residual, error, least, clip, errors, warmup)
                    seen[slot, j] = errors + 1
                    variance[slot, j] = next_variance(
                        variance[slot, j], residual / np.sqrt(width), weight, least, errors
                    )
                    standard = residual / unit if unit > 0.0 else 0.0
                    standard = min(max(standard, -2.0 * _REACH), 2.0 * _REACH)
                    _correct(standard, width, 1.0 - rate, gain, phi, own)
            if known and learn[i]:
                weight = max(1.0 / (count[slot, j] + 1), rate)
                away = clipped(value - center, scatter[slot, j], least, clip, count[slot, j], warmup)
                mean[slot, j] = center + weight * away
                scatter[slot, j] = next_variance(
                    scatter[slot, j], np.sqrt(1.0 - weight) * away, weight, least, count[slot, j]
                )
                count[slot, j] += 1
            for k in range(order - 1, 0, -1):
                past[k] = past[k - 1]
            past[0] = value
            age[slot, j] += 1

"""How far a sensor is from its own recent normal: exponentially weighted mean and variance, in sigmas."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from detectors.base import Contributions, Detector, Floats, Mask, Rows, Slots
from detectors.kernels import compiled, floats, learned, slot_numbers
from detectors.table import Column, Table

__all__ = ["AdaptiveZ", "AdaptiveZModel"]

_LARGEST_VALUE = 1e100
"""Beyond it values are taken as if they were it: their squares must stay finite."""
_LARGEST_SCORE = 1e6
_TRUSTED_AFTER = 10
"""Readings after which a sensor's variance is good enough to clip by, doubly wide until it is warm."""
_STEP_SIGMA = 0.5
"""Sigma of a flat sensor that moves, as a fraction of its first step."""


class AdaptiveZ(Detector, frozen=True, kw_only=True):
    """Scores a reading by its largest deviation among the sensors, in standard deviations.

    Mean and variance are per key and sensor, exponentially weighted (West 1979, Finch 2009); until the weight
    of `half_life` is reached they are the plain mean and variance of everything so far, so that a short
    warm-up is unbiased. Deviations beyond `clip` sigmas (twice that during warm-up) are learned as if they were
    `clip` sigmas: a fault is not learned at once and does not inflate the variance, while a level that stays
    is learned in the end, since each such reading lets the variance grow (by 2.8% at the defaults).

    A sensor that has not moved has no scale. Its sigma is at least `floor` and `floor_relative` of its mean;
    while its variance lies below that, its first move scores by what it would be had it been learned already,
    at most sqrt(half_life / ln 2) (17 by default), and then becomes the scale: one alert. Set `floor` to the
    sensors' resolution where a flat line that moves by one step must not count.

    Fails on drift faster than the half-life, on sensors with several regimes (on and off: the variance then
    covers both), on seasons, and on anomalies that show only in how sensors move together.

    >>> model = AdaptiveZ(warmup=3).build(("pressure",))
    >>> slots, times = np.zeros(5, np.int64), np.arange(5.0)
    >>> model.score_learn(slots, np.array([[1.0], [2.0], [1.0], [2.0], [9.0]]), times).round(2)
    array([ 0.  ,  0.  ,  0.  ,  1.41, 15.  ])
    >>> model.contributions(np.array([4]))
    Contributions(shares=array([[1.]]), expected=array([[1.5]]))
    """

    kind: ClassVar[str] = "adaptive_z"

    half_life: Annotated[float, Meta(gt=0)] = 200.0
    """Readings after which a reading counts half."""
    warmup: Annotated[int, Meta(ge=2)] = 50
    """Readings of a key's sensor before it is scored."""
    clip: Annotated[float, Meta(gt=1)] = 3.0
    """Sigmas beyond which a deviation is learned no further."""
    floor: Annotated[float, Meta(ge=0)] = 1e-9
    """Least sigma, in the sensors' units."""
    floor_relative: Annotated[float, Meta(ge=0)] = 1e-6
    """Least sigma as a fraction of the mean's size."""

    def build(self, sensors: tuple[str, ...]) -> AdaptiveZModel:
        """A fresh model; its threshold is 6 sigmas where the recipe states none."""
        return AdaptiveZModel(self, sensors)


class AdaptiveZModel:
    """State per key and sensor: readings seen, mean and variance; 24 bytes."""

    def __init__(self, recipe: AdaptiveZ, sensors: tuple[str, ...]) -> None:
        self.sensors = sensors
        self.threshold = 6.0 if recipe.threshold is None else recipe.threshold
        self.warmup_readings = recipe.warmup
        self._recipe = recipe
        width = (len(sensors),)
        self._table = Table(
            {
                "count": Column(np.int64, width),
                "mean": Column(np.float64, width),
                "variance": Column(np.float64, width),
            }
        )
        self._deviations: Floats = np.zeros((0, len(sensors)))
        self._expected: Floats = np.zeros((0, len(sensors)))

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """Scores (n,) in sigmas, at most a million; see `Model`. About 0.1 µs per reading of 8 sensors."""
        slots, values = slot_numbers(slots), floats(values)
        recipe, table = self._recipe, self._table
        table.reserve(slots)
        scores = np.zeros(len(slots))
        self._deviations = np.zeros(values.shape)
        self._expected = np.empty(values.shape)
        _score_learn(
            slots,
            values,
            learned(learn, len(slots)),
            table["count"],
            table["mean"],
            table["variance"],
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

    def contributions(self, rows: NDArray[np.int64]) -> Contributions:
        """Shares by squared deviation; expected is the mean before the reading."""
        squares = self._deviations[rows] ** 2
        total = squares.sum(axis=1, keepdims=True)
        shares = np.sign(self._deviations[rows]) * squares / np.where(total > 0, total, 1.0)
        return Contributions(shares, self._expected[rows])

    def snapshot(self, slots: Slots) -> Rows:
        """`count`, `mean` and `variance`, each (k, n_sensors)."""
        return self._table.snapshot(slots)

    def restore(self, slots: Slots, rows: Rows) -> None:
        """See `Model`."""
        self._table.restore(slots, rows)


@compiled(
    "void(int64[::1], float64[:,::1], boolean[::1], int64[:,::1], float64[:,::1], float64[:,::1], float64, int64,"
    " float64, float64, float64, float64[::1], float64[:,::1], float64[:,::1])"
)
def _score_learn(
    slots: Slots,
    values: Floats,
    learn: Mask,
    count: NDArray[np.int64],
    mean: Floats,
    variance: Floats,
    rate: float,
    warmup: int,
    clip: float,
    floor: float,
    floor_relative: float,
    scores: Floats,
    deviations: Floats,
    expected: Floats,
) -> None:
    for i in range(values.shape[0]):
        slot = slots[i]
        for j in range(values.shape[1]):
            seen = count[slot, j]
            center = mean[slot, j]
            expected[i, j] = center if seen else np.nan
            if not np.isfinite(values[i, j]):
                continue
            value = min(max(values[i, j], -_LARGEST_VALUE), _LARGEST_VALUE)
            weight = max(1.0 / (seen + 1), rate)
            sigma = np.sqrt(variance[slot, j])
            least = max(floor, floor_relative * abs(center))
            moved = sigma > least
            deviation = value - center
            if seen >= warmup:
                scale = sigma if moved else np.sqrt(least * least + weight * deviation * deviation)
                z = deviation / scale if scale > 0 else 0.0
                z = min(max(z, -_LARGEST_SCORE), _LARGEST_SCORE)
                deviations[i, j] = z
                scores[i] = max(scores[i], abs(z))
            if not learn[i]:
                continue
            if moved and seen >= _TRUSTED_AFTER:
                most = sigma * (clip if seen >= warmup else 2.0 * clip)
                deviation = min(max(deviation, -most), most)
            count[slot, j] = seen + 1
            mean[slot, j] = center + weight * deviation
            learned = (1.0 - weight) * (variance[slot, j] + weight * deviation * deviation)
            if not moved and seen >= _TRUSTED_AFTER:
                learned = max(learned, _STEP_SIGMA * _STEP_SIGMA * deviation * deviation)
            variance[slot, j] = learned

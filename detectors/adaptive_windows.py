"""ADWIN: a window of each sensor that grows while its mean stays, and is cut where the mean has changed."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from detectors.base import Contributions, Detector, Floats, Mask, Rows, Slots
from detectors.histograms import BUCKETS, add, drop, merged, walk
from detectors.kernels import compiled, floats, learned, slot_numbers
from detectors.table import Column, Table

__all__ = ["ADWIN", "ADWINModel"]

_LARGEST_VALUE = 1e100
"""Beyond it values are taken as if they were it: their squares must stay finite."""
_LARGEST_SCORE = 1e6
_LEAST_PART = 5
"""Readings that a part of the window needs at least."""
_HELD = 32.0
"""Readings held back from learning that are remembered, the older the less."""


class ADWIN(Detector, frozen=True, kw_only=True):
    """Scores how clearly a sensor's recent mean differs from its earlier one: 1 is the bound, drift.

    Bifet and Gavaldà, "Learning from time-changing data with adaptive windowing", SDM 2007 (ADWIN2): the window
    of each key and sensor is kept as an exponential histogram, every border in it is tried, and the score is
    the largest difference of the means before and after a border over its bound, sqrt(2/m s² L) + 2/3 L/m span,
    where L = ln(2 ln(n) / delta), s² is the window's variance and 1/m = 1/(n0 - 4) + 1/(n1 - 4) of the parts'
    readings, as in MOA. With a learned reading that scores 1 or more, all before the largest border is dropped,
    again until no border does, and all where fewer than `warmup` readings are left. (The paper drops bucket by
    bucket, and so tells one drift about eight times.)

    It judges distributions by their means and no single reading: a lone spike is not seen, except on a flat
    line. A mean that shifts by one sigma is told after about 30 readings, by half a sigma after 100. In a
    stationary stream of independent readings the probability of a cut is at most about `delta` a reading;
    measured: one in 500,000 on normal noise, none in a million on heavy tails (Student's t of 3 degrees). A
    drift is told once, and what is newer is normal: an alert is a moment (`close_after: 0`), and the kind
    serves to say when a model is to be trained again, also on a stream of scores (sensors `("score",)`).
    Readings held back from learning (the `learn` mask) are compared with the window, and do not become part of
    it.

    With `span: 1` it tells a first drift of values between 0 and 1 at the same reading as river's ADWIN with
    `clock` 1 (by default river looks every 32 readings), and later ones within about 20: river forgets all
    after a drift, where the paper keeps what is newer.

    Fails on readings that depend on each other (at a correlation of 0.5 with the next it tells a drift that is
    none every 1,000 readings: watch scores or residuals), on seasons, on changes of the spread alone (use
    `kswin`), and on drift so slow that it is not over within `max_window`.

    >>> rng = np.random.default_rng(0)
    >>> values = rng.normal(size=(600, 1)) + np.where(np.arange(600) < 500, 0.0, 1.5)[:, np.newaxis]
    >>> model = ADWIN().build(("score",))
    >>> scores = model.score_learn(np.zeros(600, np.int64), values, np.arange(600.0))
    >>> int(np.argmax(scores >= 1))
    517
    """

    kind: ClassVar[str] = "adwin"
    relative: ClassVar[float] = 3.0

    delta: Annotated[float, Meta(gt=0, lt=1)] = 0.002
    """Probability with which a border may be told where none is."""
    max_window: Annotated[int, Meta(ge=100, le=2**30)] = 5000
    """Readings that the window has room for at least; each doubling costs 104 bytes a sensor."""
    warmup: Annotated[int, Meta(ge=10)] = 30
    """Readings that the window needs before it is scored, again after each drift."""
    span: Annotated[float, Meta(gt=0)] | None = None
    """Width of the range that values lie in, in their unit, for the bound's second term; null takes the
    window's sigma, so that units do not matter, and `clip`."""
    clip: Annotated[float, Meta(gt=1)] = 5.0
    """Sigmas of the window beyond which a reading counts no further, where no span is stated."""
    floor: Annotated[float, Meta(ge=0)] = 1e-9
    """Least sigma, in the sensors' units."""
    floor_relative: Annotated[float, Meta(ge=0)] = 1e-6
    """Least sigma as a fraction of the mean's size."""

    def build(self, sensors: tuple[str, ...]) -> ADWINModel:
        """A fresh model; its threshold is 1, the bound."""
        return ADWINModel(self, sensors)


class ADWINModel:
    """State per key and sensor: up to five buckets of 1, 2, 4 … readings each; 1,064 bytes at the defaults."""

    def __init__(self, recipe: ADWIN, sensors: tuple[str, ...]) -> None:
        self.sensors = sensors
        self.threshold = 1.0 if recipe.threshold is None else recipe.threshold
        self.warmup_readings = recipe.warmup
        self._recipe = recipe
        levels = math.ceil(math.log2(recipe.max_window / BUCKETS + 1.0))
        width = (len(sensors), levels)
        self._table = Table(
            {
                "buckets": Column(np.int64, width),
                "mean": Column(np.float64, (*width, BUCKETS + 1)),
                "squares": Column(np.float64, (*width, BUCKETS + 1)),
                "held": Column(np.float64, (len(sensors), 3)),
            }
        )
        self._ratios: Floats = np.zeros((0, len(sensors)))
        self._expected: Floats = np.zeros((0, len(sensors)))

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """Scores (n,), 1 at the bound, at most a million; see `Model`. About 0.8 µs per reading and sensor."""
        slots, values = slot_numbers(slots), floats(values)
        recipe, table = self._recipe, self._table
        table.reserve(slots)
        scores = np.zeros(len(slots))
        self._ratios, self._expected = np.zeros(values.shape), np.full(values.shape, np.nan)
        _score_learn(
            slots,
            values,
            learned(learn, len(slots)),
            table["buckets"],
            table["mean"],
            table["squares"],
            table["held"],
            (recipe.delta, recipe.span or 0.0, recipe.clip, recipe.floor, recipe.floor_relative),
            recipe.warmup,
            scores,
            self._ratios,
            self._expected,
        )
        return scores

    def contributions(self, rows: NDArray[np.int64]) -> Contributions:
        """Shares by squared ratio to the bound; expected is the mean before the border, once there is one."""
        squares = self._ratios[rows] ** 2
        total = squares.sum(axis=1, keepdims=True)
        shares = np.sign(self._ratios[rows]) * squares / np.where(total > 0, total, 1.0)
        return Contributions(shares, self._expected[rows])

    def forget_recent(self, slots: Slots, sensors: Mask) -> None:
        """See `ForgettingModel`: all it has is the window, which begins anew."""
        at = np.ix_(slots, np.flatnonzero(sensors))
        self._table.reserve(slots)
        self._table["buckets"][at] = 0
        self._table["held"][at] = 0.0

    def snapshot(self, slots: Slots) -> Rows:
        """`buckets` (k, n_sensors, levels), how many of 1, 2, 4 … readings; `mean` and `squares` (about the
        mean) of each, the oldest first, (k, n_sensors, levels, 6); `held` (k, n_sensors, 3).
        """
        return self._table.snapshot(slots)

    def restore(self, slots: Slots, rows: Rows) -> None:
        """See `Model`. Raises ValueError also on numbers of buckets that cannot be."""
        buckets = np.asarray(rows.get("buckets", 0))
        if (buckets < 0).any() or (buckets > BUCKETS).any():
            raise ValueError(f"state: there are 0 to {BUCKETS} buckets of a size")
        self._table.restore(slots, rows)


@compiled(
    "UniTuple(float64, 3)(UniTuple(float64, 4), float64[::1], UniTuple(float64, 5), float64[:,::1])",
)
def _largest_cut(
    window: tuple[float, float, float, float],
    held: Floats,
    settings: tuple[float, float, float, float, float],
    parts: Floats,
) -> tuple[float, float, float]:
    """Signed ratio of the largest cut to its bound, mean and readings before it, of the window and what is held."""
    delta, span, _, floor, floor_relative = settings
    count, center, around, borders = window
    if held[0] > 0:
        count, center, around = merged(count, center, around, held[0], held[1], held[0] * held[2])
        borders += 1
    ratio, before, cut = 0.0, center, 0.0
    if count < 2 * _LEAST_PART:
        return ratio, before, cut
    sigma = max(np.sqrt(around / count), floor, floor_relative * abs(center))
    doubt = np.log(2.0 * np.log(count) / delta)
    for border in range(int(borders) - 1):
        first = parts[0, border]
        if min(first, count - first) < _LEAST_PART:
            continue
        difference = (center - parts[1, border]) * count / (count - first)
        inverse = 1.0 / (first - _LEAST_PART + 1.0) + 1.0 / (count - first - _LEAST_PART + 1.0)
        bound = sigma * np.sqrt(2.0 * inverse * doubt)
        bound += 2.0 / 3.0 * doubt * inverse * (span if span > 0 else sigma)
        found = difference / bound if bound > 0 else 0.0
        if abs(found) > abs(ratio):
            ratio, before, cut = found, parts[1, border], first
    return min(max(ratio, -_LARGEST_SCORE), _LARGEST_SCORE), before, cut


@compiled("float64(float64, UniTuple(float64, 4), int64, UniTuple(float64, 5))")
def _bounded(
    value: float,
    window: tuple[float, float, float, float],
    warmup: int,
    settings: tuple[float, float, float, float, float],
) -> float:
    """The reading, no further from the window's mean than `clip` sigmas, where these are known and no span is."""
    value = min(max(value, -_LARGEST_VALUE), _LARGEST_VALUE)
    _, span, clip, floor, floor_relative = settings
    count, center, around, _ = window
    sigma = np.sqrt(around / count) if count > 0 else 0.0
    if span > 0 or count < warmup or sigma <= max(floor, floor_relative * abs(center)):
        return value
    return float(min(max(value, center - clip * sigma), center + clip * sigma))


@compiled("void(float64[::1], float64)")
def _hold(held: Floats, value: float) -> None:
    """Remember the newest reading with those not learned: count, mean and variance, plain at first and then
    fading."""
    held[0] = min(held[0] + 1.0, _HELD)
    weight, away = 1.0 / held[0], value - held[1]
    held[1] += weight * away
    held[2] = (1.0 - weight) * (held[2] + weight * away * away)


@compiled(
    "void(int64[::1], float64[:,::1], boolean[::1], int64[:,:,::1], float64[:,:,:,::1], float64[:,:,:,::1],"
    " float64[:,:,::1], UniTuple(float64, 5), int64, float64[::1], float64[:,::1], float64[:,::1])"
)
def _score_learn(
    slots: Slots,
    values: Floats,
    learn: Mask,
    buckets: NDArray[np.int64],
    mean: Floats,
    squares: Floats,
    held: Floats,
    settings: tuple[float, float, float, float, float],
    warmup: int,
    scores: Floats,
    ratios: Floats,
    expected: Floats,
) -> None:
    parts = np.empty((2, buckets.shape[2] * (BUCKETS + 1) + 1))
    for i in range(values.shape[0]):
        slot = slots[i]
        for j in range(values.shape[1]):
            if not np.isfinite(values[i, j]):
                continue
            sizes, means, around, rest = buckets[slot, j], mean[slot, j], squares[slot, j], held[slot, j]
            window = walk(sizes, means, around, parts)
            value = _bounded(values[i, j], window, warmup, settings)
            _hold(rest, value)
            ratio, before, _ = _largest_cut(window, rest, settings, parts)
            warm = window[0] + rest[0] > warmup
            if warm:
                ratios[i, j], expected[i, j] = ratio, before
                scores[i] = max(scores[i], abs(ratio))
            if not learn[i]:
                continue
            rest[:] = 0.0
            add(sizes, means, around, value)
            while warm and abs(ratio) >= 1.0:
                _, _, cut = _largest_cut(walk(sizes, means, around, parts), rest, settings, parts)
                drop(sizes, means, around, cut)
                window = walk(sizes, means, around, parts)
                if window[0] < warmup:  # too few, and perhaps clipped: the new level is learned afresh
                    sizes[:] = 0
                    break
                ratio, _, _ = _largest_cut(window, rest, settings, parts)

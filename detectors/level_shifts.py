"""Levels that shift and stay: cumulative sums of deviations from a healthy start, or from the running mean."""

from __future__ import annotations

from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from detectors.base import Contributions, Detector, Floats, Mask, Rows, Slots
from detectors.kernels import compiled, floats, learned, slot_numbers
from detectors.starts import normal
from detectors.table import Column, Table

__all__ = ["CUSUM", "LevelShiftModel", "PageHinkley"]

_LARGEST_VALUE = 1e100
"""Beyond it values are taken as if they were it: their squares must stay finite."""
_MOST_ROOM = 4.0
"""A sum stays below so many thresholds, so that it comes down again after a long fault."""


class _Test(NamedTuple):
    """What the two kinds make of one kernel: numbers per key's sensor, in sigmas and readings."""

    slack: float
    forget: float
    rate: float
    running: bool
    patience: int


class _LevelShift(Detector, frozen=True, kw_only=True):
    """What both kinds share: the first `warmup` readings of a key's sensor give its level and its sigma.

    See `detectors.starts`: outliers neither shift nor widen them, and where a reading depends on the one before the
    sigma is that of their sums.
    """

    warmup: Annotated[int, Meta(ge=20, le=4096)] = 200
    """Healthy readings of a key's sensor before it is scored; each takes 8 bytes. Half as many give false
    alarms four times as often."""
    clip: Annotated[float, Meta(gt=1)] = 5.0
    """Sigmas beyond which a reading counts no further: a spike alone must not reach the threshold."""
    floor: Annotated[float, Meta(ge=0)] = 1e-9
    """Least sigma, in the sensors' units; a flat sensor has no other."""
    floor_relative: Annotated[float, Meta(ge=0)] = 1e-6
    """Least sigma as a fraction of the level's size."""

    def __post_init__(self) -> None:
        if self.threshold is not None and self.threshold <= 0:
            raise ValueError(f"threshold: {self.threshold} is no decision limit: at least above 0")

    def limit(self) -> float:
        """The threshold: the one stated, or the kind's own."""
        raise NotImplementedError

    def test(self) -> _Test:
        """The settings of the kernel."""
        raise NotImplementedError

    def build(self, sensors: tuple[str, ...]) -> LevelShiftModel:
        """A fresh model."""
        return LevelShiftModel(self, sensors)


class CUSUM(_LevelShift, frozen=True, kw_only=True):
    """Scores how far a sensor's level has been off its healthy start, and how long: a two-sided cumulative sum.

    The tabular CUSUM of Page, "Continuous inspection schemes", Biometrika 1954, per sensor: deviations beyond
    `slack` add up, upwards and downwards, and never fall below 0. The score is the larger of both sums, in
    sigmas; the sensor that is furthest off counts. A level that is off by d sigmas reaches the threshold after
    about threshold / (d - slack) readings: one sigma after 24, two after 8. On independent normal readings of a
    known level a false alarm comes every 500,000 readings a sensor (Siegmund's approximation); with a level
    learned from 200 readings one came every 170,000, and every 19,000 where a reading correlates by 0.8 with
    the next, whose sum also needs a shift that is larger by as much as the sigma was widened.

    The sum stays up while the level is off, so that an alert lasts as long as the shift, and is bounded by four
    thresholds. After `patience` learned readings in a row above the threshold the level is taken for the new
    normal, and a new warm-up begins. What an alert holds back from learning (the `learn` mask) moves the sum,
    and nothing else.

    Fails where the warm-up is not healthy or does not show all regimes, on seasons longer than the warm-up, on
    slow drift (less than slack * ln 2 / `half_life` sigmas a reading is followed), on spikes, and where the
    spread changes.

    >>> rng = np.random.default_rng(0)
    >>> values = rng.normal(size=(600, 1)) + np.where(np.arange(600) < 500, 0.0, 1.5)[:, np.newaxis]
    >>> model = CUSUM().build(("pressure",))
    >>> scores = model.score_learn(np.zeros(600, np.int64), values, np.arange(600.0))
    >>> int(np.argmax(scores >= model.threshold))
    511
    """

    kind: ClassVar[str] = "cusum"

    slack: Annotated[float, Meta(gt=0)] = 0.5
    """Sigmas by which a reading may be off for free, k in the textbooks: half the shift to be seen."""
    half_life: Annotated[float, Meta(gt=0)] | None = 500.0
    """Readings in which the level follows half of a change; null freezes it at its healthy start."""
    patience: Annotated[int, Meta(ge=1)] = 500
    """Learned readings in a row at or above the threshold after which normal is learned anew."""

    def limit(self) -> float:
        """12 sigmas where the recipe states none; h in the textbooks."""
        return 12.0 if self.threshold is None else self.threshold

    def test(self) -> _Test:
        """See the settings."""
        rate = 0.0 if self.half_life is None else 1.0 - 0.5 ** (1.0 / self.half_life)
        return _Test(self.slack, 1.0, rate, False, self.patience)


class PageHinkley(_LevelShift, frozen=True, kw_only=True):
    """Scores how far a sensor's readings have left their running mean: the two-sided Page-Hinkley test.

    Page 1954 and Hinkley, "Inference about the change-point from cumulative sum tests", Biometrika 1971, with a
    fading sum as in Gama, Sebastião and Rodrigues, "On evaluating stream learning algorithms", Machine Learning
    2013. Deviations from the mean of all readings since the last drift, beyond `delta` sigmas, add up; the
    score is the larger of the sums upwards and downwards, in sigmas. It judges the distribution's mean and no
    single reading: a shift of one sigma is told after about 40 readings, of half a sigma after 120. False ones,
    measured: none in three million independent readings, one in 90,000 where a reading correlates by 0.8 with
    the next.

    A drift is told once: with the learned reading that reaches the threshold the test begins anew with a
    warm-up, and what follows is normal. So an alert is a moment (`close_after: 0`), and the kind serves to say
    when a model is to be trained again, also on a stream of scores (sensors `("score",)`).

    Fails on drift slower than `delta` sigmas within the time the mean takes to follow, on seasons (each turn is
    a drift), on changes of the spread alone (use `kswin`), and for `warmup` readings after each drift.

    >>> rng = np.random.default_rng(0)
    >>> values = rng.normal(size=(600, 1)) + np.where(np.arange(600) < 500, 0.0, 1.5)[:, np.newaxis]
    >>> model = PageHinkley().build(("score",))
    >>> scores = model.score_learn(np.zeros(600, np.int64), values, np.arange(600.0))
    >>> np.flatnonzero(scores >= model.threshold).tolist()
    [523]
    """

    kind: ClassVar[str] = "page_hinkley"

    delta: Annotated[float, Meta(gt=0)] = 0.25
    """Sigmas by which a reading may be off the mean for free."""
    forget: Annotated[float, Meta(gt=0, le=1)] = 0.9999
    """What is left of a sum with the next reading; 1 never forgets."""
    half_life: Annotated[float, Meta(gt=0)] | None = None
    """Readings in which the mean follows half of a change, once it has seen as many; null weighs all alike."""

    def limit(self) -> float:
        """30 sigmas where the recipe states none; lambda in the papers."""
        return 30.0 if self.threshold is None else self.threshold

    def test(self) -> _Test:
        """See the settings."""
        rate = 0.0 if self.half_life is None else 1.0 - 0.5 ** (1.0 / self.half_life)
        return _Test(self.delta, self.forget, rate, True, 1)


class LevelShiftModel:
    """State per key and sensor: the warm-up's readings, level, sigma and two sums; 1,648 bytes at the defaults."""

    def __init__(self, recipe: _LevelShift, sensors: tuple[str, ...]) -> None:
        self.sensors = sensors
        self.threshold = recipe.limit()
        self.warmup_readings = recipe.warmup
        self._recipe, self._test = recipe, recipe.test()
        width = (len(sensors),)
        self._table = Table(
            {
                "count": Column(np.int64, width),
                "above": Column(np.int64, width),
                "start": Column(np.float64, (*width, recipe.warmup)),
                "level": Column(np.float64, width),
                "sigma": Column(np.float64, width),
                "sums": Column(np.float64, (*width, 2)),
            }
        )
        self._sums: Floats = np.zeros((0, len(sensors)))
        self._expected: Floats = np.zeros((0, len(sensors)))

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """Scores (n,) in sigmas, at most four thresholds; see `Model`. About 0.1 µs per reading of 8 sensors."""
        slots, values = slot_numbers(slots), floats(values)
        recipe, test, table = self._recipe, self._test, self._table
        table.reserve(slots)
        scores = np.zeros(len(slots))
        self._sums, self._expected = np.zeros(values.shape), np.full(values.shape, np.nan)
        _score_learn(
            slots,
            values,
            learned(learn, len(slots)),
            table["count"],
            table["above"],
            table["start"],
            table["level"],
            table["sigma"],
            table["sums"],
            (test.slack, test.forget, test.rate, self.threshold, recipe.clip),
            (recipe.floor, recipe.floor_relative),
            test.running,
            test.patience,
            scores,
            self._sums,
            self._expected,
        )
        return scores

    def contributions(self, rows: NDArray[np.int64]) -> Contributions:
        """Shares by the sensors' squared sums; expected is the level before the reading."""
        squares = self._sums[rows] ** 2
        total = squares.sum(axis=1, keepdims=True)
        shares = np.sign(self._sums[rows]) * squares / np.where(total > 0, total, 1.0)
        return Contributions(shares, self._expected[rows])

    def forget_recent(self, slots: Slots, sensors: Mask) -> None:
        """See `ForgettingModel`: the sums are 0."""
        at = np.ix_(slots, np.flatnonzero(sensors))
        self._table.reserve(slots)
        self._table["sums"][at] = 0.0
        self._table["above"][at] = 0

    def snapshot(self, slots: Slots) -> Rows:
        """`count`, `above`, `level`, `sigma` (k, n_sensors), `start` (…, warmup) and `sums` (…, 2), up and
        down."""
        return self._table.snapshot(slots)

    def restore(self, slots: Slots, rows: Rows) -> None:
        """See `Model`. Raises ValueError also on negative counts."""
        if (np.asarray(rows.get("count", 0)) < 0).any():
            raise ValueError("state: a count of readings is negative")
        self._table.restore(slots, rows)


@compiled(
    "void(int64[::1], float64[:,::1], boolean[::1], int64[:,::1], int64[:,::1], float64[:,:,::1], float64[:,::1],"
    " float64[:,::1], float64[:,:,::1], UniTuple(float64, 5), UniTuple(float64, 2), boolean, int64, float64[::1],"
    " float64[:,::1], float64[:,::1])"
)
def _score_learn(
    slots: Slots,
    values: Floats,
    learn: Mask,
    count: NDArray[np.int64],
    above: NDArray[np.int64],
    start: Floats,
    level: Floats,
    sigma: Floats,
    sums: Floats,
    test: tuple[float, float, float, float, float],
    floors: tuple[float, float],
    running: bool,
    patience: int,
    scores: Floats,
    furthest: Floats,
    expected: Floats,
) -> None:
    slack, forget, rate, limit, clip = test
    warmup, most = start.shape[2], _MOST_ROOM * limit
    for i in range(values.shape[0]):
        slot = slots[i]
        for j in range(values.shape[1]):
            seen = count[slot, j]
            if seen:
                expected[i, j] = level[slot, j]
            if not np.isfinite(values[i, j]):
                continue
            value = min(max(values[i, j], -_LARGEST_VALUE), _LARGEST_VALUE)
            if seen >= warmup:
                scale = sigma[slot, j]
                z = (value - level[slot, j]) / scale if scale > 0 else 0.0
                z = min(max(z, -clip), clip)
                up = min(max(forget * sums[slot, j, 0] + z - slack, 0.0), most)
                down = min(max(forget * sums[slot, j, 1] - z - slack, 0.0), most)
                sums[slot, j, 0], sums[slot, j, 1] = up, down
                furthest[i, j] = up if up >= down else -down
                scores[i] = max(scores[i], up, down)
                if not learn[i]:
                    continue
                above[slot, j] = above[slot, j] + 1 if max(up, down) >= limit else 0
                if above[slot, j] < patience:
                    weight = max(rate, 1.0 / (seen + 1)) if running else rate
                    level[slot, j] += weight * z * scale
                    count[slot, j] = seen + 1
                    continue
                seen, above[slot, j] = 0, 0
                sums[slot, j, 0], sums[slot, j, 1] = 0.0, 0.0
            if not learn[i]:
                continue
            start[slot, j, seen] = value
            count[slot, j] = seen + 1
            level[slot, j] = level[slot, j] + (value - level[slot, j]) / (seen + 1) if seen else value
            if seen + 1 == warmup:
                level[slot, j], sigma[slot, j] = normal(start[slot, j], floors[0], floors[1])

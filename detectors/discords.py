"""Discords: stretches of readings unlike any stretch of the past, whatever their shape."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from detectors.base import Contributions, Detector, Floats, Mask, Rows, Slots, Stretches
from detectors.kernels import compiled, floats, learned, slot_numbers
from detectors.table import Column, Table

__all__ = ["LeftMatrixProfile", "LeftMatrixProfileModel"]

_LARGEST_VALUE = 1e150
"""Squares of more do not fit: what lies beyond has no distance, and the largest score."""
_CANCELLED = 1e-6
"""Of the square that leaves a sum: where less is left, its digits are lost, and it is summed anew."""
_LARGEST_SCORE = 1e30
"""Large, since where the first distances are all 0 the unit is `floor`; a calibrator keeps 32-bit floats."""
_SCALED_BY = 50
"""Distances whose mean is the unit of a sensor's scores: it stays, so that scores of all times compare."""


class LeftMatrixProfile(Detector, frozen=True, kw_only=True):
    """Scores a reading by how far its latest `length` readings are from the most similar stretch of the past.

    The left matrix profile (Yeh et al., "Matrix profile I", ICDM 2016; left: DAMP, Lu et al., KDD 2022), one
    sensor by one, over the last `history` readings, in plain Euclidean distance: a stretch of the same shape at
    another level or of another size is not the same here, for in plants level and size count. The score is the
    root mean square distance as a multiple of the mean of the first fifty; of several sensors the largest.
    Neighbours less than half a length apart do not count, nor do those that hold readings kept from
    learning. A missing value counts as the one before.

    Learns seasons and repeated patterns by itself. Wants calibration: what distance is unusual differs from
    sensor to sensor. Fails on noise without any pattern (all stretches are then equally far), on drift without
    end, and where an anomaly comes again and again: the second is like the first.

    >>> model = LeftMatrixProfile(length=8).build(("level",))
    >>> wave = np.sin(np.arange(200.0) / 5.0)[:, np.newaxis]
    >>> wave[150:158] = 0.0
    >>> scores = model.score_learn(np.zeros(200, np.int64), wave, np.arange(200.0))
    >>> int(np.argmax(scores[100:])) + 100 in range(150, 160)
    True
    """

    kind: ClassVar[str] = "left_matrix_profile"

    length: Annotated[int, Meta(ge=1, le=10_000)] = 24
    """Readings in a stretch; 1 compares single values: how far the reading is from any value of the past."""
    neighbours: Annotated[int, Meta(ge=1, le=10)] = 1
    """The distance is that to the so many-th stretch of the past, at least half a length away from the nearer ones:
    with 2 what came once before is not yet normal."""
    history: Annotated[int, Meta(ge=8, le=1_000_000)] = 1000
    """Readings that are remembered."""
    warmup: Annotated[int, Meta(ge=0)] = 0
    """Readings of a key before it is scored; at least one and a half lengths in any case."""
    floor: Annotated[float, Meta(ge=0)] = 1e-9
    """Least unit of the scores, in the sensors' units."""

    def __post_init__(self) -> None:
        if self.history < 3 * self.length:
            raise ValueError(
                f"history: {self.history} readings hold no three stretches of {self.length} (length)"
            )

    def build(self, sensors: tuple[str, ...]) -> LeftMatrixProfileModel:
        """A fresh model; its threshold is 6 where the recipe states none."""
        return LeftMatrixProfileModel(self, sensors)


class LeftMatrixProfileModel:
    """State per key: for each reading of the history 2 bytes, and 16 a sensor (8 with `length` 1 and one neighbour);
    18 kB at the defaults with one sensor."""

    def __init__(self, recipe: LeftMatrixProfile, sensors: tuple[str, ...]) -> None:
        self.sensors = sensors
        self.threshold = 6.0 if recipe.threshold is None else recipe.threshold
        self.warmup_readings = max(recipe.warmup, recipe.length + recipe.length // 2)
        self._recipe = recipe
        width = len(sensors)
        slides = recipe.length > 1 or recipe.neighbours > 1
        self._table = Table(
            {
                "count": Column(np.int64),
                "ring": Column(np.float64, (width, recipe.history)),
                "learned": Column(np.int16, (recipe.history,)),
                "seen": Column(np.int64, (width,)),
                "mean": Column(np.float64, (width,)),
                "squares": Column(np.float64, (width, recipe.history if slides else 1)),
                "times": Column(np.float64, (recipe.length,)),
                "mixed": Column(np.int64, (width,)),
            }
        )
        self._since: Floats = np.zeros(0)
        self._distances: Floats = np.zeros((0, width))
        self._differences: Floats = np.zeros((0, width, 3))
        self._deviations: Floats = np.zeros((0, width))
        self._expected: Floats = np.zeros((0, width))

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """Scores (n,) as multiples of the first distances; see `Model`. Some 10 µs per reading and sensor."""
        slots, values = slot_numbers(slots), floats(values)
        recipe, table = self._recipe, self._table
        table.reserve(slots)
        scores = np.zeros(len(slots))
        self._deviations, self._expected = np.zeros(values.shape), np.full(values.shape, np.nan)
        self._since = np.zeros(len(slots))
        self._distances = np.full(values.shape, np.nan)
        self._differences = np.full((*values.shape, 3), np.nan)
        _score_learn(
            slots,
            values,
            floats(times),
            learned(learn, len(slots)),
            table["count"],
            table["ring"],
            table["learned"],
            table["seen"],
            table["mean"],
            table["squares"],
            table["times"],
            table["mixed"],
            recipe.length,
            recipe.neighbours,
            self.warmup_readings,
            recipe.floor,
            scores,
            self._deviations,
            self._expected,
            self._since,
            self._distances,
            self._differences,
        )
        return scores

    def contributions(self, rows: NDArray[np.int64]) -> Contributions:
        """Shares by squared score of the sensors, signed as the largest difference of the stretches is; expected is
        the last value of the stretch compared with."""
        squares = self._deviations[rows] ** 2
        total = squares.sum(axis=1, keepdims=True)
        shares = np.sign(self._deviations[rows]) * squares / np.where(total > 0, total, 1.0)
        return Contributions(shares, self._expected[rows])

    def nearest_distances(self, rows: NDArray[np.int64]) -> Floats:
        """Distance (k,) of the sensor that counts to the stretch it is compared with, in the unit of the scores."""
        distances: Floats = np.abs(self._deviations[rows]).max(axis=1)
        return np.where(np.isfinite(self._expected[rows]).any(axis=1), distances, np.nan)

    def stretches(self, rows: NDArray[np.int64]) -> Stretches:
        """See `StretchModel`: all of `length` readings."""
        compared = np.isfinite(self._distances[rows]).any(axis=1)
        readings = np.where(compared, self._recipe.length, 0)
        rank = np.where(compared, self._recipe.neighbours, 0)
        shifts, largest, usual = np.moveaxis(self._differences[rows], 2, 0)
        return Stretches(readings, self._since[rows], rank, self._distances[rows], shifts, largest, usual)

    def forget_recent(self, slots: Slots, sensors: Mask) -> None:
        """See `ForgettingModel`: the sensors are not compared before a stretch holds values of later readings alone;
        until there are any, the median of what was learned stands in, and not the last value."""
        table = self._table
        table.reserve(slots)
        for slot in slots[table["count"][slots] > 0].tolist():
            count, kept = table["count"][slot], table["learned"][slot] > 0
            for j in np.flatnonzero(sensors).tolist() if kept.any() else ():
                ring = table["ring"][slot, j]
                ring[(count - 1) % len(ring)] = np.median(ring[kept])
            table["mixed"][slot, sensors] = self._recipe.length - 1

    def snapshot(self, slots: Slots) -> Rows:
        """`count` (k,), `ring` (k, n_sensors, history), `learned` (k, history); `seen`, `mean` (k, n_sensors);
        `squares` (k, n_sensors, history), or (k, n_sensors, 1) of single values; `times` (k, length); `mixed`
        (k, n_sensors), how many values are missing until a stretch holds none from before it was forgotten."""
        return self._table.snapshot(slots)

    def restore(self, slots: Slots, rows: Rows) -> None:
        """See `Model`. Raises ValueError on a negative count, too."""
        if "count" in rows and np.size(rows["count"]) and np.min(rows["count"]) < 0:
            raise ValueError("state 'count' is negative")
        none_mixed = np.zeros(
            (len(slots), len(self.sensors)), np.int64
        )  # earlier releases have no such array
        self._table.restore(slots, {"mixed": none_mixed, **rows})


@compiled("Tuple((float64, int64))(float64[::1], int16[::1], float64[::1], int64, int64)")
def _nearest(
    ring: Floats, runs: NDArray[np.int16], squares: Floats, count: int, length: int
) -> tuple[float, int]:
    """Squared distance of the newest stretch to the nearest before it (inf if none), and how far back that is.

    A stretch counts that lies within a run of learned readings (`runs`: how many up to each, at most `length`).
    `squares` holds the squared distances by lag and slides with each reading: one term comes, one goes. Rounding
    errors do not pile up, since one lag in `length` is summed anew each time, and each of which nearly all goes. Of
    single values it holds nothing, unless further neighbours are sought in it."""
    history = len(ring)
    newest = (count - 1) % history
    gone = (newest - length) % history
    first = max(1, length // 2)
    best, nearest = np.inf, 0
    for lag in range(first, min(count, history) - length):
        end = newest - lag
        end += history if end < 0 else 0
        anew = (count - lag) % length == 0 or lag == count - length - 1
        total = 0.0
        if not anew:
            left = gone - lag
            left += history if left < 0 else 0
            come, went = ring[newest] - ring[end], ring[gone] - ring[left]
            total = squares[lag] + come * come - went * went
            anew = total < _CANCELLED * went * went
        if anew:
            total = 0.0
            a, b = newest, end
            for _ in range(length):
                gap = ring[a] - ring[b]
                total += gap * gap
                a = a - 1 if a > 0 else history - 1
                b = b - 1 if b > 0 else history - 1
        if len(squares) > 1:
            squares[lag] = total
        if total < best and runs[end] >= length:
            best, nearest = total, lag
    return best, nearest


@compiled("float64(int16[::1], float64[::1], int64, int64, int64[::1])")
def _farther(
    runs: NDArray[np.int16], squares: Floats, count: int, length: int, lags: NDArray[np.int64]
) -> float:
    """Squared distance of the next nearest stretches, one for each further entry of `lags`, which are filled in;
    inf where there are not so many. `squares` are those that `_nearest` left."""
    history = len(runs)
    newest, first = (count - 1) % history, max(1, length // 2)
    best = np.inf
    for k in range(1, len(lags)):
        best, lags[k] = np.inf, 0
        for lag in range(first, min(count, history) - length):
            if squares[lag] >= best or runs[(newest - lag) % history] < length:
                continue
            apart = True
            for nearer in range(k):
                apart = apart and abs(lag - lags[nearer]) >= first
            if apart:
                best, lags[k] = squares[lag], lag
    return best


@compiled("boolean(float64[:,::1], int64, int64)")
def _still(ring: Floats, count: int, length: int) -> bool:
    """Whether no sensor moved within the newest stretch, or there was no reading yet."""
    history = ring.shape[1]
    for j in range(ring.shape[0]):
        for back in range(1, length):
            if ring[j, (count - 1 - back) % history] != ring[j, (count - 1) % history]:
                return False
    return count >= length or count == 0


@compiled("void(float64[::1], int64, int64, int64, float64[::1])")
def _compare(ring: Floats, newest: int, lag: int, length: int, found: Floats) -> None:
    """How far the newest stretch lies above the one so far back: on the mean, where that is most (signed; the newest
    of such places), and the other's value there."""
    history, total, largest, usual = len(ring), 0.0, 0.0, np.nan
    for back in range(length):
        a = (newest - back) % history
        other = ring[(a - lag) % history]
        gap = ring[a] - other
        total += gap
        if back == 0 or abs(gap) > abs(largest):
            largest, usual = gap, other
    found[0], found[1], found[2] = total / length, largest, usual


@compiled(
    "void(int64[::1], float64[:,::1], float64[::1], boolean[::1], int64[::1], float64[:,:,::1], int16[:,::1],"
    " int64[:,::1], float64[:,::1], float64[:,:,::1], float64[:,::1], int64[:,::1], int64, int64, int64, float64,"
    " float64[::1], float64[:,::1], float64[:,::1], float64[::1], float64[:,::1], float64[:,:,::1])"
)
def _score_learn(
    slots: Slots,
    values: Floats,
    times: Floats,
    learn: Mask,
    count: NDArray[np.int64],
    ring: Floats,
    runs: NDArray[np.int16],
    seen: NDArray[np.int64],
    mean: Floats,
    squares: Floats,
    clock: Floats,
    mixed: NDArray[np.int64],
    length: int,
    neighbours: int,
    warmup: int,
    floor: float,
    scores: Floats,
    deviations: Floats,
    expected: Floats,
    since: Floats,
    distances: Floats,
    differences: Floats,
) -> None:
    history = ring.shape[2]
    lags = np.zeros(neighbours, np.int64)
    late = length + neighbours * max(1, length // 2) + 2  # by then a sensor that is there was compared
    for i in range(values.shape[0]):
        slot = slots[i]
        if not np.isfinite(values[i]).any() and _still(ring[slot], count[slot], length):
            since[i] = times[
                i
            ]  # a whole stretch is bridged: more of it would only take the place of examples
            continue
        place = count[slot] % history
        before = (count[slot] - 1) % history
        run = runs[slot, before] + 1 if count[slot] else 1
        runs[slot, place] = min(run, length) if learn[i] else 0
        clock[slot, count[slot] % length] = times[i]
        count[slot] += 1
        since[i] = clock[slot, count[slot] % length] if count[slot] >= length else times[i]
        for j in range(values.shape[1]):
            missing = not np.isfinite(values[i, j])
            if missing:
                value = ring[slot, j, before] if count[slot] > 1 else 0.0
            elif seen[slot, j] == 0 and count[slot] > late and not ring[slot, j].any():
                value = min(max(values[i, j], -_LARGEST_VALUE), _LARGEST_VALUE)
                ring[slot, j] = value  # it was never heard: that it was 0 before is made up
                squares[slot, j], mean[slot, j] = 0.0, -1.0
            else:
                value = min(max(values[i, j], -_LARGEST_VALUE), _LARGEST_VALUE)
            ring[slot, j, place] = value
            if count[slot] < length + length // 2:
                mixed[slot, j] -= 0 if missing else min(mixed[slot, j], 1)
                continue
            square, nearest = _nearest(ring[slot, j], runs[slot], squares[slot, j], count[slot], length)
            if neighbours > 1 and np.isfinite(square):
                lags[0] = nearest
                square = _farther(runs[slot], squares[slot, j], count[slot], length, lags)
                nearest = lags[neighbours - 1]
            if not missing and mixed[slot, j] > 0:
                mixed[slot, j] -= 1
                continue
            if missing or not np.isfinite(square):
                continue
            if mean[slot, j] < 0.0:  # heard late: it is not compared before it has stretches of its own
                mean[slot, j] -= 1.0
                if mean[slot, j] < -(length + length // 2):
                    mean[slot, j] = 0.0
                continue
            example = ring[slot, j, (place - nearest) % history]
            distance = np.sqrt(square / length)
            known, usual = seen[slot, j], mean[slot, j]
            if known < _SCALED_BY:  # with this distance: a unit of few, all of them near 0, makes no giants
                usual += (distance - usual) / (known + 1)
            usual = max(usual, floor)
            if count[slot] >= warmup and known > 0:
                score = min(distance / usual, _LARGEST_SCORE) if usual > 0.0 else 0.0
                if abs(values[i, j]) > _LARGEST_VALUE:
                    score = _LARGEST_SCORE
                expected[i, j] = example
                distances[i, j] = distance
                _compare(ring[slot, j], place, nearest, length, differences[i, j])
                deviations[i, j] = score if differences[i, j, 1] >= 0.0 else -score
                scores[i] = max(scores[i], score)
            if learn[i] and known < _SCALED_BY:
                seen[slot, j] += 1
                mean[slot, j] += (distance - mean[slot, j]) / seen[slot, j]

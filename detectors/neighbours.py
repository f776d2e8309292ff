"""Nearest neighbours: how far a reading is from the examples of normal that its key has kept."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from detectors.base import Contributions, Detector, Floats, Mask, Rows, Slots
from detectors.draws import uniform
from detectors.kernels import compiled, floats, learned, slot_numbers
from detectors.table import Column, Table

__all__ = ["KNN", "KNNModel"]

_LARGEST_VALUE = 1e100
_MISSING = 1e300
"""Stands in an example for a sensor that is hardly known yet: state is finite."""
_LARGEST_DEVIATION = 1e6
"""Bound on a difference in sigmas, so that scores stay finite."""
_CLIP = 3.0
"""Sigmas beyond which a deviation counts no further towards mean and variance."""
_TRUSTED_AFTER = 10
_FLAT_MOVE = 6.0
"""Sigmas that the move of a sensor counts at most that has never moved, so has no scale."""
_LEAST_TYPICAL = 0.1
"""Least typical distance, in sigmas times the root of the number of sensors: readings that repeat have none."""
_STEP = 0.02
"""The typical distance goes up or down by this share with each reading, which makes it a running median."""
_RATE = 1e-3
"""Weight of a reading in mean and variance once a thousand have been learned."""


class KNN(Detector, frozen=True, kw_only=True):
    """Scores a reading by its distance to the k-th nearest of the examples its key keeps, in typical distances.

    Ramaswamy, Rastogi and Shim, "Efficient algorithms for mining outliers from large data sets", SIGMOD 2000,
    over a bounded sample as in Aggarwal, "On biased reservoir sampling in the presence of stream evolution",
    VLDB 2006. Sensors are standardised by their running mean and variance (deviations beyond 3 sigmas count as
    3). The score is the distance divided by its running median, so it is about 1 on normal readings and means
    the same on every machine. The median is that of readings with all their sensors: neighbours are the nearer
    the fewer sensors tell them apart, so a reading that lacks some must be the farther off to be told.

    A reading that scores above `held` is not learned: anomalies neither become examples nor widen the scales,
    also where they cluster and where they are some percent of all readings. After `patience` such readings in
    a row the new regime is learned.

    A reading is compared by the sensors it has, each once `warmup` readings of it were learned; and by the same
    with every example, for examples have no gaps: what a reading lacked that becomes one is taken from the example
    it was nearest to.

    Fails where one regime has far wider gaps than another (one typical distance for all; use a local outlier
    factor), where many sensors are irrelevant, where the warm-up holds more than k anomalies of one sort, and
    on what shows only in the order of readings.

    >>> model = KNN(k=1, warmup=10).build(("x",))
    >>> values = np.array([[0.0], [1.0]] * 10 + [[9.0]])
    >>> scores = model.score_learn(np.zeros(21, np.int64), values, np.arange(21.0))
    >>> bool(scores[:20].max() < 1 < model.threshold < scores[20])
    True
    >>> model.contributions(np.array([20])).expected
    array([[1.]])
    """

    kind: ClassVar[str] = "knn"
    relative: ClassVar[float] = 4.0

    k: Annotated[int, Meta(ge=1, le=100)] = 5
    capacity: Annotated[int, Meta(ge=2, le=4096)] = 128
    """Examples kept per key; each takes 8 bytes a sensor."""
    warmup: Annotated[int, Meta(ge=2, le=4096)] = 20
    """Examples of a key before it is scored."""
    reservoir: Literal["sampled", "sliding"] = "sampled"
    """`sampled`: examples are a random sample, uniform over all readings at first and over about the last
    `horizon` later. `sliding`: the latest readings."""
    horizon: Annotated[int, Meta(ge=1)] = 10_000
    """Learned readings after which an example has been replaced with a chance of 63 % (`sampled`)."""
    held: Annotated[float, Meta(gt=1)] = 3.0
    """Score above which a reading is not learned."""
    patience: Annotated[int, Meta(ge=1)] = 500
    """Readings in a row above `held` after which they are learned all the same."""
    healthy: Annotated[int, Meta(ge=0)] = 0
    """Readings of a key that are learned whatever they score, the first ones: a part known to be healthy."""
    floor: Annotated[float, Meta(ge=0)] = 1e-9
    """Least sigma, in the sensors' units."""
    seed: int = 42

    def __post_init__(self) -> None:
        if not self.k < self.warmup <= self.capacity:
            raise ValueError("k must be below warmup, and warmup at most capacity")

    def build(self, sensors: tuple[str, ...]) -> KNNModel:
        """A fresh model; its threshold is 5 typical distances where the recipe states none."""
        return KNNModel(self, sensors)


class KNNModel:
    """State per key: the examples, and by sensor count, mean and variance; 9.5 kB at 9 sensors and the defaults."""

    def __init__(self, recipe: KNN, sensors: tuple[str, ...]) -> None:
        self.sensors = sensors
        self.threshold = 5.0 if recipe.threshold is None else recipe.threshold
        self.warmup_readings = recipe.warmup
        self._recipe = recipe
        width = (len(sensors),)
        self._table = Table(
            {
                "examples": Column(np.float64, (recipe.capacity, len(sensors))),
                "counter": Column(np.int64, (3,)),
                "typical": Column(np.float64),
                "count": Column(np.int64, width),
                "mean": Column(np.float64, width),
                "variance": Column(np.float64, width),
            }
        )
        self._differences: Floats = np.zeros((0, len(sensors)))
        self._expected: Floats = np.zeros((0, len(sensors)))
        self._nearest: Floats = np.zeros(0)

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """Scores (n,) in typical distances; see `Model`. About 5 µs per reading of 9 sensors and 128 examples."""
        slots, values = slot_numbers(slots), floats(values)
        recipe, table = self._recipe, self._table
        table.reserve(slots)
        scores = np.zeros(len(slots))
        self._differences = np.zeros(values.shape)
        self._expected = np.full(values.shape, np.nan)
        self._nearest = np.full(len(slots), np.nan)
        _score_learn(
            slots,
            values,
            learned(learn, len(slots)),
            table["examples"],
            table["counter"],
            table["typical"],
            table["count"],
            table["mean"],
            table["variance"],
            (recipe.k, recipe.warmup, recipe.patience, recipe.horizon, recipe.healthy, recipe.seed),
            recipe.reservoir == "sliding",
            recipe.held,
            recipe.floor,
            scores,
            self._differences,
            self._expected,
            self._nearest,
        )
        return scores

    def contributions(self, rows: NDArray[np.int64]) -> Contributions:
        """Shares by squared difference, in sigmas, to the example whose distance is the score, the k-th nearest;
        expected is that example."""
        squares = self._differences[rows] ** 2
        total = squares.sum(axis=1, keepdims=True)
        shares = np.sign(self._differences[rows]) * squares / np.where(total > 0, total, 1.0)
        return Contributions(shares, self._expected[rows])

    def nearest_distances(self, rows: NDArray[np.int64]) -> Floats:
        """Distance (k,) of these rows of the latest call to their nearest example, in sigmas; NaN without one."""
        return self._nearest[rows]

    def snapshot(self, slots: Slots) -> Rows:
        """`examples` (k, capacity, n_sensors), 1e300 for a sensor hardly known, and the running statistics."""
        return self._table.snapshot(slots)

    def restore(self, slots: Slots, rows: Rows) -> None:
        """See `Model`. Gaps that earlier releases left in examples are filled. Raises ValueError also on counters
        that cannot be."""
        counter = np.asarray(rows.get("counter", 0))
        if counter.shape == (len(slots), 3):
            kept = counter[:, 0]
            if (counter < 0).any() or (kept > self._recipe.capacity).any() or (kept > counter[:, 1]).any():
                raise ValueError("state: the counters of examples do not add up")
        table, recipe = self._table, self._recipe
        table.restore(slots, rows)
        for slot in slots.tolist():
            weights = 1.0 / np.maximum(np.sqrt(table["variance"][slot]), recipe.floor)
            for j in np.flatnonzero(table["count"][slot] >= recipe.warmup).tolist():
                _fill(table["examples"][slot], table["counter"][slot, 0], j, weights, table["mean"][slot, j])


@compiled("float64(float64[::1], float64[:,::1], int64, int64, float64[::1], float64[::1], int64[::1])")
def _nearest(
    reading: Floats,
    examples: Floats,
    kept: int,
    left_out: int,
    weights: Floats,
    best: Floats,
    nearest: NDArray[np.int64],
) -> float:
    """Squared distance to the k-th nearest example (k: the length of `best`), -1 if none compares. `nearest` (k,)
    becomes these examples. All have the sensors that the reading has."""
    n_sensors, k = len(reading), len(best)
    common = 0
    for j in range(n_sensors):
        common += reading[j] != _MISSING
    best[:] = np.inf
    nearest[:] = -1
    if common == 0:
        return -1.0
    for e in range(kept):
        if e == left_out:
            continue
        total = 0.0
        for j in range(n_sensors):
            if reading[j] == _MISSING:
                continue
            difference = (reading[j] - examples[e, j]) * weights[j]
            total += min(difference * difference, _LARGEST_DEVIATION * _LARGEST_DEVIATION)
            if total >= best[k - 1]:
                break
        if total >= best[k - 1]:
            continue
        place = k - 1
        while place > 0 and best[place - 1] > total:
            best[place], nearest[place] = best[place - 1], nearest[place - 1]
            place -= 1
        best[place], nearest[place] = total, e
    best *= n_sensors / common
    return float(best[k - 1])


@compiled("void(float64[:,::1], int64, int64, float64[::1], float64)")
def _fill(examples: Floats, kept: int, sensor: int, weights: Floats, mean: float) -> None:
    """Give each example that lacks a sensor its value in the nearest one that has it; the mean if none compares."""
    lacking = examples[:kept, sensor] == _MISSING
    for e in np.flatnonzero(lacking):
        value, least = mean, np.inf
        for other in np.flatnonzero(~lacking):
            total, common = 0.0, 0
            for j in range(examples.shape[1]):
                if examples[e, j] == _MISSING or examples[other, j] == _MISSING:
                    continue
                common += 1
                total += min(((examples[e, j] - examples[other, j]) * weights[j]) ** 2, _LARGEST_DEVIATION**2)
            if common and total / common < least:
                value, least = examples[other, sensor], total / common
        examples[e, sensor] = value


@compiled(
    "void(int64[::1], float64[:,::1], boolean[::1], float64[:,:,::1], int64[:,::1], float64[::1], int64[:,::1],"
    " float64[:,::1], float64[:,::1], UniTuple(int64, 6), boolean, float64, float64, float64[::1],"
    " float64[:,::1], float64[:,::1], float64[::1])"
)
def _score_learn(
    slots: Slots,
    values: Floats,
    learn: Mask,
    examples: Floats,
    counter: NDArray[np.int64],
    typical: Floats,
    count: NDArray[np.int64],
    mean: Floats,
    variance: Floats,
    settings: tuple[int, int, int, int, int, int],
    sliding: bool,
    held: float,
    floor: float,
    scores: Floats,
    differences: Floats,
    expected: Floats,
    distances: Floats,
) -> None:
    k, warmup, patience, horizon, healthy, seed = settings
    capacity, n_sensors = examples.shape[1:]
    least = _LEAST_TYPICAL * np.sqrt(n_sensors)
    best, nearest = np.empty(k), np.empty(k, np.int64)
    reading, weights = np.empty(n_sensors), np.empty(n_sensors)
    query = np.empty(n_sensors)
    for i in range(values.shape[0]):
        slot = slots[i]
        present = False
        for j in range(n_sensors):
            reading[j] = _MISSING
            if np.isfinite(values[i, j]):
                reading[j] = min(max(values[i, j], -_LARGEST_VALUE), _LARGEST_VALUE)
                present = True
            sigma = np.sqrt(variance[slot, j])
            if sigma <= max(floor, 1e-6 * abs(mean[slot, j])):
                move = abs(reading[j] - mean[slot, j]) / _FLAT_MOVE
                sigma = max(move, floor) if move > 1e-100 else 1.0
            weights[j] = 1.0 / sigma
        if not present:
            continue
        kept = counter[slot, 0]
        known = count[slot] >= warmup
        nearest[:] = -1
        if kept >= warmup and known.any():
            if typical[slot] == 0.0:
                own = np.empty(kept)
                for e in range(kept):
                    query[:] = np.where(known, examples[slot, e], _MISSING)
                    own[e] = _nearest(query, examples[slot], kept, e, weights, best, nearest)
                typical[slot] = max(np.sqrt(max(np.median(own), 0.0)), least)
            query[:] = np.where(known, reading, _MISSING)
            square = _nearest(query, examples[slot], kept, -1, weights, best, nearest)
            if square >= 0:
                scores[i] = np.sqrt(square) / typical[slot]
                distances[i] = np.sqrt(best[0])
                for j in range(n_sensors):
                    if not known[j]:
                        continue
                    expected[i, j] = examples[slot, nearest[k - 1], j]
                    if reading[j] != _MISSING:
                        difference = (reading[j] - expected[i, j]) * weights[j]
                        differences[i, j] = min(max(difference, -_LARGEST_DEVIATION), _LARGEST_DEVIATION)
        if not learn[i]:
            continue
        if scores[i] > held and counter[slot, 1] >= healthy:
            counter[slot, 2] += 1
            if counter[slot, 2] <= patience:
                continue
        else:
            counter[slot, 2] = 0
        if scores[i] > 0 and (~known | (reading != _MISSING)).all():
            typical[slot] *= 1.0 + _STEP if scores[i] > 1 else 1.0 / (1.0 + _STEP)
            typical[slot] = max(typical[slot], least)
        young, renewed = False, -1
        for j in range(n_sensors):
            if reading[j] == _MISSING:
                if known[j]:
                    reading[j] = examples[slot, nearest[0], j] if nearest[0] >= 0 else mean[slot, j]
                    renewed = nearest[0]
                continue
            young = young or not known[j]
            deviation = reading[j] - mean[slot, j]
            most = _CLIP * np.sqrt(variance[slot, j])
            if most > 0 and count[slot, j] >= _TRUSTED_AFTER:
                deviation = min(max(deviation, -most), most)
            count[slot, j] += 1
            weight = max(1.0 / count[slot, j], _RATE)
            mean[slot, j] += weight * deviation
            variance[slot, j] = (1.0 - weight) * (variance[slot, j] + weight * deviation * deviation)
        seen = counter[slot, 1]
        counter[slot, 1] = seen + 1
        if kept < capacity:
            examples[slot, kept] = reading
            counter[slot, 0] = kept + 1
        elif sliding:
            examples[slot, seen % capacity] = reading
        elif young or uniform(seed, seen, 0) * min(seen + 1, max(horizon, capacity)) < capacity:
            # In place of the example it was completed from: copies of that would crowd out all others.
            place = renewed if renewed >= 0 else int(uniform(seed, seen, 1) * capacity)
            examples[slot, place] = reading
        if not young:
            continue
        for j in range(n_sensors):  # from now on this sensor counts, and all examples have it
            if not known[j] and count[slot, j] >= warmup:
                _fill(examples[slot], counter[slot, 0], j, weights, mean[slot, j])
                typical[slot] = 0.0

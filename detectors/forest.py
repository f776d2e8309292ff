"""Half-space trees: readings in sparsely visited parts of space score high; many keys in one compiled pass."""

from __future__ import annotations

import random
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from detectors.base import Contributions, Detector, Floats, Mask, Rows, Slots
from detectors.kernels import compiled, floats, learned, slot_numbers
from detectors.table import Column, Table

__all__ = ["HalfSpaceTrees", "HalfSpaceTreesModel"]

_PADDING = 0.15
"""River's: a split keeps this share of the range away from both ends."""
_LARGEST_VALUE = 1e150
"""Bound on what enters the running mean, so that differences stay finite."""


class HalfSpaceTrees(Detector, frozen=True, kw_only=True):
    """Scores a reading by how few of the last window's readings fell where it falls, 0 to 1.

    Tan, Ting and Liu, "Fast anomaly detection for streaming data", IJCAI 2011. Trees are built by river's
    own builder, and scores equal those of `river.anomaly.HalfSpaceTrees` with the same settings to the last
    bit (`scale: minmax`: of `MinMaxScaler() | HalfSpaceTrees`), as long as readings are complete. Where a sensor is
    missing, readings go to both sides of its splits in the shares of the last window, so that these are still known
    when it returns; river's go to the side visited more often, which in time takes them all, and makes half of
    normal an anomaly then.

    Scores are 0 until a key has filled its first window. How high they reach depends on `height` and the number
    of sensors; of normal readings one in a thousand lies above 0.72 (nine sensors, Shuttle) to 0.92 (one
    sensor, WaterFlow) at the default settings, and the default threshold of 0.8 lies between.

    Fails where anomalies cluster within a window (they become its mass), where one extreme value stretches
    `minmax` for good, and where many sensors are irrelevant.

    >>> recipe = HalfSpaceTrees(n_trees=5, height=3, window_size=3, scale="none")
    >>> model = recipe.build(("x",))
    >>> values = np.array([[0.5], [0.45], [0.43], [0.45], [0.0]])
    >>> model.score_learn(np.zeros(5, np.int64), values, np.arange(5.0)).round(3)
    array([0.   , 0.   , 0.   , 0.071, 0.853])
    """

    kind: ClassVar[str] = "half_space_trees"
    relative: ClassVar[float] = 3.0

    n_trees: Annotated[int, Meta(ge=1, le=1000)] = 25
    height: Annotated[int, Meta(ge=1, le=15)] = 6
    window_size: Annotated[int, Meta(ge=2, le=1_000_000)] = 250
    """Readings whose places make up the reference mass."""
    seed: int = 42
    scale: Literal["minmax", "none"] = "minmax"
    """`minmax`: each sensor's range so far, per key, becomes 0 to 1. `none`: `limits` are the ranges."""
    limits: dict[str, tuple[float, float]] = msgspec.field(default_factory=dict)
    """Range of a sensor after scaling; 0 to 1 where none is given."""

    def __post_init__(self) -> None:
        for sensor, (low, high) in self.limits.items():
            if not (np.isfinite([low, high]).all() and low < high):
                raise ValueError(f'limits: "{sensor}": the lower limit must be below the upper')

    def build(self, sensors: tuple[str, ...]) -> HalfSpaceTreesModel:
        """A fresh model; its threshold is 0.8 where the recipe states none. Raises ValueError on odd limits."""
        if unknown := sorted(set(self.limits) - set(sensors)):
            raise ValueError(f'limits: "{unknown[0]}" is not a sensor; there are {", ".join(sensors)}')
        return HalfSpaceTreesModel(self, sensors)


class HalfSpaceTreesModel:
    """State per key: the masses of every node, the place in the window, each sensor's range and mean."""

    def __init__(self, recipe: HalfSpaceTrees, sensors: tuple[str, ...]) -> None:
        self.sensors = sensors
        self.threshold = 0.8 if recipe.threshold is None else recipe.threshold
        self.warmup_readings = recipe.window_size
        self._recipe = recipe
        self._features, self._splits = _build_trees(recipe, sensors)
        masses = (recipe.n_trees, 2 ** (recipe.height + 1) - 1)
        width = (len(sensors),)
        self._table = Table(
            {
                "reference": Column(np.int32, masses),
                "latest": Column(np.int32, masses),
                "counter": Column(np.int64, (2,)),
                "count": Column(np.int64, width),
                "low": Column(np.float64, width),
                "high": Column(np.float64, width),
                "mean": Column(np.float64, width),
            }
        )
        self._leaf_type = np.dtype(np.uint16 if recipe.window_size < 2**16 else np.int32)
        self._drops: Floats = np.zeros((0, len(sensors)))
        self._expected: Floats = np.zeros((0, len(sensors)))

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """Scores (n,) in 0 to 1; see `Model`. About 2 µs per reading at the default settings."""
        slots, values = slot_numbers(slots), floats(values)
        table = self._table
        table.reserve(slots)
        scores = np.zeros(len(slots))
        self._drops = np.zeros(values.shape)
        self._expected = np.empty(values.shape)
        _score_learn(
            slots,
            values,
            learned(learn, len(slots)),
            self._features,
            self._splits,
            table["reference"],
            table["latest"],
            table["counter"],
            table["count"],
            table["low"],
            table["high"],
            table["mean"],
            self._recipe.window_size,
            self._recipe.scale == "minmax",
            scores,
            self._drops,
            self._expected,
        )
        return scores

    def contributions(self, rows: NDArray[np.int64]) -> Contributions:
        """Shares by the mass lost at each sensor's splits; expected is the sensor's running mean."""
        drops = self._drops[rows]
        total = np.abs(drops).sum(axis=1, keepdims=True)
        return Contributions(drops / np.where(total > 0, total, 1.0), self._expected[rows])

    def snapshot(self, slots: Slots) -> Rows:
        """Masses of the leaves (k, n_trees, n_leaves), counters (k, 2), and by sensor count, range and mean.

        The inner nodes' masses are sums of the leaves'; 7 kB per key at the default settings.
        """
        rows = dict(self._table.snapshot(slots))
        for name in ("reference", "latest"):
            rows[name] = rows[name][:, :, self._splits.shape[1] :].astype(self._leaf_type)
        return rows

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Put rows back. Raises ValueError on rows that do not fit, or whose masses do not add up."""
        whole = dict(rows)
        for name in ("reference", "latest"):
            if name in rows:
                whole[name] = self._with_inner_nodes(name, np.asarray(rows[name]), len(slots))
        counter = np.asarray(rows.get("counter", 0))
        if counter.shape == (len(slots), 2) and {"reference", "latest"} <= set(rows):
            window = self._recipe.window_size
            place, filled = counter[:, :1], counter[:, 1:]
            if (
                ((place < 0) | (place >= window) | (filled < 0) | (filled > 1)).any()
                or (whole["latest"][:, :, 0] != place).any()
                or (whole["reference"][:, :, 0] != filled * window).any()
            ):
                raise ValueError("state: the trees' masses and counters do not add up")
        self._table.restore(slots, whole)

    def _with_inner_nodes(self, name: str, leaves: NDArray[Any], n_slots: int) -> NDArray[np.int32]:
        n_trees, n_inner = self._splits.shape
        shape = (n_slots, n_trees, n_inner + 1)
        if leaves.shape != shape or leaves.dtype != self._leaf_type:
            raise ValueError(
                f"state {name!r} is {leaves.dtype}{leaves.shape}, expected {self._leaf_type}{shape}"
            )
        masses = np.zeros((n_slots, n_trees, 2 * n_inner + 1), np.int32)
        masses[:, :, n_inner:] = leaves
        for node in range(n_inner - 1, -1, -1):
            masses[:, :, node] = masses[:, :, 2 * node + 1] + masses[:, :, 2 * node + 2]
        return masses


def _build_trees(
    recipe: HalfSpaceTrees, sensors: tuple[str, ...]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Split sensor and split value by tree and inner node, in heap order (children of i: 2i + 1, 2i + 2)."""
    from river.tree.padded import make_padded_tree  # takes more than a second, for those who need it

    rng = random.Random(recipe.seed)
    shape = (recipe.n_trees, 2**recipe.height - 1)
    features, splits = np.zeros(shape, np.int64), np.zeros(shape)
    column = {name: j for j, name in enumerate(sensors)}
    for t in range(recipe.n_trees):
        limits = {name: recipe.limits.get(name, (0.0, 1.0)) for name in sorted(sensors)}
        tree = make_padded_tree(limits, recipe.height, _PADDING, rng, r_mass=0, l_mass=0)
        nodes = [(0, tree)]
        while nodes:
            i, node = nodes.pop()
            if i < shape[1]:
                features[t, i], splits[t, i] = column[node.feature], node.threshold
                nodes += [(2 * i + 1, node.children[0]), (2 * i + 2, node.children[1])]
    return features, splits


@compiled("float64(float64, boolean, int64, float64, float64)")
def _scaled(value: float, scale: bool, count: int, low: float, high: float) -> float:
    """As river's MinMaxScaler, which gives NaN for a sensor it has not learned, and 0 for one without range."""
    if not scale:
        return value
    if count == 0:
        return np.nan
    return (value - low) / (high - low) if high != low else 0.0


@compiled("int64(int32[::1], int32[::1], int64)")
def _side(reference: NDArray[np.int32], latest: NDArray[np.int32], left: int) -> int:
    """Which of two children lacks most of its share in the last window (D'Hondt's rule); without one, of half."""
    right = left + 1
    if reference[left] == 0 and reference[right] == 0:
        return right if latest[right] < latest[left] else left
    lacks, other = reference[left] * (latest[right] + 1), reference[right] * (latest[left] + 1)
    return right if other > lacks else left


@compiled(
    "void(int64[::1], float64[:,::1], boolean[::1], int64[:,::1], float64[:,::1], int32[:,:,::1], int32[:,:,::1],"
    " int64[:,::1], int64[:,::1], float64[:,::1], float64[:,::1], float64[:,::1], int64, boolean,"
    " float64[::1], float64[:,::1], float64[:,::1])"
)
def _score_learn(
    slots: Slots,
    values: Floats,
    learn: Mask,
    features: NDArray[np.int64],
    splits: Floats,
    reference: NDArray[np.int32],
    latest: NDArray[np.int32],
    counter: NDArray[np.int64],
    count: NDArray[np.int64],
    low: Floats,
    high: Floats,
    mean: Floats,
    window: int,
    scale: bool,
    scores: Floats,
    drops: Floats,
    expected: Floats,
) -> None:
    n_trees, n_inner = features.shape
    n_sensors = values.shape[1]
    least_mass = 0.1 * window
    largest_score = n_trees * window * (2 * (n_inner + 1) - 1)
    missing = np.empty(n_sensors, np.bool_)
    scaled = np.empty(n_sensors)
    for i in range(values.shape[0]):
        slot = slots[i]
        if not np.isfinite(values[i]).any():
            continue
        for j in range(n_sensors):
            missing[j] = not np.isfinite(values[i, j])
            scaled[j] = _scaled(values[i, j], scale, count[slot, j], low[slot, j], high[slot, j])
            expected[i, j] = mean[slot, j] if count[slot, j] else np.nan
        if counter[slot, 1]:
            total = 0.0
            for t in range(n_trees):
                node = 0
                power = 1.0
                while True:
                    mass = reference[slot, t, node] * power
                    total += mass
                    if node >= n_inner or reference[slot, t, node] < least_mass:
                        break
                    sensor = features[t, node]
                    left = 2 * node + 1
                    if missing[sensor]:
                        node = _side(reference[slot, t], latest[slot, t], left)
                    else:
                        node = left if scaled[sensor] < splits[t, node] else left + 1
                        drops[i, sensor] += max(0.0, mass - 2.0 * power * reference[slot, t, node])
                    power *= 2.0
            scores[i] = 1.0 - total / largest_score
        for j in range(n_sensors):
            if missing[j]:
                continue
            value = min(max(values[i, j], -_LARGEST_VALUE), _LARGEST_VALUE)
            if value < mean[slot, j]:
                drops[i, j] = -drops[i, j]
            if not learn[i]:
                continue
            if count[slot, j] == 0 or values[i, j] < low[slot, j]:
                low[slot, j] = values[i, j]
            if count[slot, j] == 0 or values[i, j] > high[slot, j]:
                high[slot, j] = values[i, j]
            count[slot, j] += 1
            mean[slot, j] += (value - mean[slot, j]) / min(count[slot, j], window)
            scaled[j] = _scaled(values[i, j], scale, count[slot, j], low[slot, j], high[slot, j])
        if not learn[i]:
            continue
        for t in range(n_trees):
            node = 0
            latest[slot, t, 0] += 1
            while node < n_inner:
                sensor = features[t, node]
                left = 2 * node + 1
                if missing[sensor]:
                    node = _side(reference[slot, t], latest[slot, t], left)
                else:
                    node = left if scaled[sensor] < splits[t, node] else left + 1
                latest[slot, t, node] += 1
        counter[slot, 0] += 1
        if counter[slot, 0] == window:
            reference[slot] = latest[slot]
            latest[slot] = 0
            counter[slot, 0] = 0
            counter[slot, 1] = 1

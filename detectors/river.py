"""Every detector of river.anomaly by its own name: one river object per key, behind the common contract."""

from __future__ import annotations

import math
import pickle
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from detectors.base import Contributions, Detector, Floats, Mask, Rows, Slots
from detectors.filling import fill
from detectors.kernels import floats, learned
from detectors.river_catalog import DEFAULT_THRESHOLDS, TARGET_ONLY, construct, positive, scaler, validate
from detectors.statistical import AdaptiveZ
from detectors.unpickling import StateRejected, restricted_loads

__all__ = ["River", "RiverModel"]

_LARGEST_VALUE = 1e15
"""Values are bounded by it before river sees them, so that its squares and sums stay finite."""


class River(Detector, frozen=True, kw_only=True):
    """Any detector of river.anomaly, such as `river: LODA`, with river's own settings and defaults.

    Montiel, Halford, Mastelini et al., "River: machine learning for streaming data in Python", JMLR 2021; each class
    names its own paper. Scores equal river's, score before learn, with three exceptions: negative scores are made
    positive in their order (softplus, for LODA and OneClassSVM), the first `warmup` readings of a key score 0, and a
    class with a `seed` gets 42 where none is set. Detectors of a target (GaussianScorer, StandardAbsoluteDeviation,
    PredictiveAnomalyDetection) take one sensor as `target`, the others are features.

    Missing and non-finite values are replaced by the sensor's running mean, since one NaN would blind most
    river detectors for good; a reading without any value, or without its target, scores 0 and is not learned. A
    detector that nevertheless fails or gives a score that is not finite starts afresh.

    Costs 40 µs (HalfSpaceTrees) to milliseconds (LocalOutlierFactor) per reading, and its state is a pickle
    of up to hundreds of kilobytes per key: for many keys take `half_space_trees` or `adaptive_z`.

    >>> model = River(river="GaussianScorer", target="flow", settings={"grace_period": 10}).build(("flow",))
    >>> values = np.append(np.sin(np.arange(99.0)), 9.0)[:, np.newaxis]
    >>> model.score_learn(np.zeros(100, np.int64), values, np.arange(100.0))[-1].round(3)
    np.float64(1.0)
    """

    kind: ClassVar[str] = "river"

    river: str
    """The class in river.anomaly."""
    settings: dict[str, Any] = msgspec.field(default_factory=dict)
    """River's own parameters."""
    scale: Literal["none", "minmax", "standard"] = "none"
    """How features are scaled first: river's MinMaxScaler or StandardScaler."""
    target: str | None = None
    """The sensor that is judged, for detectors of a target."""
    warmup: Annotated[int, Meta(ge=1)] = 50
    """Readings of a key that score 0."""

    def __post_init__(self) -> None:
        validate(self.river, self.settings, self.target)

    def build(self, sensors: tuple[str, ...]) -> RiverModel:
        """A fresh model. Raises ValueError if `target` or a sensor in `limits` is none of the sensors."""
        named = [*([self.target] if self.target else []), *self.settings.get("limits", {})]
        if unknown := [name for name in named if name not in sensors]:
            raise ValueError(f'{self.river}: "{unknown[0]}" is not a sensor; there are {", ".join(sensors)}')
        return RiverModel(self, sensors)


class RiverModel:
    """State per key: a river object (and its scaler), and each sensor's running mean and variance."""

    def __init__(self, recipe: River, sensors: tuple[str, ...]) -> None:
        self.sensors = sensors
        default = DEFAULT_THRESHOLDS.get(recipe.river, 1.0)
        self.threshold = default if recipe.threshold is None else recipe.threshold
        self.warmup_readings = recipe.warmup
        self._recipe = recipe
        self._target = None if recipe.target is None else sensors.index(recipe.target)
        self._features = [j for j in range(len(sensors)) if j != self._target]
        self._normal = AdaptiveZ(warmup=2).build(sensors)
        self._objects: dict[int, _Keyed] = {}

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """Scores (n,), non-negative; see `Model`."""
        values = floats(values)
        filled, known = fill(self._normal, slots, values, times, learn, _LARGEST_VALUE)
        judged = self._features if self._target is None else [self._target]
        taught = learned(learn, len(values))
        scores = np.zeros(len(values))
        for i in np.flatnonzero(known[:, judged].any(axis=1)).tolist():
            scores[i] = self._score_learn_one(int(slots[i]), filled[i].tolist(), bool(taught[i]))
        return scores

    def contributions(self, rows: NDArray[np.int64]) -> Contributions:
        """Deviations from each sensor's running mean, in squared sigmas: not the river detector's own reasons.

        Detectors that look at nothing but the target give it the whole share.
        """
        shares, expected = self._normal.contributions(rows)
        if self._recipe.river in TARGET_ONLY:
            only = np.zeros_like(shares)
            only[:, self._target] = np.sign(shares[:, self._target])
            shares = only
        return Contributions(shares, expected)

    def snapshot(self, slots: Slots) -> Rows:
        """Count, mean and variance by sensor, and `object` (k,): pickles as bytes, empty for a fresh key."""
        objects = np.empty(len(slots), dtype=object)
        for i, slot in enumerate(slots.tolist()):
            keyed = self._objects.get(slot)
            objects[i] = b"" if keyed is None else pickle.dumps(keyed.state(), protocol=5)
        return {**self._normal.snapshot(slots), "object": objects}

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Put rows back. Raises ValueError on a mismatch, and on pickles that name anything but river's classes."""
        objects = rows.get("object")
        if objects is None or np.shape(objects) != (len(slots),):
            raise ValueError("state has no pickle per key")
        restored = {
            slot: self._keyed(data) for slot, data in zip(slots.tolist(), objects.tolist(), strict=True)
        }
        self._normal.restore(slots, {name: array for name, array in rows.items() if name != "object"})
        for slot, keyed in restored.items():
            self._objects.pop(slot, None)
            if keyed is not None:
                self._objects[slot] = keyed

    def _keyed(self, data: Any) -> _Keyed | None:
        if not isinstance(data, bytes):
            raise ValueError("state is not bytes")
        if not data:
            return None
        state, fresh = restricted_loads(data), _Keyed(self._recipe)
        if (
            not (isinstance(state, tuple) and len(state) == 3 and isinstance(state[0], int))
            or type(state[1]) is not type(fresh.scaler)
            or type(state[2]) is not type(fresh.detector)
        ):
            raise StateRejected(f"state is not that of {self._recipe.river}")
        fresh.learned, fresh.scaler, fresh.detector = state
        return fresh

    def _score_learn_one(self, slot: int, values: list[float], learn: bool) -> float:
        keyed = self._objects.get(slot)
        if keyed is None:
            keyed = self._objects[slot] = _Keyed(self._recipe)
        features = {self.sensors[j]: values[j] for j in self._features}
        target = None if self._target is None else values[self._target]
        try:
            score = keyed.score_learn(features, target, learn)
        except (ArithmeticError, ValueError):  # river's arithmetic gave out: a blinded detector helps nobody
            score = math.nan
        if math.isfinite(score):
            return positive(self._recipe.river, score) if keyed.learned > self._recipe.warmup else 0.0
        del self._objects[slot]
        return 0.0


class _Keyed:
    """The river objects of one key."""

    def __init__(self, recipe: River) -> None:
        self.learned = 0
        self.scaler = scaler(recipe.scale)
        self.detector: Any = construct(recipe.river, recipe.settings)

    def state(self) -> tuple[int, Any, Any]:
        return self.learned, self.scaler, self.detector

    def score_learn(self, features: dict[str, float], target: float | None, learn: bool) -> float:
        """As river's `scaler | detector`: score by the scaler as it was, then teach both, if at all."""
        asked = () if target is None else (target,)
        score = 0.0
        if self.learned:  # before its first reading a scaler gives NaN
            score = float(self.detector.score_one(self._scaled(features), *asked))
        if not learn:
            return score
        if self.scaler is not None:
            self.scaler.learn_one(features)
        self.detector.learn_one(self._scaled(features), *asked)
        self.learned += 1
        return score

    def _scaled(self, features: dict[str, float]) -> dict[str, float]:
        return features if self.scaler is None else self.scaler.transform_one(features)

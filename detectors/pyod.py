"""Detectors of PyOD by their own names: fitted again and again on the latest readings of each key."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from detectors.base import Contributions, Detector, Floats, Mask, Rows, Slots
from detectors.filling import fill
from detectors.fitting import LARGEST_DEVIATION, spread
from detectors.kernels import floats, learned, slot_numbers
from detectors.occlusion import occlusion
from detectors.pyod_catalog import construct, validate
from detectors.statistical import AdaptiveZ
from detectors.table import Column, Table

__all__ = ["PyOD", "PyODModel"]

_LARGEST_VALUE = 1e15
"""Values are bounded by it before PyOD sees them, so that its squares and sums stay finite."""
_LARGEST_SCORE = 1e6
_UNIT = 0.99
"""A score of 1 is as far from the median of a window's own decision scores as this quantile of them."""


class PyOD(Detector, frozen=True, kw_only=True):
    """A detector of PyOD, such as `pyod: ECOD`, with its own settings and defaults, fitted to the latest readings.

    Zhao, Nasrullah and Li, "PyOD: a Python toolbox for scalable outlier detection", JMLR 2019. Each key keeps its
    last readings; after the first `warmup` and then every `refit` learned readings of it the detector is fitted on
    the last `window`, whatever the batches. A reading is scored by `decision_function` before it is learned: 0 at
    the median of the window's own decision scores, 1 at their 99 % quantile, so that fits and machines compare.
    Where a fit fails, the key scores 0 until the next.

    Needs the extra: `pip install 'mmlw[pyod]'`. State is the readings, never a pickle: after a restart the detector
    is fitted on the same window again. Missing values are replaced by the sensor's running mean.

    Fails on whatever shows only in the order of readings, which none of these detectors looks at, and on anomalies
    that fill a good part of the window. A score costs 0.2 to 6 ms and a fit up to 0.2 s: for many keys take a
    native kind.

    >>> model = PyOD(pyod="KNN", window=64, warmup=32).build(("x",))
    >>> values = np.append(np.sin(np.arange(99.0)), 9.0)[:, np.newaxis]
    >>> scores = model.score_learn(np.zeros(100, np.int64), values, np.arange(100.0))
    >>> bool(scores[:99].max() < model.threshold < scores[99])
    True
    """

    kind: ClassVar[str] = "pyod"

    pyod: str
    """The class in pyod.models."""
    settings: dict[str, Any] = msgspec.field(default_factory=dict)
    """PyOD's own parameters."""
    window: Annotated[int, Meta(ge=10, le=10_000)] = 256
    """Readings that a detector is fitted on, at most."""
    refit: Annotated[int, Meta(ge=1, le=10_000)] = 64
    """Learned readings of a key from one fit to the next."""
    warmup: Annotated[int, Meta(ge=10, le=10_000)] = 64
    """Learned readings of a key before the first fit; none is scored before it."""
    scale: Literal["standard", "none"] = "standard"
    """`standard`: sensors in standard deviations of the window; `none`: as they are."""

    def __post_init__(self) -> None:
        if self.warmup > self.window:
            raise ValueError(f"warmup: {self.warmup} readings do not fit into window, {self.window}")
        validate(self.pyod, self.settings)

    def build(self, sensors: tuple[str, ...]) -> PyODModel:
        """A fresh model; its threshold is 1.5. Raises ValueError if `warmup` readings cannot be fitted.

        Fits as many as a probe, so that what PyOD compiles or imports is ready before the first reading.
        """
        probe = np.random.default_rng(0).normal(size=(self.warmup, len(sensors)))
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # of PyOD's and its libraries' own affairs
            try:
                detector = construct(self.pyod, self.settings).fit(probe)
                detector.decision_function(probe[:1])
            except Exception as error:  # whatever a library raises
                found = f"{self.warmup} readings of {len(sensors)} sensors"
                raise ValueError(f"{self.pyod} cannot be fitted on {found} (warmup): {error}") from error
        return PyODModel(self, sensors)


class PyODModel:
    """State per key: the last `window` + `refit` - 1 readings, and each sensor's running mean and variance."""

    def __init__(self, recipe: PyOD, sensors: tuple[str, ...]) -> None:
        self.sensors = sensors
        self.threshold = 1.5 if recipe.threshold is None else recipe.threshold
        self._recipe = recipe
        self.warmup_readings = recipe.warmup
        self._capacity = recipe.window + recipe.refit - 1
        self._normal = AdaptiveZ(warmup=2).build(sensors)
        self._table = Table(
            {"readings": Column(np.int64), "ring": Column(np.float64, (self._capacity, len(sensors)))}
        )
        self._fits: dict[int, _Fit] = {}
        self._latest: list[_Fit | None] = []
        self._values: Floats = np.zeros((0, len(sensors)))
        self._known: Mask = np.zeros((0, len(sensors)), np.bool_)

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """Scores (n,), at most a million; see `Model`."""
        slots, values = slot_numbers(slots), floats(values)
        self._table.reserve(slots)
        self._values, self._known = fill(self._normal, slots, values, times, learn, _LARGEST_VALUE)
        self._latest = [None] * len(slots)
        taught, scores = learned(learn, len(slots)), np.zeros(len(slots))
        readings, ring = self._table["readings"], self._table["ring"]
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # of PyOD's and its libraries' own affairs
            for i in np.flatnonzero(self._known.any(axis=1)).tolist():
                slot = int(slots[i])
                fit = self._latest[i] = self._fitted(slot)
                if fit is not None:
                    scores[i] = fit.score(self._values[i])
                if taught[i]:
                    ring[slot, readings[slot] % self._capacity] = self._values[i]
                    readings[slot] += 1
        return scores

    def contributions(self, rows: NDArray[np.int64]) -> Contributions:
        """Shares by how much the score falls where a sensor shows its median in the window; that is expected."""
        shares, expected = (
            np.zeros((len(rows), len(self.sensors))),
            np.full((len(rows), len(self.sensors)), np.nan),
        )
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            for k, i in enumerate(rows.tolist()):
                fit = self._latest[i]
                if fit is not None:
                    expected[k] = fit.usual
                    shares[k] = occlusion(fit.score, self._values[i], fit.usual, self._known[i])
        return Contributions(shares, expected)

    def snapshot(self, slots: Slots) -> Rows:
        """`ring` (k, window + refit - 1, n_sensors), `readings` (k,); `count`, `mean`, `variance` (k, n_sensors)."""
        return {**self._normal.snapshot(slots), **self._table.snapshot(slots)}

    def restore(self, slots: Slots, rows: Rows) -> None:
        """See `Model`. Raises ValueError on a negative count, too. Detectors are fitted when they are needed."""
        if (np.asarray(rows.get("readings", 0)) < 0).any():
            raise ValueError("state 'readings' is negative")
        own = ("readings", "ring")
        self._table.restore(slots, {name: array for name, array in rows.items() if name in own})
        self._normal.restore(slots, {name: array for name, array in rows.items() if name not in own})
        for slot in slots.tolist():
            fit = self._fits.get(slot)
            if fit is not None and not fit.on(self._window(slot)):
                del self._fits[slot]

    def _window(self, slot: int) -> Floats:
        """What the key's detector is fitted on now (m, n_sensors); no rows before the first fit."""
        recipe, count = self._recipe, int(self._table["readings"][slot])
        if count < recipe.warmup:
            return self._values[:0]
        end = count - (count - recipe.warmup) % recipe.refit
        places = np.arange(max(end - recipe.window, 0), end) % self._capacity
        return np.asarray(self._table["ring"][slot, places], dtype=np.float64)

    def _fitted(self, slot: int) -> _Fit | None:
        count = int(self._table["readings"][slot])
        if count < self._recipe.warmup:
            return None
        fit = self._fits.get(slot)
        number = (count - self._recipe.warmup) // self._recipe.refit
        if fit is None or fit.number != number:
            fit = self._fits[slot] = _fit(self._recipe, number, self._window(slot))
        return fit


@dataclass(frozen=True, slots=True)
class _Fit:
    """A detector and the window it was fitted on; `detector` is None where that failed."""

    number: int
    window: Floats
    center: Floats
    scale: Floats
    bound: float
    usual: Floats
    detector: Any = None
    base: float = 0.0
    unit: float = 1.0

    def scaled(self, values: Floats) -> Floats:
        """Readings (…, n_sensors) as the detector takes them."""
        z: Floats = np.clip((values - self.center) / self.scale, -self.bound, self.bound)
        return z

    def on(self, window: Floats) -> bool:
        """Whether this is the detector of that window."""
        return np.array_equal(self.window, window)

    def score(self, values: Floats) -> float:
        """One reading (n_sensors,) at a time: some of PyOD's detectors look at the whole batch."""
        if self.detector is None:
            return 0.0
        try:
            decision = float(self.detector.decision_function(self.scaled(values[np.newaxis]))[0])
        except Exception:  # whatever a library raises on an odd reading: it cannot say
            return 0.0
        score = (decision - self.base) / self.unit
        return min(max(score, 0.0), _LARGEST_SCORE) if score == score else 0.0


def _fit(recipe: PyOD, number: int, window: Floats) -> _Fit:
    n_sensors, usual = window.shape[1], np.median(window, axis=0)
    if recipe.scale == "standard":
        center = window.mean(axis=0)
        fit = _Fit(number, window, center, spread(window, center), LARGEST_DEVIATION, usual)
    else:
        fit = _Fit(number, window, np.zeros(n_sensors), np.ones(n_sensors), _LARGEST_VALUE, usual)
    try:
        detector = construct(recipe.pyod, recipe.settings)
        detector.fit(fit.scaled(window))
        decisions = np.asarray(detector.decision_scores_, dtype=np.float64)
    except Exception:  # whatever a library raises on an odd window: it says nothing until the next fit
        return fit
    if not np.isfinite(decisions).all():
        return fit
    base = float(np.median(decisions))
    unit = max(float(np.quantile(decisions, _UNIT)) - base, 1e-9 * max(abs(base), 1.0))
    return replace(fit, detector=detector, base=base, unit=unit)

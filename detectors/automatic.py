"""A detector that looks at a key's first readings and then takes what suits them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from detectors.acquaintance import Acquaintance
from detectors.base import (
    Contributions,
    Detector,
    ExampleModel,
    Floats,
    Mask,
    Model,
    Rows,
    Slots,
    Stretches,
    StretchModel,
)
from detectors.calibration import Calibration, Calibrator
from detectors.control_charts import MEWMA
from detectors.discords import LeftMatrixProfile
from detectors.kernels import floats, learned, slot_numbers
from detectors.neighbours import KNN
from detectors.statistical import AdaptiveZ

__all__ = ["Auto", "AutoModel"]

_STRETCHES = (
    LeftMatrixProfile(length=1, history=8000),
    LeftMatrixProfile(length=24, neighbours=2, history=4000),
    LeftMatrixProfile(length=96, neighbours=2, history=4000),
)
"""What is compared with the past of one sensor: values, and stretches of two lengths."""
_TAIL = 0.98
_SCORES = 20_000
"""Scores that calibrate: early ones are high, since little was known then, and keep alarms rare for long."""
_IMPROBABLE = 0.77
"""Mean -log10 probability of the stretches from which they are anomalous, at the thousandth reading."""
_RARER = 0.9
"""Decades by which that rises for each decade of readings."""
_FEW = 200.0
_DEPENDENT = 0.3
"""Correlation of a reading with the one before from which a sensor has a memory; chance gives 0.1 at 400 readings."""

_RARELY = 5.0
"""-log10 probability, by a key's own distances to its examples, from which one is anomalous. With 4, as `knn` by
itself has it, sensors that wander alarm three times as often as with 5, twice in 10,000 readings."""
_LEAST_SCORES = 100
"""Distances of a key before its own limit counts."""
_SLOW = MEWMA(rate=0.01, warmup=2000, limit=5.0, half_life=1500, clip=10.0)
"""Shifts that stay, by the mean of the last hundreds of readings: in that of ten, what wanders hides them."""
_LIMIT = 4.5
"""Limit of the chart; at 4 a load whose first readings were calm opens ten times as many alerts."""
_TOLD = 0.8
"""Share of its limit from which a chart counts beside examples: less of it tells nothing, and would order scores."""
_JUMP = 9.0
"""Sigmas of a single reading from which it is anomalous of sensors with a memory: a chart bounds it."""


class Auto(Detector, frozen=True, kw_only=True):
    """Scores by what a key's first `look` readings ask for; 1 is the threshold.

    One sensor's values, and stretches of two lengths, are compared with its past (`left_matrix_profile`, each length
    calibrated, their log-probabilities averaged, and rarer ones asked for the longer a key is known); above 1 its
    score counts decades of probability, which is what `escalation` of the alert rule stands on.

    Several sensors are always compared with examples (`knn`, which takes the first `look` readings as healthy), and,
    unless most of them are discrete (16 values or fewer), charted for shifts that stay (`mewma`). Where a reading
    follows from the one before, by the largest correlation of successive readings among the sensors, three things
    change: the limit of the examples follows the key's own scores, single readings far out count as well
    (`adaptive_z`, from 9 sigmas), and so does a chart with ten times the memory, once it has 2,000 readings. Charts
    count from 0.8 of their limit on. The score is the largest of their ratios to their limits. All learn from
    the first reading on; what is not taken then stops. `explain` says what is taken, and why.

    What the families follow: Lowry, Woodall, Champ and Rigdon, "A multivariate exponentially weighted moving average
    control chart", Technometrics 1992; West, "Updating mean and variance estimates", CACM 1979; Ramaswamy, Rastogi
    and Shim, "Efficient algorithms for mining outliers from large data sets", SIGMOD 2000; Yeh et al., "Matrix
    profile I", ICDM 2016; Siffer et al., "Anomaly detection in streams with extreme value theory", KDD 2017.

    Fails where the first readings are not like those that follow: a regime that was never seen (a new set point) is
    told as a fault, once. With several sensors one or two readings open an alert only where they are far out (three
    times the threshold: 27 sigmas where sensors have a memory): else the rule that comes with the word `auto` holds
    until three are anomalous. Of sensors with a memory, faults of 6 sigmas are mostly seen within 200 readings, of 3
    sigmas not where the sensors come and go in larger regimes (switched at random, wandering, a period longer than
    `look`); those shorter than 60 readings from 9 sigmas on.

    >>> rng = np.random.default_rng(0)
    >>> model = Auto(look=100).build(("a", "b"))
    >>> none = model.score_learn(np.zeros(200, np.int64), rng.normal(size=(200, 2)), np.arange(200.0))
    >>> model.explain(0)[:56]
    'knn, mewma: no reading follows from the one before (larg'
    """

    kind: ClassVar[str] = "auto"

    look: Annotated[int, Meta(ge=30)] = 400
    """Readings of a key that are looked at before anything is scored; of one sensor, where there is nothing to
    choose, scores begin when they are calibrated: after 250, or `look` if that is less, but no fewer than 50."""

    def build(self, sensors: tuple[str, ...]) -> AutoModel:
        """A fresh model; its threshold is 1 where the recipe states none."""
        return AutoModel(self, sensors)


class _Stretches:
    """One sensor's values and stretches, compared with its past; their log-probabilities averaged."""

    def __init__(self, recipe: Auto, sensors: tuple[str, ...]) -> None:
        after = _calibrated_after(recipe)
        tail = Calibration(history=_SCORES, warmup=after, quantile=_TAIL, largest_shape=0.0)
        self.models: tuple[Model, ...] = tuple(stretch.build(sensors) for stretch in _STRETCHES)
        self._calibrators = tuple(tail.build() for _ in self.models)

    def tables(self) -> Iterator[tuple[str, Model | Calibrator]]:
        """What has state, by name."""
        for i, (model, calibrator) in enumerate(zip(self.models, self._calibrators, strict=True)):
            yield f"left_matrix_profile.{i}", model
            yield f"left_matrix_profile.tail{i}", calibrator

    def ratios(self, rows: _Batch, used: Mask) -> tuple[Floats, NDArray[np.int64]]:
        """Multiples of the threshold (n,), and which model's score was the least probable (n,)."""
        surprises = np.zeros((len(self.models), len(rows.slots)))
        mean = np.zeros(len(rows.slots))
        for number, (calibrator, model) in enumerate(zip(self._calibrators, self.models, strict=True)):
            score = model.score_learn(rows.slots, rows.values, rows.times, rows.learn)
            warm = rows.counts > getattr(model, "warmup_readings", 0)
            surprises[number] = calibrator.score_learn(rows.slots, score, rows.learn, warm=warm)
            mean += surprises[number] / len(self.models)
        limit = _IMPROBABLE + _RARER * np.log10(np.maximum(rows.counts, _FEW) / 1000.0)
        return np.where(mean < limit, mean / limit, 1.0 + mean - limit), surprises.argmax(axis=0)


class _Panel:
    """What may score several sensors: examples, a chart, single readings far out, a chart with a longer memory."""

    def __init__(self, recipe: Auto, sensors: tuple[str, ...]) -> None:
        chart = MEWMA(warmup=min(recipe.look, 400), limit=_LIMIT)
        self._examples = KNN(healthy=recipe.look).build(sensors)
        self._limits = Calibration(warmup=_LEAST_SCORES).build()
        self._settled = recipe.look // 2
        self.models: tuple[Model, ...] = (
            self._examples,
            chart.build(sensors),
            AdaptiveZ(warmup=chart.warmup, threshold=_JUMP).build(sensors),
            _SLOW.build(sensors),
        )

    def tables(self) -> Iterator[tuple[str, Model | Calibrator]]:
        """What has state, by name."""
        yield from zip(("knn", "mewma", "adaptive_z", "slow"), self.models, strict=True)
        yield "limits", self._limits

    def ratios(self, rows: _Batch, used: Mask) -> tuple[Floats, NDArray[np.int64]]:
        """The largest multiple of a threshold (n,) among the models that are `used` (n, models), and whose it is."""
        found = np.zeros(used.shape)
        for number, model in enumerate(self.models):
            at = np.flatnonzero(used[:, number])
            if not len(at):
                continue
            slots, learn = rows.slots[at], rows.learn[at]
            scores = model.score_learn(slots, rows.values[at], rows.times[at], learn)
            limits = np.full(len(at), model.threshold)
            if model is self._examples:
                counted = (rows.counts[at] > self._settled) & np.isfinite(rows.values[at]).any(axis=1)
                own = self._limits.limits(slots, scores, _RARELY, model.threshold, learn & counted)
                limits = np.where(np.isfinite(own) & used[at, -1], own, limits)
            found[at, number] = scores / limits
            if model is not self._examples:
                found[at, number] *= found[at, number] >= _TOLD
        return found.max(axis=1), found.argmax(axis=1)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Readings as `score_learn` takes them, and how many their keys had so far, themselves among them."""

    slots: Slots
    values: Floats
    times: Floats
    learn: Mask
    counts: Floats


class AutoModel:
    """State per key: that of every model; 18 kB with 9 sensors, 9 kB with 3, 560 kB with one."""

    def __init__(self, recipe: Auto, sensors: tuple[str, ...]) -> None:
        self.sensors = sensors
        self.threshold = 1.0 if recipe.threshold is None else recipe.threshold
        self.warmup_readings = recipe.look if len(sensors) > 1 else _calibrated_after(recipe)
        self._look = recipe.look
        several = len(sensors) > 1
        self._panel: _Panel | _Stretches = _Panel(recipe, sensors) if several else _Stretches(recipe, sensors)
        self._seen = Acquaintance(len(sensors), recipe.look)
        self._place: NDArray[np.int64] = np.zeros((0, len(self._panel.models)), np.int64)
        self._lead: NDArray[np.int64] = np.zeros(0, np.int64)

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """Scores (n,) as multiples of the threshold; see `Model`. Of 9 sensors about 6 µs per reading."""
        slots, values, times = slot_numbers(slots), floats(values), floats(times)
        counts = self._seen.look(slots, values, times)
        early = (counts <= self._look) & (len(self.sensors) > 1)
        counting = self._counting(slots)
        used = counting | early[:, np.newaxis]
        rows = _Batch(slots, values, times, learned(learn, len(slots)), counts.astype(np.float64))
        ratios, self._lead = self._panel.ratios(rows, used)
        self._place = np.where(counting & ~early[:, np.newaxis], np.cumsum(used, axis=0) - 1, -1)
        return np.where(early, 0.0, ratios)

    def contributions(self, rows: NDArray[np.int64]) -> Contributions:
        """Those of the model that decided; of several lengths compared, that of the least probable stretch."""
        shape = (len(rows), len(self.sensors))
        shares, expected = np.zeros(shape), np.full(shape, np.nan)
        for model, at, places in self._tellers(rows):
            shares[at], expected[at] = model.contributions(places)
        return Contributions(shares, expected)

    def nearest_distances(self, rows: NDArray[np.int64]) -> Floats:
        """Distance (k,) to the nearest example, in the unit of the model that gives the reasons; NaN of a chart."""
        nearest = np.full(len(rows), np.nan)
        for model, at, places in self._tellers(rows):
            if isinstance(model, ExampleModel):
                nearest[at] = model.nearest_distances(places)
        return nearest

    def stretches(self, rows: NDArray[np.int64]) -> Stretches:
        """Those of the model that gives the reasons, where it compares stretches."""
        found = Stretches.none(len(rows), len(self.sensors))
        for model, at, places in self._tellers(rows):
            if isinstance(model, StretchModel):
                for array, part in zip(found, model.stretches(places), strict=True):
                    array[at] = part
        return found

    def _tellers(
        self, rows: NDArray[np.int64]
    ) -> Iterator[tuple[Model, NDArray[np.int64], NDArray[np.int64]]]:
        """Who gives the reasons of which of these rows (k,), and where they are in its latest call: the model that
        decided; where that has none, the first that has any."""
        places, lead = self._place[rows], self._lead[rows]
        told = np.zeros(places.shape, np.bool_)
        for number, model in enumerate(self._panel.models):
            at = np.flatnonzero(places[:, number] >= 0)
            told[at, number] = model.contributions(places[at, number]).shares.any(axis=1)
        teller = np.where(told[np.arange(len(rows)), lead], lead, told.argmax(axis=1))
        for number, model in enumerate(self._panel.models):
            if len(at := np.flatnonzero((teller == number) & (places[:, number] >= 0))):
                yield model, at, places[at, number]

    def explain(self, slot: int) -> str:
        """What scores a key, and why."""
        seen = self._seen.portrait(slot)
        if seen.readings < self._look:
            return f"undecided: {seen.readings} of {self._look} readings seen"
        if len(self.sensors) == 1:
            fine = "one discrete sensor" if seen.discrete else "one sensor"
            lengths = ", ".join(str(stretch.length) for stretch in _STRETCHES)
            says = f"stretches of {lengths} readings are compared with its past"
            return f"left_matrix_profile: {fine}, {seen.pace}: {says}"
        found = f"largest correlation {seen.correlation:.2f} in the first {self._look}"
        if 2 * seen.discrete > len(self.sensors):
            says = f"knn: {seen.discrete} of {len(self.sensors)} sensors are discrete"
        elif seen.correlation >= _DEPENDENT:
            says = "mewma, adaptive_z, knn: readings follow from the one before"
        else:
            says = "knn, mewma: no reading follows from the one before"
        return f"{says} ({found}, {seen.pace})"

    def _counting(self, slots: Slots) -> Mask:
        """Which models (n, models) count, by what was seen of these keys."""
        if len(self.sensors) == 1:
            return np.ones((len(slots), len(_STRETCHES)), np.bool_)
        dependent = self._seen.correlations(slots) >= _DEPENDENT
        fine = 2 * self._seen.discrete(slots) <= len(self.sensors)
        return np.stack([np.ones(len(slots), np.bool_), fine, dependent & fine, dependent & fine], axis=1)

    def snapshot(self, slots: Slots) -> Rows:
        """What was looked at, and the state of every family, by name."""
        rows = dict(self._seen.snapshot(slots))
        for name, table in self._panel.tables():
            rows |= {f"{name}.{key}": value for key, value in table.snapshot(slots).items()}
        return rows

    def restore(self, slots: Slots, rows: Rows) -> None:
        """See `Model`."""
        left = dict(rows)
        parts = []
        for name, table in self._panel.tables():
            own = {key: left.pop(key) for key in list(left) if key.startswith(f"{name}.")}
            parts.append((table, {key.removeprefix(f"{name}."): value for key, value in own.items()}))
        self._seen.restore(slots, left)
        for table, own in parts:
            table.restore(slots, own)


def _calibrated_after(recipe: Auto) -> int:
    """Scores of one sensor's stretches after which the first one counts."""
    return max(50, min(recipe.look, 250))

"""A detector that looks at a key's first readings and then takes the family that suits them."""

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

_JUMP = 9.0
"""Sigmas of a single reading from which it is anomalous of sensors with a memory: a chart bounds it."""


class Auto(Detector, frozen=True, kw_only=True):
    """Scores by the family that a key's first `look` readings ask for; 1 is the threshold.

    One sensor's values, and stretches of two lengths, are compared with its past (`left_matrix_profile`, each length
    calibrated, their log-probabilities averaged, and rarer ones asked for the longer a key is known); above 1 its
    score counts decades of probability, which is what `escalation` of the alert rule stands on. With several sensors
    it depends on whether a reading follows from the one before, that is on the largest correlation of successive
    readings among them: if so they are charted for shifts that stay (`mewma`), and single ones far out count as well
    (`adaptive_z`, from 9 sigmas), else, and where most of them are discrete (16 values or fewer), compared with
    examples (`knn`). Both learn from the first reading on; the other stops when one is taken. `explain` says which,
    and why.

    What the families follow: Lowry, Woodall, Champ and Rigdon, "A multivariate exponentially weighted moving average
    control chart", Technometrics 1992; West, "Updating mean and variance estimates", CACM 1979; Ramaswamy, Rastogi
    and Shim, "Efficient algorithms for mining outliers from large data sets", SIGMOD 2000; Yeh et al., "Matrix
    profile I", ICDM 2016; Siffer et al., "Anomaly detection in streams with extreme value theory", KDD 2017.

    Fails where the first readings are not like those that follow. With several sensors one or two readings open an
    alert only where they are far out (three times the threshold: 27 sigmas where sensors have a memory): else the
    rule that comes with the word `auto` holds until three are anomalous. Short faults of sensors with a memory are
    seen from about 9 of their sigmas, smaller ones once a chart has summed them.

    >>> rng = np.random.default_rng(0)
    >>> model = Auto(look=100).build(("a", "b"))
    >>> none = model.score_learn(np.zeros(200, np.int64), rng.normal(size=(200, 2)), np.arange(200.0))
    >>> model.explain(0)
    'knn: no reading follows from the one before (largest correlation 0.09 in the first 100, a reading each 1 s)'
    """

    kind: ClassVar[str] = "auto"

    look: Annotated[int, Meta(ge=30)] = 400
    """Readings of a key that are looked at before anything is scored; of one sensor, where there is nothing to
    choose, scores begin when they are calibrated: after 250, or `look` if that is less, but no fewer than 50."""

    def build(self, sensors: tuple[str, ...]) -> AutoModel:
        """A fresh model; its threshold is 1 where the recipe states none."""
        return AutoModel(self, sensors)


@dataclass(frozen=True, slots=True)
class _Family:
    """Models that are used together; calibrated where there are several."""

    name: str
    models: tuple[Model, ...]
    calibrators: tuple[Calibrator, ...] = ()

    def tables(self) -> Iterator[tuple[str, Model | Calibrator]]:
        for i, model in enumerate(self.models):
            yield f"{self.name}.{i}", model
        for i, calibrator in enumerate(self.calibrators):
            yield f"{self.name}.tail{i}", calibrator

    def score_learn(
        self, slots: Slots, values: Floats, times: Floats, learn: Mask, counts: Floats
    ) -> tuple[Floats, NDArray[np.int64]]:
        """Scores (n,) as multiples of the threshold, and the model that decided, of calibrated ones that whose score
        is least probable; `counts` (n,) readings of the key so far."""
        scores = [model.score_learn(slots, values, times, learn) for model in self.models]
        if not self.calibrators:
            ratios = np.stack([s / m.threshold for s, m in zip(scores, self.models, strict=True)])
            return ratios.max(axis=0), ratios.argmax(axis=0)
        surprises = np.stack(
            [c.score_learn(slots, score, learn) for c, score in zip(self.calibrators, scores, strict=True)]
        )
        mean = np.zeros(len(slots))
        for surprise in surprises:
            mean += surprise / len(self.calibrators)
        limit = _IMPROBABLE + _RARER * np.log10(np.maximum(counts, _FEW) / 1000.0)
        return np.where(mean < limit, mean / limit, 1.0 + mean - limit), surprises.argmax(axis=0)


class AutoModel:
    """State per key: that of every family; 2 to 13 kB with several sensors, 560 kB with one."""

    def __init__(self, recipe: Auto, sensors: tuple[str, ...]) -> None:
        self.sensors = sensors
        self.threshold = 1.0 if recipe.threshold is None else recipe.threshold
        self.warmup_readings = recipe.look if len(sensors) > 1 else _calibrated_after(recipe)
        self._look = recipe.look
        self._families = _families(recipe, sensors)
        self._seen = Acquaintance(len(sensors), recipe.look)
        self._by: NDArray[np.int8] = np.zeros(0, np.int8)
        self._place: NDArray[np.int64] = np.zeros(0, np.int64)
        self._lead: NDArray[np.int64] = np.zeros(0, np.int64)

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """Scores (n,) as multiples of the threshold; see `Model`. Costs what the family taken costs."""
        slots, values, times = slot_numbers(slots), floats(values), floats(times)
        taught = learned(learn, len(slots))
        counts = self._seen.look(slots, values, times)
        early = (counts <= self._look) & (len(self._families) > 1)
        taken = self._taken(slots)
        scores = np.zeros(len(slots))
        self._by, self._place = np.full(len(slots), -1, np.int8), np.zeros(len(slots), np.int64)
        self._lead = np.zeros(len(slots), np.int64)
        for number, family in enumerate(self._families):
            rows = np.flatnonzero(early | (taken == number))
            if not len(rows):
                continue
            found, lead = family.score_learn(
                slots[rows], values[rows], times[rows], taught[rows], counts[rows].astype(np.float64)
            )
            mine = ~early[rows]
            scores[rows[mine]] = found[mine]
            self._by[rows[mine]], self._place[rows] = number, np.arange(len(rows))
            self._lead[rows[mine]] = lead[mine]
        return scores

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
        for number, family in enumerate(self._families):
            at = np.flatnonzero(self._by[rows] == number)
            if not len(at):
                continue
            places, lead = self._place[rows[at]], self._lead[rows[at]]
            told = np.stack([model.contributions(places).shares.any(axis=1) for model in family.models])
            teller = np.where(told[lead, np.arange(len(at))], lead, told.argmax(axis=0))
            for place, model in enumerate(family.models):
                mine = teller == place
                if mine.any():
                    yield model, at[mine], places[mine]

    def explain(self, slot: int) -> str:
        """Which family scores a key, and why."""
        seen = self._seen.portrait(slot)
        if seen.readings < self._look:
            return f"undecided: {seen.readings} of {self._look} readings seen"
        family = self._families[int(self._taken(np.array([slot]))[0])]
        if len(self._families) == 1:
            fine = "one discrete sensor" if seen.discrete else "one sensor"
            lengths = ", ".join(str(stretch.length) for stretch in _STRETCHES)
            return f"{family.name}: {fine}, {seen.pace}: stretches of {lengths} readings are compared with its past"
        found = f"largest correlation {seen.correlation:.2f} in the first {self._look}"
        if 2 * seen.discrete > len(self.sensors):
            says = f"{seen.discrete} of {len(self.sensors)} sensors are discrete"
        elif seen.correlation >= _DEPENDENT:
            says = "readings follow from the one before"
        else:
            says = "no reading follows from the one before"
        return f"{family.name}: {says} ({found}, {seen.pace})"

    def _taken(self, slots: Slots) -> NDArray[np.int64]:
        """Which family (n,) goes with what was seen of these keys."""
        if len(self._families) == 1:
            return np.zeros(len(slots), np.int64)
        charted = self._seen.correlations(slots) >= _DEPENDENT
        return np.where(charted & (2 * self._seen.discrete(slots) <= len(self.sensors)), 0, 1)

    def snapshot(self, slots: Slots) -> Rows:
        """What was looked at, and the state of every family, by name."""
        rows = dict(self._seen.snapshot(slots))
        for name, table in self._tables():
            rows |= {f"{name}.{key}": value for key, value in table.snapshot(slots).items()}
        return rows

    def restore(self, slots: Slots, rows: Rows) -> None:
        """See `Model`."""
        left = dict(rows)
        parts = []
        for name, table in self._tables():
            own = {key: left.pop(key) for key in list(left) if key.startswith(f"{name}.")}
            parts.append((table, {key.removeprefix(f"{name}."): value for key, value in own.items()}))
        self._seen.restore(slots, left)
        for table, own in parts:
            table.restore(slots, own)

    def _tables(self) -> Iterator[tuple[str, Model | Calibrator]]:
        for family in self._families:
            yield from family.tables()


def _calibrated_after(recipe: Auto) -> int:
    """Scores of one sensor's stretches after which the first one counts."""
    return max(50, min(recipe.look, 250))


def _families(recipe: Auto, sensors: tuple[str, ...]) -> tuple[_Family, ...]:
    """What may score: of several sensors, readings with a memory by the first, those without by the second."""
    if len(sensors) > 1:
        shifts = MEWMA(warmup=min(recipe.look, 400)).build(sensors)
        jumps = AdaptiveZ(warmup=shifts.warmup_readings, threshold=_JUMP).build(sensors)
        return _Family("mewma", (shifts, jumps)), _Family("knn", (KNN().build(sensors),))
    tail = Calibration(history=_SCORES, warmup=_calibrated_after(recipe), quantile=_TAIL, largest_shape=0.0)
    stretches = tuple(stretch.build(sensors) for stretch in _STRETCHES)
    return (_Family("left_matrix_profile", stretches, tuple(tail.build() for _ in stretches)),)

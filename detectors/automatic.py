"""A detector that looks at a key's first readings and then takes what suits them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from detectors.acquaintance import Acquaintance
from detectors.alone import Alone, calibrated_after
from detectors.base import (
    Contributions,
    Detector,
    ExampleModel,
    Floats,
    ForgettingModel,
    Mask,
    Model,
    Rows,
    Slots,
    Stretches,
    StretchModel,
)
from detectors.kernels import floats, learned, slot_numbers
from detectors.panels import Arrivals, Panel
from detectors.several import Several

__all__ = ["Auto", "AutoModel"]


class Auto(Detector, frozen=True, kw_only=True):
    """Scores by what a key's first `look` readings ask for; 1 is the threshold.

    One sensor's values, and stretches of two lengths, are compared with its past (`left_matrix_profile`, each length
    calibrated, their log-probabilities averaged, and rarer ones asked for the longer a key is known); above 1 its
    score counts decades of probability, which is what `escalation` of the alert rule stands on. Beside them a profile
    of its day counts (`seasonal_profile`, from 6 sigmas, and from what the key's own deviations pass once in 100,000)
    where it explained half of the variance from the third to the eighth day; that of its week takes its place where
    it leaves less than half of what that leaves in the third week, at whose end both are judged anew. Which it is
    follows from the rate: it takes 100 readings in six days. A distance that came before is no rarer than it came
    (`calibration.repeats`), or each record of a count would be a fault.

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
    told as a fault, once; and, with one sensor, where clocks go by local time: twice a year the day moves by an
    hour. With several sensors one or two readings open an alert only where they are far out (three
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


class AutoModel:
    """State per key: that of every model; 18 kB with 9 sensors, 9 kB with 3, 480 kB with one."""

    def __init__(self, recipe: Auto, sensors: tuple[str, ...]) -> None:
        self.sensors = sensors
        self.threshold = 1.0 if recipe.threshold is None else recipe.threshold
        self.warmup_readings = recipe.look if len(sensors) > 1 else calibrated_after(recipe.look)
        self._look = recipe.look
        panel: type[Alone | Several] = Several if len(sensors) > 1 else Alone
        self._panel: Panel = panel(recipe.look, sensors)
        self._seen = Acquaintance(len(sensors), recipe.look)
        self._place: NDArray[np.int64] = np.zeros((0, len(self._panel.models)), np.int64)
        self._lead: NDArray[np.int64] = np.zeros(0, np.int64)

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        """Scores (n,) as multiples of the threshold; see `Model`. Of 9 sensors about 6 µs per reading."""
        slots, values, times = slot_numbers(slots), floats(values), floats(times)
        counts = self._seen.look(slots, values, times)
        early = (counts <= self._look) & (len(self.sensors) > 1)
        counting = self._panel.counting(self._seen, slots)
        used = counting | early[:, np.newaxis]
        rows = Arrivals(slots, values, times, learned(learn, len(slots)), counts.astype(np.float64))
        ratios, self._lead = self._panel.ratios(rows, used, self._seen)
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
        if seen.readings < self._look and len(self.sensors) == 1:
            known = f"{seen.readings} of {self._look} readings seen"
            return f"one sensor, compared with its past from reading {self.warmup_readings + 1} on: {known}"
        if seen.readings < self._look:
            return f"undecided: {seen.readings} of {self._look} readings seen"
        return self._panel.explain(self._seen, slot)

    def forget_recent(self, slots: Slots, sensors: Mask) -> None:
        """See `ForgettingModel`: every model that gathers."""
        for model in self._panel.models:
            if isinstance(model, ForgettingModel):
                model.forget_recent(slots, sensors)

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

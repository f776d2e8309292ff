"""What `auto` asks about a sensor that is alone: its past, and the clock."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from detectors.acquaintance import Acquaintance
from detectors.base import Floats, Mask, Model, Slots
from detectors.calibration import Calibration
from detectors.discords import LeftMatrixProfile
from detectors.panels import TOLD, Arrivals, Stateful
from detectors.rhythm import Rhythm

__all__ = ["Alone", "calibrated_after"]

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


class Alone:
    """Values and stretches of one sensor, compared with its past; profiles of its day and week."""

    def __init__(self, look: int, sensors: tuple[str, ...]) -> None:
        tail = Calibration(
            history=_SCORES,
            warmup=calibrated_after(look),
            quantile=_TAIL,
            largest_shape=0.0,
            repeats="count",
        )
        self._look = look
        self._stretches = tuple(stretch.build(sensors) for stretch in _STRETCHES)
        self._calibrators = tuple(tail.build() for _ in _STRETCHES)
        self._rhythm = Rhythm(sensors)
        self.models: tuple[Model, ...] = (*self._stretches, *self._rhythm.models)

    def tables(self) -> Iterator[tuple[str, Stateful]]:
        """What has state, by name."""
        for i, (model, calibrator) in enumerate(zip(self._stretches, self._calibrators, strict=True)):
            yield f"left_matrix_profile.{i}", model
            yield f"left_matrix_profile.tail{i}", calibrator
        yield from self._rhythm.tables()

    def counting(self, seen: Acquaintance, slots: Slots) -> Mask:
        """All (n, models): a profile says itself whether it counts."""
        return np.ones((len(slots), len(self.models)), np.bool_)

    def ratios(self, rows: Arrivals, used: Mask, seen: Acquaintance) -> tuple[Floats, NDArray[np.int64]]:
        """The largest multiple of a threshold (n,), and which model's it is; of the stretches the least probable."""
        found = np.zeros((len(rows.slots), 3))
        found[:, 0], lead = self._compared(rows)
        found[:, 1:] = self._rhythm.ratios(rows.slots, rows.values, rows.times, rows.learn)
        found[:, 1:] *= found[:, 1:] >= TOLD
        best = found.argmax(axis=1)
        return found.max(axis=1), np.where(best > 0, len(self._stretches) - 1 + best, lead)

    def _compared(self, rows: Arrivals) -> tuple[Floats, NDArray[np.int64]]:
        surprises = np.zeros((len(self._stretches), len(rows.slots)))
        mean = np.zeros(len(rows.slots))
        for number, (calibrator, model) in enumerate(zip(self._calibrators, self._stretches, strict=True)):
            score = model.score_learn(rows.slots, rows.values, rows.times, rows.learn)
            warm = rows.counts > getattr(model, "warmup_readings", 0)
            surprises[number] = calibrator.score_learn(rows.slots, score, rows.calibrating, warm=warm)
            mean += surprises[number] / len(self._stretches)
        limit = _IMPROBABLE + _RARER * np.log10(np.maximum(rows.counts, _FEW) / 1000.0)
        return np.where(mean < limit, mean / limit, 1.0 + mean - limit), surprises.argmax(axis=0)

    def explain(self, seen: Acquaintance, slot: int) -> str:
        """See `Panel`."""
        portrait, season = seen.portrait(slot), self._rhythm.season(slot)
        lengths = ", ".join(str(stretch.length) for stretch in _STRETCHES)
        taken = ["left_matrix_profile"]
        why = [f"stretches of {lengths} readings are compared with its past"]
        if season.name:
            taken.append("seasonal_profile")
        why.append(season.told)
        what = "one discrete sensor" if portrait.discrete else "one sensor"
        return f"{', '.join(taken)}: {what}, {portrait.pace}: {'; '.join(why)}"


def calibrated_after(look: int) -> int:
    """Scores of one sensor's stretches after which the first one counts."""
    return max(50, min(look, 250))

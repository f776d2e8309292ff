"""What `auto` asks about several sensors: examples of normal, charts, single readings far out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from detectors.acquaintance import Acquaintance
from detectors.base import Floats, Mask, Model, Slots
from detectors.calibration import Calibration
from detectors.control_charts import MEWMA
from detectors.neighbours import KNN
from detectors.panels import TOLD, Arrivals, Stateful
from detectors.statistical import AdaptiveZ

__all__ = ["Several"]

_DEPENDENT = 0.3
"""Correlation of a reading with the one before from which a sensor has a memory; chance gives 0.1 at 400 readings."""
_LIMIT = 4.5
"""Limit of the chart; at 4 a load whose first readings were calm opens ten times as many alerts."""
_RARELY = 5.0
"""-log10 probability, by a key's own distances to its examples, from which one is anomalous. With 4, as `knn` by
itself has it, sensors that wander alarm three times as often as with 5, twice in 10,000 readings."""
_LEAST_SCORES = 100
"""Distances of a key before its own limit counts."""
_SLOW = MEWMA(rate=0.01, warmup=2000, limit=5.0, half_life=1500, clip=10.0)
"""Shifts that stay, by the mean of the last hundreds of readings: in that of ten, what wanders hides them."""
_JUMP = 9.0
"""Sigmas of a single reading from which it is anomalous of sensors with a memory: a chart bounds it."""


class Several:
    """Examples, a chart, single readings far out, a chart with a longer memory."""

    def __init__(self, look: int, sensors: tuple[str, ...]) -> None:
        chart = MEWMA(warmup=min(look, 400), limit=_LIMIT)
        self._look, self._width = look, len(sensors)
        self._examples = KNN(healthy=look).build(sensors)
        self._limits = Calibration(warmup=_LEAST_SCORES).build()
        self._settled = look // 2
        self.models: tuple[Model, ...] = (
            self._examples,
            chart.build(sensors),
            AdaptiveZ(warmup=chart.warmup, threshold=_JUMP).build(sensors),
            _SLOW.build(sensors),
        )

    def tables(self) -> Iterator[tuple[str, Stateful]]:
        """What has state, by name."""
        yield from zip(("knn", "mewma", "adaptive_z", "slow"), self.models, strict=True)
        yield "limits", self._limits

    def counting(self, seen: Acquaintance, slots: Slots) -> Mask:
        """See `Panel`."""
        dependent = seen.correlations(slots) >= _DEPENDENT
        fine = 2 * seen.discrete(slots) <= self._width
        return np.stack([np.ones(len(slots), np.bool_), fine, dependent & fine, dependent & fine], axis=1)

    def ratios(self, rows: Arrivals, used: Mask, seen: Acquaintance) -> tuple[Floats, NDArray[np.int64]]:
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
                counted = (rows.counts[at] > self._settled) & rows.calibrating[at]
                own = self._limits.limits(slots, scores, _RARELY, model.threshold, counted)
                limits = np.where(np.isfinite(own) & used[at, -1], own, limits)
            found[at, number] = scores / limits
            if model is not self._examples:
                found[at, number] *= found[at, number] >= TOLD
        return found.max(axis=1), found.argmax(axis=1)

    def explain(self, seen: Acquaintance, slot: int) -> str:
        """See `Panel`."""
        portrait = seen.portrait(slot)
        found = f"largest correlation {portrait.correlation:.2f} in the first {self._look}"
        if 2 * portrait.discrete > self._width:
            says = f"knn: {portrait.discrete} of {self._width} sensors are discrete"
        elif portrait.correlation >= _DEPENDENT:
            says = "mewma, adaptive_z, knn: readings follow from the one before"
        else:
            says = "knn, mewma: no reading follows from the one before"
        return f"{says} ({found}, {portrait.pace})"

"""Whether what a batch detector is shown, or says, has changed: a drift detector beside it, machine by machine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from detectors.base import Floats, Rows, Slots
from detectors.table import Column, Table
from stream.retrain_rule import Drift

__all__ = ["DriftWatch"]

_KEPT = 1000
"""Machines that drifted, the latest."""
_PASSED = "passed"


class DriftWatch:
    """Watches one detector, while one model serves. A state table by slot, part of the checkpoint; what it finds
    depends on the readings alone, not on how they were cut into batches.

    `columns` name what it is shown, `model` is the digest of the model that serves.
    """

    def __init__(self, detector: str, rule: Drift, columns: tuple[str, ...], model: str) -> None:
        self._detector = detector
        self._rule = rule
        self._columns = columns
        self.of_scores = rule.of == "score"
        """Whether it is shown scores, or what the detector is shown."""
        self.drifted: dict[str, float] = {}
        """When each machine drifted last, by the plant's time, the latest last."""
        self._begin(model)

    def _begin(self, model: str) -> None:
        identity = hashlib.sha256(f"{self._rule!r} {self._columns} {model}".encode()).hexdigest()[:12]
        self.table = f"drift:{self._detector}:{identity}"
        """Its name in the checkpoint: another rule or model begins anew."""
        self._model = self._rule.detector.build(self._columns)
        self._passed = Table({_PASSED: Column(np.int64)})

    def swapped(self, model: str) -> None:
        """Another model serves from now on: what was known of the one before is forgotten."""
        self.drifted.clear()
        self._begin(model)

    def add(self, slots: Slots, times: Floats, values: Floats) -> list[int]:
        """Readings in arrival order: slots (n,), times (n,), values (n, n_columns). The rows that tell of a drift."""
        self._passed.reserve(slots)
        order = np.argsort(slots, kind="stable")
        names, starts, sizes = np.unique(slots[order], return_index=True, return_counts=True)
        place = np.empty(len(slots), np.int64)
        place[order] = np.arange(len(slots)) - np.repeat(starts, sizes)
        place += self._passed[_PASSED][slots]
        self._passed[_PASSED][names] += sizes
        rows = np.flatnonzero(place % self._rule.every == 0)
        if not len(rows):
            return []
        scores = self._model.score_learn(slots[rows], values[rows], times[rows])
        told: list[int] = rows[scores >= self._model.threshold].tolist()
        return told

    def note(self, machine: str, time: float) -> None:
        """A machine has drifted at this time of the plant."""
        self.drifted.pop(machine, None)
        self.drifted[machine] = time
        while len(self.drifted) > _KEPT:
            del self.drifted[next(iter(self.drifted))]

    def cause(self) -> str | None:
        """Why a model is to be trained; None while too few machines drifted within the rule's time."""
        if not self.drifted:
            return None
        newest = max(self.drifted.values())
        found = [name for name, time in self.drifted.items() if time >= newest - self._rule.within]
        if len(found) < self._rule.machines:
            return None
        told = ", ".join(found[-3:]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        what = "scores" if self._rule.of == "score" else "inputs"
        return f"the {what} of {told} have drifted ({self._rule.detector.kind})"

    def settled(self) -> None:
        """A model was trained on it."""
        self.drifted.clear()

    def saved(self) -> dict[str, Any]:
        """What is kept beside the table."""
        return {"table": self.table, "drifted": dict(self.drifted)}

    def restore_found(self, saved: Mapping[str, Any] | None) -> None:
        """Put back what `saved` gave, unless that was by another rule or model."""
        if saved is not None and saved["table"] == self.table:
            self.drifted = {str(name): float(time) for name, time in saved["drifted"].items()}

    def snapshot(self, slots: Slots) -> Rows:
        """The drift detector's rows, and how many readings `passed` (k,)."""
        return {**self._model.snapshot(slots), **self._passed.snapshot(slots)}

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Put back what `snapshot` returned."""
        self._model.restore(slots, {name: row for name, row in rows.items() if name != _PASSED})
        self._passed.restore(slots, {_PASSED: rows[_PASSED]})

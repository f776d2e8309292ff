"""What operators have done to a running topology, each between two batches (`Engine.between_batches`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from detectors.base import Model
from stream.alerts import ModelInfo
from stream.errors import CommandRefused
from stream.feedback import Raised
from stream.ledger import Ledger
from stream.metrics import TopologyMetrics
from stream.scorer import Scorer
from stream.state import Changes

__all__ = ["Acts", "Swap"]


@dataclass(frozen=True, slots=True)
class Swap:
    """A prepared change of a detector's model, to be applied between two batches."""

    detector: str
    model: Model
    info: ModelInfo
    reference: dict[str, Any]
    previous: dict[str, Any] | None
    back: bool = False
    """To a model that was there before: it is not watched."""


class Acts:
    """Changes of a scorer that are entered in its ledger."""

    def __init__(self, scorer: Scorer, ledger: Ledger, metrics: TopologyMetrics) -> None:
        self._scorer = scorer
        self._ledger = ledger
        self._metrics = metrics

    def apply(self, swap: Swap) -> Changes:
        """Put a prepared model in place."""
        shadow = self._scorer.beside.shadows.get(swap.detector)
        if shadow is not None and shadow.lane.model is swap.model:
            self._ledger.touch(self._scorer.promote(swap.detector))
        else:
            changed = self._scorer.swap(swap.detector, swap.model, swap.info, back=swap.back)
            self._ledger.touch(changed)
        self._metrics.active_model(swap.detector, *swap.info.labels)
        return Changes(self._ledger.processed, models={swap.detector: (swap.reference, swap.previous)})

    def accept(self, machine: str, detector: str | None) -> Changes:
        """Take a machine's open alerts for normal. Raises CommandRefused."""
        slots = self._scorer.accept(machine, detector)
        if not len(slots):
            whose = "" if detector is None else f' of "{detector}"'
            raise CommandRefused(f'"{machine}" has no open alert{whose}')
        self._ledger.touch(slots)
        return Changes(self._ledger.processed)

    def close_alert(self, raised: Raised, *, learned: bool) -> bool:
        """End an alert because an operator says that it is none; it is told once that is committed. False where it is
        not open any more."""
        alert = self._scorer.close_alert(raised.machine, raised.detector, learned=learned)
        if alert is None:
            self._scorer.beside.feedback.gone(raised)
            return False
        told = msgspec.structs.replace(alert, threshold=raised.threshold)
        self._scorer.beside.feedback.closed([told])
        if not learned:
            self._scorer.beside.feedback.hold(raised)
        self._ledger.touch(self._scorer.residents.slots([raised.machine]))
        return True

    def correct_alert(self, raised: Raised, *, learned: bool) -> bool:
        """Another word on what an operator has closed, or taken for normal: what goes on of it is learned, or is not.
        False where that changes nothing that is still to come."""
        scorer, feedback = self._scorer, self._scorer.beside.feedback
        if not scorer.correct_alert(raised.id, raised.machine, raised.detector, learned=learned):
            return False
        if raised.closed is not None:
            (feedback.release if learned else feedback.hold)(raised)
        self._ledger.touch(scorer.residents.slots([raised.machine]))
        return True

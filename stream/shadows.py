"""What runs beside the champions and alerts nowhere: shadow models, the watch over one that was swapped in, what is
known of alerts, and whether models are to be trained anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from detectors.base import Contributions, Floats, Mask, Model, ModelUnavailable, Rows, Slots
from stream.agreement import Comparison, Readings
from stream.alerting import EventKind
from stream.alerts import ModelInfo
from stream.drifting import DriftWatch
from stream.ensemble import Ensemble, Lane, Part, Stateful
from stream.feedback import Feedback
from stream.probation import Probation
from stream.recipes import SHADOWS
from stream.retraining import Retraining
from stream.rules import COMBINED
from stream.topology import Topology

if TYPE_CHECKING:
    from stream.scorer import Scored

__all__ = ["Beside", "Shadow"]

_SLOWEST = 5.0
"""Seconds for a batch; a shadow that takes longer is dropped."""
_FAILS = 100
"""Readings without a score of it, more than with one, after which a shadow is dropped."""
_SHADOW, _PROBATION = SHADOWS, "probation:"


class _Echo:
    """Stands in for a detector that has scored already: its score is the one that it is shown. Shown none, its lane
    abstains."""

    sensors: tuple[str, ...] = ("score",)
    threshold: float = np.inf

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        return np.nan_to_num(values[:, 0])

    def contributions(self, rows: NDArray[np.int64]) -> Contributions:
        return Contributions(np.zeros((len(rows), 1)), np.full((len(rows), 1), np.nan))

    def snapshot(self, slots: Slots) -> Rows:
        return {}

    def restore(self, slots: Slots, rows: Rows) -> None:
        return None


@dataclass(slots=True)
class Shadow:
    """A model beside a champion, what decides of its scores, and how the two compare.

    `reference` is its registered version as the checkpoint keeps it; `identity` tells its tables there from those of
    another shadow before it."""

    detector: str
    lane: Lane
    ensemble: Ensemble
    others: Sequence[str]
    reference: Mapping[str, Any]
    identity: str
    comparison: Comparison

    def tables(self) -> Iterator[tuple[str, Stateful]]:
        """Its tables of state by their names in the checkpoint."""
        echoes = {f"model:{name}" for name in self.others}
        for name, table in self.ensemble.tables():
            if name not in echoes:
                yield f"{_SHADOW}{self.detector}:{self.identity}:{name}", table


class Beside:
    """The shadows of a scorer, by detector, and the probations. `lane` and `ensemble` make what the scorer has."""

    def __init__(
        self,
        topology: Topology,
        lanes: Mapping[str, Lane],
        lane: Callable[[str, Model, ModelInfo], Lane],
        ensemble: Callable[[str, Sequence[Lane], int], Ensemble],
    ) -> None:
        self._topology = topology
        self._lanes = lanes
        self._lane = lane
        self._ensemble = ensemble
        self.shadows: dict[str, Shadow] = {}
        self.probations = {
            name: Probation(spec.rollback_when)
            for name, spec in topology.registry_models.items()
            if spec.rollback_when is not None
        }
        self.feedback = Feedback(follows=bool(topology.registry_models))
        trained = {name: lanes[name].info.digest for name in topology.registry_models}
        self.retraining = Retraining(topology, self.feedback, trained)
        self._ended: set[str] = set()
        self._dropped: list[tuple[str, str]] = []

    @property
    def busy(self) -> bool:
        """Whether there is anything to observe."""
        return bool(self.shadows or self.probations)

    def begin(
        self,
        detector: str,
        model: Model,
        info: ModelInfo,
        *,
        reference: Mapping[str, Any],
        identity: str,
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        """From the next batch on this model runs beside the detector's, in place of another shadow."""
        lane = self._lane(detector, model, info)
        lane.binding = self._lanes[detector].binding  # which machines come into memory is told to that one
        decides = COMBINED if self._topology.combine is not None else detector
        others = [name for name in self._lanes if decides == COMBINED and name != detector]
        width = len(self._topology.columns)
        if others and lane.inputs is None:
            lane.inputs = np.arange(width)
        echoes = {
            name: Lane(
                name,
                _Echo(),
                self._lanes[name].info,
                np.inf,
                None,
                np.array([width + i]),
                self._lanes[name].binding,
            )
            for i, name in enumerate(others)
        }
        lanes = [
            lane if name == detector else echoes[name]
            for name in self._lanes
            if name in echoes or name == detector
        ]
        ensemble = self._ensemble(decides, lanes, len(others))
        comparison = self._comparison(detector, saved)
        self.shadows[detector] = Shadow(detector, lane, ensemble, others, reference, identity, comparison)
        self._ended.discard(detector)

    def end(self, detector: str) -> None:
        """The shadow of this detector is no more; nothing where there is none."""
        self.shadows.pop(detector, None)
        self._ended.add(detector)

    def swapped(self, detector: str, *, back: bool) -> None:
        """The detector has another model: compare with that one from now on; watch it, unless it is one of before."""
        if (shadow := self.shadows.get(detector)) is not None:
            shadow.comparison = self._comparison(detector)
        if (probation := self.probations.get(detector)) is not None:
            if back:
                probation.rolled_back()
            else:
                probation.swapped()
        self.retraining.swapped(detector, self._lanes[detector].info.digest)

    def _comparison(self, detector: str, saved: Mapping[str, Any] | None = None) -> Comparison:
        """One that goes on, or begins; it then waits for the detector's machines that were heard of late."""
        gate, binding = self._topology.registry_models[detector].promote_when, self._lanes[detector].binding
        heard = self.feedback.plant.elapsed
        return Comparison(
            readings=gate.readings if gate else None,
            seconds=gate.window if gate else None,
            saved=saved,
            elapsed=heard.after() if binding is None else heard.after(binding.matches),
        )

    def tables(self) -> Iterator[tuple[str, Stateful]]:
        """The tables of state of shadows, and of what watches for drift."""
        for shadow in self.shadows.values():
            yield from shadow.tables()
        for watch in self.retraining.watches.values():
            yield watch.table, watch

    def rows(self) -> dict[str, tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]]:
        """What the checkpoint keeps beside tables, by name; None where a shadow has ended."""
        found: dict[str, tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]] = {
            f"{_SHADOW}{name}": (None, None) for name in self._ended
        }
        for name, shadow in self.shadows.items():
            kept = {**shadow.reference, "identity": shadow.identity}
            found[f"{_SHADOW}{name}"] = (kept, shadow.comparison.saved())
        for name, probation in self.probations.items():
            found[f"{_PROBATION}{name}"] = ({}, probation.saved())
        return {**found, **self.retraining.rows(), **self.feedback.rows()}

    def restore(self, saved: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
        """Put back what is kept; the shadows that ran, by detector, for whoever can load their models."""
        self.feedback.restore(saved)
        self.retraining.restore(saved)
        for name in self.probations:
            if row := saved.get(f"{_PROBATION}{name}"):
                rule = self._topology.registry_models[name].rollback_when
                assert rule is not None  # noqa: S101 - it has a probation
                self.probations[name] = Probation(rule, row[1])
        rows = {name: saved.get(f"{_SHADOW}{name}") for name in self._topology.registry_models}
        return {name: row for name, row in rows.items() if row is not None and row[0] is not None}

    def drop(self, detector: str, cause: str) -> None:
        """End a shadow that harms."""
        self.end(detector)
        self._dropped.append((detector, cause))

    def take_dropped(self) -> list[tuple[str, str]]:
        """Which shadows were dropped since this was asked last, and why."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def verdicts(self) -> dict[str, str]:
        """The detectors whose model before is to take over again, and why."""
        found = {name: probation.verdict for name, probation in self.probations.items()}
        return {name: verdict for name, verdict in found.items() if verdict is not None}

    def failed(self, detector: str) -> None:
        """A detector failed on a reading that was put aside."""
        if (probation := self.probations.get(detector)) is not None:
            probation.failed()

    def observe(self, scored: Scored) -> None:
        """Have the shadows judge readings that the champions have judged, and compare. Never raises."""
        n = len(scored.batch)
        self._observe_plant(scored)
        for detector in [*self.probations, *(set(self.shadows) - set(self.probations))]:
            lane = self._lanes[detector]
            seconds, lane.seconds = lane.seconds, 0.0
            opened = np.zeros(n, np.bool_)
            decides = COMBINED if self._topology.combine is not None else detector
            opened[list(scored.opened.get(decides, ()))] = True
            mine = np.arange(n) if lane.binding is None else np.flatnonzero(lane.binding.of(scored.slots))
            abstains = np.isnan(scored.scores[detector]) & np.isinf(scored.thresholds[detector])
            mine = mine[~abstains[mine]]
            if len(mine) and detector in self.probations:
                unscored = np.isnan(scored.scores[detector][mine])
                machines = [scored.batch.machines[i] for i in mine.tolist()]
                times = scored.batch.times[mine]
                self.probations[detector].add(machines, times, opened[mine], unscored, seconds)
            if n and detector in self.shadows:
                try:
                    self._compare(self.shadows[detector], scored, mine, opened, seconds)
                except (
                    Exception
                ) as error:  # a shadow may be anybody's: whatever it raises ends it, and nothing else
                    self.drop(detector, f"{type(error).__name__}: {error}")

    def _observe_plant(self, scored: Scored) -> None:
        """Note alerts, and what has drifted: that by the plant's time, not by each machine's own."""
        batch, drifted = scored.batch, self._drifted(scored)
        rows = sorted({row for _, row in drifted})
        times = self.feedback.observe(scored.alerts, batch.machines, batch.times, rows)
        at = dict(zip(rows, times, strict=True))
        for watch, row in drifted:
            watch.note(batch.machines[row], at[row])

    def _drifted(self, scored: Scored) -> list[tuple[DriftWatch, int]]:
        """The readings that tell of a drift, in the order of their watch."""
        found = []
        for detector, pieces in scored.watched.items():
            watch = self.retraining.watches[detector]
            for rows, values in pieces:
                try:
                    told = watch.add(scored.slots[rows], scored.batch.times[rows], values)
                except Exception as error:  # it, too, may be anybody's
                    self.retraining.end_watch(detector, f"{type(error).__name__}: {error}")
                    break
                found += [(watch, int(rows[i])) for i in told]
        return found

    def _compare(
        self, shadow: Shadow, scored: Scored, mine: NDArray[np.int64], opened: Mask, seconds: float
    ) -> None:
        """Have the shadow score the batch; compare the rows `mine` (k,), those of machines that the two score."""
        n, decides = len(scored.batch), shadow.ensemble.name
        ratios, alerts = np.full(n, np.nan), np.zeros(n, np.bool_)
        shadow.lane.seconds = 0.0
        for rows, part in scored.parts:
            for piece, decision in shadow.ensemble.judge(_with_others(shadow, part, scored, rows)):
                at = rows[piece]
                ratios[at] = decision.decided / np.maximum(decision.thresholds, 1e-12)
                for event, _ in decision.events:
                    alerts[at[event.index]] |= event.kind is EventKind.OPENED
                if shadow.detector in decision.unhealthy:
                    ratios[at] = np.nan
        if shadow.lane.seconds > _SLOWEST:
            raise TimeoutError(f"took {shadow.lane.seconds:.1f} s for {len(mine)} readings")
        champion = scored.scores[decides] / np.maximum(scored.thresholds[decides], 1e-12)
        if not len(mine):
            return
        machines = [scored.batch.machines[i] for i in mine.tolist()]
        times = scored.batch.times[mine]
        shadow.comparison.add(
            Readings(
                machines,
                times,
                champion[mine],
                ratios[mine],
                opened[mine],
                alerts[mine],
                seconds,
                shadow.lane.seconds,
            )
        )
        total = shadow.comparison.total
        if total.missed >= _FAILS and total.missed > total.readings:
            raise ModelUnavailable(
                f"gave no score for {total.missed} of {total.missed + total.readings} readings"
            )


def _with_others(shadow: Shadow, part: Part, scored: Scored, rows: NDArray[np.int64]) -> Part:
    """The readings, with the scores that the other detectors gave as further columns."""
    if not shadow.others:
        return part
    given = np.column_stack([scored.scores[name][rows] for name in shadow.others])
    return replace(part, columns=np.hstack([part.columns, given]))

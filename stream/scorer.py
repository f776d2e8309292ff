"""The pure heart: readings in, scores and alert events out; state in tables by slot, no input or output."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.base import ChoosingModel, Floats, Mask, Model, Rows, Slots
from detectors.features import FeatureTable, RecentWindow
from detectors.health import Ailment
from detectors.kernels import ready
from stream.alert_writer import AlertWriter
from stream.alerting import Episode, EventKind
from stream.alerts import Alert, ModelInfo
from stream.assembly import LIMITER, Assembly
from stream.endings import ALERTS, kept_episode, unwatched
from stream.ensemble import Decision, DetectorFailed, Lane, Part, Stateful
from stream.errors import ReadingRejected
from stream.health import HealthCheck, ended_with_health
from stream.kin import Kin
from stream.limits import Limits
from stream.readings import Batch
from stream.reception import Reception
from stream.recipes import recipes
from stream.residents import Residents
from stream.rules import COMBINED
from stream.shadows import Beside
from stream.topology import HEALTH, Topology

__all__ = ["DetectorFailed", "Lane", "Scored", "Scorer"]

_DAY = 86400.0
_WINDOW = 24
"""Readings that an alert shows of its machine's recent past."""


@dataclass(slots=True)
class _Found:
    """Scores and thresholds of a batch as its pieces come in, by name; alerts by row and order of decision."""

    size: int
    scores: dict[str, Floats] = field(default_factory=dict)
    thresholds: dict[str, Floats] = field(default_factory=dict)
    alerts: list[tuple[int, int, Alert]] = field(default_factory=list)
    unhealthy: list[tuple[str, str]] = field(default_factory=list)
    days: float = 0.0
    parts: list[tuple[NDArray[np.int64], Part]] = field(default_factory=list)
    opened: dict[str, list[int]] = field(default_factory=dict)
    watched: dict[str, list[tuple[NDArray[np.int64], Floats]]] = field(default_factory=dict)

    def put(self, name: str, rows: NDArray[np.int64], scores: Floats, thresholds: Floats) -> None:
        """Enter a piece."""
        self.open(name)
        self.scores[name][rows], self.thresholds[name][rows] = scores, thresholds

    def open(self, name: str) -> None:
        """Have a place for its scores: NaN where there is none, and no threshold to reach."""
        if name not in self.scores:
            self.scores[name] = np.full(self.size, np.nan)
            self.thresholds[name] = np.full(self.size, np.inf)


@dataclass(frozen=True, slots=True)
class Scored:
    """What came of a batch: the rows that were scored (aligned), their slots and offsets, scores and
    thresholds by detector (and of all combined, where they decide together; NaN and infinite where it does not
    score the machine, or abstains: it has no value of the reading), the alert events in order, and the slots
    whose state changed."""

    batch: Batch
    slots: Slots
    offsets: NDArray[np.int64]
    scores: Mapping[str, Floats]
    thresholds: Mapping[str, Floats]
    alerts: Sequence[Alert]
    touched: Slots
    machine_days: float = 0.0
    """Days that the machines were watched from one reading to the next, in all."""
    refused: Sequence[tuple[int, ReadingRejected]] = ()
    """Messages that become dead letters, by index."""
    dropped: Sequence[tuple[int, str]] = ()
    """Readings without effect: index of the message, and the policy."""
    unhealthy: Sequence[tuple[str, str]] = ()
    """Detector and machine where a score was not finite and the state before it was put back."""
    opened: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """The rows that opened an alert, by what decides."""
    parts: Sequence[tuple[NDArray[np.int64], Part]] = ()
    """The readings as they were judged, by their rows; only where something runs beside."""
    watched: Mapping[str, Sequence[tuple[NDArray[np.int64], Floats]]] = field(default_factory=dict)
    """By detector, rows that show whether it is still fit, and what is looked at of them."""


class Scorer:
    """Scores batches for one topology. `models` holds a built model and its identity for every detector."""

    recipes = staticmethod(recipes)

    def __init__(self, topology: Topology, models: Mapping[str, tuple[Model, ModelInfo]]) -> None:
        ready()
        self._topology = topology
        source = topology.source
        self._features = FeatureTable(source.names, topology.features) if topology.features else None
        self.residents = Residents()
        self._assembly = Assembly(topology)
        self.lanes = {name: self._assembly.lane(name, *models[name]) for name in topology.detectors}
        self._ensembles = self._assembly.ensembles(self.lanes)
        self.beside = Beside(topology, self.lanes, self._assembly.lane, self._assembly.ensemble)
        self.kin = Kin(topology.learning.start_from, self.residents, max(self.warmups().values()))
        self._limits = Limits(topology)
        self._reception = Reception(source)
        self._recent = RecentWindow(len(source.names), _WINDOW)
        self._writer = AlertWriter(topology, self._recent)
        self._health = HealthCheck(topology, self.residents, self._recent) if topology.health else None
        self._unwatched: list[Alert] = []
        self._fresh = {name: table.snapshot(np.zeros(1, dtype=np.int64)) for name, table in self._tables()}

    def process(
        self,
        batch: Batch,
        offsets: NDArray[np.int64],
        *,
        replayed: Collection[int] = (),
        careful: bool = False,
    ) -> Scored:
        """Score and learn a batch in arrival order and decide on alerts. `offsets` (n,) by row.

        Its machines must be in memory (`admit`). `replayed` messages, by index, are neither duplicate nor late.
        Splitting the stream anywhere gives the same scores, alerts and state. `careful` scores row by row; where
        a score is not finite, the state before it is put back. Raises DetectorFailed, after which this object
        must be thrown away and built anew from the checkpoint.
        """
        slots = self.residents.slots(batch.machines)
        touched = np.unique(slots)
        batch, slots, offsets, refused, dropped = self._reception.take(batch, slots, offsets, replayed)
        sick: list[tuple[int, int, Alert]] = []
        masked: dict[int, Mask] = {}
        if self._health is not None:
            batch, sick, silent, masked = self._health.examine(batch, slots, offsets)
            touched = np.union1d(touched, silent)
        whole = np.arange(len(batch))
        starts = self.kin.count(batch.machines, slots)
        single = careful and len(batch) > 1
        parts = np.split(whole, whole[1:] if single else sorted({*starts, *_cuts(slots, masked)} - {0}))
        found = _Found(len(batch), alerts=sick)
        for name in self._topology.scored_by:  # in one order, whoever is bound to the machines of this batch
            found.open(name)
        for rows in parts:
            if len(rows) and (start := starts.get(int(rows[0]))):
                self._start(*start)
            piece = batch if len(rows) == len(batch) else batch.select(rows)
            sick_now = [(int(slots[row]), mask) for row, mask in masked.items() if rows[0] <= row <= rows[-1]]
            self._score_part(piece, slots[rows], offsets[rows], rows, sick_now, careful, found)
        found.alerts.sort(key=lambda item: item[:2])
        return Scored(
            batch,
            slots,
            offsets,
            found.scores,
            found.thresholds,
            [alert for _, _, alert in found.alerts],
            touched,
            found.days,
            refused,
            dropped,
            found.unhealthy,
            found.opened,
            found.parts,
            found.watched,
        )

    def _score_part(
        self,
        batch: Batch,
        slots: Slots,
        offsets: NDArray[np.int64],
        rows: NDArray[np.int64],
        masked: Sequence[tuple[int, Mask]],
        careful: bool,
        found: _Found,
    ) -> None:
        """Judge readings that are these rows of the batch. `masked`: slots, and their sensors (n_sensors,) that are
        masked from their first reading here on."""
        columns = batch.values
        if self._features is not None:
            masked = [(slot, self._features.forget_recent(np.array([slot]), mask)) for slot, mask in masked]
            columns = self._features.compute(slots, batch.values, batch.times)
        part, seconds = self._limits.part(batch, columns, slots, offsets)
        part = replace(part, forgotten=masked) if masked else part
        found.days += seconds / _DAY
        if self.beside.busy:
            found.parts.append((rows, part))
        for order, ensemble in enumerate(self._ensembles.values()):
            for piece, decision in ensemble.judge(part, careful=careful):
                for name, scores in decision.scores.items():
                    limits = np.where(decision.seen[name], self.lanes[name].threshold, np.inf)
                    found.put(name, rows[piece], scores, limits)
                found.put(ensemble.name, rows[piece], decision.decided, decision.thresholds)
                self._watch(decision, part, piece, rows, found)
                found.unhealthy += [
                    (name, batch.machines[i]) for name in decision.unhealthy for i in piece.tolist()
                ]
                for i in piece[list(decision.released)].tolist():
                    self.beside.feedback.calmed(ensemble.name, batch.machines[i], float(batch.times[i]))
                for event, why in decision.events:
                    i = int(piece[event.index])
                    if event.kind is EventKind.OPENED:
                        found.opened.setdefault(ensemble.name, []).append(int(rows[i]))
                    alert = self._writer.written(ensemble, decision, event, why, part, i)
                    found.alerts.append((int(rows[i]), order, alert))
        self._recent.push(slots, batch.values, batch.times)

    def _watch(
        self, decision: Decision, part: Part, piece: NDArray[np.int64], rows: NDArray[np.int64], found: _Found
    ) -> None:
        """Note what is watched for drift: what was learned, for a fault is none."""
        for name, watch in self.beside.retraining.watches.items():
            if name not in decision.raw or decision.learned is None:
                continue
            kept = np.flatnonzero(decision.learned & decision.seen[name])
            scores = decision.raw[name][kept, None]
            values = scores if watch.of_scores else self.lanes[name].shown(part.columns[piece[kept]])
            found.watched.setdefault(name, []).append((rows[piece[kept]], values))

    def warmups(self) -> dict[str, int]:
        """Readings that a machine needs before it is judged, at least, by what judges: to a detector's own come those
        of its calibration. All that decide together need what the slowest needs."""
        calibration = self._topology.calibration
        more = 0 if calibration is None else calibration.warmup
        found = {
            name: getattr(lane.model, "warmup_readings", 0)
            + (more if lane.limiter is None else LIMITER.warmup)
            for name, lane in self.lanes.items()
        }
        if (combine := self._topology.combine) is not None:
            found[COMBINED] = max(found.values()) + (more if combine.calibrate else 0)
        return found

    def warming(self) -> dict[str, int]:
        """How many machines in memory are not warmed up yet, by what judges."""
        needed = self.warmups()
        return dict(zip(needed, self.kin.warming(needed.values()), strict=True))

    def _start(self, slot: int, sister: int) -> None:
        """Give a machine what its sister has learned: no alert, no recent past."""
        here, there = np.array([slot]), np.array([sister])
        for ensemble in self._ensembles.values():
            for _, table in ensemble.learned():
                if rows := table.snapshot(there):
                    table.restore(here, rows)

    def shadow(self, detector: str, *args: Any, **settings: Any) -> Slots:
        """Have a model run beside the detector's; see `Beside.begin`. It begins with the alerts that are open now.

        The slots (n,) that have state of it."""
        self.beside.begin(detector, *args, **settings)
        shadow = self.beside.shadows[detector]
        for name, table in shadow.tables():
            self._fresh[name] = table.snapshot(np.zeros(1, dtype=np.int64))
        slots = self.residents.occupied
        shadow.ensemble.alerts.restore(slots, self._ensembles[shadow.ensemble.name].alerts.snapshot(slots))
        return slots

    def promote(self, detector: str) -> Slots:
        """Put the detector's shadow in its place, with the state and calibration that it has. Slots as `swap`."""
        lane, shadow = self.lanes[detector], self.beside.shadows[detector]
        for name, _ in shadow.tables():
            if (own := name.split(":", 3)[3]) in (f"model:{detector}", f"calibration:{detector}"):
                self._fresh[own] = self._fresh[name]
        another = lane.info != shadow.lane.info
        lane.model, lane.info, lane.threshold = shadow.lane.model, shadow.lane.info, shadow.lane.threshold
        lane.calibrator = shadow.lane.calibrator
        self.beside.end(detector)
        if another:
            self._began_beside(detector, back=False)
        return self.residents.occupied

    def _began_beside(self, detector: str, *, back: bool) -> None:
        """Tell what runs beside that the detector has another model."""
        self.beside.swapped(detector, back=back)
        if (watch := self.beside.retraining.watches.get(detector)) is not None:
            self._fresh[watch.table] = watch.snapshot(np.zeros(1, dtype=np.int64))

    def swap(self, detector: str, model: Model, info: ModelInfo, *, back: bool = False) -> Slots:
        """From the next batch on this model scores. Its keys' alert episodes go on, and so does their recent past,
        where both models have the same arrays for it; a calibration starts anew, for it knows the other's scores.
        What runs beside goes on where this is the model that scored already. The slots (n,) whose state became
        another: all, or none."""
        lane, fresh = self.lanes[detector], self._assembly.lane(detector, model, info)
        another = lane.info != info
        slots = self.residents.occupied
        past = lane.model.snapshot(slots)
        if lane.info.digest != info.digest:
            lane.calibrator = fresh.calibrator
        lane.model, lane.info, lane.threshold = model, info, fresh.threshold
        if another:
            self._began_beside(detector, back=back)
        for name, table in self._tables():
            if name in (f"model:{detector}", f"calibration:{detector}"):
                self._fresh[name] = table.snapshot(np.zeros(1, dtype=np.int64))
        fits = self._fits(f"model:{detector}", past)
        if fits and past:
            model.restore(slots, past)
        return slots[:0] if fits and lane.calibrator is None else slots

    def accept(self, machine: str, detector: str | None = None) -> Slots:
        """Take a machine's open alerts (of one detector, or all) for normal: they are learned from now on.

        Its slot (1,), or none where it has no such alert."""
        if self.residents.missing([machine]):  # with an open alert it would be in memory
            return np.zeros(0, dtype=np.int64)
        slots = self.residents.slots([machine])
        asked = [e for name, e in self._ensembles.items() if detector in (None, name)]
        found = [ensemble.alerts.accept(slots) for ensemble in asked]
        if self._health is not None and detector in (None, HEALTH):
            found.append(self._health.accept(slots))
        return np.unique(np.concatenate(found))

    def close_alert(self, machine: str, detector: str, *, learned: bool) -> Alert | None:
        """End a machine's open alert because an operator says that it is none; the event, None where none is open.

        `learned`: what the machine does now is learned; else it is not, until it has calmed down."""
        if self.residents.missing([machine]):  # with an open alert it would be in memory
            return None
        ensemble, slot = self._ensembles[detector], self.residents.find(machine)
        now, number = self._writer.past(slot).times[-1], self._limits.readings(slot)
        ended = ensemble.alerts.close(slot, now, number, learned=learned)
        if ended is None:
            return None
        for shadow in self.beside.shadows.values():
            if shadow.ensemble.name == detector:
                shadow.ensemble.alerts.close(slot, now, number, learned=learned)
        episode, severity = ended
        learned_too = ", and is learned." if learned else ", and is not learned."
        why = f"Closed by an operator: this was normal{learned_too}"
        return self._writer.closed((machine, detector), slot, episode, severity, why, ensemble)

    def correct_alert(self, name: str, machine: str, detector: str, *, learned: bool) -> bool:
        """Learn from now on what goes on after an alert that an operator had closed, or taken for normal; or do not.

        Whether that changes anything: not where it does not last, or its machine is not in memory. `name`: its id."""
        ensemble = self._ensembles.get(detector)
        if ensemble is None or self.residents.missing([machine]):
            return False
        slot = self.residents.find(machine)
        if self._writer.name(ensemble.alerts.episode(slot), machine, detector) != name:
            return False
        for shadow in self.beside.shadows.values():
            if shadow.ensemble.name == detector:
                shadow.ensemble.alerts.correct(slot, learned=learned)
        return ensemble.alerts.correct(slot, learned=learned)

    def watches(self, detector: str, machine: str) -> bool:
        """Whether what decides by this name takes readings of a machine."""
        ensemble = self._ensembles.get(detector)
        return ensemble is not None and any(
            lane.binding is None or lane.binding.matches(machine) for lane in ensemble.lanes
        )

    def watched_days(self, detector: str, since: float, until: float) -> float:
        """Days between two times of the readings (epoch seconds), each machine's up to its newest reading, of the
        machines in memory that a detector scores."""
        slots, binding = self.residents.occupied, self.lanes[detector].binding
        if binding is not None:
            slots = slots[binding.of(slots)]
        last = np.minimum(self._limits.newest(slots), until)
        return float(np.maximum(last - since, 0.0).sum()) / _DAY

    def take_unwatched(self) -> list[Alert]:
        """The events that end alerts of machines that came into memory and are no longer scored by what raised them;
        each once."""
        ended, self._unwatched = self._unwatched, []
        return ended

    def chosen(self, most: int = 20) -> dict[str, dict[str, str]]:
        """What detectors that choose by a machine's first readings chose, and why, for so many machines in memory."""
        names = sorted(self.residents.names)[:most]
        slots = [self.residents.find(name) for name in names]
        choosing = {
            name: lane.model for name, lane in self.lanes.items() if isinstance(lane.model, ChoosingModel)
        }
        return {
            name: {machine: model.explain(slot) for machine, slot in zip(names, slots, strict=True)}
            for name, model in choosing.items()
        }

    @property
    def columns(self) -> tuple[str, ...]:
        """What detectors are shown: the sensors and their features."""
        return self._topology.columns

    def open_alerts(self) -> dict[str, int]:
        """How many alerts are open, by what raised them."""
        return {name: len(ensemble.alerts.open_slots()) for name, ensemble in self._ensembles.items()}

    def sick(self) -> dict[Ailment, int]:
        """How many sensors, and machines, have each ailment now; empty where nobody looks."""
        return {} if self._health is None else self._health.sick()

    def components(self, slots: Slots) -> dict[str, Rows]:
        """The rows of these slots of every state table, for the checkpoint."""
        return {name: table.snapshot(slots) for name, table in self._tables()}

    def admit(self, machines: Sequence[str], components: Mapping[str, Rows]) -> None:
        """Take machines into memory that are not: with these rows of their state, fresh where there are none."""
        slots, used = self.residents.place(machines)
        if components and not components.get("kin"):  # known, but by other settings: it starts from no sister
            components = {**components, "kin": {"readings": np.ones(len(slots), dtype=np.int64)}}
        for lane in self.lanes.values():
            if lane.binding is not None:
                lane.binding.admit(machines, slots)
        for name, table in self._tables():
            if components.get(name) and self._fits(name, components[name]):
                table.restore(slots, components[name])
            elif len(used) and self._fresh[name]:
                table.restore(
                    used, {key: np.repeat(row, len(used), 0) for key, row in self._fresh[name].items()}
                )
        for name, rows in components.items():
            if rows and name.startswith(ALERTS):
                self._let_go(name.removeprefix(ALERTS), machines, slots, rows)
        if self._health is None and (left := components.get(HEALTH)):
            self._unwatched += ended_with_health(self._topology, machines, slots, left, self._writer.past)

    def _let_go(self, name: str, machines: Sequence[str], slots: Slots, rows: Rows) -> None:
        """End and forget the alerts of machines that are not scored any more: no reading could close them."""
        ensemble, unwatched_ = self._ensembles.get(name), np.ones(len(slots), np.bool_)
        if ensemble is not None:
            unwatched_ = ~ensemble.scored(slots)
        for i in np.flatnonzero(unwatched_ & (rows["severity"] >= 0)).tolist():
            self._unwatched.append(
                self._end_unwatched(name, machines[i], int(slots[i]), kept_episode(rows, i))
            )
        if ensemble is not None and (gone := slots[unwatched_]).size:
            fresh = self._fresh[f"alert:{name}"]
            ensemble.alerts.restore(gone, {key: np.repeat(row, len(gone), 0) for key, row in fresh.items()})

    def _end_unwatched(self, name: str, machine: str, slot: int, episode: Episode) -> Alert:
        """What tells that an alert ends, with the threshold and the model that it was raised with, as far as that is
        known."""
        ensemble, severities = self._ensembles.get(name), list(self._topology.alert.severities)
        severity = severities[min(episode.severity, len(severities) - 1)]
        why = unwatched(name, machine, gone=ensemble is None)
        alert = self._writer.closed((machine, name), slot, episode, severity, why, ensemble)
        raised = self.beside.feedback.find(alert.id)
        if raised is None:
            return alert
        return msgspec.structs.replace(alert, threshold=raised.threshold, model=raised.model or alert.model)

    def _fits(self, table: str, rows: Rows) -> bool:
        """Whether a trained model's table takes rows that the model before it may have left. Other tables must."""
        if table.removeprefix("model:") not in self._topology.registry_models:
            return True
        fresh = self._fresh[table]
        return {name: (row.dtype, row.shape[1:]) for name, row in fresh.items()} == {
            name: (row.dtype, row.shape[1:]) for name, row in rows.items()
        }

    def evict(self, count: int, keep: Slots) -> None:
        """Let go of so many machines that are in the checkpoint, but of none in `keep` or with an open alert."""
        open_ = [ensemble.alerts.open_slots() for ensemble in self._ensembles.values()]
        freed = self.residents.evict(count, np.concatenate([keep, *open_]))
        if self._health is not None:
            self._health.forget(freed)

    def _tables(self) -> Iterator[tuple[str, Stateful]]:
        yield "recent", self._recent
        yield from self._reception.tables()
        if self._health is not None:
            yield HEALTH, self._health
        yield from self._limits.tables()
        if self._features is not None:
            yield "features", self._features
        yield "kin", self.kin
        for ensemble in self._ensembles.values():
            yield from ensemble.tables()
        yield from self.beside.tables()


def _cuts(slots: Slots, masked: Collection[int]) -> Iterator[int]:
    """Where to cut a batch so that each of these rows is its machine's first in its part."""
    start = 0
    for row in sorted(masked):
        if (slots[start:row] == slots[row]).any():
            start = row
            yield row

"""The pure heart: readings in, scores and alert events out; state in tables by slot, no input or output."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.base import ChoosingModel, Detector, Floats, Mask, Model, Rows, Slots
from detectors.calibration import Calibration
from detectors.census import Census
from detectors.features import FeatureTable, RecentWindow, definitions
from detectors.health import Ailment
from detectors.openings import Openings
from detectors.rates import Rates
from stream.alerting import Episode, Event, EventKind
from stream.alerts import PROCESS, Alert, ModelInfo, Position, SensorReason, Window, episode_id, rfc3339
from stream.align import Aligner
from stream.arrivals import Arrivals, Verdict
from stream.binding import Binding
from stream.courses import courses
from stream.endings import ALERTS, NOBODY, closed_alert, kept_episode, unwatched
from stream.ensemble import Decision, DetectorFailed, Ensemble, Lane, Part, Stateful, Why
from stream.errors import ReadingRejected
from stream.health import HealthCheck, ended_with_health
from stream.inputs import units_of
from stream.kin import Kin
from stream.readings import Batch
from stream.reasons import sentence
from stream.residents import Residents
from stream.rules import COMBINED
from stream.settings import epoch
from stream.shadows import Beside
from stream.topology import HEALTH, RegistryModel, Topology

__all__ = ["DetectorFailed", "Lane", "Scored", "Scorer", "online_info"]

_DAY = 86400.0
_DEFAULT_PROBABILITY = 1e-4
_LIMITER = Calibration(warmup=120, largest_shape=0.0)
"""Finds the score that hardly a normal reading reaches, where a detector's own threshold is relative. A tail of heavy
shape, fitted to so few scores, would put it out of a fault's reach."""
_LEAST_PROBABILITY, _LARGEST_PROBABILITY = 1e-12, 0.05
"""Bounds of what a budget asks for: beyond them no calibration can tell, and too much is no anomaly."""
_KNOWN = 1000.0
_YOUNG = 200
"""Readings from which alpha spending counts, and below which a machine counts as having so many."""
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
    score the machine), the alert events in order, and the slots whose state changed."""

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


def online_info(recipe: Detector) -> ModelInfo:
    """The identity of a detector that learns as it goes: its kind and its settings' digest."""
    plain = msgspec.to_builtins(
        msgspec.convert(msgspec.to_builtins(recipe), type(recipe))
    )  # a whole number where one of floats is meant
    del plain["machines"]  # which keys it has, not what it is
    if not recipe.inputs:  # all it can be shown
        del plain["inputs"]
    digest = hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()
    return ModelInfo(recipe.kind, "online", f"sha256:{digest}", recipe.kind)


class Scorer:
    """Scores batches for one topology. `models` holds a built model and its identity for every detector."""

    def __init__(self, topology: Topology, models: Mapping[str, tuple[Model, ModelInfo]]) -> None:
        self._topology = topology
        source = topology.source
        self._names = source.names
        self._units = units_of({sensor.name: sensor.unit for sensor in source.sensors}, topology.features)
        self._features = FeatureTable(source.names, topology.features) if topology.features else None
        self.residents = Residents()
        self.lanes = {name: self._lane(name, *models[name]) for name in topology.detectors}
        self._ensembles = self._decide_by()
        self.beside = Beside(topology, self.lanes, self._lane, self._ensemble)
        self.kin = Kin(topology.learning.start_from, self.residents, max(self.warmups().values()))
        self._rates = Rates()
        self._census = Census() if topology.alert.shares_budget else None
        narrow = source.layout == "narrow"
        self._recent = RecentWindow(len(self._names), _WINDOW)
        self._arrivals = Arrivals(len(self._names) if narrow else 1, source.lateness)
        self._health = HealthCheck(topology, self.residents, self._recent) if topology.health else None
        self._aligner = Aligner(len(self._names), source.align_within) if narrow else None
        self._unwatched: list[Alert] = []
        self._fresh = {name: table.snapshot(np.zeros(1, dtype=np.int64)) for name, table in self._tables()}

    @staticmethod
    def recipes(topology: Topology) -> dict[str, str]:
        """The state tables by name, each with a text that changes when its state is no longer comparable."""
        sensors = "/".join(topology.source.names)
        narrow = topology.source.layout == "narrow"
        recipes = {"recent": sensors, "arrivals": topology.source.order_by + (sensors if narrow else "")}
        if narrow:
            recipes["align"] = sensors
        meaning = definitions(topology.source.names, topology.features)
        if topology.features:
            recipes["features"] = "/".join(meaning.values())
        recipes[HEALTH] = sensors  # without a health check, too: what one left open must be closed
        for name, spec in topology.detectors.items():
            fixed = isinstance(spec, RegistryModel)
            seen = "/".join(meaning[column] for column in topology.inputs(name))
            recipes[f"model:{name}"] = seen + ("" if fixed else online_info(spec).digest)  # type: ignore[arg-type]
            if name in topology.limited:
                recipes[f"limit:{name}"] = recipes[f"model:{name}"]
        calibration, members = repr(topology.calibration), list(topology.detectors)
        recipes["rates"] = ""
        recipes[ALERTS] = "3"  # of any name: what a detector left open that is no more must be closed
        if topology.alert.shares_budget:
            recipes["census"] = ""
        for name in members if topology.combine is None else [COMBINED]:
            recipes[f"alert:{name}"] = "3"
            if topology.alert.budget is not None:
                recipes[f"budget:{name}"] = repr(topology.alert.openings) + calibration
        if topology.calibration is not None:
            for name in members:
                by_model = "/by model" if name in topology.registry_models else ""
                recipes[f"calibration:{name}"] = calibration + recipes[f"model:{name}"] + by_model
            if topology.combine is not None and topology.combine.calibrate:
                each = [recipes[f"calibration:{name}"] for name in members]
                recipes[f"calibration:{COMBINED}"] = "/".join([repr(topology.combine), *each])
        recipes["kin"] = calibration + "".join(recipes[f"model:{name}"] for name in members)
        return recipes

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
        batch, slots, offsets, refused, dropped = self._arrive(batch, slots, offsets, replayed)
        if self._aligner is not None:
            batch, slots, offsets, late = self._align(self._aligner, batch, slots, offsets, replayed)
            refused += late
        sick: list[tuple[int, int, Alert]] = []
        if self._health is not None:
            batch, sick, silent = self._health.examine(batch, slots, offsets)
            touched = np.union1d(touched, silent)
        columns = batch.values
        if self._features is not None:
            columns = self._features.compute(slots, batch.values, batch.times)
        whole = np.arange(len(batch))
        starts = self.kin.count(batch.machines, slots)
        single = careful and len(batch) > 1
        parts = np.split(whole, whole[1:] if single else [row for row in sorted(starts) if row])
        found = _Found(len(batch), alerts=sick)
        for rows in parts:
            if len(rows) and (start := starts.get(int(rows[0]))):
                self._start(*start)
            piece = batch if len(rows) == len(batch) else batch.select(rows)
            self._score_part(piece, columns[rows], slots[rows], offsets[rows], rows, careful, found)
        for name in self._topology.scored_by:
            found.open(name)
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
        columns: Floats,
        slots: Slots,
        offsets: NDArray[np.int64],
        rows: NDArray[np.int64],
        careful: bool,
        found: _Found,
    ) -> None:
        """Judge readings that are these rows of the batch."""
        part, seconds = self._part(batch, columns, slots, offsets)
        found.days += seconds / _DAY
        if self.beside.busy:
            found.parts.append((rows, part))
        for order, ensemble in enumerate(self._ensembles.values()):
            for piece, decision in ensemble.judge(part, careful=careful):
                for name, scores in decision.scores.items():
                    found.put(name, rows[piece], scores, np.full(len(piece), self.lanes[name].threshold))
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
                    alert = self._alert(ensemble, decision, event, why, part, i)
                    found.alerts.append((int(rows[i]), order, alert))
        self._recent.push(slots, batch.values, batch.times)

    def _watch(
        self, decision: Decision, part: Part, piece: NDArray[np.int64], rows: NDArray[np.int64], found: _Found
    ) -> None:
        """Note what is watched for drift: what was learned, for a fault is none."""
        for name, watch in self.beside.retraining.watches.items():
            if name not in decision.raw or decision.learned is None:
                continue
            kept = np.flatnonzero(decision.learned)
            scores = decision.raw[name][kept, None]
            values = scores if watch.of_scores else self.lanes[name].shown(part.columns[piece[kept]])
            found.watched.setdefault(name, []).append((rows[piece[kept]], values))

    def _part(
        self, batch: Batch, columns: Floats, slots: Slots, offsets: NDArray[np.int64]
    ) -> tuple[Part, float]:
        """Readings with the scores from which they are anomalous, as the budget has it and the machine is read; and
        the seconds that they cover."""
        rule = self._topology.alert
        intervals, numbers = self._rates.update(slots, batch.times)
        limits = None
        if rule.budget is not None:
            share = rule.budget if self._census is None else rule.budget / self._census.update(slots)
            probability = share * intervals / _DAY
            limits = -np.log10(np.clip(probability, _LEAST_PROBABILITY, _LARGEST_PROBABILITY))
        rise = np.zeros(len(slots))
        if rule.alpha_spending:
            rise = rule.alpha_spending * np.log10(np.maximum(numbers, _YOUNG) / _KNOWN)
        part = Part(batch, columns, slots, offsets, limits, rise, numbers, self._quiet(batch))
        return part, float(intervals.sum())

    def _quiet(self, batch: Batch) -> Mask:
        """The readings (n,) taken while somebody worked on the machine."""
        quiet = np.zeros(len(batch), np.bool_)
        for pause in self._topology.alert.maintenance:
            start, end = epoch(pause.start), epoch(pause.end)
            since = batch.times - start
            inside = (since >= 0) & ((since % pause.every if pause.every else since) < end - start)
            for i in np.flatnonzero(inside).tolist():
                quiet[i] |= any(fnmatchcase(batch.machines[i], pattern) for pattern in pause.machines)
        return quiet

    def warmups(self) -> dict[str, int]:
        """Readings that a machine needs before it is judged, at least, by what judges: to a detector's own come those
        of its calibration. All that decide together need what the slowest needs."""
        calibration = self._topology.calibration
        more = 0 if calibration is None else calibration.warmup
        found = {
            name: getattr(lane.model, "warmup_readings", 0)
            + (more if lane.limiter is None else _LIMITER.warmup)
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
        lane, fresh = self.lanes[detector], self._lane(detector, model, info)
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
        window = self._past(slot)
        number = int(self._rates.snapshot(np.array([slot]))["count"][0])
        ended = ensemble.alerts.close(slot, float(window.times[-1]), number, learned=learned)
        if ended is None:
            return None
        for shadow in self.beside.shadows.values():
            if shadow.ensemble.name == detector:
                shadow.ensemble.alerts.close(slot, float(window.times[-1]), number, learned=learned)
        episode, severity = ended
        return closed_alert(
            (self._topology.name, machine, detector),
            episode,
            severity,
            window,
            "Closed by an operator: this was normal"
            + (", and is learned." if learned else ", and is not learned."),
            threshold=ensemble.threshold,
            model=ensemble.info,
            calibrated=self._topology.gives_probabilities,
        )

    def watches(self, detector: str, machine: str) -> bool:
        """Whether what decides by this name takes readings of a machine."""
        ensemble = self._ensembles.get(detector)
        return ensemble is not None and any(
            lane.binding is None or lane.binding.matches(machine) for lane in ensemble.lanes
        )

    def watched_days(self, detector: str, since: float) -> float:
        """Days since a time of the readings (epoch seconds), each machine's up to its newest reading, of the machines
        in memory that a detector scores."""
        slots, binding = self.residents.occupied, self.lanes[detector].binding
        if binding is not None:
            slots = slots[binding.of(slots)]
        newest = self._rates.snapshot(slots)["newest"]
        return float(np.maximum(newest - since, 0.0).sum()) / _DAY

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
            self._unwatched += ended_with_health(self._topology, machines, slots, left, self._past)

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
        alert = closed_alert(
            (self._topology.name, machine, name),
            episode,
            severities[min(episode.severity, len(severities) - 1)],
            self._past(slot),
            unwatched(name, machine, gone=ensemble is None),
            threshold=episode.peak if ensemble is None else ensemble.threshold,
            model=NOBODY if ensemble is None else ensemble.info,
            calibrated=self._topology.gives_probabilities,
        )
        raised = self.beside.feedback.find(alert.id)
        if raised is None:
            return alert
        return msgspec.structs.replace(alert, threshold=raised.threshold, model=raised.model or alert.model)

    def _past(self, slot: int) -> Window:
        """The machine's last readings, up to now."""
        nothing = np.zeros(0, dtype=np.int64)
        times, values = self._recent.window(slot, nothing, np.zeros((0, len(self._names))), np.zeros(0), -1)
        return Window(times.tolist(), {name: _plain(values[:, j]) for j, name in enumerate(self._names)})

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
        yield "arrivals", self._arrivals
        if self._aligner is not None:
            yield "align", self._aligner
        if self._health is not None:
            yield HEALTH, self._health
        yield "rates", self._rates
        if self._census is not None:
            yield "census", self._census
        if self._features is not None:
            yield "features", self._features
        yield "kin", self.kin
        for ensemble in self._ensembles.values():
            yield from ensemble.tables()
        yield from self.beside.tables()

    def _lane(self, name: str, model: Model, info: ModelInfo) -> Lane:
        """A detector with what makes a probability of its scores, where they are calibrated."""
        topology, stated = self._topology, self._topology.detectors[name].threshold
        shown, inputs = topology.inputs(name), None
        if shown != topology.columns:
            inputs = np.array([topology.columns.index(column) for column in shown], np.int64)
        machines = topology.detectors[name].machines
        binding = Binding(machines) if machines else None
        trained = name in topology.registry_models
        if topology.calibration is not None:
            calibrator = topology.calibration.build(info.digest if trained else "")
            return Lane(name, model, info, self._improbable(), calibrator, inputs, binding, trained)
        limit = model.threshold if stated is None else stated
        rarely = topology.limited.get(name, 0.0)
        limiter = _LIMITER.build() if rarely else None
        return Lane(name, model, info, limit, None, inputs, binding, trained, limiter, rarely)

    def _improbable(self) -> float:
        return -math.log10(self._topology.alert.probability or _DEFAULT_PROBABILITY)

    def _decide_by(self) -> dict[str, Ensemble]:
        """Each detector for itself, or all together."""
        if self._topology.combine is None or self._topology.calibration is None:
            return {name: self._ensemble(name, [lane]) for name, lane in self.lanes.items()}
        return {COMBINED: self._ensemble(COMBINED, list(self.lanes.values()))}

    def _ensemble(self, name: str, lanes: Sequence[Lane], further: int = 0) -> Ensemble:
        """What decides over these lanes, which are shown so many columns besides the topology's."""
        topology = self._topology
        floors = np.zeros(len(topology.columns) + further)
        floors[: len(self._names)] = [sensor.min_deviation for sensor in topology.source.sensors]
        common = (topology.alert, topology.learning, floors)
        openings = Openings(topology.alert.openings) if topology.alert.budget is not None else None
        if topology.combine is None or topology.calibration is None:
            return Ensemble(name, lanes, *common, openings=openings)
        return Ensemble(
            name,
            lanes,
            *common,
            combination=topology.combine,
            threshold=self._improbable(),
            calibrator=topology.calibration.build() if topology.combine.calibrate else None,
            openings=openings,
        )

    def _arrive(
        self, batch: Batch, slots: Slots, offsets: NDArray[np.int64], replayed: Collection[int]
    ) -> tuple[Batch, Slots, NDArray[np.int64], list[tuple[int, ReadingRejected]], list[tuple[int, str]]]:
        """Leave out duplicates and late readings, as the source says."""
        source = self._topology.source
        narrow = self._aligner is not None
        columns = (
            np.argmin(np.isnan(batch.values), axis=1) if narrow else np.zeros(len(batch), dtype=np.int64)
        )
        spared = np.isin(batch.messages, list(replayed))
        judged = self._arrivals.judge(slots, columns, batch.times, batch.seqs, batch.rows, spared=spared)
        if not judged.any():
            return batch, slots, offsets, [], []
        refused: dict[int, ReadingRejected] = {}
        dropped: list[tuple[int, str]] = []
        keep = np.ones(len(batch), dtype=bool)
        policies = {Verdict.DUPLICATE: source.duplicate, Verdict.LATE: source.late}
        for row in np.flatnonzero(judged).tolist():
            verdict = Verdict(judged[row])
            message, name = int(batch.messages[row]), verdict.name.lower()
            if policies[verdict] == "deadletter":
                detail = f"row {batch.rows[row]}: the machine's newest reading is newer"
                refused.setdefault(message, ReadingRejected(name, detail))
            elif policies[verdict] == "drop":
                keep[row] = False
                dropped.append((message, name))
        keep &= ~np.isin(batch.messages, list(refused))
        dropped = [(message, name) for message, name in dropped if message not in refused]
        return batch.select(keep), slots[keep], offsets[keep], list(refused.items()), dropped

    def _align(
        self,
        aligner: Aligner,
        batch: Batch,
        slots: Slots,
        offsets: NDArray[np.int64],
        replayed: Collection[int],
    ) -> tuple[Batch, Slots, NDArray[np.int64], list[tuple[int, ReadingRejected]]]:
        """Narrow messages as whole rows; a row bears the position of the message that made it leave.

        A replayed one whose row has left is a row by itself."""
        refused: dict[int, ReadingRejected] = {}
        index: list[int] = []
        rows: list[int] = []
        times: list[float] = []
        values: list[Floats] = []
        for i, slot in enumerate(slots.tolist()):
            try:
                left = aligner.push(slot, float(batch.times[i]), batch.values[i])
            except ReadingRejected as error:
                if batch.messages[i] not in replayed:
                    refused.setdefault(int(batch.messages[i]), error)  # a message is one dead letter
                    continue
                left = [(float(batch.times[i]), batch.values[i])]
            for number, (time, row) in enumerate(left):
                index.append(i)
                rows.append(2 * int(batch.rows[i]) + number)
                times.append(time)
                values.append(row)
        aligned = Batch(
            [batch.machines[i] for i in index],
            np.array(times, dtype=np.float64),
            np.array(values, dtype=np.float64).reshape(len(index), len(self._names)),
            batch.messages[index],
            np.array(rows, dtype=np.int64),
            batch.seqs[index],
        )
        return aligned, slots[index], offsets[index], list(refused.items())

    def _alert(
        self, ensemble: Ensemble, decision: Decision, event: Event, why: Why, part: Part, i: int
    ) -> Alert:
        """The alert of this event at row `i` of the part, while the decision is the detectors' latest."""
        batch, episode = part.batch, event.episode
        machine, score = batch.machines[i], float(decision.decided[event.index])
        weights = {} if self._topology.combine is None else self._topology.combine.weights
        stretches = courses(
            ensemble.lanes, decision.scores, weights, event.index, float(batch.times[i]), len(why.shares)
        )
        columns = (_plain(part.columns[i]), _plain(why.expected), why.shares.tolist(), stretches)
        reasons = [SensorReason(*parts) for parts in zip(self._topology.columns, *columns, strict=True)]
        reasons.sort(key=lambda reason: -abs(reason.share))
        times, window = self._recent.window(int(part.slots[i]), part.slots, batch.values, batch.times, i)
        here = (self._topology.name, machine, ensemble.name, 0)
        closed = event.kind == "closed"
        return Alert(
            id=episode_id(*here, episode.offset, episode.row, episode.first_seen),
            event=event.kind.value,
            type=PROCESS,
            sequence=episode.updates + (1 if closed else 0),
            topology=self._topology.name,
            machine=machine,
            detector=ensemble.name,
            severity=event.severity,
            score=score,
            threshold=event.threshold,
            probability=10.0**-score if self._topology.gives_probabilities else None,
            peak_score=episode.peak,
            anomalous_readings=episode.readings,
            first_seen=rfc3339(episode.first_seen),
            last_seen=rfc3339(episode.last_seen),
            time=rfc3339(float(batch.times[i])),
            reason=sentence(
                ensemble.name,
                event,
                score,
                reasons,
                self._units,
                calibrated=self._topology.gives_probabilities,
            ),
            contributions=reasons,
            nearest_example=_plain(np.array([why.nearest]))[0],
            model=decision.info,
            position=Position(0, int(part.offsets[i]), int(batch.rows[i])),
            window=Window(times.tolist(), {name: _plain(window[:, j]) for j, name in enumerate(self._names)}),
        )


def _plain(values: Floats) -> list[float | None]:
    """Numbers as JSON has them: null where one is missing."""
    plain: list[float | None] = values.tolist()
    if np.isfinite(values).all():
        return plain
    return [value if value is not None and np.isfinite(value) else None for value in plain]

"""The pure heart: readings in, scores and alert events out; state in tables by slot, no input or output."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.base import Contributions, Detector, Floats, Model, Rows, Slots
from detectors.features import RecentWindow
from stream.alerting import AlertTable, Event, severity
from stream.alerts import Alert, ModelInfo, Position, SensorReason, Window, episode_id, rfc3339
from stream.align import Aligner
from stream.arrivals import Arrivals, Verdict
from stream.errors import ReadingRejected
from stream.readings import Batch
from stream.residents import Residents
from stream.topology import RegistryModel, Topology

__all__ = ["DetectorFailed", "Lane", "Scored", "Scorer", "online_info"]

_WINDOW = 24
"""Readings that an alert shows of its machine's recent past."""


class DetectorFailed(Exception):
    """A detector raised, or gave scores that cannot be: state is no longer to be trusted."""

    def __init__(self, detector: str, detail: str) -> None:
        self.detector = detector
        self.detail = detail
        super().__init__(f'detector "{detector}": {detail}')


class _Table(Protocol):
    def snapshot(self, slots: Slots) -> Rows: ...
    def restore(self, slots: Slots, rows: Rows) -> None: ...


@dataclass(slots=True)
class Lane:
    """One detector at work: its model, which one it is, and the episodes of its alerts."""

    name: str
    model: Model
    info: ModelInfo
    threshold: float
    alerts: AlertTable


@dataclass(frozen=True, slots=True)
class Scored:
    """What came of a batch: the rows that were scored (aligned), their slots and offsets, scores and
    thresholds by detector, the alert events in order, and the slots whose state changed."""

    batch: Batch
    slots: Slots
    offsets: NDArray[np.int64]
    scores: Mapping[str, Floats]
    thresholds: Mapping[str, float]
    alerts: Sequence[Alert]
    touched: Slots
    refused: Sequence[tuple[int, ReadingRejected]] = ()
    """Messages that become dead letters, by index."""
    dropped: Sequence[tuple[int, str]] = ()
    """Readings without effect: index of the message, and the policy."""
    unhealthy: Sequence[tuple[str, str]] = ()
    """Detector and machine where a score was not finite and the state before it was put back."""


def online_info(recipe: Detector) -> ModelInfo:
    """The identity of a detector that learns as it goes: its kind and its settings' digest."""
    plain = msgspec.convert(
        msgspec.to_builtins(recipe), type(recipe)
    )  # a whole number where one of floats is meant
    digest = hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()
    return ModelInfo(recipe.kind, "online", f"sha256:{digest}", recipe.kind)


class Scorer:
    """Scores batches for one topology. `models` holds a built model and its identity for every detector."""

    def __init__(self, topology: Topology, models: Mapping[str, tuple[Model, ModelInfo]]) -> None:
        self._topology = topology
        source = topology.source
        self._names = source.names
        self.residents = Residents()
        self.lanes: dict[str, Lane] = {}
        for name in topology.detectors:
            model, info = models[name]
            threshold = self._threshold(name, model)
            self.lanes[name] = Lane(name, model, info, threshold, AlertTable(topology.alert))
        narrow = source.layout == "narrow"
        self._recent = RecentWindow(len(self._names), _WINDOW)
        self._arrivals = Arrivals(len(self._names) if narrow else 1, source.lateness)
        self._aligner = Aligner(len(self._names), source.align_within) if narrow else None
        self._fresh = {name: table.snapshot(np.zeros(1, dtype=np.int64)) for name, table in self._tables()}

    @staticmethod
    def recipes(topology: Topology) -> dict[str, str]:
        """The state tables by name, each with a text that changes when its state is no longer comparable."""
        sensors = "/".join(topology.source.names)
        narrow = topology.source.layout == "narrow"
        recipes = {"recent": sensors, "arrivals": topology.source.order_by + (sensors if narrow else "")}
        if narrow:
            recipes["align"] = sensors
        for name, spec in topology.detectors.items():
            recipes[f"alert:{name}"] = ""
            fixed = isinstance(spec, RegistryModel)
            recipes[f"model:{name}"] = sensors + ("" if fixed else online_info(spec).digest)  # type: ignore[arg-type]
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
        whole = np.arange(len(batch))
        parts = [whole[i : i + 1] for i in whole] if careful and len(batch) > 1 else [whole]
        scores: dict[str, list[Floats]] = {name: [] for name in self.lanes}
        alerts: list[Alert] = []
        unhealthy: list[tuple[str, str]] = []
        for part in parts:
            piece = batch if part is whole else batch.select(part)
            found = self._score_part(piece, slots[part], offsets[part], careful, alerts, unhealthy)
            for name, column in found.items():
                scores[name].append(column)
        return Scored(
            batch,
            slots,
            offsets,
            {name: np.concatenate(columns) for name, columns in scores.items()},
            {name: lane.threshold for name, lane in self.lanes.items()},
            alerts,
            touched,
            refused,
            dropped,
            unhealthy,
        )

    def _score_part(
        self,
        batch: Batch,
        slots: Slots,
        offsets: NDArray[np.int64],
        careful: bool,
        alerts: list[Alert],
        unhealthy: list[tuple[str, str]],
    ) -> dict[str, Floats]:
        scores: dict[str, Floats] = {}
        events: list[tuple[int, int, Lane, Event, Contributions]] = []
        for order, lane in enumerate(self.lanes.values()):
            before = lane.model.snapshot(slots) if careful else {}
            scores[lane.name] = self._score(lane, slots, batch)
            if not np.isfinite(scores[lane.name]).all():
                if not careful:
                    raise DetectorFailed(lane.name, "gave a score that is not finite")
                lane.model.restore(slots, before)
                unhealthy += [(lane.name, machine) for machine in batch.machines]
                continue
            found = lane.alerts.decide(
                lane.threshold, slots, batch.times, scores[lane.name], offsets, batch.rows
            )
            if found:
                why = lane.model.contributions(np.array([event.index for event in found]))
                events += [
                    (event.index, order, lane, event, Contributions(why.shares[i], why.expected[i]))
                    for i, event in enumerate(found)
                ]
        events.sort(key=lambda item: item[:2])
        alerts += [
            self._alert(lane, event, why, batch, slots, offsets, float(scores[lane.name][event.index]))
            for _, _, lane, event, why in events
        ]
        self._recent.push(slots, batch.values, batch.times)
        return scores

    def swap(self, detector: str, model: Model, info: ModelInfo) -> None:
        """From the next batch on this model scores. Its keys' alert episodes go on."""
        lane = self.lanes[detector]
        lane.model, lane.info, lane.threshold = model, info, self._threshold(detector, model)
        self._fresh[f"model:{detector}"] = model.snapshot(np.zeros(1, dtype=np.int64))

    def components(self, slots: Slots) -> dict[str, Rows]:
        """The rows of these slots of every state table, for the checkpoint."""
        return {name: table.snapshot(slots) for name, table in self._tables()}

    def admit(self, machines: Sequence[str], components: Mapping[str, Rows]) -> None:
        """Take machines into memory that are not: with these rows of their state, fresh where there are none."""
        slots, used = self.residents.place(machines)
        for name, table in self._tables():
            if components.get(name):
                table.restore(slots, components[name])
            elif len(used) and self._fresh[name]:
                table.restore(
                    used, {key: np.repeat(row, len(used), 0) for key, row in self._fresh[name].items()}
                )

    def evict(self, count: int, keep: Slots) -> None:
        """Let go of so many machines that are in the checkpoint, but of none in `keep` or with an open alert."""
        open_ = [lane.alerts.open_slots() for lane in self.lanes.values()]
        self.residents.evict(count, np.concatenate([keep, *open_]))

    def _tables(self) -> Iterator[tuple[str, _Table]]:
        yield "recent", self._recent
        yield "arrivals", self._arrivals
        if self._aligner is not None:
            yield "align", self._aligner
        for lane in self.lanes.values():
            yield f"alert:{lane.name}", lane.alerts
            yield f"model:{lane.name}", lane.model

    def _threshold(self, detector: str, model: Model) -> float:
        stated = self._topology.detectors[detector].threshold
        return model.threshold if stated is None else stated

    def _score(self, lane: Lane, slots: Slots, batch: Batch) -> Floats:
        try:
            scores = lane.model.score_learn(slots, batch.values, batch.times)
        except Exception as error:  # a detector may be anybody's: whatever it raises is its failure
            raise DetectorFailed(lane.name, f"{type(error).__name__}: {error}") from error
        if scores.shape != slots.shape:
            raise DetectorFailed(lane.name, f"gave {scores.shape} scores for {slots.shape} readings")
        return scores

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
        self,
        lane: Lane,
        event: Event,
        why: Contributions,
        batch: Batch,
        slots: Slots,
        offsets: NDArray[np.int64],
        score: float,
    ) -> Alert:
        i, episode = event.index, event.episode
        machine = batch.machines[i]
        columns = (_plain(batch.values[i]), _plain(why.expected), why.shares.tolist())
        reasons = [SensorReason(*parts) for parts in zip(self._names, *columns, strict=True)]
        reasons.sort(key=lambda reason: -abs(reason.share))
        times, window = self._recent.window(int(slots[i]), slots, batch.values, batch.times, i)
        here = (self._topology.name, machine, lane.name, 0)
        closed = event.kind == "closed"
        return Alert(
            id=episode_id(*here, episode.offset, episode.row, episode.first_seen),
            event=event.kind.value,
            sequence=episode.updates + (1 if closed else 0),
            topology=self._topology.name,
            machine=machine,
            detector=lane.name,
            severity=severity(self._topology.alert, lane.threshold, episode.peak),
            score=score,
            threshold=lane.threshold,
            peak_score=episode.peak,
            anomalous_readings=episode.readings,
            first_seen=rfc3339(episode.first_seen),
            last_seen=rfc3339(episode.last_seen),
            time=rfc3339(float(batch.times[i])),
            reason=_sentence(lane, event, score, reasons),
            contributions=reasons,
            model=lane.info,
            position=Position(0, int(offsets[i]), int(batch.rows[i])),
            window=Window(times.tolist(), {name: _plain(window[:, j]) for j, name in enumerate(self._names)}),
        )


def _sentence(lane: Lane, event: Event, score: float, reasons: Sequence[SensorReason]) -> str:
    """What a technician should know, in one sentence."""
    if event.kind == "closed":
        episode = event.episode
        return (
            f"Back to normal after {episode.readings} anomalous readings (peak score {episode.peak:.3g}, "
            f"threshold {lane.threshold:.3g})."
        )
    top = next((reason for reason in reasons if reason.share and reason.value is not None), None)
    text = f"{lane.name} scored {score:.3g} (threshold {lane.threshold:.3g})"
    if top is None:
        return text + "."
    side = "high" if top.share > 0 else "low"
    text += f": {top.sensor} is {side} at {top.value:.4g}"
    if top.expected is not None:
        text += f", expected about {top.expected:.4g}"
    return f"{text} ({abs(top.share):.0%} of the deviation)."


def _plain(values: Floats) -> list[float | None]:
    """Numbers as JSON has them: null where one is missing."""
    plain: list[float | None] = values.tolist()
    if np.isfinite(values).all():
        return plain
    return [value if value is not None and np.isfinite(value) else None for value in plain]

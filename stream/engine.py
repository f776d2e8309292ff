"""The engine: readings in, alerts out, state and position committed together, one batch at a time.

It knows only ports: an intake to read from, a broker to publish to, a checkpoint to commit to and a clock. Any
failure ends it; the runtime then builds a new one from the checkpoint, so a lost connection and a crash are
one and the same case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detectors.base import Model
from stream import log
from stream.alerts import Alert, ModelInfo, alert_message
from stream.brokers.base import Broker, Delivery, Intake
from stream.checkpoint import Changes, Checkpoint, Saved, StreamPosition
from stream.deadletters import dead_letter
from stream.errors import BrokerUnreachable, CommandRefused, ReadingRejected
from stream.metrics import TopologyMetrics
from stream.proof import fingerprint, prove
from stream.readings import Batch, Decoder
from stream.scorer import DetectorFailed, Scored, Scorer
from stream.topology import Topology, readings_queue

__all__ = ["Clock", "Engine", "Poison", "Swap"]

_IDLE = 0.25
"""Seconds after which an engine without readings looks for commands and a stop."""
_LAG_INTERVAL = 2.0


@dataclass(frozen=True, slots=True)
class Clock:
    """`now` epoch seconds, `monotonic` seconds for durations (the same clock as `Delivery.received`)."""

    now: Callable[[], float]
    monotonic: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Swap:
    """A prepared change of a detector's model, to be applied between two batches."""

    detector: str
    model: Model
    info: ModelInfo
    reference: dict[str, Any]
    previous: dict[str, Any] | None


class Poison(Exception):
    """A detector failed on a batch: run again from the checkpoint, one message at a time."""


class Engine:
    """Runs one topology from a checkpoint. Throw it away after any exception.

    `single` makes batches of one message for a while: how a message that makes a detector fail is found.
    """

    def __init__(
        self,
        topology: Topology,
        scorer: Scorer,
        saved: Saved,
        *,
        broker: Broker,
        checkpoint: Checkpoint,
        metrics: TopologyMetrics,
        clock: Clock,
        observer: Callable[[Scored], None] | None = None,
        single: bool = False,
    ) -> None:
        self.topology = topology
        self.scorer = scorer
        self.position = saved.position
        self.paused = saved.paused
        self.consuming = False
        self.started = False
        """True once readings were read: before that, a failure is a matter of configuration."""
        self.batches = 0
        """Batches committed."""
        self.lag = 0
        self._whole = saved.whole
        self._broker = broker
        self._checkpoint = checkpoint
        self._metrics = metrics
        self._clock = clock
        self._observer = observer
        self._single = topology.source.max_batch if single else 0
        self._decoder = Decoder(topology.source, clock.now)
        self._turns: list[tuple[Callable[[], Changes], asyncio.Future[float]]] = []
        self._intake: Intake | None = None
        scorer.restore(saved.machines, saved.components)
        metrics.paused.set(self.paused)
        for name, lane in scorer.lanes.items():
            metrics.active_model(name, *_labels(lane.info))
        self._show_state()

    async def run(self, stop: asyncio.Event) -> None:
        """Read, score, publish, commit until `stop` is set; the batch at hand is finished first."""
        source = self.topology.source
        queue = readings_queue(self.topology)
        start = self.position.last_offset if self.position.last_offset >= 0 else None
        intake = await self._broker.consume(queue, offset=start, prefetch=4 * source.max_batch)
        try:
            deliveries = await self._first(intake)
            self._intake = intake
            self.consuming = self.started = True
            self._metrics.consuming.set(1)
            while not stop.is_set():
                await self._take_turns()
                if self.paused:
                    await asyncio.sleep(_IDLE)
                    continue
                most = 1 if self._single > 0 else source.max_batch
                if not deliveries:
                    deliveries = await intake.receive(most, source.linger, _IDLE)
                if deliveries:
                    await self._batch(intake, deliveries[:most])
                    deliveries = deliveries[most:]
            self._intake = None
            await intake.close()
        finally:
            self._intake, self.consuming = None, False
            self._metrics.consuming.set(0)
            for _, done in self._turns:
                done.cancel()

    async def watch_lag(self) -> None:
        """Measure now and then how far the source is ahead, until cancelled: beside the path, for it waits."""
        while True:
            intake = self._intake
            if intake is not None:
                try:
                    end = await intake.end()
                except BrokerUnreachable:
                    if self._intake is None:  # stopped meanwhile
                        return
                    raise
                self.lag = max(end - self.position.next_offset, 0)
                self._metrics.lag.set(self.lag)
            await asyncio.sleep(_LAG_INTERVAL if intake is not None else _IDLE)

    async def between_batches(self, act: Callable[[], Changes]) -> float:
        """Run `act` between two batches and commit what it changed; seconds that the stream stood still."""
        done: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._turns.append((act, done))
        return await done

    def apply(self, swap: Swap) -> Changes:
        """Put a prepared model in place (an act for `between_batches`)."""
        self.scorer.swap(swap.detector, swap.model, swap.info)
        self._metrics.active_model(swap.detector, *_labels(swap.info))
        return Changes(self.position, models={swap.detector: (swap.reference, swap.previous)})

    async def _batch(self, intake: Intake, deliveries: Sequence[Delivery]) -> None:
        """The way of one batch.

        1. Drop what lies before the position: a replay, or the head of a chunk.
        2. Decode; what cannot be used is a dead letter with its reason.
        3. Score, learn, decide.
        4. Publish dead letters and alerts; go on when the broker has confirmed every one.
        5. Commit state and position in one transaction.
        6. Acknowledge, which for a stream only grants credit.
        """
        fresh = [delivery for delivery in deliveries if delivery.offset > self.position.last_offset]
        self._metrics.passed_over("replayed", len(deliveries) - len(fresh))
        self._single -= len(fresh)
        if fresh:
            self._metrics.received.inc(len(fresh))
            batch, rejected = self._decoder.decode(fresh)
            offsets = np.array([delivery.offset for delivery in fresh], dtype=np.int64)
            try:
                scored = self.scorer.process(batch, offsets[batch.messages])
            except DetectorFailed as error:
                await self._quarantine(fresh, error)
                raise Poison(str(error)) from error
            rejected += [(fresh[index], error) for index, error in dict(scored.refused).items()]
            rejected.sort(key=lambda item: item[0].offset)
            self._count_scored(fresh, batch, scored)
            await self._publish(fresh, scored, rejected)
            await self._commit(fresh[-1], scored)
            self._count_committed(len(fresh), scored, rejected)
            if self._observer is not None:
                self._observer(scored)
        await intake.ack(deliveries[-1].tag)

    async def _publish(
        self, fresh: Sequence[Delivery], scored: Scored, rejected: Sequence[tuple[Delivery, ReadingRejected]]
    ) -> None:
        messages = [dead_letter(self.topology.name, *item) for item in rejected]
        messages += [alert_message(alert, self.topology.sink.exchange) for alert in scored.alerts]
        if messages:
            await self._broker.publish(messages)
        if scored.alerts:
            now = self._clock.monotonic()
            received = {delivery.offset: delivery.received for delivery in fresh}
            for alert in scored.alerts:
                self._metrics.alerted(alert.detector, alert.event)
                self._metrics.alert_latency.observe(now - received[alert.position.offset])
                _log_alert(alert)

    async def _commit(self, last: Delivery, scored: Scored) -> None:
        slots = np.arange(len(self.scorer.machines)) if self._whole else scored.touched
        machines = [self.scorer.machines[slot] for slot in slots.tolist()]
        position = StreamPosition(last.offset, fingerprint(last))
        await self._save(Changes(position, slots.tolist(), machines, self.scorer.components(slots)))
        self._whole = False
        self.batches += 1

    async def _save(self, changes: Changes) -> None:
        before = self._clock.monotonic()
        await asyncio.to_thread(self._checkpoint.commit, changes)
        self.position = changes.position
        self._metrics.checkpoint_duration.observe(self._clock.monotonic() - before)
        self._metrics.checkpoint_time.set(self._clock.now())

    async def _quarantine(self, fresh: Sequence[Delivery], error: DetectorFailed) -> None:
        """A single message that makes a detector fail becomes a dead letter and leaves no state."""
        if len(fresh) > 1:
            return
        refused = ReadingRejected("detector_failed", str(error))
        await self._broker.publish([dead_letter(self.topology.name, fresh[0], refused)])
        await self._save(Changes(StreamPosition(fresh[0].offset, fingerprint(fresh[0]))))
        self._metrics.deadlettered("detector_failed")

    async def _take_turns(self) -> None:
        turns, self._turns = self._turns, []
        for act, done in turns:
            before = self._clock.monotonic()
            try:
                changes = act()
            except CommandRefused as refused:
                done.set_exception(refused)
                continue
            if changes.paused is not None:
                self.paused = changes.paused
                self._metrics.paused.set(self.paused)
            await self._save(changes)
            done.set_result(self._clock.monotonic() - before)

    async def _first(self, intake: Intake) -> list[Delivery]:
        """The first deliveries from the position on, once the stream is proven to be the same."""
        source = self.topology.source
        found = await prove(intake, self.position, most=source.max_batch, linger=source.linger)
        if found and (lost := found[0].offset - self.position.last_offset - 1) > 0:
            self._metrics.gaps.inc(lost)
            log.get().error("readings_lost", topology=self.topology.name, lost=lost, cause="retention")
        return found

    def _count_scored(self, fresh: Sequence[Delivery], batch: Batch, scored: Scored) -> None:
        now = self._clock.monotonic()
        self._metrics.decoded.inc(len(batch))
        self._metrics.batch.observe(len(scored.batch))
        for delivery in fresh:
            self._metrics.scored_latency.observe(now - delivery.received)
        for name in scored.scores:
            self._metrics.scored(name, len(scored.batch))
        if len(scored.batch):
            self._metrics.last_reading.set(float(scored.batch.times[-1]))

    def _count_committed(
        self, received: int, scored: Scored, rejected: Sequence[tuple[Delivery, ReadingRejected]]
    ) -> None:
        self._metrics.processed.inc(received - len(rejected))
        for _, error in rejected:
            self._metrics.deadlettered(error.reason)
        self._metrics.checkpoint_bytes.set(self._checkpoint.size())
        if scored.alerts or len(scored.touched):
            self._show_state()

    def _show_state(self) -> None:
        self._metrics.machines.set(len(self.scorer.machines))
        for name, lane in self.scorer.lanes.items():
            self._metrics.open_alerts(name, len(lane.alerts.open_slots()))


def _labels(info: ModelInfo) -> tuple[str, str, str, str]:
    return info.name, info.version, info.digest, info.kind


def _log_alert(alert: Alert) -> None:
    log.get().info(
        f"alert_{alert.event}",
        topology=alert.topology,
        machine=alert.machine,
        detector=alert.detector,
        severity=alert.severity,
        score=round(alert.score, 4),
        reason=alert.reason,
    )

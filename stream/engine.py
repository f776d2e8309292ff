"""The engine: readings in, alerts out, state and position committed together.

It knows only ports: an intake to read from, a broker to publish to, a store to commit to and a clock. Any
failure ends it; the runtime then builds a new one from the store, so a lost connection and a crash are one and
the same case.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.base import Model
from stream import log
from stream.alerts import Alert, ModelInfo, alert_message
from stream.backlog import LAG_INTERVAL, lag_of
from stream.brokers.base import Broker, Delivery, Intake, Message
from stream.clock import Clock
from stream.deadletters import Origin, dead_letter, replayed
from stream.errors import BrokerUnreachable, CommandRefused, ReadingRejected, Stalled
from stream.feedback import Raised
from stream.ledger import Ledger, Tally
from stream.metrics import TopologyMetrics
from stream.pace import Pace, breathe
from stream.plan import readings_queue
from stream.proof import fingerprint, prove
from stream.readings import Batch, Decoder
from stream.scorer import DetectorFailed, Scored, Scorer
from stream.state import Changes, Group, Saved, Store, StreamPosition
from stream.suspects import DEATHS, Suspects
from stream.threads import in_thread
from stream.topology import Topology

__all__ = ["Engine", "Poison", "Swap"]

_IDLE = 0.25
"""Seconds after which an engine without readings looks for commands and a stop."""
_QOS_LIMIT = 65_535
"""AMQP's largest prefetch."""
_LARGEST_BATCH = 1_000_000
"""Bytes of bodies that are taken in one go: many small rows take long, and nobody else has the loop meanwhile."""

Refused = Sequence[tuple[int, ReadingRejected]]
"""Messages of a batch that become dead letters, by index."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """Something to be done between two batches."""

    act: Callable[[], Changes]
    done: asyncio.Future[float]
    settled: bool
    """Not before everything is scored again that may have been scored before a failure."""


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


class Poison(Exception):
    """A detector failed on a batch: run again from the store, one message at a time."""


class Engine:
    """Runs one topology from what was saved. Throw it away after any exception.

    `suspects` says which messages to take by themselves; it outlives the engine. `alone` is held by the one topology
    of this process that scores.
    """

    def __init__(
        self,
        topology: Topology,
        scorer: Scorer,
        saved: Saved,
        *,
        broker: Broker,
        store: Store,
        metrics: TopologyMetrics,
        clock: Clock,
        suspects: Suspects,
        alone: asyncio.Lock,
        observers: Sequence[Callable[[Scored], None]] = (),
    ) -> None:
        self.topology = topology
        self.scorer = scorer
        self.paused = saved.paused
        self.consuming = False
        self.started = False
        """True once readings were read: before that, a failure is a matter of configuration."""
        self.lag = 0
        self.ledger = Ledger(store, scorer, saved, rule=topology.checkpoint, metrics=metrics, clock=clock)
        self._queue = readings_queue(topology)
        self._stream = self._queue.kind == "stream"
        self._trying = saved.trying
        self._unsettled = saved.died or saved.unsettled
        self._floor = -1
        """The last message that may have been scored before the last failure: no swap comes before it again."""
        self._broker = broker
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self._suspects = suspects
        self._alone = alone
        self._observers = observers
        self._decoder = Decoder(topology.source, clock.now)
        self._pace = Pace(topology.source.max_batch)
        self._replays = set(saved.replays)
        self._turns: list[_Turn] = []
        self._looks: list[tuple[Sequence[str], asyncio.Future[list[Group]]]] = []
        self._intake: Intake | None = None
        self._tag = 0
        """The last delivery that is in the ledger; 0 once a queue was told."""
        self._taken = 0
        self._in_hand = 0
        """Messages of the batch at hand that are not in the ledger."""
        for group in saved.groups:
            scorer.admit(*group)
        scorer.kin.know(set(saved.names).difference(saved.machines))
        metrics.paused.set(self.paused)
        for name, lane in scorer.lanes.items():
            metrics.active_model(name, *_labels(lane.info))
        self._show_state()

    @property
    def position(self) -> StreamPosition:
        """The last message whose effect is in memory."""
        return self.ledger.processed

    async def run(self, stop: asyncio.Event) -> None:
        """Read, score, publish, commit until `stop` is set; the batch at hand is finished first."""
        source, rule = self.topology.source, self.topology.checkpoint
        start = self.position.last_offset if self.position.last_offset >= 0 else None
        prefetch = 4 * source.max_batch if self._stream else 2 * source.max_batch + rule.after
        intake = await self._broker.consume(self._queue, offset=start, prefetch=min(prefetch, _QOS_LIMIT))
        try:
            deliveries = await self._first(intake) if self._stream else []
            if self._unsettled:
                self._floor = self.position.last_offset + rule.after + source.max_batch
                self._floor = min(self._floor, await intake.end() - 1) if self._stream else self._floor
            await self._fetch_unwatched()
            await self.ledger.commit(Changes(self.position, running=True, trying=self._trying))
            await self._tell()
            self._intake = intake
            self.consuming = self.started = True
            self._metrics.consuming.set(1)
            while not stop.is_set():
                await self._take_turns(intake)
                if self.paused and not self._again:
                    await self._settle(intake)
                    await asyncio.sleep(_IDLE)
                    continue
                most = self._suspects.most(self.position.next_offset, self._pace.most)
                if not deliveries:
                    deliveries = await intake.receive(most, source.linger, min(self.ledger.wait(), _IDLE))
                    if not deliveries and not self._stream and self._again and not await intake.end():
                        self._floor = -1  # the queue is empty: nothing comes again
                if deliveries:
                    count = _fitting(deliveries[:most])
                    await self._batch(intake, deliveries[:count])
                    deliveries = deliveries[count:]
                if self.ledger.wait() <= 0:
                    await self._settle(intake)
            await self._settle(
                intake,
                Changes(self.position, running=False, unsettled=self._again, trying=self._suspects.mark),
            )
            self._intake = None
            await intake.close()
        finally:
            self._intake, self.consuming = None, False
            self._metrics.consuming.set(0)
            self._metrics.passed_over("returned", self._in_hand + self.ledger.messages)
            for turn in self._turns:
                turn.done.cancel()
            for _, looked in self._looks:
                looked.cancel()

    async def watch(self) -> None:
        """Measure how far the source is ahead, until cancelled; it waits for answers, so it runs beside the path.

        Raises Stalled when the source holds messages and none came for the topology's `watchdog` seconds.
        """
        taken, since = -1, 0.0
        while True:
            intake = self._intake
            if intake is not None:
                try:
                    end = await intake.end()
                except BrokerUnreachable:
                    if self._intake is None:  # stopped meanwhile
                        return
                    raise
                self.lag = lag_of(self._queue, end, self.position)
                self._metrics.lag.set(self.lag)
                now = self._clock.monotonic()
                standing = self.paused and not self._again
                if standing or not self.lag or self._taken != taken:
                    taken, since = self._taken, now
                elif now - since >= self.topology.watchdog:
                    raise Stalled(
                        f"nothing was delivered for {now - since:.0f} s, with {self.lag} messages waiting"
                    )
            await asyncio.sleep(LAG_INTERVAL if intake is not None else _IDLE)

    async def between_batches(self, act: Callable[[], Changes], *, settled: bool = False) -> float:
        """Run `act` between two batches and commit what it changed; seconds that the stream stood still.

        `settled` waits until what may have been scored before a failure is scored again: an alert that went out
        then must come out the same, so no other model may take its reading.
        """
        done: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._turns.append(_Turn(act, done, settled))
        return await done

    def apply(self, swap: Swap) -> Changes:
        """Put a prepared model in place (an act for `between_batches`)."""
        shadow = self.scorer.beside.shadows.get(swap.detector)
        if shadow is not None and shadow.lane.model is swap.model:
            self.ledger.touch(self.scorer.promote(swap.detector))
        else:
            changed = self.scorer.swap(swap.detector, swap.model, swap.info, back=swap.back)
            self.ledger.touch(changed)
        self._metrics.active_model(swap.detector, *_labels(swap.info))
        return Changes(self.position, models={swap.detector: (swap.reference, swap.previous)})

    def accept(self, machine: str, detector: str | None) -> Changes:
        """Take a machine's open alerts for normal (an act for `between_batches`). Raises CommandRefused."""
        slots = self.scorer.accept(machine, detector)
        if not len(slots):
            whose = "" if detector is None else f' of "{detector}"'
            raise CommandRefused(f'"{machine}" has no open alert{whose}')
        self.ledger.touch(slots)
        return Changes(self.position)

    def close_alert(self, raised: Raised, *, learned: bool) -> bool:
        """End an alert because an operator says that it is none (within an act for `between_batches`); it is told
        once that is committed. False where it is not open any more."""
        alert = self.scorer.close_alert(raised.machine, raised.detector, learned=learned)
        if alert is None:
            self.scorer.beside.feedback.gone(raised)
            return False
        told = msgspec.structs.replace(alert, threshold=raised.threshold)
        self.scorer.beside.feedback.closed([told])
        self.ledger.touch(self.scorer.residents.slots([raised.machine]))
        return True

    async def state_of(self, machines: Sequence[str]) -> list[Group]:
        """Copies of the state of those of these machines that are known, as it is between two batches."""
        looked: asyncio.Future[list[Group]] = asyncio.get_running_loop().create_future()
        self._looks.append((machines, looked))
        return await looked

    async def _look(self) -> None:
        """Answer who asks for state; the store is used by nobody else meanwhile."""
        residents = self.scorer.residents
        looks, self._looks = self._looks, []
        for machines, looked in looks:
            away = residents.missing(machines)
            here = [machine for machine in dict.fromkeys(machines) if machine not in set(away)]
            slots = np.array([residents.find(machine) for machine in here], np.int64)
            found = [Group(here, self.scorer.components(slots))] if here else []
            if away and self.ledger.machines > len(residents):
                found += await in_thread(self._store.fetch, away)
            if not looked.done():
                looked.set_result(found)

    async def _batch(self, intake: Intake, deliveries: Sequence[Delivery]) -> None:
        """The way of one batch.

        1. Number the messages; drop what lies before the position: a replay, or the head of a chunk.
        2. After a death: write down what is about to be processed, or put aside what killed thrice.
        3. Decode; what cannot be used is a dead letter with its reason.
        4. Take the batch's machines into memory; score, learn, decide.
        5. Publish dead letters and alerts; go on when the broker has confirmed every one.
        6. Enter it in the ledger, which commits state and position in one transaction when it is time.
        7. Acknowledge: a stream at once, for that only grants credit; a queue after the commit.
        """
        self._taken += len(deliveries)
        self._metrics.received.inc(len(deliveries))
        fresh = self._number(deliveries)
        self._metrics.passed_over("replayed", len(deliveries) - len(fresh))
        self._in_hand = len(fresh)
        if fresh:
            await self._process(intake, fresh)
            self._suspects.done(len(fresh))
        if self._stream:
            await intake.ack(deliveries[-1].tag)

    async def _process(self, intake: Intake, fresh: list[Delivery]) -> None:
        trying = self._suspects.attempt(fresh[0].offset, fresh[-1].offset, fingerprint(fresh[0]))
        if trying is None:
            await self._take(intake, fresh, self._alone)
            return
        async with self._alone:
            await self._settle(intake)
            if trying.deaths >= DEATHS:
                killer = ReadingRejected("killed_worker", f"the process died {DEATHS} times over it")
                await self._put_aside(intake, fresh[0], killer)
                return
            await self.ledger.note(trying)
            await self._take(intake, fresh, contextlib.nullcontext())
            await self._settle(intake)

    async def _take(
        self, intake: Intake, fresh: list[Delivery], alone: AbstractAsyncContextManager[None]
    ) -> None:
        origins, twice = self._origins(fresh)
        decoded, rejected = self._decoder.decode(
            [delivery if i not in origins else origins[i].delivery for i, delivery in enumerate(fresh)]
        )
        await breathe()
        if twice:
            decoded = decoded.select(~np.isin(decoded.messages, sorted(twice)))
            rejected = [item for item in rejected if item[0] not in twice]
        batch, crowded = await self._admit(intake, decoded)
        numbers = np.array([delivery.offset for delivery in fresh], dtype=np.int64)[batch.messages]
        offsets = numbers if self._stream else np.where(batch.seqs >= 0, batch.seqs, numbers)
        careful = self._suspects.careful
        try:
            async with alone:
                before = self._clock.monotonic()
                scored = self.scorer.process(batch, offsets, replayed=origins, careful=careful)
        except DetectorFailed as error:
            if len(fresh) == 1 and not self.ledger.messages:
                self.scorer.beside.failed(error.detector)
                await self._put_aside(intake, fresh[0], ReadingRejected("detector_failed", str(error)))
            self._suspects.detector_failed(self.ledger.messages + len(fresh))
            raise Poison(str(error)) from error
        self._pace.took(len(fresh), self._clock.monotonic() - before)
        await breathe()
        refused = sorted([*rejected, *crowded, *scored.refused], key=lambda item: item[0])
        self._count_scored(fresh, batch, scored)
        await self._publish(fresh, scored, refused, offsets, batch)
        async with alone:
            self._look_beside(scored)
        self._enter(fresh, batch, scored, refused, origins, twice)
        for observe in self._observers:
            observe(scored)
        await breathe()
        if careful:
            await self._settle(intake)

    def _look_beside(self, scored: Scored) -> None:
        """Have the shadows score what is decided and published already."""
        beside = self.scorer.beside
        beside.observe(scored)
        for detector, cause in beside.take_dropped():
            self._metrics.shadow_dropped(detector)
            log.get().warning(
                "shadow_dropped", topology=self.topology.name, detector=detector, cause=cause[:300]
            )

    def _enter(
        self,
        fresh: Sequence[Delivery],
        batch: Batch,
        scored: Scored,
        refused: Refused,
        origins: Mapping[int, Origin],
        twice: set[int],
    ) -> None:
        """Enter what became of a batch in the ledger."""
        dead = {index for index, _ in refused}
        silent = {**_silent(scored, batch, dead), **dict.fromkeys(twice, "duplicate")}
        tally = Tally(
            usable=len(fresh) - len(dead) - len(silent),
            deadlettered=Counter(error.reason for _, error in refused),
            passed_over=Counter(silent.values()),
        )
        letters = [origin.letter for i, origin in origins.items() if i not in dead | twice]
        self._replays.update(letters)
        position = StreamPosition(fresh[-1].offset, fingerprint(fresh[-1]) if self._stream else "")
        self.ledger.add(position, scored.touched, tally, messages=len(fresh), replays=letters)
        self._end_unwatched()
        self._in_hand, self._tag = 0, fresh[-1].tag

    def _origins(self, fresh: Sequence[Delivery]) -> tuple[dict[int, Origin], set[int]]:
        """Replayed dead letters by index, and which of them were processed already."""
        origins = {
            i: origin for i, delivery in enumerate(fresh) if (origin := replayed(delivery)) is not None
        }
        seen: set[str] = set()
        twice: set[int] = set()
        for i, origin in origins.items():
            if origin.letter in self._replays or origin.letter in seen:
                twice.add(i)
            seen.add(origin.letter)
        return origins, twice

    def _number(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """The messages not processed yet. Those of a queue are numbered by their place after the position."""
        number = self.position.next_offset
        if self._stream:
            self._count_lost(deliveries)
            return [delivery for delivery in deliveries if delivery.offset >= number]
        return [msgspec.structs.replace(d, offset=number + i) for i, d in enumerate(deliveries)]

    async def _admit(self, intake: Intake, batch: Batch) -> tuple[Batch, list[tuple[int, ReadingRejected]]]:
        """Have every machine of the batch in memory; messages of machines beyond the limit are refused."""
        residents, source = self.scorer.residents, self.topology.source
        missing = residents.missing(batch.machines)
        if not missing:
            await self._fetch_sisters(batch.machines)
            return batch, []
        if (over := len(residents) + len(missing) - source.resident_machines) > 0:
            await self._settle(intake)
            here = [machine for machine in batch.machines if machine not in set(missing)]
            self.scorer.evict(over + source.resident_machines // 16, residents.slots(here))
        if self.ledger.machines > len(residents):
            for group in await in_thread(self._store.fetch, missing):
                self.scorer.admit(*group)
            missing = residents.missing(missing)
        room = max(source.max_machines - self.ledger.machines, 0)
        self.scorer.admit(missing[:room], {})
        self.ledger.created(missing[:room])
        await self._fetch_sisters([machine for machine in batch.machines if not residents.missing([machine])])
        if not (refused := set(missing[room:])):
            return batch, []
        detail = f"{source.max_machines} machines are known, which is the limit (max_machines)"
        messages = dict.fromkeys(
            int(m) for m, machine in zip(batch.messages, batch.machines, strict=True) if machine in refused
        )
        kept = batch.select(~np.isin(batch.messages, list(messages)))
        return kept, [(message, ReadingRejected("too_many_machines", detail)) for message in messages]

    async def _fetch_sisters(self, machines: Sequence[str]) -> None:
        """Have those in memory from whom new machines start."""
        if absent := self.scorer.kin.absent(machines):
            for group in await in_thread(self._store.fetch, absent):
                self.scorer.admit(*group)

    async def _fetch_unwatched(self) -> None:
        """End every open alert whose machine is no longer scored by what raised it, as the topology is now."""
        feedback, watches = self.scorer.beside.feedback, self.scorer.watches
        ended = [raised for raised in feedback.open if not watches(raised.detector, raised.machine)]
        if away := self.scorer.residents.missing([raised.machine for raised in ended]):
            for group in await in_thread(self._store.fetch, away):
                self.scorer.admit(*group)
        self._end_unwatched()
        for raised in ended:
            if raised.closed is None:
                feedback.gone(raised)

    def _end_unwatched(self) -> None:
        """Enter alerts that ended because nothing watches their machines any more; they are told once committed."""
        if ended := self.scorer.take_unwatched():
            self.scorer.beside.feedback.closed(ended)
            self.ledger.touch(self.scorer.residents.slots([alert.machine for alert in ended]))

    async def _publish(
        self,
        fresh: Sequence[Delivery],
        scored: Scored,
        refused: Refused,
        offsets: NDArray[np.int64],
        batch: Batch,
    ) -> None:
        messages = [self._dead_letter(fresh[index], error) for index, error in refused]
        messages += [alert_message(alert, self.topology.sink.exchange) for alert in scored.alerts]
        if messages:
            await self._broker.publish(messages)
        if scored.alerts:
            now = self._clock.monotonic()
            came = dict(zip(offsets.tolist(), batch.messages.tolist(), strict=True))
            for alert in scored.alerts:
                self._metrics.told(alert)
                self._metrics.alert_latency.observe(now - fresh[came[alert.position.offset]].received)
                _log_alert(alert)

    def _dead_letter(self, delivery: Delivery, error: ReadingRejected) -> Message:
        identity = None if self._stream else delivery.message_id
        return dead_letter(self.topology.name, delivery, error, identity=identity)

    async def _settle(self, intake: Intake, changes: Changes | None = None) -> None:
        """Commit what is pending, with these changes; then a queue may forget it."""
        await self.ledger.commit(changes)
        await self._tell()
        await breathe()
        self._show_state()
        await breathe()
        if self._tag and not self._stream:
            tag, self._tag = self._tag, 0
            await intake.ack(tag)

    async def _put_aside(self, intake: Intake, delivery: Delivery, error: ReadingRejected) -> None:
        """A message by itself becomes a dead letter and leaves no state: what it may have left in memory is not
        committed with it."""
        await self._broker.publish([self._dead_letter(delivery, error)])
        position = StreamPosition(delivery.offset, fingerprint(delivery) if self._stream else "")
        nothing = np.zeros(0, dtype=np.int64)
        self.ledger.add(position, nothing, Tally(deadlettered=Counter([error.reason])), messages=1)
        self._in_hand, self._tag = 0, delivery.tag
        await self._settle(intake)

    @property
    def _again(self) -> bool:
        """Readings come that may have been scored before a failure."""
        return self.position.last_offset < self._floor

    async def _take_turns(self, intake: Intake) -> None:
        if self._looks:
            await self._look()
        turns = [turn for turn in self._turns if not (turn.settled and self._again)]
        self._turns = [turn for turn in self._turns if turn not in turns]
        for turn in turns:
            before = self._clock.monotonic()
            try:
                changes = turn.act()
            except CommandRefused as refused:
                turn.done.set_exception(refused)
                continue
            if changes.paused is not None:
                self.paused = changes.paused
                self._metrics.paused.set(self.paused)
            await self._settle(intake, changes)
            turn.done.set_result(self._clock.monotonic() - before)

    async def _tell(self) -> None:
        """Publish what was closed without a reading. Committed by now, it comes again after a crash, the same."""
        feedback = self.scorer.beside.feedback
        if not (alerts := feedback.untold):
            return
        await self._broker.publish([alert_message(alert, self.topology.sink.exchange) for alert in alerts])
        feedback.told()
        for alert in alerts:
            self._metrics.told(alert)
            _log_alert(alert)

    async def _first(self, intake: Intake) -> list[Delivery]:
        """The first deliveries from the position on, once the stream is proven to be the same."""
        source = self.topology.source
        return await prove(intake, self.position, most=source.max_batch, linger=source.linger)

    def _count_lost(self, deliveries: Sequence[Delivery]) -> None:
        """Retention may take messages before they are read. A stream skips one offset at the end of a segment."""
        last = self.position.last_offset
        steps = np.diff([last, *(delivery.offset for delivery in deliveries if delivery.offset > last)])
        if last >= 0 and (lost := int((steps[steps > 2] - 1).sum())):
            self._metrics.gaps.inc(lost)
            log.get().error("readings_lost", topology=self.topology.name, lost=lost, cause="retention")

    def _count_scored(self, fresh: Sequence[Delivery], batch: Batch, scored: Scored) -> None:
        now = self._clock.monotonic()
        self._metrics.decoded.inc(len(batch))
        self._metrics.batch.observe(len(scored.batch))
        for delivery in fresh:
            self._metrics.scored_latency.observe(now - delivery.received)
        for name, scores in scored.scores.items():
            self._metrics.scored(name, int(np.count_nonzero(~np.isnan(scores))))
        self._metrics.machine_days.inc(scored.machine_days)
        for _, policy in scored.dropped:
            self._metrics.dropped_readings(policy, 1)
        for detector, machine in scored.unhealthy:
            self._metrics.unhealthy(detector)
            name = self.topology.name
            log.limited(
                "detector_unhealthy", f"{name}/{detector}", topology=name, detector=detector, machine=machine
            )
        if len(scored.batch):
            self._metrics.last_reading.set(float(scored.batch.times[-1]))

    def _show_state(self) -> None:
        self._metrics.machines.set(self.ledger.machines)
        self._metrics.resident.set(len(self.scorer.residents))
        for name, count in self.scorer.open_alerts().items():
            self._metrics.open_alerts(name, count)
        for name, count in self.scorer.warming().items():
            self._metrics.warming(name, count)
        self._metrics.sick(self.scorer.sick())
        for name in self.topology.registry_models:
            shadow = self.scorer.beside.shadows.get(name)
            if shadow is None:
                self._metrics.compared(name, None, None)
            else:
                self._metrics.compared(name, shadow.lane.info.version, shadow.comparison.total)


def _fitting(deliveries: Sequence[Delivery]) -> int:
    """How many of these messages make a batch: as many as hold so many bytes, and at least one."""
    size = 0
    for count, delivery in enumerate(deliveries):
        size += len(delivery.body)
        if size > _LARGEST_BATCH and count:
            return count
    return len(deliveries)


def _silent(scored: Scored, batch: Batch, others: set[int]) -> dict[int, str]:
    """Messages of which every reading was dropped, with the policy."""
    if not scored.dropped:
        return {}
    dropped = Counter(message for message, _ in scored.dropped)
    rows = Counter(batch.messages.tolist())
    return {m: policy for m, policy in scored.dropped if dropped[m] == rows[m] and m not in others}


def _labels(info: ModelInfo) -> tuple[str, str, str, str]:
    return info.name, info.version, info.digest, info.kind


def _log_alert(alert: Alert) -> None:
    log.get().info(
        f"alert_{alert.event}",
        topology=alert.topology,
        machine=alert.machine,
        detector=alert.detector,
        type=alert.type,
        severity=alert.severity,
        score=round(alert.score, 4),
        reason=alert.reason,
    )

"""The engine: readings in, alerts out, state and position committed together.

It knows only ports: an intake to read from, a broker to publish to, a store to commit to and a clock. Any
failure ends it; the runtime then builds a new one from the store, so a lost connection and a crash are one and
the same case.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.acts import Acts
from stream.alerts import alert_message
from stream.arrivals import UNNUMBERED
from stream.backlog import LAG_INTERVAL, lag_of
from stream.brokers.base import Broker, Delivery, Intake, Message
from stream.clock import Clock
from stream.deadletters import Origin, dead_letter, replayed
from stream.errors import BrokerUnreachable, CommandRefused, ReadingRejected, Stalled
from stream.ledger import Ledger, Tally
from stream.metrics import TopologyMetrics
from stream.pace import Pace, breathe
from stream.plan import readings_queue
from stream.proof import fingerprint, prove
from stream.readings import Batch, Decoder
from stream.roster import Roster
from stream.scorer import DetectorFailed, Scored, Scorer
from stream.showing import Showing
from stream.state import Changes, Group, Saved, Store, StreamPosition
from stream.suspects import DEATHS, Name, Suspects
from stream.topology import Topology

__all__ = ["Engine", "Poison"]

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


class Poison(Exception):
    """A detector failed on a batch: run again from the store, one message at a time."""


class Engine:
    """Runs one topology from what was saved. Throw it away after any exception.

    `suspects` says which messages to take by themselves; it outlives the engine.
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
        self._unsettled = saved.died or saved.unsettled
        self._behind, self._last = 0, -1
        """Messages to come that may have been scored before the last failure, the last of them, at most, of that
        number: no swap comes before them."""
        self._broker = broker
        self._metrics = metrics
        self._clock = clock
        self._suspects = suspects
        self._observers = observers
        self._decoder = Decoder(topology.source, clock.now)
        self._pace = Pace(topology.source.max_batch)
        self.acts = Acts(scorer, self.ledger, metrics)
        self._roster = Roster(topology.source, scorer, self.ledger, store)
        self._showing = Showing(topology, scorer, self.ledger, metrics, clock)
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
        self._showing.state()

    @property
    def blocked(self) -> bool:
        """Whether the broker takes no messages for now."""
        return self._broker.blocked

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
                self._behind = rule.after + source.max_batch
                self._last = (
                    await intake.end() - 1 if self._stream else self.position.last_offset + self._behind
                )
            await self._fetch_unwatched()
            await self._settle(intake, Changes(self.position, running=True))
            self._intake = intake
            self.consuming = self.started = True
            self._metrics.consuming.set(1)
            while not stop.is_set():
                await self._take_turns(intake)
                if self.paused and not self._again:
                    await self._settle(intake)
                    await asyncio.sleep(_IDLE)
                    continue
                if not deliveries:
                    wait = min(self.ledger.wait(), _IDLE)
                    deliveries = await intake.receive(self._pace.most, source.linger, wait)
                    if not deliveries and not self._stream and self._again and not await intake.end():
                        self._behind = 0  # the queue is empty: nothing comes again
                if deliveries:
                    count = self._suspects.most(deliveries[: _fitting(deliveries[: self._pace.most])])
                    await self._batch(intake, deliveries[:count])
                    deliveries = deliveries[count:]
                if self.ledger.wait() <= 0:
                    await self._settle(intake)
            await self._settle(intake, Changes(self.position, running=False, unsettled=self._again))
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

    async def state_of(self, machines: Sequence[str]) -> list[Group]:
        """Copies of the state of those of these machines that are known, as it is between two batches."""
        looked: asyncio.Future[list[Group]] = asyncio.get_running_loop().create_future()
        self._looks.append((machines, looked))
        return await looked

    async def _batch(self, intake: Intake, deliveries: Sequence[Delivery]) -> None:
        """The way of one batch.

        1. Number the messages; drop what lies before the position: a replay, or the head of a chunk.
        2. Put aside what killed the process thrice. From here on what is at work is noted, for whoever comes after a
           death.
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
            names = self._suspects.names(fresh)
            await self._process(intake, fresh, names)
            self._suspects.done(names)
        if self._stream:
            await intake.ack(deliveries[-1].tag)

    async def _process(self, intake: Intake, fresh: list[Delivery], names: tuple[Name, ...]) -> None:
        if self._suspects.killed(fresh[0]):  # it comes by itself
            killer = ReadingRejected("killed_worker", f"the process died {DEATHS} times over it")
            await self._put_aside(intake, fresh[0], killer)
        else:
            await self._take(intake, fresh, names)

    async def _take(self, intake: Intake, fresh: list[Delivery], names: tuple[Name, ...]) -> None:
        origins, twice = self._origins(fresh)
        with self._suspects.at_work(names):
            decoded, rejected = self._decoder.decode(
                [delivery if i not in origins else origins[i].delivery for i, delivery in enumerate(fresh)]
            )
        await breathe()
        if twice:
            decoded = decoded.select(~np.isin(decoded.messages, sorted(twice)))
            rejected = [item for item in rejected if item[0] not in twice]
        batch, crowded = await self._roster.admit(decoded, lambda: self._settle(intake))
        numbers = np.array([delivery.offset for delivery in fresh], dtype=np.int64)[batch.messages]
        offsets = numbers if self._stream else np.where(batch.seqs != UNNUMBERED, batch.seqs, numbers)
        careful = self._suspects.careful
        try:
            before = self._clock.monotonic()
            with self._suspects.at_work(names):
                scored = self.scorer.process(batch, offsets, replayed=origins, careful=careful)
        except DetectorFailed as error:
            if careful and not self.ledger.messages:  # one message, row by row: it is this one
                self.scorer.beside.failed(error.detector)
                await self._put_aside(intake, fresh[0], ReadingRejected("detector_failed", str(error)))
            self._suspects.detector_failed(self.ledger.messages + len(fresh))
            raise Poison(str(error)) from error
        self._pace.took(len(fresh), self._clock.monotonic() - before)
        await breathe()
        refused = sorted([*rejected, *crowded, *scored.refused], key=lambda item: item[0])
        self._showing.scored(fresh, batch, scored)
        await self._publish(fresh, scored, refused, offsets, batch)
        with self._suspects.at_work(names):  # the shadows score what is decided and published already
            self.scorer.beside.observe(scored)
        self._showing.dropped_shadows(self.scorer.beside.take_dropped())
        self._enter(fresh, batch, scored, refused, origins, twice)
        for observe in self._observers:
            observe(scored)
        await breathe()
        if careful:
            await self._settle(intake)

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
        self._behind -= len(fresh)
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
            self._showing.lost(self.position.last_offset, [delivery.offset for delivery in deliveries])
            return [delivery for delivery in deliveries if delivery.offset >= number]
        return [msgspec.structs.replace(d, offset=number + i) for i, d in enumerate(deliveries)]

    async def _fetch_unwatched(self) -> None:
        """End every open alert whose machine is no longer scored by what raised it, as the topology is now."""
        feedback, watches = self.scorer.beside.feedback, self.scorer.watches
        ended = [raised for raised in feedback.lasting if not watches(raised.detector, raised.machine)]
        await self._roster.fetch([raised.machine for raised in ended])
        self._end_unwatched()
        for raised in ended:
            if raised.end is None:
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
            came = zip(offsets.tolist(), batch.messages.tolist(), strict=True)
            self._showing.alerted(
                scored.alerts, {offset: fresh[message].received for offset, message in came}
            )

    def _dead_letter(self, delivery: Delivery, error: ReadingRejected) -> Message:
        """A queue may bring the message again, under another number: its letter is known by what it is."""
        identity = None if self._stream else delivery.message_id or fingerprint(delivery)
        return dead_letter(self.topology.name, delivery, error, identity=identity)

    async def _settle(self, intake: Intake, changes: Changes | None = None) -> None:
        """Commit what is pending, with these changes; then a queue may forget it."""
        if changes is not None or self.ledger.messages:
            await self.ledger.commit(changes or Changes(self.position))
        await self._tell()
        await breathe()
        self._showing.state()
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
        self._behind -= 1
        self._in_hand, self._tag = 0, delivery.tag
        await self._settle(intake)

    @property
    def _again(self) -> bool:
        """Readings come that may have been scored before a failure."""
        return self._behind > 0 and self.position.last_offset < self._last

    async def _take_turns(self, intake: Intake) -> None:
        looks, self._looks = self._looks, []
        for machines, looked in looks:  # the store is used by nobody else meanwhile
            found = await self._roster.state_of(machines)
            if not looked.done():
                looked.set_result(found)
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
        self._showing.alerted(alerts, {})

    async def _first(self, intake: Intake) -> list[Delivery]:
        """The first deliveries from the position on, once the stream is proven to be the same."""
        source = self.topology.source
        return await prove(intake, self.position, most=source.max_batch, linger=source.linger)


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

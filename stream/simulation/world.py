"""The simulated world: broker, store, clock, machines and operators around the production worker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from detectors.registry import ONLINE
from stream import log
from stream.brokers.base import Delivery, Message, Queue
from stream.brokers.memory import MemoryBroker, MemoryServer
from stream.clock import Clock
from stream.deadletters import replay
from stream.errors import BrokerUnreachable, CheckpointError, CheckpointFull, MmlwError
from stream.follow_rule import Follow
from stream.gates import RollbackWhen
from stream.metrics import Metrics
from stream.plan import CONTROL_EXCHANGE, broker_plan, readings_queue
from stream.rules import AlertRule
from stream.runtimes.local import Worker
from stream.simulation.disk import Disk, SimulatedStore
from stream.simulation.full import full_topology
from stream.simulation.loop import Deadlock, VirtualLoop, run_virtually
from stream.simulation.network import SimulatedBroker
from stream.simulation.outcome import Committed, Moved, Outcome
from stream.simulation.registry import SimulatedShelf
from stream.simulation.schedule import START, Command, Fault, Op, Schedule
from stream.state import StreamPosition
from stream.topology import CheckpointRule, RegistryModel, Sensor, Source, Topology

__all__ = ["World", "run"]

_UNTIL = 600.0
"""Virtual seconds within which everything must have been processed."""
_FULL_SECONDS = 3.0
_PATIENCE = 20.0
"""Virtual seconds in which a worker must have said no to a stream that is not the one it had read."""
_DEATHS = 60
"""More of them, and nothing will come of it."""
_NAME = "sim"
_METRICS = Metrics()
"""One for all runs, for they are costly to make: differences count."""


class _Crash(BaseException):
    """The process is dead: whatever its code still tries, nothing happens."""


def _topology(plan: Schedule) -> Topology:
    source: dict[str, Any] = {"queue": "plant"} if plan.source == "queue" else {}
    plain = Topology(
        name=_NAME,
        source=Source(
            sensors=(Sensor("a"),),
            max_batch=plan.max_batch,
            linger=0.0,
            late=plan.late,
            lateness=10.0,
            resident_machines=plan.resident,
            max_machines=plan.most,
            **source,
        ),
        detectors={
            "spike": ONLINE["adaptive_z"](warmup=3, half_life=10.0),  # type: ignore[call-arg]
            "scale": RegistryModel(
                model="models:/scale@champion",
                rollback_when=RollbackWhen(within=plan.within, alerts=plan.rollback)
                if plan.rollback
                else None,
                follow=Follow(poll=plan.poll) if plan.poll else None,
            ),
        },
        alert=AlertRule(close_after=2),
        health=None,  # the auditor works out the detectors' alerts only
        checkpoint=CheckpointRule(every=plan.every, after=plan.after),
        watchdog=5.0,
        operators=("operator",),
    )
    return full_topology(plain, plan.full) if plan.full else plain


class World:
    """One simulated life; `blocking` and `touch` are where faults strike."""

    def __init__(self, plan: Schedule, loop: VirtualLoop) -> None:
        self.schedule = plan
        self.loop = loop
        self.topology = _topology(plan)
        self.server = MemoryServer(loop.time)
        self.disk = Disk()
        self.outcome = Outcome(plan, self.topology, [])
        self.dead = False
        self.champion = 1
        """The version that the registry's alias means."""
        self.looks = 0
        """How often it was told what that is, since it moved and since an engine began."""
        self._process_now: Worker | None = None
        self._faults: dict[tuple[Op, int, bool], Fault] = {(f.op, f.nth, f.after): f for f in plan.faults}
        self._times: dict[tuple[Op, bool], int] = {}
        self._rng = random.Random(plan.seed)
        self._sending = 3
        """Those who may do something yet: the machines, who replays dead letters, and who moves the alias."""
        self._counted = -1
        """The position up to which this process has committed."""
        self._since = -1
        """That of the processes before."""
        self._done = 0
        """Messages that this process has committed."""
        self._struck = asyncio.Event()
        self._unsure = False
        """This process was told that a commit failed, although it stands."""

    def offset(self, number: int) -> int:
        """The stream's offset of a message, of which the plant broker counts without gaps."""
        segment = self.schedule.segment
        return number + (number // segment if segment and number > 0 else 0)

    def number(self, offset: int) -> int:
        """The first message at or after an offset of the stream."""
        number = 0
        while self.offset(number) < offset:
            number += 1
        return number

    def place(self, delivery: Delivery) -> int:
        """Which message this is: its offset in the stream, or its number in the queue."""
        return int(str(delivery.headers["number"])) if delivery.offset < 0 else self.offset(delivery.offset)

    def outside(self, delivery: Delivery) -> Delivery:
        """A delivery as the worker sees it, with the offset that the stream would give."""
        if delivery.offset < 0:
            return msgspec.structs.replace(delivery, headers={})
        return msgspec.structs.replace(delivery, offset=self.offset(delivery.offset))

    def fail_if_dead(self) -> None:
        """A dead process does nothing."""
        if self.dead:
            raise _Crash

    def strike(self, op: Op, after: bool) -> Fault | None:
        """The fault that is due here, if any."""
        self.fail_if_dead()
        nth = self._times[op, after] = self._times.get((op, after), 0) + 1
        fault = self._faults.get((op, nth, after))
        if fault is not None:
            self._struck.set()
        if fault is not None and fault.kind in ("crash", "torn", "relapse"):
            self.disk.damaged, self.disk.fails_once = fault.kind == "torn", fault.kind == "relapse"
            self.die()
        return fault

    def die(self) -> None:
        """The process ends here and now."""
        self.dead = True
        self.outcome.crashes += 1
        if self.outcome.crashes > _DEATHS:
            self.loop.give_up()
        raise _Crash

    def committed(self, what: Committed) -> None:
        """The store holds it."""
        self.outcome.story.append(what)
        lives = self.outcome.lives
        if not lives or what.position <= (since := max(self._counted, lives[-1].start)):
            return
        start, seen = lives[-1]
        if self.schedule.source == "queue":
            self._done += min(what.position - start, len(seen)) - (since - start)
        else:
            self._done += len({offset for offset in seen if since < offset <= what.position})
        self._counted = what.position

    def answering(self, receipts: Sequence[Mapping[str, Any]]) -> None:
        """These are about to be told: what became of a command must be in the store by now."""
        saved = self.disk.saved
        known = {*saved.commands, *(line["id"] for line in saved.audit)}
        self.outcome.hasty += [r for r in receipts if r["verb"] != "status" and r["command"] not in known]

    def blocking(self, op: Op, after: bool) -> None:
        """A fault in the store."""
        if op == "commit" and not after and self.loop.now < self.disk.full_until:
            self.fail_if_dead()
            raise CheckpointFull("simulated: the disk is full")
        fault = self.strike(op, after)
        if fault is None:
            return
        self._unsure |= after
        if fault.kind == "full":
            self.disk.full_until = self.loop.now + _FULL_SECONDS
            raise CheckpointFull("simulated: the disk is full")
        if fault.kind == "fail":
            raise CheckpointError("simulated: the disk failed")

    async def touch(self, op: Op, after: bool, broker: SimulatedBroker) -> str | None:
        """A fault at the broker; the kind of one that the caller has to act out."""
        await asyncio.sleep(self._rng.choice((0.0, 0.0, 0.0005, 0.002)))
        fault = self.strike(op, after)
        if fault is None:
            return None
        if fault.kind == "disconnect":
            if op == "connect":
                return "disconnect"
            self.server.leave(broker)
            raise BrokerUnreachable("simulated: the connection was lost")
        return fault.kind

    async def live(self) -> Outcome:
        """Play the schedule to its end."""
        plan, outcome = self.schedule, self.outcome
        async with MemoryBroker(self.server, user="machine") as plant:
            await self._declare(plant)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._machines(plant))
                tasks.create_task(self._operator())
                tasks.create_task(self._replayer(plant))
                tasks.create_task(self._team())
                for at, keep in plan.retention:
                    tasks.create_task(self._forget(at, keep))
                await self._worker()
        store = SimulatedStore(self)
        self.dead = False
        self._faults.clear()
        self.disk.full_until, self.disk.damaged = -1.0, False
        outcome.saved = store.load(1_000_000)
        outcome.alerts, outcome.dead = await self._kept("mmlw.alerts"), await self._kept("mmlw.deadletters")
        if plan.stranger and outcome.saved.position.last_offset >= 0:
            outcome.took_stranger = await self._takes_stranger(plan.stranger)
        return outcome

    async def _takes_stranger(self, kind: str) -> bool:
        """Put another stream in place of the one that was read: does a worker go on in it?"""
        position = self.disk.saved.position
        self.server.delete(readings_queue(self.topology).name)
        async with MemoryBroker(self.server, user="machine") as plant:
            await self._declare(plant)
            other = Message(
                exchange="mmlw.sensors", routing_key="sensor.m0.readings", body=b"of another life"
            )
            count = self.number(position.last_offset)
            await plant.publish([other] * (count if kind == "shorter" else count + 3))
        stop = asyncio.Event()
        self.loop.call_later(_PATIENCE, stop.set)
        try:
            await self._process().run(stop)
        except CheckpointError:
            return self.disk.saved.position != position
        return True

    async def _declare(self, plant: MemoryBroker) -> None:
        if self.schedule.source == "queue":
            plan = broker_plan(msgspec.structs.replace(self.topology, source=_bound(self.topology.source)))
            queue = Queue(name="plant", kind="classic")
            bindings = [
                msgspec.structs.replace(b, queue="plant" if b.exchange == "mmlw.sensors" else b.queue)
                for b in plan.bindings
            ]
            queues = [queue, *(q for q in plan.queues if not q.name.startswith("mmlw.readings"))]
            plan = msgspec.structs.replace(plan, queues=tuple(queues), bindings=tuple(bindings))
            self.server.declare(plan, plant)
        else:
            await plant.declare(broker_plan(self.topology), mode="declare")

    async def _machines(self, plant: MemoryBroker) -> None:
        for reading in self.schedule.readings:
            await _until(self.loop, reading.at)
            key, body = f"sensor.{reading.machine}.readings", reading.body.encode()
            await self._send(plant, Message(exchange="mmlw.sensors", routing_key=key, body=body))
        self._sending -= 1

    async def _replayer(self, plant: MemoryBroker) -> None:
        """An operator sends dead letters back, as `mmlw deadletters replay` does."""
        queue = readings_queue(self.topology)
        for at in self.schedule.replays:
            await _until(self.loop, at)
            for letter in await self._kept("mmlw.deadletters"):
                if letter.headers["mmlw-reason"] != "killed_worker":
                    await self._send(plant, replay(letter, queue))
        self._sending -= 1

    async def _team(self) -> None:
        """Moves the alias, once there is a worker that knows what it meant at first."""
        for move in self.schedule.moves:
            await _until(self.loop, move.at)
            while "scale" not in self.disk.saved.models:  # noqa: ASYNC110 - seen from outside
                await asyncio.sleep(0.1)
            self.move_alias(move.version, ours=False)
            if move.told and self._process_now is not None:
                self._process_now.hint("scale", "champion")
        self._sending -= 1

    def move_alias(self, version: int, *, ours: bool) -> None:
        """Have the registry's alias mean this version."""
        if version != self.champion:
            self.champion, self.looks = version, 0
            self.outcome.moves.append(Moved(self.loop.now, version, ours))

    async def _send(self, plant: MemoryBroker, message: Message) -> None:
        number = len(self.outcome.published)
        if self.schedule.source == "queue":
            message = msgspec.structs.replace(message, headers={"number": number})
        self.outcome.published.append(
            Delivery(
                body=message.body,
                exchange=message.exchange,
                routing_key=message.routing_key,
                message_id=message.message_id,
                offset=self.offset(number),
                tag=number,
                received=self.loop.now,
            )
        )
        await plant.publish([message])

    async def _operator(self) -> None:
        """Sends commands, also in the name of strangers; what is answered tells by its correlation to which."""
        async with (
            MemoryBroker(self.server, user="operator") as broker,
            MemoryBroker(self.server, user="stranger") as other,
        ):
            queue = Queue(name="mmlw.reply.operator", kind="reply")
            intake = await broker.consume(queue, offset=None, prefetch=100)
            for number, command in enumerate(self.schedule.commands):
                await self._time_for(command)
                message = Message(
                    exchange=CONTROL_EXCHANGE,
                    routing_key=f"control.{_NAME}.{command.verb}",
                    body=command.body,
                    reply_to=queue.name,
                    correlation_id=str(number),
                )
                await (broker if command.by == "operator" else other).publish([message])
            while not self._drained():
                for delivery in await intake.receive(10, 0.0, 0.2):
                    self.outcome.replies.append(
                        (int(str(delivery.correlation_id)), json.loads(delivery.body))
                    )
                    await intake.ack(delivery.tag)

    async def _time_for(self, command: Command) -> None:
        """Its time has come, or that of whoever sees something go wrong."""
        if not self.schedule.eager:
            await _until(self.loop, command.at)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(command.at):
                await self._struck.wait()
                self._struck.clear()

    async def _forget(self, at: float, keep: int) -> None:
        await _until(self.loop, at)
        self.server.forget(readings_queue(self.topology).name, keep)

    async def _kept(self, name: str) -> list[Delivery]:
        async with MemoryBroker(self.server) as broker:
            intake = await broker.consume(Queue(name=name), offset=None, prefetch=1_000_000)
            found: list[Delivery] = []
            while more := await intake.receive(1_000_000, 0.0, 0.0):
                found += more
            return found

    async def _worker(self) -> None:
        """Start the process again and again until everything is processed, then stop it."""
        process, stops = 0, dict(self.schedule.stops)
        while True:
            self.dead = self._unsure = False
            self._done, before, self._since = 0, _totals(), self._counted
            stop = asyncio.Event()
            worker = self._process_now = self._process()
            try:
                async with asyncio.TaskGroup() as tasks:
                    watching = tasks.create_task(self._stop_when_drained(stop))
                    process += 1
                    if process in stops:
                        self.loop.call_later(stops[process], stop.set)
                    await worker.run(stop)
                    watching.cancel()
                cut_short = process in stops and self._pending()
                if self._drained() and not cut_short:
                    self._count(before)
                    return
            except* _Crash:
                pass
            except* (
                MmlwError
            ):  # a damaged checkpoint, or a failure before the first reading: the process ends
                if self.outcome.refused_damage:
                    self.disk.damaged = False  # the operator puts the good copy back
            self._count(before)
            self.dead, self._process_now = True, None
            for broker in self.server.connections:
                if isinstance(broker, SimulatedBroker):
                    self.server.leave(broker)
            await asyncio.sleep(self.schedule.down)

    def _process(self) -> Worker:
        return Worker(
            (self.topology,),
            connect=lambda: SimulatedBroker(self),
            data=Path(),
            shelf=SimulatedShelf(self),  # type: ignore[arg-type]
            metrics=_METRICS,
            clock=Clock(lambda: START + self.loop.now, self.loop.time),
            store=lambda _: SimulatedStore(self),
            wait=60.0,
        )

    def _count(self, before: Counter[str]) -> None:
        """What the metrics of this process told. Counts are conserved unless it was killed."""
        told = _totals()
        told.subtract(before)
        told = +told
        self.outcome.gaps += told.pop("offsets_lost", 0)
        if not self.dead:
            received, again = told.pop("received", 0), told.pop("to come again", 0)
            self.outcome.conserved &= received == told.total() + again
            if told.total() != self._done and not self._unsure:
                self.outcome.miscounted.append((told.total(), self._done))
            if not self._unsure:
                self.outcome.counted.append((self._since, self._counted, told))

    async def _stop_when_drained(self, stop: asyncio.Event) -> None:
        while not self._drained():  # noqa: ASYNC110 - seen from outside
            await asyncio.sleep(0.1)
        until = self.loop.now + _PATIENCE
        while self._pending() and self.loop.now < until:  # noqa: ASYNC110 - seen from outside
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        stop.set()

    def _pending(self) -> bool:
        """The worker is about to do something by itself: take a swap back, or look at the alias. A look that finds a
        move is repeated, and the one after that comes when the move was dealt with."""
        _, watched = self.disk.saved.models.get("probation:scale", (None, None))
        return bool(watched and watched["verdict"]) or (self.schedule.poll > 0 and self.looks < 3)

    def _drained(self) -> bool:
        """Every reading was processed and committed, every command answered."""
        if self._sending:
            return False
        if {number for number, _ in self.outcome.replies} != set(range(len(self.schedule.commands))):
            return False
        store = self.server.store(readings_queue(self.topology).name)
        if self.schedule.source == "queue":
            return store.idle
        position: StreamPosition = self.disk.saved.position
        return position.last_offset >= self.offset(len(self.outcome.published) - 1)


def _bound(source: Source) -> Source:
    return msgspec.structs.replace(source, queue=None)


def _totals() -> Counter[str]:
    """Counters that the auditor asks for, dead letters by reason and what was passed over by policy."""
    counters = {
        "received": _METRICS.received,
        "processed": _METRICS.processed,
        "deadlettered": _METRICS.deadlettered,
        "dropped": _METRICS.dropped,
        "offsets_lost": _METRICS.gaps,
    }
    told: Counter[str] = Counter()
    for name, counter in counters.items():
        for family in counter.collect():
            for sample in family.samples:
                label = sample.labels.get("reason") or sample.labels.get("policy")
                again = label in ("replayed", "returned")
                told["to come again" if again else f"{name} {label}" if label else name] += int(sample.value)
    return told


async def _until(loop: VirtualLoop, at: float) -> None:
    await asyncio.sleep(max(at - loop.now, 0.0))


def run(plan: Schedule) -> Outcome:
    """Live through a schedule; always the same way."""
    random.seed(plan.seed)  # the worker's pauses between restarts
    log.configure("auto", "critical")
    worlds: list[World] = []

    async def main(loop: VirtualLoop) -> Outcome:
        worlds.append(World(plan, loop))
        return await worlds[0].live()

    try:
        return run_virtually(main, until=_UNTIL)
    except Deadlock as error:
        worlds[0].outcome.stuck = str(error)
        return worlds[0].outcome

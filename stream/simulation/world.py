"""The simulated world: broker, store, clock, machines and operators around the production worker."""

from __future__ import annotations

import asyncio
import copy
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from detectors.base import Contributions, Floats, Mask, Model, Rows, Slots
from detectors.registry import ONLINE
from stream import log
from stream.brokers.base import Delivery, Intake, Message, Plan, Queue
from stream.brokers.memory import MemoryBroker, MemoryServer
from stream.clock import Clock
from stream.errors import (
    BrokerUnreachable,
    CheckpointError,
    CheckpointFull,
    MmlwError,
    ModelNotFound,
    RegistryUnreachable,
)
from stream.metrics import Metrics
from stream.models import ModelRef
from stream.rules import AlertRule
from stream.runtimes.local import Worker
from stream.simulation.loop import Deadlock, VirtualLoop, run_virtually
from stream.simulation.schedule import START, Fault, Op, Schedule
from stream.state import Changes, Group, Saved, StreamPosition
from stream.topology import (
    CONTROL_EXCHANGE,
    CheckpointRule,
    RegistryModel,
    Sensor,
    Source,
    Topology,
    broker_plan,
    readings_queue,
)

__all__ = ["Outcome", "run"]

_UNTIL = 600.0
"""Virtual seconds within which everything must have been processed."""
_FULL_SECONDS = 3.0
_NAME = "sim"
_METRICS = Metrics()
"""One for all runs, for they are costly to make: differences count."""


class _Crash(BaseException):
    """The process is dead: whatever its code still tries, nothing happens."""


@dataclass
class Outcome:
    """What was seen from outside, for the auditor."""

    schedule: Schedule
    topology: Topology
    published: list[Delivery]
    """Everything that reached the source, in order; `offset` is the stream's."""
    lives: list[tuple[int, list[int]]] = field(default_factory=list)
    """Each reading of the source: where it began (the last offset processed, -1 for none), what was delivered."""
    alerts: list[Delivery] = field(default_factory=list)
    dead: list[Delivery] = field(default_factory=list)
    replies: list[dict[str, Any]] = field(default_factory=list)
    saved: Saved = field(default_factory=Saved)
    refused_damage: bool = False
    used_damage: bool = False
    """Whether a worker refused a damaged checkpoint, and whether one went on from it."""
    gaps: float = 0
    conserved: bool = True
    stuck: str = ""
    crashes: int = 0


class _Disk:
    """What survives the process: the contents of the store."""

    def __init__(self) -> None:
        self.saved = Saved()
        self.rows: dict[str, dict[str, dict[str, Any]]] = {}
        self.seen: dict[str, int] = {}
        self.damaged = False
        self.full_until = -1.0


class _Store:
    """A `Store` on the simulated disk."""

    def __init__(self, world: _World) -> None:
        self._world = world

    def load(self, most: int) -> Saved:
        disk = self._world.disk
        self._world.blocking("load", False)
        if disk.damaged:
            self._world.outcome.refused_damage = True
            raise CheckpointError("simulated damage")
        self._world.blocking("load", True)
        saved = copy.copy(disk.saved)
        names = sorted(disk.rows, key=lambda name: -disk.seen[name])[:most]
        saved.groups, saved.stored = self.fetch(names), len(disk.rows)
        saved.models, saved.commands = dict(saved.models), dict(saved.commands)
        return saved

    def fetch(self, machines: Sequence[str]) -> list[Group]:
        disk = self._world.disk
        found = []
        for machine in machines:
            if machine in disk.rows:
                tables = disk.rows[machine].items()
                rows = {name: {k: v[np.newaxis].copy() for k, v in row.items()} for name, row in tables}
                found.append(Group([machine], rows))
        return found

    def commit(self, changes: Changes) -> int:
        world, disk = self._world, self._world.disk
        world.blocking("commit", False)
        world.outcome.used_damage |= disk.damaged
        saved = copy.copy(disk.saved)
        saved.position, saved.trying = changes.position, changes.trying
        for detector, (current, previous) in changes.models.items():
            saved.models = {**saved.models, detector: (dict(current), dict(previous) if previous else None)}
        saved.commands = {**saved.commands, **{key: dict(value) for key, value in changes.commands.items()}}
        saved.replays = saved.replays | set(changes.replays)
        if changes.paused is not None:
            saved.paused = changes.paused
        if changes.running is not None:
            saved.died = changes.running
        disk.saved = saved
        for i, machine in enumerate(changes.machines):
            disk.rows[machine] = {
                name: {key: np.array(column[i]) for key, column in rows.items()}
                for name, rows in changes.components.items()
            }
            disk.seen[machine] = changes.position.last_offset
        world.blocking("commit", True)
        return 0

    def close(self) -> None:
        return None


class _Intake:
    """The memory broker's intake, with faults; a stream skips an offset at the end of each segment."""

    def __init__(self, world: _World, broker: _Broker, inner: Intake, life: list[int] | None) -> None:
        self._world = world
        self._broker = broker
        self._inner = inner
        self._life = life
        self._silent = False

    async def receive(self, most: int, linger: float, timeout: float) -> list[Delivery]:
        if self._life is None:
            return await self._inner.receive(most, linger, timeout)
        if not self._silent:
            kind = await self._world.touch("receive", False, self._broker)
            self._silent = kind == "silent"
        if self._silent:
            await asyncio.sleep(timeout)
            self._broker.check()
            return []
        found = await self._inner.receive(most, linger, timeout)
        self._world.fail_if_dead()
        found = [self._world.outside(delivery) for delivery in found]
        self._life += [delivery.offset for delivery in found]
        if found:
            await self._world.touch("receive", True, self._broker)
        return found

    async def ack(self, tag: int) -> None:
        if self._life is not None:
            await self._world.touch("ack", False, self._broker)
        self._world.fail_if_dead()
        await self._inner.ack(tag)
        if self._life is not None:
            await self._world.touch("ack", True, self._broker)

    async def end(self) -> int:
        self._world.fail_if_dead()
        end = await self._inner.end()
        return self._world.offset(end - 1) + 1 if self._world.schedule.source == "stream" else end

    async def close(self) -> None:
        await self._inner.close()


class _Broker(MemoryBroker):
    """A connection of the worker, that fails as the schedule says."""

    def __init__(self, world: _World) -> None:
        super().__init__(world.server, user="worker")
        self._world = world

    def check(self) -> None:
        if not self.connected:
            raise BrokerUnreachable("the simulated connection was lost")

    async def __aenter__(self) -> _Broker:
        self._world.fail_if_dead()
        if await self._world.touch("connect", False, self) is not None:
            raise BrokerUnreachable("simulated: nothing answers")
        await super().__aenter__()
        return self

    async def declare(self, plan: Plan, *, mode: Literal["declare", "check"]) -> frozenset[str]:
        await self._world.touch("declare", False, self)
        missing = await super().declare(plan, mode=mode)
        await self._world.touch("declare", True, self)
        return missing

    async def consume(self, queue: Queue, *, offset: int | None, prefetch: int) -> Intake:
        world = self._world
        if queue.name != readings_queue(world.topology).name:
            world.fail_if_dead()
            return _Intake(world, self, await super().consume(queue, offset=offset, prefetch=prefetch), None)
        await world.touch("consume", False, self)
        inside = None if offset is None else world.number(offset)
        inner = await super().consume(queue, offset=inside, prefetch=prefetch)
        life: list[int] = []
        world.outcome.lives.append((-1 if offset is None else offset, life))
        await world.touch("consume", True, self)
        return _Intake(world, self, inner, life)

    async def publish(self, messages: Sequence[Message]) -> None:
        if any(not message.exchange for message in messages):  # a receipt
            self._world.fail_if_dead()
            return await super().publish(messages)
        kind = await self._world.touch("publish", False, self)
        if kind == "part":
            await super().publish(messages[: len(messages) // 2])
            self.server.leave(self)
            raise BrokerUnreachable("simulated: the connection was lost between two messages")
        await super().publish(messages)
        if await self._world.touch("publish", True, self) == "part":
            self.server.leave(self)
            raise BrokerUnreachable("simulated: the confirms were lost")
        return None


class _Scale:
    """A batch model of one number: the score is the first sensor's size times it."""

    threshold = 60.0
    sensors: tuple[str, ...] = ("a",)

    def __init__(self, factor: float) -> None:
        self._factor = factor

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        scores: Floats = np.nan_to_num(np.abs(values[:, 0])) * self._factor
        return scores

    def contributions(self, rows: Any) -> Contributions:
        return Contributions(np.zeros((len(rows), 1)), np.full((len(rows), 1), np.nan))

    def snapshot(self, slots: Slots) -> Rows:
        return {}

    def restore(self, slots: Slots, rows: Rows) -> None:
        return None


class _Shelf:
    """The registry: version n of `scale` scores n times the first sensor."""

    def __init__(self, world: _World) -> None:
        self._world = world

    def resolve(self, uri: str) -> ModelRef:
        self._world.fail_if_dead()
        version = 1 if uri.endswith("@champion") else int(uri.rpartition("/")[2])
        if version == 7:
            raise ModelNotFound("simulated: no such version")
        if version == 8:
            raise RegistryUnreachable("simulated: the registry does not answer")
        return ModelRef("scale", version, f"sha256:{version:064x}", "scale", f"models:/scale/{version}")

    def model(self, ref: ModelRef, sensors: Sequence[str]) -> Model:
        self._world.fail_if_dead()
        return _Scale(float(ref.version))


def _topology(plan: Schedule) -> Topology:
    source: dict[str, Any] = {"queue": "plant"} if plan.source == "queue" else {}
    return Topology(
        name=_NAME,
        source=Source(
            sensors=(Sensor("a"),),
            max_batch=plan.max_batch,
            linger=0.0,
            late="drop",
            lateness=10.0,
            resident_machines=plan.resident,
            **source,
        ),
        detectors={
            "spike": ONLINE["adaptive_z"](warmup=3, half_life=10.0),  # type: ignore[call-arg]
            "scale": RegistryModel(model="models:/scale@champion"),
        },
        alert=AlertRule(close_after=2),
        checkpoint=CheckpointRule(every=plan.every, after=plan.after),
        watchdog=5.0,
        operators=("operator",),
    )


class _World:
    """One simulated life; `blocking` and `touch` are where faults strike."""

    def __init__(self, plan: Schedule, loop: VirtualLoop) -> None:
        self.schedule = plan
        self.loop = loop
        self.topology = _topology(plan)
        self.server = MemoryServer(loop.time)
        self.disk = _Disk()
        self.outcome = Outcome(plan, self.topology, [])
        self.dead = False
        self._faults: dict[tuple[Op, int, bool], Fault] = {(f.op, f.nth, f.after): f for f in plan.faults}
        self._times: dict[tuple[Op, bool], int] = {}
        self._rng = random.Random(plan.seed)

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

    def outside(self, delivery: Delivery) -> Delivery:
        """A delivery with the offset that the stream would give."""
        if delivery.offset < 0:
            return delivery
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
        if fault is not None and fault.kind in ("crash", "torn"):
            self.disk.damaged = fault.kind == "torn"
            self.die()
        return fault

    def die(self) -> None:
        """The process ends here and now."""
        self.dead = True
        self.outcome.crashes += 1
        raise _Crash

    def blocking(self, op: Op, after: bool) -> None:
        """A fault in the store."""
        if op == "commit" and not after and self.loop.now < self.disk.full_until:
            self.fail_if_dead()
            raise CheckpointFull("simulated: the disk is full")
        fault = self.strike(op, after)
        if fault is None:
            return
        if fault.kind == "full":
            self.disk.full_until = self.loop.now + _FULL_SECONDS
            raise CheckpointFull("simulated: the disk is full")
        if fault.kind == "fail":
            raise CheckpointError("simulated: the disk failed")

    async def touch(self, op: Op, after: bool, broker: _Broker) -> str | None:
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
                for at, keep in plan.retention:
                    tasks.create_task(self._forget(at, keep))
                await self._worker()
        store = _Store(self)
        self.dead = False
        self._faults.clear()
        self.disk.full_until, self.disk.damaged = -1.0, False
        outcome.saved = store.load(1_000_000)
        outcome.alerts, outcome.dead = await self._kept("mmlw.alerts"), await self._kept("mmlw.deadletters")
        return outcome

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
        for number, reading in enumerate(self.schedule.readings):
            await _until(self.loop, reading.at)
            key, body = f"sensor.{reading.machine}.readings", reading.body.encode()
            message = Message(exchange="mmlw.sensors", routing_key=key, body=body)
            await plant.publish([message])
            self.outcome.published.append(
                Delivery(
                    body=body,
                    exchange=message.exchange,
                    routing_key=key,
                    offset=self.offset(number),
                    tag=number,
                    received=self.loop.now,
                )
            )

    async def _operator(self) -> None:
        async with MemoryBroker(self.server, user="operator") as broker:
            queue = Queue(name="mmlw.reply.operator", kind="reply")
            intake = await broker.consume(queue, offset=None, prefetch=100)
            for command in self.schedule.commands:
                await _until(self.loop, command.at)
                body = {"id": command.id, "model": command.model, "issued": START + command.at}
                if command.verb in ("swap", "rollback"):
                    body["detector"] = "scale"
                await broker.publish(
                    [
                        Message(
                            exchange=CONTROL_EXCHANGE,
                            routing_key=f"control.{_NAME}.{command.verb}",
                            body=json.dumps({k: v for k, v in body.items() if v is not None}).encode(),
                            reply_to=queue.name,
                            correlation_id=command.id,
                        )
                    ]
                )
            while not self._drained():
                for delivery in await intake.receive(10, 0.0, 0.2):
                    self.outcome.replies.append(json.loads(delivery.body))
                    await intake.ack(delivery.tag)

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
        while True:
            self.dead = False
            before = _totals()
            stop = asyncio.Event()
            worker = Worker(
                (self.topology,),
                connect=lambda: _Broker(self),
                data=Path(),
                shelf=_Shelf(self),  # type: ignore[arg-type]
                metrics=_METRICS,
                clock=Clock(lambda: START + self.loop.now, self.loop.time),
                store=lambda _: _Store(self),
                wait=60.0,
            )
            try:
                async with asyncio.TaskGroup() as tasks:
                    watching = tasks.create_task(self._stop_when_drained(stop))
                    await worker.run(stop)
                    watching.cancel()
                if self._drained():
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
            self.dead = True
            for broker in self.server.connections:
                if isinstance(broker, _Broker):
                    self.server.leave(broker)
            await asyncio.sleep(0.05)

    def _count(self, before: Mapping[str, float]) -> None:
        """What the metrics of this process told. Counts are conserved unless it was killed."""
        told = {name: value - before[name] for name, value in _totals().items()}
        self.outcome.gaps += told["offsets_lost"]
        if not self.dead:
            settled = sum(told[f"messages_{name}"] for name in ("processed", "deadlettered", "passed_over"))
            self.outcome.conserved &= told["messages_received"] == settled

    async def _stop_when_drained(self, stop: asyncio.Event) -> None:
        while not self._drained():  # noqa: ASYNC110 - seen from outside
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        stop.set()

    def _drained(self) -> bool:
        """Every reading was processed and committed, every command answered."""
        if len(self.outcome.published) < len(self.schedule.readings):
            return False
        answered = {reply.get("command") for reply in self.outcome.replies}
        if {command.id for command in self.schedule.commands} - answered:
            return False
        if len(self.outcome.replies) < len(self.schedule.commands):
            return False
        store = self.server.store(readings_queue(self.topology).name)
        if self.schedule.source == "queue":
            return store.idle
        position: StreamPosition = self.disk.saved.position
        return position.last_offset >= self.offset(len(self.schedule.readings) - 1)


def _bound(source: Source) -> Source:
    return msgspec.structs.replace(source, queue=None)


def _totals() -> dict[str, float]:
    """Counters that the auditor asks for, over all of their labels."""
    counters = {
        "messages_received": _METRICS.received,
        "messages_processed": _METRICS.processed,
        "messages_deadlettered": _METRICS.deadlettered,
        "messages_passed_over": _METRICS.dropped,
        "offsets_lost": _METRICS.gaps,
    }
    return {
        name: sum(sample.value for family in counter.collect() for sample in family.samples)
        for name, counter in counters.items()
    }


async def _until(loop: VirtualLoop, at: float) -> None:
    await asyncio.sleep(max(at - loop.now, 0.0))


def run(plan: Schedule) -> Outcome:
    """Live through a schedule; always the same way."""
    random.seed(plan.seed)  # the worker's pauses between restarts
    log.configure("auto", "critical")
    worlds: list[_World] = []

    async def main(loop: VirtualLoop) -> Outcome:
        worlds.append(_World(plan, loop))
        return await worlds[0].live()

    try:
        return run_virtually(main, until=_UNTIL)
    except Deadlock as error:
        worlds[0].outcome.stuck = str(error)
        return worlds[0].outcome

"""The local runtime: one asyncio process that runs topologies, each from its own checkpoint.

Whatever goes wrong while a topology runs (a lost connection, a full disk, a failing detector), the answer is
the same as to a crash: throw its engine away and build a new one from the checkpoint, after a pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from detectors.base import Detector, Model
from stream import log
from stream.alerts import ModelInfo
from stream.backlog import watch_unread
from stream.brokers.base import Broker, Message
from stream.capture import CapturingStore
from stream.checkpoint import Checkpoint
from stream.clock import SYSTEM_CLOCK, Clock
from stream.control import Control
from stream.engine import Engine, Poison
from stream.errors import (
    BrokerBlocked,
    BrokerError,
    BrokerUnreachable,
    CheckpointError,
    CheckpointFull,
    ConfigError,
    MmlwError,
    ModelError,
    ModelNotFound,
    Problem,
    RegistryUnreachable,
    Stalled,
    first_error,
)
from stream.metrics import Cause, Metrics, TopologyMetrics
from stream.models import ModelRef
from stream.plan import broker_plan, readings_queue
from stream.recipes import online_info
from stream.scorer import Scored, Scorer
from stream.shelf import Shelf, info_of
from stream.state import Changes, Saved, Store, StreamPosition
from stream.suspects import Suspects
from stream.threads import in_thread
from stream.topology import RegistryModel, Topology
from stream.trainer import Trainer
from stream.trial import build_online
from stream.verbs import ModelHistory, reference

__all__ = ["Worker", "guarantee", "steady"]

_ROOM = 5.0
"""Seconds, at the most, until a full disk is tried again."""
_BACKOFF = (0.2, 30.0)
"""Seconds before the first retry, and at the most; jittered by up to a half."""


@dataclass(slots=True)
class _Lane:
    """One topology with what lasts over restarts."""

    topology: Topology
    store: Store
    metrics: TopologyMetrics
    position: StreamPosition | None = None
    """Where the store stood when it was last read or written; None before."""
    engine: Engine | None = None
    control: Control | None = None
    suspects: Suspects | None = None
    blocked: bool = False
    """The broker took no messages, and none since."""

    @property
    def blocked_now(self) -> bool:
        """Whether the broker takes no messages: from before a failure on, or from the engine that runs."""
        return self.blocked or (self.engine is not None and self.engine.blocked)


class Worker:
    """Runs topologies until told to stop. `connect` makes a fresh broker connection each time it is called.

    `wait` seconds are given to a broker or registry that is not there yet when the worker starts. `store` opens
    where a topology's state is kept, by default a checkpoint file below `data`. A topology that captures does so
    into a folder of its name below `captures`, by default `data/capture`. `trainer`
    trains by command; without one such commands are refused.
    """

    def __init__(
        self,
        topologies: tuple[Topology, ...],
        *,
        connect: Callable[[], Broker],
        data: Path,
        shelf: Shelf | None = None,
        metrics: Metrics | None = None,
        clock: Clock = SYSTEM_CLOCK,
        observer: Callable[[str, Scored], None] | None = None,
        wait: float = 0.0,
        store: Callable[[Topology], Store] | None = None,
        captures: Path | None = None,
        trainer: Trainer | None = None,
    ) -> None:
        names = [topology.name for topology in topologies]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError([Problem("", f"two topologies are named {', '.join(twice)}")])
        for topology in topologies:
            if topology.registry_models and shelf is None:
                problem = Problem(topology.name, "has batch detectors, but no model registry was given")
                raise ConfigError([problem])
        self._topologies = topologies
        self._connect = connect
        self._store = store or partial(_checkpoint, data)
        self._captures = captures or data / "capture"
        self._shelf = shelf
        self._trainer = trainer
        self.metrics = metrics or Metrics()
        self._clock = clock
        self._observer = observer
        self._wait = wait
        self._lanes: list[_Lane] = []
        self._full: set[str] = set()
        """Topologies for whose checkpoint the disk has no room."""

    @property
    def ready(self) -> bool:
        """True while every topology reads its source (or was paused by command) and the broker takes messages."""
        return not self.problems()

    def problems(self) -> dict[str, str]:
        """Topologies that are not consuming now, or may not publish, and why: for `/readyz`."""
        lanes = {lane.topology.name: lane for lane in self._lanes}
        found = {}
        for name in (topology.name for topology in self._topologies):
            lane = lanes.get(name)
            if lane is not None and lane.blocked_now:
                found[name] = "blocked: the broker takes no messages, see `rabbitmq-diagnostics alarms`"
            elif lane is None or lane.engine is None or not lane.engine.consuming:
                full = name in self._full
                found[name] = "no room on the disk for the checkpoint" if full else "not consuming"
        return found

    def next_offset(self, topology: str) -> int:
        """The first offset that this topology has not processed; 0 before it runs."""
        engines = [lane.engine for lane in self._lanes if lane.topology.name == topology]
        return engines[0].position.next_offset if engines and engines[0] else 0

    def control(self, topology: str) -> Control | None:
        """Who takes a topology's commands, None while it starts. Raises KeyError where it does not run here."""
        running = {lane.topology.name: lane.control for lane in self._lanes}
        return {**dict.fromkeys(item.name for item in self._topologies), **running}[topology]

    def hint(self, model: str, alias: str) -> list[str]:
        """Have the topologies that follow this alias ask the registry what it means; which they are.

        One that is starting asks anyway."""
        found = [topology.name for topology in self._topologies if topology.follows(model, alias)]
        for lane in self._lanes:
            if lane.topology.name in found and lane.control is not None:
                lane.control.hint(model, alias)
        return found

    async def run(self, stop: asyncio.Event) -> None:
        """Run every topology until `stop` is set and its last batch is committed.

        Raises what keeps a topology from starting the first time (BrokerError, ModelError, CheckpointError);
        later failures are retried from the checkpoint, for ever.
        """
        try:
            for topology in self._topologies:
                metrics = self.metrics.of(topology.name, topology.scored_by)
                store = await self._opened(topology, metrics, stop)
                if store is None:
                    return
                lane = _Lane(topology, store, metrics)
                metrics.blocked.set_function(partial(getattr, lane, "blocked_now"))
                self._lanes.append(lane)
            async with asyncio.TaskGroup() as tasks:
                for lane in self._lanes:
                    tasks.create_task(self._supervise(lane, stop))
        except BaseExceptionGroup as group:
            raise first_error(group) from group
        finally:
            for lane in self._lanes:
                await _end(lane)
                lane.store.close()

    async def _supervise(self, lane: _Lane, stop: asyncio.Event) -> None:
        started = False
        deadline = self._clock.monotonic() + self._wait
        pauses = _pauses()
        while not stop.is_set():
            try:
                await self._run_once(lane, stop)
            except* (MmlwError, Poison) as group:
                error = first_error(group)
                started = started or (lane.engine is not None and lane.engine.started)
                patient = isinstance(error, (BrokerUnreachable, RegistryUnreachable))
                patient = patient and self._clock.monotonic() < deadline
                if not started and not patient and not isinstance(error, CheckpointFull):
                    raise error from None
            else:
                return
            progressed = lane.engine is not None and lane.engine.ledger.commits > 1
            if lane.engine is not None:
                lane.position = lane.engine.ledger.committed
            lane.blocked = isinstance(error, BrokerBlocked) or (
                lane.engine is not None and lane.engine.blocked
            )
            lane.engine = lane.control = None
            lane.metrics.restarted(_cause(error))
            if progressed:
                pauses = _pauses()
            pause = 0.0 if progressed and isinstance(error, Poison) else next(pauses)
            log.get().warning(
                "topology_restarting", topology=lane.topology.name, cause=str(error), pause_s=round(pause, 2)
            )
            await _wait(stop, pause)
            if isinstance(error, CheckpointFull):
                await self._until_room(lane, stop)
            if lane.blocked:
                await self._until_unblocked(lane, stop)

    async def _opened(
        self, topology: Topology, metrics: TopologyMetrics, stop: asyncio.Event
    ) -> Store | None:
        """The topology's store, which a full disk keeps from being opened; None when told to stop meanwhile."""
        try:
            store: Store | None = await in_thread(self._store, topology)
        except CheckpointFull:
            async with self._full_disk(topology, metrics, None):
                store = await self._opened_later(topology, stop)
        if store is None:
            return None
        self._tell_room(topology.name, metrics)
        return store if topology.capture is None else await self._capturing(topology, store, metrics)

    async def _opened_later(self, topology: Topology, stop: asyncio.Event) -> Store | None:
        pauses = _pauses()
        while not stop.is_set():
            await _wait(stop, next(pauses))
            with contextlib.suppress(CheckpointFull):
                return await in_thread(self._store, topology)
        return None

    async def _capturing(self, topology: Topology, store: Store, metrics: TopologyMetrics) -> Store:
        folder = self._captures / topology.name
        try:
            return await in_thread(CapturingStore, store, folder, topology, metrics, now=self._clock.now)
        except ConfigError:
            store.close()
            raise

    async def _until_room(self, lane: _Lane, stop: asyncio.Event) -> None:
        """Read nothing until the checkpoint can be written again."""
        pauses = _pauses()
        async with self._full_disk(lane.topology, lane.metrics, lane.position):
            while not stop.is_set():
                try:
                    saved = await in_thread(lane.store.load, 0)
                    await in_thread(lane.store.commit, Changes(saved.position))
                except CheckpointFull:
                    await _wait(stop, min(next(pauses), _ROOM))
                    continue
                except CheckpointError:
                    pass  # not full, but broken: the next start says how
                self._tell_room(lane.topology.name, lane.metrics)
                return

    async def _until_unblocked(self, lane: _Lane, stop: asyncio.Event) -> None:
        """Read nothing until the broker takes a message: what would come of a reading could not be sent."""
        pauses = _pauses()
        probe = Message(exchange="", routing_key=f"mmlw.probe.{uuid.uuid4().hex}", body=b"")
        async with self._unread(lane.topology, lane.metrics, lane.position):
            while not stop.is_set() and lane.blocked:
                try:
                    async with self._connect() as broker:
                        await broker.publish([probe] * 2)  # RabbitMQ takes the first one even then
                except BrokerBlocked:
                    await _wait(stop, min(next(pauses), _ROOM))
                    continue
                except BrokerError:
                    pass  # no queue takes it, so it was heard; of another trouble the next start tells
                lane.blocked = False

    @contextlib.asynccontextmanager
    async def _full_disk(
        self, topology: Topology, metrics: TopologyMetrics, position: StreamPosition | None
    ) -> AsyncIterator[None]:
        """While this lasts the disk is full, and nothing is read from `position` on: told, with the lag."""
        if topology.name not in self._full:
            self._full.add(topology.name)
            metrics.checkpoint_full.set(1)
            log.get().error("disk_full", topology=topology.name, detail="reading waits until there is room")
        async with self._unread(topology, metrics, position):
            yield

    @contextlib.asynccontextmanager
    async def _unread(
        self, topology: Topology, metrics: TopologyMetrics, position: StreamPosition | None
    ) -> AsyncIterator[None]:
        """While this lasts nothing is read from `position` on; the lag is told."""
        async with asyncio.TaskGroup() as tasks:
            queue = readings_queue(topology)
            watching = tasks.create_task(watch_unread(self._connect, queue, position, metrics))
            try:
                yield
            finally:
                watching.cancel()

    def _tell_room(self, name: str, metrics: TopologyMetrics) -> None:
        self._full.discard(name)
        metrics.checkpoint_full.set(0)

    async def _run_once(self, lane: _Lane, stop: asyncio.Event) -> None:
        topology = lane.topology
        saved = await in_thread(lane.store.load, topology.source.resident_machines)
        lane.position = saved.position
        if lane.suspects is None:
            most = topology.checkpoint.after + 2 * topology.source.max_batch
            stream = topology.source.queue is None
            lane.suspects = Suspects(saved.note, lane.store.note, stream=stream, window=most)
        built, history = await self._models(lane, saved)
        if saved.forgotten:
            log.get().warning("state_forgotten", topology=topology.name, tables=saved.forgotten)
        observe = self._observer
        async with self._connect() as broker:
            made = await broker.declare(
                broker_plan(topology), mode="declare" if topology.declare else "check"
            )
            if readings_queue(topology).name in made:
                lane.suspects.forget()
                if saved.position.last_offset >= 0:
                    await self._begin_anew(lane, saved)
            scorer = Scorer(topology, built)
            await self._shadows(lane, saved, scorer)
            del built  # a model that a swap replaces is held by nobody
            watchers: list[Callable[[Scored], None]] = [partial(observe, topology.name)] if observe else []
            if isinstance(lane.store, CapturingStore):
                watchers.append(lane.store.add)
            engine = await in_thread(  # a hundred thousand machines take their time
                Engine,
                topology,
                scorer,
                saved,
                broker=broker,
                store=lane.store,
                metrics=lane.metrics,
                clock=self._clock,
                observers=watchers,
                suspects=lane.suspects,
            )
            control = Control(
                topology,
                engine,
                broker=broker,
                shelf=self._shelf,
                models=history,
                saved=saved,
                metrics=lane.metrics,
                clock=self._clock,
                trainer=self._trainer,
            )
            lane.engine, lane.control = engine, control
            log.get().info(
                "topology_started",
                topology=topology.name,
                detectors=list(topology.detectors),
                alert=topology.alert_summary,
                next_offset=saved.position.next_offset,
                machines=saved.stored,
                after_a_failure=saved.died,
                guarantee=guarantee(topology),
            )
            async with asyncio.TaskGroup() as tasks:
                beside = [tasks.create_task(control.run()), tasks.create_task(engine.watch())]
                await engine.run(stop)
                for task in beside:
                    task.cancel()
        log.get().info("topology_stopped", topology=topology.name, next_offset=engine.position.next_offset)

    async def _begin_anew(self, lane: _Lane, saved: Saved) -> None:
        """Our stream was gone, with what it held unread, and was made anew: go on from its beginning."""
        log.get().error(
            "stream_replaced", topology=lane.topology.name, last_offset=saved.position.last_offset
        )
        lane.metrics.replaced.inc()
        saved.position = StreamPosition()
        await in_thread(lane.store.commit, Changes(saved.position))

    async def _models(
        self, lane: _Lane, saved: Saved
    ) -> tuple[Mapping[str, tuple[Model, ModelInfo]], dict[str, ModelHistory]]:
        """Build every detector's model; registry models as pinned in the checkpoint, or resolved now."""
        topology, shelf = lane.topology, self._shelf
        online = build_online(topology)
        built: dict[str, tuple[Model, ModelInfo]] = {}
        history: dict[str, ModelHistory] = {}
        for name, spec in topology.detectors.items():
            inputs = topology.inputs(name)
            if isinstance(spec, Detector):
                built[name] = (online[name], online_info(spec))
                continue
            assert shelf is not None  # noqa: S101 - checked when the worker was made
            try:
                history[name] = await self._pinned(lane, saved, name, spec, shelf)
                ref = history[name].current
                built[name] = (await asyncio.to_thread(shelf.model, ref, inputs), info_of(ref))
            except ModelError as error:
                hint = ""
                if isinstance(error, ModelNotFound):
                    hint = ". Train it first (mmlw train FILE), or name the registry that has it (--registry)"
                place = f"{topology.name}: detectors.{name} ({spec.model})"
                raise type(error)(f"{place}: {error}{hint}") from error
        return built, history

    async def _shadows(self, lane: _Lane, saved: Saved, scorer: Scorer) -> None:
        """Have the shadows run on that ran before; one that cannot be loaded is dropped."""
        for name, (kept, compared) in scorer.beside.restore(saved.models).items():
            assert self._shelf is not None  # noqa: S101 - checked when the worker was made
            plain = {key: value for key, value in kept.items() if key != "identity"}
            ref = _ref(plain)
            try:
                model = await asyncio.to_thread(self._shelf.model, ref, lane.topology.inputs(name))
            except Exception as error:  # whatever a shadow brings up does not keep its champion from running
                scorer.beside.end(name)
                lane.metrics.shadow_dropped(name)
                cause = str(error) or repr(error)
                log.get().warning("shadow_dropped", topology=lane.topology.name, detector=name, cause=cause)
                continue
            identity = kept["identity"]
            settings = {"reference": plain, "identity": identity, "saved": compared}
            scorer.shadow(name, model, info_of(ref), **settings)

    async def _pinned(
        self, lane: _Lane, saved: Saved, name: str, spec: RegistryModel, shelf: Shelf
    ) -> ModelHistory:
        """The version in the checkpoint, unless the topology names another address since; else resolved now."""
        past = saved.models.get(name)
        if past is not None and past[0]["declared"] == spec.model:
            return ModelHistory(_ref(past[0]), _ref(past[1]) if past[1] else None)
        ref = await asyncio.to_thread(shelf.resolve, spec.model)
        changes = Changes(saved.position, models={name: (reference(ref, spec.model), None)})
        await in_thread(lane.store.commit, changes)
        return ModelHistory(ref)


def _ref(data: Mapping[str, object]) -> ModelRef:
    return msgspec.convert({key: value for key, value in data.items() if key != "declared"}, ModelRef)


def steady() -> None:
    """Prepare a process that will run for long: call it once, when everything is imported.

    What start-up made is never garbage, so collections need not look through it again (they would stop the event
    loop for a tenth of a second); and a thread that writes a checkpoint hands over to the loop sooner.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(0.001)


def guarantee(topology: Topology) -> str:
    """What holds for this topology's readings, and why."""
    source = topology.source
    if source.queue is None:
        return "exactly once: a stream of our own, its position and the state in one checkpoint"
    if source.duplicate == "accept":
        return "at least once: what the queue brings again is processed again (duplicate: accept)"
    told = "rising times" if source.order_by == "time" else "a sequence number"
    once = (
        f"exactly once for machines that send {told}, at least once for others: acknowledged after the commit"
    )
    if source.duplicate == "deadletter":
        once += ", and what comes again is a dead letter though it was processed (duplicate: deadletter)"
    if source.exclusive:
        return f"{once}, one reader (a quorum queue keeps others out only by x-single-active-consumer)"
    return f"at least once: others may read the queue too; {once} if it has x-single-active-consumer"


async def _end(lane: _Lane) -> None:
    """Leave word that the process ended in order: the next start must not take it for a death.

    Its engine did not: what it had scored and not committed comes again."""
    try:
        saved = await in_thread(lane.store.load, 0)
        if saved.died:
            ended = Changes(saved.position, running=False, unsettled=True)
            await in_thread(lane.store.commit, ended)
    except CheckpointError as error:
        log.get().warning("end_not_written", topology=lane.topology.name, cause=str(error))


def _checkpoint(data: Path, topology: Topology) -> Store:
    return Checkpoint(data / f"{topology.name}.checkpoint", topology.name, Scorer.recipes(topology))


def _cause(error: BaseException) -> Cause:
    if isinstance(error, Stalled):
        return "stalled"
    if isinstance(error, BrokerError):
        return "broker"
    if isinstance(error, CheckpointError):
        return "checkpoint"
    return "registry" if isinstance(error, ModelError) else "detector"


def _pauses() -> Iterator[float]:
    pause = _BACKOFF[0]
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(pause * 2, _BACKOFF[1])


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return

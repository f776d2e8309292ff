"""The local runtime: one asyncio process that runs topologies, each from its own checkpoint.

Whatever goes wrong while a topology runs (a lost connection, a full disk, a failing detector), the answer is
the same as to a crash: throw its engine away and build a new one from the checkpoint, after a pause.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from detectors.base import Detector, Model
from stream import log
from stream.alerts import ModelInfo
from stream.brokers.base import Broker
from stream.checkpoint import Changes, Checkpoint, Saved
from stream.control import Control, ModelHistory, reference
from stream.engine import Clock, Engine, Poison
from stream.errors import (
    BrokerError,
    BrokerUnreachable,
    CheckpointError,
    ConfigError,
    MmlwError,
    ModelError,
    Problem,
    RegistryUnreachable,
)
from stream.metrics import Metrics, TopologyMetrics
from stream.models import ModelRef
from stream.scorer import Scored, Scorer, online_info
from stream.shelf import Shelf, info_of
from stream.topology import RegistryModel, Topology, broker_plan

__all__ = ["SYSTEM_CLOCK", "Worker", "first_error"]

SYSTEM_CLOCK = Clock(time.time, time.monotonic)
_BACKOFF = (0.2, 30.0)
"""Seconds before the first retry, and at the most; jittered by up to a half."""


@dataclass(slots=True)
class _Lane:
    """One topology with what lasts over restarts."""

    topology: Topology
    checkpoint: Checkpoint
    metrics: TopologyMetrics
    engine: Engine | None = None
    single: bool = False


class Worker:
    """Runs topologies until told to stop. `connect` makes a fresh broker connection each time it is called.

    `wait` seconds are given to a broker or registry that is not there yet when the worker starts.
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
        self._data = data
        self._shelf = shelf
        self.metrics = metrics or Metrics()
        self._clock = clock
        self._observer = observer
        self._wait = wait
        self._lanes: list[_Lane] = []

    @property
    def ready(self) -> bool:
        """True while every topology reads its source (or was paused by command)."""
        return bool(self._lanes) and all(
            lane.engine is not None and lane.engine.consuming for lane in self._lanes
        )

    def problems(self) -> dict[str, str]:
        """Topologies that are not consuming now, for `/readyz`."""
        return {
            lane.topology.name: "not consuming"
            for lane in self._lanes
            if lane.engine is None or not lane.engine.consuming
        }

    def next_offset(self, topology: str) -> int:
        """The first offset that this topology has not processed; 0 before it runs."""
        engines = [lane.engine for lane in self._lanes if lane.topology.name == topology]
        return engines[0].position.next_offset if engines and engines[0] else 0

    async def run(self, stop: asyncio.Event) -> None:
        """Run every topology until `stop` is set and its last batch is committed.

        Raises what keeps a topology from starting the first time (BrokerError, ModelError, CheckpointError);
        later failures are retried from the checkpoint, for ever.
        """
        try:
            for topology in self._topologies:
                metrics = self.metrics.of(topology.name, topology.detectors)
                path = self._data / f"{topology.name}.checkpoint"
                checkpoint = Checkpoint(path, topology.name, Scorer.recipes(topology))
                self._lanes.append(_Lane(topology, checkpoint, metrics))
            async with asyncio.TaskGroup() as tasks:
                for lane in self._lanes:
                    tasks.create_task(self._supervise(lane, stop))
        except BaseExceptionGroup as group:
            raise first_error(group) from group
        finally:
            for lane in self._lanes:
                lane.checkpoint.close()

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
                if not started and not (patient and self._clock.monotonic() < deadline):
                    raise error from None
            else:
                return
            progressed = lane.engine is not None and lane.engine.batches > 0
            first = isinstance(error, Poison) and not lane.single
            lane.engine, lane.single = None, isinstance(error, Poison)
            lane.metrics.restarted(_cause(error))
            if progressed:
                pauses = _pauses()
            pause = 0.0 if first else next(pauses)
            log.get().warning(
                "topology_restarting", topology=lane.topology.name, cause=str(error), pause_s=round(pause, 2)
            )
            await _wait(stop, pause)

    async def _run_once(self, lane: _Lane, stop: asyncio.Event) -> None:
        topology = lane.topology
        saved = await asyncio.to_thread(lane.checkpoint.load)
        built, history = await self._models(lane, saved)
        if saved.forgotten:
            log.get().warning("state_forgotten", topology=topology.name, tables=saved.forgotten)
        observe = self._observer
        async with self._connect() as broker:
            await broker.declare(broker_plan(topology), mode="declare" if topology.declare else "check")
            engine = Engine(
                topology,
                Scorer(topology, built),
                saved,
                broker=broker,
                checkpoint=lane.checkpoint,
                metrics=lane.metrics,
                clock=self._clock,
                observer=(lambda scored: observe(topology.name, scored)) if observe else None,
                single=lane.single,
            )
            control = Control(
                topology,
                engine,
                broker=broker,
                shelf=self._shelf,
                models=history,
                receipts=saved.commands,
                metrics=lane.metrics,
                clock=self._clock,
            )
            lane.engine = engine
            log.get().info(
                "topology_started",
                topology=topology.name,
                detectors=list(topology.detectors),
                next_offset=saved.position.next_offset,
                machines=len(saved.machines),
                guarantee="exactly once: stream input, state and position in one checkpoint",
            )
            async with asyncio.TaskGroup() as tasks:
                beside = [tasks.create_task(control.run()), tasks.create_task(engine.watch_lag())]
                await engine.run(stop)
                for task in beside:
                    task.cancel()
        log.get().info("topology_stopped", topology=topology.name, next_offset=engine.position.next_offset)

    async def _models(
        self, lane: _Lane, saved: Saved
    ) -> tuple[Mapping[str, tuple[Model, ModelInfo]], dict[str, ModelHistory]]:
        """Build every detector's model; registry models as pinned in the checkpoint, or resolved now."""
        topology, shelf = lane.topology, self._shelf
        sensors = topology.source.names
        built: dict[str, tuple[Model, ModelInfo]] = {}
        history: dict[str, ModelHistory] = {}
        for name, spec in topology.detectors.items():
            if isinstance(spec, Detector):
                built[name] = (spec.build(sensors), online_info(spec))
                continue
            assert shelf is not None  # noqa: S101 - checked when the worker was made
            try:
                history[name] = await self._pinned(lane, saved, name, spec, shelf)
                ref = history[name].current
                built[name] = (await asyncio.to_thread(shelf.model, ref, sensors), info_of(ref))
            except ModelError as error:
                raise type(error)(f"{topology.name}: detectors.{name} ({spec.model}): {error}") from error
        return built, history

    async def _pinned(
        self, lane: _Lane, saved: Saved, name: str, spec: RegistryModel, shelf: Shelf
    ) -> ModelHistory:
        """The version in the checkpoint, unless the topology names another address since; else resolved now."""
        past = saved.models.get(name)
        if past is not None and past[0]["declared"] == spec.model:
            return ModelHistory(_ref(past[0]), _ref(past[1]) if past[1] else None)
        ref = await asyncio.to_thread(shelf.resolve, spec.model)
        changes = Changes(saved.position, models={name: (reference(ref, spec.model), None)})
        await asyncio.to_thread(lane.checkpoint.commit, changes)
        return ModelHistory(ref)


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first exception in a group, however deep; a task group wraps even a single one."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _ref(data: Mapping[str, object]) -> ModelRef:
    return msgspec.convert({key: value for key, value in data.items() if key != "declared"}, ModelRef)


def _cause(error: BaseException) -> str:
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

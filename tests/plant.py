"""A plant in a test tube: a memory server, machines, a worker that can be stopped, crashed and asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detectors import AdaptiveZ
from detectors.base import Contributions, Floats, Mask, Model, Rows, Slots
from stream.alerts import Alert
from stream.brokers.base import Broker, Delivery, Message, Queue
from stream.brokers.memory import MemoryBroker, MemoryServer
from stream.control import request
from stream.errors import ModelNotFound, ModelRejected
from stream.metrics import Metrics
from stream.models import ModelRef, ModelVersion
from stream.plan import broker_plan
from stream.rules import AlertRule
from stream.runtimes.local import Worker
from stream.scorer import Scored
from stream.topology import CheckpointRule, RegistryModel, Sensor, Source, Topology

__all__ = ["Plant", "Scale", "ScaleShelf", "readings", "topology"]

START = 1_722_988_800.0


def topology(
    *, batch_model: bool = False, max_batch: int = 64, every: float = 0.2, **source: Any
) -> Topology:
    """Two sensors, an online detector, and a batch detector if asked for; a commit `every` so many seconds."""
    detectors: dict[str, Any] = {"spike": AdaptiveZ(warmup=10, half_life=50)}
    if batch_model:
        detectors["scale"] = RegistryModel(model="models:/scale@champion")
    return Topology(
        name="plant",
        source=Source(sensors=(Sensor("a"), Sensor("b")), max_batch=max_batch, linger=0.0, **source),
        detectors=detectors,
        alert=AlertRule(close_after=2),
        checkpoint=CheckpointRule(every=every),
    )


def readings(n: int, *, machines: int = 3, seed: int = 0, bad_every: int = 0) -> list[Message]:
    """Messages of several machines with a spike now and then; every `bad_every`-th cannot be used."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        machine = f"m{rng.integers(machines)}"
        values = rng.normal(size=2) + (30.0 * (rng.random() < 0.02))
        body = json.dumps(
            {"machine": machine, "time": START + i, "values": {"a": values[0], "b": values[1]}}
        ).encode()
        if bad_every and i % bad_every == bad_every - 1:
            body = b"{broken"
        found.append(Message(exchange="mmlw.sensors", routing_key=f"sensor.{machine}.readings", body=body))
    return found


class Scale:
    """A batch model of one number: the score is the first sensor's size times it."""

    threshold = 10.0

    def __init__(self, factor: float, sensors: tuple[str, ...] = ("a", "b")) -> None:
        self.factor = factor
        self.sensors = sensors

    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        scores: Floats = np.nan_to_num(np.abs(values[:, 0])) * self.factor
        return scores

    def contributions(self, rows: Any) -> Contributions:
        return Contributions(np.zeros((len(rows), 2)), np.full((len(rows), 2), np.nan))

    def snapshot(self, slots: Slots) -> Rows:
        return {}

    def restore(self, slots: Slots, rows: Rows) -> None:
        return None


@dataclass
class ScaleShelf:
    """Stands in for the shelf of registry models: version n of `scale` scores n times the first sensor."""

    alias: int = 1
    loaded: list[int] = field(default_factory=list)

    def resolve(self, uri: str) -> ModelRef:
        version = (
            self.alias
            if uri.endswith("@champion")
            else int(uri.rpartition("/")[2])
            if "/scale/" in uri
            else 0
        )
        if not 0 < version < 90:
            raise ModelNotFound(f"{uri}: no such version")
        name = "other" if version == 80 else "scale"
        return ModelRef(name, version, f"sha256:{version:064x}", "scale", f"models:/scale/{version}")

    def meaning(self, name: str, alias: str) -> ModelVersion:
        ref = self.resolve(f"models:/{name}@{alias}")
        return ModelVersion(ref.version, (alias,), 0.0, "", {}, ref)

    def point(self, ref: ModelRef, alias: str) -> None:
        if alias == "champion":
            self.alias = ref.version

    def model(self, ref: ModelRef, sensors: Sequence[str]) -> Model:
        if ref.version == 66:
            raise ZeroDivisionError("ZeroDivisionError: sabotage")
        if ref.version == 70:
            raise ModelRejected("its sensors differ")
        self.loaded.append(ref.version)
        return Scale(float(ref.version))


@dataclass
class Plant:
    """The parts of a test; `connect` may be replaced by a broker that fails on purpose."""

    data: Path
    topology: Topology
    server: MemoryServer = field(default_factory=MemoryServer)
    shelf: Any = None
    metrics: Metrics = field(default_factory=Metrics)
    scored: list[Scored] = field(default_factory=list)
    connect: Callable[[], Broker] | None = None

    async def declare(self) -> None:
        """Make what the topology needs, so that machines can publish before a worker runs."""
        async with MemoryBroker(self.server) as broker:
            await broker.declare(broker_plan(self.topology), mode="declare")

    async def publish(self, messages: Sequence[Message]) -> None:
        async with MemoryBroker(self.server, user="machine") as broker:
            await broker.publish(messages)

    def worker(self) -> Worker:
        return Worker(
            (self.topology,),
            connect=self.connect or (lambda: MemoryBroker(self.server, user="worker")),
            data=self.data,
            shelf=self.shelf,
            metrics=self.metrics,
            observer=lambda _, scored: self.scored.append(scored),
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Worker]:
        """A worker that is reading; stopped gracefully at the end."""
        worker, stop = self.worker(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(worker.run(stop))
            while not worker.ready and not task.done():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            try:
                yield worker
            finally:
                stop.set()

    async def process(self, until: int) -> None:
        """Run a worker until it has processed every offset below `until`."""
        async with self.running() as worker:
            await self.reached(worker, until)

    async def reached(self, worker: Worker, until: int) -> None:
        while worker.next_offset(self.topology.name) < until:  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    async def ask(self, verb: str, *, user: str = "operator", **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its receipt."""
        async with MemoryBroker(self.server, user=user) as broker:
            return await request(broker, self.topology.name, verb, user=user, timeout=10, **arguments)

    async def kept(self, queue: str) -> list[Delivery]:
        """All that a stream holds."""
        async with MemoryBroker(self.server) as broker:
            intake = await broker.consume(Queue(name=queue), offset=None, prefetch=1_000_000)
            found: list[Delivery] = []
            while more := await intake.receive(10_000, 0.0, 0.0):
                found += more
            return found

    async def alerts(self) -> list[Alert]:
        """The alerts published, in order, each event once (deduplicated by its id)."""
        import msgspec

        seen: dict[str, Alert] = {}
        for delivery in await self.kept("mmlw.alerts"):
            assert delivery.message_id is not None
            seen.setdefault(delivery.message_id, msgspec.json.decode(delivery.body, type=Alert))
        return list(seen.values())

    def value(self, name: str, **labels: str) -> float:
        """A metric's value now."""
        found = self.metrics.registry.get_sample_value(name, {"topology": self.topology.name, **labels})
        assert found is not None, f"{name}{labels} does not exist"
        return found

"""A worker in this process that reads somebody else's queue on RabbitMQ, and what is audited of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aio_pika

from stream.brokers.rabbitmq import RabbitBroker
from stream.checkpoint import Checkpoint
from stream.metrics import Metrics
from stream.runtimes.local import Worker
from stream.scorer import Scorer
from stream.topology import Topology
from tests.plant import ScaleShelf
from tests.torture.audit import Evidence, state_of
from tests.torture.hall import QUEUE, Mode, Sent, last, readings, topology
from tests.torture.life import Orders, begin
from tests.torture.points import Point
from tests.torture.sitting import await_true, prepared_broker, publish, stream_content

__all__ = ["Queueing", "some_readings"]


def some_readings(n: int) -> list[Sent]:
    seed = secrets.randbelow(1_000_000)
    print(f"seed {seed}")
    return [*itertools.islice(readings(seed), n), last()]


@dataclass
class Queueing:
    """A worker in this process that reads a queue on a virtual host of its own."""

    url: str
    data: Path
    topology: Topology
    metrics: Metrics = field(default_factory=Metrics)
    through: str | None = None
    """The worker's own address of the broker, where that is another one: it then gives up after two seconds."""

    async def prepare(self, mode: Mode, sent: Sequence[Sent] = ()) -> None:
        await prepared_broker(self.url, topology(mode), mode)
        await self.send(sent)

    async def send(self, sent: Sequence[Sent]) -> None:
        async with await aio_pika.connect(self.url) as connection:
            await publish(await connection.channel(), sent)

    def worker(self) -> Worker:
        shelf: Any = ScaleShelf(alias=2)
        return Worker(
            (self.topology,),
            connect=self.connect,
            data=self.data,
            shelf=shelf,
            metrics=self.metrics,
        )

    def connect(self) -> RabbitBroker:
        if self.through is None:
            return RabbitBroker(self.url)
        return RabbitBroker(self.through, timeout=2.0, heartbeat=2)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Worker]:
        worker, stop = self.worker(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(worker.run(stop))

            async def ready() -> bool:
                return worker.ready or task.done()

            await await_true(ready, 30.0)
            try:
                yield worker
            finally:
                stop.set()

    async def counted(self, name: str, value: float, **labels: str) -> None:
        """Wait until a counter has this value."""

        async def reached() -> bool:
            return self.total(name, **labels) == value

        try:
            await await_true(reached, 40.0)
        except TimeoutError:
            raise AssertionError(f"{name} is {self.total(name, **labels)}, not {value}") from None

    def total(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that bear these labels."""
        samples = (s for family in self.metrics.registry.collect() for s in family.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    async def left(self, count: int) -> None:
        """Wait until so many messages are ready in the queue; a quorum queue counts late."""
        found = -1
        async with await aio_pika.connect(self.url) as connection:
            channel = await connection.channel()

            async def there() -> bool:
                nonlocal found
                queue = await channel.declare_queue(QUEUE, durable=True, passive=True)
                found = queue.declaration_result.message_count or 0
                return found == count

            try:
                await await_true(there, 20.0)
            except TimeoutError:
                raise AssertionError(f"{found} messages are left, not {count}") from None

    async def killed(self, point: Point, passage: int) -> int:
        """A worker of a process of its own dies there; how many messages it had committed."""
        process, hears = begin(Orders(self.url, self.data, self.topology, point, passage, after=1))
        with contextlib.closing(hears):
            await asyncio.to_thread(process.join, 40.0)
            assert process.exitcode == -9, (self.data / "log").read_text()[-3000:]
        return self.position

    @property
    def position(self) -> int:
        """Messages committed."""
        path = self.data / f"{self.topology.name}.checkpoint"
        checkpoint = Checkpoint(path, self.topology.name, Scorer.recipes(self.topology))
        try:
            return checkpoint.load().position.next_offset
        finally:
            checkpoint.close()

    async def evidence(self) -> Evidence:
        state, learned, _ = state_of(self.topology, self.data)
        kept = [await stream_content(self.url, name) for name in ("mmlw.alerts", "mmlw.deadletters")]
        return Evidence(kept[0], kept[1], state, learned)

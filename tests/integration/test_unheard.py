"""Messages that RabbitMQ sent and the worker never heard: no count of the queue shows them, and none is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aio_pika
import msgspec
import pytest
from structlog.testing import capture_logs

from deploy.rabbitmq.definitions import build
from stream.brokers.base import Message
from stream.brokers.rabbitmq import RabbitBroker
from stream.metrics import Metrics
from stream.plan import broker_plan, readings_queue
from stream.runtimes.local import Worker
from stream.topology import Topology
from tests.aio import run
from tests.plant import readings, topology
from tests.rabbitmq_node import RabbitNode
from tests.tcp_proxy import TcpProxy, tcp_proxy

SOURCES: tuple[Literal["classic", "quorum"], ...] = ("classic", "quorum")
DEAF = float("inf")


@dataclass
class Hall:
    """A worker behind a proxy that can lose deliveries; machines publish past it."""

    url: str
    proxy: TcpProxy
    data: Path
    topology: Topology
    user: str = "guest"
    metrics: Metrics = field(default_factory=Metrics)

    async def send(self, messages: Sequence[Message]) -> None:
        async with await aio_pika.connect(self.url) as connection:
            channel = await connection.channel()
            for message in messages:
                body = aio_pika.Message(message.body, delivery_mode=2)
                await channel.default_exchange.publish(body, readings_queue(self.topology).name)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Worker]:
        vhost = self.url.rpartition("/")[2]
        address = f"amqp://{self.user}:{self.user}@127.0.0.1:{self.proxy.port}/{vhost}"
        stop = asyncio.Event()
        worker = Worker(
            (self.topology,), connect=lambda: RabbitBroker(address), data=self.data, metrics=self.metrics
        )
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(worker.run(stop))
            await until(lambda: worker.ready or task.done())
            yield worker
            stop.set()

    def total(self, name: str, **labels: str) -> float:
        samples = (s for family in self.metrics.registry.collect() for s in family.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    async def processed(self, count: int) -> None:
        await until(lambda: self.total("mmlw_messages_processed_total") >= count)
        assert self.total("mmlw_messages_processed_total") == count


async def until(condition: Callable[[], bool], within: float = 240.0) -> None:
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def hall(
    node: RabbitNode, url: str, data: Path, kind: str, *, user: str = "guest", watchdog: float = 1.0
) -> AsyncIterator[Hall]:
    """With its source declared: a queue of this kind, or a stream of the topology's own."""
    source: dict[str, Any] = {} if kind == "stream" else {"queue": "press", "order_by": "time"}
    plan = msgspec.structs.replace(topology(**source), watchdog=watchdog)
    async with tcp_proxy(node.port, amqp=True) as proxy:
        async with await aio_pika.connect(url) as connection:
            if kind != "stream":
                arguments: Any = {"x-queue-type": "quorum"} if kind == "quorum" else None
                await (await connection.channel()).declare_queue("press", durable=True, arguments=arguments)
        async with RabbitBroker(url) as broker:
            await broker.declare(broker_plan(plan), mode="declare")
        yield Hall(url, proxy, data, plan, user)


@pytest.mark.parametrize("kind", SOURCES)
def test_watchdog_restarts_a_consumer_that_is_deaf_to_what_it_was_sent(
    rabbitmq: RabbitNode, rabbit_url: str, tmp_path: Path, kind: str
) -> None:
    said = readings(100)

    async def story() -> None:
        async with hall(rabbitmq, rabbit_url, tmp_path, kind) as at, at.running():
            await at.send(said[:60])
            await at.processed(60)
            at.proxy.losing = DEAF
            await at.send(said[60:])
            await until(lambda: at.total("mmlw_restarts_total", cause="stalled") == 1)
            at.proxy.losing = 0
            await at.processed(100)
            assert at.total("mmlw_messages_passed_over_total", policy="duplicate") == 0

    run(story())


@pytest.mark.parametrize("kind", [*SOURCES, "stream"])
def test_nothing_is_processed_behind_a_message_that_was_lost_on_the_way(
    rabbitmq: RabbitNode, rabbit_url: str, tmp_path: Path, kind: str
) -> None:
    """It would be taken for a duplicate when it comes again, and acknowledged with those behind it."""
    said = readings(200)

    async def story() -> None:
        async with hall(rabbitmq, rabbit_url, tmp_path, kind, watchdog=30.0) as at, at.running():
            await at.send(said[:60])
            await at.processed(60)
            at.proxy.losing = 1
            await at.send(said[60:])
            await at.processed(200)
            assert at.proxy.losing == 0
            assert at.total("mmlw_restarts_total", cause="broker") == 1
            assert at.total("mmlw_messages_passed_over_total", policy="duplicate") == 0

    run(story())


@pytest.mark.parametrize("kind", SOURCES)
def test_quiet_consumer_is_left_alone_with_the_rights_of_a_worker(
    rabbitmq: RabbitNode, rabbit_url: str, tmp_path: Path, kind: str
) -> None:
    said = readings(80)

    async def story() -> None:
        user = await asyncio.to_thread(least_rights, rabbitmq, rabbit_url)
        with capture_logs() as told:
            async with (
                hall(rabbitmq, rabbit_url, tmp_path, kind, user=user, watchdog=0.5) as at,
                at.running(),
            ):
                for start in (0, 40):
                    await at.send(said[start : start + 40])
                    await at.processed(start + 40)
                    await asyncio.sleep(5.0)  # the watchdog looks every two seconds
                assert at.total("mmlw_restarts_total") == 0
                at.proxy.losing = DEAF
                await at.send(readings(90)[80:])
                await until(lambda: at.total("mmlw_restarts_total", cause="stalled") == 1)
                at.proxy.losing = 0
                await at.processed(90)
        assert "watchdog_blind" not in [line["event"] for line in told]

    run(story())


def test_reader_that_may_not_look_says_so_and_reads_on(
    rabbitmq: RabbitNode, rabbit_url: str, tmp_path: Path
) -> None:
    said = readings(60)

    async def story() -> None:
        user = await asyncio.to_thread(
            least_rights, rabbitmq, rabbit_url, configure="^mmlw\\.(?!readings).*$"
        )
        with capture_logs() as told:
            async with hall(rabbitmq, rabbit_url, tmp_path, "classic", user=user) as at, at.running():
                await until(lambda: "watchdog_blind" in [line["event"] for line in told])
                await at.send(said)
                await at.processed(60)
                assert at.total("mmlw_restarts_total") == 0
        line = next(line for line in told if line["event"] == "watchdog_blind")
        assert "mmlw.readings.probe-*" in line["remedy"]

    run(story())


def least_rights(node: RabbitNode, url: str, configure: str | None = None) -> str:
    """A user with the worker's rights of `deploy/rabbitmq`, and to read the queue that is named."""
    passwords = dict.fromkeys(("worker", "operator", "dashboard", "monitoring"), "x")
    rights = next(r for r in build(passwords)["permissions"] if r["user"] == "worker")
    vhost = url.rpartition("/")[2]
    user = f"worker-{vhost}"
    texts = (configure or rights["configure"], rights["write"], rights["read"].replace("^(", "^(press|"))
    node.user(user, user, vhost)
    node.ctl("set_permissions", "-p", vhost, user, *texts)
    return user

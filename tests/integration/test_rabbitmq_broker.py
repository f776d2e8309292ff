"""RabbitMQ's ways to say no or to go silent: each becomes one clear line, in time, without the password."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from stream.brokers import connect
from stream.brokers.base import Binding, Delivery, Exchange, Intake, Message, Plan, Queue
from stream.brokers.rabbitmq import RabbitBroker
from stream.errors import BrokerError, BrokerRefused, BrokerUnreachable
from tests.aio import run
from tests.rabbitmq_node import RabbitNode, free_port, rabbit_node

PASSWORD = "correct-horse-7731"
_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Place:
    """A fresh virtual host, and a user of it who may do everything until a test says otherwise."""

    node: RabbitNode
    vhost: str
    user: str

    @property
    def url(self) -> str:
        return self.node.url(self.user, PASSWORD, self.vhost)

    def permit(self, configure: str, write: str, read: str) -> None:
        self.node.ctl("set_permissions", "--vhost", self.vhost, self.user, configure, write, read)


@pytest.fixture
def place(rabbitmq: RabbitNode) -> Place:
    made = Place(rabbitmq, rabbitmq.vhost(), f"worker{next(_NUMBERS)}")
    rabbitmq.user(made.user, PASSWORD, made.vhost)
    return made


@contextmanager
def fails(kind: type[BrokerError], *words: str) -> Iterator[None]:
    """The block raises this error, as one line with these words and without the password."""
    with pytest.raises(kind) as caught:
        yield
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert "\n" not in text
    assert len(text) < 400
    assert PASSWORD not in text + repr(caught.value)


async def enter(broker: RabbitBroker) -> None:
    async with broker:
        pass


STREAM = Queue(name="log")
WORK = Queue(name="work", kind="classic")
PLAN = Plan(
    exchanges=(Exchange("plant"),),
    queues=(STREAM, WORK),
    bindings=(Binding("log", "plant", "#"), Binding("work", "plant", "#")),
)


def sent(count: int, exchange: str = "plant") -> list[Message]:
    return [Message(exchange=exchange, routing_key="k", body=b"%d" % n) for n in range(count)]


# Connecting


def test_wrong_password_is_refused(place: Place) -> None:
    url = place.node.url(place.user, f"{PASSWORD}-wrong", place.vhost)
    with fails(BrokerRefused, place.user, "password", f"127.0.0.1:{place.node.port}"):
        run(enter(RabbitBroker(url)))


def test_unknown_user_is_refused(place: Place) -> None:
    with fails(BrokerRefused, "nobody", "password"):
        run(enter(RabbitBroker(place.node.url("nobody", PASSWORD, place.vhost))))


def test_nothing_listening_is_unreachable() -> None:
    port = free_port()
    with fails(BrokerUnreachable, f"127.0.0.1:{port}", "nothing answers", "--broker"):
        run(enter(RabbitBroker(f"amqp://worker:{PASSWORD}@127.0.0.1:{port}/")))


def test_unknown_host_is_unreachable() -> None:
    with fails(BrokerUnreachable, "no-such-host.invalid:5672", "--broker"):
        run(enter(RabbitBroker(f"amqp://worker:{PASSWORD}@no-such-host.invalid/")))


def test_server_that_is_not_rabbitmq_is_unreachable_within_the_timeout() -> None:
    async def main() -> None:
        async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        for serve in (mute, http):
            async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
                port = server.sockets[0].getsockname()[1]
                with fails(BrokerUnreachable, f"127.0.0.1:{port}"):
                    await enter(RabbitBroker(f"amqp://worker:{PASSWORD}@127.0.0.1:{port}/", timeout=1.0))

    run(main())


def test_unknown_virtual_host_is_refused(place: Place) -> None:
    with fails(BrokerRefused, "virtual host", "nowhere", place.user):
        run(enter(RabbitBroker(place.node.url(place.user, PASSWORD, "nowhere"))))


def test_virtual_host_without_permission_is_refused(place: Place) -> None:
    place.node.ctl("clear_permissions", "--vhost", place.vhost, place.user)
    with fails(BrokerRefused, "virtual host", place.vhost, place.user):
        run(enter(RabbitBroker(place.url)))


def test_password_is_in_no_repr(place: Place) -> None:
    broker = RabbitBroker(place.url)
    assert PASSWORD not in f"{broker!r} {broker} {connect(place.url)!r}"
    assert place.user in repr(broker)


# Permissions


def test_declaring_without_permission_is_refused(place: Place) -> None:
    async def main() -> None:
        async with RabbitBroker(place.url) as broker:
            for plan, words in [
                (Plan(exchanges=(Exchange("plant"),)), ("exchange", "plant", place.user, "permission")),
                (Plan(queues=(STREAM,)), ("queue", "log", place.user, "permission")),
            ]:
                with fails(BrokerRefused, *words):
                    await broker.declare(plan, mode="declare")

    place.permit("^$", ".*", ".*")
    run(main())


def test_reading_and_writing_without_permission_is_refused_and_the_rest_goes_on(place: Place) -> None:
    async def main() -> None:
        async with RabbitBroker(place.url) as broker:
            await broker.declare(PLAN, mode="declare")
            await asyncio.to_thread(place.permit, ".*", "^amq", "^work$")
            with fails(BrokerRefused, "exchange", "plant", place.user, "permission"):
                await broker.publish(sent(1))
            with fails(BrokerRefused, "queue", "log", place.user, "permission"):
                await broker.consume(STREAM, offset=0, prefetch=10)
            await broker.consume(WORK, offset=None, prefetch=10)

    run(main())


def test_publishing_to_a_missing_exchange_is_refused_by_its_own_name(place: Place) -> None:
    async def main() -> None:
        async with RabbitBroker(place.url) as broker:
            await broker.declare(PLAN, mode="declare")
            with fails(BrokerRefused, 'exchange "plnat" is missing'):
                await broker.publish([*sent(50), *sent(1, "plnat"), *sent(450)])

    run(main())


def test_many_publishings_without_permission_are_refused(place: Place) -> None:
    async def main() -> None:
        async with RabbitBroker(place.url) as broker:
            await broker.declare(PLAN, mode="declare")
            await asyncio.to_thread(place.permit, ".*", "^amq", ".*")
            with fails(BrokerRefused, 'exchange "plant" was refused', place.user, "permission"):
                await broker.publish(sent(500))

    run(main())


def test_user_deleted_while_connected_ends_the_connection(place: Place) -> None:
    async def main() -> None:
        async with RabbitBroker(place.url) as broker:
            await broker.declare(PLAN, mode="declare")
            intake = await broker.consume(STREAM, offset=0, prefetch=10)
            await asyncio.to_thread(place.node.ctl, "delete_user", place.user)
            with fails(BrokerUnreachable, "lost"):
                await intake.receive(1, 0.0, 30.0)

    run(main())


# Faults


@pytest.fixture
def own_node() -> Iterator[RabbitNode]:
    with rabbit_node() as node:
        yield node
        node.kill()


async def publishing(broker: RabbitBroker) -> None:
    while True:
        await broker.publish(sent(500))


async def until_error(work: Awaitable[object], kind: type[BrokerError], *words: str) -> None:
    with fails(kind, *words):
        await work


def test_killed_node_ends_receive_and_publish_within_seconds(own_node: RabbitNode) -> None:
    async def main() -> None:
        async with RabbitBroker(own_node.url()) as broker:
            await broker.declare(PLAN, mode="declare")
            idle = Queue(name="idle", kind="classic")
            await broker.declare(Plan(queues=(idle,)), mode="declare")
            intake = await broker.consume(idle, offset=None, prefetch=10)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(until_error(intake.receive(1, 0.0, 60.0), BrokerUnreachable, "lost"))
                tasks.create_task(until_error(publishing(broker), BrokerUnreachable))
                await asyncio.sleep(1.0)
                await asyncio.to_thread(own_node.kill)
        with fails(BrokerUnreachable, "nothing answers"):
            await enter(RabbitBroker(own_node.url()))

    run(main())


def test_frozen_node_ends_receive_and_publish_within_the_timeouts(own_node: RabbitNode) -> None:
    async def main() -> None:
        async with RabbitBroker(own_node.url(), timeout=3.0, heartbeat=2) as broker:
            await broker.declare(PLAN, mode="declare")
            await broker.publish(sent(1))
            intake = await broker.consume(STREAM, offset=1, prefetch=10)
            own_node.freeze()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(
                    until_error(intake.receive(1, 0.0, 60.0), BrokerUnreachable, "no heartbeat")
                )
                tasks.create_task(until_error(broker.publish(sent(300)), BrokerUnreachable))

    run(main())


async def take(intake: Intake, count: int) -> list[Delivery]:
    found: list[Delivery] = []
    async with asyncio.timeout(240):
        while len(found) < count:
            found += await intake.receive(count - len(found), 0.0, 1.0)
    return found


def test_memory_alarm_blocks_publishing_and_not_reading(own_node: RabbitNode) -> None:
    async def main() -> None:
        async with RabbitBroker(own_node.url(), timeout=2.0) as broker:
            await broker.declare(PLAN, mode="declare")
            await broker.publish(sent(10))
            await asyncio.to_thread(own_node.ctl, "set_vm_memory_high_watermark", "0.0001")
            await until_error(publishing(broker), BrokerUnreachable, "no answer within 2 s", "alarms")
            intake = await broker.consume(WORK, offset=None, prefetch=5)
            found = await take(intake, 5)
            await intake.ack(found[-1].tag)
            assert len(await take(intake, 5)) == 5
            await asyncio.to_thread(own_node.ctl, "set_vm_memory_high_watermark", "0.9")
        async with RabbitBroker(own_node.url()) as broker:
            await broker.publish(sent(10))

    run(main())


# Leaving nothing behind


@pytest.mark.timeout(60)
def test_measuring_the_lag_leaves_no_consumers_behind(place: Place) -> None:
    """RabbitMQ keeps counting a stream's consumer whose channel closed and that was not cancelled before."""

    async def main() -> None:
        async with connect(place.url) as broker:
            await broker.declare(PLAN, mode="declare")
            await broker.publish(sent(3))
            intake = await broker.consume(STREAM, offset=None, prefetch=10)
            assert [await intake.end() for _ in range(5)] == [3] * 5
            assert await asyncio.to_thread(consumers, place) == 1
            await intake.close()
            assert await asyncio.to_thread(consumers, place) == 0

    run(main())


@pytest.mark.timeout(120)
def test_a_closing_that_is_cancelled_stays_cancelled(place: Place) -> None:
    """The driver swallows a cancellation that comes while a channel closes; a stop would never end."""

    async def main() -> int:
        cancelled = 0
        for attempt in range(80):  # a connection each: the driver loses one over a half-closed channel
            async with connect(place.url) as broker, asyncio.TaskGroup() as tasks:
                await broker.declare(PLAN, mode="declare")
                intake = await broker.consume(STREAM, offset=None, prefetch=10)
                closing = tasks.create_task(intake.close())
                await asyncio.wait([closing], timeout=attempt * 0.00003)
                if closing.cancel():
                    await asyncio.wait([closing])
                    assert closing.cancelled(), f"after {attempt}"
                    cancelled += 1
        return cancelled

    assert run(main()) > 5


@pytest.mark.timeout(60)
def test_a_failed_reader_leaves_no_consumer_behind(place: Place) -> None:
    """Nobody closes the intake after a failure: the connection does."""

    async def read_and_fail() -> None:
        async with connect(place.url) as broker:
            await broker.declare(PLAN, mode="declare")
            await broker.publish(sent(3))
            intake = await broker.consume(STREAM, offset=None, prefetch=10)
            await intake.receive(3, 0.1, 5.0)
            raise ZeroDivisionError

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await read_and_fail()
        assert await asyncio.to_thread(consumers, place) == 0

    run(main())


def consumers(place: Place) -> int:
    """How many read the stream, as RabbitMQ counts them."""
    counted = place.node.ctl("list_queues", "--vhost", place.vhost, "name", "consumers")
    return int(dict(line.split() for line in counted.splitlines())[STREAM.name])

"""What every broker promises: one suite, passed by the embedded broker and by RabbitMQ."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from stream.brokers.base import Binding, Broker, Delivery, Exchange, Intake, Message, Plan, Queue
from stream.brokers.memory import MemoryBroker, MemoryServer
from stream.brokers.rabbitmq import RabbitBroker
from stream.errors import BrokerMissing, BrokerRefused, BrokerUnreachable, Unroutable
from tests.aio import run
from tests.rabbitmq_node import RabbitNode

_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Bench:
    """A broker under test: connections by user, names no other test has, and two faults."""

    connect: Callable[[str], Broker]
    cut: Callable[[], Awaitable[None]]
    """Ends every connection, as a network would."""
    delete: Callable[[str], Awaitable[None]]
    """Deletes a queue behind its consumers' backs."""
    prefix: str

    def stream(self, name: str = "log") -> Queue:
        return Queue(name=f"{self.prefix}.{name}", kind="stream")

    def classic(self, name: str = "work") -> Queue:
        return Queue(name=f"{self.prefix}.{name}", kind="classic")

    def reply(self, name: str = "reply") -> Queue:
        return Queue(name=f"{self.prefix}.{name}", kind="reply")

    def exchange(self, name: str = "plant") -> Exchange:
        return Exchange(name=f"{self.prefix}.{name}")


def _memory() -> Bench:
    server = MemoryServer()

    async def cut() -> None:
        server.drop_connections()

    async def delete(queue: str) -> None:
        server.delete(queue)

    return Bench(lambda user: MemoryBroker(server, user=user), cut, delete, f"t{next(_NUMBERS)}")


@pytest.fixture(scope="module")
def rabbit_vhost(rabbitmq: RabbitNode) -> str:
    vhost = rabbitmq.vhost()
    for user in ("alice", "bob"):
        rabbitmq.user(user, "secret", vhost)
    return vhost


def _rabbit(node: RabbitNode, vhost: str) -> Bench:
    async def cut() -> None:
        await asyncio.to_thread(node.ctl, "close_all_connections", "--vhost", vhost, "cut by a test")

    async def delete(queue: str) -> None:
        await asyncio.to_thread(node.ctl, "delete_queue", "--vhost", vhost, queue)

    return Bench(
        lambda user: RabbitBroker(node.url(user, "secret", vhost)), cut, delete, f"t{next(_NUMBERS)}"
    )


@pytest.fixture(params=["memory", "rabbitmq"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    if request.param == "memory":
        yield _memory()
    else:
        yield _rabbit(request.getfixturevalue("rabbitmq"), request.getfixturevalue("rabbit_vhost"))


def to(queue: Queue, *bodies: bytes) -> list[Message]:
    """Messages straight to a queue."""
    return [Message(exchange="", routing_key=queue.name, body=body) for body in bodies]


async def take(intake: Intake, count: int, *, seconds: float = 20.0) -> list[Delivery]:
    """Exactly so many deliveries, acknowledged as they come."""
    found: list[Delivery] = []
    async with asyncio.timeout(seconds):
        while len(found) < count:
            batch = await intake.receive(count - len(found), 0.0, 1.0)
            if batch:
                await intake.ack(batch[-1].tag)
            found += batch
    return found


async def collect(intake: Intake, count: int, *, seconds: float = 20.0) -> list[Delivery]:
    """Exactly so many deliveries, none acknowledged."""
    found: list[Delivery] = []
    async with asyncio.timeout(seconds):
        while len(found) < count:
            found += await intake.receive(count - len(found), 0.0, 1.0)
    return found


async def reaches(intake: Intake, end: int) -> None:
    """Wait until `end()` says so: RabbitMQ counts some seconds late."""
    for _ in range(100):
        if (found := await intake.end()) == end:
            return
        await asyncio.sleep(0.1)
    pytest.fail(f"end() stayed {found}, not {end}")


async def bodies(broker: Broker, queue: Queue, count: int) -> list[bytes]:
    """The first `count` bodies of a queue, and a look that no more come."""
    intake = await broker.consume(queue, offset=None, prefetch=100)
    found = [delivery.body for delivery in await take(intake, count)]
    assert await intake.receive(1, 0.0, 0.2) == []
    await intake.close()
    return found


def numbered(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


# Topics


TOPICS = [
    ("sensor.pump.rms", ["sensor.*.rms", "sensor.#", "#", "sensor.pump.rms"]),
    ("sensor.pump", ["sensor.#", "#", "sensor.*"]),
    ("sensor", ["sensor.#", "#"]),
    ("sensor.pump.rms.x", ["sensor.#", "#", "sensor.#.x"]),
    ("sensor.x", ["sensor.#", "#", "sensor.*", "sensor.#.x"]),
    ("control.swap", ["#"]),
    ("", ["#"]),
    ("sensor..rms", ["sensor.*.rms", "sensor.#", "#"]),
]


def test_topic_patterns_send_each_key_to_the_right_queues(bench: Bench) -> None:
    async def main() -> None:
        exchange = bench.exchange()
        patterns = sorted({pattern for _, takers in TOPICS for pattern in takers})
        queues = {pattern: bench.classic(f"q{number}") for number, pattern in enumerate(patterns)}
        bindings = tuple(Binding(queues[p].name, exchange.name, p) for p in patterns)
        plan = Plan(exchanges=(exchange,), queues=tuple(queues.values()), bindings=bindings)
        async with bench.connect("alice") as broker:
            await broker.declare(plan, mode="declare")
            await broker.publish(
                [Message(exchange=exchange.name, routing_key=key, body=key.encode()) for key, _ in TOPICS]
            )
            for pattern in patterns:
                expected = [key.encode() for key, takers in TOPICS if pattern in takers]
                assert await bodies(broker, queues[pattern], len(expected)) == expected, pattern

    run(main())


def test_queue_bound_twice_gets_a_message_once(bench: Bench) -> None:
    async def main() -> None:
        exchange, queue = bench.exchange(), bench.classic()
        bindings = tuple(Binding(queue.name, exchange.name, pattern) for pattern in ("a.*", "#"))
        async with bench.connect("alice") as broker:
            await broker.declare(
                Plan(exchanges=(exchange,), queues=(queue,), bindings=bindings), mode="declare"
            )
            await broker.publish([Message(exchange=exchange.name, routing_key="a.b", body=b"one")])
            assert await bodies(broker, queue, 1) == [b"one"]

    run(main())


# Streams


async def declared(broker: Broker, *queues: Queue) -> None:
    await broker.declare(Plan(queues=queues), mode="declare")


def test_stream_offsets_rise_by_one_from_zero(bench: Bench) -> None:
    async def main() -> None:
        stream = bench.stream()
        async with bench.connect("alice") as broker:
            await declared(broker, stream)
            await broker.publish(to(stream, *numbered(10)))
            intake = await broker.consume(stream, offset=None, prefetch=4)
            found = await take(intake, 10)
            assert [d.offset for d in found] == list(range(10))
            assert [d.tag for d in found] == list(range(1, 11))

    run(main())


@pytest.mark.parametrize("start", [0, 1, 7, 9])
def test_stream_is_read_from_the_offset_asked_for(bench: Bench, start: int) -> None:
    async def main() -> None:
        stream = bench.stream()
        async with bench.connect("alice") as broker:
            await declared(broker, stream)
            await broker.publish(to(stream, *numbered(10)))
            intake = await broker.consume(stream, offset=start, prefetch=100)
            found = await take(intake, 10 - start)
            assert [(d.offset, d.body) for d in found] == list(enumerate(numbered(10)))[start:]

    run(main())


def test_stream_is_read_from_the_time_asked_for(bench: Bench) -> None:
    async def main() -> None:
        stream = bench.stream()
        async with bench.connect("alice") as broker:
            await declared(broker, stream)
            await broker.publish(to(stream, *numbered(3)))
            await asyncio.sleep(1.1)  # RabbitMQ's times are whole seconds
            between = datetime.now(UTC)
            await asyncio.sleep(1.1)
            await broker.publish(to(stream, b"3", b"4"))
            for moment, first in ((between, 3), (between - timedelta(hours=1), 0)):
                intake = await broker.consume(stream, offset=moment, prefetch=100)
                found = await take(intake, 5 - first)
                assert [d.offset for d in found] == list(range(first, 5))
                await intake.close()

    run(main())


def test_offset_beyond_the_end_waits_and_delivers_from_there(bench: Bench) -> None:
    async def main() -> None:
        stream = bench.stream()
        async with bench.connect("alice") as broker:
            await declared(broker, stream)
            await broker.publish(to(stream, *numbered(3)))
            intake = await broker.consume(stream, offset=5, prefetch=10)
            assert await intake.receive(10, 0.0, 0.3) == []
            await broker.publish(to(stream, b"3", b"4", b"5", b"6"))
            assert [(d.offset, d.body) for d in await take(intake, 2)] == [(5, b"5"), (6, b"6")]

    run(main())


def test_two_readers_of_a_stream_each_see_all_of_it(bench: Bench) -> None:
    async def main() -> None:
        stream = bench.stream()
        async with bench.connect("alice") as one, bench.connect("bob") as other:
            await declared(one, stream)
            await one.publish(to(stream, *numbered(20)))
            readers = [await broker.consume(stream, offset=0, prefetch=5) for broker in (one, one, other)]
            for reader in readers:
                assert [d.body for d in await take(reader, 20)] == numbered(20)

    run(main())


def test_reading_a_stream_does_not_consume_it(bench: Bench) -> None:
    async def main() -> None:
        stream = bench.stream()
        async with bench.connect("alice") as broker:
            await declared(broker, stream)
            await broker.publish(to(stream, *numbered(5)))
            for _ in range(2):
                assert await bodies(broker, stream, 5) == numbered(5)
        async with bench.connect("alice") as broker:
            assert await bodies(broker, stream, 5) == numbered(5)

    run(main())


def test_end_of_a_stream_is_the_number_of_messages_published(bench: Bench) -> None:
    async def main() -> None:
        stream = bench.stream()
        async with bench.connect("alice") as broker:
            await declared(broker, stream)
            intake = await broker.consume(stream, offset=None, prefetch=10)
            assert await intake.end() == await broker.end(stream) == 0
            await broker.publish(to(stream, *numbered(7)))
            assert await intake.end() == await broker.end(stream) == 7
            await take(intake, 7)
            await broker.publish(to(stream, *numbered(500)))
            assert await intake.end() == 507

    run(main())


def test_stream_forgets_its_oldest_and_reading_starts_at_what_is_left(bench: Bench) -> None:
    async def main() -> None:
        stream = Queue(name=f"{bench.prefix}.short", max_bytes=2_000_000, segment_bytes=500_000)
        async with bench.connect("alice") as broker:
            await declared(broker, stream)
            for number in range(60):
                await broker.publish(to(stream, *(b"%d" % number + bytes(20_000),) * 10))
            intake = await broker.consume(stream, offset=0, prefetch=100)
            (first,) = await take(intake, 1)
            assert first.offset > 0
            last = first
            while found := await intake.receive(100, 0.0, 1.0):
                await intake.ack(found[-1].tag)
                last = found[-1]
            assert last.body.startswith(b"59")
            other = await broker.consume(stream, offset=0, prefetch=1)
            assert (await intake.end(), await other.end()) == (last.offset + 1, last.offset + 1)

    run(main())


# Queues


def test_unacknowledged_deliveries_come_again_after_close(bench: Bench) -> None:
    async def main() -> None:
        queue = bench.classic()
        async with bench.connect("alice") as broker:
            await declared(broker, queue)
            await broker.publish(to(queue, *numbered(5)))
            intake = await broker.consume(queue, offset=None, prefetch=10)
            found = await collect(intake, 5)
            await intake.ack(found[1].tag)
            await intake.close()
            assert await bodies(broker, queue, 3) == numbered(5)[2:]

    run(main())


def test_unacknowledged_deliveries_come_again_after_the_connection_ends(bench: Bench) -> None:
    async def main() -> None:
        queue = bench.classic()
        async with bench.connect("alice") as broker:
            await declared(broker, queue)
            await broker.publish(to(queue, *numbered(5)))
            intake = await broker.consume(queue, offset=None, prefetch=10)
            found = await collect(intake, 5)
            await intake.ack(found[0].tag)
        async with bench.connect("bob") as broker:
            assert await bodies(broker, queue, 4) == numbered(5)[1:]

    run(main())


def test_multiple_ack_settles_everything_up_to_the_tag(bench: Bench) -> None:
    async def main() -> None:
        queue = bench.classic()
        async with bench.connect("alice") as broker:
            await declared(broker, queue)
            await broker.publish(to(queue, *numbered(50)))
            intake = await broker.consume(queue, offset=None, prefetch=100)
            found = await collect(intake, 50)
            await intake.ack(found[19].tag)
            await intake.ack(found[39].tag)
            await intake.close()
            assert await bodies(broker, queue, 10) == numbered(50)[40:]

    run(main())


def test_prefetch_bounds_what_is_delivered_unacknowledged(bench: Bench) -> None:
    async def main() -> None:
        queue = bench.classic()
        async with bench.connect("alice") as broker:
            await declared(broker, queue)
            await broker.publish(to(queue, *numbered(30)))
            intake = await broker.consume(queue, offset=None, prefetch=8)
            first = await collect(intake, 8)
            assert await intake.receive(100, 0.0, 0.3) == []
            await intake.ack(first[-1].tag)
            second = await collect(intake, 8)
            assert await intake.receive(100, 0.0, 0.3) == []
            assert [d.body for d in first + second] == numbered(16)

    run(main())


def test_prefetch_of_a_stream_bounds_what_is_delivered_to_about_a_chunk(bench: Bench) -> None:
    async def main() -> None:
        stream = bench.stream()
        async with bench.connect("alice") as broker:
            await declared(broker, stream)
            await broker.publish(to(stream, *numbered(2000)))
            intake = await broker.consume(stream, offset=None, prefetch=8)
            first = await collect(intake, 8)
            while more := await intake.receive(2000, 0.0, 0.3):
                first += more
            assert len(first) < 600
            await intake.ack(first[-1].tag)
            second = await collect(intake, 8)
            assert [d.offset for d in first + second] == list(range(len(first) + 8))

    run(main())


def test_two_consumers_share_a_queue(bench: Bench) -> None:
    async def main() -> None:
        queue = bench.classic()
        async with bench.connect("alice") as broker:
            await declared(broker, queue)
            one = await broker.consume(queue, offset=None, prefetch=3)
            other = await broker.consume(queue, offset=None, prefetch=3)
            await broker.publish(to(queue, *numbered(6)))
            found = [d.body for intake in (one, other) for d in await collect(intake, 3)]
            assert sorted(found) == numbered(6)

    run(main())


def test_end_of_a_queue_is_the_number_of_messages_ready(bench: Bench) -> None:
    async def main() -> None:
        idle, queue = bench.classic("idle"), bench.classic()
        async with bench.connect("alice") as broker:
            await declared(broker, idle, queue)
            intake = await broker.consume(queue, offset=None, prefetch=2)
            assert await intake.end() == 0
            await broker.publish(to(queue, *numbered(5)))
            await collect(intake, 2)
            await reaches(intake, 3)

    run(main())


def test_queue_tells_how_much_is_ready_and_hands_nothing_out_for_it(bench: Bench) -> None:
    async def main() -> None:
        queue = bench.classic()
        async with bench.connect("alice") as broker:
            await declared(broker, queue)
            assert await broker.end(queue) == 0
            await broker.publish(to(queue, *numbered(5)))
            for _ in range(100):  # RabbitMQ counts late
                if (found := await broker.end(queue)) == 5:
                    break
                await asyncio.sleep(0.1)
            assert found == 5
            assert await bodies(broker, queue, 5) == numbered(5)
            with pytest.raises(BrokerMissing):
                await broker.end(Queue(name=f"{bench.prefix}.none", kind="classic"))

    run(main())


def test_expired_message_is_dropped_from_a_queue(bench: Bench) -> None:
    async def main() -> None:
        queue = bench.classic()
        async with bench.connect("alice") as broker:
            await declared(broker, queue)
            await broker.publish(
                [
                    Message(exchange="", routing_key=queue.name, body=b"old", expiration=0.3),
                    Message(exchange="", routing_key=queue.name, body=b"kept", expiration=60.0),
                    Message(exchange="", routing_key=queue.name, body=b"unlimited"),
                ]
            )
            other = bench.classic("other")
            await declared(broker, other)
            waiting = await broker.consume(other, offset=None, prefetch=1)
            assert await waiting.receive(1, 0.0, 0.6) == []
            assert await bodies(broker, queue, 2) == [b"kept", b"unlimited"]

    run(main())


# Publishing


def test_unroutable_message_is_named_and_the_others_are_stored(bench: Bench) -> None:
    async def main() -> None:
        exchange, queue = bench.exchange(), bench.classic()
        bindings = (Binding(queue.name, exchange.name, "good.#"),)
        async with bench.connect("alice") as broker:
            await broker.declare(
                Plan(exchanges=(exchange,), queues=(queue,), bindings=bindings), mode="declare"
            )
            keys = ["good.1", "bad.1", "good.2", "bad.2", "good.3"]
            with pytest.raises(Unroutable, match=r"bad\.1") as caught:
                await broker.publish(
                    [Message(exchange=exchange.name, routing_key=key, body=key.encode()) for key in keys]
                )
            assert exchange.name in str(caught.value)
            assert await bodies(broker, queue, 3) == [b"good.1", b"good.2", b"good.3"]

    run(main())


def test_unroutable_message_is_told_from_another_of_the_same_id(bench: Bench) -> None:
    async def main() -> None:
        queue = bench.classic()
        async with bench.connect("alice") as broker:
            await declared(broker, queue)
            keys = [queue.name, "nobody-a", queue.name, "nobody-b", queue.name]
            with pytest.raises(Unroutable, match="nobody-a"):
                await broker.publish(
                    [Message(exchange="", routing_key=key, body=b"x", message_id="same") for key in keys]
                )
            assert await bodies(broker, queue, 3) == [b"x", b"x", b"x"]

    run(main())


def test_messages_to_several_exchanges_keep_their_order(bench: Bench) -> None:
    async def main() -> None:
        stream, one, two = bench.stream(), bench.exchange("one"), bench.exchange("two")
        bindings = tuple(Binding(stream.name, exchange.name, "#") for exchange in (one, two))
        async with bench.connect("alice") as broker:
            await broker.declare(
                Plan(exchanges=(one, two), queues=(stream,), bindings=bindings), mode="declare"
            )
            where = [(one.name, "k"), (two.name, "k"), ("", stream.name)]
            await broker.publish(
                [
                    Message(exchange=where[n % 3][0], routing_key=where[n % 3][1], body=body)
                    for n, body in enumerate(numbered(300))
                ]
            )
            assert await bodies(broker, stream, 300) == numbered(300)

    run(main())


def test_message_to_no_queue_by_name_is_unroutable(bench: Bench) -> None:
    async def main() -> None:
        async with bench.connect("alice") as broker:
            with pytest.raises(Unroutable, match="nobody-home"):
                await broker.publish([Message(exchange="", routing_key="nobody-home", body=b"x")])
            await broker.publish([])

    run(main())


def test_publishing_to_a_missing_exchange_is_refused_by_name_and_can_go_on(bench: Bench) -> None:
    async def main() -> None:
        queue = bench.classic()
        async with bench.connect("alice") as broker:
            await declared(broker, queue)
            with pytest.raises(BrokerRefused, match=r'exchange "no-such-plant".* is missing'):
                await broker.publish(
                    [
                        *to(queue, b"before"),
                        Message(exchange="no-such-plant", routing_key="a", body=b"x"),
                    ]
                )
            await broker.publish(to(queue, b"after"))
            assert (await bodies(broker, queue, 2))[-1] == b"after"

    run(main())


@pytest.mark.parametrize("kind", ["stream", "classic"])
def test_thousands_of_messages_are_confirmed_in_order(bench: Bench, kind: str) -> None:
    async def main() -> None:
        queue = bench.stream() if kind == "stream" else bench.classic()
        async with bench.connect("alice") as broker:
            await declared(broker, queue)
            await broker.publish(to(queue, *numbered(2000)))
            intake = await broker.consume(queue, offset=None, prefetch=500)
            assert [d.body for d in await take(intake, 2000)] == numbered(2000)

    run(main())


def test_publishers_at_the_same_time_keep_their_own_order(bench: Bench) -> None:
    async def main() -> None:
        stream = bench.stream()
        async with bench.connect("alice") as broker:
            await declared(broker, stream)
            async with asyncio.TaskGroup() as tasks:
                for letter in (b"a", b"b", b"c"):
                    tasks.create_task(broker.publish(to(stream, *(letter + n for n in numbered(300)))))
            found = [d.body for d in await take(await broker.consume(stream, offset=0, prefetch=200), 900)]
            for letter in (b"a", b"b", b"c"):
                assert [body for body in found if body[:1] == letter] == [letter + n for n in numbered(300)]

    run(main())


@pytest.mark.parametrize("kind", ["stream", "classic"])
def test_properties_and_headers_arrive_as_sent(bench: Bench, kind: str) -> None:
    async def main() -> None:
        exchange = bench.exchange()
        queue = bench.stream() if kind == "stream" else bench.classic()
        plan = Plan(
            exchanges=(exchange,), queues=(queue,), bindings=(Binding(queue.name, exchange.name, "#"),)
        )
        sent = Message(
            exchange=exchange.name,
            routing_key="sensor.püмp",
            body=b"{}",
            content_type="application/x-mmlw",
            headers={"source": "line-1 é", "seq": 12_345_678_901, "negative": -3, "zero": 0},
            message_id="m-1",
            correlation_id="c-1",
            reply_to="r-1",
        )
        async with bench.connect("alice") as broker:
            await broker.declare(plan, mode="declare")
            await broker.publish([sent, Message(exchange=exchange.name, routing_key="k", body=b"")])
            full, bare = await take(await broker.consume(queue, offset=None, prefetch=10), 2)
        assert (full.exchange, full.routing_key) == (exchange.name, "sensor.püмp")
        assert full.content_type == "application/x-mmlw"
        assert {key: full.headers.get(key) for key in sent.headers} == dict(sent.headers)
        assert (full.message_id, full.correlation_id, full.reply_to) == ("m-1", "c-1", "r-1")
        assert full.user_id == "alice"
        assert (bare.content_type, bare.correlation_id, bare.reply_to) == ("application/json", None, None)

    run(main())


@pytest.mark.parametrize("kind", ["stream", "classic"])
def test_bodies_of_any_content_and_size_arrive_unchanged(bench: Bench, kind: str) -> None:
    async def main() -> None:
        queue = bench.stream() if kind == "stream" else bench.classic()
        sent = [b"", bytes(range(256)), b"\x00", bytes(1_000_000), bytes(range(256)) * 4096, b"end"]
        async with bench.connect("alice") as broker:
            await declared(broker, queue)
            await broker.publish(to(queue, *sent))
            assert await bodies(broker, queue, len(sent)) == sent

    run(main())


def test_request_is_answered_on_the_reply_queue_with_verified_users(bench: Bench) -> None:
    async def main() -> None:
        requests, replies = bench.classic("requests"), bench.reply()
        async with bench.connect("alice") as client, bench.connect("bob") as server:
            await declared(server, requests)
            answers = await client.consume(replies, offset=None, prefetch=10)
            await client.publish(
                [
                    Message(
                        exchange="",
                        routing_key=requests.name,
                        body=b"swap",
                        correlation_id="42",
                        reply_to=replies.name,
                    )
                ]
            )
            (request,) = await take(await server.consume(requests, offset=None, prefetch=1), 1)
            assert (request.body, request.user_id, request.correlation_id) == (b"swap", "alice", "42")
            assert request.reply_to is not None
            await server.publish(
                [Message(exchange="", routing_key=request.reply_to, body=b"done", correlation_id="42")]
            )
            (answer,) = await take(answers, 1)
            assert (answer.body, answer.user_id, answer.correlation_id) == (b"done", "bob", "42")

    run(main())


def test_reply_queue_goes_with_its_connection(bench: Bench) -> None:
    async def main() -> None:
        replies = bench.reply()
        async with bench.connect("bob") as server:
            async with bench.connect("alice") as client:
                await client.consume(replies, offset=None, prefetch=10)
                await server.publish(to(replies, b"one"))
            with pytest.raises(Unroutable, match=replies.name):
                await server.publish(to(replies, b"two"))

    run(main())


# Receiving


def test_receive_returns_nothing_after_its_timeout(bench: Bench) -> None:
    async def main() -> None:
        queue = bench.classic()
        async with bench.connect("alice") as broker:
            await declared(broker, queue)
            intake = await broker.consume(queue, offset=None, prefetch=10)
            started = time.monotonic()
            assert await intake.receive(10, 5.0, 0.2) == []
            assert 0.15 < time.monotonic() - started < 2.0
            assert await intake.receive(10, 0.0, 0.0) == []

    run(main())


def test_receive_returns_at_once_what_is_there_without_linger(bench: Bench) -> None:
    async def main() -> None:
        queue = bench.classic()
        async with bench.connect("alice") as broker:
            await declared(broker, queue)
            intake = await broker.consume(queue, offset=None, prefetch=10)
            await broker.publish(to(queue, b"x"))
            started = time.monotonic()
            assert [d.body for d in await intake.receive(10, 0.0, 20.0)] == [b"x"]
            assert time.monotonic() - started < 5.0

    run(main())


def test_receive_lingers_for_more_and_returns_when_it_has_enough(bench: Bench) -> None:
    async def main() -> None:
        queue = bench.classic()
        async with bench.connect("alice") as broker:
            await declared(broker, queue)
            intake = await broker.consume(queue, offset=None, prefetch=10)

            async def later() -> None:
                for body in numbered(3):
                    await asyncio.sleep(0.1)
                    await broker.publish(to(queue, body))

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(later())
                found = await intake.receive(3, 20.0, 20.0)
            assert [d.body for d in found] == numbered(3)

            await broker.publish(to(queue, b"alone"))
            started = time.monotonic()
            assert [d.body for d in await intake.receive(3, 0.3, 20.0)] == [b"alone"]
            assert 0.25 < time.monotonic() - started < 5.0

    run(main())


def test_receive_gives_at_most_what_was_asked_and_keeps_the_rest(bench: Bench) -> None:
    async def main() -> None:
        queue = bench.classic()
        async with bench.connect("alice") as broker:
            await declared(broker, queue)
            await broker.publish(to(queue, *numbered(10)))
            intake = await broker.consume(queue, offset=None, prefetch=100)
            found = []
            for most in (1, 2, 3, 4):
                batch = await intake.receive(most, 1.0, 20.0)
                assert len(batch) == most
                found += batch
            assert [d.body for d in found] == numbered(10)
            assert [d.tag for d in found] == list(range(1, 11))

    run(main())


def test_waiting_receive_can_be_cancelled_and_loses_nothing(bench: Bench) -> None:
    async def main() -> None:
        queue = bench.classic()
        async with bench.connect("alice") as broker:
            await declared(broker, queue)
            intake = await broker.consume(queue, offset=None, prefetch=10)
            await broker.publish(to(queue, b"0"))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await intake.receive(5, 20.0, 20.0)
            await broker.publish(to(queue, b"1"))
            assert [d.body for d in await collect(intake, 2)] == numbered(2)

    run(main())


# Declaring


def test_declaring_twice_changes_nothing(bench: Bench) -> None:
    async def main() -> None:
        exchange, stream, queue = bench.exchange(), bench.stream(), bench.classic()
        sized = Queue(
            name=f"{bench.prefix}.sized", max_age=3600.0, max_bytes=50_000_000, segment_bytes=1_000_000
        )
        plan = Plan(
            exchanges=(exchange,),
            queues=(stream, queue, sized),
            bindings=tuple(Binding(q.name, exchange.name, "#") for q in (stream, queue, sized)),
        )
        async with bench.connect("alice") as broker:
            await broker.declare(plan, mode="declare")
            await broker.publish([Message(exchange=exchange.name, routing_key="k", body=b"x")])
            await broker.declare(plan, mode="declare")
            await broker.declare(plan, mode="check")
            for each in (stream, queue, sized):
                assert await bodies(broker, each, 1) == [b"x"]
        async with bench.connect("bob") as broker:
            await broker.declare(plan, mode="declare")

    run(main())


def test_conflicting_declaration_is_refused_by_name(bench: Bench) -> None:
    async def main() -> None:
        stream, queue = bench.stream(), bench.classic()
        async with bench.connect("alice") as broker:
            await declared(broker, stream, queue)
            for name, other in [
                (stream.name, Queue(name=stream.name, kind="classic")),
                (queue.name, Queue(name=queue.name, kind="stream")),
                (stream.name, Queue(name=stream.name, max_age=60.0)),
                (stream.name, Queue(name=stream.name, max_bytes=20_000_000)),
            ]:
                with pytest.raises(BrokerRefused, match=f'queue "{name}"') as caught:
                    await declared(broker, other)
                assert "delete it" in str(caught.value)
            await declared(broker, stream, queue)

    run(main())


def test_check_names_what_is_missing(bench: Bench) -> None:
    async def main() -> None:
        exchange, queue, stream = bench.exchange(), bench.classic(), bench.stream()
        async with bench.connect("alice") as broker:
            await broker.declare(Plan(exchanges=(exchange,), queues=(queue,)), mode="declare")
            missing = Plan(exchanges=(exchange, bench.exchange("other")))
            with pytest.raises(BrokerRefused, match=f'exchange "{bench.prefix}.other" is missing'):
                await broker.declare(missing, mode="check")
            with pytest.raises(BrokerRefused, match=f'queue "{stream.name}" is missing.*declare'):
                await broker.declare(Plan(queues=(queue, stream)), mode="check")
            await broker.declare(Plan(exchanges=(exchange,), queues=(queue,)), mode="check")
            with pytest.raises(BrokerRefused, match="is missing"):
                await broker.declare(Plan(queues=(stream,)), mode="check")

    run(main())


def test_binding_to_a_missing_exchange_is_refused_by_name(bench: Bench) -> None:
    async def main() -> None:
        queue = bench.classic()
        plan = Plan(queues=(queue,), bindings=(Binding(queue.name, f"{bench.prefix}.none", "#"),))
        async with bench.connect("alice") as broker:
            with pytest.raises(BrokerRefused, match=f"{bench.prefix}.none.* missing"):
                await broker.declare(plan, mode="declare")

    run(main())


def test_consuming_a_missing_queue_is_refused_by_name_and_can_go_on(bench: Bench) -> None:
    async def main() -> None:
        queue = bench.classic()
        async with bench.connect("alice") as broker:
            with pytest.raises(BrokerRefused, match=f'queue "{queue.name}" is missing'):
                await broker.consume(queue, offset=None, prefetch=1)
            await declared(broker, queue)
            await broker.publish(to(queue, b"x"))
            assert await bodies(broker, queue, 1) == [b"x"]

    run(main())


# Losing and closing


async def soon(intake: Intake) -> BrokerUnreachable:
    """The error that ends a long receive."""
    with pytest.raises(BrokerUnreachable) as caught:
        await intake.receive(1, 0.0, 40.0)
    return caught.value


def test_lost_connection_wakes_who_waits_and_ends_everything(bench: Bench) -> None:
    async def main() -> None:
        stream, queue = bench.stream(), bench.classic()
        async with bench.connect("alice") as broker:
            await declared(broker, stream, queue)
            intakes = [await broker.consume(each, offset=None, prefetch=5) for each in (stream, queue)]
            started = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                errors = [tasks.create_task(soon(intake)) for intake in intakes]
                await asyncio.sleep(0.1)
                await bench.cut()
            assert time.monotonic() - started < 15.0
            assert all("lost" in str(error.result()) for error in errors)
            for intake in intakes:
                for use in (intake.receive(1, 0.0, 1.0), intake.ack(1), intake.end()):
                    with pytest.raises(BrokerUnreachable):
                        await use
                await intake.close()
            with pytest.raises(BrokerUnreachable):
                await broker.publish(to(queue, b"x"))
            with pytest.raises(BrokerUnreachable):
                await broker.consume(queue, offset=None, prefetch=1)
            with pytest.raises(BrokerUnreachable):
                await declared(broker, queue)
        async with bench.connect("alice") as broker:
            await broker.publish(to(queue, b"again"))
            assert await bodies(broker, queue, 1) == [b"again"]

    run(main())


@pytest.mark.parametrize("kind", ["stream", "classic"])
def test_queue_deleted_under_its_consumer_wakes_it(bench: Bench, kind: str) -> None:
    async def main() -> None:
        queue = bench.stream() if kind == "stream" else bench.classic()
        other = bench.classic("other")
        async with bench.connect("alice") as broker:
            await declared(broker, queue, other)
            intake = await broker.consume(queue, offset=None, prefetch=5)
            async with asyncio.TaskGroup() as tasks:
                error = tasks.create_task(soon(intake))
                await asyncio.sleep(0.1)
                await bench.delete(queue.name)
            assert queue.name in str(error.result())
            with pytest.raises(BrokerUnreachable):
                await intake.receive(1, 0.0, 0.0)
            await intake.close()
            await broker.publish(to(other, b"x"))
            assert await bodies(broker, other, 1) == [b"x"]

    run(main())


def test_use_before_entering_and_after_leaving_raises(bench: Bench) -> None:
    async def main() -> None:
        queue = bench.classic()
        broker = bench.connect("alice")
        with pytest.raises(BrokerUnreachable):
            await broker.publish(to(queue, b"x"))
        async with broker:
            await declared(broker, queue)
            intake = await broker.consume(queue, offset=None, prefetch=5)
        for use in (
            intake.receive(1, 0.0, 1.0),
            intake.ack(1),
            intake.end(),
            broker.publish(to(queue, b"x")),
            broker.consume(queue, offset=None, prefetch=5),
            declared(broker, queue),
        ):
            with pytest.raises(BrokerUnreachable):
                await use
        await intake.close()

    run(main())


def test_closed_intake_cannot_be_used_and_can_be_closed_again(bench: Bench) -> None:
    async def main() -> None:
        queue = bench.classic()
        async with bench.connect("alice") as broker:
            await declared(broker, queue)
            intake = await broker.consume(queue, offset=None, prefetch=5)
            async with asyncio.TaskGroup() as tasks:
                error = tasks.create_task(soon(intake))
                await asyncio.sleep(0.1)
                await intake.close()
            assert "closed" in str(error.result())
            for use in (intake.receive(1, 0.0, 1.0), intake.ack(1), intake.end()):
                with pytest.raises(BrokerUnreachable, match="closed"):
                    await use
            await intake.close()

    run(main())


# What the embedded broker must not forgive: RabbitMQ does not


def test_stream_is_not_read_without_prefetch(bench: Bench) -> None:
    async def main() -> None:
        stream = bench.stream()
        async with bench.connect("alice") as broker:
            await declared(broker, stream)
            with pytest.raises(BrokerRefused, match="prefetch"):
                await broker.consume(stream, offset=None, prefetch=0)

    run(main())


@pytest.mark.parametrize("wrong", ["settled", "unknown"])
def test_ack_of_a_tag_that_is_not_outstanding_ends_the_reading(bench: Bench, wrong: str) -> None:
    async def main() -> None:
        queue = bench.classic()
        async with bench.connect("alice") as broker:
            await declared(broker, queue)
            await broker.publish(to(queue, b"one"))
            intake = await broker.consume(queue, offset=None, prefetch=5)
            (found,) = await take(intake, 1)
            await intake.ack(found.tag if wrong == "settled" else found.tag + 7)
            assert "delivery tag" in str(await soon(intake))
            await intake.close()
            await broker.publish(to(queue, b"two"))
            assert await bodies(broker, queue, 1) == [b"two"]

    run(main())


def test_unacknowledged_deliveries_of_two_consumers_come_again_in_their_first_order(bench: Bench) -> None:
    async def main() -> None:
        queue = bench.classic()
        async with bench.connect("alice") as broker:
            await declared(broker, queue)
            await broker.publish(to(queue, *numbered(6)))
            intakes = [await broker.consume(queue, offset=None, prefetch=3) for _ in range(2)]
            for intake in intakes:
                await collect(intake, 3)
            for intake in intakes:
                await intake.close()
            assert await bodies(broker, queue, 6) == numbered(6)

    run(main())


def test_expired_message_is_not_counted_as_ready(bench: Bench) -> None:
    async def main() -> None:
        queue = bench.classic()
        message = Message(exchange="", routing_key=queue.name, body=b"old", expiration=0.05)
        async with bench.connect("alice") as broker:
            await declared(broker, queue)
            await broker.publish([message])
            await asyncio.sleep(0.2)
            intake = await broker.consume(queue, offset=None, prefetch=5)
            await reaches(intake, 0)

    run(main())


def test_reply_queue_is_refused_to_another_connection(bench: Bench) -> None:
    async def main() -> None:
        reply = bench.reply()
        async with bench.connect("alice") as broker, bench.connect("bob") as other:
            await broker.consume(reply, offset=None, prefetch=5)
            with pytest.raises(BrokerUnreachable, match=reply.name):
                await other.consume(reply, offset=None, prefetch=5)

    run(main())


def test_tag_zero_settles_nothing(bench: Bench) -> None:
    async def main() -> None:
        queue = bench.classic()
        async with bench.connect("alice") as broker:
            await declared(broker, queue)
            await broker.publish(to(queue, b"one", b"two"))
            intake = await broker.consume(queue, offset=None, prefetch=5)
            await collect(intake, 2)
            with pytest.raises(ValueError, match="begins at 1"):
                await intake.ack(0)
            await intake.close()
            assert await bodies(broker, queue, 2) == [b"one", b"two"]

    run(main())


@pytest.mark.parametrize("kind", ["stream", "classic"])
def test_publisher_cannot_forge_an_offset(bench: Bench, kind: str) -> None:
    async def main() -> None:
        queue = bench.stream() if kind == "stream" else bench.classic()
        forged: list[str | int] = [999, "abc"]
        async with bench.connect("alice") as broker:
            await declared(broker, queue)
            for value in forged:
                headers = {"x-stream-offset": value, "unit": "bar"}
                await broker.publish(
                    [Message(exchange="", routing_key=queue.name, body=b"x", headers=headers)]
                )
            intake = await broker.consume(queue, offset=None, prefetch=5)
            found = await take(intake, 2)
            assert [d.offset for d in found] == ([0, 1] if kind == "stream" else [-1, -1])
            assert [d.headers for d in found] == [{"unit": "bar"}] * 2

    run(main())

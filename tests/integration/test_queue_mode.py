"""A topology that reads somebody else's queue, classic or quorum, on RabbitMQ."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import aio_pika
import msgspec
import pytest
from aio_pika.exceptions import ChannelClosed
from pamqp.header import ContentHeader
from structlog.testing import capture_logs

from stream.brokers.rabbitmq import RabbitBroker
from stream.control import request
from stream.errors import BrokerMissing, BrokerRefused, BrokerUnreachable
from stream.letterbox import Wanted, send_back, survey
from stream.plan import readings_queue
from stream.topology import Source, Topology
from tests.aio import run
from tests.queueing import Queueing, some_readings
from tests.rabbitmq_node import RabbitNode
from tests.torture.audit import audit, reference
from tests.torture.hall import QUEUE, Mode, Sent, topology
from tests.torture.sitting import await_true, stream_content

QUEUES: tuple[Mode, ...] = ("classic", "quorum")


def changed(what: Topology, **source: Any) -> Topology:
    altered: Source = msgspec.structs.replace(what.source, **source)
    return msgspec.structs.replace(what, source=altered)


@pytest.fixture
def queueing(rabbit_url: str, tmp_path: Path) -> Queueing:
    return Queueing(rabbit_url, tmp_path, topology("classic"))


@pytest.mark.parametrize("mode", QUEUES)
def test_nothing_is_acknowledged_before_its_commit_and_what_comes_again_is_dropped(
    queueing: Queueing, mode: Mode
) -> None:
    sent = some_readings(900)

    async def scenario() -> None:
        await queueing.prepare(mode, sent)
        committed = await queueing.killed("before_ack", 1)
        assert 0 < committed < len(sent)
        await queueing.left(len(sent))
        fresh = sum(item.kind == "fresh" for item in sent[:committed])
        twice = sum(item.kind == "again" for item in sent)
        async with queueing.running():
            usable = sum(item.kind == "fresh" for item in sent) - fresh
            await queueing.counted("mmlw_messages_processed_total", usable)
        again = queueing.total("mmlw_messages_passed_over_total", policy="duplicate")
        assert again == fresh + twice
        await queueing.left(0)
        wanted = await reference(queueing.topology, queueing.data / "calm", sent, [])
        found = audit(sent, [], await queueing.evidence(), wanted)
        assert found.faults == {}
        assert found.alerts > 20

    run(scenario())


def begun_anew(sent: Sent) -> Sent:
    """Its machine's counter begins anew every fifty messages."""
    if sent.kind == "broken":
        return sent
    body = json.loads(sent.body)
    return dataclasses.replace(sent, body=json.dumps({**body, "seq": body["seq"] % 50}).encode())


@pytest.mark.parametrize("mode", QUEUES)
def test_what_comes_again_from_before_a_counter_began_anew_is_dropped(queueing: Queueing, mode: Mode) -> None:
    sent = [begun_anew(item) for item in some_readings(900) if item.kind != "again"]

    async def scenario() -> None:
        await queueing.prepare(mode, sent)
        committed = await queueing.killed("before_ack", 1)
        assert 50 < committed < len(sent)
        await queueing.left(len(sent))
        fresh = [item.kind == "fresh" for item in sent]
        async with queueing.running():
            await queueing.counted("mmlw_messages_processed_total", sum(fresh[committed:]))
        assert queueing.total("mmlw_messages_passed_over_total", policy="duplicate") == sum(fresh[:committed])
        await queueing.left(0)
        wanted = await reference(queueing.topology, queueing.data / "calm", sent, [])
        found = audit(sent, [], await queueing.evidence(), wanted)
        assert found.faults == {}
        assert found.alerts > 20

    run(scenario())


@pytest.mark.parametrize("mode", QUEUES)
def test_what_was_processed_and_not_committed_comes_again(queueing: Queueing, mode: Mode) -> None:
    sent = some_readings(900)

    async def scenario() -> None:
        await queueing.prepare(mode, sent)
        committed = await queueing.killed("before_commit", 3)
        assert committed < len(sent)
        await queueing.left(len(sent) - committed)

    run(scenario())


@pytest.mark.parametrize("mode", QUEUES)
def test_what_comes_again_is_one_dead_letter_where_its_publisher_gives_no_ids(
    queueing: Queueing, monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    """And it is sent back once."""
    body = {"machine": "m00", "time": 1_722_988_800.0, "seq": 0, "values": {"a": 0.0, "nobody_knows": 1.0}}
    sent = [Sent("broken", 0, "m00", json.dumps(body).encode(), ""), *some_readings(400)]
    broken = [item for item in sent if item.kind == "broken"]
    unknown = [item for item in broken if item.seq >= 0]

    async def scenario() -> None:
        await queueing.prepare(mode)
        with monkeypatch.context() as patch:
            patch.setattr(ContentHeader, "marshal", nameless)
            await queueing.send(sent)
        committed = await queueing.killed("before_ack", 1)
        twice = sum(item.kind == "broken" for item in sent[:committed])
        assert twice > 0
        await queueing.left(len(sent))
        usable = sum(item.kind == "fresh" for item in sent)
        fresh = sum(item.kind == "fresh" for item in sent[:committed])
        async with queueing.running():
            await queueing.counted("mmlw_messages_processed_total", usable - fresh)
        letters = await stream_content(queueing.url, "mmlw.deadletters")
        assert len(letters) >= len(broken) + twice
        assert len({identity for identity, _ in letters}) == len(broken)
        assert {body for _, body in letters} == {item.body for item in broken}
        queueing.topology = changed(queueing.topology, unknown_sensor="ignore")
        async with queueing.running(), RabbitBroker(queueing.url) as broker:
            found = await survey(broker, Wanted(reasons=["unknown_sensor"]))
            queues = {queueing.topology.name: readings_queue(queueing.topology)}
            for _ in range(2):
                assert await send_back(broker, found.numbers, queues) == len(unknown)
            await queueing.counted("mmlw_messages_processed_total", usable - fresh + len(unknown))
        await queueing.left(0)
        learned = Counter(item.machine for item in sent if item.kind == "fresh" or item in unknown)
        assert (await queueing.evidence()).learned == learned

    run(scenario())


def nameless(self: ContentHeader, marshal: Any = ContentHeader.marshal) -> bytes:
    """A message's properties without the id that this driver makes up, as most others send them."""
    self.properties.message_id = None
    written: bytes = marshal(self)
    return written


@pytest.mark.parametrize("mode", QUEUES)
def test_second_worker_is_refused_where_the_queue_is_exclusive(queueing: Queueing, mode: Mode) -> None:
    async def scenario() -> None:
        await queueing.prepare(mode)
        other = Queueing(queueing.url, queueing.data / "other", queueing.topology)
        async with queueing.running():
            with pytest.raises(BrokerUnreachable, match="another consumer reads it: stop that one, or say"):
                await other.worker().run(asyncio.Event())

    run(scenario())


def test_classic_queue_keeps_every_other_reader_out(queueing: Queueing) -> None:
    """A quorum queue does not, which the start-up line says."""

    async def scenario() -> None:
        await queueing.prepare("classic")
        async with queueing.running(), await aio_pika.connect(queueing.url) as connection:
            queue = await (await connection.channel()).get_queue(QUEUE)
            with pytest.raises(ChannelClosed, match="in exclusive use"):
                await queue.consume(ignore)

    run(scenario())


@pytest.mark.parametrize("mode", QUEUES)
def test_worker_does_not_share_a_queue_that_somebody_reads_unless_told_to(
    queueing: Queueing, mode: Mode
) -> None:
    async def scenario() -> None:
        await queueing.prepare(mode)
        async with await aio_pika.connect(queueing.url) as connection:
            queue = await (await connection.channel()).get_queue(QUEUE)
            await queue.consume(ignore)
            with pytest.raises(BrokerUnreachable, match="another consumer reads it"):
                await queueing.worker().run(asyncio.Event())
            queueing.topology = changed(queueing.topology, exclusive=False)
            async with queueing.running() as worker:
                assert worker.ready

    run(scenario())


def test_cancelled_question_to_the_broker_stays_cancelled(queueing: Queueing) -> None:
    """The driver swallows a cancellation that comes while a channel closes; the task would not end."""

    async def scenario() -> int:
        cancelled = 0
        await queueing.prepare("classic")
        queue = readings_queue(queueing.topology)
        for attempt in range(150):
            async with RabbitBroker(queueing.url) as broker, asyncio.TaskGroup() as tasks:
                asking = tasks.create_task(broker.message_count(queue))
                await asyncio.wait([asking], timeout=attempt * 0.00005)
                if asking.cancel():
                    await asyncio.wait([asking])
                    assert asking.cancelled(), f"after {attempt}"
                    cancelled += 1
        return cancelled

    assert run(scenario()) > 20


async def ignore(_: object) -> None: ...


GUARANTEES: dict[str, tuple[dict[str, Any], str]] = {
    "exclusive": (
        {},
        "exactly once for machines that send a sequence number, at least once for others: acknowledged after "
        "the commit, one reader (a quorum queue keeps others out only by x-single-active-consumer)",
    ),
    "by time": (
        {"order_by": "time"},
        "exactly once for machines that send rising times, at least once for others: acknowledged after the "
        "commit, one reader (a quorum queue keeps others out only by x-single-active-consumer)",
    ),
    "shared": (
        {"exclusive": False},
        "at least once: others may read the queue too; exactly once for machines that send a sequence number, "
        "at least once for others: acknowledged after the commit if it has x-single-active-consumer",
    ),
    "stream": (
        {"queue": None},
        "exactly once: a stream of our own, its position and the state in one checkpoint",
    ),
}


@pytest.mark.parametrize("case", GUARANTEES)
def test_first_line_says_what_is_guaranteed_and_why(queueing: Queueing, case: str) -> None:
    source, text = GUARANTEES[case]

    async def scenario() -> list[Any]:
        await queueing.prepare("classic")
        queueing.topology = changed(queueing.topology, **source)
        with capture_logs() as logs:
            async with queueing.running():
                pass
        return [line["guarantee"] for line in logs if line["event"] == "topology_started"]

    assert run(scenario()) == [text]


def test_queue_that_does_not_exist_is_one_clear_line(queueing: Queueing) -> None:
    async def scenario() -> str:
        await queueing.prepare("classic")
        queueing.topology = changed(queueing.topology, queue="nobodys")
        with pytest.raises(BrokerMissing) as caught:
            await queueing.worker().run(asyncio.Event())
        return str(caught.value)

    said = run(scenario())
    assert said.endswith('queue "nobodys" is missing; make it and bind it, or correct source.queue')
    assert "\n" not in said


def test_stream_named_as_a_queue_is_refused(queueing: Queueing) -> None:
    """Read as a queue, a stream gives only what comes from now on, and never what came while nobody read."""

    async def scenario() -> str:
        await queueing.prepare("classic")
        async with await aio_pika.connect(queueing.url) as connection:
            channel = await connection.channel()
            await channel.declare_queue("log", durable=True, arguments={"x-queue-type": "stream"})
        queueing.topology = changed(queueing.topology, queue="log")
        with pytest.raises(BrokerRefused) as caught:
            await queueing.worker().run(asyncio.Event())
        return str(caught.value)

    said = run(scenario())
    assert said.endswith('queue "log" is a stream; name its exchange instead of the queue')


@contextlib.contextmanager
def short_consumer_timeout(node: RabbitNode) -> Any:
    """Channels that hold a message for three seconds without acknowledgement are closed, checked each second."""
    names = ("consumer_timeout", "channel_tick_interval")
    before = [node.ctl("eval", f"application:get_env(rabbit, {name}, undefined).").strip() for name in names]
    pairs = "{consumer_timeout, %s}, {channel_tick_interval, %s}"
    setting = f"[application:set_env(rabbit, K, V) || {{K, V}} <- [{pairs}]]."
    node.ctl("eval", setting % (3000, 1000))
    try:
        yield
    finally:
        node.ctl("eval", setting % tuple(before))


@pytest.mark.parametrize("mode", QUEUES)
def test_paused_worker_whose_channel_times_out_goes_on_without_loss(
    rabbitmq: RabbitNode, queueing: Queueing, mode: Mode
) -> None:
    sent = some_readings(900)

    async def ask(verb: str) -> None:
        async with RabbitBroker(queueing.url) as broker:
            receipt = await request(broker, queueing.topology.name, verb, user="guest", timeout=30)
            assert receipt["status"] == "applied"

    async def scenario() -> None:
        await queueing.prepare(mode)
        async with queueing.running():
            await ask("pause")
            await queueing.send(sent)

            async def timed_out() -> bool:
                return queueing.total("mmlw_restarts_total", cause="broker") >= 1

            await await_true(timed_out, 40.0)
            await ask("resume")
            usable = sum(item.kind == "fresh" for item in sent)
            await queueing.counted("mmlw_messages_processed_total", usable)
        await queueing.left(0)
        wanted = await reference(queueing.topology, queueing.data / "calm", sent, [])
        assert audit(sent, [], await queueing.evidence(), wanted).faults == {}

    with short_consumer_timeout(rabbitmq):
        run(scenario())

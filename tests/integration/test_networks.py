"""A worker whose network fails in every way we know goes on by itself, and nothing is lost or counted twice."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aio_pika
import msgspec
import pytest

from stream.alerts import Alert
from stream.brokers.base import Message, Queue
from stream.brokers.memory import MemoryBroker, MemoryServer
from stream.brokers.rabbitmq import RabbitBroker
from stream.checkpoint import Checkpoint
from stream.errors import BrokerUnreachable
from stream.plan import broker_plan, readings_queue
from stream.runtimes.local import Worker
from stream.scorer import Scorer
from stream.state import Changes, Store
from stream.topology import Topology
from tests.aio import run
from tests.plant import Plant, readings, topology
from tests.rabbitmq_node import RabbitNode, rabbit_node
from tests.tcp_proxy import PASS, RESET, STALL, Fault, TcpProxy, Way, tcp_proxy

HEARTBEAT = 2
TIMEOUT = 2.0
"""Seconds, short so that the tests are; what the worker does is the same."""
BATCHES = 3
SIZE = 200
_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Hall:
    """A worker behind a proxy, on a virtual host of its own, and a machine that publishes past the proxy."""

    node: RabbitNode
    vhost: str
    proxy: TcpProxy
    plant: Plant
    user: str = "guest"
    messages: Sequence[Message] = field(default_factory=lambda: readings(BATCHES * SIZE, bad_every=50))

    def broker(self) -> RabbitBroker:
        """A fresh connection of the worker's, through the proxy."""
        url = f"amqp://{self.user}:{self.user}@127.0.0.1:{self.proxy.port}/{self.vhost}"
        return RabbitBroker(url, timeout=TIMEOUT, heartbeat=HEARTBEAT)

    def past_the_proxy(self) -> RabbitBroker:
        """A connection straight to the node."""
        return RabbitBroker(self.node.url(vhost=self.vhost))

    @property
    def restarts(self) -> float:
        """How often the worker began anew."""
        return self.total("mmlw_restarts_total")

    def total(self, name: str) -> float:
        """The sum of a metric's series."""
        families = self.plant.metrics.registry.collect()
        return sum(s.value for family in families for s in family.samples if s.name == name)

    async def publish(self, part: int, *, pause: float = 0.0) -> None:
        """Publish a part of the readings, each confirmed, with an ordinary client that notices what is returned."""
        async with await aio_pika.connect(self.node.url(vhost=self.vhost)) as connection:
            channel = await connection.channel(on_return_raises=True)
            exchange = await channel.get_exchange("mmlw.sensors")
            first, *others = self.messages[part * SIZE : (part + 1) * SIZE]
            await _insist(exchange, first)
            async with asyncio.TaskGroup() as tasks:
                for message in others:
                    body = aio_pika.Message(message.body)
                    tasks.create_task(exchange.publish(body, message.routing_key, timeout=30.0))
                    await asyncio.sleep(pause)

    @contextlib.asynccontextmanager
    async def running(
        self, *, wait: float = 0.0, store: Callable[[Topology], Store] | None = None
    ) -> AsyncIterator[Worker]:
        """The worker, reading unless it may wait for its broker; it must stop by itself when told to."""
        plant, stop = self.plant, asyncio.Event()
        worker = Worker(
            (plant.topology,),
            connect=self.broker,
            data=plant.data,
            metrics=plant.metrics,
            wait=wait,
            store=store,
        )
        async with asyncio.timeout(240), asyncio.TaskGroup() as tasks:
            task = tasks.create_task(worker.run(stop))
            if not wait:
                await until(lambda: worker.ready or task.done())
            yield worker
            stop.set()
            async with asyncio.timeout(240):
                await task

    async def processed(self, parts: int, *, within: float = 240.0) -> None:
        """Wait until the worker has processed so many parts."""
        total = parts * SIZE
        try:
            await until(lambda: sum(self.fates().values()) >= total, within)
        except TimeoutError:
            pytest.fail(f"{self.fates()} after {within:g} s; {total} were published")

    def fates(self) -> dict[str, float]:
        """What became of the messages that were published: how many have which effect."""
        dead = self.total("mmlw_messages_deadlettered_total")
        return {"processed": self.total("mmlw_messages_processed_total"), "dead-lettered": dead}

    async def alerts(self) -> list[Alert]:
        """What the alerts' stream on the node holds, each event once."""
        seen: dict[str, Alert] = {}
        queue, offset = Queue(name="mmlw.alerts"), -1
        async with self.past_the_proxy() as broker:
            end = await broker.end_of_stream(queue)
            intake = await broker.consume(queue, offset=None, prefetch=2000)
            while offset < end - 1:
                found = await intake.receive(2000, 0.0, 10.0)
                for delivery in found:
                    assert delivery.message_id is not None
                    seen.setdefault(delivery.message_id, msgspec.json.decode(delivery.body, type=Alert))
                await intake.ack(found[-1].tag)
                offset = found[-1].offset
        return list(seen.values())


async def _insist(exchange: aio_pika.abc.AbstractExchange, message: Message) -> None:
    """Publish until it is routed: RabbitMQ lets clients in before it has found its streams again."""
    async with asyncio.timeout(240):
        while True:
            try:
                await exchange.publish(aio_pika.Message(message.body), message.routing_key, timeout=30.0)
            except aio_pika.exceptions.PublishError:  # returned: NO_ROUTE
                await asyncio.sleep(0.05)
            else:
                return


Open = Callable[..., contextlib.AbstractAsyncContextManager[Hall]]


@pytest.fixture(scope="module")
def vhosts(rabbitmq: RabbitNode) -> Iterator[str]:
    """Fresh virtual hosts, made by one command, because each costs a second."""
    names = [f"networks{n}" for n in range(30)]
    made = ", ".join(
        f'rabbit_vhost:add(<<"{name}">>, <<"t">>), rabbit_auth_backend_internal:set_permissions('
        f'<<"guest">>, <<"{name}">>, <<".*">>, <<".*">>, <<".*">>, <<"t">>)'
        for name in names
    )
    rabbitmq.ctl("eval", f"{made}.")
    return iter(names)


@pytest.fixture
def hall(rabbitmq: RabbitNode, vhosts: Iterator[str], tmp_path: Path) -> Open:
    """Opens a hall, for a worker of this user."""

    @contextlib.asynccontextmanager
    async def opened(user: str = "guest") -> AsyncIterator[Hall]:
        vhost = next(vhosts)
        if user != "guest":
            await asyncio.to_thread(rabbitmq.user, user, user, vhost)
        async with tcp_proxy(rabbitmq.port) as proxy:
            plant = Plant(tmp_path, topology(max_batch=32))
            made = Hall(rabbitmq, vhost, proxy, plant, user)
            async with made.past_the_proxy() as broker:
                await broker.declare(broker_plan(plant.topology), mode="declare")
            yield made

    return opened


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[Alert]:
    """The alerts of a run that nothing interrupts."""

    async def main() -> list[Alert]:
        plant = Plant(tmp_path_factory.mktemp("calm"), topology(max_batch=32))
        await plant.declare()
        await plant.publish(readings(BATCHES * SIZE, bad_every=50))
        await plant.process(BATCHES * SIZE)
        return await plant.alerts()

    found = run(main())
    assert len(found) > 20
    return found


async def until(condition: Callable[[], bool], within: float = 240.0) -> float:
    """Wait until it holds; how many seconds that took."""
    started = time.monotonic()
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return time.monotonic() - started


async def nothing_lost(at: Hall, expected: Sequence[Alert]) -> None:
    """Every alert of an uninterrupted run is there and no other, and every message is accounted for once."""
    assert sorted(map(_key, await at.alerts())) == sorted(map(_key, expected))
    conserved(at)


def conserved(at: Hall) -> None:
    """Every message published has one fate; every message received has one, or was passed over."""
    bad = BATCHES * SIZE // 50
    assert at.fates() == {"processed": BATCHES * SIZE - bad, "dead-lettered": bad}
    passed_over = at.total("mmlw_messages_passed_over_total")
    assert at.total("mmlw_messages_received_total") == BATCHES * SIZE + passed_over


def _key(alert: Alert) -> bytes:
    return msgspec.json.encode(alert)


@dataclass(frozen=True)
class Case:
    """A fault that lasts until the worker began anew so many times, which takes at most `within` seconds."""

    fault: Fault
    within: float
    restarts: int = 1


# Missing heartbeats are noticed after three of them; what was sent and not answered, after the broker's timeout.
FAULTS = {
    "reset": Case(RESET, 5.0, 2),
    "FIN to the worker": Case(Fault(ended=Way.TO_WORKER), 5.0, 2),
    "FIN to the broker": Case(Fault(ended=Way.TO_BROKER), 5.0, 2),
    "stall": Case(STALL, 15.0),
    "silence to the worker": Case(Fault(held=frozenset({Way.TO_WORKER})), 15.0),
    "silence to the broker": Case(Fault(held=frozenset({Way.TO_BROKER})), 15.0),
    **{f"cut after {n} bytes": Case(Fault(reset_after=n), 5.0, 2) for n in (1, 300, 530)},
}


@pytest.mark.parametrize("name", FAULTS)
def test_worker_goes_on_by_itself_after(name: str, hall: Open, expected: list[Alert]) -> None:
    async def main() -> None:
        case = FAULTS[name]
        async with hall() as at:
            async with at.running():
                await at.publish(0)
                await at.processed(1)
                began = time.monotonic()
                at.proxy.switch(case.fault)
                await at.publish(1)
                await until(lambda: at.restarts >= 1, case.within)
                noticed = time.monotonic() - began
                await until(lambda: at.restarts >= case.restarts, case.within)
                at.proxy.switch(PASS)
                began = time.monotonic()
                await at.publish(2)
                await at.processed(3, within=120.0)
                print(f"@@ {name}: noticed in {noticed:.2f} s, well in {time.monotonic() - began:.2f} s")
            await nothing_lost(at, expected)

    run(main())


@pytest.mark.timeout(180)
def test_worker_goes_on_by_itself_after_the_broker_was_restarted(
    tmp_path: Path, expected: list[Alert]
) -> None:
    """Stopped in order and started again; RabbitMQ does not promise more of a single node (no power cut)."""

    async def main(node: RabbitNode) -> None:
        async with tcp_proxy(node.port) as proxy:
            at = Hall(node, node.vhost(), proxy, Plant(tmp_path, topology(max_batch=32)))
            async with at.past_the_proxy() as broker:
                await broker.declare(broker_plan(at.plant.topology), mode="declare")
            async with at.running():
                await at.publish(0)
                await at.processed(1)
                await asyncio.to_thread(node.terminate)
                await until(lambda: at.restarts >= 1, 15.0)
                await asyncio.to_thread(node.start)
                began = time.monotonic()
                await at.publish(1)
                await at.publish(2)
                await at.processed(3, within=120.0)
                print(f"@@ broker restart: well in {time.monotonic() - began:.2f} s")
            await nothing_lost(at, expected)

    with rabbit_node() as node:
        run(main(node))


@pytest.mark.parametrize("name", ["stall", "cut after 300 bytes"])
def test_worker_waits_at_its_start_for_a_network_that_is_broken(
    name: str, hall: Open, expected: list[Alert]
) -> None:
    async def main() -> None:
        async with hall() as at:
            at.proxy.switch(FAULTS[name].fault)
            async with at.running(wait=30.0) as worker:
                for part in range(BATCHES):
                    await at.publish(part)
                await until(lambda: at.restarts >= 1, 15.0)
                assert not worker.ready
                at.proxy.switch(PASS)
                await at.processed(3, within=120.0)
            await nothing_lost(at, expected)

    run(main())


@pytest.mark.parametrize("fault", [Fault(rate=60_000.0), STALL], ids=["slow", "stalled for a second"])
def test_worker_stays_connected_while_the_network_is(fault: Fault, hall: Open, expected: list[Alert]) -> None:
    async def main() -> None:
        async with hall() as at:
            async with at.running():
                await at.publish(0)
                at.proxy.switch(fault)
                await at.publish(1)
                if fault is STALL:
                    await asyncio.sleep(1.0)
                    at.proxy.switch(PASS)
                await at.publish(2)
                await at.processed(3)
                assert at.restarts == 0
                at.proxy.switch(PASS)
            await nothing_lost(at, expected)

    run(main())


@pytest.mark.parametrize("doing", ["reading", "publishing", "connecting"])
def test_worker_stops_in_time_while_the_network_is_stalled(
    doing: str, hall: Open, expected: list[Alert]
) -> None:
    async def main() -> None:
        async with hall() as at:
            async with at.running():
                await at.publish(0)
                await at.processed(1)
                if doing == "connecting":
                    at.proxy.switch(RESET)
                    await until(lambda: at.restarts >= 1, 5.0)
                    accepted = at.proxy.accepted
                    at.proxy.switch(STALL)
                    await until(lambda: at.proxy.accepted > accepted, 5.0)
                at.proxy.switch(STALL if doing != "publishing" else FAULTS["silence to the broker"].fault)
                for part in range(1, BATCHES):
                    await at.publish(part)
                began = time.monotonic()
            print(f"@@ stopped while {doing} in {time.monotonic() - began:.2f} s")
            assert time.monotonic() - began < 4 * TIMEOUT
            at.proxy.switch(PASS)
            async with at.running():
                await at.processed(3)
            await nothing_lost(at, expected)

    run(main())


def files_open() -> int:
    """How many files and sockets this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_nothing_is_lost_when_the_network_fails_again_and_again(hall: Open, expected: list[Alert]) -> None:
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    dice = random.Random(seed)
    faults = [RESET, STALL, *(case.fault for case in FAULTS.values() if case.fault.ended)]

    async def break_it(at: Hall) -> None:
        for _ in range(8):
            fault = dice.choice([*faults, Fault(reset_after=dice.randrange(20_000))])
            at.proxy.switch(fault)
            await asyncio.sleep(dice.uniform(0.0, 0.2))
            at.proxy.switch(PASS)
            await asyncio.sleep(dice.uniform(0.0, 0.6))

    async def main() -> None:
        async with hall() as at:
            before = files_open()
            async with at.running(), asyncio.TaskGroup() as tasks:
                await at.publish(0)
                tasks.create_task(break_it(at))
                for part in range(1, BATCHES):
                    await at.publish(part, pause=0.01)
                await at.processed(3)
                assert at.restarts >= 1
            await until(lambda: files_open() <= before, 5.0)
            await nothing_lost(at, expected)

    run(main())


class _AtCommit:
    """A store whose third commit of messages takes place while the network fails."""

    def __init__(self, store: Store, fail: Callable[[], None]) -> None:
        self._store = store
        self._fail = fail
        self._commits = 0
        self.load, self.fetch, self.close = store.load, store.fetch, store.close

    def note(self, note: bytes) -> None:
        """See `Store`."""
        self._store.note(note)

    def commit(self, changes: Changes) -> int:
        """See `Store`."""
        if changes.machines:
            self._commits += 1
            if self._commits == 3:
                self._fail()
                time.sleep(0.3)
        return self._store.commit(changes)


def test_messages_are_counted_when_the_network_fails_during_their_commit(
    hall: Open, expected: list[Alert]
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        def fail() -> None:
            loop.call_soon_threadsafe(at.proxy.switch, RESET)
            loop.call_soon_threadsafe(loop.call_later, 0.1, at.proxy.switch, PASS)

        def store(topology: Topology) -> Store:
            path = at.plant.data / "checkpoint"
            return _AtCommit(Checkpoint(path, topology.name, Scorer.recipes(topology)), fail)

        async with hall() as at:
            async with at.running(store=store):
                for part in range(BATCHES):
                    await at.publish(part, pause=0.002)
                await at.processed(3, within=120.0)
                assert at.restarts == 1
            await nothing_lost(at, expected)

    run(main())


# What the broker does to a worker


@contextlib.asynccontextmanager
async def memory_alarm(node: RabbitNode) -> AsyncIterator[None]:
    """RabbitMQ has no memory left: it reads nothing more from connections that publish."""
    try:
        await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.00001")
        yield
    finally:
        await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.4")


BLOCKED = "blocked: the broker takes no messages, see `rabbitmq-diagnostics alarms`"


def test_worker_whose_publishing_is_blocked_is_not_ready_at_once(hall: Open) -> None:
    """Before anything timed out; and ready again though nothing was read since."""

    async def main() -> None:
        async with hall() as at, at.running() as worker:
            await at.publish(0)
            await at.processed(1)
            at.proxy.switch(STALL)
            await at.publish(1)
            async with memory_alarm(at.node):
                at.proxy.switch(PASS)
                await until(lambda: worker.problems() == {"plant": BLOCKED}, 3 * TIMEOUT)
            await until(lambda: worker.ready, 10 * TIMEOUT)
            await at.processed(2)

    run(main())


def test_closing_gives_up_on_both_connections_at_once(hall: Open) -> None:
    async def main() -> None:
        async with hall() as at:
            async with at.broker() as broker:
                await broker.publish([Message(exchange="mmlw.sensors", routing_key="sensor.m0.a", body=b"")])
                at.proxy.switch(STALL)
                began = time.monotonic()
            assert time.monotonic() - began < TIMEOUT + 0.5

    run(main())


def test_publishing_on_a_blocked_connection_ends_in_the_timeout(hall: Open) -> None:
    async def main() -> None:
        async with hall() as at, at.broker() as broker:
            letter = Message(exchange="mmlw.sensors", routing_key="sensor.m0.readings", body=b"{}")
            await broker.publish([letter])
            async with memory_alarm(at.node):
                began = time.monotonic()
                with pytest.raises(BrokerUnreachable, match="alarms"):
                    await broker.publish([letter] * 300)
                assert time.monotonic() - began < TIMEOUT + 1.0

    run(main())


def test_worker_stands_still_during_a_memory_alarm_and_goes_on_after_it(
    hall: Open, expected: list[Alert]
) -> None:
    async def main() -> None:
        async with hall() as at:
            async with at.running() as worker, asyncio.TaskGroup() as tasks:
                await at.publish(0)
                await at.processed(1)
                at.proxy.switch(STALL)  # so that readings are here, and their alerts are not
                await at.publish(1)
                async with memory_alarm(at.node):
                    at.proxy.switch(PASS)
                    machines = tasks.create_task(at.publish(2))
                    await until(lambda: at.restarts >= 1, 3 * TIMEOUT)
                    await until(lambda: worker.problems() == {"plant": BLOCKED}, 3 * TIMEOUT)
                    for _ in range(int(3 * TIMEOUT / 0.02)):  # between two attempts, too
                        assert worker.problems() == {"plant": BLOCKED}
                        await asyncio.sleep(0.02)
                    assert not worker.ready
                    assert sum(at.fates().values()) < 2 * SIZE
                    assert not machines.done()
                began = time.monotonic()
                await at.processed(3)
                print(f"@@ memory alarm: well in {time.monotonic() - began:.2f} s")
                assert worker.problems() == {}
            await nothing_lost(at, expected)

    run(main())


class _Blocked(MemoryBroker):
    """A broker that takes no alerts; `refused` is set when it was asked to."""

    def __init__(self, server: MemoryServer, refused: asyncio.Event) -> None:
        super().__init__(server, user="worker")
        self._refused = refused

    async def publish(self, messages: Sequence[Message]) -> None:
        """See `Broker`."""
        if any(message.exchange == "mmlw.alerts" for message in messages):
            self._refused.set()
            raise BrokerUnreachable("no answer")
        await super().publish(messages)


def test_no_message_is_blamed_for_stops_while_alerts_cannot_be_published(
    tmp_path: Path, expected: list[Alert]
) -> None:
    async def main() -> None:
        plant = Plant(tmp_path, topology(max_batch=32))
        await plant.declare()
        await plant.publish(readings(BATCHES * SIZE, bad_every=50))
        refused = asyncio.Event()
        plant.connect = lambda: _Blocked(plant.server, refused)
        for _ in range(6):
            refused.clear()
            stop = asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(plant.worker().run(stop))
                await refused.wait()
                stop.set()
        plant.connect = None
        await plant.process(BATCHES * SIZE)
        assert plant.metrics.dead_letters("plant").keys() == {"not_decodable"}
        assert sorted(map(_key, await plant.alerts())) == sorted(map(_key, expected))

    run(main())


def test_worker_makes_a_deleted_stream_anew_and_keeps_its_state(hall: Open, expected: list[Alert]) -> None:
    def content(alert: Alert) -> bytes:
        return _key(msgspec.structs.replace(alert, id="", position=expected[0].position))

    async def main() -> None:
        async with hall() as at:
            async with at.running() as worker:
                await at.publish(0)
                await at.processed(1)
                name = readings_queue(at.plant.topology).name
                async with await aio_pika.connect(at.node.url(vhost=at.vhost)) as connection:
                    await (await connection.channel()).queue_delete(name)
                began = time.monotonic()
                await until(lambda: at.restarts >= 1 and worker.ready)
                for part in range(1, BATCHES):
                    await at.publish(part)
                await at.processed(3)
                print(f"@@ stream deleted: well in {time.monotonic() - began:.2f} s")
            assert sorted(map(content, await at.alerts())) == sorted(map(content, expected))
            conserved(at)

    run(main())


@pytest.mark.parametrize("revoked", ["password", "permissions"])
def test_worker_goes_on_when_it_is_let_in_again(revoked: str, hall: Open, expected: list[Alert]) -> None:
    user = f"worker{next(_NUMBERS)}-of-networks"

    async def main() -> None:
        async with hall(user) as at:

            def lock_out() -> None:
                if revoked == "password":
                    at.node.ctl("change_password", user, "another")
                    at.node.ctl("close_all_user_connections", user, "revoked")
                else:
                    at.node.ctl("clear_permissions", "--vhost", at.vhost, user)

            def let_in() -> None:
                if revoked == "password":
                    at.node.ctl("change_password", user, user)
                else:
                    at.node.ctl("set_permissions", "--vhost", at.vhost, user, ".*", ".*", ".*")

            async with at.running():
                await at.publish(0)
                await at.processed(1)
                await asyncio.to_thread(lock_out)
                await at.publish(1)
                await until(lambda: at.restarts >= 2)
                await asyncio.to_thread(let_in)
                began = time.monotonic()
                await at.publish(2)
                await at.processed(3)
                print(f"@@ {revoked} revoked: well in {time.monotonic() - began:.2f} s")
            await nothing_lost(at, expected)

    run(main())

"""One sitting: readings flow, a worker is killed so many times, drains in the end, and is audited."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import aio_pika
import msgspec
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from stream.brokers.rabbitmq import RabbitBroker
from stream.plan import CONTROL_EXCHANGE, broker_plan
from stream.topology import Topology
from tests.torture.audit import Evidence, Findings, audit, reference, state_of
from tests.torture.hall import EXCHANGE, LAST, QUEUE, Mode, Sent, last, readings, topology
from tests.torture.life import Orders, begin
from tests.torture.points import POINTS, SWAP_POINTS, Point

__all__ = ["Report", "await_true", "last_life", "prepared_broker", "publish", "sit", "stream_content"]

_RANDOM_SHARE = 0.125
"""Of all kills, those at any moment."""
_LIFE_SECONDS = 120.0
"""In which a life must come to its end."""
_PATIENCE_SECONDS = 5.0
"""After which one more swap is asked for where a swap is to be killed."""
_PACE = 500.0
"""Readings a second, in bursts."""


class Report(msgspec.Struct, kw_only=True):
    """What became of one sitting."""

    mode: Mode
    seed: int
    kills: dict[str, int]
    """How often, by point."""
    seconds: float
    found: Findings


@dataclass(slots=True)
class Sitting:
    """A worker's surroundings: what was sent and asked, what came back."""

    url: str
    data: Path
    mode: Mode
    seed: int
    rng: random.Random
    sent: list[Sent] = field(default_factory=list)
    commands: list[tuple[str, str]] = field(default_factory=list)
    """Id and model, in order."""
    receipts: list[dict[str, Any]] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    flowing: bool = True

    @property
    def topology(self) -> Topology:
        """What the worker runs."""
        return topology(self.mode)


async def sit(
    url: str, data: Path, mode: Mode, *, seed: int, kills: int, tell: Callable[[str], None] = print
) -> Report:
    """Kill a worker so many times on a fresh virtual host, and audit it."""
    started = time.monotonic()
    sitting = Sitting(url, data, mode, seed, random.Random(seed))
    await prepared_broker(url, sitting.topology, mode)
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        replies = await channel.declare_queue(f"mmlw.reply.torture.{seed}", exclusive=True)
        await replies.consume(partial(_receive, sitting), no_ack=True)
        async with asyncio.TaskGroup() as tasks:
            flow = tasks.create_task(_flow(sitting))
            for number, point in enumerate(_plan(sitting.rng, kills), 1):
                await _one_life(sitting, channel, replies.name, point)
                if not number % 10:
                    tell(f"    {number} of {kills} kills, {len(sitting.sent)} readings")
            sitting.flowing = False
            await flow
        await _drain(sitting)
    evidence = await _evidence(sitting)
    wanted = await reference(sitting.topology, data / "calm", sitting.sent, _swaps(sitting, evidence))
    found = audit(sitting.sent, [name for name, _ in sitting.commands], evidence, wanted)
    return Report(
        mode=mode, seed=seed, kills=dict(sitting.kills), seconds=time.monotonic() - started, found=found
    )


async def prepared_broker(url: str, what: Topology, mode: Mode) -> None:
    """Whatever must be there before the first reading; a queue of somebody else's where one is read."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        if mode != "stream":
            exchange = await channel.declare_exchange(EXCHANGE, "topic", durable=True)
            arguments: dict[str, Any] = {"x-queue-type": mode}
            queue = await channel.declare_queue(QUEUE, durable=True, arguments=arguments)
            await queue.bind(exchange, "sensor.#")
    async with RabbitBroker(url) as broker:
        await broker.declare(broker_plan(what), mode="declare")


def _plan(rng: random.Random, kills: int) -> list[Point | None]:
    """Every point equally often, in any order; None is a kill at any moment."""
    chance = round(kills * _RANDOM_SHARE)
    points = rng.sample(POINTS, len(POINTS))
    named: list[Point | None] = list(itertools.islice(itertools.cycle(points), kills - chance))
    plan = named + [None] * chance
    rng.shuffle(plan)
    return plan


async def _one_life(sitting: Sitting, channel: AbstractChannel, replies: str, point: Point | None) -> None:
    rng = sitting.rng
    if point in SWAP_POINTS or rng.random() < 0.2:
        await _ask_swap(sitting, channel, replies)
    passage = rng.randint(1, 3 if point in SWAP_POINTS else 6)
    if point in SWAP_POINTS:
        for _ in range(passage - 1):
            await _ask_swap(sitting, channel, replies)
    orders = Orders(
        sitting.url,
        sitting.data,
        sitting.topology,
        point,
        passage,
        after=0 if point in SWAP_POINTS or rng.random() < 0.3 else rng.randint(1, 300),
    )
    process, hears = begin(orders)
    with contextlib.closing(hears):
        if point is None:
            await _until(lambda: hears.poll() or not process.is_alive(), _LIFE_SECONDS)
            await asyncio.sleep(rng.uniform(0.0, 0.5))
            process.kill()
        await _ended(process, orders, partial(_ask_swap, sitting, channel, replies))
    sitting.kills[point or "any moment"] += 1


async def _ended(process: BaseProcess, orders: Orders, ask_swap: Callable[[], Awaitable[None]]) -> None:
    for _ in range(int(_LIFE_SECONDS / _PATIENCE_SECONDS)):
        await asyncio.to_thread(process.join, _PATIENCE_SECONDS)
        if process.exitcode is not None:
            break
        if orders.point in SWAP_POINTS:
            await ask_swap()  # those before may have come where none is killed
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    process.close()
    if code != -signal.SIGKILL:
        ending = orders.log.read_text()[-3000:]
        raise RuntimeError(f"a life with the end {orders.point} ended with {code}: {ending}")


async def _drain(sitting: Sitting) -> None:
    """A last life processes all there is and stops when it is asked to."""
    orders = Orders(sitting.url, sitting.data, sitting.topology)

    def answered() -> bool:
        return len({receipt["command"] for receipt in sitting.receipts}) == len(sitting.commands)

    if (code := await last_life(orders, answered)) != 0:
        raise RuntimeError(f"the last life ended with {code}: {orders.log.read_text()[-3000:]}")


async def last_life(orders: Orders, done: Callable[[], bool] = lambda: True) -> int:
    """A life that is asked to stop once it processed the last reading; its exit code, however it ended."""
    process, hears = begin(orders)
    with contextlib.closing(hears):
        path = orders.data / f"{orders.topology.name}.checkpoint"

        def ended() -> bool:
            return not process.is_alive() or (hears.poll() and done() and _knows(path, LAST))

        await _until(ended, _LIFE_SECONDS)
        process.terminate()
        await asyncio.to_thread(process.join, _LIFE_SECONDS)
        code = process.exitcode
    if code is None:
        process.kill()
        raise RuntimeError(f"a life does not stop: {orders.log.read_text()[-3000:]}")
    process.close()
    return code


async def _left(channel: AbstractChannel) -> int:
    """Messages that stay in the queue. A quorum queue counts late."""
    left = 0

    async def empty() -> bool:
        nonlocal left
        queue = await channel.declare_queue(QUEUE, durable=True, passive=True)
        left = queue.declaration_result.message_count or 0
        return left == 0

    with contextlib.suppress(TimeoutError):
        await await_true(empty, 15.0)
    return left


def _knows(checkpoint: Path, machine: str) -> bool:
    """True once a machine's state is committed, read beside the worker."""
    with contextlib.closing(sqlite3.connect(f"file:{checkpoint}?mode=ro", uri=True)) as db:
        return db.execute("SELECT 1 FROM state WHERE machine = ?", (machine,)).fetchone() is not None


async def await_true(condition: Callable[[], Any], seconds: float) -> None:
    """Wait until the coroutine function gives true. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    async def asked() -> bool:
        return condition()

    await await_true(asked, seconds)


async def _flow(sitting: Sitting) -> None:
    """Publish in bursts, in order, until told to end; then the last reading."""
    source = readings(sitting.seed)
    rng = random.Random(sitting.seed + 1)
    async with await aio_pika.connect(sitting.url) as connection:
        channel = await connection.channel()
        while sitting.flowing:
            burst = list(itertools.islice(source, rng.choice((1, 5, 40, 150))))
            await publish(channel, burst)
            sitting.sent += burst
            await asyncio.sleep(len(burst) / _PACE)
        await publish(channel, [last()])
        sitting.sent.append(last())


async def publish(channel: AbstractChannel, items: Sequence[Sent]) -> None:
    """What any client does: in order, and all confirmed in the end."""
    exchange = await channel.get_exchange(EXCHANGE, ensure=False)
    async with asyncio.TaskGroup() as tasks:
        for item in items:
            message = aio_pika.Message(item.body, delivery_mode=2, message_id=item.id)
            tasks.create_task(exchange.publish(message, item.key, timeout=60.0))


async def _ask_swap(sitting: Sitting, channel: AbstractChannel, replies: str) -> None:
    """Send a command to swap; its receipt comes when it comes."""
    number = len(sitting.commands)
    name, model = f"swap-{sitting.seed}-{number}", f"models:/scale/{2 + (number + 1) % 4}"
    sitting.commands.append((name, model))
    exchange = await channel.get_exchange(CONTROL_EXCHANGE, ensure=False)
    body = {"id": name, "issued": time.time(), "expires": 3600.0, "model": model}
    message = aio_pika.Message(
        json.dumps(body).encode(), reply_to=replies, correlation_id=name, message_id=name, user_id="guest"
    )
    await exchange.publish(message, f"control.{sitting.topology.name}.swap")


async def _receive(sitting: Sitting, message: AbstractIncomingMessage) -> None:
    sitting.receipts.append(json.loads(message.body))


async def _evidence(sitting: Sitting) -> Evidence:
    state, learned, recorded = state_of(sitting.topology, sitting.data)
    alerts = await stream_content(sitting.url, "mmlw.alerts")
    letters = await stream_content(sitting.url, "mmlw.deadletters")
    lines = sitting.data / "swaps"
    swaps = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    left = 0
    async with await aio_pika.connect(sitting.url) as connection:
        if sitting.mode != "stream":
            left = await _left(await connection.channel())
        else:
            kept = await stream_content(sitting.url, f"mmlw.readings.{sitting.topology.name}")
            left = [body for _, body in kept] != [item.body for item in sitting.sent]
    return Evidence(alerts, letters, state, learned, sitting.receipts, recorded, swaps, int(left))


def _swaps(sitting: Sitting, evidence: Evidence) -> list[tuple[int, str]]:
    """After how many messages each swap came: in a stream as its receipt says, in a queue as its commit did."""
    last = {line["command"]: line for line in evidence.swaps}
    found = []
    for name, model in sitting.commands:
        if name not in last:
            continue
        if sitting.mode == "stream":
            found.append((int(evidence.recorded[name]["partitions"]["0"]["first_offset"]), model))
            continue
        fresh = (
            i for i, item in enumerate(sitting.sent) if item.kind == "fresh" and item.seq >= last[name]["seq"]
        )
        found.append((next(fresh, len(sitting.sent)), model))
    return found


async def stream_content(url: str, name: str) -> list[tuple[str, bytes]]:
    """All that a stream holds, as (message id, body), once and in order."""
    found: list[tuple[str, bytes]] = []
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=1000)
        queue = await channel.get_queue(name, ensure=False)
        async for message in _until_silent(queue):
            found.append((message.message_id or "", message.body))
    return found


async def _until_silent(queue: aio_pika.abc.AbstractQueue) -> AsyncIterator[AbstractIncomingMessage]:
    arrived: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    await queue.consume(arrived.put, arguments={"x-stream-offset": "first"})
    with contextlib.suppress(TimeoutError):
        while True:
            message = await asyncio.wait_for(arrived.get(), 1.0)
            await message.ack()
            yield message

"""Reading one RabbitMQ queue: deliveries are put in line by the driver and taken out in batches."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from datetime import datetime
from typing import Any, Protocol

from aio_pika.abc import AbstractChannel

from stream.brokers.base import Delivery, Queue
from stream.brokers.lenient import read_leniently
from stream.brokers.rabbitmq_errors import one_line
from stream.brokers.rabbitmq_probe import Host, Probe
from stream.errors import BrokerUnreachable

__all__ = ["Connection", "RabbitIntake"]

read_leniently()


class Connection(Host, Protocol):
    """What an intake needs of its broker."""

    async def end_of_stream(self, queue: Queue) -> int:
        """One more than the offset of a stream's last message."""
        ...

    async def message_count(self, queue: Queue) -> int:
        """Messages ready in a queue."""
        ...

    def forget(self, intake: RabbitIntake) -> None:
        """An intake was closed."""
        ...


class RabbitIntake:
    """Deliveries of one queue on a channel of its own, so delivery tags count from one."""

    def __init__(self, broker: Connection, channel: AbstractChannel, queue: Queue) -> None:
        self.arrived = asyncio.Event()
        self._broker = broker
        self._channel = channel
        self._queue = queue
        self._stream = queue.kind == "stream"
        self._driver: Any = None
        self._consumer = ""
        self._closed: BrokerUnreachable | None = None
        self._waiting: deque[Delivery] = deque()
        self._next = 0
        self._probe: Probe
        self._heard = self._heard_before = 0

    async def start(self, offset: int | str | datetime) -> None:
        """Begin to consume; the driver's lower layer, because it costs a third less a message."""
        self._channel.close_callbacks.add(self._on_close)
        self._driver = await self._channel.get_underlay_channel()
        self._probe = Probe(self._broker, self._driver, self._queue.name)
        self._driver.on_consumer_cancel_callbacks.add(lambda _: self.arrived.set())  # `_check` says why
        arguments = {"x-stream-offset": offset} if self._queue.kind == "stream" else None
        ok = await self._driver.basic_consume(
            self._queue.name, self._on_message, arguments=arguments, exclusive=self._queue.exclusive
        )
        self._consumer = ok.consumer_tag

    async def receive(self, most: int, linger: float, timeout: float) -> list[Delivery]:
        """See `Intake`."""
        now = asyncio.get_running_loop().time
        if not await self._wait_for(1, now() + timeout):
            return []
        if linger > 0 and len(self._waiting) < most:
            await self._wait_for(most, now() + linger)
        count = min(most, len(self._waiting))
        await self._probe.check(self._waiting[count - 1].tag)  # behind what was lost nothing may take effect
        found = [self._waiting.popleft() for _ in range(count)]
        self._next = found[-1].offset + 1
        return found

    async def ack(self, tag: int) -> None:
        """See `Intake`."""
        self._check()
        if tag < 1:
            raise ValueError(f"a delivery tag begins at 1, not {tag}: to RabbitMQ 0 means every one")
        with self._broker.mapped(f'queue "{self._queue.name}"'):
            async with asyncio.timeout(self._broker.timeout):
                await self._driver.basic_ack(delivery_tag=tag, multiple=True)

    async def end(self) -> int:
        """See `Intake`."""
        self._check()
        if self._queue.kind != "stream":
            quiet, self._heard_before = self._heard == self._heard_before, self._heard
            unheard = await self._probe.unheard() if quiet else 0
            return await self._broker.message_count(self._queue) + len(self._waiting) + unheard
        return max(await self._broker.end_of_stream(self._queue), self._next)

    async def close(self) -> None:
        """See `Intake`."""
        self._broker.forget(self)
        self._closed = self._closed or BrokerUnreachable("this intake was closed")
        kept = self._broker.mapped("closing")  # a cancellation, which the driver may swallow
        with contextlib.suppress(Exception), kept:  # a channel that cannot be closed is gone already
            async with asyncio.timeout(self._broker.timeout):
                if self._consumer:  # else RabbitMQ counts a stream's consumer for ever, and keeps a row of it
                    await self._driver.basic_cancel(self._consumer)
                await self._channel.close()

    async def _wait_for(self, count: int, deadline: float) -> int:
        """Wait until so many deliveries are here, or the deadline; how many there are."""
        self._check()
        try:
            async with asyncio.timeout_at(deadline):
                while len(self._waiting) < count:
                    self.arrived.clear()
                    await self.arrived.wait()
                    self._check()
        except TimeoutError:
            self._check()
        return len(self._waiting)

    def _check(self) -> None:
        if (error := self._broker.lost or self._closed) is not None:
            raise error
        if self._consumer and self._consumer not in self._driver.consumers:
            raise BrokerUnreachable(
                f'the broker ended the reading of "{self._queue.name}": was the queue deleted?'
            )

    def _on_close(self, _: Any, error: BaseException | None) -> None:
        if self._closed is None:
            self._closed = BrokerUnreachable(
                f'the reading of "{self._queue.name}" was ended: {one_line(error)}'
            )
        self.arrived.set()

    async def _on_message(self, message: Any) -> None:
        """Called by the driver for each message: only put it in line."""
        properties = message.header.properties
        headers = properties.headers or {}
        offset = headers.pop("x-stream-offset", -1)  # the broker's on a stream; on a queue, anybody's
        delivery = message.delivery
        self._heard += 1
        self._probe.heard(delivery.delivery_tag)
        self._waiting.append(
            Delivery(
                body=message.body,
                exchange=delivery.exchange,
                routing_key=delivery.routing_key,
                offset=offset if self._stream else -1,
                tag=delivery.delivery_tag,
                received=time.monotonic(),
                content_type=properties.content_type or "",
                headers=headers,
                message_id=properties.message_id,
                correlation_id=properties.correlation_id,
                reply_to=properties.reply_to,
                user_id=properties.user_id,
                timestamp=properties.timestamp and properties.timestamp.timestamp(),
            )
        )
        self.arrived.set()

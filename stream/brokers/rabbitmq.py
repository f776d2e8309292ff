"""RabbitMQ through aio-pika: plain connections that are never mended, streams read by offset.

Two connections, one to consume and one to publish, because a memory alarm blocks the one that publishes. Every
wait has a timeout; a lost connection wakes every waiter with BrokerUnreachable; the runtime then starts anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import unquote, urlsplit

import aio_pika
from aio_pika import exceptions as amqp
from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.abc import FieldTable

from stream.brokers.base import Binding, Intake, Message, Plan, Queue
from stream.brokers.rabbitmq_errors import DriverErrors, hung_up, in_use, one_line
from stream.brokers.rabbitmq_intake import RabbitIntake
from stream.brokers.tls import Tls, refusal
from stream.errors import (
    BrokerBlocked,
    BrokerError,
    BrokerMissing,
    BrokerRefused,
    BrokerUnreachable,
    Unroutable,
)

__all__ = ["RabbitBroker"]

_LISTEN = 2.0
"""Seconds to listen for why a TLS connection was ended."""

_PARTING = 1.0
"""Seconds in which readers take their leave before their connection closes."""

_WINDOW = 200
"""Publishings that may wait for a confirm: the driver scans all of them on a multiple confirm."""


class _Connection(aio_pika.Connection):
    """The driver's connection, without its attempt to close what never came about when it is collected.

    That may be outside the event loop; what came about is closed by whoever opened it.
    """

    def __del__(self) -> None:
        pass


class RabbitBroker:
    """A connection to RabbitMQ, `amqp://` or `amqps://`. `timeout` bounds each wait, in seconds.

    With a client certificate in `tls` it logs in by that; the address then names the certificate's user.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 10.0,
        heartbeat: int = 10,
        name: str = "mmlw",
        tls: Tls | None = None,
    ) -> None:
        parts = urlsplit(url)
        self._url = url
        self.timeout = timeout
        self._heartbeat = heartbeat
        self._name = name
        self._user = unquote(parts.username or "guest")
        self._where = (
            f"{parts.hostname or 'localhost'}:{parts.port or (5671 if parts.scheme == 'amqps' else 5672)}"
        )
        self._vhost = unquote(parts.path.removeprefix("/")) or "/"
        self._tls = (tls or Tls()) if parts.scheme == "amqps" else None
        self._context: ssl.SSLContext | None = None
        self._errors = DriverErrors(self._where, self._user, self._vhost, timeout, self._tls)
        self._consuming: AbstractConnection | None = None
        self._publishing: AbstractConnection | None = None
        self._out: AbstractChannel | None = None
        self._out_closed: asyncio.Future[object]
        self._exchanges: dict[str, Any] = {}
        self._opening = asyncio.Lock()
        self._intakes: set[RabbitIntake] = set()
        self.lost: BrokerUnreachable | None = None
        self._left_blocked = False
        """As it was when this was closed."""

    def __repr__(self) -> str:
        return f"RabbitBroker({self._user}@{self._where}{self._vhost})"

    async def __aenter__(self) -> Self:
        if self._tls is not None:
            self._context = await asyncio.to_thread(self._tls.context)
        self._consuming = await self._open("consume")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left_blocked = self.blocked
        reading = list(self._intakes) if self.lost is None else []
        self._lose("closed")
        with contextlib.suppress(TimeoutError):  # a broker that is silent
            async with asyncio.timeout(min(_PARTING, self.timeout)), asyncio.TaskGroup() as tasks:
                for intake in reading:  # after a failure; see `RabbitIntake.close`
                    tasks.create_task(intake.close())
        async with asyncio.TaskGroup() as tasks:  # together, for each waits for an answer that may never come
            for connection in (self._publishing, self._consuming):
                if connection is not None:
                    tasks.create_task(self._close(connection))

    @property
    def blocked(self) -> bool:
        """See `Broker`. RabbitMQ says it to a connection that publishes, not before it does."""
        transport = self._publishing and self._publishing.transport
        if not transport:
            return self._left_blocked
        waiting: Any = transport.ready()  # of all that the driver shows, this alone knows
        try:
            waiting.send(None)
        except StopIteration:
            return False
        waiting.close()
        return True

    async def declare(self, plan: Plan, *, mode: Literal["declare", "check"]) -> frozenset[str]:
        """See `Broker`. In `check` mode bindings are not checked: AMQP cannot ask for them."""
        passive = mode == "check"
        for exchange in plan.exchanges:
            async with self._channel(f'exchange "{exchange.name}"') as channel:
                await channel.declare_exchange(exchange.name, "topic", durable=True, passive=passive)
        missing = [queue.name for queue in plan.queues if not passive and await self._is_missing(queue)]
        for queue in plan.queues:
            if queue.kind == "existing":
                await self._check_existing(queue)
                continue
            async with self._channel(f'queue "{queue.name}"') as channel:
                await self._declare_queue(channel, queue, passive=passive)
        if not passive:
            for binding in plan.bindings:
                await self._bind(binding)
        return frozenset(missing)

    async def _is_missing(self, queue: Queue) -> bool:
        if queue.kind != "stream":
            return False
        try:
            async with self._channel(f'queue "{queue.name}"') as channel:
                await self._declare_queue(channel, queue, passive=True)
        except BrokerMissing:
            return True
        return False

    async def _check_existing(self, queue: Queue) -> None:
        """It is there, and is not a stream: whose reader would get only what comes from now on, and no error."""
        what = f'queue "{queue.name}"'
        try:
            async with self._channel(what) as channel:
                await self._declare_queue(channel, queue, passive=True)
        except BrokerMissing:
            remedy = "make it and bind it, or correct source.queue"
            raise BrokerMissing(f"{self._where}: {what} is missing; {remedy}") from None
        async with self._channel(what) as channel:
            await channel.set_qos(prefetch_count=1)
            driver: Any = await channel.get_underlay_channel()
            try:
                await driver.basic_consume(queue.name, _ignore, arguments={"x-stream-offset": "next"})
            except amqp.ChannelPreconditionFailed:  # only a stream takes that
                return
        raise BrokerRefused(f"{self._where}: {what} is a stream; name its exchange instead of the queue")

    async def consume(self, queue: Queue, *, offset: int | datetime | None, prefetch: int) -> Intake:
        """See `Broker`. A reply queue is made by consuming it."""
        return await self._read(queue, "first" if offset is None else offset, prefetch)

    async def _read(self, queue: Queue, start: int | str | datetime, prefetch: int) -> RabbitIntake:
        connection = self._connected()
        with self.mapped(f'queue "{queue.name}"'):
            async with asyncio.timeout(self.timeout):
                channel = await connection.channel(publisher_confirms=False)
                if queue.kind == "reply":
                    await self._declare_queue(channel, queue, passive=False)
                if queue.exclusive:  # which the broker sees to itself, but not for a quorum queue
                    declared = await self._declare_queue(channel, queue, passive=True)
                    if declared.declaration_result.consumer_count:
                        raise in_use(f'{self._where}: queue "{queue.name}"')
                await channel.set_qos(prefetch_count=prefetch)
                intake = RabbitIntake(self, channel, queue)
                self._intakes.add(intake)
                await intake.start(start)
        return intake

    async def publish(self, messages: Sequence[Message]) -> None:
        """See `Broker`. At most 200 are under way at a time."""
        channel = await self._publisher()
        unroutable: list[str] = []
        for start in range(0, len(messages), _WINDOW):
            try:
                async with asyncio.TaskGroup() as tasks:
                    for message in messages[start : start + _WINDOW]:
                        tasks.create_task(self._publish_one(channel, message, unroutable))
            except BaseExceptionGroup as group:
                blocked = self.blocked
                try:
                    await self._raise_cause(channel, _leaves(group))
                except BrokerUnreachable as error:
                    if blocked:
                        raise BrokerBlocked(str(error)) from error
                    raise
        if unroutable:
            raise Unroutable(f"{unroutable[0]}; bind one")

    async def _publish_one(self, channel: AbstractChannel, message: Message, unroutable: list[str]) -> None:
        exchange = self._exchanges.get(message.exchange)
        with self.mapped(f'publishing to "{message.exchange or message.routing_key}"'):
            if exchange is None:
                exchange = channel.default_exchange
                if message.exchange:
                    exchange = await channel.get_exchange(message.exchange, ensure=False)
                self._exchanges[message.exchange] = exchange
            body = aio_pika.Message(
                message.body,
                content_type=message.content_type,
                headers=dict(message.headers),
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                message_id=message.message_id,
                correlation_id=message.correlation_id,
                reply_to=message.reply_to,
                expiration=message.expiration,
                timestamp=int(time.time()),
                user_id=self._user,
            )
            try:
                await exchange.publish(body, message.routing_key, mandatory=True, timeout=self.timeout)
            except amqp.PublishError as error:  # two messages of one id: only the returned one tells which
                returned: Any = error.message and error.message.delivery
                where = f'exchange "{returned.exchange}"' if returned.exchange else "the default exchange"
                unroutable.append(f'{where}: no queue takes "{returned.routing_key}"')

    async def _raise_cause(self, channel: AbstractChannel, errors: Sequence[BaseException]) -> None:
        """Why a publishing failed: what the server said as it closed the channel, not what followed from that."""
        if channel.is_closed:
            with self.mapped("publishing"), contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.timeout):
                    cause = await asyncio.shield(self._out_closed)
                if isinstance(cause, Exception):
                    raise cause
        raise next((error for error in errors if isinstance(error, BrokerError)), errors[0])

    async def _publisher(self) -> AbstractChannel:
        self._connected()
        async with self._opening:
            if self._publishing is None:
                self._publishing = await self._open("publish")
            if self._out is None or self._out.is_closed:  # a refused publishing closes its channel
                self._exchanges.clear()
                self._out_closed = asyncio.get_running_loop().create_future()
                with self.mapped("a channel"):
                    async with asyncio.timeout(self.timeout):
                        self._out = await self._publishing.channel(
                            publisher_confirms=True, on_return_raises=True
                        )
                self._out.close_callbacks.add(self._publisher_closed)
            return self._out

    def _publisher_closed(self, _: Any, error: BaseException | None) -> None:
        if not self._out_closed.done():
            self._out_closed.set_result(error)

    async def _open(self, purpose: str) -> AbstractConnection:
        properties: FieldTable = {"connection_name": f"{self._name} {purpose}"}
        mechanism = "EXTERNAL" if self._tls is not None and self._tls.cert is not None else "PLAIN"
        try:
            with self.mapped("the connection"):
                async with asyncio.timeout(self.timeout):
                    connection = await aio_pika.connect(
                        self._url,
                        connection_class=_Connection,
                        ssl_context=self._context,
                        auth=mechanism,
                        client_properties=properties,
                        heartbeat=self._heartbeat,
                        timeout=self.timeout,
                    )
        except BrokerUnreachable as error:
            await self._raise_refusal(error)
            raise
        connection.close_callbacks.add(lambda _, error: self._lose(error))
        return connection

    async def _raise_refusal(self, error: BrokerUnreachable) -> None:
        """Ask why the server ended the TLS handshake, where it did."""
        if self._context is not None and hung_up(error):
            parts = urlsplit(self._url)
            found = await refusal(
                parts.hostname or "localhost", parts.port or 5671, self._context, seconds=_LISTEN
            )
            if found is not None:
                raise self._errors.tls_refused(found) from None

    async def _close(self, connection: AbstractConnection) -> None:
        with contextlib.suppress(Exception):  # what may be broken already
            async with asyncio.timeout(self.timeout):
                await connection.close()

    async def _declare_queue(self, channel: AbstractChannel, queue: Queue, *, passive: bool) -> Any:
        if passive:
            return await channel.declare_queue(queue.name, durable=True, passive=True)
        if queue.kind == "reply":
            return await channel.declare_queue(queue.name, exclusive=True, auto_delete=True)
        return await channel.declare_queue(queue.name, durable=True, arguments=_arguments(queue))

    async def _bind(self, binding: Binding) -> None:
        async with self._channel(f'binding of "{binding.queue}" to "{binding.exchange}"') as channel:
            queue = await channel.get_queue(binding.queue, ensure=False)
            await queue.bind(binding.exchange, binding.pattern)

    @contextlib.asynccontextmanager
    async def _channel(self, what: str) -> AsyncIterator[AbstractChannel]:
        """A channel for one question: a refused one closes its channel."""
        connection = self._connected()
        with self.mapped(what):
            async with asyncio.timeout(self.timeout):
                channel = await connection.channel(publisher_confirms=False)
                yield channel
                await channel.close()

    async def end(self, queue: Queue) -> int:
        """See `Broker`."""
        return await (self.end_of_stream if queue.kind == "stream" else self.message_count)(queue)

    async def end_of_stream(self, queue: Queue) -> int:
        """One more than the offset of a stream's last message, found by reading it; 0 if none came in a second.

        The broker's own count lags by seconds and is off by one for each segment begun or forgotten."""
        intake = await self._read(queue, "last", 1000)
        try:
            found = await intake.receive(1000, 0.01, 1.0)
        finally:
            await intake.close()
        return found[-1].offset + 1 if found else 0

    async def message_count(self, queue: Queue) -> int:
        """Messages ready in a queue."""
        async with self._channel(f'queue "{queue.name}"') as channel:
            declared = await self._declare_queue(channel, queue, passive=True)
            return int(declared.declaration_result.message_count or 0)

    async def put_probe(self, queue: str) -> None:
        """Put a message into a queue of this connection's own, made for it."""
        async with self._channel(f'queue "{queue}"') as channel:
            await self._declare_queue(channel, Queue(name=queue, kind="reply"), passive=False)
        await self.publish([Message(exchange="", routing_key=queue, body=b"")])

    def forget(self, intake: RabbitIntake) -> None:
        """An intake was closed."""
        self._intakes.discard(intake)

    def _connected(self) -> AbstractConnection:
        if self.lost is not None:
            raise self.lost
        if self._consuming is None:
            raise BrokerUnreachable(f"{self._where}: not connected")
        return self._consuming

    def _lose(self, cause: object) -> None:
        """From now on everything raises; who waits is woken."""
        if self.lost is None:
            silent = isinstance(cause, asyncio.CancelledError)  # how the driver reports missing heartbeats
            detail = ": no heartbeat came" if silent else f": {one_line(cause)}" if cause else ""
            self.lost = BrokerUnreachable(f"{self._where}: the connection was lost{detail}")
        for intake in self._intakes:
            intake.arrived.set()

    def mapped(self, what: str) -> AbstractContextManager[None]:
        """Turns what the driver raises in this block into our errors; `what` names what was tried."""
        return self._errors.mapped(what, connected=self._consuming is not None)


async def _ignore(_: object) -> None:
    """A message that nobody wants."""


def _arguments(queue: Queue) -> dict[str, Any]:
    if queue.kind == "classic":
        return {}
    arguments: dict[str, Any] = {"x-queue-type": "stream"}
    if queue.max_age is not None:
        arguments["x-max-age"] = f"{int(queue.max_age)}s"
    if queue.max_bytes is not None:
        arguments["x-max-length-bytes"] = queue.max_bytes
    if queue.segment_bytes is not None:
        arguments["x-stream-max-segment-size-bytes"] = queue.segment_bytes
    return arguments


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found

"""The embedded broker: RabbitMQ's semantics inside one process, for use without a server.

Topic exchanges, streams read by offset, classic queues with redelivery, reply queues, the default exchange,
mandatory publishing, prefetch. Several connections share one `MemoryServer`; all live in one event loop.
"""

from __future__ import annotations

import asyncio
import bisect
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Literal, Self

from stream.brokers.base import Delivery, Intake, Message, Plan, Queue
from stream.errors import BrokerMissing, BrokerRefused, BrokerUnreachable, Unroutable

__all__ = ["MemoryBroker", "MemoryServer", "topic_matches"]


def topic_matches(pattern: str, routing_key: str) -> bool:
    """Whether a binding pattern takes a routing key: `*` stands for one word, `#` for any number of words.

    >>> topic_matches("sensor.*.#", "sensor.pump-1")
    True
    """
    return _matches(pattern.split("."), routing_key.split(".") if routing_key else [])


def _matches(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_matches(pattern[1:], words[i:]) for i in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and _matches(pattern[1:], words[1:])


_Entry = tuple[int, float, Message, str]
"""A message's place in its queue, when it came, the message, and who published it."""


@dataclass(slots=True, eq=False)
class _Store:
    """A queue's messages: a stream keeps them, with `first` the offset of the oldest; a queue hands them out."""

    queue: Queue
    owner: MemoryBroker | None = None
    messages: list[_Entry] = field(default_factory=list)
    head: int = 0
    """Index of the oldest message: what lies before it is forgotten and removed now and then."""
    first: int = 0
    size: int = 0
    count: int = 0
    """Messages that ever came: the place of the next one."""
    readers: set[_Intake] = field(default_factory=set)
    exclusive: bool = False
    """One reader has it for itself."""
    deleted: bool = False

    def end(self, now: float) -> int:
        """The offset of a stream's next message; of a queue, how many are ready."""
        if self.queue.kind == "stream":
            return self.first + len(self.messages) - self.head
        self.expire(now)
        return len(self.messages) - self.head

    def expire(self, now: float) -> None:
        """A queue drops the messages at its head whose time is over."""
        while self.head < len(self.messages):
            _, came, message, _ = self.messages[self.head]
            if message.expiration is None or now <= came + message.expiration:
                return
            self.head += 1

    def give_back(self, entries: list[_Entry]) -> None:
        """Take unacknowledged messages again, each to the place it had."""
        self.messages = sorted(entries + self.messages[self.head :], key=lambda entry: entry[0])
        self.head = 0
        self.wake()

    def arrived_since(self, moment: float) -> int:
        """The offset of a stream's first message that came then or later, in the server's seconds."""
        came = [entry[1] for entry in self.messages[self.head :]]
        return self.first + bisect.bisect_left(came, moment)

    def wake(self) -> None:
        for reader in self.readers:
            reader.arrived.set()

    @property
    def idle(self) -> bool:
        """A queue holds nothing, and nothing of it is out and not acknowledged."""
        return self.head == len(self.messages) and not any(reader.outstanding for reader in self.readers)


class MemoryServer:
    """What connections share: exchanges, bindings, queues. `now` gives seconds for ages and expirations."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self._bindings: dict[str, dict[tuple[str, str], None]] = {}
        self._stores: dict[str, _Store] = {}
        self._routes: dict[str, dict[str, tuple[_Store, ...]]] = {}
        """By exchange and routing key, of which there may be very many: those to the same queues share the tuple."""
        self._targets: dict[tuple[str, ...], tuple[_Store, ...]] = {}
        self._brokers: set[MemoryBroker] = set()

    def drop_connections(self) -> None:
        """Cut every connection, as a network would: each use of them raises BrokerUnreachable from now on."""
        for broker in tuple(self._brokers):
            self.leave(broker)

    @property
    def connections(self) -> tuple[MemoryBroker, ...]:
        """Who is connected."""
        return tuple(self._brokers)

    def forget(self, name: str, keep: int) -> None:
        """A stream forgets all but so many of its newest messages, as by retention. Raises BrokerRefused."""
        store = self.store(name)
        gone = max(len(store.messages) - store.head - keep, 0)
        store.head += gone
        store.first += gone

    def store(self, name: str) -> _Store:
        """A queue by name. Raises BrokerRefused."""
        if name not in self._stores:
            raise BrokerMissing(f'queue "{name}" is missing; declare it first')
        return self._stores[name]

    def join(self, broker: MemoryBroker) -> None:
        """A connection begins."""
        self._brokers.add(broker)

    def leave(self, broker: MemoryBroker) -> None:
        """A connection ends: its reply queues go, what it had not acknowledged goes back."""
        self._brokers.discard(broker)
        broker.connected = False
        for store in list(self._stores.values()):
            for reader in [r for r in store.readers if r.broker is broker]:
                reader.settle()
            if store.owner is broker:
                self._remove(store)

    def delete(self, name: str) -> None:
        """Delete a queue with what it holds; who reads it gets BrokerUnreachable. Raises BrokerRefused."""
        self._remove(self.store(name))

    def _remove(self, store: _Store) -> None:
        del self._stores[store.queue.name]
        for bindings in self._bindings.values():
            for key in [key for key in bindings if key[0] == store.queue.name]:
                del bindings[key]
        self._forget_routes()
        store.deleted = True
        store.wake()

    def declare(self, plan: Plan, broker: MemoryBroker) -> frozenset[str]:
        """Make what the plan names; the streams that were missing. Raises BrokerRefused on a conflict."""
        missing = frozenset(q.name for q in plan.queues if q.kind == "stream" and q.name not in self._stores)
        for exchange in plan.exchanges:
            self._bindings.setdefault(exchange.name, {})
        for queue in plan.queues:
            store = self._stores.get(queue.name)
            if queue.kind == "existing":
                self._check_existing(queue)
            elif store is None:
                owner = broker if queue.kind == "reply" else None
                self._stores[queue.name] = _Store(queue, owner)
            elif store.owner not in (None, broker):
                raise BrokerUnreachable(f'queue "{queue.name}" belongs to another connection')
            elif store.queue.kind != queue.kind or (queue.kind == "stream" and store.queue != queue):
                raise BrokerRefused(
                    f'queue "{queue.name}" exists with other settings; delete it, or use its settings'
                )
        for binding in plan.bindings:
            if binding.exchange not in self._bindings or binding.queue not in self._stores:
                raise BrokerRefused(
                    f'cannot bind "{binding.queue}" to "{binding.exchange}": one of them is missing'
                )
            self._bindings[binding.exchange][binding.queue, binding.pattern] = None
        self._forget_routes()
        return missing

    def _check_existing(self, queue: Queue) -> None:
        if self.store(queue.name).queue.kind == "stream":
            raise BrokerRefused(f'queue "{queue.name}" is a stream; name its exchange instead of the queue')

    def check(self, plan: Plan) -> None:
        """Raises BrokerRefused naming what is missing."""
        hint = "declare it on the broker, or run with declare: true"
        for exchange in plan.exchanges:
            if exchange.name not in self._bindings:
                raise BrokerMissing(f'exchange "{exchange.name}" is missing; {hint}')
        for queue in plan.queues:
            if queue.name not in self._stores:
                raise BrokerMissing(f'queue "{queue.name}" is missing; {hint}')

    def _route(self, exchange: str, routing_key: str) -> tuple[_Store, ...]:
        if not exchange:
            store = self._stores.get(routing_key)
            return (store,) if store else ()
        if exchange not in self._bindings:
            raise BrokerMissing(f'exchange "{exchange}" is missing')
        routes = self._routes.setdefault(exchange, {})
        found = routes.get(routing_key)
        if found is None:
            bound = (q for q, pattern in self._bindings[exchange] if topic_matches(pattern, routing_key))
            names = tuple(dict.fromkeys(bound))
            found = self._targets.setdefault(names, tuple(self._stores[name] for name in names))
            if len(routes) > 100_000:
                routes.clear()
            routes[routing_key] = found
        return found

    def _forget_routes(self) -> None:
        self._routes.clear()
        self._targets.clear()

    def publish(self, messages: Sequence[Message], user: str) -> Message | None:
        """Store all; returns the first that no queue took, if any."""
        lost: Message | None = None
        woken: dict[int, _Store] = {}
        now = self.now()
        for message in messages:
            stores = self._route(message.exchange, message.routing_key)
            if not stores and lost is None:
                lost = message
            for store in stores:
                store.messages.append((store.count, now, message, user))
                store.count += 1
                store.size += len(message.body)
                woken[id(store)] = store
        for store in woken.values():
            self._retain(store, now)
            store.wake()
        return lost

    def _retain(self, store: _Store, now: float) -> None:
        """A stream forgets its oldest messages, by bytes and by age; the newest always stays."""
        queue, messages = store.queue, store.messages
        if queue.kind != "stream":
            return
        while len(messages) - store.head > 1 and (
            (queue.max_bytes is not None and store.size > queue.max_bytes)
            or (queue.max_age is not None and now - messages[store.head][1] > queue.max_age)
        ):
            store.size -= len(messages[store.head][2].body)
            store.head += 1
            store.first += 1
        if store.head > 1000 and store.head > len(messages) // 2:
            del messages[: store.head]
            store.head = 0


class _Intake:
    """Deliveries of one queue to one connection."""

    def __init__(self, broker: MemoryBroker, store: _Store, offset: int | None, prefetch: int) -> None:
        self.broker = broker
        self.arrived = asyncio.Event()
        self._store = store
        self._stream = store.queue.kind == "stream"
        self._next = offset or 0
        self._prefetch = prefetch
        self._tag = 0
        self._waiting: list[Delivery] = []
        self._unacked: deque[tuple[int, _Entry]] = deque()
        self._open = True
        self._why = "this intake was closed"
        store.readers.add(self)

    @property
    def outstanding(self) -> int:
        """Deliveries not acknowledged."""
        return len(self._unacked)

    async def receive(self, most: int, linger: float, timeout: float) -> list[Delivery]:
        """See `Intake`."""
        now = asyncio.get_running_loop().time
        await asyncio.sleep(0)
        if not await self._wait_for(1, most, now() + timeout):
            return []
        if linger > 0:
            await self._wait_for(most, most, now() + linger)
        found, self._waiting = self._waiting[:most], self._waiting[most:]
        return found

    async def _wait_for(self, count: int, most: int, deadline: float) -> int:
        """Wait until so many deliveries are here, or the deadline; how many there are. Cancelling loses none."""
        self._check()
        self._take(most - len(self._waiting))
        try:
            async with asyncio.timeout_at(deadline):
                while len(self._waiting) < count:
                    self.arrived.clear()
                    await self.arrived.wait()
                    self._check()
                    self._take(most - len(self._waiting))
        except TimeoutError:
            self._check()
        return len(self._waiting)

    async def ack(self, tag: int) -> None:
        """See `Intake`. As in RabbitMQ, a tag that is not outstanding ends the intake: its next use raises."""
        self._check()
        if tag < 1:
            raise ValueError(f"a delivery tag begins at 1, not {tag}: to RabbitMQ 0 means every one")
        if not self._unacked or not self._unacked[0][0] <= tag <= self._tag:
            self.settle()
            self._why = f'the reading of "{self._store.queue.name}" was ended: unknown delivery tag {tag}'
            return
        while self._unacked and self._unacked[0][0] <= tag:
            self._unacked.popleft()
        self.arrived.set()

    async def end(self) -> int:
        """See `Intake`."""
        self._check()
        end = self._store.end(self.broker.server.now())
        return end if self._stream else end + len(self._waiting)

    async def close(self) -> None:
        """See `Intake`."""
        self.settle()

    def settle(self) -> None:
        """Stop; a queue gets back, in front, what was not acknowledged."""
        if not self._open:
            return
        self._open = False
        self.arrived.set()
        store = self._store
        store.readers.discard(self)
        store.exclusive = False
        if not self._stream and self._unacked:
            store.give_back([entry for _, entry in self._unacked])
        self._unacked.clear()

    def _check(self) -> None:
        if not self.broker.connected:
            raise BrokerUnreachable("the connection to the embedded broker was lost")
        if not self._open:
            raise BrokerUnreachable(self._why)
        if self._store.deleted:
            raise BrokerUnreachable(
                f'the broker ended the reading of "{self._store.queue.name}": was the queue deleted?'
            )

    def _take(self, most: int) -> None:
        store = self._store
        most = min(most, self._prefetch - len(self._unacked))
        now = self.broker.server.now()
        entries: list[_Entry]
        if self._stream:
            self._next = max(self._next, store.first)
            start = store.head + self._next - store.first
            entries = store.messages[start : start + max(most, 0)]
            first = self._next
            self._next += len(entries)
        else:
            entries, first = [], -1
            while len(entries) < most:
                store.expire(now)
                if store.head == len(store.messages):
                    break
                entries.append(store.messages[store.head])
                store.head += 1
            if store.head > 1000:
                del store.messages[: store.head]
                store.head = 0
        received, epoch = time.monotonic(), time.time() - now
        for number, entry in enumerate(entries):
            self._tag += 1
            self._unacked.append((self._tag, entry))
            offset = first + number if self._stream else -1
            self._waiting.append(_delivery(entry, offset, self._tag, received, epoch))


def _delivery(entry: _Entry, offset: int, tag: int, received: float, epoch: float) -> Delivery:
    """`epoch`: the server's zero in epoch seconds."""
    _, came, message, user = entry
    headers = message.headers
    if "x-stream-offset" in headers:  # the broker's own word, not the publisher's
        headers = {name: value for name, value in headers.items() if name != "x-stream-offset"}
    return Delivery(
        body=message.body,
        exchange=message.exchange,
        routing_key=message.routing_key,
        offset=offset,
        tag=tag,
        received=received,
        content_type=message.content_type,
        headers=headers,
        message_id=message.message_id,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        user_id=user,
        timestamp=epoch + came,
    )


class MemoryBroker:
    """A connection to a `MemoryServer` as `user` (which receivers see as the verified `user_id`)."""

    blocked = False

    def __init__(self, server: MemoryServer, *, user: str = "local") -> None:
        self.server = server
        self.connected = False
        self._user = user

    async def __aenter__(self) -> Self:
        self.connected = True
        self.server.join(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.leave(self)

    async def declare(self, plan: Plan, *, mode: Literal["declare", "check"]) -> frozenset[str]:
        """See `Broker`."""
        self._check()
        if mode == "declare":
            return self.server.declare(plan, self)
        self.server.check(plan)
        return frozenset()

    async def consume(self, queue: Queue, *, offset: int | datetime | None, prefetch: int) -> Intake:
        """See `Broker`. A reply queue is made by consuming it."""
        self._check()
        if queue.kind == "reply":
            self.server.declare(Plan(queues=(queue,)), self)
        if queue.kind == "stream" and prefetch < 1:
            raise BrokerRefused(f'queue "{queue.name}" is a stream: reading it needs a prefetch above 0')
        store = self.server.store(queue.name)
        if store.exclusive or (queue.exclusive and store.readers):
            raise BrokerUnreachable(f'queue "{queue.name}" is read by another consumer, and not shared')
        store.exclusive = queue.exclusive
        if isinstance(offset, datetime):
            offset = store.arrived_since(offset.timestamp() - time.time() + self.server.now())
        return _Intake(self, store, offset, prefetch)

    async def end(self, queue: Queue) -> int:
        """See `Broker`."""
        self._check()
        return self.server.store(queue.name).end(self.server.now())

    async def publish(self, messages: Sequence[Message]) -> None:
        """See `Broker`."""
        self._check()
        lost = self.server.publish(messages, self._user)
        await asyncio.sleep(0)
        if lost is not None:
            where = f'exchange "{lost.exchange}"' if lost.exchange else "the default exchange"
            raise Unroutable(f'{where}: no queue takes "{lost.routing_key}"; bind one')

    def _check(self) -> None:
        if not self.connected:
            raise BrokerUnreachable("not connected to the embedded broker")

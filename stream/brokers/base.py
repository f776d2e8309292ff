"""The port between the engine and a message broker: publish, consume, acknowledge.

Both brokers, the embedded one and RabbitMQ, implement it with the same semantics and pass one contract
suite. Names follow AMQP 0-9-1: topic exchanges, routing keys, bindings, durable queues; a *stream* is an
append-only queue read by offset and never emptied by reading.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Literal, Protocol, Self

import msgspec

__all__ = ["Binding", "Broker", "Delivery", "Exchange", "Intake", "Message", "Plan", "Queue", "routing_word"]


_NO_WORD = re.compile(r"[.*#\s]")


def routing_word(name: str) -> str:
    """A name as one word of a routing key: dots, white space and wildcards become `_`. At most 119 bytes, for a
    key has 255 and an alert's begins with `alert.<severity>.<topology>.`, of up to 136.

    >>> routing_word("hall 2.pump")
    'hall_2_pump'
    """
    return _NO_WORD.sub("_", name).encode()[:119].decode(errors="ignore")


class Exchange(msgspec.Struct, frozen=True):
    """A durable topic exchange."""

    name: str


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """A queue. `stream` is durable and bounded by age (seconds) and bytes; `classic` is durable; `reply` is
    exclusive to this connection, deleted with it, and its name is chosen by the caller; `existing` is somebody
    else's, classic or quorum, and never declared: read by nobody else at a time where `exclusive`."""

    name: str
    kind: Literal["stream", "classic", "reply", "existing"] = "stream"
    exclusive: bool = False
    max_age: float | None = None
    max_bytes: int | None = None
    segment_bytes: int | None = None


class Binding(msgspec.Struct, frozen=True):
    """Messages to `exchange` whose routing key matches `pattern` (`*` one word, `#` any) reach `queue`."""

    queue: str
    exchange: str
    pattern: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What must exist on the broker before a topology runs."""

    exchanges: tuple[Exchange, ...] = ()
    queues: tuple[Queue, ...] = ()
    bindings: tuple[Binding, ...] = ()


class Message(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A message to publish. `exchange=""` addresses a queue by its name (the AMQP default exchange)."""

    exchange: str
    routing_key: str
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str | int] = {}
    message_id: str | None = None
    """None leaves it to the broker's driver, which may make one up."""
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: float | None = None
    """Seconds after which an unread message is dropped by the broker; None keeps it."""


class Delivery(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A message received. `offset` is its position in the stream, or -1 from a queue that has none."""

    body: bytes
    exchange: str
    routing_key: str
    offset: int
    tag: int
    """Position within this intake, rising by one; what `ack` takes."""
    received: float
    """Monotonic seconds (`time.monotonic`) at arrival in this process."""
    content_type: str = ""
    headers: Mapping[str, object] = {}
    message_id: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    user_id: str | None = None
    """The publisher's user name as verified by the broker, None where the publisher did not state it."""
    timestamp: float | None = None
    """Epoch seconds at which it was published, as the publisher states; None where it does not."""


class Intake(Protocol):
    """Deliveries of one queue in order. After a lost connection every method raises BrokerUnreachable."""

    async def receive(self, most: int, linger: float, timeout: float) -> list[Delivery]:
        """Up to `most` deliveries: waits `timeout` s for the first, then at most `linger` s for more. [] if none."""
        ...

    async def ack(self, tag: int) -> None:
        """Settle every delivery up to this tag (AMQP multiple ack). On a stream it only grants credit."""
        ...

    async def end(self) -> int:
        """Streams: the offset of the next message to come. Queues: messages that `receive` has not given yet: those
        ready, and those that the broker sent and holds for delivered, heard here or not."""
        ...

    async def close(self) -> None:
        """Stop consuming; what was not acked is delivered again to the next consumer of a queue."""
        ...


class Broker(Protocol):
    """A connection to a broker, used as an async context manager. Every wait has a timeout.

    Raises BrokerUnreachable when nothing answers or the connection is lost, BrokerRefused when the broker
    says no. It never reconnects by itself: the runtime starts anew from the checkpoint.
    """

    @property
    def blocked(self) -> bool:
        """Whether the broker said that it takes no messages from this connection for now."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def declare(self, plan: Plan, *, mode: Literal["declare", "check"]) -> frozenset[str]:
        """Create what the plan names, or only check that it exists. Idempotent. The streams that were missing.

        Raises BrokerRefused naming the object that is missing (check) or conflicts (declare)."""
        ...

    async def consume(self, queue: Queue, *, offset: int | datetime | None, prefetch: int) -> Intake:
        """Read a stream from `offset` on (None: from its first message), or a queue (offset is ignored).

        A time stands for the first message that arrived then or later; a few before it may come, too.

        `prefetch` bounds what is delivered and not acknowledged; a stream may exceed it by a few hundred."""
        ...

    async def end(self, queue: Queue) -> int:
        """As of an `Intake` that is given nothing, without one: nothing is taken from the queue. Raises BrokerMissing
        where there is no such queue."""
        ...

    async def publish(self, messages: Sequence[Message]) -> None:
        """Publish all, mandatory, pipelined; returns when the broker has confirmed every one.

        Raises Unroutable naming the first that matched no queue (the others were published), BrokerBlocked where
        the broker takes none."""
        ...

"""What a topology's own stream still holds: received beside the worker, which notices nothing, and read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from stream.brokers.base import Broker
from stream.errors import ConfigError, Problem, Stalled
from stream.gathering import Gathered, Undecoded, messages_of, undecoded
from stream.histories import History
from stream.plan import readings_queue
from stream.spans import Span
from stream.topology import Source, Topology

__all__ = ["Take", "read_stream", "receive_stream"]

_AT_A_TIME = 512
_SILENCE = 5.0
"""Seconds within which a stream shows what it holds."""

Take = Callable[[Sequence[Undecoded]], Awaitable[None]]
"""Takes the next messages; no more are received until it has returned."""


async def read_stream(
    broker: Broker,
    topology: Topology,
    span: Span,
    progress: Callable[[int, int], None] = lambda done, of: None,
    *,
    newest: int | None = None,
) -> History:
    """The readings of a part of the topology's stream, decoded as its worker does; what it refuses is left out.

    For a process that does nothing else meanwhile. Otherwise as `receive_stream`.
    """
    gathered = Gathered(topology.source, newest)

    async def take(messages: Sequence[Undecoded]) -> None:
        gathered.add(messages)

    await receive_stream(broker, topology, span, take, progress, newest=newest)
    return gathered.history(topology.name, span)


async def receive_stream(
    broker: Broker,
    topology: Topology,
    span: Span,
    take: Take,
    progress: Callable[[int, int], None] = lambda done, of: None,
    *,
    newest: int | None = None,
    at_a_time: int = _AT_A_TIME,
) -> None:
    """Pass on the messages of a part of the topology's stream, so many `at_a_time`, undecoded.

    A consumer of its own, from the first message of the part (found by the time of its arrival) to what was the
    last when it began; with `newest` only the messages that hold the last so many rows, and a few more.
    `progress` is told how many messages of how many were taken. Raises BrokerError, ConfigError.
    """
    queue = readings_queue(topology)
    if queue.kind != "stream":
        hint = "an existing queue keeps nothing that was read; use --input with its capture"
        raise ConfigError([Problem(topology.name, f'reads the queue "{queue.name}"; {hint}')])
    if (most := messages_of(topology.source, newest)) is not None:
        span = await _latest(broker, topology, span, most)
    intake = await broker.consume(queue, offset=_begin(topology.source, span), prefetch=4 * at_a_time)
    try:
        end = await intake.end()
        last = end if span.last is None else min(span.last, end)
        at, base = -1, None
        while at < last - 1:
            deliveries = await intake.receive(at_a_time, 0.0, _SILENCE)
            if not deliveries and base is None:  # the part begins after the end
                break
            if not deliveries:
                raise Stalled(f"{queue.name}: nothing came after offset {at}, of {last}; try again")
            at = deliveries[-1].offset
            base = deliveries[0].offset if base is None else base
            await take([undecoded(d) for d in deliveries if (span.first or 0) <= d.offset < last])
            await intake.ack(deliveries[-1].tag)
            progress(min(at + 1, last) - base, last - base)
    finally:
        await intake.close()


def _begin(source: Source, span: Span) -> int | datetime | None:
    """Where to begin to read: a reading may be taken later than it arrives, by as much as `max_ahead`."""
    if span.first is not None or span.since is None:
        return span.first
    return datetime.fromtimestamp(max(span.since - source.max_ahead, 0.0), UTC)


async def _latest(broker: Broker, topology: Topology, span: Span, newest: int) -> Span:
    """The part of the span that holds its newest so many readings, found without reading what is before."""
    source, queue = topology.source, readings_queue(topology)
    intake = await broker.consume(queue, offset=_begin(source, span), prefetch=1)
    try:
        end = await intake.end()
        first = await intake.receive(1, 0.0, _SILENCE) if end else []
    finally:
        await intake.close()
    last = end if span.last is None else min(span.last, end)
    begin = first[0].offset if first else last
    return replace(span, first=max(begin, last - newest, 0))

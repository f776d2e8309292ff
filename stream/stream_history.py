"""What a topology's own stream still holds, as a history: read beside the worker, which notices nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd

from stream.brokers.base import Broker, Delivery
from stream.deadletters import replayed
from stream.errors import ConfigError, Problem, Stalled
from stream.histories import History, Order
from stream.instants import nanoseconds
from stream.plan import readings_queue
from stream.readings import Batch, Decoder
from stream.settings import epoch
from stream.topology import Source, Topology

__all__ = ["Span", "parse_span", "read_stream"]

_AT_A_TIME = 512
_SILENCE = 5.0
"""Seconds within which a stream shows what it holds."""


@dataclass(frozen=True, slots=True)
class Span:
    """Which part of a stream: offsets from `first` to before `last`, and readings taken from `since` to before
    `until` (epoch seconds). None: as far as it goes."""

    first: int | None = None
    last: int | None = None
    since: float | None = None
    until: float | None = None


def parse_span(text: str) -> Span:
    """`FROM..TO`: each an offset, a time (RFC 3339), or nothing. FROM is in it, TO is not. Raises ConfigError.

    >>> parse_span("1000..")
    Span(first=1000, last=None, since=None, until=None)
    """
    start, dots, end = text.partition("..")
    bounds: dict[str, float | int] = {}
    try:
        if not dots:
            raise ValueError
        for part, offset, instant in ((start, "first", "since"), (end, "last", "until")):
            if part.strip().isdecimal():
                bounds[offset] = int(part)
            elif part.strip():
                bounds[instant] = epoch(part.strip())
    except ValueError:
        hint = "write FROM..TO, each an offset, a time such as 2024-05-01T06:00:00Z, or nothing"
        raise ConfigError([Problem("stream", f'"{text}" is no range; {hint}')]) from None
    return Span(**bounds)  # type: ignore[arg-type]


async def read_stream(
    broker: Broker,
    topology: Topology,
    span: Span,
    progress: Callable[[int, int], None] = lambda done, of: None,
    *,
    newest: int | None = None,
    at_a_time: int = _AT_A_TIME,
    breath: float = 0.0,
) -> History:
    """The readings of a part of the topology's stream, decoded as its worker does; what it refuses is left out.

    A consumer of its own, from the first message of the part (found by the time of its arrival) to what was the
    last when it began; with `newest` only the messages that hold the last so many readings, and a few more.
    `progress` is told how many messages of how many were read. Where others need the event
    loop, so many messages `at_a_time` are read, and `breath` seconds are theirs after each. Raises BrokerError,
    ConfigError.
    """
    queue = readings_queue(topology)
    if queue.kind != "stream":
        hint = "an existing queue keeps nothing that was read; use --input with its capture"
        raise ConfigError([Problem(topology.name, f'reads the queue "{queue.name}"; {hint}')])
    gathered = _Gathered(topology.source, newest)
    if newest is not None:
        span = await _latest(broker, topology, span, newest)
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
            gathered.add([d for d in deliveries if (span.first or 0) <= d.offset < last])
            await intake.ack(deliveries[-1].tag)
            progress(min(at + 1, last) - base, last - base)
            if breath:
                await asyncio.sleep(breath)
    finally:
        await intake.close()
    return gathered.history(topology.name, span)


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


class _Gathered:
    """Decoded batches, with what the engine would number them by."""

    def __init__(self, source: Source, newest: int | None) -> None:
        self._newest = newest
        self._rows = 0
        self._decoder = Decoder(source, time.time)
        self._narrow = source.layout == "narrow"
        self._batches: list[Batch] = []
        self._offsets: list[int] = []
        self._replayed: list[bool] = []
        self._letters: set[str] = set()

    def add(self, deliveries: Sequence[Delivery]) -> None:
        """Decode these. A dead letter that was sent back comes once, as the message it first was."""
        fresh: list[Delivery] = []
        for delivery in deliveries:
            origin = replayed(delivery)
            if origin is not None and origin.letter in self._letters:
                continue
            if origin is not None:
                self._letters.add(origin.letter)
            fresh.append(delivery if origin is None else origin.delivery)
            self._offsets.append(delivery.offset)
            self._replayed.append(origin is not None)
        batch, _ = self._decoder.decode(fresh)
        batch.messages[:] += len(self._offsets) - len(fresh)
        self._batches.append(batch)
        self._rows += len(batch)
        while self._newest is not None and self._rows - len(self._batches[0]) >= self._newest:
            self._rows -= len(self._batches.pop(0))

    def history(self, name: str, span: Span) -> History:
        """All of it, within the span's times."""
        found = self._batches or [self._decoder.decode([])[0]]
        times = np.concatenate([batch.times for batch in found])
        keep = np.ones(len(times), np.bool_)
        if span.since is not None:
            keep &= times >= span.since
        if span.until is not None:
            keep &= times < span.until
        whole = Batch(
            [machine for batch in found for machine in batch.machines],
            times,
            np.concatenate([batch.values for batch in found]),
            np.concatenate([batch.messages for batch in found]),
            np.concatenate([batch.rows for batch in found]),
            np.concatenate([batch.seqs for batch in found]),
        ).select(keep)
        instants = pd.to_datetime(nanoseconds(whole.times), utc=True)
        order = Order(
            np.array(self._offsets, np.int64)[whole.messages],
            whole.rows,
            whole.seqs,
            whole.messages,
            np.array(self._replayed, np.bool_)[whole.messages],
            self._narrow,
        )
        stamps = pd.Series(instants.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), dtype=str)
        return History(name, stamps, whole.times, whole.values, whole.machines, order=order)

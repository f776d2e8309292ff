"""How far the source is ahead, also while a topology does not read it."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable

from stream.brokers.base import Broker, Queue
from stream.errors import BrokerError
from stream.metrics import TopologyMetrics
from stream.state import StreamPosition

__all__ = ["LAG_INTERVAL", "lag_of", "watch_unread"]

LAG_INTERVAL = 2.0
"""Seconds between two questions."""


def lag_of(queue: Queue, end: int, position: StreamPosition) -> int:
    """Messages not yet processed, where `end` is what the broker says of the queue (see `Intake.end`)."""
    return max(end - position.next_offset, 0) if queue.kind == "stream" else end


async def watch_unread(
    connect: Callable[[], Broker], queue: Queue, position: StreamPosition | None, metrics: TopologyMetrics
) -> None:
    """Keep the lag of a queue that is not read up to date, until cancelled. It takes nothing from the queue.

    `position` None: nobody knows how far a stream was read, and the lag is NaN. While the broker is away, the last
    figure stands.
    """
    if position is None and queue.kind == "stream":
        metrics.lag.set(math.nan)
        return
    while True:
        with contextlib.suppress(BrokerError):
            async with connect() as broker:
                while True:
                    metrics.lag.set(lag_of(queue, await broker.end(queue), position or StreamPosition()))
                    await asyncio.sleep(LAG_INTERVAL)
        await asyncio.sleep(LAG_INTERVAL)

"""What RabbitMQ sent on a channel and nobody heard: it counts as delivered there, so no count of the queue shows it.

The broker numbers what it sends on a channel. A message of ours, fetched on the same channel from a queue of our
own, bears the next number: if that is higher than what was heard, the rest is lost on the way or in this process.
It needs no more rights than a worker has, and it does not disturb the reading.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AbstractContextManager
from typing import Any, Protocol

from stream import log
from stream.errors import BrokerRefused, BrokerUnreachable

__all__ = ["Host", "Probe"]

_QUEUE = "mmlw.readings.probe-{}"
"""A name that a worker may use; the queue goes with its connection."""


class Host(Protocol):
    """What a probe needs of its broker: `lost` once the connection is, `timeout` seconds for an answer."""

    timeout: float
    lost: BrokerUnreachable | None

    def mapped(self, what: str) -> AbstractContextManager[None]:
        """Turns the driver's errors into ours."""
        ...

    async def put_probe(self, queue: str) -> None:
        """Put a message into a queue of this connection's own, made for it. Raises BrokerError."""
        ...


class Probe:
    """Keeps count of the delivery tags of one channel, which rise by one from 1."""

    def __init__(self, host: Host, channel: Any, reads: str) -> None:
        self._host = host
        self._channel = channel
        self._reads = reads
        self._queue = _QUEUE.format(secrets.token_hex(4))
        self._ready = False
        self._blind = False
        self._last = 0
        self._missing: set[int] = set()
        self._looking = asyncio.Lock()

    def heard(self, tag: int) -> None:
        """A message came, or an answer of the same channel."""
        if tag > self._last:
            if tag > self._last + 1:
                self._missing.update(range(self._last + 1, tag))
            self._last = tag
        else:
            self._missing.discard(tag)

    async def check(self, tag: int) -> None:
        """Everything up to this tag was heard. Raises BrokerUnreachable: read anew, and it comes again."""
        if self._missing and min(self._missing) < tag:
            async with self._looking:  # its own message may be the one that is missing
                gone = [one for one in self._missing if one < tag]
            if gone:
                raise BrokerUnreachable(
                    f'{len(gone)} messages of "{self._reads}" were sent to this process and never reached it'
                )

    async def unheard(self) -> int:
        """How many messages were sent and not heard. Raises BrokerUnreachable when no answer comes."""
        if not self._blind:
            async with self._looking:
                await self._look()
        return len(self._missing)

    async def _look(self) -> None:
        if not self._ready and not await self._prepare():
            return
        with self._host.mapped(f'queue "{self._queue}"'):
            async with asyncio.timeout(self._host.timeout):
                found = await self._channel.basic_get(self._queue, no_ack=False)
                tag = found.delivery.delivery_tag
                if tag is None:  # there was nothing
                    self._ready = False
                    return
                self.heard(tag)
                await self._channel.basic_nack(tag, requeue=True)

    async def _prepare(self) -> bool:
        """Put the message where it is fetched from, again and again. False where that cannot be done now, or ever."""
        try:
            await self._host.put_probe(self._queue)
        except BrokerRefused as error:
            self._blind = True
            hint = (
                f'give the user configure, write and read on "{_QUEUE.format("*")}", and write on amq.default'
            )
            log.get().warning("watchdog_blind", queue=self._reads, cause=str(error), remedy=hint)
            return False
        except BrokerUnreachable:
            if self._host.lost is not None:
                raise
            return False  # a memory alarm blocks who publishes
        self._ready = True
        return True

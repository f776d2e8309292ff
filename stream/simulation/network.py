"""The simulated network: the memory broker's connections, failing as the schedule says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from stream.brokers.base import Delivery, Intake, Message, Plan, Queue
from stream.brokers.memory import MemoryBroker
from stream.errors import BrokerUnreachable
from stream.plan import readings_queue
from stream.simulation.outcome import Reading

if TYPE_CHECKING:
    from stream.simulation.world import World

__all__ = ["SimulatedBroker"]

_UNHEARD = 1000
"""Messages that a broker sends to a reader that is deaf, at most."""


class _Intake:
    """The memory broker's intake, with faults; a stream skips an offset at the end of each segment."""

    def __init__(self, world: World, broker: SimulatedBroker, inner: Intake, life: list[int] | None) -> None:
        self._world = world
        self._broker = broker
        self._inner = inner
        self._life = life
        self._silent = False
        self._unheard = 0

    async def receive(self, most: int, linger: float, timeout: float) -> list[Delivery]:
        if self._life is None:
            return await self._inner.receive(most, linger, timeout)
        if not self._silent:
            kind = await self._world.touch("receive", False, self._broker)
            self._silent = kind in ("silent", "deaf")
            if kind == "deaf":  # the broker thinks that they are being processed
                self._unheard = len(await self._inner.receive(_UNHEARD, 0.0, 0.0))
        if self._silent:
            await asyncio.sleep(timeout)
            self._broker.check()
            return []
        found = await self._inner.receive(most, linger, timeout)
        self._world.fail_if_dead()
        self._life += map(self._world.place, found)
        found = [self._world.outside(delivery) for delivery in found]
        if found:
            await self._world.touch("receive", True, self._broker)
        return found

    async def ack(self, tag: int) -> None:
        if self._life is not None:
            await self._world.touch("ack", False, self._broker)
        self._world.fail_if_dead()
        await self._inner.ack(tag)
        if self._life is not None:
            await self._world.touch("ack", True, self._broker)

    async def end(self) -> int:
        self._world.fail_if_dead()
        end = await self._inner.end()
        if self._life is None or self._world.schedule.source == "queue":
            return end + self._unheard
        return self._world.offset(end - 1) + 1

    async def close(self) -> None:
        await self._inner.close()


class SimulatedBroker(MemoryBroker):
    """A connection of the worker, that fails as the schedule says."""

    def __init__(self, world: World) -> None:
        super().__init__(world.server, user="worker")
        self._world = world

    def check(self) -> None:
        """Raises BrokerUnreachable once the connection is lost."""
        if not self.connected:
            raise BrokerUnreachable("the simulated connection was lost")

    async def __aenter__(self) -> SimulatedBroker:
        self._world.fail_if_dead()
        if await self._world.touch("connect", False, self) is not None:
            raise BrokerUnreachable("simulated: nothing answers")
        await super().__aenter__()
        return self

    async def declare(self, plan: Plan, *, mode: Literal["declare", "check"]) -> frozenset[str]:
        """See `Broker`."""
        await self._world.touch("declare", False, self)
        missing = await super().declare(plan, mode=mode)
        await self._world.touch("declare", True, self)
        return missing

    async def consume(self, queue: Queue, *, offset: int | datetime | None, prefetch: int) -> Intake:
        """See `Broker`."""
        world = self._world
        if queue.name != readings_queue(world.topology).name:
            world.fail_if_dead()
            return _Intake(world, self, await super().consume(queue, offset=offset, prefetch=prefetch), None)
        await world.touch("consume", False, self)
        inside = world.number(offset) if isinstance(offset, int) else offset
        inner = await super().consume(queue, offset=inside, prefetch=prefetch)
        life: list[int] = []
        world.outcome.lives.append(Reading(world.disk.saved.position.last_offset, life))
        await world.touch("consume", True, self)
        return _Intake(world, self, inner, life)

    async def end(self, queue: Queue) -> int:
        """See `Broker`."""
        self._world.fail_if_dead()
        self.check()
        end = await super().end(queue)
        return end if queue.kind != "stream" else self._world.offset(end - 1) + 1

    async def publish(self, messages: Sequence[Message]) -> None:
        """See `Broker`."""
        if any(not message.exchange for message in messages):  # a receipt
            await self._world.touch("answer", False, self)
            self._world.answering([json.loads(message.body) for message in messages])
            await super().publish(messages)
            await self._world.touch("answer", True, self)
            return
        kind = await self._world.touch("publish", False, self)
        if kind == "part":
            await super().publish(messages[: len(messages) // 2])
            self.server.leave(self)
            raise BrokerUnreachable("simulated: the connection was lost between two messages")
        await super().publish(messages)
        if await self._world.touch("publish", True, self) == "part":
            self.server.leave(self)
            raise BrokerUnreachable("simulated: the confirms were lost")

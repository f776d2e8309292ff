"""The points at which a worker can be killed, and the ports that lead through them.

The production code knows nothing of this: its broker, its store and its models are wrapped.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

from detectors.base import Model
from stream.brokers.base import Broker, Delivery, Intake, Message, Plan, Queue
from stream.models import ModelRef
from stream.state import Changes, Group, Saved, Store

__all__ = ["POINTS", "SWAP_POINTS", "Killer", "Point", "WatchedBroker", "WatchedShelf", "WatchedStore"]

Point = Literal[
    "starting",
    "before_publish",
    "unconfirmed",
    "after_publish",
    "before_commit",
    "before_witness",
    "after_commit",
    "before_ack",
    "after_ack",
    "swap_prepared",
    "before_swap",
    "after_swap",
    "before_receipt",
    "after_receipt",
]
"""`starting`: between connecting and the first reading. `unconfirmed`: the broker has the messages, the worker
has not seen that. `before_witness`: the transaction is on disk, the number beside it is not. `swap_prepared`:
the model is built; `before_swap` and `after_swap`: before and after the commit that puts it in place."""
POINTS: tuple[Point, ...] = get_args(Point)
SWAP_POINTS: tuple[Point, ...] = POINTS[-5:]


@dataclass(slots=True)
class Killer:
    """Kills this process at the n-th passage of a point, once `after` messages were committed.

    `ready` is called then, too.
    """

    point: Point | None
    passage: int
    after: int
    ready: Callable[[], None] | None
    position: int = -1
    target: int = 0

    def loaded(self, saved: Saved) -> None:
        """The worker begins from here."""
        self.position = saved.position.last_offset
        self.target = self.position + self.after

    def committed(self, changes: Changes) -> None:
        """This is on disk."""
        self.position = changes.position.last_offset
        if self.position >= self.target and self.ready is not None:
            self.ready()
            self.ready = None

    def passed(self, point: Point) -> None:
        """The worker is at this point now."""
        if point != self.point:
            return
        if point != "starting" and self.position < self.target:
            return
        self.passage -= 1
        if self.passage <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


class WatchedBroker:
    """A broker whose every step passes the killer."""

    def __init__(self, broker: Broker, killer: Killer) -> None:
        self._broker = broker
        self._killer = killer

    @property
    def blocked(self) -> bool:
        return self._broker.blocked

    async def __aenter__(self) -> Self:
        self._killer.passed("starting")
        await self._broker.__aenter__()
        self._killer.passed("starting")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._broker.__aexit__(kind, error, trace)

    async def declare(self, plan: Plan, *, mode: Literal["declare", "check"]) -> frozenset[str]:
        made = await self._broker.declare(plan, mode=mode)
        self._killer.passed("starting")
        return made

    async def consume(self, queue: Queue, *, offset: int | datetime | None, prefetch: int) -> Intake:
        intake = await self._broker.consume(queue, offset=offset, prefetch=prefetch)
        self._killer.passed("starting")
        return intake if queue.kind == "classic" else _WatchedIntake(intake, self._killer)

    async def end(self, queue: Queue) -> int:
        return await self._broker.end(queue)

    async def publish(self, messages: Sequence[Message]) -> None:
        receipt = any(message.correlation_id for message in messages)
        self._killer.passed("before_receipt" if receipt else "before_publish")
        await self._broker.publish(messages)
        self._killer.passed("after_receipt" if receipt else "after_publish")


class _WatchedIntake:
    def __init__(self, intake: Intake, killer: Killer) -> None:
        self._intake = intake
        self._killer = killer

    async def receive(self, most: int, linger: float, timeout: float) -> list[Delivery]:
        return await self._intake.receive(most, linger, timeout)

    async def ack(self, tag: int) -> None:
        self._killer.passed("before_ack")
        await self._intake.ack(tag)
        self._killer.passed("after_ack")

    async def end(self) -> int:
        return await self._intake.end()

    async def close(self) -> None:
        await self._intake.close()


class WatchedStore:
    """A store whose every commit passes the killer. `swaps` gets a line before each commit that applies one.

    The line says which readings were scored before it, by the highest sequence number: in a queue nobody else
    knows. A commit that did not come about is followed by another line, so the last one counts.
    """

    def __init__(self, store: Store, killer: Killer, swaps: Path) -> None:
        self._store = store
        self._killer = killer
        self._swaps = swaps
        self._highest = -1

    def load(self, most: int) -> Saved:
        saved = self._store.load(most)
        self._killer.loaded(saved)
        self._killer.passed("starting")
        self._seen(saved.groups)
        return saved

    def fetch(self, machines: Sequence[str]) -> Sequence[Group]:
        return self._store.fetch(machines)

    def commit(self, changes: Changes) -> int:
        swap = next(iter(changes.commands), None)
        self._seen([Group(changes.machines, changes.components)])
        if swap is not None:
            line = {"command": swap, "next": changes.position.next_offset, "seq": self._highest + 1}
            with self._swaps.open("a") as file:
                file.write(json.dumps(line) + "\n")
            self._killer.passed("before_swap")
        self._killer.passed("before_commit")
        size = self._store.commit(changes)
        self._killer.committed(changes)
        if swap is not None:
            self._killer.passed("after_swap")
        self._killer.passed("after_commit")
        return size

    def note(self, note: bytes) -> None:
        self._store.note(note)

    def close(self) -> None:
        self._store.close()

    def _seen(self, groups: Sequence[Group]) -> None:
        columns = [group.components["arrivals"]["seq"] for group in groups if "arrivals" in group.components]
        self._highest = max([self._highest, *(int(column.max()) for column in columns if column.size)])


class WatchedShelf:
    """Models whose making passes the killer, after the first."""

    def __init__(self, shelf: Any, killer: Killer) -> None:
        self._shelf = shelf
        self._killer = killer
        self._made = 0

    def resolve(self, uri: str) -> ModelRef:
        found: ModelRef = self._shelf.resolve(uri)
        return found

    def model(self, ref: ModelRef, sensors: Sequence[str]) -> Model:
        model: Model = self._shelf.model(ref, sensors)
        self._made += 1
        if self._made > 1:
            self._killer.passed("swap_prepared")
        return model

"""The dead letters that are kept: found, read by number, and sent back. Reading consumes none of them."""

from __future__ import annotations

import contextlib
import re
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from typing import NamedTuple

import msgspec

from stream.brokers.base import Broker, Delivery, Message, Plan, Queue
from stream.deadletters import replay
from stream.errors import BrokerMissing, BrokerRefused, BrokerUnreachable
from stream.plan import deadletter_queue

__all__ = [
    "Letter",
    "Mark",
    "Survey",
    "Wanted",
    "check_queues",
    "letter_of",
    "read_letter",
    "read_letters",
    "send_back",
    "survey",
]

Report = Callable[[int], object]
"""Told how many letters were read, or sent, so far."""

_PREFETCH = 200
"""Letters under way at a time: they may be large, and memory is bounded."""
_TIMEOUT = 10.0
"""Seconds within which the broker must deliver a letter that it has."""
_MOST_BYTES = 8_000_000
"""Bodies that are sent back before the broker is waited for."""
_TOPOLOGY = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class Letter(msgspec.Struct, frozen=True):
    """What is told of a dead letter: its number in the stream, when and why it came there, and where from.

    `time` is in epoch seconds, None where it is not known; `offset` is the message's place in its source.
    """

    number: int
    id: str
    time: float | None
    topology: str
    reason: str
    detail: str
    exchange: str
    routing_key: str
    offset: int
    bytes: int


class Mark(NamedTuple):
    """Where a letter's latest state stands, and what it is sent back by."""

    number: int
    topology: str
    reason: str


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which letters: empty takes all. `since` in epoch seconds."""

    topology: str = ""
    reasons: Collection[str] = ()
    since: float = 0.0
    numbers: Collection[int] = ()

    def takes(self, letter: Letter) -> bool:
        """True for a letter of this topology, reason and time; its number is not looked at."""
        return (
            (not self.topology or letter.topology == self.topology)
            and (not self.reasons or letter.reason in self.reasons)
            and (not self.since or (letter.time is not None and letter.time >= self.since))
        )


class Survey(msgspec.Struct):
    """The letters that are wanted, by id, each in its latest state: refused again, it keeps its id.

    In the order of the numbers. `missing` are numbers that no letter has.
    """

    marks: dict[str, Mark]
    missing: list[int]

    @property
    def numbers(self) -> list[int]:
        """Their numbers, rising."""
        return [mark.number for mark in self.marks.values()]

    @property
    def reasons(self) -> Counter[str]:
        """How many there are by reason."""
        return Counter(mark.reason for mark in self.marks.values())


def letter_of(delivery: Delivery) -> Letter:
    """What a dead letter's headers say. What is not of our making has no topology and no reason."""
    headers = delivery.headers
    topology, reason, detail, exchange, key = (
        str(headers.get(f"mmlw-{name}", ""))
        for name in ("topology", "reason", "detail", "exchange", "routing-key")
    )
    offset = headers.get("mmlw-offset", -1)
    return Letter(
        number=delivery.offset,
        id=delivery.message_id or "",
        time=delivery.timestamp,
        topology=topology if _TOPOLOGY.fullmatch(topology) else "",
        reason=reason,
        detail=detail,
        exchange=exchange,
        routing_key=key,
        offset=offset if isinstance(offset, int) else -1,
        bytes=len(delivery.body),
    )


async def survey(broker: Broker, wanted: Wanted, report: Report = lambda _: None) -> Survey:
    """Look through all that is kept. Holds a mark for each letter wanted, and no bodies."""
    marks: dict[str, Mark] = {}
    named: set[str] = set()
    missing = set(wanted.numbers)
    async with contextlib.aclosing(_read(broker, 0)) as deliveries:
        async for count, delivery in deliveries:
            letter = letter_of(delivery)
            identity = letter.id or f"number {letter.number}"
            if letter.number in missing:
                missing.discard(letter.number)
                named.add(identity)
            marks.pop(identity, None)
            if wanted.takes(letter):
                marks[identity] = Mark(letter.number, sys.intern(letter.topology), sys.intern(letter.reason))
            report(count)
    if wanted.numbers:
        marks = {identity: mark for identity, mark in marks.items() if identity in named}
    return Survey(marks, sorted(missing))


async def read_letters(broker: Broker, numbers: Collection[int]) -> AsyncGenerator[Delivery, None]:
    """The letters with these numbers, rising. Those that retention has removed since are left out."""
    if not numbers:
        return
    wanted, last = set(numbers), max(numbers)
    async with contextlib.aclosing(_read(broker, min(numbers))) as deliveries:
        async for _, delivery in deliveries:
            if delivery.offset in wanted:
                yield delivery
            if delivery.offset >= last:
                return


async def read_letter(broker: Broker, number: int) -> Delivery | None:
    """The letter with this number, None where there is none."""
    async with contextlib.aclosing(read_letters(broker, [number])) as letters:
        return await anext(letters, None)


async def check_queues(broker: Broker, queues: Mapping[str, Queue]) -> None:
    """Raises BrokerMissing where a topology's queue, by name, is not there."""
    for topology, queue in queues.items():
        try:
            await broker.declare(Plan(queues=(queue,)), mode="check")
        except BrokerMissing:
            raise BrokerMissing(
                f'"{topology}" has no queue "{queue.name}" here; if it reads one of another name, give its FILE '
                f"as --topology"
            ) from None


async def send_back(
    broker: Broker, numbers: Collection[int], queues: Mapping[str, Queue], report: Report = lambda _: None
) -> int:
    """Send letters back to the queue of their topology, in order, under their ids; how many were sent.

    Each is processed once, however often it is sent: after a failure, send all again.
    """
    sent, size = 0, 0
    waiting: list[Message] = []

    async def publish() -> None:
        nonlocal sent, size
        try:
            await broker.publish(waiting)
        except BrokerRefused as error:
            hint = "a replay writes into the topology's own queue, as the worker's user may"
            raise BrokerRefused(f"{error}; {hint}") from error
        sent += len(waiting)
        size = 0
        waiting.clear()
        report(sent)

    async with contextlib.aclosing(read_letters(broker, numbers)) as letters:
        async for delivery in letters:
            waiting.append(replay(delivery, queues[letter_of(delivery).topology]))
            size += len(delivery.body)
            if len(waiting) >= _PREFETCH or size >= _MOST_BYTES:
                await publish()
    if waiting:
        await publish()
    return sent


async def _read(broker: Broker, start: int) -> AsyncGenerator[tuple[int, Delivery], None]:
    """The letters from an offset up to what is now the last, each with how many were read so far."""
    intake = await broker.consume(deadletter_queue(), offset=start, prefetch=_PREFETCH)
    try:
        count, following = 0, start
        end = await intake.end()
        while following < end:
            found = await intake.receive(_PREFETCH, 0.0, _TIMEOUT)
            if not found:
                raise BrokerUnreachable(
                    f"dead letter {following} of {end} was not delivered within {_TIMEOUT:g} s"
                )
            await intake.ack(found[-1].tag)
            following = found[-1].offset + 1
            for delivery in found:
                if start <= delivery.offset < end:  # the broker delivers from the head of a chunk
                    count += 1
                    yield count, delivery
    finally:
        await intake.close()

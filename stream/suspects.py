"""Messages to be handled with care: after the process died over them, and after a detector failed.

A message that kills the process leaves no word. So what is at work is noted before, where a death leaves it (see
`NoteFile`), and taken back after. Messages that were at work together in a death come one by one from then on; one
that was at work in three deaths, in two of them alone, is not processed again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import msgspec

from stream.brokers.base import Delivery
from stream.proof import fingerprint

__all__ = ["DEATHS", "Name", "Suspects", "Work"]

DEATHS = 3
"""Deaths after which a message is put aside."""
_DIGITS = 16

Name = int | str
"""Of a message: its offset in the stream, or the fingerprint of what came from a queue, which gives no number."""


class Work(msgspec.Struct, frozen=True):
    """What was noted last."""

    at_work: tuple[Name, ...] = ()
    deaths: tuple[tuple[Name, int], ...] = ()
    """Of those that are not done: how many processes died while they were at work."""

    @classmethod
    def of(cls, note: bytes) -> Work:
        """As it was noted; nothing where that cannot be read."""
        try:
            return msgspec.json.decode(note, type=Work)
        except msgspec.DecodeError:
            return Work()


class Suspects:
    """Says how many messages to take at once, and which one not to take.

    `note` is what was noted before this process, `keep` notes. So many messages at most, the `window`, come again
    after a death; who is not among them is forgotten. What is said here outlives an engine, not the process.
    """

    def __init__(self, note: bytes, keep: Callable[[bytes], None], *, stream: bool, window: int) -> None:
        work = Work.of(note)
        self._keep = keep
        self._stream = stream
        self._deaths = dict(work.deaths)
        for name in work.at_work:
            self._deaths[name] = self._deaths.get(name, 0) + 1
        self._left = window
        self._single = 0
        self._failures = 0
        self._note(())

    def detector_failed(self, count: int) -> None:
        """Take the next `count` messages one by one; more of them with every failure, for it may come often."""
        self._single = count + min(100 * 2**self._failures - 100, 10_000)
        self._failures += 1

    @property
    def careful(self) -> bool:
        """True while messages are taken one by one because a detector failed."""
        return self._single > 0

    def most(self, deliveries: Sequence[Delivery]) -> int:
        """How many of these messages, one at least, to take at once."""
        if self._single > 0:
            return 1
        if self._deaths:
            for i, delivery in enumerate(deliveries):
                if self._name(delivery) in self._deaths:
                    return max(i, 1)
        return len(deliveries)

    def killed(self, delivery: Delivery) -> bool:
        """True for a message that was at work in too many deaths."""
        return bool(self._deaths) and self._deaths.get(self._name(delivery), 0) >= DEATHS

    def names(self, deliveries: Sequence[Delivery]) -> tuple[Name, ...]:
        """What these messages are called here."""
        return tuple(map(self._name, deliveries))

    @contextlib.contextmanager
    def at_work(self, names: tuple[Name, ...]) -> Iterator[None]:
        """These messages are at work inside: if the process dies there, that is held against them."""
        self._note(names)
        try:
            yield
        finally:
            self._note(())

    def done(self, names: tuple[Name, ...]) -> None:
        """These were processed, or put aside for good."""
        self._single -= len(names)
        self._left -= len(names)
        if self._deaths:
            for name in names if self._left > 0 else tuple(self._deaths):
                self._deaths.pop(name, None)
            self._note(())

    def forget(self) -> None:
        """The stream was made anew: its offsets are of other messages."""
        self._deaths.clear()
        self._note(())

    def _note(self, names: tuple[Name, ...]) -> None:
        self._keep(msgspec.json.encode(Work(names, tuple(self._deaths.items()))))

    def _name(self, delivery: Delivery) -> Name:
        return delivery.offset if self._stream else fingerprint(delivery)[:_DIGITS]

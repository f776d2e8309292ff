"""Messages to be handled with care: after the process died, and after a detector failed.

A message that kills the process leaves no word. So what is about to be processed after a death is written down
first, a batch at a time, by fingerprint: a queue's messages have no number, and a stream may be made anew. Messages
of a batch that was at work in another death come one by one; a message that was at work in three deaths is not
processed again. While one topology tries such messages, no other of its process scores any: it might kill, and
these would be blamed.
"""

from __future__ import annotations

from collections.abc import Sequence

from stream.brokers.base import Delivery
from stream.proof import fingerprint
from stream.state import Suspicion

__all__ = ["DEATHS", "Suspects"]

DEATHS = 3
"""Deaths after which a message is put aside."""
_DIGITS = 16


class Suspects:
    """Says how many messages to take at once, what to write down before, and which one not to take.

    `past` is what was written down before this process, `died` whether the one before was killed. `window` messages
    that are not in the store may have been at work then. What is said here outlives an engine, not the process.
    """

    def __init__(self, past: Suspicion | None, *, died: bool, window: int) -> None:
        past = past or Suspicion(window if died else 0, {})
        self._unnamed = past.unnamed
        self._deaths = dict(past.deaths)
        self._left = window
        self._tried: Sequence[str] = ()
        self._single = 0
        self._failures = 0

    def detector_failed(self, count: int) -> None:
        """Take the next `count` messages one by one; more of them with every failure, for it may come often."""
        self._single = count + min(100 * 2**self._failures - 100, 10_000)
        self._failures += 1

    @property
    def careful(self) -> bool:
        """True while messages are taken one by one because a detector failed."""
        return self._single > 0

    @property
    def watched(self) -> bool:
        """True while messages are written down before they are processed."""
        return self._unnamed > 0 or bool(self._deaths)

    def most(self, deliveries: Sequence[Delivery]) -> int:
        """How many of these messages, one at least, to take at once."""
        if self._single > 0:
            return 1
        if self._deaths:
            for i, delivery in enumerate(deliveries):
                if _name(delivery) in self._deaths:
                    return max(i, 1)
        return len(deliveries)

    def killed(self, delivery: Delivery) -> bool:
        """True for a message that was at work in too many deaths."""
        return self._deaths.get(_name(delivery), 0) >= DEATHS

    def attempt(self, deliveries: Sequence[Delivery]) -> Suspicion:
        """What to write down before these messages are processed: their deaths, should the process die of them."""
        self._tried = [_name(delivery) for delivery in deliveries]
        unnamed = self._unnamed
        deaths = dict(self._deaths)
        for i, name in enumerate(self._tried):
            deaths[name] = self._deaths.get(name, 1 if i < unnamed else 0) + 1
        return Suspicion(max(unnamed - len(deliveries), 0), deaths)

    def record(self, settled: int = 0) -> Suspicion | None:
        """What to write down with a commit after which so many messages do not come again."""
        unnamed = max(self._unnamed - settled, 0)
        deaths = self._deaths if self._left > settled else {}
        if settled:
            deaths = {name: count for name, count in deaths.items() if name not in self._tried}
        return Suspicion(unnamed, deaths) if unnamed or deaths else None

    def settled(self, count: int) -> None:
        """So many messages were processed and do not come again."""
        if not count:
            return
        self._left -= count
        self._single -= count
        self._unnamed = max(self._unnamed - count, 0)
        for name in self._tried if self._left > 0 else list(self._deaths):
            self._deaths.pop(name, None)
        self._tried = ()


def _name(delivery: Delivery) -> str:
    return fingerprint(delivery)[:_DIGITS]

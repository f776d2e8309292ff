"""Messages to be handled with care: after the process died, and after a detector failed.

A message that kills the process leaves no word. So what is about to be processed after a death is written down
first, a batch at a time; after a second one, the messages of that batch one by one; a message that was at work
in three deaths is not processed again. While one topology tries such messages, no other of its process scores
any: it might kill, and these would be blamed.
"""

from __future__ import annotations

from stream.state import Trying

__all__ = ["DEATHS", "DIED", "Suspects"]

DEATHS = 3
"""Deaths after which a message is put aside."""
DIED = Trying(-1, -1, "", 0)
"""Written down where a process ends in order that began after a death: of which message is not known yet."""


class Suspects:
    """Says how many messages to take at once, what to write down before, and which one not to take.

    Messages are numbered: by offset, or in a queue by their place after the last commit. `window` messages may
    have been at work when the process died, `trying` is what it wrote down last.
    """

    def __init__(self, trying: Trying | None = None, *, window: int = 0) -> None:
        self._past = trying if window else None
        self._window = window
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

    def most(self, number: int, limit: int) -> int:
        """How many messages to take from this one on, at most `limit`. A stream may have none of this number: what
        was at work may begin behind it."""
        past = self._past
        if self._single > 0 or (self._window > 0 and past is not None and number <= past.last):
            return 1
        return limit

    def attempt(self, first: int, last: int, fingerprint: str) -> Trying | None:
        """What to write down before these messages are processed; None: nothing. `fingerprint` of the first."""
        if self._window <= 0:
            return None
        alone = first == last
        deaths = 1
        past = self._past
        if past is not None and alone and self._was_at_work(first) and past.fingerprint in ("", fingerprint):
            deaths = past.deaths + 1
        return Trying(first, last, fingerprint if alone else "", deaths)

    @property
    def mark(self) -> Trying | None:
        """What to write down where the process ends in order: whom a death before it may be blamed on."""
        return None if self._window <= 0 else self._past or DIED

    def done(self, count: int) -> None:
        """So many messages were processed."""
        self._window -= count
        self._single -= count

    def _was_at_work(self, number: int) -> bool:
        return self._past is not None and self._past.first <= number <= self._past.last

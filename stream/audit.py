"""The audit: a line in the checkpoint for every command that came; a flood of them becomes one line with a count."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from stream.clock import Clock
from stream.commands import Asked

__all__ = ["SHOWN", "Audit", "Line"]

SHOWN = 100
"""Lines that `mmlw audit` shows."""
_BURST = 50
_EVERY = 10.0
"""Lines of commands that changed nothing: so many at once, then one in so many seconds. The others are counted."""

Line = dict[str, Any]
"""`at` (RFC 3339), `by`, `verb`, `id`, `status`, `reason`, and `digest` of the body. Never a payload."""


class Audit:
    """Collects lines until they are written. `past` are the last ones of the checkpoint, oldest first."""

    def __init__(self, past: Iterable[Mapping[str, Any]], clock: Clock) -> None:
        self._written: deque[Line] = deque(map(dict, past), maxlen=SHOWN)
        self._clock = clock
        self._waiting: list[Line] = []
        self._left_out: Counter[tuple[str | None, str]] = Counter()
        self._room = float(_BURST)
        self._since = clock.monotonic()

    @property
    def last(self) -> list[Line]:
        """The last lines, written or about to be, oldest first."""
        return [*self._written, *self._waiting][-SHOWN:]

    def line(self, asked: Asked, name: str | None, status: str, reason: str | None = None) -> Line:
        """What became of a command."""
        return {
            "at": datetime.fromtimestamp(self._clock.now(), UTC).isoformat(timespec="milliseconds"),
            "by": asked.by,
            "verb": asked.verb[:64],
            "id": name,
            "status": status,
            "reason": reason and reason[:300],
            "digest": asked.digest,
        }

    def add(self, line: Line, *, always: bool = False) -> bool:
        """Have a line written with the next commit; False where too many came of late, and it is only counted.

        `always`: an operator's, however many there were: after a restart it is known by its line alone."""
        if always:
            self._waiting.append(line)
            return True
        if self._has_room():
            self._room -= 1
            self._waiting.append(line)
            return True
        self._left_out[line["by"], line["status"]] += 1
        return False

    def take(self, *further: Line) -> list[Line]:
        """What there is to write now, with these; what was only counted goes along when anything is written."""
        lines, self._waiting = self._waiting, []
        if self._left_out and (lines or further or self._has_room()):
            lines.append(self._summary())
            self._left_out.clear()
            self._room = max(self._room - 1, 0.0)
        return [*lines, *further]

    def written(self, lines: Iterable[Line]) -> None:
        """These lines were committed."""
        self._written.extend(lines)

    def _has_room(self) -> bool:
        now = self._clock.monotonic()
        self._room = min(self._room + (now - self._since) / _EVERY, float(_BURST))
        self._since = now
        return self._room >= 1

    def _summary(self) -> Line:
        most = [
            f"{count} {status} of {by or 'nobody'}" for (by, status), count in self._left_out.most_common(5)
        ]
        refused = any(status == "refused" for _, status in self._left_out)
        total = self._left_out.total()
        line = self.line(Asked("", b"", None), None, "refused" if refused else "applied")
        return {
            **line,
            "digest": "",
            "reason": f"{total} more commands that changed nothing: {', '.join(most)}",
        }

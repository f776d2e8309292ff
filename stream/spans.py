"""Which part of a stream is meant, by offsets or by times."""

from __future__ import annotations

from dataclasses import dataclass

from stream.errors import ConfigError, Problem
from stream.settings import epoch

__all__ = ["Span", "parse_span"]


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

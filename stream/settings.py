"""What settings are made of: units a file may use, names, times, and how a struct tells what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

__all__ = ["Bytes", "Count", "PerDay", "Seconds", "Settings", "epoch", "is_name", "is_time", "refuse"]

Seconds = Annotated[float, msgspec.Meta(ge=0, extra={"unit": "seconds"})]
"""Seconds; a file may also say `500ms`, `30s`, `10m`, `12h` or `7d`."""
Bytes = Annotated[int, msgspec.Meta(ge=1, extra={"unit": "bytes"})]
"""Bytes; a file may also say `64kB`, `10MB` or `5GB`."""
PerDay = Annotated[float, msgspec.Meta(gt=0, extra={"unit": "a day"})]
"""A number a day; a file may also say `1/hour`, `2/day`, `3/week` or `1/month` (of 30 days)."""
Count = Annotated[int, msgspec.Meta(ge=1)]

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
Settings = Mapping[str, Any]
"""Settings of a struct by name, those that could be read: what its `check` looks at. It yields each problem as
`setting: what is wrong`, all of them, also where other settings of the struct are missing or unreadable."""


def refuse(problems: Iterable[str]) -> None:
    """Raises ValueError with a line for each problem, if there are any."""
    if found := list(problems):
        raise ValueError("\n".join(found))


def is_name(text: str) -> bool:
    """Lower-case letters, digits, - or _, at most 64."""
    return _NAME.fullmatch(text) is not None


def is_time(text: str) -> bool:
    """RFC 3339, such as 1990-01-01T00:00:00Z."""
    try:
        epoch(text)
    except ValueError:
        return False
    return True


def epoch(text: str) -> float:
    """Epoch seconds of a time in RFC 3339, in UTC where it names no zone. Raises ValueError."""
    time = datetime.fromisoformat(text)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()

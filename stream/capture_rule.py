"""What a topology writes to Parquet of what it saw: settings of `capture:`, and the names of the columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from stream.settings import Bytes, Count, Seconds

__all__ = ["PLACE_COLUMNS", "CaptureRule", "Retention", "Rotation", "column", "reserved"]

PLACE_COLUMNS = ("machine", "time", "offset", "row")
"""Columns of a capture that say which reading a row is; the sensors follow."""
_KINDS = ("score", "threshold", "alert", "version")


class Rotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a file is full and the next begins: whichever comes first."""

    rows: Count = 100_000
    age: Seconds = 3600.0
    """Also how long a reading may wait before a file shows it."""


class Retention(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much is kept: what is beyond either goes, oldest first."""

    age: Seconds = 30 * 86400.0
    bytes: Bytes = 5_000_000_000


class CaptureRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Readings and scores are written to Parquet, each once."""

    rotate: Rotation = Rotation()
    keep: Retention = Retention()


def column(kind: str, name: str) -> str:
    """The column of what a detector gave: its `score`, `threshold`, open `alert` or model `version`."""
    return f"{kind}.{name}"


def reserved(sensors: Iterable[str]) -> Iterator[str]:
    """The sensors whose names are those of a capture's other columns."""
    for name in sensors:
        if name in PLACE_COLUMNS or (name.partition(".")[0] in _KINDS and "." in name):
            yield name

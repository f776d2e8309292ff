"""Tables of which no row can change, go or come unnoticed: each carries a checksum, and all of a table are summed."""

from __future__ import annotations

import contextlib
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["SealedTables", "Sums", "create", "seal"]

Sums = dict[str, tuple[int, int]]
"""Rows of a table, and the sum of their checksums."""

_TABLES: Mapping[str, tuple[str, ...]] = {
    "meta": ("name TEXT PRIMARY KEY", "value TEXT NOT NULL"),
    "layouts": ("id INTEGER PRIMARY KEY", "layout TEXT NOT NULL", "recipes TEXT NOT NULL"),
    "models": ("detector TEXT PRIMARY KEY", "current TEXT NOT NULL", "previous TEXT NOT NULL"),
    "commands": ("id TEXT PRIMARY KEY", "at REAL NOT NULL", "receipt TEXT NOT NULL"),
    "audit": ("number INTEGER PRIMARY KEY", "entry TEXT NOT NULL"),
    "replays": ("id TEXT PRIMARY KEY", "at REAL NOT NULL"),
    "state": (
        "machine TEXT NOT NULL UNIQUE",
        "layout INTEGER NOT NULL",
        "seen INTEGER NOT NULL",
        "row BLOB NOT NULL",
    ),
}
"""Columns by table, the first one the key. A checksum stands before the last, which may be long."""
_SUMMED = [table for table in _TABLES if table != "meta"]
_AT_A_TIME = 500
"""Rows in one statement: it runs without Python's lock, so that nobody waits for it between rows."""


def _columns(table: str) -> list[str]:
    *front, last = _TABLES[table]
    return [*front, "crc INTEGER NOT NULL", last]


_SCHEMA = {table: f"CREATE TABLE {table} ({', '.join(_columns(table))})" for table in _TABLES} | {
    "room": "CREATE TABLE room (bytes BLOB NOT NULL)"
}
_STRUCTURE = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"


def create(db: sqlite3.Connection) -> None:
    """Make the tables, within the transaction at hand."""
    for statement in _SCHEMA.values():
        db.execute(statement)


def seal(table: str, row: Sequence[Any]) -> int:
    """The checksum of a row, given without it."""
    if table == "state":
        machine, layout, seen, blob = row
        data = blob if isinstance(blob, bytes) else repr(blob).encode()  # of another type: damaged
        return zlib.crc32(data, zlib.crc32(f"{layout} {seen} {machine}".encode()))
    return zlib.crc32(repr((table, *row)).encode())


class SealedTables:
    """The tables of an open database. Raises sqlite3.Error, and ValueError on a row that is not what was written."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def check(self, sums: Sums) -> None:
        """Every table has the rows that were written: none lost, none more, none from another time."""
        for table in _SUMMED:
            found = self._db.execute(f"SELECT count(*), coalesce(sum(crc), 0) FROM {table}").fetchone()  # noqa: S608
            if found != sums.get(table, (0, 0)):
                raise ValueError(f"the table {table} is not as it was written")

    def check_structure(self) -> bool:
        """Whether there is anything; if so, tables and indexes are as they were made."""
        found = self._db.execute(_STRUCTURE).fetchall()
        if not found:
            return False
        with contextlib.closing(sqlite3.connect(":memory:")) as model:
            create(model)
            if found != model.execute(_STRUCTURE).fetchall():
                raise ValueError("its tables are not as they were made")
        if (damage := self._db.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
            raise ValueError(damage)
        return True

    def rows(self, table: str, rest: str = "", values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows without their checksums; `rest` of the query says which."""
        return list(self.each(table, rest, values))

    def each(self, table: str, rest: str = "", values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The same, one after the other: for a table that may be long."""
        for row in self._db.execute(f"SELECT * FROM {table} {rest}", values):  # noqa: S608
            *front, crc, last = row
            bare = (*front, last)
            if seal(table, bare) != crc:
                raise ValueError(f"{table} {row[0]!r} does not match its checksum")
            yield bare

    def put(self, table: str, rows: Iterable[tuple[Any, ...]], sums: Sums) -> None:
        """Write rows, in place of those of the same key; `sums` follow."""
        sealed = list({row[0]: (*row[:-1], seal(table, row), row[-1]) for row in rows}.values())
        names = [column.split()[0] for column in _columns(table)]
        count, total = sums.get(table, (0, 0))
        for start in range(0, len(sealed), _AT_A_TIME):
            part = sealed[start : start + _AT_A_TIME]
            keys = ",".join("?" * len(part))
            query = f"SELECT count(*), coalesce(sum(crc), 0) FROM {table} WHERE {names[0]} IN ({keys})"  # noqa: S608
            replaced, gone = self._db.execute(query, [row[0] for row in part]).fetchone()
            marks = ",".join([f"({','.join('?' * len(names))})"] * len(part))
            updates = ",".join(f"{name}=excluded.{name}" for name in names[1:])
            upsert = f"INSERT INTO {table} VALUES {marks} ON CONFLICT ({names[0]}) DO UPDATE SET {updates}"  # noqa: S608
            self._db.execute(upsert, [value for row in part for value in row])
            count += len(part) - replaced
            total += sum(row[-2] for row in part) - gone
        if table != "meta":
            sums[table] = (count, total)

    def forget(self, table: str, which: str, values: Sequence[Any], sums: Sums) -> None:
        """Delete the rows that fit the condition; `sums` follow."""
        gone = self._db.execute(f"DELETE FROM {table} WHERE {which} RETURNING crc", values).fetchall()  # noqa: S608
        count, total = sums.get(table, (0, 0))
        sums[table] = (count - len(gone), total - sum(crc for (crc,) in gone))

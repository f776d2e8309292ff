"""The checkpoint: state, position, models and applied commands, changed together in one transaction.

One SQLite file a topology (write-ahead log, synchronous=FULL). The state of a machine is one record; only the
machines that changed are written. Every row carries a checksum, and the lock file beside it a witness: the
number of the last commit, so that a file which lost commits, or an older copy of it, is noticed and refused.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stream.errors import CheckpointError, CheckpointFull
from stream.rows import Layout, pack, unpack
from stream.state import Changes, Group, Saved, StreamPosition, Trying

__all__ = ["Checkpoint", "set_witness"]

_FORMAT = "2"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS layouts (
    id INTEGER PRIMARY KEY, layout TEXT NOT NULL, recipes TEXT NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS state (
    machine TEXT NOT NULL UNIQUE, row BLOB NOT NULL, layout INTEGER NOT NULL, seen INTEGER NOT NULL,
    crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS models (
    detector TEXT PRIMARY KEY, current TEXT NOT NULL, previous TEXT NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS commands (
    id TEXT PRIMARY KEY, receipt TEXT NOT NULL, at REAL NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS audit (number INTEGER PRIMARY KEY, entry TEXT NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS replays (id TEXT PRIMARY KEY, at REAL NOT NULL, crc INTEGER NOT NULL);
"""
_PUT_STATE = """
INSERT INTO state VALUES (?, ?, ?, ?, ?) ON CONFLICT (machine) DO UPDATE
SET row = excluded.row, layout = excluded.layout, seen = excluded.seen, crc = excluded.crc
"""
_LAST_SEEN = """
SELECT machine, row, layout, crc FROM (SELECT rowid, * FROM state ORDER BY seen DESC LIMIT ?) ORDER BY rowid
"""
_KEPT = 10_000
"""Commands remembered, to answer a repeated one with the same receipt; lines of the audit."""
_KEPT_REPLAYS = 1_000_000
"""Dead letters known to be processed: about as many as their stream keeps."""
_SHOWN = 100
"""Lines of the audit that are loaded."""
_FORGET = (
    ("DELETE FROM commands WHERE id NOT IN (SELECT id FROM commands ORDER BY at DESC LIMIT ?)", _KEPT),
    ("DELETE FROM audit WHERE number <= (SELECT max(number) FROM audit) - ?", _KEPT),
    ("DELETE FROM replays WHERE rowid <= (SELECT max(rowid) FROM replays) - ?", _KEPT_REPLAYS),
)
_AT_A_TIME = 500
"""Machines looked up by one query."""


class Checkpoint:
    """The checkpoint file of one topology, locked against a second worker: a `Store`. Raises CheckpointError.

    `recipes` names the state tables with a text that changes when their state is no longer comparable; None
    takes every table as it is, to look at.
    `adopt` takes the file as it is, without asking the witness: for a copy that was put back on purpose.
    """

    def __init__(
        self, path: Path, topology: str, recipes: Mapping[str, str] | None, *, adopt: bool = False
    ) -> None:
        self.path = path
        self._recipes = json.dumps(None if recipes is None else dict(recipes), sort_keys=True)
        self._layouts: dict[int, tuple[Layout, str]] = {}
        self._head: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock, witness = _lock(path.with_suffix(".lock"))
        try:
            self._open(topology, 0 if adopt else witness)
        except (sqlite3.Error, CheckpointError) as error:
            self.close()
            if isinstance(error, CheckpointError):
                raise
            raise self._damaged(error) from error

    def load(self, most: int = 1_000_000) -> Saved:
        """See `Store`."""
        try:
            return self._load(most)
        except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
            raise self._damaged(error) from error

    def fetch(self, machines: Sequence[str]) -> list[Group]:
        """See `Store`."""
        found: list[tuple[str, bytes, int, int]] = []
        try:
            for start in range(0, len(machines), _AT_A_TIME):
                names = machines[start : start + _AT_A_TIME]
                marks = ",".join("?" * len(names))
                query = f"SELECT machine, row, layout, crc FROM state WHERE machine IN ({marks})"  # noqa: S608
                found += self._db.execute(query, names).fetchall()
            return self._groups(found)[0]
        except (sqlite3.Error, ValueError, KeyError) as error:
            raise self._damaged(error) from error

    def commit(self, changes: Changes) -> int:
        """See `Store`."""
        layout, rows = pack(changes.components, len(changes.machines))
        head = self._next_head(changes)
        at = time.time()
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._put("meta", [("head", json.dumps(head))])
                if changes.machines:
                    number, seen = self._layout(layout), changes.position.last_offset
                    names = zip(changes.machines, rows, strict=True)
                    state = [(m, row, number, seen, _crc(m, row, number)) for m, row in names]
                    self._db.executemany(_PUT_STATE, state)
                self._put(
                    "models", [(d, json.dumps(c), json.dumps(p)) for d, (c, p) in changes.models.items()]
                )
                self._put("commands", [(key, json.dumps(r), at) for key, r in changes.commands.items()])
                self._put("audit", [(None, json.dumps(entry)) for entry in changes.audit])
                self._put("replays", [(letter, at) for letter in changes.replays])
                if changes.commands or changes.audit or changes.replays:
                    for statement, kept in _FORGET:
                        self._db.execute(statement, (kept,))
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                self._layouts.clear()
                raise
        except sqlite3.Error as error:
            kind = (
                CheckpointFull
                if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
                else CheckpointError
            )
            raise kind(f"{self.path}: could not be written: {error}") from error
        self._head = head
        os.pwrite(self._lock, _witness(head["commits"]), 0)
        return self._size()

    @property
    def commits(self) -> int:
        """How many commits were made."""
        return int(self._head["commits"])

    def verify(self) -> None:
        """Read everything there is, and check it. Raises CheckpointError on damage."""
        self.load()
        self.audit()

    def audit(self) -> list[dict[str, Any]]:
        """Every command that came, oldest first: who, what, when, and what became of it."""
        entries = self._checked("SELECT * FROM audit ORDER BY number")
        return [{"number": number, **json.loads(entry)} for number, entry in entries]

    def close(self) -> None:
        """Close the file and give up the lock."""
        if hasattr(self, "_db"):
            self._db.close()
        os.close(self._lock)

    def _open(self, topology: str, witness: int) -> None:
        self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_SCHEMA)
        if (damage := self._db.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(damage)
        meta = dict(self._checked("SELECT * FROM meta"))
        if not meta:
            self._head = {
                "commits": 0,
                "position": [-1, ""],
                "paused": False,
                "running": False,
                "trying": None,
            }
            values = [("format", _FORMAT), ("topology", topology), ("head", json.dumps(self._head))]
            self._put("meta", values)
            if witness:
                raise CheckpointError(
                    f"{self.path}: is gone or empty, but {witness} commits were made. Put it back, or start over "
                    f"with mmlw checkpoint reset"
                )
            return
        if meta.get("format") != _FORMAT:
            raise CheckpointError(f"{self.path}: format {meta.get('format')}, this version reads {_FORMAT}")
        if meta.get("topology") != topology:
            raise CheckpointError(f'{self.path}: belongs to the topology "{meta.get("topology")}"')
        self._head = json.loads(meta["head"])
        if (commits := self._head["commits"]) < witness:
            raise CheckpointError(
                f"{self.path}: holds commit {commits}, but commit {witness} was made: it is damaged, or an older "
                f"copy. To go on from it all the same, use mmlw checkpoint import"
            )

    def _load(self, most: int) -> Saved:
        head = self._head
        saved = Saved(
            position=StreamPosition(*head["position"]),
            paused=head["paused"],
            died=head["running"],
            trying=Trying(*head["trying"]) if head["trying"] else None,
        )
        for detector, current, previous in self._checked("SELECT * FROM models"):
            saved.models[detector] = (json.loads(current), json.loads(previous))
        for command, receipt, _ in self._checked("SELECT * FROM commands ORDER BY at"):
            saved.commands[command] = json.loads(receipt)
        lines = self._checked(f"SELECT * FROM audit ORDER BY number DESC LIMIT {_SHOWN}")  # noqa: S608
        saved.audit = [json.loads(line) for _, line in reversed(lines)]
        saved.replays = frozenset(row[0] for row in self._checked("SELECT * FROM replays"))
        saved.groups, saved.forgotten = self._groups(self._db.execute(_LAST_SEEN, (most,)).fetchall())
        saved.stored = self._db.execute("SELECT count(*) FROM state").fetchone()[0]
        return saved

    def _groups(self, rows: Iterable[tuple[str, bytes, int, int]]) -> tuple[list[Group], tuple[str, ...]]:
        """Records as arrays, a group for each layout; tables whose recipe changed since are left out, and named."""
        recipes = json.loads(self._recipes)
        by_layout: dict[int, tuple[list[str], list[bytes]]] = {}
        for machine, row, number, crc in rows:
            if _crc(machine, row, number) != crc:
                raise ValueError(f'the state of "{machine}" does not match its checksum')
            names, records = by_layout.setdefault(number, ([], []))
            names.append(machine)
            records.append(row)
        groups, forgotten = [], set()
        for number, (names, records) in by_layout.items():
            layout, made_by = self._known_layouts()[number]
            columns, past = unpack(layout, records), json.loads(made_by)
            kept = {name for name in columns if recipes is None or past.get(name) == recipes.get(name)}
            forgotten |= set(columns) - kept
            groups.append(Group(names, {name: columns[name] for name in columns if name in kept}))
        return groups, tuple(sorted(forgotten))

    def _next_head(self, changes: Changes) -> dict[str, Any]:
        head = dict(self._head)
        head["commits"] += 1
        head["position"] = [changes.position.last_offset, changes.position.fingerprint]
        head["trying"] = list(changes.trying) if changes.trying else None
        for name, value in (("paused", changes.paused), ("running", changes.running)):
            if value is not None:
                head[name] = value
        return head

    def _layout(self, layout: Layout) -> int:
        """The number of the layout in use, written down when it is new."""
        wanted = (layout, self._recipes)
        for number, known in self._known_layouts().items():
            if known == wanted:
                return number
        number = max(self._layouts, default=0) + 1
        self._put("layouts", [(number, json.dumps(layout), self._recipes)])
        self._layouts[number] = wanted
        return number

    def _known_layouts(self) -> dict[int, tuple[Layout, str]]:
        if not self._layouts:
            found = self._checked("SELECT * FROM layouts")
            self._layouts = {number: (json.loads(layout), recipes) for number, layout, recipes in found}
        return self._layouts

    def _put(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Write rows, each with its checksum; a None stands for a number that the table gives."""
        if rows:
            marks = ",".join("?" * (len(rows[0]) + 1))
            sealed = [(*row, _crc(*(value for value in row if value is not None))) for row in rows]
            self._db.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", sealed)  # noqa: S608

    def _checked(self, query: str) -> list[tuple[Any, ...]]:
        """Rows without their checksum. Raises CheckpointError when it does not fit."""
        found = []
        for *values, crc in self._db.execute(query):
            sealed = values[1:] if "FROM audit" in query else values
            if _crc(*sealed) != crc:
                raise self._damaged("a row does not match its checksum")
            found.append(tuple(values))
        return found

    def _size(self) -> int:
        log = self.path.with_name(self.path.name + "-wal")
        return self.path.stat().st_size + (log.stat().st_size if log.exists() else 0)

    def _damaged(self, error: object) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: is damaged: {error}. Put back a copy (mmlw checkpoint import), or start over "
            f"(mmlw checkpoint reset)"
        )


def _crc(*values: Any) -> int:
    total = 0
    for value in values:
        data = value if isinstance(value, bytes) else repr(value).encode()
        total = zlib.crc32(data, zlib.crc32(len(data).to_bytes(8, "little"), total))
    return total


def set_witness(path: Path, commits: int) -> None:
    """Say of a checkpoint how many commits it must hold: after it was put in place on purpose, or put aside."""
    path.with_suffix(".lock").write_bytes(_witness(commits))


def _witness(commits: int) -> bytes:
    return f"{os.getpid():>10} {commits:>20}\n".encode()


def _lock(path: Path) -> tuple[int, int]:
    """The lock file, open and held, and the number of the last commit it knows of."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise CheckpointError(f"{path}: another worker (or process) runs this topology here") from error
    words = os.pread(handle, 64, 0).split()
    return handle, int(words[1]) if len(words) == 2 and words[1].isdigit() else 0

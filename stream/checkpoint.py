"""The checkpoint: state, position, models and applied commands, changed together in one transaction.

One SQLite file a topology (write-ahead log, synchronous=FULL). The state of a key is one row: the bytes of its
slice of every state array, in the order that `layout` names; only the keys that changed are written.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from detectors.base import Rows
from stream.errors import CheckpointError

__all__ = ["Changes", "Checkpoint", "Saved", "StreamPosition"]

_FORMAT = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS state (
    slot INTEGER PRIMARY KEY, machine TEXT NOT NULL UNIQUE, row BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS models (
    detector TEXT PRIMARY KEY, current TEXT NOT NULL, previous TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS commands (id TEXT PRIMARY KEY, receipt TEXT NOT NULL, at REAL NOT NULL);
"""

_COMMANDS_KEPT = 10_000
"""Commands that are remembered, to answer a repeated one with the same receipt."""
_FORGET_COMMANDS = "DELETE FROM commands WHERE id NOT IN (SELECT id FROM commands ORDER BY at DESC LIMIT ?)"


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """Where reading goes on: the last message processed, and a fingerprint to know the stream by."""

    last_offset: int = -1
    fingerprint: str = ""

    @property
    def next_offset(self) -> int:
        """The first offset not processed."""
        return self.last_offset + 1


@dataclass(slots=True)
class Changes:
    """What one commit changes. `components` holds the rows of `slots`, by table name."""

    position: StreamPosition
    slots: Sequence[int] = ()
    machines: Sequence[str] = ()
    components: Mapping[str, Rows] = field(default_factory=dict)
    models: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any] | None]] = field(default_factory=dict)
    """Detector -> (current, previous) model reference, where a swap changed it."""
    commands: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    paused: bool | None = None


@dataclass(slots=True)
class Saved:
    """What the checkpoint held. `components` are rows of all machines in slot order; those whose recipe has
    changed since are left out, and named in `forgotten`."""

    position: StreamPosition = StreamPosition()
    machines: list[str] = field(default_factory=list)
    components: dict[str, Rows] = field(default_factory=dict)
    models: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = field(default_factory=dict)
    commands: dict[str, dict[str, Any]] = field(default_factory=dict)
    paused: bool = False
    forgotten: tuple[str, ...] = ()
    whole: bool = False
    """True: the layout of rows has changed, so the next commit must write all machines."""


class Checkpoint:
    """The checkpoint file of one topology, locked against a second worker. Raises CheckpointError.

    `recipes` names the state tables with a text that changes when their state is no longer comparable.
    Methods block for as long as the disk takes: call them from a thread, one at a time.
    """

    def __init__(self, path: Path, topology: str, recipes: Mapping[str, str]) -> None:
        self.path = path
        self._recipes = dict(recipes)
        self._layout: list[list[Any]] | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(path.with_suffix(".lock"))
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            if (damage := self._db.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(damage)
            self._check_owner(topology)
        except (sqlite3.Error, CheckpointError) as error:
            self.close()
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path}: cannot be read: {error}. Move it away to start over") from error

    def load(self) -> Saved:
        """Everything that was committed. Raises CheckpointError on damage."""
        try:
            return self._load()
        except (sqlite3.Error, ValueError) as error:
            raise CheckpointError(f"{self.path}: is damaged: {error}. Move it away to start over") from error

    def _load(self) -> Saved:
        meta = self._meta()
        saved = Saved(paused=meta.get("paused") == "1")
        saved.position = StreamPosition(int(meta.get("last_offset", -1)), meta.get("fingerprint", ""))
        for detector, current, previous in self._db.execute("SELECT * FROM models"):
            saved.models[detector] = (json.loads(current), json.loads(previous) if previous else None)
        for command, receipt in self._db.execute("SELECT id, receipt FROM commands ORDER BY at"):
            saved.commands[command] = json.loads(receipt)
        layout: list[list[Any]] = json.loads(meta.get("layout", "[]"))
        recipes: dict[str, str] = json.loads(meta.get("recipes", "{}"))
        rows: list[bytes] = []
        query = "SELECT slot, machine, row, crc FROM state ORDER BY slot"
        for number, (slot, machine, row, crc) in enumerate(self._db.execute(query)):
            if slot != number or zlib.crc32(row) != crc:
                raise CheckpointError(
                    f'{self.path}: the state of "{machine}" is damaged. Move it away to start over'
                )
            saved.machines.append(machine)
            rows.append(row)
        columns = _unpack(layout, rows, self.path)
        kept = {name for name in columns if recipes.get(name) == self._recipes.get(name)}
        saved.components = {name: columns[name] for name in columns if name in kept}
        saved.forgotten = tuple(sorted(set(columns) - kept))
        saved.whole = bool(rows) and recipes != self._recipes
        self._layout = layout if rows and not saved.whole else None
        return saved

    def commit(self, changes: Changes) -> None:
        """All of it or nothing, on disk when this returns."""
        layout, rows = _pack(changes.components, len(changes.slots))
        meta = {"last_offset": str(changes.position.last_offset), "fingerprint": changes.position.fingerprint}
        if changes.slots and layout != self._layout:
            meta |= {"layout": json.dumps(layout), "recipes": json.dumps(self._recipes)}
        if changes.paused is not None:
            meta["paused"] = str(int(changes.paused))
        state = zip(changes.slots, changes.machines, rows, map(zlib.crc32, rows), strict=True)
        models = [(d, json.dumps(c), json.dumps(p) if p else None) for d, (c, p) in changes.models.items()]
        commands = [(key, json.dumps(receipt), time.time()) for key, receipt in changes.commands.items()]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta.items())
                self._db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?, ?, ?)", state)
                self._db.executemany("INSERT OR REPLACE INTO models VALUES (?, ?, ?)", models)
                self._db.executemany("INSERT OR REPLACE INTO commands VALUES (?, ?, ?)", commands)
                if commands:
                    self._db.execute(_FORGET_COMMANDS, (_COMMANDS_KEPT,))
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise CheckpointError(f"{self.path}: could not be written: {error}") from error
        if changes.slots:
            self._layout = layout

    def size(self) -> int:
        """Bytes on disk, with the write-ahead log."""
        log = self.path.with_name(self.path.name + "-wal")
        return self.path.stat().st_size + (log.stat().st_size if log.exists() else 0)

    def close(self) -> None:
        """Close the file and give up the lock."""
        if hasattr(self, "_db"):
            self._db.close()
        self._lock.close()

    def _meta(self) -> dict[str, str]:
        return dict(self._db.execute("SELECT name, value FROM meta").fetchall())

    def _check_owner(self, topology: str) -> None:
        meta = self._meta()
        if not meta:
            values = [("format", str(_FORMAT)), ("topology", topology)]
            self._db.executemany("INSERT INTO meta VALUES (?, ?)", values)
        elif meta.get("format") != str(_FORMAT):
            raise CheckpointError(f"{self.path}: format {meta.get('format')}, this version reads {_FORMAT}")
        elif meta.get("topology") != topology:
            raise CheckpointError(f'{self.path}: belongs to the topology "{meta.get("topology")}"')


def _lock(path: Path) -> IO[str]:
    handle = path.open("a")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise CheckpointError(f"{path}: another worker (or process) runs this topology here") from error
    handle.truncate(0)
    handle.write(str(os.getpid()))
    handle.flush()
    return handle


def _pack(components: Mapping[str, Rows], n: int) -> tuple[list[list[Any]], list[bytes]]:
    """The layout [[component, array, dtype, row shape], …] and one record of bytes a key.

    Arrays of fixed size come first, side by side; arrays of `bytes` follow, each with its length before it.
    """
    layout: list[list[Any]] = []
    fixed: list[NDArray[np.uint8]] = []
    loose: list[tuple[list[Any], list[bytes]]] = []
    for component, arrays in sorted(components.items()):
        for name, array in sorted(arrays.items()):
            if array.dtype == object:
                loose.append(([component, name, "bytes", []], array.tolist()))
                continue
            layout.append([component, name, array.dtype.str, list(array.shape[1:])])
            width = array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))
            fixed.append(np.ascontiguousarray(array).view(np.uint8).reshape(n, width))
    matrix = np.hstack(fixed) if fixed else np.zeros((n, 0), np.uint8)
    width = matrix.shape[1]
    data = matrix.tobytes()
    rows = [data[i * width : (i + 1) * width] for i in range(n)]
    for entry, blobs in loose:
        layout.append(entry)
        rows = [row + len(blob).to_bytes(4, "little") + blob for row, blob in zip(rows, blobs, strict=True)]
    return layout, rows


def _unpack(layout: Sequence[Sequence[Any]], rows: Sequence[bytes], path: Path) -> dict[str, dict[str, Any]]:
    """The inverse of `_pack`: arrays by component and name, first axis the rows."""
    found: dict[str, dict[str, Any]] = {}
    if not rows:
        return found
    places = [0] * len(rows)
    try:
        for component, name, dtype, shape in layout:
            if dtype == "bytes":
                blobs = np.empty(len(rows), dtype=object)
                for i, row in enumerate(rows):
                    start = places[i] + 4
                    places[i] = start + int.from_bytes(row[start - 4 : start], "little")
                    blobs[i] = row[start : places[i]]
                found.setdefault(component, {})[name] = blobs
                continue
            width = np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))
            data = b"".join(row[place : place + width] for row, place in zip(rows, places, strict=True))
            array = np.frombuffer(data, dtype).reshape(len(rows), *shape).copy()
            found.setdefault(component, {})[name] = array
            places = [place + width for place in places]
    except ValueError as error:
        raise CheckpointError(f"{path}: rows do not fit their layout. Move it away to start over") from error
    if places != [len(row) for row in rows]:
        raise CheckpointError(f"{path}: rows do not fit their layout. Move it away to start over")
    return found

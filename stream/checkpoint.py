"""The checkpoint: state, position, models and applied commands, changed together in one transaction.

One SQLite file a topology (write-ahead log, synchronous=FULL). The state of a machine is one record; only the
machines that changed are written. Every row carries a checksum, the head the sums of all tables, and the lock
file beside it a witness: a file that was damaged, lost commits, is another or older one, or came without that
witness, is refused.
"""

from __future__ import annotations

import contextlib
import errno
import json
import secrets
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from stream.errors import CheckpointError, CheckpointFull, CheckpointUnproven
from stream.notes import NoteFile
from stream.rows import Layout, pack, unpack
from stream.sealed import SealedTables, Sums, create
from stream.state import Changes, Group, Saved, StreamPosition
from stream.witness import Witness

__all__ = ["Checkpoint", "trouble"]

_FORMAT = "3"
_KEPT = 10_000
"""Commands remembered, to answer a repeated one with the same receipt; lines of the audit."""
_KEPT_REPLAYS = 1_000_000
"""Dead letters known to be processed: about as many as their stream keeps."""
_SHOWN = 100
"""Lines of the audit that are loaded."""
_FORGET = (
    ("commands", "id NOT IN (SELECT id FROM commands ORDER BY at DESC LIMIT ?)", _KEPT),
    ("audit", "number <= (SELECT max(number) FROM audit) - ?", _KEPT),
    ("replays", "rowid <= (SELECT max(rowid) FROM replays) - ?", _KEPT_REPLAYS),
)
_AT_A_TIME = 500
"""Machines packed, or looked up, in one go."""
_LOADED = 2**20
"""Bytes of state that are loaded at once: single rows keep the garbage collector busy, and that stops everybody; so
does a large array while it is copied."""
_LOG_LIMIT = 64 * 2**20
"""Bytes of write-ahead log that are kept for the next one."""
_ROOM, _ROOM_PART = 2**18, 2**24
"""Bytes that must be free before a full disk is written again, beside those that found no room; in parts of."""


class _Head(msgspec.Struct, frozen=True):
    """What every commit changes."""

    life: str
    commits: int = 0
    position: tuple[int, str] = (-1, "")
    paused: bool = False
    running: bool = False
    sums: Sums = {}
    unsettled: bool = False


class Checkpoint:
    """The checkpoint file of one topology, locked against a second worker: a `Store`. Raises CheckpointError.

    `recipes` names the state tables with a text that changes when their state is no longer comparable (a name that
    ends in a colon: those of every table that begins so and has none of its own); None takes every table as it is,
    to look at. The file is made by the first commit.
    `adopt` takes the file as it is, without asking the witness, and begins a life of its own: for a copy that is
    put back on purpose.
    """

    def __init__(
        self, path: Path, topology: str, recipes: Mapping[str, str] | None, *, adopt: bool = False
    ) -> None:
        self.path = path
        self._topology = topology
        self._recipes = json.dumps(None if recipes is None else dict(recipes), sort_keys=True)
        self._layouts: dict[int, tuple[Layout, str]] = {}
        self._head = _Head(secrets.token_hex(8))
        self._lacking = 0
        """Bytes that found no room on the disk."""
        self._witness = Witness(path)
        self._files = contextlib.ExitStack()
        self._files.callback(self._witness.close)
        self._note = NoteFile(path)
        self._files.callback(self._note.close)
        try:
            with self._troubles():
                self._open(adopt)
        except CheckpointError:
            self.close()
            raise

    def load(self, most: int = 1_000_000) -> Saved:
        """See `Store`."""
        with self._troubles():
            return self._load(most)

    def fetch(self, machines: Sequence[str]) -> list[Group]:
        """See `Store`."""
        found: list[tuple[Any, ...]] = []
        with self._troubles():
            if not self.exists:
                return []
            for start in range(0, len(machines), _AT_A_TIME):
                names = machines[start : start + _AT_A_TIME]
                marks = ",".join("?" * len(names))
                found += self._tables.rows("state", f"WHERE machine IN ({marks})", names)
            return self._groups(found)[0]

    def commit(self, changes: Changes) -> int:
        """See `Store`."""
        try:
            with self._troubles("could not be written"):
                if self._lacking:
                    self._make_room()
                head = self._commit(changes)
        except CheckpointFull:
            self._lacking = max(self._lacking, _bytes(changes))
            raise
        self._head, self.exists, self._lacking = head, True, 0
        self._witness.note(head.commits, head.life)
        return self._size()

    def note(self, note: bytes) -> None:
        """See `Store`."""
        self._note.write(self._head.life, note)

    @property
    def commits(self) -> int:
        """How many commits were made."""
        return self._head.commits

    @property
    def life(self) -> str:
        """The name of the file's life: what began with it shares it, what was put in place has another."""
        return self._head.life

    def verify(self) -> None:
        """Read everything there is, and check it. Raises CheckpointError on damage."""
        if not self.exists:
            raise CheckpointError(f"{self.path}: holds no checkpoint")
        self.load()
        self.audit()

    def audit(self) -> list[dict[str, Any]]:
        """Every command that came, oldest first: who, what, when, and what became of it."""
        with self._troubles():
            entries = self._tables.rows("audit", "ORDER BY number") if self.exists else []
            return [{"number": number, **json.loads(entry)} for number, entry in entries]

    def layouts(self) -> list[tuple[int, dict[str, str], Layout]]:
        """What records hold: how many machines have it, the recipes that made it, and the arrays in it."""
        with self._troubles():
            query = "SELECT layout, count(*) FROM state GROUP BY layout"
            count = dict(self._db.execute(query)) if self.exists else {}
            known = self._known_layouts() if self.exists else {}
            return [
                (count[n], json.loads(recipes) or {}, layout)
                for n, (layout, recipes) in known.items()
                if n in count
            ]

    def close(self) -> None:
        """Close the file and give up the lock."""
        self._files.close()

    def _open(self, adopt: bool) -> None:
        made = 0 if adopt else self._witness.commits
        if made and not (self.path.exists() and self.path.stat().st_size):
            raise self._gone(made)  # before SQLite throws away the log of a file that somebody moved
        self._files.callback(self._leave_nothing)
        self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self._files.callback(self._db.close)
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(f"PRAGMA journal_size_limit={_LOG_LIMIT}")
        self._tables = SealedTables(self._db)
        self.exists = self._tables.check_structure()
        """False until the first commit."""
        if not self.exists:
            if made:
                raise self._gone(made)
            return
        meta = dict(self._tables.rows("meta"))
        if set(meta) != {"format", "topology", "head"}:
            raise ValueError("its head is incomplete")
        if meta["format"] != _FORMAT:
            raise CheckpointError(
                f"{self.path}: format {meta['format']}, this version reads {_FORMAT}. Run the version that wrote it, "
                f"or start over (mmlw checkpoint reset)"
            )
        if meta["topology"] != self._topology:
            raise CheckpointError(
                f'{self.path}: belongs to the topology "{meta["topology"]}". Put back its own '
                f"(mmlw checkpoint import), or start over (mmlw checkpoint reset)"
            )
        self._head = msgspec.json.decode(meta["head"], type=_Head)
        if not adopt:
            self._ask_witness()
        self._tables.check(self._head.sums)
        if self._db.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
            raise CheckpointError(
                f"{self.path}: cannot have a write-ahead log here: is its folder on a network?"
            )
        if adopt:
            self._head = msgspec.structs.replace(self._head, life=secrets.token_hex(8))
            self._tables.put("meta", [("head", _json(self._head))], {})

    def _leave_nothing(self) -> None:
        """Without a commit there is no checkpoint: SQLite's empty file would pass for one."""
        if self._witness.knows or self.path.with_name(f"{self.path.name}-wal").exists():
            return
        with contextlib.suppress(OSError):
            if self.path.stat().st_size == 0:
                self.path.unlink()

    def _ask_witness(self) -> None:
        made = self._witness.commits
        if not self._witness.knows:
            lock = self.path.with_suffix(".lock")
            raise CheckpointUnproven(
                f"{self.path}: {lock.name}, which was written with it and says how many commits it must hold, is "
                f"missing or empty: so nobody knows whether some of them were lost. Put both files in place "
                f"together; or, to go on from this one as it is (commit {self._head.commits}), use mmlw checkpoint "
                f"import {self._topology} {self.path}"
            )
        if self._witness.life not in ("", self._head.life):
            raise CheckpointUnproven(
                f"{self.path}: is not the file that was written here last, but one from before a reset or an import. "
                f"To go on from it all the same, use mmlw checkpoint import"
            )
        if self._head.commits < made:
            raise CheckpointUnproven(
                f"{self.path}: holds commit {self._head.commits}, but commit {made} was made: it is damaged, or an "
                f"older copy. To go on from it all the same, use mmlw checkpoint import"
            )

    def _load(self, most: int) -> Saved:
        if not self.exists:
            return Saved()
        head, tables = self._head, self._tables
        saved = Saved(
            position=StreamPosition(*head.position),
            paused=head.paused,
            died=head.running,
            unsettled=head.unsettled,
            note=self._note.read(head.life),
            stored=head.sums.get("state", (0, 0))[0],
            names=[name for (name,) in self._db.execute("SELECT machine FROM state")],
        )
        for detector, current, previous in tables.rows("models", "WHERE current != 'null'"):
            saved.models[detector] = (json.loads(current), json.loads(previous))
        for command, _, receipt in tables.rows("commands", "ORDER BY at, rowid"):
            saved.commands[command] = json.loads(receipt)
        lines = tables.rows("audit", "ORDER BY number DESC LIMIT ?", (_SHOWN,))
        saved.audit = [json.loads(line) for _, line in reversed(lines)]
        saved.replays = frozenset(row[0] for row in tables.rows("replays"))
        last_seen = "WHERE rowid IN (SELECT rowid FROM state ORDER BY seen DESC LIMIT ?) ORDER BY rowid"
        groups: list[Group] = []
        forgotten: set[str] = set()
        for part in _parts(tables.each("state", last_seen, (most,))):
            found, left_out = self._groups(part)
            groups += found
            forgotten.update(left_out)
        saved.groups, saved.forgotten = groups, tuple(sorted(forgotten))
        return saved

    def _groups(self, rows: Iterable[tuple[Any, ...]]) -> tuple[list[Group], tuple[str, ...]]:
        """Records as arrays, a group for each layout; tables whose recipe changed since are left out, and named."""
        recipes = json.loads(self._recipes)
        by_layout: dict[int, tuple[list[str], list[bytes]]] = {}
        for machine, number, _, row in rows:
            names, records = by_layout.setdefault(number, ([], []))
            names.append(machine)
            records.append(row)
        groups, forgotten = [], set()
        for number, (names, records) in by_layout.items():
            layout, made_by = self._known_layouts()[number]
            columns, past = unpack(layout, records), json.loads(made_by)
            kept = {
                name
                for name in columns
                if recipes is None or past is None or _recipe(past, name) == _recipe(recipes, name)
            }
            forgotten |= set(columns) - kept
            groups.append(Group(names, {name: columns[name] for name in columns if name in kept}))
        return groups, tuple(sorted(forgotten))

    def _commit(self, changes: Changes) -> _Head:
        """One transaction; the head that it wrote."""
        tables, sums, at = self._tables, dict(self._head.sums), time.time()
        if not self.exists:
            self._witness.begin(self._head.life)
            self._db.execute("PRAGMA journal_mode=WAL")
        try:
            self._db.execute("BEGIN IMMEDIATE")
            if not self.exists:
                create(self._db)
                tables.put("meta", [("format", _FORMAT), ("topology", self._topology)], sums)
            seen = changes.position.last_offset
            for start in range(0, len(changes.machines), _AT_A_TIME):
                names = changes.machines[start : start + _AT_A_TIME]
                layout, rows = pack(_part(changes, start, start + _AT_A_TIME), len(names))
                number = self._layout(layout, sums)
                records = zip(names, rows, strict=True)
                tables.put("state", [(name, number, seen, row) for name, row in records], sums)
            models = changes.models.items()
            tables.put("models", [(d, json.dumps(c), json.dumps(p)) for d, (c, p) in models], sums)
            gone = [name for name, (current, _) in models if current is None]
            for start in range(0, len(gone), _AT_A_TIME):
                names = gone[start : start + _AT_A_TIME]
                tables.forget("models", f"detector IN ({','.join('?' * len(names))})", names, sums)
            tables.put("commands", [(key, at, json.dumps(r)) for key, r in changes.commands.items()], sums)
            tables.put("replays", [(letter, at) for letter in changes.replays], sums)
            if changes.audit:
                last = self._db.execute("SELECT coalesce(max(number), 0) FROM audit").fetchone()[0]
                lines = enumerate(changes.audit, last + 1)
                tables.put("audit", [(number, json.dumps(entry)) for number, entry in lines], sums)
            if changes.commands or changes.audit or changes.replays:
                for table, which, kept in _FORGET:
                    tables.forget(table, which, (kept,), sums)
            head = self._next_head(changes, sums)
            tables.put("meta", [("head", _json(head))], sums)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._layouts.clear()
            raise
        return head

    def _next_head(self, changes: Changes, sums: Sums) -> _Head:
        head = self._head
        return _Head(
            head.life,
            head.commits + 1,
            (changes.position.last_offset, changes.position.fingerprint),
            head.paused if changes.paused is None else changes.paused,
            head.running if changes.running is None else changes.running,
            sums,
            head.unsettled if changes.unsettled is None else changes.unsettled,
        )

    def _layout(self, layout: Layout, sums: Sums) -> int:
        """The number of the layout in use, written down when it is new."""
        wanted = (layout, self._recipes)
        for number, known in self._known_layouts().items():
            if known == wanted:
                return number
        number = max(self._layouts, default=0) + 1
        self._tables.put("layouts", [(number, json.dumps(layout), self._recipes)], sums)
        self._layouts[number] = wanted
        return number

    def _known_layouts(self) -> dict[int, tuple[Layout, str]]:
        if not self._layouts:
            found = self._tables.rows("layouts")
            self._layouts = {number: (json.loads(layout), recipes) for number, layout, recipes in found}
        return self._layouts

    def _make_room(self) -> None:
        """Hold as many bytes as found no room, then leave them to what comes: a small commit proves nothing."""
        if self.exists:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for start in range(0, self._lacking, _ROOM_PART):
                    size = min(self._lacking - start, _ROOM_PART)
                    self._db.execute("INSERT INTO room VALUES (zeroblob(?))", (size,))
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("DELETE FROM room")

    def _size(self) -> int:
        log = self.path.with_name(self.path.name + "-wal")
        return self.path.stat().st_size + (log.stat().st_size if log.exists() else 0)

    @contextlib.contextmanager
    def _troubles(self, said: str = "") -> Iterator[None]:
        """What goes wrong with the file, as a CheckpointError that says what to do."""
        try:
            yield
        except (sqlite3.Error, msgspec.MsgspecError, ValueError, KeyError, TypeError, OSError) as error:
            raise trouble(self.path, error, said) from error

    def _gone(self, made: int) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: is gone or empty, but {made} commits were made. Put it back, or start over "
            f"with mmlw checkpoint reset"
        )


def trouble(path: Path, error: Exception, said: str = "") -> CheckpointError:
    """What went wrong with a checkpoint file, and what to do about it."""
    code = getattr(error, "sqlite_errorcode", None) or 0
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE):
        return CheckpointFull(f"{path}: {said or 'cannot be written'}: the disk is full. Make room")
    if code & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return CheckpointError(
            f"{path}: {said or 'cannot be opened'}: {error}. See who owns it and its folder"
        )
    if code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return CheckpointError(f"{path}: {said or 'cannot be read'}: {error}: another program has it open")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CheckpointFull(f"{path}: {said or 'cannot be written'}: the disk is full. Make room")
    if code & 0xFF == sqlite3.SQLITE_IOERR or isinstance(error, OSError):
        return CheckpointError(f"{path}: {said or 'cannot be read'}: {error}: see to the disk")
    if said and code & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return CheckpointError(f"{path}: {said}: {error}")
    return CheckpointError(
        f"{path}: is damaged: {error}. Put back a copy (mmlw checkpoint import), or start over "
        f"(mmlw checkpoint reset)"
    )


def _parts(rows: Iterable[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    """State rows, a few at a time."""
    part: list[tuple[Any, ...]] = []
    size = 0
    for row in rows:
        part.append(row)
        size += len(row[-1])
        if size >= _LOADED:
            yield part
            part, size = [], 0
    if part:
        yield part


def _recipe(recipes: Mapping[str, str], table: str) -> str | None:
    """A table's own, or that of all tables of its sort."""
    return recipes.get(table, recipes.get(table.partition(":")[0] + ":"))


def _part(changes: Changes, start: int, end: int) -> dict[str, dict[str, Any]]:
    return {
        table: {name: array[start:end] for name, array in rows.items()}
        for table, rows in changes.components.items()
    }


def _bytes(changes: Changes) -> int:
    """About how much a commit writes."""
    arrays = [array for rows in changes.components.values() for array in rows.values()]
    loose = sum(len(blob) for array in arrays if array.dtype == object for blob in array.tolist())
    return _ROOM + 2 * (loose + sum(array.nbytes for array in arrays) + 64 * len(changes.machines))


def _json(head: _Head) -> str:
    return msgspec.json.encode(head).decode()

"""Capture: every processed reading with its scores, once, in Parquet files beside the checkpoint.

`CapturingStore` stands before a topology's store. What the engine scored since the last commit goes to a journal
right before the commit, in the thread that commits; full journals become Parquet files in a thread of their own.
So nothing of it is on the path of a batch, and after a crash the checkpoint's position tells what the journal holds
too much: a reading whose effect was not committed is read again, and captured then.

What cannot be written (a full disk) is counted, and never stops the stream.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stream import log
from stream.capture_files import Piece, encode, journals, parts, prune, seal
from stream.errors import ConfigError, Problem
from stream.journal import Journal, Record, records
from stream.metrics import TopologyMetrics
from stream.rules import COMBINED
from stream.scorer import Scored
from stream.standing import Standing
from stream.state import Changes, Group, Saved, Store, StreamPosition
from stream.topology import RegistryModel, Topology

__all__ = ["CapturingStore"]

_FULL = 64_000_000
"""Bytes of a journal from which it becomes a file, however few its rows: a file is made in memory."""
_PARTS = 4
"""Of what is kept, a journal may take one: it is let go only as a file, and not before it is one."""
_LOOK = 30.0
"""Seconds between two looks whether a journal is old enough."""


class CapturingStore:
    """A `Store` that also captures what `add` is shown, by the topology's `capture` rule.

    `now` gives epoch seconds. Raises ConfigError where the folder cannot be used.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        topology: Topology,
        metrics: TopologyMetrics,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        assert topology.capture is not None  # noqa: S101 - the caller looked
        self._store = store
        self._folder = folder
        self._name = topology.name
        self._rule = topology.capture
        self._sensors = topology.source.names
        self._metrics = metrics
        self._now = now
        self._standing = Standing([COMBINED] if topology.combine is not None else topology.detectors)
        self._versions = {
            name: "" if isinstance(spec, RegistryModel) else "online"
            for name, spec in topology.detectors.items()
        }
        self._pieces: list[Piece] = []
        self._position = StreamPosition()
        self._doubtful: Record | None = None
        """The last record, while nobody knows whether its commit was made."""
        self._journal: Journal | None = None
        self._begun = 0.0
        self._last = StreamPosition()
        """Where the open journal ends."""
        self._held = 0
        """Bytes in journals that wait to become files."""
        self._lock = threading.Lock()
        """Held by who changes the journal: the thread that commits, or the one that makes files."""
        self._wake = threading.Event()
        self._closing = False
        self._handle = self._enter()
        self._next = 1 + max([part.number for part in parts(folder)] + [n for n, _ in journals(folder)] + [0])
        self._left = [number for number, _ in journals(folder)]
        """Journals of a process before this one that may hold a record too much."""
        self._files = threading.Thread(target=self._make_files, name=f"capture-{self._name}", daemon=True)
        self._files.start()

    def add(self, scored: Scored) -> None:
        """A batch was scored, its alerts are out: captured with the next commit."""
        if len(scored.batch):
            stand = self._standing.follow(scored)
            self._pieces.append(Piece(scored, stand.open, dict(self._versions)))

    def load(self, most: int) -> Saved:
        """See `Store`. Whoever loads begins anew from there: what was not committed is forgotten."""
        saved = self._store.load(most)
        with self._lock:
            self._pieces.clear()
            self._take_back(saved.position)
            self._position = saved.position
        self._standing.clear()
        self._standing.resume(saved.groups)
        self._note_versions(saved.models)
        return saved

    def fetch(self, machines: Sequence[str]) -> Sequence[Group]:
        """See `Store`."""
        groups = self._store.fetch(machines)
        self._standing.resume(groups)
        return groups

    def commit(self, changes: Changes) -> int:
        """See `Store`. Whether the capture can be written changes nothing for who commits."""
        with self._lock:
            rows = sum(len(piece.scored.batch) for piece in self._pieces)
            written = not rows or self._write(changes.position, rows)
            size = self._store.commit(changes)
            self._doubtful = None
            self._pieces.clear()
            self._position = changes.position
            (self._metrics.captured if written else self._metrics.capture_dropped).inc(rows)
            self._note_versions(changes.models)
            if any(name.startswith("untold:") for name in changes.models):  # an operator closed an alert
                self._standing.resume([Group(changes.machines, changes.components)])
            if self._journal is not None and self._is_full(self._journal):
                self._wake.set()
        return size

    def note(self, note: bytes) -> None:
        """See `Store`."""
        self._store.note(note)

    def close(self) -> None:
        """See `Store`. What was captured is then in files."""
        self._closing = True
        self._wake.set()
        self._files.join()
        os.close(self._handle)
        self._store.close()

    def _enter(self) -> int:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            where = f"{self._name}: capture: {self._folder}"
            raise ConfigError([Problem(where, f"cannot be used: {error.strerror}")]) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            remedy = "another worker captures here; give each its own folder"
            raise ConfigError([Problem(f"{self._name}: capture: {self._folder}", remedy)]) from error
        return handle

    def _write(self, after: StreamPosition, rows: int) -> bool:
        """Put what was scored into the journal; whether it could be."""
        if self._doubtful is not None:  # a commit failed, and nobody loaded since
            self._take_back(self._store.load(0).position)
        before = self._position
        try:
            if self._held > self._rule.keep.bytes:
                raise OSError("keep.bytes are taken up by what could not be made into files")
            journal = self._begin(before)
            start = journal.size
            journal.append(encode(self._pieces, self._sensors), rows, before, after)
        except OSError as error:
            self._tell("capture_failed", error)
            return False
        self._doubtful, self._last = Record(before, after, rows, b"", start, journal.size), after
        return True

    def _begin(self, before: StreamPosition) -> Journal:
        """The journal that is open, or the next: where reading began anew the old one is at its end."""
        if self._journal is not None and before.last_offset < self._last.last_offset:
            self._journal.close()
            self._journal = None
        if self._journal is None:
            self._journal = Journal(self._folder / f".journal-{self._next:08}")
            self._begun = self._now()
            self._next += 1
        return self._journal

    def _note_versions(
        self, models: Mapping[str, tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]]
    ) -> None:
        for detector, (current, _) in models.items():
            if current is not None and detector in self._versions:
                self._versions[detector] = str(current["version"])

    def _take_back(self, committed: StreamPosition) -> None:
        """Remove the last record if the store stands where it did before it: its commit was not made."""
        last, self._doubtful = self._doubtful, None
        if last is not None and self._journal is not None and last.before == committed:
            self._journal.take_back(last)
        left, self._left = self._left, []
        for number, path in [item for item in journals(self._folder) if item[0] in left][-1:]:
            *_, last = [None, *records(path)]
            if last is not None:
                os.truncate(path, last.start if last.before == committed else last.end)
            log.get().debug("capture_resumed", topology=self._name, journal=number)
        if left:
            self._wake.set()

    def _is_full(self, journal: Journal) -> bool:
        rotate = self._rule.rotate
        old = self._now() - self._begun >= rotate.age
        full = min(_FULL, self._rule.keep.bytes // _PARTS)
        return bool(journal.rows) and (journal.rows >= rotate.rows or journal.size >= full or old)

    def _make_files(self) -> None:
        """Until the end: close the journal when it is full or old, and make files of closed ones."""
        ending = False
        while not ending:
            self._wake.wait(min(_LOOK, self._rule.rotate.age or _LOOK))
            self._wake.clear()
            ending = self._closing
            with self._lock:
                due = self._journal is not None and (ending or self._is_full(self._journal))
                if self._journal is not None and due and self._doubtful is None:
                    self._journal.close()
                    self._journal = None
                open_ = None if self._journal is None else self._journal.path
                waiting = [] if self._left else [j for j in journals(self._folder) if j[1] != open_]
            for number, path in waiting:
                with self._failing():
                    self._make_file(number, path)
            with self._failing():
                for part in prune(self._folder, self._rule.keep, self._now()):
                    log.get().info("capture_removed", topology=self._name, part=part.path.name)
            self._held = sum(path.stat().st_size for _, path in waiting if path.exists())

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """What fails is told and counted, and holds up nothing else: the next look tries again."""
        try:
            yield
        except (OSError, ValueError) as error:
            self._metrics.capture_failures.inc()
            self._tell("capture_file_failed", error)

    def _make_file(self, number: int, path: Path) -> None:
        if any(part.number == number for part in parts(self._folder)):  # made, when a crash came
            path.unlink()
            return
        part = seal(self._folder, number, path)
        if part is not None:
            self._metrics.capture_bytes.inc(part.bytes)
            log.get().info("capture_written", topology=self._name, part=part.path.name, bytes=part.bytes)

    def _tell(self, event: str, error: Exception) -> None:
        log.limited(event, f"{event}/{self._name}", topology=self._name, cause=str(error))

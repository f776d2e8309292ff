"""Checkpoint files as wholes: copied while a worker writes, verified, put in place, put aside."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from stream.checkpoint import Checkpoint, set_witness
from stream.errors import CheckpointError

__all__ = ["checkpoint_of", "copy", "in_use", "install", "put_aside", "snapshot"]


def checkpoint_of(data: Path, topology: str) -> Path:
    """Where a topology's checkpoint is kept. Raises CheckpointError where there is none."""
    path = data / f"{topology}.checkpoint"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in data.glob("*.checkpoint"))) or "none"
        raise CheckpointError(
            f"{path}: no such checkpoint (in {data}: {known}); name the worker's folder by --data"
        )
    return path


def copy(source: Path, target: Path) -> None:
    """A consistent copy, also while a worker writes. Raises CheckpointError where the source cannot be read."""
    try:
        with (
            contextlib.closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as reading,
            contextlib.closing(sqlite3.connect(target)) as writing,
        ):
            reading.backup(writing)
    except sqlite3.Error as error:
        raise CheckpointError(f"{source}: cannot be read: {error}") from error


@contextlib.contextmanager
def snapshot(source: Path, topology: str) -> Iterator[Checkpoint]:
    """A verified copy to look at; the worker's own file is not touched. Raises CheckpointError on damage."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / source.name
        copy(source, target)
        checkpoint = Checkpoint(target, topology, None)
        try:
            checkpoint.verify()
            yield checkpoint
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(target), str(source))) from error
        finally:
            checkpoint.close()


def in_use(path: Path) -> bool:
    """Whether a worker runs this topology here."""
    try:
        with _held(path):
            return False
    except CheckpointError:
        return True


def install(source: Path, path: Path, topology: str) -> Path | None:
    """Verify a copy and put it in place of the checkpoint; where the old one went, if there was one.

    The worker must be stopped. Raises CheckpointError, and then nothing has changed.
    """
    with _held(path):
        fresh = path.with_name(f"{path.name}.new")
        fresh.unlink(missing_ok=True)
        try:
            copy(source, fresh)
            checkpoint = Checkpoint(fresh, topology, None, adopt=True)
            try:
                checkpoint.verify()
                commits = checkpoint.commits
            finally:
                checkpoint.close()
        except CheckpointError as error:
            fresh.unlink(missing_ok=True)
            raise CheckpointError(str(error).replace(str(fresh), str(source))) from error
        finally:
            fresh.with_suffix(".lock").unlink(missing_ok=True)
        replaced = _move_away(path)
        fresh.replace(path)
        set_witness(path, commits)
        return replaced


def put_aside(path: Path) -> Path | None:
    """Move a checkpoint away, so that its topology starts over; where it went. Raises CheckpointError in use."""
    with _held(path):
        aside = _move_away(path)
        set_witness(path, 0)
        return aside


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """The checkpoint's lock. Raises CheckpointError while a worker has it."""
    handle = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise CheckpointError(f"{path}: a worker runs this topology; stop it first") from error
    finally:
        os.close(handle)


def _move_away(path: Path) -> Path | None:
    """Rename the file, with its write-ahead log, to a name that tells when."""
    if not path.exists():
        return None
    aside = path.with_name(f"{path.name}.{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}")
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside

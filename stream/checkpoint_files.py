"""Checkpoint files as wholes: copied while a worker writes, verified, put in place, put aside."""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from stream.checkpoint import Checkpoint, trouble
from stream.errors import CheckpointError
from stream.witness import copy_witness, held, set_witness

__all__ = ["aside_of", "checkpoint_of", "copy", "in_use", "install", "put_aside", "snapshot"]

_PARTS = ("", "-wal", "-shm")


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
    """A consistent copy in one file, also while a worker writes. Raises CheckpointError."""
    doing = source
    try:
        with (
            contextlib.closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as reading,
            contextlib.closing(sqlite3.connect(target, isolation_level=None)) as writing,
        ):
            reading.execute("SELECT count(*) FROM sqlite_master").fetchone()
            doing = target
            reading.backup(writing)
            writing.execute("PRAGMA journal_mode=DELETE")  # so that reading it writes nothing beside it
    except sqlite3.Error as error:
        said = "could not be written" if doing is target else "cannot be read"
        raise trouble(doing, error, said) from error


@contextlib.contextmanager
def snapshot(
    source: Path, topology: str, *, kept: Path | None = None, adopt: bool = False
) -> Iterator[Checkpoint]:
    """A verified copy to look at; the worker's own file is not touched. `kept`: the copy is also left there.

    Raises CheckpointError on damage; and CheckpointUnproven, as a worker would, where the witness beside the file
    does not bear it out: with `adopt` that is not asked.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / source.name
        copy_witness(source, target)
        if kept is not None:
            copy(source, kept)
        copy(kept or source, target)
        checkpoint: Checkpoint | None = None
        try:
            checkpoint = Checkpoint(target, topology, None, adopt=adopt)
            checkpoint.verify()
            yield checkpoint
        except CheckpointError as error:
            raise type(error)(str(error).replace(str(target), str(source))) from error
        finally:
            if checkpoint is not None:
                checkpoint.close()


def in_use(path: Path) -> bool:
    """Whether a worker runs this topology here."""
    try:
        with held(path):
            return False
    except CheckpointError:
        return True


def install(source: Path, path: Path, topology: str) -> Path | None:
    """Verify a copy and put it in place of the checkpoint; where the old one went, if there was one.

    The worker must be stopped. Raises CheckpointError, and then nothing has changed. A power cut at any moment
    leaves the old one or the new one, or neither: never something that is taken for what it is not.
    """
    with held(path):
        fresh = path.with_name(f"{path.name}.new")
        try:
            for suffix in _PARTS:
                fresh.with_name(fresh.name + suffix).unlink(missing_ok=True)
            copy(source, fresh)
            checkpoint = Checkpoint(fresh, topology, None, adopt=True)
            try:
                checkpoint.verify()
                commits, life = checkpoint.commits, checkpoint.life
            finally:
                checkpoint.close()
            _sync(fresh)
        except CheckpointError as error:
            fresh.unlink(missing_ok=True)
            raise CheckpointError(str(error).replace(str(fresh), str(source))) from error
        finally:
            fresh.with_suffix(".lock").unlink(missing_ok=True)
        replaced = _move_away(path)
        set_witness(path, 0, life)
        fresh.replace(path)
        _sync(path.parent)
        set_witness(path, commits, life)
        return replaced


def aside_of(path: Path) -> Path:
    """A name that tells when, for what stood at this path until now; nothing has it."""
    now = path.with_name(f"{path.name}.{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}")
    names = (now.with_name(now.name + (f"-{i}" if i else "")) for i in itertools.count())
    return next(name for name in names if not name.exists())


def put_aside(path: Path) -> Path | None:
    """Move a checkpoint away, so that its topology starts over; where it went. Raises CheckpointError in use."""
    with held(path):
        aside = _move_away(path)
        set_witness(path, 0)
        return aside


def _move_away(path: Path) -> Path | None:
    """Rename the file, with its write-ahead log, to a name that tells when."""
    if not any(path.with_name(path.name + suffix).exists() for suffix in _PARTS):
        return None
    aside = aside_of(path)
    for suffix in _PARTS:
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

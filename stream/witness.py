"""A checkpoint's lock, and beside it a witness: how many commits were made, whatever the file itself says.

It is on the disk before the first commit is, so a checkpoint without one was moved by hand. After that it is
written after each commit and not synced: a power cut may leave it behind, never ahead. Behind, it only lets an older
file pass; ahead, it would refuse a good one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from stream.errors import CheckpointError

__all__ = ["Witness", "copy_witness", "held", "set_witness"]

_PATIENCE = 0.25
"""Seconds for somebody who only looks whether the lock is free."""


class Witness:
    """The lock file of a checkpoint, held until `close`. Raises CheckpointError while another process has it."""

    def __init__(self, checkpoint: Path) -> None:
        path = checkpoint.with_suffix(".lock")
        self._folder = path.parent
        try:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be opened: {error.strerror}") from error
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    os.close(self._handle)
                    raise CheckpointError(
                        f"{path}: another worker (or process) runs this topology here"
                    ) from error
                time.sleep(0.01)
        words = os.pread(self._handle, 128, 0).decode("ascii", "replace").split()
        known = len(words) >= 2 and words[1].isdecimal()
        self.commits = int(words[1]) if known else 0
        """Commits that the file must hold."""
        self.life = words[2] if known and len(words) > 2 else ""
        """Which file they are in: each that begins, or is put in place, has a name of its own."""

    @property
    def knows(self) -> bool:
        """Whether it tells of any file at all."""
        return self.commits > 0 or self.life != ""

    def begin(self, life: str) -> None:
        """A file is about to begin: on the disk, name and all, when this returns. Raises OSError."""
        self.commits, self.life = 0, life
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, _text(0, life), 0)
        os.fsync(self._handle)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def note(self, commits: int, life: str) -> None:
        """A commit was made. Where even these few bytes find no room, the witness stays behind."""
        self.commits, self.life = commits, life
        with contextlib.suppress(OSError):
            os.pwrite(self._handle, _text(commits, life), 0)

    def close(self) -> None:
        """Give up the lock."""
        os.close(self._handle)


@contextlib.contextmanager
def held(checkpoint: Path) -> Iterator[None]:
    """The lock, for work on the file as a whole. Raises CheckpointError while a worker has it."""
    path = checkpoint.with_suffix(".lock")
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise CheckpointError(f"{checkpoint}: a worker runs this topology; stop it first") from error
    finally:
        os.close(handle)


def copy_witness(checkpoint: Path, target: Path) -> None:
    """Put the witness of a checkpoint, where it has one, beside a copy that is taken of it afterwards.

    In this order also while a worker commits: the copy then holds what the witness says, or more. Raises
    CheckpointError.
    """
    path = checkpoint.with_suffix(".lock")
    try:
        if path.exists():
            target.with_suffix(".lock").write_bytes(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be copied: {error.strerror}") from error


def set_witness(checkpoint: Path, commits: int, life: str = "") -> None:
    """Say of a checkpoint how many commits it must hold: after it was put in place on purpose, or put aside.

    On the disk when this returns. With 0 commits and no name there must be none.
    """
    with checkpoint.with_suffix(".lock").open("wb") as file:
        file.write(_text(commits, life))
        file.flush()
        os.fsync(file.fileno())


def _text(commits: int, life: str) -> bytes:
    return f"{os.getpid():>10} {commits:>20} {life:<16}\n".encode()

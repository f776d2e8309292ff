"""What a process is about to do, on file: there after a kill, without the cost of a sync for each message.

A note lies in the system's page cache when `write` returns. It survives the process, not a power cut: then it may be
an older one, or none.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from pathlib import Path

__all__ = ["NoteFile"]

_HEAD = 24
"""Bytes before the text: its checksum and its length, as text."""


class NoteFile:
    """The note beside a checkpoint. `life` is the checkpoint's: what was noted of another one is no use."""

    def __init__(self, checkpoint: Path) -> None:
        self._path = checkpoint.with_suffix(".note")
        self._handle = -1

    def write(self, life: str, note: bytes) -> None:
        """Put this in place of what was there. Where even this finds no room, the old one stays."""
        with contextlib.suppress(OSError):
            if self._handle < 0:
                self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            text = life.encode() + b" " + note
            os.pwrite(self._handle, b"%08x %014d " % (zlib.crc32(text), len(text)) + text, 0)

    def read(self, life: str) -> bytes:
        """What was noted last in this life of the checkpoint; nothing where there is no whole note of it."""
        try:
            data = self._path.read_bytes()
            crc, length = int(data[:8], 16), int(data[9:23])
        except (OSError, ValueError):
            return b""
        text = data[_HEAD : _HEAD + length]
        written, _, note = text.partition(b" ")
        return note if zlib.crc32(text) == crc and written == life.encode() else b""

    def close(self) -> None:
        """Nothing more will be noted."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

"""An append-only file of records, each on the disk before the commit it belongs to.

A record names the position before it and after it. So after a crash the position in the checkpoint tells whether
the last record was committed; a record that was torn by the crash was not.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from stream.state import StreamPosition

__all__ = ["Journal", "Record", "records"]

_HEAD = struct.Struct("<4sIIQ")
_MAGIC = b"mmwj"


class _Meta(msgspec.Struct, frozen=True, array_like=True):
    before: tuple[int, str]
    after: tuple[int, str]
    rows: int


@dataclass(frozen=True, slots=True)
class Record:
    """What one commit added. `start` and `end` are its bytes' place in the file."""

    before: StreamPosition
    after: StreamPosition
    rows: int
    payload: bytes
    start: int
    end: int


def records(path: Path) -> Iterator[Record]:
    """The records of a journal in order, up to one that is torn or damaged. Raises OSError."""
    with path.open("rb") as file:
        start = 0
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            magic, crc, meta_size, size = _HEAD.unpack(head)
            if magic != _MAGIC:
                return
            body = file.read(meta_size + size)
            if len(body) < meta_size + size or zlib.crc32(body) != crc:
                return
            meta = msgspec.msgpack.decode(body[:meta_size], type=_Meta)
            end = start + _HEAD.size + len(body)
            before, after = StreamPosition(*meta.before), StreamPosition(*meta.after)
            yield Record(before, after, meta.rows, body[meta_size:], start, end)
            start = end


class Journal:
    """A journal being written. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self.size = 0
        """Bytes of whole records."""
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def append(self, payload: bytes, rows: int, before: StreamPosition, after: StreamPosition) -> None:
        """Add a record: all of it, safe when this returns, or nothing."""
        meta = msgspec.msgpack.encode(
            _Meta((before.last_offset, before.fingerprint), (after.last_offset, after.fingerprint), rows)
        )
        body = meta + payload
        data = _HEAD.pack(_MAGIC, zlib.crc32(body), len(meta), len(payload)) + body
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(self._handle, data[done:], self.size + done)
            os.fsync(self._handle)
        except OSError:
            os.ftruncate(self._handle, self.size)
            raise
        self.size += len(data)
        self.rows += rows

    def take_back(self, record: Record) -> None:
        """Remove the last record."""
        os.ftruncate(self._handle, record.start)
        os.fsync(self._handle)
        self.size = record.start
        self.rows -= record.rows

    def close(self) -> None:
        """Nothing more will come."""
        os.close(self._handle)

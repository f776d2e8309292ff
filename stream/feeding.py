"""How readings get from a worker to the process of a training: through a pipe, undecoded, in small parts.

Before each part stands its length, four bytes; a part of length 0 is the last one. The pipe then stays open, and is
at its end when whoever holds it has ended.
"""

from __future__ import annotations

import asyncio
import os
import queue
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from stream.gathering import Undecoded

__all__ = ["Fed", "Feed", "ReaderGone"]

_PART = 262_144
"""Bytes of a part, but for a message that is larger: packed and written in less than a millisecond."""
_CELLS = 8192
"""Cells of a column in a part."""
_BREATH = 0.01
"""Seconds that others have the event loop after each part."""
_AHEAD = 4
"""Parts that are read before they are needed."""
_LENGTH = struct.Struct("<I")

Cells = Sequence[float | int | str | None]


class ReaderGone(Exception):
    """The process that was fed has ended, or reads no more; what it said last tells why."""


class Feed:
    """The worker's end of the pipe. Whatever it sends waits until the process takes it. Raises ReaderGone."""

    def __init__(self, pipe: asyncio.StreamWriter) -> None:
        self._pipe = pipe

    async def messages(self, messages: Sequence[Undecoded]) -> None:
        """Send these messages."""
        begin = size = 0
        for at, message in enumerate(messages):
            if size and size + len(message.body) > _PART:
                await self._send(msgspec.msgpack.encode(messages[begin:at]))
                begin, size = at, 0
            size += len(message.body)
        if begin < len(messages):
            await self._send(msgspec.msgpack.encode(messages[begin:]))

    async def columns(self, columns: Mapping[str, Cells]) -> None:
        """Send columns of cells; as JSON, for MessagePack has no whole numbers beyond 64 bits."""
        for name, cells in columns.items():
            for at in range(0, max(len(cells), 1), _CELLS):
                await self._send(msgspec.json.encode((name, cells[at : at + _CELLS])))

    async def end(self) -> None:
        """That was all."""
        await self._send(b"")

    async def _send(self, part: bytes) -> None:
        try:
            self._pipe.write(_LENGTH.pack(len(part)))
            self._pipe.write(part)
            await self._pipe.drain()
        except ConnectionError as error:
            raise ReaderGone from error
        await asyncio.sleep(_BREATH)


class Fed:
    """The process' end: reads in a thread of its own from the beginning on, a few parts ahead of who takes them.

    `left` is called, in that thread, when the other end of the pipe is closed: before the last part or after it.
    """

    def __init__(self, pipe: int, left: Callable[[], object]) -> None:
        self._pipe = pipe
        self._parts: queue.Queue[bytes] = queue.Queue(_AHEAD)
        self._left = left
        threading.Thread(target=self._read, daemon=True).start()

    def messages(self) -> Iterator[list[Undecoded]]:
        """What is sent, part by part, to the last one."""
        return map(msgspec.msgpack.Decoder(list[Undecoded]).decode, iter(self._parts.get, b""))

    def columns(self) -> dict[str, list[Any]]:
        """All columns, whole."""
        found: dict[str, list[Any]] = {}
        for part in iter(self._parts.get, b""):
            name, cells = msgspec.json.decode(part)
            found.setdefault(name, []).extend(cells)
        return found

    def _read(self) -> None:
        try:
            while True:
                (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
                self._parts.put(self._exactly(length))
        except (EOFError, OSError):
            self._left()

    def _exactly(self, count: int) -> bytes:
        found = bytearray()
        while len(found) < count:
            if not (more := os.read(self._pipe, count - len(found))):
                raise EOFError
            found += more
        return bytes(found)

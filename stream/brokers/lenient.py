"""The driver's parser, made to read whatever a machine may put beside its body.

RabbitMQ passes on what a publisher states: a time in the year 584556019, a routing key that is no UTF-8. The
driver ends the connection over it, and after each new connection the same message comes first again: one message
would stop a topology for ever.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import Any

from pamqp import decode

__all__ = ["read_leniently"]

_EPOCH = datetime.fromtimestamp(0, UTC)


def read_leniently() -> None:
    """For this process, from now on; doing it again changes nothing.

    Where a text is no UTF-8, what is not ASCII becomes `?` (it gets no longer, for it may be sent on); a time that
    cannot be is 1970; a header that cannot be read is None, beside those that can: the broker's own is among them.
    """
    decode.METHODS["shortstr"] = _short_str
    decode.METHODS["timestamp"] = decode.TABLE_MAPPING[b"T"] = _timestamp
    decode.METHODS["table"] = _table


def _short_str(value: bytes) -> tuple[int, str]:
    end = 1 + value[0]
    return end, _text(value[1:end])


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("ascii", errors="replace").replace("\ufffd", "?")


def _timestamp(value: bytes) -> tuple[int, Any]:
    try:
        return decode.timestamp(value)
    except (ValueError, OverflowError, OSError):
        return 8, _EPOCH


def _table(value: bytes) -> tuple[int, Any]:
    end = 4 + _length(value, 0)
    found: dict[str, Any] = {}
    at = 4
    while at < end:
        size, name = _short_str(value[at:end])
        at += size
        size, found[name] = _header(value[at:end])
        at += size
    return end, found


def _header(value: bytes) -> tuple[int, Any]:
    try:
        return decode.embedded_value(value)
    except (ValueError, OverflowError, RecursionError):
        if value[:1] not in (b"S", b"F", b"A", b"x"):
            raise
        return 5 + _length(value, 1), None


def _length(value: bytes, at: int) -> int:
    (length,) = struct.unpack_from(">I", value, at)
    return int(length)

"""Messages that are almost right: a grammar of every layout with something odd now and then, and damaged bytes."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from hypothesis import strategies as st

__all__ = ["EPOCH", "KEYS", "SENSORS", "TYPES", "bodies", "damaged"]

EPOCH = 1_722_988_800
SENSORS = ("a", "b", "ü.µ")


class Map(NamedTuple):
    """An object that may hold a key twice, or keys that are no texts (as MessagePack allows)."""

    items: Sequence[tuple[Any, Any]]


class Raw(NamedTuple):
    """What no Python value says: its text in JSON, its bytes in MessagePack."""

    json: str
    msgpack: bytes


def _ext(code: int, data: bytes) -> bytes:
    return b"\xc7" + bytes([len(data), code % 256]) + data


_NAN32, _HUGE = b"\xca\x7f\xc0\x00\x00", Raw("9" * 400, b"\xcb\x7f\xf0" + bytes(6))
_ODD_NUMBERS: list[Any] = [
    float("nan"), float("inf"), float("-inf"), 1e308, -1e308, 3.4e38, -3.5e38, 5e-324, -0.0, 2**53 + 1, 2**63 - 1,
    2**63, 2**64 - 1, -(2**63), True, None, "", "1.5", "NaN", [], [1.0], Map([]), Raw("1e999", _NAN32), _HUGE,
    Raw("9" * 5000, b"\xd3" + b"\xff" * 8), Raw("-", b"\xc1"), Raw("01", b"\xc4\x01x"), Raw("1e-999", _ext(5, b"xy")),
]  # fmt: skip
_ODD_TEXTS: list[Any] = [
    "", " ", "m 1", "m.1", "*", "#", "../m", "m\0", "\x1b[2J", "\x9b", "\u202eb", "\ufeffm", "e\u0301", "\u200d",
    "𝔪😀", "😀" * 120, "x" * 255, "x" * 256, "x" * 5000, "NULL", "1", 1, 1.5, True, [], Map([]), None,
    Raw('"\\ud800"', b"\xa3\xed\xa0\x80"), Raw('"m\\udfff"', b"\xa2\xff\xfe"), Raw('"\\u0000"', b"\xa1\x00"),
    "'); DROP TABLE state;--", "%s%n", "nan", "__class__",
]  # fmt: skip
_TIMES: list[Any] = [
    EPOCH, EPOCH + 0.5, (EPOCH + 2) * 1000, (EPOCH + 3) * 10**6, (EPOCH + 4) * 10**9, "2024-08-07T00:00:00Z",
    "2024-08-07T00:00:00+05:30", "2024-08-07", "20240807T000001",
]  # fmt: skip
_ODD_TIMES: list[Any] = [
    0, -1, 1e11, 1e20, -(10**30), 10**18, "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "now", "24:00",
    "2024-02-30", "\u0662\u0660\u0662\u0664-08-07", "x" * 3000, Raw("1e999", _ext(-1, b"\xff" * 12)),
    Raw("null", _ext(-1, struct.pack(">I", EPOCH))), Raw("0.0", _ext(-1, b"\x00" * 3)), *_ODD_NUMBERS,
]  # fmt: skip
_ODD_SEQS: list[Any] = [-1, 0, 2**62, 2**63 - 1, 2**63, 10**30, 1.0, "7", True, [], *_ODD_NUMBERS]

KEYS = [
    *["sensor.m1.readings", "sensor.m2.a", "sensor.m1.b"] * 20, "sensor.m1.ü",
    "sensor.*.#", "sensor..", "", ".", "sensor", "sensor.m1.a.b",
    "a" * 255, "sensor.😀.a", "sensor.\x1b[2J.a", "sensor. .a", "Sensor.m1.a", "sensor.m1.z",
]  # fmt: skip
TYPES = [
    "",
    "",
    "",
    "application/json",
    "application/msgpack",
    "application/x-msgpack",
    "text/html; \0",
    "x" * 255,
]


def _mostly(good: Sequence[Any], odd: Sequence[Any], once_in: int = 30) -> st.SearchStrategy[Any]:
    """One of the odd about once in so many times."""
    return st.sampled_from([*list(good) * max(1, once_in * len(odd) // len(good)), *odd])


_NUMBER = _mostly([0.0, 1.5, -2.25, 7, 7.5, 30.0, 100.0], [*_ODD_NUMBERS, *_ODD_NUMBERS[:3] * 3])
_MACHINE = _mostly(["m1", "m2", *[None] * 6], _ODD_TEXTS, 6)
_TIME = _mostly(_TIMES, _ODD_TIMES)
_SEQ = _mostly([None, 1, 2, 3, 10**9], _ODD_SEQS, 8)
_NAME = _mostly(SENSORS, [*_ODD_TEXTS, "values", "ds", "c"])
_SIZE = st.sampled_from([1, 2, 2, 3, 3, 5, 0])


@st.composite
def _row(draw: st.DrawFn) -> Any:
    values = Map([(draw(_NAME), draw(_NUMBER)) for _ in range(draw(_SIZE))])
    items = [("machine", draw(_MACHINE)), ("time", draw(_TIME)), ("seq", draw(_SEQ)), ("values", values)]
    return Map(_shaken(draw, items))


@st.composite
def _flat(draw: st.DrawFn) -> Any:
    items = [("machine", draw(_MACHINE)), ("time", draw(_TIME)), ("seq", draw(_SEQ))]
    return Map(_shaken(draw, [*items, *((draw(_NAME), draw(_NUMBER)) for _ in range(draw(_SIZE)))]))


@st.composite
def _columns(draw: st.DrawFn) -> Any:
    n = draw(_SIZE)

    def column(cell: st.SearchStrategy[Any]) -> Any:
        size = draw(_mostly([n], [0, n + 1]))
        return draw(cell) if draw(_mostly([False], [True])) else [draw(cell) for _ in range(size)]

    values = Map([(draw(_NAME), column(_NUMBER)) for _ in range(draw(_SIZE))])
    machine = draw(_MACHINE) if draw(st.booleans()) else column(_MACHINE)
    return Map(
        _shaken(
            draw, [("machine", machine), ("time", column(_TIME)), ("seq", column(_SEQ)), ("values", values)]
        )
    )


@st.composite
def _table(draw: st.DrawFn) -> Any:
    labels = [draw(_mostly([str(i)], [i, i + 0.5, None, "x", b"y"])) for i in range(draw(_SIZE))]

    def column(cell: st.SearchStrategy[Any]) -> Any:
        more = draw(_mostly([[]], [["99"], [99], [None, "z"]]))
        return Map([(label, draw(cell)) for label in [*labels, *more]])

    items = [(draw(_mostly(["ds", "time", "timestamp", "date"], ["when"])), column(_TIME))]
    items += [(draw(_NAME), column(_NUMBER)) for _ in range(draw(_SIZE))]
    if draw(st.booleans()):
        items.append(("machine", column(_MACHINE)))
    return Map(_shaken(draw, items))


@st.composite
def _long(draw: st.DrawFn) -> Any:
    def cell() -> Any:
        items = [
            ("target", draw(_NAME)),
            ("date", draw(_TIME)),
            ("value", draw(_NUMBER)),
            ("machine", draw(_MACHINE)),
        ]
        return Map(_shaken(draw, items))

    cells = [draw(_mostly([cell()], _ODD_TEXTS)) for _ in range(draw(_SIZE))]
    return Map(_shaken(draw, [("tsdata", cells), ("machine", draw(_MACHINE)), ("seq", draw(_SEQ))]))


@st.composite
def _narrow(draw: st.DrawFn) -> Any:
    items = [
        ("time", draw(_TIME)),
        (draw(_mostly(["value"], ["values"])), draw(_NUMBER)),
        ("sensor", draw(_NAME)),
    ]
    return Map(_shaken(draw, [*items, ("machine", draw(_MACHINE)), ("seq", draw(_SEQ))]))


@st.composite
def _nested(draw: st.DrawFn) -> Any:
    depth, inner = draw(st.sampled_from([3, 60, 500, 3000])), draw(_NUMBER)
    shown, packed = _json(inner), _msgpack(inner)
    if draw(st.booleans()):
        return Raw("[" * depth + shown + "]" * depth, b"\x91" * depth + packed)
    return Raw('{"values":' * depth + shown + "}" * depth, b"\x81\xa6values" * depth + packed)


def _shaken(draw: st.DrawFn, items: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Now and then a member is missing, there twice, in another place, of another name or of another kind."""
    act = draw(_mostly([""], ["drop", "double", "turn", "rename", "odd", "deep"], 10))
    i = draw(st.integers(0, len(items) - 1))
    if act == "drop":
        del items[i]
    elif act == "double":
        items.append((items[i][0], draw(_NUMBER)))
    elif act == "turn":
        items.reverse()
    elif act == "rename":
        items[i] = (draw(_NAME), items[i][1])
    elif act == "odd":
        items[i] = (items[i][0], draw(st.sampled_from([*_ODD_TEXTS, *_ODD_NUMBERS])))
    elif act == "deep":
        items[i] = (items[i][0], draw(_nested()))
    return items


_WHOLE = st.one_of(_row(), _row(), _columns(), _table(), _long())
_OTHER = st.one_of(_narrow(), _flat(), _nested())


def bodies(layout: str) -> st.SearchStrategy[tuple[bytes, bytes]]:
    """A message as JSON and as MessagePack: mostly of this layout (whole, narrow, flat), or a list of such."""
    own = {"whole": _WHOLE, "narrow": _narrow(), "flat": _flat()}[layout]
    one = st.one_of(own, own, own, own, own, own, own, _OTHER, _WHOLE)
    message = st.one_of(one, one, one, st.lists(one, max_size=4))
    return message.map(lambda message: (_json(message).encode(errors="surrogatepass"), _msgpack(message)))


_TOKENS = [
    b"NaN", b"Infinity", b"-1e308", b"1e999", b"null", b"true", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\ud800",
    b"\\", b"\x00", b"\xff", b"\xc1", b"\x80", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xcb\x7f\xf8\0\0\0\0\0\0",
    b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xd6\xff\0\0\0\0", b"9" * 30, b"-",
    b".", b"e5", b"[" * 2000, b'"values":', b'"time":', b'"machine":"m3",', b"\x91" * 2000,
]  # fmt: skip


_NUMBERS = (
    b"NaN", b"-Infinity", b"1e999", b"1e308", b"-0", b"null", b'"1"', b"true", b"[1]", b"{}", b"1722988800000",
)  # fmt: skip
_WRITTEN = re.compile(rb"[0-9]+(?:\.[0-9]+)?")


def damaged(body: bytes, rng: random.Random) -> bytes:
    """A body damaged in a place or three: digits changed, bits flipped, bytes set, cut or doubled, words put in."""
    data = bytearray(body[:4000])
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(data) + 1)
        act = rng.randrange(12)
        if act == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif act == 1 and at < len(data):
            data[at] = rng.randrange(256)
        elif act == 2:
            del data[at : at + rng.choice((1, 1, 2, 8, 4000))]
        elif act == 3:
            data[at:at] = data[at : at + rng.choice((1, 4, 30))]
        elif act == 4:
            data[at:at] = rng.choice(_TOKENS)
        elif 6 <= act < 9:
            if numbers := list(_WRITTEN.finditer(data)):
                span = rng.choice(numbers).span()
                data[slice(*span)] = rng.choice(_NUMBERS)
        elif act >= 9:
            if digits := [i for i, byte in enumerate(data) if 48 <= byte < 58]:
                data[rng.choice(digits)] = rng.choice(b"01234567890123456789-.e")
        else:
            other = rng.randrange(len(data) + 1)
            data[at : at + 1] = data[other : other + 1]
    return bytes(data)


def _json(node: Any) -> str:
    if isinstance(node, Raw):
        return node.json
    if isinstance(node, Map):
        return "{" + ",".join(f"{_json_key(key)}:{_json(value)}" for key, value in node.items) + "}"
    if isinstance(node, list):
        return "[" + ",".join(map(_json, node)) + "]"
    return json.dumps(node, ensure_ascii=False)


def _json_key(key: Any) -> str:
    shown = _json(key.decode() if isinstance(key, bytes) else key)
    return shown if shown.startswith('"') else json.dumps(shown)


def _msgpack(node: Any) -> bytes:
    if isinstance(node, Raw):
        return node.msgpack
    if isinstance(node, Map):
        packed = b"".join(_msgpack(key) + _msgpack(value) for key, value in node.items)
        return b"\xde" + struct.pack(">H", len(node.items)) + packed
    if isinstance(node, list):
        return b"\xdc" + struct.pack(">H", len(node)) + b"".join(map(_msgpack, node))
    try:
        return msgspec.msgpack.encode(node)
    except OverflowError:
        return b"\xcf" + b"\xff" * 8

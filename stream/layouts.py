"""The shapes a decoded message may have, told apart and turned into rows.

row       {"machine": "pump-07", "time": …, "values": {"pressure": 3.1}}
columns   {"machine": "pump-07" or […], "time": […], "values": {"pressure": […]}}
list      [row, row, …]
table     {"pressure": {"0": 3.1, "1": 3.2}, "ds": {"0": …, "1": …}}    the ancestor's, as pandas writes it
long      {"tsdata": [{"target": "pressure", "date": …, "value": 3.1}, …]}    the ancestor's other one
narrow    {"time": …, "value": 3.1}     one sensor per message, named by the routing key or by "sensor"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stream.errors import ReadingRejected
from stream.topology import Source

__all__ = ["Row", "rows_of", "short", "value_at"]

_TIME_COLUMNS = ("ds", "time", "timestamp", "date")


@dataclass(frozen=True, slots=True)
class Row:
    """One reading, not yet checked: whatever stood in the message."""

    machine: object
    time: object
    values: Mapping[str, object]
    seq: object = None


def rows_of(message: object, source: Source, sensor: str | None = None) -> list[Row]:
    """The rows of a decoded message in order. `sensor` is the routing key's. Raises ReadingRejected."""
    if isinstance(message, list):
        return [row for item in message for row in _rows_of_object(item, source, sensor)]
    return _rows_of_object(message, source, sensor)


def _rows_of_object(message: object, source: Source, sensor: str | None) -> list[Row]:
    if not isinstance(message, dict):
        raise ReadingRejected("wrong_shape", f"expected an object, found {_kind(message)}")
    if source.layout == "narrow":
        return [_narrow(message, source, sensor)]
    if isinstance(message.get("tsdata"), list):
        return _long(message, source)
    if _is_table(message):
        return _table(message, source)
    return _row_or_columns(message, source)


def value_at(message: object, path: str) -> object:
    """What stands at a dotted path, None where nothing does. A key that is the whole path wins."""
    if isinstance(message, dict):
        if path in message:
            return message[path]
        head, dot, rest = path.partition(".")
        while dot:
            if head in message:
                return value_at(message[head], rest)
            more, dot, rest = rest.partition(".")
            head = f"{head}.{more}"
    return None


def short(value: object) -> str:
    """What stood in a message, for people: at most 80 characters, every one printable."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a structure too deep
        text = f"a {type(value).__name__}"
    text = text if len(text) <= 80 else f"{text[:79]}…"
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _row_or_columns(message: dict[str, Any], source: Source) -> list[Row]:
    fields = source.fields
    machine, time = value_at(message, fields.machine), value_at(message, fields.time)
    values = value_at(message, fields.values) if fields.values else _top_level(message, source)
    if any(sensor.path for sensor in source.sensors):
        mapped = {s.name: value_at(message, s.path) for s in source.sensors if s.path is not None}
        values = {**(values if isinstance(values, dict) else {}), **mapped}
    if not isinstance(values, dict):
        detail = f'"{fields.values}" should be an object of sensor values, found {_kind(values)}'
        raise ReadingRejected("wrong_shape", detail)
    seq = value_at(message, fields.seq)
    if not isinstance(time, list):
        return [Row(machine, time, values, seq)]
    n = len(time)
    named = {"machine": machine, fields.seq: seq}
    columns = {**{name: column for name, column in named.items() if isinstance(column, list)}, **values}
    for name, column in columns.items():
        if not isinstance(column, list) or len(column) != n:
            found = f"{len(column)} values" if isinstance(column, list) else _kind(column)
            raise ReadingRejected(
                "wrong_shape", f'"{short(name)}" should have {n} values, one per time; found {found}'
            )
    machines: Sequence[object] = machine if isinstance(machine, list) else [machine] * n
    numbers: Sequence[object] = seq if isinstance(seq, list) else [seq] * n
    names = list(values)
    rows = zip(*values.values(), strict=True) if names else iter(())
    return [
        Row(who, when, dict(zip(names, row, strict=True)), number)
        for who, when, row, number in zip(machines, time, rows, numbers, strict=False)
    ]


def _top_level(message: dict[str, Any], source: Source) -> dict[str, object]:
    """A flat message: every member that is neither the machine nor the time is a sensor."""
    fields = source.fields
    apart = {fields.machine, fields.time, fields.seq}
    return {name: value for name, value in message.items() if name not in apart}


def _is_table(message: dict[str, Any]) -> bool:
    """Every member maps row labels to cells, and one of them is a time column."""
    return (
        len(message) > 1
        and any(name in message for name in _TIME_COLUMNS)
        and all(isinstance(column, dict) for column in message.values())
    )


def _table(message: dict[str, Any], source: Source) -> list[Row]:
    time_name = next(name for name in _TIME_COLUMNS if name in message)
    machine_name = source.fields.machine
    apart = {time_name, machine_name}
    labels = list(message[time_name])
    for name, column in message.items():
        if extra := set(column) - set(labels):
            row = short(min(extra, key=str))
            raise ReadingRejected("wrong_shape", f'"{short(name)}" has row "{row}", which has no time')
    machines = message.get(machine_name, {})
    return [
        Row(
            machines.get(label),
            message[time_name][label],
            {name: column.get(label) for name, column in message.items() if name not in apart},
        )
        for label in labels
    ]


def _long(message: dict[str, Any], source: Source) -> list[Row]:
    """One row per time (and machine), in the order in which they first appear."""
    machine, seq = (value_at(message, path) for path in (source.fields.machine, source.fields.seq))
    rows: dict[tuple[Any, Any], dict[str, object]] = {}
    for number, item in enumerate(message["tsdata"]):
        if not isinstance(item, dict) or not isinstance(item.get("target"), str):
            raise ReadingRejected("wrong_shape", f'tsdata[{number}] should be {{"target", "date", "value"}}')
        who, when = item.get("machine", machine), item.get("date")
        if not isinstance(when, (str, int, float)) or not isinstance(who, (str, type(None))):
            raise ReadingRejected("bad_time", f"tsdata[{number}] has no usable date")
        rows.setdefault((who, when), {})[item["target"]] = item.get("value")
    return [Row(who, when, values, seq) for (who, when), values in rows.items()]


def _narrow(message: dict[str, Any], source: Source, sensor: str | None) -> Row:
    fields = source.fields
    value = value_at(message, fields.values)
    if value is None:
        value = message.get("value")
    name = sensor if sensor is not None else message.get("sensor")
    if not isinstance(name, str):
        raise ReadingRejected("unknown_sensor", "neither the routing key nor the body names a sensor")
    if isinstance(value, (dict, list)) or value is None:
        raise ReadingRejected("wrong_shape", f'"value" should be one number, found {_kind(value)}')
    machine, time, seq = (value_at(message, path) for path in (fields.machine, fields.time, fields.seq))
    return Row(machine, time, {name: value}, seq)


def _kind(value: object) -> str:
    names = {type(None): "nothing", dict: "an object", list: "a list", str: "a text", bool: "true/false"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)

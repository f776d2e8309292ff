"""Plays machines: publishes a table's rows as readings, at a rate, as an ordinary AMQP client would."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from stream.alerts import rfc3339
from stream.brokers.base import Broker, Message, routing_word
from stream.tables import Table

__all__ = ["messages", "publish"]

_CHUNK = 200


def messages(
    table: Table,
    exchange: str,
    *,
    form: Literal["json", "msgpack"] = "json",
    rows: int = 1,
    machine: str | None = None,
    restamp: bool = False,
) -> Iterator[Message]:
    """One message for every `rows` readings of a machine, in the table's order (columns when rows > 1).

    `machine` renames the machine; `restamp` puts the present time in place of the recorded one.
    """
    encode = msgspec.json.encode if form == "json" else msgspec.msgpack.encode
    for start, stop in _runs(table, rows):
        who = machine or table.machines[start]
        moments = [time.time()] * (stop - start) if restamp else table.times[start:stop].tolist()
        if rows == 1:
            pairs = zip(table.sensors, table.values[start].tolist(), strict=True)
            values: object = {name: value for name, value in pairs if value == value}  # NaN: not sent
            body = {"machine": who, "time": rfc3339(moments[0]), "values": values}
        else:
            columns = zip(table.sensors, table.values[start:stop].T.tolist(), strict=True)
            values = {name: [v if v == v else None for v in column] for name, column in columns}
            body = {"machine": who, "time": [rfc3339(moment) for moment in moments], "values": values}
        yield Message(
            exchange=exchange,
            routing_key=f"sensor.{routing_word(who)}.readings",
            body=encode(body),
            content_type=f"application/{form}",
        )


async def publish(
    broker: Broker,
    source: Iterator[Message],
    *,
    rate: float | None = None,
    report: Callable[[int], None] = lambda count: None,
) -> int:
    """Publish, confirmed, at `rate` messages/s (None: as fast as the broker confirms); how many there were."""
    chunk_size = _CHUNK if rate is None else max(1, min(_CHUNK, round(rate / 20)))
    sent, began = 0, time.monotonic()
    while chunk := list(itertools.islice(source, chunk_size)):
        await broker.publish(chunk)
        sent += len(chunk)
        report(sent)
        if rate is not None:
            await asyncio.sleep(max(0.0, began + sent / rate - time.monotonic()))
    return sent


def _runs(table: Table, rows: int) -> Iterator[tuple[int, int]]:
    """Stretches of up to `rows` readings of one machine."""
    start = 0
    for i in range(1, len(table.machines) + 1):
        if i == len(table.machines) or table.machines[i] != table.machines[start] or i - start == rows:
            yield start, i
            start = i

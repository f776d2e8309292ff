"""Whatever a machine states beside its body, in any language's client, the stream goes on."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import aio_pika
import pytest
from pamqp import encode

from stream.brokers.rabbitmq import RabbitBroker
from stream.metrics import Cause, Metrics
from stream.plan import broker_plan
from stream.runtimes.local import Worker
from tests.aio import run
from tests.plant import START, topology

NOW = datetime.now(UTC)
BODY = json.dumps({"machine": "m1", "time": START, "values": {"a": 1.0, "b": 2.0}}).encode()


def nested(depth: int) -> bytes:
    """A header table in a table, and so on."""
    table = b""
    for _ in range(depth):
        table = b"\x01aF" + struct.pack(">I", len(table)) + table
    return table


ODD: dict[str, dict[str, Any]] = {
    "a routing key that is no UTF-8": {"key": "sensor.\udcff.x"},
    "the longest such routing key": {"key": "sensor." + "\udcff" * 248},
    "a content type that is no UTF-8": {"content_type": "\udcff" * 255},
    "a message id that is no UTF-8": {"message_id": "\udcfe" * 255},
    "all of them, for a dead letter": {
        "key": "sensor.\udcff." + "\udcff" * 246,
        "content_type": "\udcff" * 255,
        "message_id": "\udcff" * 255,
        "table": b"\x01\xffV",
    },
    "a type and an application that are no UTF-8": {"type": "\udcff", "app_id": "\udcff"},
    "a time in milliseconds": {"time": 1_722_988_800_000},
    "a time in microseconds": {"time": 1_722_988_800_000_000},
    "a time in nanoseconds": {"time": 1_722_988_800_000_000_000},
    "the last time there is": {"time": 2**64 - 1},
    "the first": {"time": 0},
    "a header's name that is no UTF-8": {"table": b"\x01\xffV"},
    "a header's text that is no UTF-8": {"table": b"\x01aS\x00\x00\x00\x01\xff"},
    "a header's time that cannot be": {"table": b"\x01aT" + b"\xff" * 8},
    "headers in headers": {"table": nested(5000)},
    "a header of ours that is no text": {"table": b"\x0bmmlw-replayF\x00\x00\x00\x00"},
    "an offset of its own": {"table": b"\x0fx-stream-offsetS\x00\x00\x00\x01?"},
}


@pytest.fixture
def raw(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver writes what it is told, as another client would."""

    def short(value: str) -> bytes:
        data = value.encode(errors="surrogateescape")
        return bytes([len(data)]) + data

    def table(value: Any) -> bytes:
        if value and "raw" in value:
            return struct.pack(">I", len(value["raw"])) + bytes(value["raw"])
        return encode.field_table(value)

    def timestamp(value: datetime) -> bytes:
        seconds = getattr(value, "seconds", None)
        return encode.timestamp(value) if seconds is None else struct.pack(">Q", seconds)

    writers: dict[str, Callable[[Any], bytes]] = {"shortstr": short, "table": table, "timestamp": timestamp}
    for kind, writer in writers.items():
        monkeypatch.setitem(encode.METHODS, kind, writer)


class Instant(datetime):
    """An instant that is sent as other seconds than it has."""

    seconds: int


def message(
    *, key: str = "sensor.m1.readings", time: int | None = None, table: bytes = b"", **stated: Any
) -> Any:
    instant = None
    if time is not None:
        instant = Instant.now(UTC)
        instant.seconds = time
    built = aio_pika.Message(BODY, timestamp=instant, **stated)
    if table:
        built.headers = {"raw": table}
    return built, key


@pytest.mark.usefixtures("raw")
def test_no_property_of_a_message_stops_a_topology(rabbit_url: str, tmp_path: Path) -> None:
    """Each odd message is processed or a dead letter, and so is the plain one after it."""

    async def story() -> None:
        plant = topology()
        metrics = Metrics()
        async with RabbitBroker(rabbit_url) as broker:
            await broker.declare(broker_plan(plant), mode="declare")
        connection = await aio_pika.connect(rabbit_url)
        async with connection:
            channel = await connection.channel()
            exchange = await channel.get_exchange("mmlw.sensors", ensure=False)
            for odd in ODD.values():
                for built, key in (message(**odd), message()):
                    await exchange.publish(built, key, timeout=10)
        worker = Worker((plant,), connect=lambda: RabbitBroker(rabbit_url), data=tmp_path, metrics=metrics)
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.run(stop))
            while worker.next_offset("plant") < 2 * len(ODD):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            stop.set()

        def value(name: str, **labels: str) -> float:
            found = metrics.registry.get_sample_value(name, {"topology": "plant", **labels})
            assert found is not None
            return found

        assert metrics.dead_letters("plant") == {"machine_mismatch": 2}
        assert value("mmlw_messages_processed_total") == 2 * len(ODD) - 2
        assert value("mmlw_messages_received_total") == 2 * len(ODD)
        assert not sum(value("mmlw_restarts_total", cause=cause) for cause in get_args(Cause))

    run(story())

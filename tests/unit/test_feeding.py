"""Readings on their way to the process of a training: what arrives is what was sent, in small parts."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from stream import feeding
from stream.brokers.base import Message
from stream.brokers.memory import MemoryBroker
from stream.deadletters import replay
from stream.errors import ConfigError
from stream.feeding import Fed, Feed, ReaderGone
from stream.gathering import Gathered, Undecoded
from stream.histories import History
from stream.plan import readings_queue
from stream.spans import Span, parse_span
from stream.stream_history import read_stream, receive_stream
from stream.tables import Table
from stream.topology import Sensor, Source
from stream.training_data import columns_table, frame_table, history_table
from tests.aio import run
from tests.plant import START, Plant, readings, topology
from tests.unit.test_backtest_past import several_rows


@asynccontextmanager
async def piped() -> AsyncIterator[tuple[Feed, Fed, Event]]:
    """Both ends of a pipe; the event is set once the reading end has seen that the other one is closed."""
    reading, writing = os.pipe()
    left = Event()
    with os.fdopen(writing, "wb") as file:
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, file)
        fed = Fed(reading, left.set)
        try:
            yield Feed(asyncio.StreamWriter(transport, protocol, None, loop)), fed, left
        finally:
            transport.close()
            await asyncio.to_thread(left.wait)
            os.close(reading)


def narrow(n: int) -> list[Message]:
    """One sensor a message, of two machines."""
    return [
        Message(
            exchange="mmlw.sensors",
            routing_key=f"sensor.m{i % 2}.{'ab'[i // 2 % 2]}",
            body=json.dumps({"time": START + 10 * (i // 4), "value": float(i)}).encode(),
        )
        for i in range(n)
    ]


async def with_letters(plant: Plant, messages: list[Message]) -> None:
    """Publish these, and then send some back as if they were dead letters, twice each."""
    await plant.publish(messages)
    for delivery in (await plant.kept(readings_queue(plant.topology).name))[20:60:7]:
        headers = {"mmlw-exchange": delivery.exchange, "mmlw-routing-key": delivery.routing_key}
        letter = msgspec.structs.replace(
            delivery, exchange="mmlw.deadletters", message_id=f"letter-{delivery.offset}", headers=headers
        )
        await plant.publish([replay(letter, readings_queue(plant.topology))] * 2)


NARROW = Source(sensors=(Sensor("a"), Sensor("b")), layout="narrow", routing_key="sensor.{machine}.{sensor}")


@pytest.mark.parametrize("messages", [lambda: readings(300, bad_every=10), lambda: several_rows(200)])
@pytest.mark.parametrize("span", ["..", "30..150", "2024-08-07T00:00:30Z..2024-08-07T00:02:00Z"])
def test_process_has_the_very_history_that_is_read_here(
    tmp_path: Path, span: str, messages: Callable[[], list[Message]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "_PART", 1000)
    plant = Plant(tmp_path, topology())
    here, there = run(both(plant, messages(), parse_span(span), None))
    same(here, there)
    assert here.order is not None
    assert here.order.replayed.any() == (span != "30..150")


def test_whole_rows_of_a_narrow_layout_are_the_same_in_the_process(tmp_path: Path) -> None:
    plant = Plant(tmp_path, msgspec.structs.replace(topology(), source=NARROW))
    here, there = run(both(plant, narrow(400), Span(), None))
    same(here, there)
    every = history_table(plant.topology, there)
    assert len(every.times) == 200
    assert np.isfinite(every.values).all()
    again = Plant(tmp_path, plant.topology)
    newest = history_table(plant.topology, run(both(again, narrow(400), Span(), 40))[1])
    assert 30 <= len(newest.times) < 80  # of the last 80 messages some are dead letters sent back
    np.testing.assert_array_equal(newest.values, every.values[-len(newest.times) :])


@pytest.mark.parametrize("messages", [lambda: readings(300, bad_every=10), lambda: several_rows(200)])
def test_newest_rows_are_the_same_in_the_process(
    tmp_path: Path, messages: Callable[[], list[Message]]
) -> None:
    plant = Plant(tmp_path, topology())
    every, _ = run(both(plant, messages(), Span(), None))
    here, there = run(both(Plant(tmp_path, topology()), messages(), Span(), 50))
    for found in (here, there):
        assert 40 <= len(found) < len(every)  # the last messages, of which some cannot be used
        np.testing.assert_array_equal(found.times, every.times[-len(found) :])
        np.testing.assert_array_equal(found.values, every.values[-len(found) :])


async def both(
    plant: Plant, messages: list[Message], span: Span, newest: int | None
) -> tuple[History, History]:
    """What a stream holds, read in this process, and by way of the pipe."""
    await plant.declare()
    await with_letters(plant, messages)
    shares: list[float] = []
    async with MemoryBroker(plant.server) as broker, piped() as (feed, fed, _):
        here = await read_stream(broker, plant.topology, span, newest=newest)
        gathered = Gathered(plant.topology.source, newest)

        def gather() -> None:
            for part in fed.messages():
                gathered.add(part)

        async def send() -> None:
            await receive_stream(
                broker,
                plant.topology,
                span,
                feed.messages,
                lambda done, of: shares.append(done / of),
                newest=newest,
                at_a_time=64,
            )
            await feed.end()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.to_thread(gather))
            tasks.create_task(send())
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    return here, gathered.history(plant.topology.name, span)


def same(one: History, other: History) -> None:
    assert len(one) > 20
    pd.testing.assert_series_equal(one.timestamps, other.timestamps)
    assert one.names == other.names
    for name in ("times", "values"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.order is not None
    assert other.order is not None
    for name in ("offsets", "rows", "seqs", "messages", "replayed"):
        np.testing.assert_array_equal(getattr(one.order, name), getattr(other.order, name))
    assert one.order.narrow == other.order.narrow


FRAME: dict[str, Any] = {
    "time": [f"2024-05-01T00:{i % 60:02}:00Z" for i in range(20_000)],
    "machine": [f"m{i % 3}" for i in range(20_000)],
    "a": [None, 10**30, -1, "x", 0.1, *[float(i) for i in range(19_995)]],
    "b": list(range(20_000)),
}


async def sent(columns: dict[str, Any]) -> Table:
    """The table that a process makes of columns."""
    async with piped() as (feed, fed, _), asyncio.TaskGroup() as tasks:
        found = tasks.create_task(asyncio.to_thread(fed.columns))
        await feed.columns(columns)
        await feed.end()
    return columns_table("message", found.result(), topology())


def test_columns_arrive_as_they_were() -> None:
    table = run(sent(FRAME))
    expected = frame_table("message", pd.DataFrame(FRAME), topology())
    assert (table.name, table.sensors, table.machines) == (
        expected.name,
        expected.sensors,
        expected.machines,
    )
    np.testing.assert_array_equal(table.times, expected.times)
    np.testing.assert_array_equal(table.values, expected.values)


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"a": [], "b": []}, "message: holds no rows"),
        ({"a": [1.0, 2.0], "b": [1.0]}, "message: is not a table"),
        ({}, "message: has no column for the sensors a, b"),
    ],
)
def test_columns_that_are_no_table_are_refused_where_they_arrive(
    columns: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        run(sent(columns))


def test_nothing_is_sent_much_further_than_the_process_has_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "_BREATH", 0.0)
    body = b"x" * 100_000
    sent, taken, ahead = [0], [0], [0]

    async def send(feed: Feed) -> None:
        for _ in range(50):
            await feed.messages([Undecoded(body, "k", "", 0, None)] * 5)
            sent[0] += 5
        await feed.end()

    async def story() -> None:
        async with piped() as (feed, fed, _), asyncio.TaskGroup() as tasks:
            tasks.create_task(send(feed))
            parts = fed.messages()
            while part := await asyncio.to_thread(next, parts, None):
                assert len(part) <= 2, "a few hundred kB at a time"
                taken[0] += len(part)
                for _ in range(50):  # turns in which it could go on
                    await asyncio.sleep(0)
                ahead.append(sent[0] - taken[0])

    run(story())
    assert taken == sent == [250]
    assert max(ahead) < 20


def test_reader_that_is_gone_ends_the_feeding() -> None:
    async def story() -> None:
        process = await asyncio.create_subprocess_exec("true", stdin=asyncio.subprocess.PIPE)
        assert process.stdin is not None
        await process.wait()
        feed = Feed(process.stdin)
        with pytest.raises(ReaderGone):
            await feed.messages([Undecoded(b"x" * 100_000, "k", "", i, None) for i in range(20)])

    run(story())


def test_reader_notices_the_end_of_who_feeds_it_before_the_last_part_and_after_it() -> None:
    async def story(*, whole: bool) -> Event:
        async with piped() as (feed, fed, left):
            await feed.columns({"a": [1.0]})
            assert not left.is_set()
            if whole:
                await feed.end()
                assert await asyncio.to_thread(fed.columns) == {"a": [1.0]}
                assert not left.is_set()
        return left

    assert run(story(whole=False)).is_set()
    assert run(story(whole=True)).is_set()

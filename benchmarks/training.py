"""How much a training in a process of its own slows the stream: p99 from publish to score, idle and while it trains.

    python -m benchmarks.training [--histories 20000x1 100000x1 100x1000] [--rounds 3] [--rate 300] [--seconds 12]
                                  [--source stream]

A worker (two online detectors and an isolation forest) scores Shuttle's rows at a fixed rate, on RabbitMQ. Rounds
take turns: in every second one a control message has the worker train a forest of 100 trees on what its stream
holds (`MESSAGESxROWS`), or on a file (`--source capture`), again and again as long as the round lasts. What one
reading waits is taken from the receipt of its message to its scores, reading by reading; the ratio is that of the
medians of the rounds' p99. A round's longest standstill is the longest time between two turns of a task that wants
one every 2 ms, and the longest that the event loop's thread computed between two such turns: the machine's other work
shows in the former and in the p99, idle and training, and hardly in the latter.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from detectors.registry import TRAINABLE
from stream import log
from stream.brokers import connect
from stream.brokers.base import Broker, Message
from stream.config import load
from stream.control import request
from stream.models import Registry
from stream.plan import broker_plan
from stream.publisher import messages, publish
from stream.runtimes.local import Worker, steady
from stream.scorer import Scored
from stream.shelf import Shelf
from stream.tables import Table, from_dataset
from stream.topology import Topology
from stream.trainer import Trainer
from stream.training import train_detector
from tests.rabbitmq_node import rabbit_node

ROOT = Path(__file__).resolve().parents[1]
TICK = 0.002


@dataclass(frozen=True, slots=True)
class Round:
    """p99 from publish to score, and the longest between two turns of the loop: by the clock, and computing; in s."""

    p99: float
    stood: float
    computed: float

    def __str__(self) -> str:
        figures = (self.p99, self.stood, self.computed)
        return "p99 {:7.2f} ms, stood {:7.2f} ms, computed {:7.2f} ms".format(*(1e3 * it for it in figures))


def median(rounds: list[Round]) -> Round:
    """The median of each."""
    return Round(*(statistics.median(getattr(it, name) for it in rounds) for name in Round.__slots__))


def large(table: Table, exchange: str, count: int, rows: int) -> list[Message]:
    """So many messages of so many rows each."""
    found = []
    for i in range(count):
        part = (np.arange(rows) + i * rows) % len(table.times)
        values = {name: table.values[part, k].tolist() for k, name in enumerate(table.sensors)}
        machine = table.machines[0]
        body = {"machine": [machine] * rows, "time": table.times[part].tolist(), "values": values}
        key = f"sensor.{machine}.readings"
        found.append(Message(exchange=exchange, routing_key=key, body=msgspec.json.encode(body)))
    return found


class Bench:
    """One worker, and the latency of every reading it scores."""

    def __init__(
        self, topology: Topology, registry: Registry, folder: Path, link: Callable[[], Broker]
    ) -> None:
        self.topology = topology
        self.connect = link
        self.waits: list[float] = []
        self.stood = self.computed = 0.0
        self.trained = 0
        trainer = Trainer(registry.uri, (folder,), link)
        self.worker = Worker(
            (topology,),
            connect=link,
            data=folder,
            shelf=Shelf(registry, folder / "models"),
            trainer=trainer,
            observer=self.scored,
        )
        self.sent: dict[int, float] = {}

    def scored(self, _: str, scored: Scored) -> None:
        """A batch is scored and its alerts are out: what its readings waited since they were published."""
        now = time.monotonic()
        self.waits += [now - at for offset in scored.offsets.tolist() if (at := self.sent.pop(offset, None))]

    async def round(self, rate: float, seconds: float, source: dict[str, Any] | None) -> Round:
        """Readings come at `rate`; one training after the other where it has a source."""
        async with self.connect() as broker:
            load_ = islice(self.rows, int(rate * seconds))
            training, over = asyncio.Event(), asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                trains = tasks.create_task(self.train(source, training, over)) if source is not None else None
                if trains is not None:
                    await training.wait()
                self.waits.clear()
                self.stood = self.computed = 0.0
                ticking = tasks.create_task(self.tick())
                await publish(broker, self.stamped(load_), rate=rate)
                await self.drained()
                over.set()
                if trains is not None:
                    await trains
                ticking.cancel()
        return Round(float(np.quantile(self.waits, 0.99)), self.stood, self.computed)

    async def tick(self) -> None:
        """Want a turn of the loop every few milliseconds, and note how long the longest wait for one was."""
        while True:
            clock, computing = time.monotonic(), time.thread_time()
            await asyncio.sleep(TICK)
            self.stood = max(self.stood, time.monotonic() - clock - TICK)
            self.computed = max(self.computed, time.thread_time() - computing)

    def stamped(self, load_: Any) -> Any:
        """The messages, each noted with the offset it will have and the time at which it goes."""
        for message in load_:
            self.sent[self.next] = time.monotonic()
            self.next += 1
            yield message

    async def drained(self) -> None:
        """Until everything that was published is scored."""
        while self.worker.next_offset(self.topology.name) < self.next:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def train(self, source: dict[str, Any], running: asyncio.Event, over: asyncio.Event) -> None:
        """Ask for one training after the other until the round is over."""
        async with self.connect() as broker:
            while not over.is_set():
                asked = {"source": source, "alias": "benchmark"}
                receipt = await request(
                    broker,
                    self.topology.name,
                    "train",
                    user="guest",
                    timeout=300,
                    told=lambda _: running.set(),
                    **asked,
                )
                assert receipt["status"] == "applied", receipt
                self.trained += 1

    async def run(
        self, options: argparse.Namespace, count: int, rows: int
    ) -> tuple[list[Round], list[Round]]:
        """The idle rounds, and those with trainings on so many messages of so many rows."""
        table = from_dataset("shuttle")
        self.rows = cycle(list(messages(table, self.topology.source.exchange)))
        self.next = count
        past = islice(self.rows, count) if rows == 1 else iter(large(table, "mmlw.sensors", count, rows))
        async with self.connect() as broker:
            await broker.declare(broker_plan(self.topology), mode="declare")
            await publish(broker, past)
        source = {"stream": {"to": count}} if options.source == "stream" else {"capture": "history"}
        found: tuple[list[Round], list[Round]] = ([], [])
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.worker.run(stop))
            await self.drained()
            await self.round(options.rate, 3.0, None)
            for _ in range(options.rounds):
                found[0].append(await self.round(options.rate, options.seconds, None))
                found[1].append(await self.round(options.rate, options.seconds, source))
                print(f"  idle {found[0][-1]}   training {found[1][-1]}", flush=True)
            stop.set()
        return found


def main() -> None:
    """Take the measurements and print them with their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=300.0)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--histories", nargs="+", default=["20000x1", "100000x1", "100x1000"])
    parser.add_argument("--source", choices=["stream", "capture"], default="stream")
    options = parser.parse_args()
    log.configure("console", "warning")
    topology = load(ROOT / "topologies" / "shuttle.yaml")
    spec = msgspec.structs.replace(topology.registry_models["forest"], fit=TRAINABLE["isolation_forest"]())
    topology = msgspec.structs.replace(topology, detectors={**topology.detectors, "forest": spec})
    with tempfile.TemporaryDirectory() as name, rabbit_node() as node:
        folder = Path(name)
        registry = Registry(f"sqlite:///{folder / 'registry.db'}")
        table = from_dataset("shuttle")
        train_detector(topology, "forest", table, registry, rows=10_000, alias="champion")
        steady()
        for history in options.histories:
            count, _, rows = history.partition("x")
            place = folder / history
            (place / "history").mkdir(parents=True)
            columns = pd.DataFrame(table.values, columns=list(table.sensors)).head(int(count) * int(rows))
            columns.to_parquet(place / "history" / "part-00000001-0-1.parquet")
            bench = Bench(topology, registry, place, partial(connect, node.url(vhost=node.vhost())))
            print(f"{int(count):,} messages of {rows} rows:")
            idle, busy = map(median, asyncio.run(bench.run(options, int(count), int(rows))))
            print(f"  medians: idle {idle}   training {busy}")
            print(
                f"  p99 ratio {busy.p99 / idle.p99:.2f} ({bench.trained} trainings, {options.rounds} rounds of "
                f"{options.seconds:g} s at {options.rate:g}/s, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f})"
            )


if __name__ == "__main__":
    main()

"""How much a training in a process of its own slows the stream: p99 from publish to score, idle and while it trains.

    python -m benchmarks.training [--rounds 5] [--rate 300] [--seconds 12] [--source stream]

A worker (two online detectors and an isolation forest) scores Shuttle's rows at a fixed rate, on RabbitMQ. Rounds
take turns: in every second one a control message has the worker train a forest of 100 trees on what its stream
holds, on a file (`--source capture`), again and again as long as the round lasts. What one reading waits is taken
from the receipt of its message to its scores, reading by reading; the ratio is that of the medians of the rounds'
p99. The machine's other work shows in both.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from detectors.registry import TRAINABLE
from stream import log
from stream.brokers import connect
from stream.brokers.base import Broker
from stream.config import load
from stream.control import request
from stream.models import Registry
from stream.plan import broker_plan
from stream.publisher import messages, publish
from stream.runtimes.local import Worker, steady
from stream.scorer import Scored
from stream.shelf import Shelf
from stream.tables import from_dataset
from stream.topology import Topology
from stream.trainer import Trainer
from stream.training import train_detector
from tests.rabbitmq_node import rabbit_node

ROOT = Path(__file__).resolve().parents[1]


class Bench:
    """One worker, and the latency of every reading it scores."""

    def __init__(
        self, topology: Topology, registry: Registry, folder: Path, link: Callable[[], Broker]
    ) -> None:
        self.topology = topology
        self.connect = link
        self.waits: list[float] = []
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

    async def round(self, rate: float, seconds: float, source: dict[str, Any] | None) -> float:
        """p99 in seconds of a round; readings come at `rate`, one training after the other where it has a source."""
        async with self.connect() as broker:
            load_ = islice(self.rows, int(rate * seconds))
            self.waits.clear()
            training, over = asyncio.Event(), asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                trains = tasks.create_task(self.train(source, training, over)) if source is not None else None
                if trains is not None:
                    await training.wait()
                await publish(broker, self.stamped(load_), rate=rate)
                await self.drained()
                over.set()
        return float(np.quantile(self.waits, 0.99))

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

    async def run(self, options: argparse.Namespace) -> tuple[list[float], list[float]]:
        """p99 of the idle rounds, and of those with trainings."""
        self.rows = cycle(list(messages(from_dataset("shuttle"), self.topology.source.exchange)))
        self.next = options.history
        async with self.connect() as broker:
            await broker.declare(broker_plan(self.topology), mode="declare")
            await publish(broker, islice(self.rows, options.history))
        source = {"stream": {"to": options.history}} if options.source == "stream" else {"capture": "history"}
        found: tuple[list[float], list[float]] = ([], [])
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.worker.run(stop))
            await self.drained()
            await self.round(options.rate, 3.0, None)
            for _ in range(options.rounds):
                found[0].append(await self.round(options.rate, options.seconds, None))
                found[1].append(await self.round(options.rate, options.seconds, source))
                print(f"idle {1e3 * found[0][-1]:7.2f} ms   training {1e3 * found[1][-1]:7.2f} ms")
            stop.set()
        return found


def main() -> None:
    """Take the measurements and print them with their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=300.0)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--history", type=int, default=20_000)
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
        (folder / "history").mkdir()
        columns = pd.DataFrame(table.values, columns=list(table.sensors)).head(options.history)
        columns.to_parquet(folder / "history" / "part-00000001-0-1.parquet")
        url = node.url(vhost=node.vhost())
        bench = Bench(topology, registry, folder, lambda: connect(url))
        steady()
        idle, busy = asyncio.run(bench.run(options))
    ratio = statistics.median(busy) / statistics.median(idle)
    print(
        f"p99 idle {1e3 * statistics.median(idle):.2f} ms, while training {1e3 * statistics.median(busy):.2f} ms: "
        f"ratio {ratio:.2f} ({bench.trained} trainings, {options.rounds} rounds of {options.seconds:g} s at "
        f"{options.rate:g}/s, {os.cpu_count()} cores)"
    )


if __name__ == "__main__":
    main()

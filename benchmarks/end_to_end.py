"""Readings a second and latency from receipt to confirmed alert, on the embedded broker and on RabbitMQ.

    python -m benchmarks.end_to_end [--rounds 3] [--readings 20000] [--rate 500]

Throughput: Shuttle's rows wait in the stream, then the worker (two online detectors and an isolation forest) takes
them as fast as it can; both brokers take turns, the median of the rounds is printed. Latency: readings arrive at
a fixed rate; from receipt of a message to its scores, and to the broker's confirm of its alert. A private RabbitMQ
node is started for it.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from stream import log
from stream.brokers import connect
from stream.brokers.base import Broker, Message
from stream.brokers.memory import MemoryBroker, MemoryServer
from stream.config import load
from stream.metrics import Metrics
from stream.models import Registry
from stream.plan import broker_plan
from stream.publisher import messages, publish
from stream.runtimes.local import Worker
from stream.shelf import Shelf
from stream.tables import from_dataset
from stream.topology import Topology
from stream.training import train_detector
from tests.rabbitmq_node import rabbit_node

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 600


@dataclass(frozen=True)
class Setting:
    """What a round runs with."""

    topology: Topology
    registry: Registry
    readings: int
    rate: float


@dataclass(frozen=True)
class Outcome:
    """One round: readings/s, and latencies in seconds (p50, p99)."""

    throughput: float
    scored: tuple[float, float]
    alerted: tuple[float, float]


async def measure(connect_to: Callable[[], Broker], setting: Setting) -> Outcome:
    """One round on a fresh broker (or virtual host)."""
    topology, n = setting.topology, setting.readings
    source = cycle(list(messages(from_dataset("shuttle"), topology.source.exchange)))
    with tempfile.TemporaryDirectory() as folder:
        async with connect_to() as broker:
            await broker.declare(broker_plan(topology), mode="declare")
            await publish(broker, islice(source, n))
            throughput = await drain(connect_to, setting, Path(folder), n)
            metrics = Metrics()
            await steady(connect_to, broker, setting, Path(folder), metrics, list(islice(source, n // 4)))
    return Outcome(
        throughput,
        (
            quantile(metrics, "mmlw_scored_latency_seconds", 0.5),
            quantile(metrics, "mmlw_scored_latency_seconds", 0.99),
        ),
        (
            quantile(metrics, "mmlw_alert_latency_seconds", 0.5),
            quantile(metrics, "mmlw_alert_latency_seconds", 0.99),
        ),
    )


async def drain(connect_to: Callable[[], Broker], setting: Setting, folder: Path, n: int) -> float:
    """Readings a second while a backlog of `n` is worked off."""
    began = ended = 0.0
    worker = Worker(
        (setting.topology,), connect=connect_to, data=folder, shelf=Shelf(setting.registry, folder / "models")
    )
    stop = asyncio.Event()
    async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.run(stop))
        while not worker.ready:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        began = time.monotonic()
        while worker.next_offset(setting.topology.name) < n:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        ended = time.monotonic()
        stop.set()
    return n / (ended - began)


async def steady(
    connect_to: Callable[[], Broker],
    broker: Broker,
    setting: Setting,
    folder: Path,
    metrics: Metrics,
    load: list[Message],
) -> None:
    """Readings at a fixed rate; the worker's own histograms are the result."""
    shelf = Shelf(setting.registry, folder / "models")
    worker = Worker((setting.topology,), connect=connect_to, data=folder, shelf=shelf, metrics=metrics)
    stop = asyncio.Event()
    async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.run(stop))
        while not worker.ready:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        target = worker.next_offset(setting.topology.name) + len(load)
        await publish(broker, iter(load), rate=setting.rate)
        while worker.next_offset(setting.topology.name) < target:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        stop.set()


def quantile(metrics: Metrics, name: str, q: float) -> float:
    """A quantile of a histogram, interpolated within its bucket as Prometheus does."""
    buckets = [
        (float(sample.labels["le"]), sample.value)
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == f"{name}_bucket"
    ]
    wanted, low, below = q * buckets[-1][1], 0.0, 0.0
    for bound, count in buckets:
        if count >= wanted:
            return low + (min(bound, 10.0) - low) * (wanted - below) / max(count - below, 1)
        low, below = bound, count
    return float("nan")


def main() -> None:
    """Take the measurements and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--readings", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=500.0)
    chosen = parser.parse_args()
    log.configure("console", "error")
    topology = load(ROOT / "topologies" / "shuttle.yaml")
    with tempfile.TemporaryDirectory() as folder, rabbit_node() as node:
        registry = Registry(f"sqlite:///{folder}/registry.db")
        train_detector(topology, "forest", from_dataset("shuttle"), registry, rows=10_000, alias="champion")
        setting = Setting(topology, registry, chosen.readings, chosen.rate)
        outcomes: dict[str, list[Outcome]] = {"embedded": [], "RabbitMQ": []}
        for _ in range(chosen.rounds):
            server = MemoryServer()
            outcomes["embedded"].append(asyncio.run(measure(lambda s=server: MemoryBroker(s), setting)))  # type: ignore[misc]
            url = node.url(vhost=node.vhost())
            outcomes["RabbitMQ"].append(asyncio.run(measure(lambda u=url: connect(u), setting)))  # type: ignore[misc]
    print(f"{'broker':<10}{'readings/s':>12}{'scored p50':>12}{'p99':>9}{'alert p50':>12}{'p99':>9}   (ms)")
    for name, rounds in outcomes.items():
        middle = [
            statistics.median(values)
            for values in zip(*((o.throughput, *o.scored, *o.alerted) for o in rounds), strict=True)
        ]
        times = "".join(
            f"{1e3 * value:>{width}.1f}" for value, width in zip(middle[1:], (12, 9, 12, 9), strict=True)
        )
        print(f"{name:<10}{middle[0]:>12,.0f}{times}")
    embedded, rabbit = (statistics.median(o.throughput for o in rounds) for rounds in outcomes.values())
    print(f"embedded / RabbitMQ: {embedded / rabbit:.1f} x the readings/s")


if __name__ == "__main__":
    main()

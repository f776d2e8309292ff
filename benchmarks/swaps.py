"""How long a swap takes: preparing it beside the stream, and the pause in it. A hundred-tree isolation forest.

    python -m benchmarks.swaps [--swaps 200] [--rate 500]

Readings of Shuttle flow over the embedded broker at a fixed rate while two versions take turns. Printed: seconds to
prepare (load from the shelf, verify, build, probe) and to pause (apply and commit), median, 99th percentile and
largest; and the memory that the process took on from the tenth swap to the last.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from stream import log
from stream.brokers.memory import MemoryBroker, MemoryServer
from stream.config import load
from stream.control import request
from stream.models import Registry
from stream.plan import broker_plan
from stream.publisher import messages, publish
from stream.runtimes.local import Worker, steady
from stream.shelf import Shelf
from stream.tables import from_dataset
from stream.topology import Topology
from stream.training import train_detector

ROOT = Path(__file__).resolve().parents[1]


async def measure(topology: Topology, shelf: Shelf, folder: Path, swaps: int, rate: float) -> None:
    """Swap to and fro while readings flow, and print what it took."""
    server, stop = MemoryServer(), asyncio.Event()
    source = cycle(list(messages(from_dataset("shuttle"), topology.source.exchange)))
    [(name, spec)] = topology.registry_models.items()
    worker = Worker(
        (topology,), connect=lambda: MemoryBroker(server, user="worker"), data=folder, shelf=shelf
    )
    receipts: list[Mapping[str, Any]] = []
    memory: list[int] = []
    async with MemoryBroker(server) as broker, MemoryBroker(server, user="operator") as operator:
        await broker.declare(broker_plan(topology), mode="declare")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.run(stop))
            while not worker.ready:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            steady()
            flow = tasks.create_task(publish(broker, islice(source, 10**9), rate=rate))
            for number in range(swaps):
                model = f"models:/{spec.name}/{1 + (number + 1) % 2}"
                asked = {"user": "operator", "timeout": 60.0, "detector": name, "model": model}
                receipt = await request(operator, topology.name, "swap", **asked)  # type: ignore[arg-type]
                receipts.append(receipt)
                memory.append(_resident())
            flow.cancel()
            stop.set()
    for figure in ("prepared_s", "pause_s"):
        _print(figure, np.array([receipt[figure] for receipt in receipts]))
    print(f"memory: {(memory[-1] - memory[min(9, swaps - 1)]) / 2**20:+.1f} MB over {swaps} swaps")


def _print(what: str, seconds: Any) -> None:
    p50, p99, most = (1e3 * float(np.quantile(seconds, q)) for q in (0.5, 0.99, 1.0))
    print(f"{what}: median {p50:.1f} ms, p99 {p99:.1f} ms, largest {most:.1f} ms")


def _resident() -> int:
    """Bytes of memory in use by this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main() -> None:
    """Train two versions, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swaps", type=int, default=200)
    parser.add_argument("--rate", type=float, default=500.0)
    given = parser.parse_args()
    log.configure("json", "error")
    topology = load(ROOT / "topologies" / "shuttle.yaml")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        registry = Registry(f"sqlite:///{folder / 'registry.db'}")
        [(name, spec)] = topology.registry_models.items()
        for rows in (5_000, 10_000):
            train_detector(topology, name, from_dataset("shuttle"), registry, rows=rows, alias=spec.alias)
        shelf = Shelf(registry, folder / "models")
        asyncio.run(measure(topology, shelf, folder, given.swaps, given.rate))


if __name__ == "__main__":
    main()

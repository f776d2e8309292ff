"""Topologies at work on the embedded broker, in this process: for the demo, `mmlw try`, notebooks and tests."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stream.brokers.memory import MemoryBroker, MemoryServer
from stream.control import Receipt, request
from stream.metrics import Metrics
from stream.publisher import messages, publish
from stream.recording import Recording
from stream.runtimes.local import Worker
from stream.shelf import Shelf
from stream.tables import Table
from stream.topology import Topology

__all__ = ["Job", "PlannedSwap", "Progress", "Site", "at_work", "run"]

_LEAD = 20_000
"""Messages that the machines may be ahead of the worker: bounds memory."""
_TICK = 0.02
_PATIENCE = 60.0
"""Seconds in which a command must have been answered."""

Progress = Callable[[str, int, Recording], None]
"""Called now and then with a topology's name, its messages processed, and its recording."""


@dataclass(frozen=True, slots=True)
class PlannedSwap:
    """A swap to ask for by a control message once so many messages were processed."""

    after: int
    detector: str
    model: str


@dataclass(frozen=True, slots=True)
class Job:
    """A topology and the readings its machines publish."""

    topology: Topology
    table: Table
    swaps: Sequence[PlannedSwap] = field(default=())


class Site:
    """A plant with its machines, its worker and an operator; made by `at_work`."""

    def __init__(self, topologies: Sequence[Topology], server: MemoryServer) -> None:
        self.recordings = {
            topology.name: Recording(topology.name, topology.source.names) for topology in topologies
        }
        """What came of it, by topology."""
        self._topologies = {topology.name: topology for topology in topologies}
        self._server = server
        self._sent = dict.fromkeys(self._topologies, 0)
        self._worker: Worker

    def processed(self, topology: str) -> int:
        """How many messages the topology has processed."""
        return self._worker.next_offset(topology)

    async def publish(
        self, topology: str, table: Table, progress: Progress = lambda name, done, recording: None
    ) -> None:
        """The machines publish a table's rows, as fast as they are read; back when all of them are processed."""
        source = messages(table, self._topologies[topology].source.exchange)
        exhausted = False
        async with MemoryBroker(self._server, user="machine") as broker:
            while not exhausted or self.processed(topology) < self._sent[topology]:
                if not exhausted and self._sent[topology] - self.processed(topology) < _LEAD:
                    count = await publish(broker, itertools.islice(source, 2000))
                    self._sent[topology] += count
                    exhausted = count == 0
                else:
                    await asyncio.sleep(_TICK)
                progress(topology, self.processed(topology), self.recordings[topology])

    async def command(self, topology: str, verb: str, **arguments: Any) -> Receipt:
        """An operator sends a command (`swap`, `shadow`, `promote`, `status`, …); its receipt."""
        async with MemoryBroker(self._server, user="operator") as broker:
            receipt = await request(broker, topology, verb, user="operator", timeout=_PATIENCE, **arguments)
        self.recordings[topology].receipts.append(receipt)
        return receipt


@contextlib.asynccontextmanager
async def at_work(
    *topologies: Topology, data: Path, shelf: Shelf | None = None, metrics: Metrics | None = None
) -> AsyncIterator[Site]:
    """A worker that runs these topologies on an embedded broker, for as long as the block runs; it ends in order.

    `data` is where checkpoints and captures are. Raises what keeps a topology from running.
    """
    server = MemoryServer()
    site = Site(topologies, server)
    worker = site._worker = Worker(
        topologies,
        connect=lambda: MemoryBroker(server, user="worker"),
        data=data,
        shelf=shelf,
        metrics=metrics,
        observer=lambda name, scored: site.recordings[name].add(scored),
    )
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(worker.run(stop))
        while not worker.ready and not running.done():  # noqa: ASYNC110 - the worker knows no waiter
            await asyncio.sleep(_TICK)
        yield site
        stop.set()
    for name, recording in site.recordings.items():
        recording.dead_letters = worker.metrics.dead_letters(name)


async def run(
    jobs: Sequence[Job],
    *,
    data: Path,
    shelf: Shelf | None = None,
    metrics: Metrics | None = None,
    progress: Progress = lambda name, done, recording: None,
) -> Mapping[str, Recording]:
    """Run every job to its end; recordings by topology name. Raises what keeps a topology from running."""
    topologies = [job.topology for job in jobs]
    async with at_work(*topologies, data=data, shelf=shelf, metrics=metrics) as site:
        async with asyncio.TaskGroup() as tasks:
            for job in jobs:
                tasks.create_task(site.publish(job.topology.name, job.table, progress))
                tasks.create_task(_swap(site, job))
        for job in jobs:
            progress(job.topology.name, site.processed(job.topology.name), site.recordings[job.topology.name])
    return site.recordings


async def _swap(site: Site, job: Job) -> None:
    """An operator sends each planned swap when its time has come."""
    for swap in sorted(job.swaps, key=lambda swap: swap.after):
        while site.processed(job.topology.name) < swap.after:  # noqa: ASYNC110 - as above
            await asyncio.sleep(_TICK)
        await site.command(job.topology.name, "swap", detector=swap.detector, model=swap.model)

"""Runs topologies over tables on the embedded broker, in this process, as fast as they go: demo, try, tests."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stream.brokers.memory import MemoryBroker, MemoryServer
from stream.control import Receipt, request
from stream.metrics import Metrics
from stream.publisher import messages, publish
from stream.recording import Recording
from stream.runtimes.local import Worker
from stream.shelf import Shelf
from stream.tables import Table
from stream.topology import Topology

__all__ = ["Job", "PlannedSwap", "Progress", "run"]

_LEAD = 20_000
"""Messages that the machines may be ahead of the worker: bounds memory."""
_TICK = 0.02

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


async def run(
    jobs: Sequence[Job],
    *,
    data: Path,
    shelf: Shelf | None = None,
    metrics: Metrics | None = None,
    progress: Progress = lambda name, done, recording: None,
) -> Mapping[str, Recording]:
    """Run every job to its end; recordings by topology name. Raises what keeps a topology from running."""
    server = MemoryServer()
    recordings = {job.topology.name: Recording(job.topology.name, job.topology.source.names) for job in jobs}
    worker = Worker(
        tuple(job.topology for job in jobs),
        connect=lambda: MemoryBroker(server, user="worker"),
        data=data,
        shelf=shelf,
        metrics=metrics,
        observer=lambda name, scored: recordings[name].add(scored),
    )
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(worker.run(stop))
        while not worker.ready and not running.done():  # noqa: ASYNC110 - the worker knows no waiter
            await asyncio.sleep(_TICK)
        async with asyncio.TaskGroup() as machines:
            for job in jobs:
                machines.create_task(_play(job, server, worker, recordings[job.topology.name], progress))
        stop.set()
    for name, recording in recordings.items():
        recording.dead_letters = worker.metrics.dead_letters(name)
    return recordings


async def _play(
    job: Job, server: MemoryServer, worker: Worker, recording: Recording, progress: Progress
) -> None:
    """Publish one table, ask for the planned swaps on the way, and wait until all of it is processed."""
    name, sent = job.topology.name, 0
    planned = sorted(job.swaps, key=lambda swap: swap.after)
    source = messages(job.table, job.topology.source.exchange)
    async with MemoryBroker(server, user="machine") as broker, asyncio.TaskGroup() as tasks:
        swapping = tasks.create_task(_swap(job, server, worker, recording, planned))
        exhausted = False
        while not exhausted or worker.next_offset(name) < sent:
            if not exhausted and sent - worker.next_offset(name) < _LEAD:
                count = await publish(broker, itertools.islice(source, 2000))
                sent += count
                exhausted = count == 0
            else:
                await asyncio.sleep(_TICK)
            progress(name, worker.next_offset(name), recording)
        await swapping
    progress(name, sent, recording)


async def _swap(
    job: Job, server: MemoryServer, worker: Worker, recording: Recording, planned: Sequence[PlannedSwap]
) -> None:
    """An operator at a second connection, who sends each swap when its time has come."""
    async with MemoryBroker(server, user="operator") as broker:
        for swap in planned:
            while worker.next_offset(job.topology.name) < swap.after:  # noqa: ASYNC110 - as above
                await asyncio.sleep(_TICK)
            receipt: Receipt = await request(
                broker,
                job.topology.name,
                "swap",
                user="operator",
                timeout=60,
                detector=swap.detector,
                model=swap.model,
            )
            recording.receipts.append(receipt)

"""One life of a worker: the production `Worker` on RabbitMQ, in a process that is going to be killed.

Lives are forked from a server that has imported everything already, so one begins within a few milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import aiormq.channel

from stream import log
from stream.brokers.rabbitmq import RabbitBroker
from stream.checkpoint import Checkpoint
from stream.runtimes.local import Worker
from stream.scorer import Scorer
from stream.topology import Topology
from stream.witness import Witness
from tests.plant import ScaleShelf
from tests.torture.points import Killer, Point, WatchedBroker, WatchedShelf, WatchedStore

__all__ = ["Orders", "begin"]


@dataclass(frozen=True, slots=True)
class Orders:
    """What a life is to do, and where it ends: at the n-th passage of a point, or when it is told."""

    url: str
    data: Path
    topology: Topology
    point: Point | None = None
    passage: int = 1
    after: int = 0
    """Messages to be committed before the point counts."""

    @property
    def log(self) -> Path:
        """Where lives write what they log."""
        return self.data / "log"

    @property
    def swaps(self) -> Path:
        """Where lives write which readings were scored before a swap."""
        return self.data / "swaps"


def begin(orders: Orders) -> tuple[BaseProcess, Connection]:
    """A life has begun. The connection says `ready` once a kill from outside can be the cause of no quarantine."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.torture.preload"])
    hears, tells = context.Pipe(duplex=False)
    process = context.Process(target=_live, args=(orders, tells))
    process.start()
    tells.close()
    return process, hears


def _live(orders: Orders, tells: Connection) -> None:
    out = os.open(orders.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    log.configure("json")

    def ready() -> None:
        with contextlib.suppress(OSError):
            tells.send("ready")

    killer = Killer(orders.point, orders.passage, orders.after, ready)
    _watch_driver(killer)
    topology = orders.topology
    path = orders.data / f"{topology.name}.checkpoint"

    def store(_: Topology) -> WatchedStore:
        return WatchedStore(Checkpoint(path, topology.name, Scorer.recipes(topology)), killer, orders.swaps)

    shelf: Any = WatchedShelf(ScaleShelf(alias=2), killer)
    worker = Worker(
        (topology,),
        connect=lambda: WatchedBroker(RabbitBroker(orders.url), killer),
        data=orders.data,
        shelf=shelf,
        wait=30.0,
        store=store,
    )
    asyncio.run(_run(worker))


async def _run(worker: Worker) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await worker.run(stop)


def _watch_driver(killer: Killer) -> None:
    """Two points lie below the ports: a confirm that arrives, and the number of a commit that is written down."""
    driver: Any = aiormq.channel.Channel
    witness: Any = Witness
    confirmed, note = driver._on_confirm_frame, witness.note

    async def on_confirm(channel: Any, frame: Any) -> None:
        killer.passed("unconfirmed")
        await confirmed(channel, frame)

    def on_note(kept: Any, *arguments: Any) -> None:
        killer.passed("before_witness")
        note(kept, *arguments)

    driver._on_confirm_frame = on_confirm
    witness.note = on_note

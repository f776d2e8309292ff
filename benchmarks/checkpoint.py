"""What a checkpoint costs with very many machines, and for how long the event loop stands still.

    python -m benchmarks.checkpoint [--machines 100000] [--kinds adaptive_z,mewma] [--seconds 30] [--only standstill]

Commits: so many machines of a state table changed since the last one; median of five. Load: what a restart reads.
Standstill: a worker on the embedded broker processes readings of that many machines, while a task that only ticks
notes how late it is woken: while every machine is new, once all are known, and while a worker starts again. The
same is measured in a process that is idle: so much is the host's doing; and in a worker that commits nothing: so
much is not the checkpoint's. "On the clock" is what was late in all; "at work" leaves out the time in which the
process had no processor, on a host that is shared.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from detectors.base import Detector
from detectors.registry import ONLINE
from stream import log
from stream.arrivals import UNNUMBERED
from stream.brokers.base import Message
from stream.brokers.memory import MemoryBroker, MemoryServer
from stream.checkpoint import Checkpoint
from stream.plan import broker_plan
from stream.readings import Batch
from stream.recipes import online_info
from stream.runtimes.local import Worker, steady
from stream.scorer import Scorer
from stream.state import Changes, StreamPosition
from stream.topology import CheckpointRule, Sensor, Source, Topology

SENSORS = ("vibration_mm_s", "temperature_c", "current_a")
START = 1_722_988_800.0
TICK = 0.001
RULES = {
    "a commit after 1,000 messages or 0.2 s": CheckpointRule(),
    "a commit after 10,000 messages or 5 s": CheckpointRule(every=5.0, after=10_000),
    "no commit": CheckpointRule(every=3600.0, after=1_000_000_000),
}
"""The default, a rare one, and the control."""
PART = 100
"""Messages published at once."""
BACKLOG = 3_000
WARM = 3
"""Readings of every machine before anything is measured."""


def topology(detector: Detector, machines: int, rule: CheckpointRule = CheckpointRule()) -> Topology:  # noqa: B008
    """Three sensors, one detector, room for every machine in memory."""
    sensors = tuple(Sensor(name) for name in SENSORS)
    source = Source(
        sensors=sensors, max_machines=2 * machines, resident_machines=2 * machines, keep_bytes=20_000_000
    )
    return Topology(name="hall", source=source, detectors={"online": detector}, checkpoint=rule)


def scorer_of(topology: Topology) -> Scorer:
    """A scorer with a fresh model."""
    built = {}
    for name, spec in topology.detectors.items():
        assert isinstance(spec, Detector)
        built[name] = (spec.build(topology.source.names), online_info(spec))
    return Scorer(topology, built)


def learned(topology: Topology, names: list[str]) -> Scorer:
    """A scorer that has seen every machine a few times."""
    rng, scorer = np.random.default_rng(0), scorer_of(topology)
    scorer.admit(names, {})
    for step in range(WARM):
        for start in range(0, len(names), 1000):
            part = names[start : start + 1000]
            n = len(part)
            order = np.arange(n)
            values = rng.normal(size=(n, len(SENSORS)))
            batch = Batch(
                part, np.full(n, START + step), values, order, np.zeros(n, np.int64), np.full(n, UNNUMBERED)
            )
            scorer.process(batch, order + start)
    return scorer


def store(title: str, detector: Detector, machines: int) -> None:
    """Print what commits and a load cost."""
    hall = topology(detector, machines)
    names = [f"machine-{i:06}" for i in range(machines)]
    scorer = learned(hall, names)
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hall.checkpoint"
        checkpoint = Checkpoint(path, "hall", Scorer.recipes(hall))
        first = committed(checkpoint, scorer, np.arange(machines))
        checkpoint._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = path.stat().st_size
        print(
            f"{title}, {machines:,} machines: {size / 2**20:,.0f} MiB, {size / machines:,.0f} bytes a machine"
        )
        print(f"  commit of all {machines:>7,} machines  {first:8.3f} s")
        for dirty in (100, 1_000, 10_000):
            if dirty <= machines:
                each = [
                    committed(checkpoint, scorer, np.sort(rng.choice(machines, dirty, replace=False)))
                    for _ in range(5)
                ]
                worst = max(each)
                print(
                    f"  commit of {dirty:>11,} machines  {statistics.median(each):8.3f} s  (worst {worst:.3f})"
                )
        checkpoint.close()
        with took("  open, with every check"):
            checkpoint = Checkpoint(path, "hall", Scorer.recipes(hall))
        with took("  load"):
            saved = checkpoint.load()
        with took("  into memory"):
            fresh = scorer_of(hall)
            for group in saved.groups:
                fresh.admit(*group)
        checkpoint.close()


def committed(checkpoint: Checkpoint, scorer: Scorer, slots: np.ndarray) -> float:
    """Seconds of a commit of these machines, with what the engine does for it."""
    before = time.perf_counter()
    names = [scorer.residents.name(slot) for slot in slots.tolist()]
    checkpoint.commit(Changes(StreamPosition(1, "x" * 64), names, scorer.components(slots)))
    return time.perf_counter() - before


@contextmanager
def took(what: str) -> Iterator[None]:
    before = time.perf_counter()
    yield
    print(f"{what:<36}{time.perf_counter() - before:8.3f} s")


@dataclass
class Pulse:
    """A task that ticks, and notes by how much it was late, by phase."""

    phase: str = ""
    late: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Seconds, and how many of them this process was at work at most: the others it did not have a processor."""

    async def beat(self) -> None:
        while True:
            before, worked = time.perf_counter(), time.process_time()
            await asyncio.sleep(TICK)
            late, worked = time.perf_counter() - before - TICK, time.process_time() - worked
            self.late.setdefault(self.phase, []).append((late, min(late, worked)))


def told(late: list[tuple[float, float]]) -> str:
    """The longest moments, in milliseconds."""
    found = []
    for name, moments in zip(("on the clock", "at work"), np.array(late).T, strict=True):
        over = int((moments > 0.02).sum())
        most = 1000 * np.quantile(moments, [0.99, 0.999, 1.0])
        found.append(
            f"{name} {most[2]:6.1f} ms (99.9 % {most[1]:5.1f}, 99 % {most[0]:4.1f}, {over} of {len(late):,} over 20)"
        )
    return "; ".join(found)


def idle(talk: Connection) -> None:
    """A process that does nothing but tick: what is late here is the host's doing, not the worker's."""
    pulse = Pulse("idle")

    async def beat() -> None:
        async with asyncio.TaskGroup() as tasks:
            ticking = tasks.create_task(pulse.beat())
            await asyncio.to_thread(talk.recv)
            ticking.cancel()

    asyncio.run(beat())
    talk.send(pulse.late["idle"])


@contextmanager
def beside(title: str) -> Iterator[None]:
    """Measure meanwhile how late this host wakes a process that is idle."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=idle, args=(there,))
    process.start()
    try:
        yield
    finally:
        here.send("stop")
        print(f"{title:<34}{told(here.recv())}")
        process.join()


async def standstill(
    title: str, detector: Detector, machines: int, seconds: float, rule: CheckpointRule
) -> None:
    """Print for how long the loop stood still while a worker works."""
    hall = topology(detector, machines, rule)
    print(title)
    pulse, server, rng = Pulse(), MemoryServer(), np.random.default_rng(0)
    every, once = [message(i, rng) for i in range(machines)], range(0, machines, PART)
    again = [message(int(i), rng) for i in rng.integers(machines, size=min(machines, 20_000))]
    with tempfile.TemporaryDirectory() as folder, beside("  an idle process beside it"):
        async with MemoryBroker(server, user="machine") as broker:
            await broker.declare(broker_plan(hall), mode="declare")
            steady()  # as `mmlw run` does; and what the machines will say is not the worker's
            hall_of = partial(part, hall, server, broker, Path(folder), pulse)
            await hall_of("machines new", [every[start : start + PART] for start in once], np.inf)
            await hall_of(
                "all known", [again[start : start + PART] for start in range(0, len(again), PART)], seconds
            )
            await hall_of("restart", [], 0.0)
    gc.unfreeze()


async def part(
    hall: Topology,
    server: MemoryServer,
    broker: MemoryBroker,
    folder: Path,
    pulse: Pulse,
    phase: str,
    said: list[list[Message]],
    seconds: float,
) -> None:
    """One worker's life: it reads all that is said, again and again for so many seconds."""
    worker = Worker((hall,), connect=lambda: MemoryBroker(server, user="worker"), data=folder)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        pulse.phase = phase if not said else ""
        ticking = tasks.create_task(pulse.beat())
        running = tasks.create_task(worker.run(stop))
        while not worker.ready and not running.done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        pulse.phase = phase
        first = sent = worker.next_offset("hall")
        began = time.perf_counter()
        for messages in said if np.isinf(seconds) else cycle(said) if said else ():
            await broker.publish(messages)
            sent += len(messages)
            while sent - worker.next_offset("hall") > BACKLOG:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
            if time.perf_counter() - began > seconds:
                break
        while worker.next_offset("hall") < sent:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        rate = f"{(sent - first) / (time.perf_counter() - began):7,.0f} readings/s"
        print(f"  {phase:<13}{rate if said else '':<19}{told(pulse.late[phase])}")
        pulse.phase = ""
        stop.set()
        await running
        ticking.cancel()


def message(machine: int, rng: np.random.Generator) -> Message:
    values = dict(zip(SENSORS, rng.normal(size=3).tolist(), strict=True))
    name = f"machine-{machine:06}"
    body = json.dumps({"machine": name, "time": START, "values": values}).encode()
    return Message(exchange="mmlw.sensors", routing_key=f"sensor.{name}.readings", body=body)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--machines", type=int, default=100_000)
    parser.add_argument("--kinds", default="adaptive_z,mewma,knn,half_space_trees", help="of detectors")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--only", choices=["store", "standstill"])
    chosen = parser.parse_args()
    log.configure("console", "error")
    for kind in chosen.kinds.split(","):
        detector = ONLINE[kind]()
        if chosen.only != "standstill":
            store(kind, detector, chosen.machines)
        if chosen.only != "store":
            for told_as, rule in RULES.items():
                title = f"{kind}, {chosen.machines:,} machines, {told_as}"
                asyncio.run(standstill(title, detector, chosen.machines, chosen.seconds, rule))


if __name__ == "__main__":
    main()

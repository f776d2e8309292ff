"""A full disk: reading stops and says so, nothing is lost or doubled, and it goes on by itself when there is room."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from structlog.testing import capture_logs

from stream import log
from stream.brokers.base import Plan, Queue
from stream.brokers.memory import MemoryBroker
from stream.checkpoint import Checkpoint
from stream.errors import CheckpointError, CheckpointFull
from stream.runtimes.local import Worker
from stream.scorer import Scorer
from stream.state import Changes, StreamPosition
from stream.topology import Topology
from tests.aio import run
from tests.plant import Plant, readings, topology

SECONDS = 240.0
"""Within which a condition must come true."""


@dataclass
class Disk:
    """A disk that can be filled: SQLite itself then finds no room for one page more."""

    full: bool = False
    shut: bool = False
    """Not even what SQLite has beside the file to read it finds room."""
    refused: int = 0
    """Commits, and openings, that found no room."""


class Cramped(Checkpoint):
    """A checkpoint on such a disk."""

    disk: Disk

    def commit(self, changes: Changes) -> int:
        pages = self._db.execute("PRAGMA page_count").fetchone()[0] if self.disk.full else 2**30
        self._db.execute(f"PRAGMA max_page_count={max(pages, 1)}")
        try:
            return super().commit(changes)
        except CheckpointFull:
            self.disk.refused += 1
            raise


@dataclass
class CrampedPlant(Plant):
    """A plant whose worker writes to such a disk."""

    disk: Disk = field(default_factory=Disk)

    def worker(self) -> Worker:
        def store(topology: Topology) -> Checkpoint:
            if self.disk.full and self.disk.shut:
                self.disk.refused += 1
                raise CheckpointFull("the disk is full")
            path = self.data / f"{topology.name}.checkpoint"
            checkpoint = Cramped(path, topology.name, Scorer.recipes(topology))
            checkpoint.disk = self.disk
            return checkpoint

        return Worker(
            (self.topology,),
            connect=lambda: MemoryBroker(self.server, user="worker"),
            data=self.data,
            metrics=self.metrics,
            observer=lambda _, scored: self.scored.append(scored),
            store=store,
        )


def state_of(plant: Plant) -> dict[str, Any]:
    """Position, and every machine's state."""
    checkpoint = Checkpoint(plant.data / "plant.checkpoint", "plant", Scorer.recipes(plant.topology))
    try:
        saved = checkpoint.load()
    finally:
        checkpoint.close()
    (group,) = saved.groups
    order = np.argsort(group.machines)
    rows = {table: {n: a[order] for n, a in arrays.items()} for table, arrays in group.components.items()}
    return {"position": saved.position, "machines": sorted(group.machines), "rows": rows}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def lines(logs: Any, event: str) -> list[Any]:
    return [entry for entry in logs if entry["event"] == event]


async def uninterrupted(folder: Path) -> Plant:
    plant = Plant(folder, topology())
    await plant.declare()
    await plant.publish(readings(400, machines=100))
    await plant.publish(readings(600, machines=400, seed=1))
    await plant.process(1000)
    return plant


def test_full_disk_stops_reading_and_says_so_and_room_resumes_it(tmp_path: Path) -> None:
    async def story() -> None:
        plant = CrampedPlant(tmp_path / "full", topology())
        await plant.declare()
        await plant.publish(readings(400, machines=100))
        with capture_logs() as logs:
            async with plant.running() as worker:
                await plant.reached(worker, 400)
                plant.disk.full = True
                await plant.publish(readings(300, machines=400, seed=1)[:300])
                await until(lambda: plant.value("mmlw_checkpoint_full") == 1)
                assert worker.problems() == {"plant": "no room on the disk for the checkpoint"}
                assert not worker.ready
                alerts, received = await plant.alerts(), plant.value("mmlw_messages_received_total")
                await plant.publish(readings(600, machines=400, seed=1)[300:])
                tries = plant.disk.refused
                await until(lambda: plant.disk.refused >= tries + 4)
                assert plant.value("mmlw_checkpoint_full") == 1
                assert plant.value("mmlw_messages_received_total") == received, "nothing more is read"
                assert await plant.alerts() == alerts, "and no alert goes out"
                assert len(lines(logs, "disk_full")) == 1, "said once, not with every try"
                committed = plant.value("mmlw_messages_processed_total")
                assert committed <= 400
                await until(lambda: plant.value("mmlw_lag_messages") == 1000 - committed)
                plant.disk.full = False
                await plant.reached(worker, 1000)
                assert plant.value("mmlw_checkpoint_full") == 0
                assert worker.problems() == {}
                await until(lambda: plant.value("mmlw_lag_messages") == 0)
        other = await uninterrupted(tmp_path / "other")
        assert await plant.alerts() == await other.alerts()
        np.testing.assert_equal(state_of(plant), state_of(other))

    run(story())


@pytest.mark.parametrize(("before", "shut"), [(0, False), (400, False), (0, True), (400, True)])
def test_disk_that_is_full_when_the_worker_starts_is_waited_for(
    tmp_path: Path, before: int, shut: bool
) -> None:
    """Also before the first start of all, when there is no file yet."""

    async def story() -> None:
        plant = CrampedPlant(tmp_path / "full", topology())
        await plant.declare()
        await plant.publish(readings(400, machines=100))
        if before:
            await plant.process(before)
        await plant.publish(readings(600, machines=400, seed=1))
        plant.disk.full, plant.disk.shut = True, shut
        worker, stop = plant.worker(), asyncio.Event()
        with capture_logs() as logs:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(worker.run(stop))
                await until(lambda: plant.disk.refused >= 4)
                assert plant.value("mmlw_checkpoint_full") == 1
                assert worker.problems() == {"plant": "no room on the disk for the checkpoint"}
                assert len(lines(logs, "disk_full")) == 1
                lag = np.nan if shut else 1000 - before  # without the checkpoint nobody knows where it stands
                await until(
                    lambda: bool(np.array_equal(plant.value("mmlw_lag_messages"), lag, equal_nan=True))
                )
                plant.disk.full = False
                await plant.reached(worker, 1000)
                stop.set()
        other = await uninterrupted(tmp_path / "other")
        assert await plant.alerts() == await other.alerts()
        np.testing.assert_equal(state_of(plant), state_of(other))

    run(story())


@pytest.mark.parametrize("shut", [False, True])
def test_lag_of_a_queue_is_told_while_the_disk_is_full(tmp_path: Path, shut: bool) -> None:
    """Also where the checkpoint cannot be read, and after a lost connection; nothing is taken from the queue."""

    async def story() -> None:
        queue = Queue(name="line", kind="classic")
        plant = CrampedPlant(tmp_path, topology(queue="line"), disk=Disk(full=True, shut=shut))
        async with MemoryBroker(plant.server, user="plant") as broker:
            await broker.declare(Plan(queues=(queue,)), mode="declare")
            messages = [structs.replace(m, exchange="", routing_key="line") for m in readings(30)]
            await broker.publish(messages[:10])
        await plant.declare()
        worker, stop = plant.worker(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.run(stop))
            await until(lambda: plant.disk.refused > 0)
            await until(lambda: plant.value("mmlw_lag_messages") == 10)
            assert not plant.server.store("line").readers, "nobody takes from it"
            plant.server.drop_connections()
            await plant.publish(messages[10:])
            await until(lambda: plant.value("mmlw_lag_messages") == 30)
            plant.disk.full = False
            await until(lambda: plant.value("mmlw_messages_processed_total") == 30)
            await until(lambda: plant.value("mmlw_lag_messages") == 0)
            stop.set()

    run(story())


@pytest.mark.parametrize("shut", [False, True])
def test_worker_that_waits_for_room_can_be_stopped(tmp_path: Path, shut: bool) -> None:
    async def story() -> None:
        plant = CrampedPlant(tmp_path, topology(), disk=Disk(full=True, shut=shut))
        await plant.declare()
        worker, stop = plant.worker(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.run(stop))
            await until(lambda: plant.disk.refused >= 2)
            stop.set()

    run(story())


def changes(n: int, offset: int) -> Changes:
    rows = {"model:a": {"mean": np.random.default_rng(0).normal(size=(n, 500))}}
    return Changes(StreamPosition(offset, "x"), [f"m{offset}-{i}" for i in range(n)], rows)


def test_small_commit_does_not_pass_for_room_that_a_large_one_lacks(tmp_path: Path) -> None:
    """Only the position fits into the pages that there are: that would begin the same batch again and again."""
    checkpoint = Checkpoint(tmp_path / "t.checkpoint", "t", {"model:a": "1"})
    try:
        checkpoint.commit(changes(50, 1))
        pages = checkpoint._db.execute("PRAGMA page_count").fetchone()[0]
        checkpoint._db.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(CheckpointFull, match=r"the disk is full. Make room"):
            checkpoint.commit(changes(300, 2))
        for _ in range(3):
            with pytest.raises(CheckpointFull):
                checkpoint.commit(Changes(StreamPosition(1, "x")))
        checkpoint._db.execute(f"PRAGMA max_page_count={20 * pages}")
        checkpoint.commit(Changes(StreamPosition(1, "x")))
        checkpoint.commit(changes(300, 2))
        assert checkpoint._db.execute("SELECT count(*) FROM room").fetchone() == (0,)
    finally:
        checkpoint.close()
    again = Checkpoint(tmp_path / "t.checkpoint", "t", {"model:a": "1"})
    assert again.load().stored == 350
    again.close()


def test_commit_stands_where_only_the_witness_finds_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    checkpoint = Checkpoint(tmp_path / "t.checkpoint", "t", None)
    with monkeypatch.context() as patched:
        patched.setattr("os.pwrite", full)
        with pytest.raises(CheckpointFull):  # a first commit must not come before its witness
            checkpoint.commit(changes(1, 1))
    checkpoint.commit(changes(1, 1))
    with monkeypatch.context() as patched:
        patched.setattr("os.pwrite", full)
        checkpoint.commit(changes(1, 2))
    checkpoint.close()
    again = Checkpoint(tmp_path / "t.checkpoint", "t", None)
    assert again.load().position == StreamPosition(2, "x")
    again.close()


def test_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError, match=r"t\.lock: cannot be opened: "):
        Checkpoint(tmp_path / "file" / "t.checkpoint", "t", None)


def test_a_log_that_finds_no_room_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.suppress(OSError), Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr("sys.stderr", full)
        log.configure("json", "info")
        for _ in range(1000):
            log.get().info("said_to_nobody", topology="plant")
        with pytest.raises(OSError, match="No space left"):
            print("said without the log", file=full, flush=True)
    monkeypatch.undo()
    log.configure("auto", "critical")

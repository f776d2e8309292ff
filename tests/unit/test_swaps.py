"""Swaps in a running stream: a thousand of them, and a registry that is away."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from detectors.base import Model
from stream.errors import RegistryUnreachable
from stream.models import ModelRef
from stream.scorer import Scored
from tests.aio import run
from tests.plant import Plant, ScaleShelf, readings, topology

LIMIT = 525
"""Bytes that a swap may leave; 56, 106, 143 and 175 were measured, most of it what lists and caches take once. A
receipt that is kept is more."""


class Heavy(ScaleShelf):
    """Its models hold a quarter of a megabyte each, and it knows which of them are still held by anybody."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: weakref.WeakSet[Model] = weakref.WeakSet()

    def model(self, ref: ModelRef, sensors: Sequence[str]) -> Model:
        model = super().model(ref, sensors)
        model.ballast = np.ones(2**15)  # type: ignore[attr-defined]
        self.alive.add(model)
        return model


class Sheet(list[Scored]):
    """Notes scores in arrays that are there from the beginning: what a test keeps is no growth."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.offsets, self.scores, self.first = np.full(rows, -1), np.zeros(rows), np.zeros(rows)
        self.rows = 0

    def append(self, scored: Scored) -> None:
        rows = slice(self.rows, self.rows + len(scored.batch))
        self.offsets[rows], self.scores[rows] = scored.offsets, scored.scores["scale"]
        self.first[rows] = scored.batch.values[:, 0]
        self.rows = rows.stop


def test_a_thousand_swaps_lose_nothing_and_leak_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.engine._IDLE", 0.001)
    for kept in ("stream.commands._REMEMBERED", "stream.feedback._KEPT"):
        monkeypatch.setattr(kept, 50)  # receipts and alerts are kept on purpose; here as few as are warm
    total, warm = 1000, 200

    async def story() -> None:
        shelf = Heavy()
        plant = Plant(tmp_path, topology(batch_model=True, every=0.0), shelf=shelf)
        messages = readings(3 * total)
        plant.scored = sheet = Sheet(len(messages))
        await plant.declare()
        firsts: list[tuple[int, int]] = [(0, 1)]
        tracemalloc.start()
        async with plant.running() as worker:
            for number in range(total):
                if number == warm:
                    before = _traced(plant)
                await plant.publish(messages[3 * number : 3 * number + 3])
                version = 1 + number % 50
                receipt = await plant.ask("swap", model=f"models:/scale/{version}")
                assert receipt["status"] == "applied", receipt
                firsts.append((receipt["partitions"]["0"]["first_offset"], version))
                await plant.reached(worker, 3 * number + 3)
            grown = _traced(plant) - before
            assert len(shelf.alive) == 1, "the one that serves"
        _check(plant, sheet, firsts)
        print(f"{grown / (total - warm):.0f} bytes a swap")
        assert grown / (total - warm) < LIMIT

    try:
        run(story())
    finally:
        tracemalloc.stop()


def _traced(plant: Plant) -> int:
    """Bytes in use, without the messages that the embedded broker keeps: they were all read."""
    for name in ("mmlw.readings.plant", "mmlw.alerts", "mmlw.control.plant"):
        store = plant.server.store(name)
        plant.server.forget(name, 0)
        del store.messages[: store.head]
        store.head = 0
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def _check(plant: Plant, sheet: Sheet, firsts: list[tuple[int, int]]) -> None:
    total = len(sheet.offsets)
    assert sheet.rows == total
    assert sheet.offsets.tolist() == list(range(total)), "each reading once, in order"
    starts, versions = np.array(firsts).T
    serving = versions[np.searchsorted(starts, sheet.offsets, side="right") - 1]
    np.testing.assert_allclose(sheet.scores, np.abs(sheet.first) * serving)
    assert plant.value("mmlw_swaps_total", detector="scale", status="applied") == len(firsts) - 1


def test_a_registry_that_is_away_refuses_the_swap_and_the_old_model_serves(tmp_path: Path) -> None:
    class Away(ScaleShelf):
        def resolve(self, uri: str) -> ModelRef:
            if uri.endswith("/2"):
                raise RegistryUnreachable("model registry http://mlflow does not answer: refused")
            return super().resolve(uri)

    async def story() -> None:
        plant = Plant(tmp_path, topology(batch_model=True), shelf=Away())
        await plant.declare()
        async with plant.running() as worker:
            receipt = await plant.ask("swap", model="models:/scale/2")
            assert (receipt["status"], receipt["serving"]["scale"]["version"]) == ("refused", 1)
            assert "does not answer" in receipt["reason"]
            await plant.publish(readings(10))
            await plant.reached(worker, 10)
            assert (await plant.ask("status"))["models"]["scale"]["version"] == "1"
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(story())

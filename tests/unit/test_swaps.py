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
from tests.aio import run
from tests.plant import Plant, ScaleShelf, readings, topology


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


def test_a_thousand_swaps_lose_nothing_and_leak_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.engine._IDLE", 0.001)
    monkeypatch.setattr(
        "stream.commands._REMEMBERED", 50
    )  # receipts are kept on purpose; here as few as are warm
    total, warm = 1000, 100

    async def story() -> None:
        shelf = Heavy()
        plant = Plant(tmp_path, topology(batch_model=True, every=0.0), shelf=shelf)
        messages = readings(3 * total)
        await plant.declare()
        firsts: list[tuple[int, int]] = [(0, 1)]
        async with plant.running() as worker:
            for number in range(total):
                if number == warm:
                    before = _traced(start=True)
                await plant.publish(messages[3 * number : 3 * number + 3])
                version = 1 + number % 50
                receipt = await plant.ask("swap", model=f"models:/scale/{version}")
                assert receipt["status"] == "applied", receipt
                firsts.append((receipt["partitions"]["0"]["first_offset"], version))
            await plant.reached(worker, len(messages))
            grown = _traced() - before
            assert len(shelf.alive) == 1, "the one that serves"
        tracemalloc.stop()
        _check(plant, firsts, len(messages))
        print(
            f"{grown / (total - warm):.0f} bytes a swap"
        )  # what the test itself keeps: messages, and all scores
        assert grown / (total - warm) < 40_000

    run(story())


def _traced(*, start: bool = False) -> int:
    gc.collect()
    if start:
        tracemalloc.start()
    return tracemalloc.get_traced_memory()[0]


def _check(plant: Plant, firsts: list[tuple[int, int]], total: int) -> None:
    offsets = np.concatenate([part.offsets for part in plant.scored])
    scores = np.concatenate([part.scores["scale"] for part in plant.scored])
    values = np.vstack([part.batch.values for part in plant.scored])
    assert offsets.tolist() == list(range(total)), "each reading once, in order"
    starts, versions = np.array(firsts).T
    serving = versions[np.searchsorted(starts, offsets, side="right") - 1]
    np.testing.assert_allclose(scores, np.abs(values[:, 0]) * serving)
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

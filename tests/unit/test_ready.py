"""When a worker says that it is ready."""

from __future__ import annotations

from pathlib import Path

from tests.aio import run
from tests.plant import Plant, topology


def test_a_worker_that_has_not_begun_is_not_ready(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology())
        worker = plant.worker()
        assert worker.problems() == {"plant": "not consuming"}
        async with plant.running() as running:
            assert running.problems() == {}

    run(story())

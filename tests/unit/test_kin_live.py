"""Warming up: seen from outside, and left out where a sister that waits in the checkpoint has done it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from stream.brokers.base import Message
from stream.kin import too_short
from stream.rules import Learning, StartFrom
from stream.topology import Topology
from tests.aio import run
from tests.plant import START, Plant, topology
from tests.unit.test_engine import assert_same, state_of, uninterrupted

RULES: dict[str, StartFrom] = {"sister": "sister", "named": {"pump-*": "pump-1"}}
N = 160


def wanted(rule: StartFrom, *, max_batch: int = 64) -> Topology:
    """Two machines fit into memory."""
    small = topology(max_batch=max_batch, every=0.0, resident_machines=2)
    return msgspec.structs.replace(small, learning=Learning(start_from=rule), health=None)


def messages() -> list[Message]:
    """A pump that is known, then valves in its place in memory, then two pumps that were never seen before."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(N):
        machine = "pump-1" if i < 60 else f"valve-{i % 3}" if i < 120 else f"pump-{8 + i % 2}"
        values = dict(zip("ab", rng.normal(size=2).tolist(), strict=True))
        body = msgspec.json.encode({"machine": machine, "time": START + i, "values": values})
        found.append(Message(exchange="mmlw.sensors", routing_key=f"sensor.{machine}.all", body=body))
    return found


def scores(plant: Plant, machine: str) -> list[float]:
    return [
        float(score)
        for scored in plant.scored
        for name, score in zip(scored.batch.machines, scored.scores["spike"].tolist(), strict=True)
        if name == machine
    ]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("max_batch", [1, 7, 64])
def test_a_sister_that_is_not_in_memory_is_fetched(tmp_path: Path, rule: str, max_batch: int) -> None:
    async def story() -> None:
        one = Plant(tmp_path / "one", wanted(RULES[rule]))
        other = Plant(tmp_path / "other", wanted(RULES[rule], max_batch=max_batch))
        await uninterrupted(one, messages())
        assert all(score > 0 for score in scores(one, "pump-8")[:10])
        assert not any(scores(one, "valve-0")[:10])
        await other.declare()
        for start, stop in ((0, 100), (100, 125), (125, N)):  # the sister is not among those a start loads
            await other.publish(messages()[start:stop])
            await other.process(stop)
        for machine in ("pump-1", "pump-8", "pump-9", "valve-2"):
            assert scores(other, machine) == scores(one, machine)
        assert await other.alerts() == await one.alerts()
        assert_same(state_of(other), state_of(one))

    run(story())


def test_status_and_metrics_tell_how_many_machines_are_warming_up(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, msgspec.structs.replace(topology(), learning=Learning(start_from="sister")))
        await plant.declare()
        await plant.publish(messages())
        async with plant.running() as worker:
            await plant.reached(worker, N)
            status = await plant.ask("status")
        assert status["machines"] == 6
        assert status["machines_warming"] == {"spike": 0}
        assert plant.value("mmlw_machines_warming", detector="spike") == 0

    run(story())


def test_machines_without_a_sister_warm_up_one_by_one(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology())
        await plant.declare()
        await plant.publish(
            messages()[:130]
        )  # the detector needs 10 readings; the last two pumps have 5 each
        async with plant.running() as worker:
            await plant.reached(worker, 130)
            assert (await plant.ask("status"))["machines_warming"] == {"spike": 2}
        assert plant.value("mmlw_machines_warming", detector="spike") == 2

    run(story())


def test_a_file_shorter_than_the_warm_up_is_told() -> None:
    needed = {"spike": 50, "shift": 1400}
    assert too_short(needed, 1401) is None
    assert too_short(needed, 1400) == (
        "too short to judge: 1,400 readings of a machine, and to warm up it takes: shift 1,400"
    )
    assert "spike 50, shift 1,400" in (too_short(needed, 20) or "")

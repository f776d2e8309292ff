"""Sick sensors and machines in a running worker: told once, over stops, lost connections and an operator's word."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from detectors.health import Health
from stream.alerts import Alert
from stream.brokers.base import Message
from tests.aio import run
from tests.plant import START, Plant, topology
from tests.unit.test_engine import Saboteur, assert_same, state_of, uninterrupted


def sick_readings(n: int) -> list[Message]:
    """Messages of three machines: a sensor is stuck, another is missing, a machine is silent."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(n):
        number = i % 3
        values = dict(zip("ab", rng.normal(size=2).tolist(), strict=True))
        if number == 0 and 250 < i < 400:
            values["a"] = 0.25
        if number == 1 and i > 300:
            del values["b"]
        if number == 2 and 300 < i < 450:
            continue
        body = msgspec.json.encode({"machine": f"m{number}", "time": START + 10.0 * i, "values": values})
        found.append(Message(exchange="mmlw.sensors", routing_key=f"sensor.m{number}.all", body=body))
    return found


HEALTH = Health(stuck_after=20, silent_after=120.0)


@pytest.mark.parametrize("piece", [1, 7, 60])
def test_sick_sensors_over_stops_and_lost_connections_equal_an_uninterrupted_run(
    tmp_path: Path, piece: int
) -> None:
    async def story() -> None:
        wanted = msgspec.structs.replace(topology(max_batch=piece), health=HEALTH)
        one, other = Plant(tmp_path / "one", wanted), Plant(tmp_path / "other", wanted)
        messages = sick_readings(540)
        await uninterrupted(one, messages)
        expected = await one.alerts()
        assert {alert.type for alert in expected} >= {"sensor_stuck", "sensor_silent", "machine_silent"}
        await other.declare()
        other.connect = lambda: Saboteur(other.server, user="worker")
        for number, start in enumerate(range(0, len(messages), 90)):
            Saboteur.left, Saboteur.after = 1 + number % 2, number % 3 == 0
            await other.publish(messages[start : start + 90])
            await other.process(min(start + 90, len(messages)))
        assert other.value("mmlw_restarts_total", cause="broker") >= 1
        assert await other.alerts() == expected
        assert_same(state_of(other), state_of(one))
        assert one.value("mmlw_health_alerts_total", type="sensor_stuck", event="opened") == 1
        assert one.value("mmlw_health_alerts_total", type="machine_silent", event="closed") == 1
        assert one.value("mmlw_health_alerts_open", type="sensor_silent") == 1
        assert one.value("mmlw_sensors_masked") == 1

    run(story())


def test_an_operator_takes_a_stuck_sensor_for_normal(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, msgspec.structs.replace(topology(), health=HEALTH))
        messages = sick_readings(540)
        before = 320
        await plant.declare()
        await plant.publish(messages[:before])
        async with plant.running() as worker:
            await plant.reached(worker, before)
            receipt = await plant.ask("accept", machine="m0", detector="health")
            assert receipt["status"] == "applied"
            await plant.publish(messages[before:])
            await plant.reached(worker, len(messages))
        stuck = [alert for alert in await plant.alerts() if alert.type == "sensor_stuck"]
        assert [alert.event for alert in stuck] == ["opened", "closed"]
        assert stuck[1].position.offset < before + 4

    run(story())


@pytest.mark.parametrize("resident", [1000, 1])
def test_health_that_is_switched_off_closes_what_it_has_open_once(tmp_path: Path, resident: int) -> None:
    async def story() -> None:
        wanted = msgspec.structs.replace(topology(max_batch=1, resident_machines=resident), health=HEALTH)
        plant = Plant(tmp_path, wanted)
        messages, before = sick_readings(540), 330
        await plant.declare()
        await plant.publish(messages[:before])
        await plant.process(before)
        opened = [alert for alert in await plant.alerts() if alert.detector == "health"]
        assert {alert.event for alert in opened} == {"opened"}
        if resident == 1000:
            assert {alert.type for alert in opened} == {"sensor_stuck", "sensor_silent", "machine_silent"}
        plant.topology = msgspec.structs.replace(wanted, health=None)
        async with plant.running() as worker:
            if resident == 1000:  # without one more reading
                assert len(await closings(plant)) == len(opened)
            await plant.publish(messages[before:])
            await plant.reached(worker, len(messages))
        for _ in range(2):
            async with plant.running():
                pass
        closed = await closings(plant)
        assert len(closed) == len(opened) > 0
        for alert, began in zip(closed, opened, strict=True):
            assert (alert.id, alert.type, alert.machine) == (began.id, began.type, began.machine)
            assert (alert.severity, alert.sequence, alert.first_seen) == (
                began.severity,
                1,
                began.first_seen,
            )
            why = f'Closed because "health" no longer watches {alert.machine}: the topology was changed.'
            assert alert.reason == why
        for kind in {alert.type for alert in opened}:
            assert plant.value("mmlw_health_alerts_total", type=kind, event="closed") > 0

    run(story())


async def closings(plant: Plant) -> list[Alert]:
    """What closed of health, by the order in which it began; told once each."""
    found = [msgspec.json.decode(item.body, type=Alert) for item in await plant.kept("mmlw.alerts")]
    closed = {alert.id: alert for alert in found if (alert.detector, alert.event) == ("health", "closed")}
    assert len(closed) == sum((a.detector, a.event) == ("health", "closed") for a in found)
    return [closed[a.id] for a in found if a.event == "opened" and a.id in closed]

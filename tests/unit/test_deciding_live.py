"""Calibrated detectors that decide together, in a running worker: over stops, backtest as live."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest

from detectors import AdaptiveZ, HalfSpaceTrees
from detectors.calibration import Calibration
from stream.backtest import backtest, fresh_scorer
from stream.brokers.base import Message
from stream.histories import read_history
from stream.rules import AlertRule, Combination
from stream.topology import Sensor, Source, Topology
from tests.aio import run
from tests.plant import Plant

START = 1_722_988_800.0
N = 900


def topology(**settings: object) -> Topology:
    return msgspec.structs.replace(
        Topology(
            name="plant",
            source=Source(sensors=(Sensor("a"), Sensor("b"))),
            detectors={
                "z": AdaptiveZ(warmup=20, half_life=50),
                "trees": HalfSpaceTrees(n_trees=5, window_size=50),
            },
            calibration=Calibration(warmup=60),
            combine=Combination(),
            alert=AlertRule(probability=3e-3, close_after=2),
        ),
        **settings,
    )


def values() -> np.ndarray:
    rng = np.random.default_rng(0)
    found = rng.normal([10.0, 5.0], [0.1, 0.1], (N, 2))
    for start in (300, 500, 700):
        found[start : start + 12] += 2.0
    return found


def messages(machine: str = "m1") -> list[Message]:
    return [
        Message(
            exchange="mmlw.sensors",
            routing_key=f"sensor.{machine}.readings",
            body=msgspec.json.encode({"time": START + 60.0 * i, "values": {"a": float(a), "b": float(b)}}),
        )
        for i, (a, b) in enumerate(values())
    ]


async def lived(plant: Plant, parts: int = 1) -> Plant:
    await plant.declare()
    sent = messages()
    for part in np.array_split(np.arange(N), parts):
        await plant.publish([sent[i] for i in part])
        await plant.process(int(part[-1]) + 1)
    return plant


def test_stops_change_nothing_and_metrics_count_what_decides(tmp_path: Path) -> None:
    async def story() -> None:
        whole = await lived(Plant(tmp_path / "whole", topology()))
        parted = await lived(Plant(tmp_path / "parted", topology()), parts=7)
        alerts = await whole.alerts()
        assert await parted.alerts() == alerts
        opened = [alert for alert in alerts if alert.event == "opened"]
        assert {alert.detector for alert in alerts} == {"combined"}
        assert {alert.position.offset for alert in opened} >= {300, 500, 700}
        assert all(alert.probability is not None and alert.probability <= 3e-3 for alert in opened)
        for detector in ("z", "trees", "combined"):
            assert whole.value("mmlw_readings_scored_total", detector=detector) == N
        assert whole.value("mmlw_alerts_total", detector="combined", event="opened") == len(opened)
        assert whole.value("mmlw_machine_days_total") == pytest.approx(N / 1440, rel=0.02)

    run(story())


def test_backtest_opens_the_alerts_that_live_opened(tmp_path: Path) -> None:
    times = pd.to_datetime(START + 60.0 * np.arange(N), unit="s")
    frame = pd.DataFrame(values(), columns=["a", "b"])
    frame.insert(0, "time", times)
    frame.to_csv(tmp_path / "m1.csv", index=False, float_format="%.17g")
    for settings in ({}, {"combine": None}):
        live = Plant(tmp_path / f"live{len(settings)}", topology(**settings))
        run(lived(live))
        past = backtest(fresh_scorer(live.topology), read_history(tmp_path / "m1.csv", live.topology))
        seen: list[object] = []

        async def alerts(plant: Plant = live, seen: list[object] = seen) -> None:
            seen += await plant.alerts()

        run(alerts())
        assert past.alerts == seen
        assert len(seen) >= 6


def test_an_operator_s_word_reaches_the_stream(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology(calibration=None, combine=None, alert=AlertRule(close_after=2)))
        await plant.declare()
        rows = values()
        rows[300:] += 3.0
        sent = [
            msgspec.structs.replace(
                message,
                body=msgspec.json.encode(
                    {"time": START + 60.0 * i, "values": dict(zip("ab", rows[i].tolist(), strict=True))}
                ),
            )
            for i, message in enumerate(messages())
        ]
        async with plant.running() as worker:
            await plant.publish(sent[:400])
            await plant.reached(worker, 400)
            status = await plant.ask("status")
            assert status["alerts_open"]["z"] == 1
            receipt = await plant.ask("accept", machine="m1", detector="z")
            assert (receipt["status"], receipt["machine"]) == ("applied", "m1")
            await plant.publish(sent[400:])
            await plant.reached(worker, N)
            assert (await plant.ask("status"))["alerts_open"]["z"] == 0
        assert [a.event for a in await plant.alerts() if a.detector == "z"][-1] == "closed"

    run(story())

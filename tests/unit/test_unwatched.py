"""An alert that is open when its detector stops watching the machine is closed, exactly once, with the reason."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pytest

from detectors import AdaptiveZ
from detectors.calibration import Calibration
from stream.alerts import Alert
from stream.brokers.base import Message
from stream.capture_files import parts
from stream.capture_rule import CaptureRule
from stream.engine import Engine
from stream.errors import BrokerUnreachable
from stream.rules import COMBINED, AlertRule, Combination
from stream.topology import CheckpointRule, RegistryModel, Sensor, Source, Topology
from tests.aio import run
from tests.plant import START, Plant, ScaleShelf

SPIKE = AdaptiveZ(warmup=10, half_life=50)
SCALE = RegistryModel(model="models:/scale@champion")
CLOSED = 'Closed because "{}" no longer watches {}: {}.'
REMOVED, NARROWED = "the topology was changed", 'its "machines" were changed'


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.engine._IDLE", 0.01)


def topology(detectors: dict[str, Any], *, resident: int = 1000, **rest: Any) -> Topology:
    return Topology(
        name="plant",
        source=Source(
            sensors=(Sensor("a"), Sensor("b")), linger=0.0, max_batch=1, resident_machines=resident
        ),
        detectors=detectors,
        alert=AlertRule(close_after=3),
        checkpoint=CheckpointRule(every=0.0),
        **rest,
    )


def bound(recipe: Any, *machines: str) -> Any:
    return msgspec.structs.replace(recipe, machines=machines)


class Faulty:
    """A plant whose machines have one fault, all of them, and do not calm down."""

    def __init__(self, folder: Path, detectors: dict[str, Any], *machines: str, **rest: Any) -> None:
        self.plant = Plant(folder, topology(detectors, **rest), shelf=ScaleShelf())
        self.machines, self.rest, self.count = machines, rest, 0

    async def fault(self) -> list[Alert]:
        """Calm, then a fault at the end; the alerts that are open then."""
        await self.plant.declare()
        async with self.plant.running() as worker:
            await self.send(worker, *[(-1.0) ** i for i in range(20)], 15.0, 15.0)
        return await self.plant.alerts()

    async def send(self, worker: Any, *values: float) -> None:
        messages = []
        for value in values:
            for machine in self.machines:
                body = {"machine": machine, "time": START + self.count, "values": {"a": value, "b": 0.0}}
                key = f"sensor.{machine}.readings"
                messages.append(
                    Message(exchange="mmlw.sensors", routing_key=key, body=msgspec.json.encode(body))
                )
                self.count += 1
        await self.plant.publish(messages)
        await self.plant.reached(worker, self.count)

    def change(self, detectors: dict[str, Any], **rest: Any) -> None:
        self.plant.topology = topology(detectors, **{**self.rest, **rest})

    async def closed(self) -> dict[tuple[str, str], Alert]:
        """What closed, by detector and machine; each was told once, not only each id."""
        kept = [
            msgspec.json.decode(delivery.body, type=Alert)
            for delivery in await self.plant.kept("mmlw.alerts")
        ]
        found = {(a.detector, a.machine): a for a in kept if a.event == "closed"}
        assert Counter(a.event for a in kept)["closed"] == len(found)
        return found


def test_narrowed_removed_and_renamed_detectors_close_what_they_have_open(tmp_path: Path) -> None:
    async def story() -> None:
        faulty = Faulty(tmp_path, {"spike": SPIKE, "scale": SCALE, "old": SPIKE}, "m1", "m2")
        opened = {(a.detector, a.machine): a for a in await faulty.fault() if a.event == "opened"}
        assert len(opened) == 6
        faulty.change({"spike": bound(SPIKE, "m2"), "new": SPIKE})
        async with faulty.plant.running() as worker:
            closed = await faulty.closed()  # without one more reading
            reasons = {
                ("spike", "m1"): NARROWED,
                **dict.fromkeys([("scale", "m1"), ("scale", "m2"), ("old", "m1"), ("old", "m2")], REMOVED),
            }
            assert faulty.plant.value("mmlw_alerts_open", detector="spike") == 1
            assert {key: a.reason for key, a in closed.items()} == {
                key: CLOSED.format(*key, why) for key, why in reasons.items()
            }
            for key, alert in closed.items():
                began = opened[key]
                assert (alert.id, alert.sequence, alert.severity) == (began.id, 1, began.severity)
                assert (alert.model, alert.threshold) == (began.model, began.threshold)
                assert alert.window.values["a"][-2:] == [15.0, 15.0]
            await faulty.send(worker, *[0.0] * 6)
        assert set(await faulty.closed()) == {*reasons, ("spike", "m2")}, "what goes on closes as ever"
        for _ in range(2):
            async with faulty.plant.running():
                pass
        assert set(await faulty.closed()) == {*reasons, ("spike", "m2")}, "and that is all"
        assert faulty.plant.value("mmlw_alerts_total", detector="spike", event="closed") == 2

    run(story())


def test_an_update_before_counts_in_the_number_of_the_closing_event(tmp_path: Path) -> None:
    async def story() -> None:
        faulty = Faulty(tmp_path, {"scale": SCALE}, "m1")
        await faulty.fault()
        async with faulty.plant.running() as worker:
            await faulty.send(worker, 25.0)
        faulty.change({"scale": bound(SCALE, "m7")})
        async with faulty.plant.running():
            pass
        told = [(a.event, a.sequence, a.severity) for a in await faulty.plant.alerts()]
        assert told == [("opened", 0, "warning"), ("updated", 1, "critical"), ("closed", 2, "critical")]

    run(story())


def test_detectors_that_decide_together_from_now_on_end_what_each_had_open(tmp_path: Path) -> None:
    async def story() -> None:
        faulty = Faulty(tmp_path, {"spike": SPIKE, "scale": SCALE}, "m1")
        await faulty.fault()
        together = {"combine": Combination(), "calibration": Calibration()}
        faulty.change({"spike": SPIKE, "scale": SCALE}, **together)
        async with faulty.plant.running():
            assert faulty.plant.value("mmlw_alerts_open", detector=COMBINED) == 0
        assert set(await faulty.closed()) == {("spike", "m1"), ("scale", "m1")}

    run(story())


def test_machines_that_wait_in_the_checkpoint_are_not_forgotten(tmp_path: Path) -> None:
    async def story() -> None:
        machines = ("m1", "m2", "m3", "m4")
        faulty = Faulty(tmp_path, {"spike": SPIKE}, *machines)
        await faulty.fault()
        faulty.change({"other": SPIKE}, resident=1)
        async with faulty.plant.running() as worker:
            assert set(await faulty.closed()) == {("spike", machine) for machine in machines}
            await faulty.send(worker, *[0.0] * 3)
        assert len(await faulty.closed()) == 4

    run(story())


def test_an_alert_that_no_list_knows_is_closed_when_its_machine_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those have it that opened long ago, or under a version that kept no list."""
    monkeypatch.setattr("stream.feedback._KEPT", 0)

    async def story() -> None:
        faulty = Faulty(tmp_path, {"spike": SPIKE}, "m1", "m2")
        await faulty.fault()
        faulty.change({"other": SPIKE}, resident=1)
        async with faulty.plant.running() as worker:
            assert set(await faulty.closed()) == {("spike", "m2")}, "the machine seen last is in memory"
            await faulty.send(worker, 0.0)
        assert set(await faulty.closed()) == {("spike", "m1"), ("spike", "m2")}

    run(story())


@pytest.mark.parametrize("after", ["commit", "publish"])
def test_a_kill_on_the_way_tells_it_again_under_the_same_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    tell = Engine._tell
    cut: list[int] = []

    async def cut_once(engine: Engine) -> None:
        if cut or not engine.scorer.beside.feedback.untold:
            await tell(engine)
            return
        cut.append(1)
        if after == "publish":
            await tell(engine)
        raise BrokerUnreachable("cut")

    async def story() -> None:
        faulty = Faulty(tmp_path, {"spike": SPIKE}, "m1")
        await faulty.fault()
        faulty.change({"spike": bound(SPIKE, "m9")})
        monkeypatch.setattr(Engine, "_tell", cut_once)
        with pytest.raises(ExceptionGroup):
            async with faulty.plant.running():
                pass
        for _ in range(2):
            async with faulty.plant.running():
                pass
        assert cut == [1]
        assert [a.event for a in await faulty.plant.alerts()] == ["opened", "closed"]

    run(story())


def test_a_label_of_an_alert_whose_detector_is_gone_closes_nothing_twice(tmp_path: Path) -> None:
    async def story() -> None:
        faulty = Faulty(tmp_path, {"spike": SPIKE}, "m1")
        [opened] = await faulty.fault()
        faulty.change({"other": SPIKE})
        async with faulty.plant.running():
            receipt = await faulty.plant.ask("label", alert=opened.id, label="false")
            assert (receipt["status"], receipt["closed"]) == ("applied", 0)
        assert len(await faulty.closed()) == 1

    run(story())


def test_a_capture_knows_that_such_an_alert_is_closed(tmp_path: Path) -> None:
    async def story() -> None:
        faulty = Faulty(tmp_path, {"spike": SPIKE}, "m1", capture=CaptureRule())
        await faulty.fault()
        faulty.change({"spike": bound(SPIKE, "m9")})
        async with faulty.plant.running() as worker:
            await faulty.send(worker, 15.0)

    run(story())
    frames = [pd.read_parquet(part.path) for part in parts(tmp_path / "capture" / "plant")]
    [column] = [name for name in frames[0].columns if name.startswith("alert")]
    assert pd.concat(frames)[column].tolist()[-3:] == [True, True, False]

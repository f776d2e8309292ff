"""Operators' words on alerts, on the embedded broker: joined by id, closing what is open, kept over kills."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from detectors import AdaptiveZ
from stream.alerts import Alert
from stream.brokers.base import Message
from stream.capture_files import parts
from stream.capture_rule import CaptureRule
from stream.checkpoint import Checkpoint
from stream.commands import Asked
from stream.engine import Engine
from stream.errors import BrokerUnreachable
from stream.feedback import Feedback
from stream.rules import AlertRule
from stream.topology import CheckpointRule, RegistryModel, Sensor, Source, Topology
from stream.training_data import kept_rows
from tests.aio import run
from tests.plant import START, Plant, ScaleShelf


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.engine._IDLE", 0.01)
    monkeypatch.setattr("stream.retrainer._LOOK", 0.01)


def topology(**rest: Any) -> Topology:
    return Topology(
        name="plant",
        source=Source(sensors=(Sensor("a"), Sensor("b")), linger=0.0),
        detectors={
            "spike": AdaptiveZ(warmup=10, half_life=50),
            "scale": RegistryModel(model="models:/scale@champion"),
        },
        alert=AlertRule(close_after=3),
        checkpoint=CheckpointRule(every=0.0),
        **rest,
    )


class Machine:
    """Sends one value after the other."""

    def __init__(self, plant: Plant, name: str = "m1") -> None:
        self.plant, self.name, self.count = plant, name, 0

    async def send(self, worker: Any, *values: float) -> None:
        messages = []
        for value in values:
            body = {"machine": self.name, "time": START + self.count, "values": {"a": value, "b": 0.0}}
            self.count += 1
            key = f"sensor.{self.name}.readings"
            messages.append(Message(exchange="mmlw.sensors", routing_key=key, body=json.dumps(body).encode()))
        await self.plant.publish(messages)
        await self.plant.reached(worker, self.count)


def calm(n: int) -> list[float]:
    return [(-1.0) ** i for i in range(n)]


def of(alerts: list[Alert], detector: str) -> list[str]:
    return [alert.event for alert in alerts if alert.detector == detector]


def test_an_alert_said_to_be_false_is_closed_once_and_is_silent_until_it_has_calmed_down(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology(), shelf=ScaleShelf())
        machine = Machine(plant)
        await plant.declare()
        async with plant.running() as worker:
            await machine.send(worker, *calm(20), 15.0, 15.0)
            [opened] = [a for a in await plant.alerts() if a.detector == "scale"]
            receipt = await plant.ask("label", alert=opened.id, label="false")
            assert (receipt["status"], receipt["closed"], receipt["learn"]) == ("applied", 1, False)
            closed = [a for a in await plant.alerts() if a.detector == "scale"][-1]
            assert (closed.id, closed.event, closed.sequence) == (opened.id, "closed", 1)
            assert closed.reason == "Closed by an operator: this was normal, and is not learned."
            assert closed.window.values["a"][-1] == 15.0
            assert (closed.threshold, closed.position) == (opened.threshold, opened.position)
            await machine.send(worker, 15.0, 16.0, 15.0)
            assert of(await plant.alerts(), "scale") == ["opened", "closed"], "the same again"
            await machine.send(worker, *calm(4), 15.0)
            assert of(await plant.alerts(), "scale") == ["opened", "closed", "opened"], "it had calmed down"
            repeated = await plant.ask("label", alert=opened.id, label="false", learn=True)
            assert (repeated["status"], repeated["closed"]) == ("applied", 0)
            status = await plant.ask("status")
            assert status["labels"]["false"] == 1
            assert status["labels"]["latest"][-1]["learned"] is True
            lines = [line for line in (await plant.ask("audit"))["audit"] if line["verb"] == "label"]
            assert [line["status"] for line in lines] == ["applied", "applied"]
        assert plant.value("mmlw_labels_total", label="false") == 2
        assert plant.value("mmlw_alerts_total", detector="scale", event="closed") == 1

    run(story())


def test_what_is_worse_than_what_was_closed_opens_all_the_same(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology(), shelf=ScaleShelf())
        machine = Machine(plant)
        await plant.declare()
        async with plant.running() as worker:
            await machine.send(worker, *calm(20), 15.0, 15.0)
            assert (await plant.ask("label", machine="m1", detector="scale", label="false"))["closed"] == 1
            await machine.send(worker, 25.0)
            told = [a for a in await plant.alerts() if a.detector == "scale"]
            assert [(a.event, a.severity) for a in told][-1] == ("opened", "critical")

    run(story())


@pytest.mark.parametrize("learn", [True, False])
def test_what_is_to_be_learned_is_learned_and_what_is_not_is_held_back(tmp_path: Path, learn: bool) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology(), shelf=ScaleShelf())
        machine = Machine(plant)
        await plant.declare()
        async with plant.running() as worker:
            await machine.send(worker, *calm(20), 30.0, 30.0)
            before = plant.scored[-1].scores["spike"][-1]
            receipt = await plant.ask("label", machine="m1", detector="spike", label="false", learn=learn)
            assert (receipt["closed"], receipt["learn"]) == (1, learn)
            await machine.send(worker, *[30.0] * 30)
            after = plant.scored[-1].scores["spike"][-1]
        assert (after < before / 4) if learn else (after == before), (before, after)

    run(story())


def left_out(tmp_path: Path, count: int) -> list[int]:
    """Which of a machine's readings a training leaves out, as the checkpoint has it."""
    checkpoint = Checkpoint(next(tmp_path.glob("**/plant.checkpoint")), "plant", None)
    feedback = Feedback()
    feedback.restore(checkpoint.load().models)
    checkpoint.close()
    kept = kept_rows(["m1"] * count, START + np.arange(count, dtype=np.float64), feedback.marked())
    return sorted(set(range(count)) - set(kept.tolist()))


@pytest.mark.parametrize("said", ["false", "true"])
def test_what_was_to_be_learned_and_is_not_after_all_is_held_back_from_there_on(
    tmp_path: Path, said: str
) -> None:
    """Also over restarts; what was learned in between stays learned, and no training takes it."""

    async def story() -> int:
        plant = Plant(tmp_path, topology(), shelf=ScaleShelf())
        machine = Machine(plant)
        await plant.declare()
        async with plant.running() as worker:
            await machine.send(worker, *calm(20), 30.0, 30.0)
            [opened] = [a for a in await plant.alerts() if a.detector == "spike"]
            learned = await plant.ask("label", alert=opened.id, label="false", learn=True)
            assert (learned["closed"], learned["corrected"]) == (1, 0)
            await machine.send(worker, 30.0, 30.0)
            between = plant.scored[-1].scores["spike"][-1]
        async with plant.running() as worker:
            corrected = await plant.ask("label", alert=opened.id, label=said)
            assert (corrected["closed"], corrected["corrected"]) == (0, 1)
            again = await plant.ask("label", alert=opened.id, label=said)
            assert again["corrected"] == 0, "that is how it is already"
            await machine.send(worker, 30.0)
            before = plant.scored[-1].scores["spike"][-1]
            assert before < between, "what was learned stays learned"
        async with plant.running() as worker:
            await machine.send(worker, *[30.0] * 10)
            assert plant.scored[-1].scores["spike"][-1] == before
            assert of(await plant.alerts(), "spike") == ["opened", "closed"]
            await machine.send(worker, *calm(6))
        return machine.count

    count = run(story())
    assert left_out(tmp_path, count) == list(range(20, 38)), "from its first reading until it has calmed down"


def test_what_was_not_to_be_learned_and_is_after_all_is_learned_from_there_on(tmp_path: Path) -> None:
    async def story() -> int:
        plant = Plant(tmp_path, topology(), shelf=ScaleShelf())
        machine = Machine(plant)
        await plant.declare()
        async with plant.running() as worker:
            await machine.send(worker, *calm(20), 30.0, 30.0)
            [opened] = [a for a in await plant.alerts() if a.detector == "spike"]
            await plant.ask("label", alert=opened.id, label="false")
            await machine.send(worker, *[30.0] * 10)
            before = plant.scored[-1].scores["spike"][-1]
            receipt = await plant.ask("label", alert=opened.id, label="false", learn=True)
            assert (receipt["closed"], receipt["corrected"]) == (0, 1)
            await machine.send(worker, *[30.0] * 30)
            assert plant.scored[-1].scores["spike"][-1] < before / 4
        return machine.count

    assert left_out(tmp_path, run(story())) == []


def test_a_word_that_comes_when_all_is_over_changes_trainings_alone(tmp_path: Path) -> None:
    async def story() -> int:
        plant = Plant(tmp_path, topology(), shelf=ScaleShelf())
        machine = Machine(plant)
        await plant.declare()
        async with plant.running() as worker:
            await machine.send(worker, *calm(20), 30.0, 30.0, *calm(6))
            [alert] = [a for a in await plant.alerts() if (a.detector, a.event) == ("spike", "opened")]
            for said in ({"label": "false", "learn": True}, {"label": "true"}):
                receipt = await plant.ask("label", alert=alert.id, **said)
                assert (receipt["status"], receipt["closed"], receipt["corrected"]) == ("applied", 0, 0)
            await machine.send(worker, 30.0, 30.0)
            later = [a for a in await plant.alerts() if a.detector == "spike"][-1]
            assert later.event == "opened"
            await plant.ask("label", alert=later.id, label="false", learn=True)
            other = await plant.ask("label", alert=alert.id, label="true")
            assert other["corrected"] == 0, "what lasts is of another alert"
        return machine.count

    assert left_out(tmp_path, run(story())) == list(range(20, 25))


def test_a_fault_that_was_accepted_is_not_learned_once_it_is_called_one(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology(), shelf=ScaleShelf())
        machine = Machine(plant)
        await plant.declare()
        async with plant.running() as worker:
            await machine.send(worker, *calm(20), 30.0)
            await plant.ask("accept", machine="m1", detector="spike")
            await machine.send(worker, 30.0)
            receipt = await plant.ask("label", machine="m1", detector="spike", label="true")
            assert (receipt["closed"], receipt["corrected"]) == (0, 1)
            await machine.send(worker, 30.0)
            before = plant.scored[-1].scores["spike"][-1]
            await machine.send(worker, *[30.0] * 10)
            assert plant.scored[-1].scores["spike"][-1] == before
            assert of(await plant.alerts(), "spike") == ["opened"]

    run(story())


def test_labels_and_what_was_closed_survive_a_restart(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology(), shelf=ScaleShelf())
        machine = Machine(plant)
        await plant.declare()
        async with plant.running() as worker:
            await machine.send(worker, *calm(20), 15.0, 15.0)
            alerts = [a for a in await plant.alerts() if a.detector == "scale"]
        async with plant.running() as worker:
            receipt = await plant.ask("label", alert=alerts[0].id, label="false")
            assert receipt["closed"] == 1, "the alert is known, and still open"
            window = {"from": "2024-08-07T00:00:00Z", "to": "2024-08-07T00:00:05Z"}
            marked = await plant.ask("label", machine="m1", label="anomaly", **window)
            assert marked["status"] == "applied"
        async with plant.running() as worker:
            await machine.send(worker, 15.0)
            assert of(await plant.alerts(), "scale") == ["opened", "closed"], "silent as before"
            labels = (await plant.ask("status"))["labels"]
            assert (labels["false"], labels["anomaly"]) == (1, 1)
            assert plant.value("mmlw_label_quality", detector="scale", metric="precision") == 0.0

    run(story())


@pytest.mark.parametrize("via", ["broker", "http"])
def test_a_kill_between_the_commit_and_the_event_tells_it_after_the_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, via: str
) -> None:
    """A command over the broker comes again; one over HTTP does not."""
    tell = Engine._tell
    cut: list[int] = []

    async def cut_once(engine: Engine) -> None:
        if engine.scorer.beside.feedback.untold and not cut:
            cut.append(1)
            raise BrokerUnreachable("cut")
        await tell(engine)

    monkeypatch.setattr(Engine, "_tell", cut_once)

    async def story() -> None:
        plant = Plant(tmp_path, topology(), shelf=ScaleShelf())
        machine = Machine(plant)
        await plant.declare()
        async with plant.running() as worker:
            await machine.send(worker, *calm(20), 15.0, 15.0)
            said = {"machine": "m1", "detector": "scale", "label": "false"}
            if via == "broker":
                receipt = await plant.ask("label", **said)
                assert (receipt["status"], receipt["duplicate"]) == ("applied", True), (
                    "carried out before the cut"
                )
            else:
                control = worker.control("plant")
                assert control is not None
                asked = Asked("label", json.dumps(said).encode(), "http", "http", "h1")
                assert await control.ask(asked) is None
            await machine.send(worker, 15.0)
            assert cut == [1]
            assert of(await plant.alerts(), "scale") == ["opened", "closed"]

    run(story())


def test_a_capture_knows_that_an_operator_closed_an_alert(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology(capture=CaptureRule()), shelf=ScaleShelf())
        machine = Machine(plant)
        await plant.declare()
        async with plant.running() as worker:
            await machine.send(worker, *calm(20), 15.0, 15.0)
            await plant.ask("label", machine="m1", detector="scale", label="false")
            await machine.send(worker, 15.0)

    run(story())
    [part] = parts(tmp_path / "capture" / "plant")
    frame = pd.read_parquet(part.path)
    [column] = [name for name in frame.columns if name.startswith("alert") and "scale" in name]
    assert frame[column].tolist()[-3:] == [True, True, False]


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("nothing said", {}, 'needs either "alert", its id, or "machine"'),
    ("both", {"alert": "x", "machine": "m1", "label": "true"}, "needs either"),
    ("no label", {"alert": "x"}, '"label" of an alert is true or false'),
    ("no such label", {"alert": "x", "label": "fals"}, 'Did you mean "false"'),
    ("a time's label", {"alert": "x", "label": "normal"}, '"label" of an alert is true or false'),
    ("an alert's label", {"machine": "m1", "from": 0, "to": 1, "label": "true"}, "is anomaly or normal"),
    (
        "unknown alert",
        {"alert": "x" * 40, "label": "true"},
        'no alert "x+" is known here, or it is too long ago',
    ),
    ("nothing open", {"machine": "m2", "label": "false"}, '"m2" has no open alert'),
    ("unknown detector", {"machine": "m1", "detector": "spik", "label": "false"}, 'Did you mean "spike"'),
    ("half a time", {"machine": "m1", "from": 0, "label": "normal"}, 'needs both "from" and "to"'),
    (
        "no time",
        {"machine": "m1", "from": "soon", "to": 1, "label": "normal"},
        "soon is not an RFC 3339 time",
    ),
    ("backwards", {"machine": "m1", "from": 5, "to": 1, "label": "normal"}, '"to" is before "from"'),
    ("a time of an alert", {"alert": "x", "from": 0, "to": 1, "label": "normal"}, 'go with "machine" alone'),
    ("unknown machine", {"machine": "m9", "from": 0, "to": 1, "label": "normal"}, 'no machine "m9" is known'),
    ("learns a fault", {"alert": "x", "label": "true", "learn": True}, '"learn" belongs to the label false'),
    ("a field of others", {"alert": "x", "label": "true", "model": "models:/x/1"}, 'label takes no "model"'),
]


@pytest.mark.parametrize(("arguments", "told"), [item[1:] for item in BAD], ids=[item[0] for item in BAD])
def test_a_label_that_says_nothing_is_refused_with_the_reason(
    tmp_path: Path, arguments: dict[str, Any], told: str
) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology(), shelf=ScaleShelf())
        machine = Machine(plant)
        await plant.declare()
        async with plant.running() as worker:
            await machine.send(worker, *calm(20), 15.0)
            receipt = await plant.ask("label", **arguments)
            assert receipt["status"] == "refused"
            assert re.search(told, receipt["reason"]), receipt["reason"]
            stranger = await plant.ask("label", user="mallory", machine="m1", label="false")
            assert "list of operators" in stranger["reason"]
            other = await plant.ask("pause", alert="x")
            assert other["reason"] == 'pause takes no "alert"'
            assert "closed" not in of(await plant.alerts(), "scale")
            assert (await plant.ask("status"))["labels"]["latest"] == []

    run(story())


def test_what_is_not_to_be_learned_is_left_out_of_trainings_until_it_has_calmed_down(tmp_path: Path) -> None:
    """Also what comes of the same episode after the operator's word, and over a restart."""
    count = 0

    def kept() -> list[int]:
        checkpoint = Checkpoint(next(tmp_path.glob("**/plant.checkpoint")), "plant", None)
        feedback = Feedback()
        feedback.restore(checkpoint.load().models)
        checkpoint.close()
        times = START + np.arange(count, dtype=np.float64)
        rows: list[int] = kept_rows(["m1"] * count, times, feedback.marked()).tolist()
        return rows

    async def story() -> None:
        nonlocal count
        plant = Plant(tmp_path, topology(), shelf=ScaleShelf())
        machine = Machine(plant)
        await plant.declare()
        async with plant.running() as worker:
            await machine.send(worker, *calm(20), 15.0, 15.0)
            await plant.ask("label", machine="m1", detector="scale", label="false")
            await machine.send(worker, 15.0, 15.0)
        count = machine.count
        assert kept() == list(range(20)), "it lasts"
        async with plant.running() as worker:
            await machine.send(worker, 15.0, *calm(6))
        count = machine.count
        assert kept() == [*range(20), *range(28, 31)], "three calm readings end it, as they would an alert"
        async with plant.running() as worker:
            await machine.send(worker, 15.0, *calm(2))
            await plant.ask("label", machine="m1", detector="scale", label="false")
            await machine.send(worker, 25.0, *calm(6))
        count = machine.count
        assert kept() == [*range(20), *range(28, 31), *range(35, 41)], (
            "worse is another alert, of which nobody spoke"
        )

    run(story())

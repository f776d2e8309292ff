"""Models trained anew by rule: by drift, by labels, by schedule; a challenger, then a shadow, then the gate."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import msgspec
import numpy as np
import pytest

from stream.brokers.base import Message
from stream.brokers.memory import MemoryBroker
from stream.checkpoint import Checkpoint
from stream.clock import Clock
from stream.gates import PromoteWhen
from stream.models import Registry
from stream.retrain_rule import Drift, Quality, Retrain
from stream.rules import AlertRule
from stream.runtimes.local import Worker
from stream.scorer import Scorer
from stream.shelf import Shelf
from stream.topology import Topology
from stream.trainer import Trainer
from stream.training import train_detector
from stream.training_data import frame_table
from tests.aio import run
from tests.integration.test_training import Shop, frame, trainable
from tests.plant import START, ScaleShelf, readings

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.engine._IDLE", 0.01)
    monkeypatch.setattr("stream.retrainer._LOOK", 0.05)


@pytest.fixture
def local(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/registry.db"


@dataclass
class Timed(Shop):
    """Its worker's clock is ahead by as much as a test says."""

    ahead: float = 0.0

    def worker(self) -> Worker:
        def connect() -> MemoryBroker:
            return MemoryBroker(self.server, user="worker")

        self.trainer = Trainer(self.registry, (self.data / "capture", self.data), connect)
        return Worker(
            (self.topology,),
            connect=connect,
            data=self.data,
            shelf=self.shelf,
            metrics=self.metrics,
            clock=Clock(lambda: time.time() + self.ahead, time.monotonic),
            trainer=self.trainer,
        )

    async def until(self, **metric: str) -> None:
        """Wait for a result of `mmlw_retrain_results_total`, or a trigger's outcome."""
        name = "mmlw_retrain_triggers_total" if "trigger" in metric else "mmlw_retrain_results_total"
        while not self.value(name, detector="scale", **metric):  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    def audited(self, verb: str) -> list[dict[str, Any]]:
        """Lines of the audit, while no worker runs."""
        checkpoint = Checkpoint(self.data / "plant.checkpoint", "plant", Scorer.recipes(self.topology))
        try:
            return [line for line in checkpoint.audit() if line["verb"] == verb]
        finally:
            checkpoint.close()


def retrained(**rule: Any) -> Topology:
    whole = trainable()
    promote_when = rule.pop("promote_when", None)
    spec = msgspec.structs.replace(
        whole.registry_models["scale"], retrain=Retrain(**rule), promote_when=promote_when
    )
    detectors = {**whole.detectors, "scale": spec}
    return msgspec.structs.replace(whole, detectors=detectors, alert=AlertRule(hold=50, close_after=5))


def values(n: int, start: int, level: float, seed: int = 0) -> list[Message]:
    rng = np.random.default_rng(seed + start)
    found = []
    for i in range(start, start + n):
        machine = f"m{i % 2}"
        body = {
            "machine": machine,
            "time": START + 60.0 * i,
            "values": {"a": level + rng.normal(), "b": rng.normal()},
        }
        key = f"sensor.{machine}.readings"
        found.append(Message(exchange="mmlw.sensors", routing_key=key, body=json.dumps(body).encode()))
    return found


def test_a_drift_trains_a_challenger_that_goes_through_shadow_and_gate(tmp_path: Path, local: str) -> None:
    async def story() -> None:
        wanted = retrained(
            drift=Drift(of="inputs", every=1),
            over=7200.0,
            promote_when=PromoteWhen(readings=100, alerts="<= 2"),
        )
        models = Registry(local)
        first = train_detector(
            wanted, "scale", frame_table("may", frame(400), wanted), models, alias="champion"
        )
        plant = Timed(tmp_path / "data", wanted, shelf=Shelf(models, tmp_path / "models"), registry=local)
        await plant.declare()
        async with plant.running() as worker:
            await plant.publish(values(600, 0, 0.0))
            await plant.reached(worker, 600)
            assert (await plant.ask("status"))["retrain"]["scale"]["pending"] == {}
            await plant.publish(values(200, 600, 3.0))
            await plant.reached(worker, 800)
            await plant.until(outcome="shadowed")
            status = await plant.ask("status")
            assert status["models"]["scale"]["version"] == str(first.ref.version) == "1", "not to production"
            assert status["shadows"]["scale"]["model"]["version"] == "2"
            assert models.resolve("models:/pump@challenger").version == 2
            assert models.resolve("models:/pump@champion").version == 1
            told = status["retrain"]["scale"]
            assert (told["last"]["outcome"], told["last"]["version"], told["shadow"]) == ("trained", "2", "2")
        async with plant.running() as worker:  # the shadow goes on
            await plant.publish(values(120, 800, 3.0))
            await plant.reached(worker, 920)
            await plant.until(outcome="promoted")
            assert (await plant.ask("status"))["models"]["scale"]["version"] == "2"
        assert models.resolve("models:/pump@champion").version == 2
        tags = {version.version: version.tags for version in models.versions("pump")}
        metrics = mlflow.MlflowClient(local, local)
        run_id = next(v.run_id for v in models.versions("pump") if str(v.version) == "2")
        rows = metrics.get_run(run_id).data.metrics["rows"]
        # The inputs drift from reading 600 on: two hours before the trigger, and all that was published since.
        assert 120 <= rows <= 120 + 800 - 600, rows
        assert tags
        [train], [begun] = plant.audited("train")[1:], plant.audited("train")[:1]
        assert (begun["by"], begun["status"], train["status"]) == ("retrain", "running", "applied")
        assert begun["reason"].startswith("drift: the inputs of m")
        assert [line["by"] for line in (*plant.audited("shadow"), *plant.audited("promote"))] == [
            "retrain"
        ] * 2
        assert (
            plant.value("mmlw_retrain_triggers_total", detector="scale", trigger="drift", outcome="started")
            == 1
        )
        assert plant.value("mmlw_retrain_timestamp_seconds", detector="scale") > 0

    run(story())


def test_labels_that_come_late_train_and_leave_out_what_was_a_fault(tmp_path: Path, local: str) -> None:
    async def story() -> None:
        quality = Quality(window=7200.0, metric="precision", threshold=0.5, labels=3)
        wanted = msgspec.structs.replace(
            retrained(quality=quality, min_interval=3600.0), alert=AlertRule(close_after=2)
        )
        plant = Timed(tmp_path / "data", wanted, shelf=Pump(), registry=local)
        await plant.declare()
        await plant.publish(readings(400))
        async with plant.running() as worker:
            await plant.reached(worker, 400)
            alerts = [a for a in await plant.alerts() if (a.detector, a.event) == ("scale", "closed")]
            assert len(alerts) >= 4
            await plant.ask("label", alert=alerts[0].id, label="true")
            await plant.ask("label", alert=alerts[1].id, label="false", learn=True)
            window: dict[str, Any] = {"from": START + 300.0, "to": START + 350.0}
            await plant.ask("label", machine="m0", label="anomaly", **window)
            assert (await plant.ask("status"))["retrain"]["scale"]["pending"] == {}
            for alert in alerts[2:4]:
                await plant.ask("label", alert=alert.id, label="false", learn=False)
            await plant.until(outcome="trained")
            status = await plant.ask("status")
        assert status["models"]["scale"]["version"] == "1", "there is no gate: nobody promotes it"
        assert status["shadows"] == {}
        line = plant.audited("train")[0]
        assert "quality: precision is" in line["reason"]
        assert "below 0.5" in line["reason"]
        client = mlflow.MlflowClient(local, local)
        [version] = Registry(local).versions("pump")
        rows = int(client.get_run(version.run_id).data.metrics["rows"])
        assert rows == 400 - left_out(plant, alerts)
        assert plant.value("mmlw_label_quality", detector="scale", metric="precision") < 0.5

    run(story())


class Pump(ScaleShelf):
    """Version 1 of `pump` serves."""

    def resolve(self, uri: str) -> Any:
        return msgspec.structs.replace(super().resolve("models:/scale/1"), name="pump")


def left_out(plant: Timed, alerts: list[Any]) -> int:
    """Readings of m0 in the window, and those under the alerts that were faults or are not to be learned."""
    gone = 0
    for message in readings(400):
        body = json.loads(message.body)
        at, machine = body["time"], body["machine"]
        spans = [(a.machine, epoch(a.first_seen), epoch(a.time)) for a in (alerts[0], *alerts[2:4])]
        learned = (alerts[1].machine, epoch(alerts[1].first_seen), epoch(alerts[1].time))
        faulty = machine == "m0" and START + 300 <= at <= START + 350 and not covers(learned, machine, at)
        gone += faulty or any(covers(span, machine, at) for span in spans)
    return gone


def covers(span: tuple[str, float, float], machine: str, at: float) -> bool:
    return span[0] == machine and span[1] <= at <= span[2]


def epoch(text: str) -> float:
    from stream.readings import epoch_seconds

    return epoch_seconds(text)


def test_a_schedule_missed_while_the_worker_was_down_is_made_up_once(tmp_path: Path, local: str) -> None:
    async def story() -> None:
        before = time.gmtime(time.time() - 1800.0)
        schedule = f"{before.tm_min} {before.tm_hour} * * *"
        plant = Timed(tmp_path / "data", retrained(schedule=schedule), shelf=Pump(), registry=local)
        await plant.declare()
        await plant.publish(values(200, 0, 0.0))
        async with plant.running() as worker:
            await plant.reached(worker, 200)
        plant.ahead = 3 * 86400.0
        async with plant.running():
            await plant.until(outcome="trained")
        plant.ahead += 60.0
        async with plant.running() as worker:
            await plant.publish(values(50, 200, 0.0))
            await plant.reached(worker, 250)
        assert [line["status"] for line in plant.audited("train")] == ["running", "applied"]
        assert (
            plant.value(
                "mmlw_retrain_triggers_total", detector="scale", trigger="schedule", outcome="started"
            )
            == 1
        )

    run(story())


def test_a_second_drift_waits_until_the_interval_is_over(tmp_path: Path, local: str) -> None:
    async def story() -> None:
        wanted = retrained(drift=Drift(of="inputs", every=1), min_interval=86400.0)
        plant = Timed(tmp_path / "data", wanted, shelf=Pump(), registry=local)
        await plant.declare()
        async with plant.running() as worker:
            await plant.publish([*values(400, 0, 0.0), *values(200, 400, 3.0)])
            await plant.until(outcome="trained")
            await plant.publish(values(300, 600, 8.0))
            await plant.reached(worker, 900)
            await plant.until(trigger="drift", outcome="cooldown")
            told = (await plant.ask("status"))["retrain"]["scale"]
            assert (told["held"], told["in_seven_days"]) == ("cooldown", 1)
        plant.ahead = 86400.0 + 1.0
        async with plant.running():
            while plant.value("mmlw_retrain_results_total", detector="scale", outcome="trained") < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert len(Registry(local).versions("pump")) == 2

    run(story())


def test_a_rule_that_cannot_train_says_so_and_does_not_try_for_ever(tmp_path: Path, local: str) -> None:
    async def story() -> None:
        wanted = msgspec.structs.replace(
            retrained(drift=Drift(of="inputs", every=1), source="stream"),
        )
        plant = Timed(tmp_path / "data", wanted, shelf=Pump(), registry="http://127.0.0.1:9")
        await plant.declare()
        async with plant.running() as worker:
            await plant.publish([*values(400, 0, 0.0), *values(200, 400, 3.0)])
            await plant.reached(worker, 600)
            await plant.until(outcome="failed")
            await plant.until(trigger="drift", outcome="cooldown")
            told = (await plant.ask("status"))["retrain"]["scale"]
            assert told["last"]["outcome"] == "failed"
            assert told["last"]["reason"]
            assert "drift" in told["pending"]
        assert [line["status"] for line in plant.audited("train")] == ["running", "failed"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        run(story())

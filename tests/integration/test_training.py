"""Training: by command line and by message, from files, captures, frames and the stream, in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import mlflow
import mlflow.artifacts
import msgspec
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from stream.brokers.base import Message
from stream.brokers.memory import MemoryBroker, MemoryServer
from stream.cli import cli
from stream.commands import Asked
from stream.config import dump_yaml
from stream.control import request
from stream.errors import BrokerUnreachable, CommandRefused, ConfigError, ModelNotFound
from stream.feeding import Feed
from stream.models import Registry
from stream.runtimes.local import Worker
from stream.shelf import Shelf
from stream.spans import Span
from stream.stream_history import read_stream
from stream.topology import RegistryModel, Sensor, Source, Topology
from stream.trainer import Trainer, Training
from stream.training import train_detector
from stream.training_data import StreamRange, TrainingSource, frame_table, stream_table, within
from stream.validation import Reader
from stream.watch import show_audit
from tests.aio import run
from tests.mlflow_server import mlflow_server
from tests.plant import START, Plant, ScaleShelf, readings, topology

pytestmark = pytest.mark.timeout(240)
FIT = {"kind": "isolation_forest", "n_trees": 10, "max_samples": 64}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "registry.db"
    assert Registry(f"sqlite:///{path}").names() == ()
    return path


@pytest.fixture(params=["embedded", "server"])
def registry(request: pytest.FixtureRequest, tmp_path: Path, empty_database: Path) -> Iterator[str]:
    if request.param == "embedded":
        (tmp_path / "registry.db").write_bytes(empty_database.read_bytes())
        yield f"sqlite:///{tmp_path}/registry.db"
        return
    with mlflow_server(tmp_path, empty_database) as (uri, _):
        yield uri


def trainable(**fit: Any) -> Topology:
    """The plant with a batch detector that can be trained."""
    plain = topology(batch_model=True)
    detectors: Any = {"model": "models:/pump@champion", "fit": {**FIT, **fit}}
    reader = Reader()
    spec = reader.read(RegistryModel, detectors, "")
    assert not reader.problems
    return Topology(
        name="plant", source=plain.source, detectors={**plain.detectors, "scale": spec}, alert=plain.alert
    )


def frame(n: int = 400, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    times = pd.date_range("2024-05-01", periods=n, freq="min", tz="UTC")
    return pd.DataFrame(
        {
            "time": times,
            "machine": [f"m{i % 3}" for i in range(n)],
            "a": rng.normal(size=n),
            "b": rng.normal(size=n),
        }
    )


def mmlw(*arguments: str | Path) -> str:
    done = CliRunner().invoke(cli, [str(it) for it in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@dataclass
class Shop(Plant):
    """A plant whose worker trains."""

    registry: str = ""
    reader: type[MemoryBroker] = MemoryBroker
    """What its trainings read the stream by."""
    trainer: Trainer | None = None
    log: list[dict[str, Any]] = field(default_factory=list)

    def worker(self) -> Worker:
        def connect() -> MemoryBroker:
            return MemoryBroker(self.server, user="worker")

        folders = (self.data / "capture", self.data)
        self.trainer = Trainer(self.registry, folders, lambda: self.reader(self.server, user="worker"))
        return Worker(
            (self.topology,),
            connect=connect,
            data=self.data,
            shelf=self.shelf,
            metrics=self.metrics,
            observer=lambda _, scored: self.scored.append(scored),
            trainer=self.trainer,
        )

    async def train(self, *, user: str = "operator", **arguments: Any) -> dict[str, Any]:
        async with MemoryBroker(self.server, user=user) as broker:
            asked: dict[str, Any] = {"user": user, "timeout": 90.0, "told": self.log.append}
            return await request(broker, self.topology.name, "train", **asked, **arguments)


def test_of_two_trainings_that_were_possible_at_once_the_second_waits(tmp_path: Path) -> None:
    registry, told = f"sqlite:///{tmp_path}/registry.db", list[Any]()

    async def hear(progress: dict[str, Any]) -> None:
        told.append(progress["phase"])

    async def story() -> None:
        trainer = Trainer(registry, (tmp_path,), lambda: MemoryBroker(MemoryServer()))
        columns: Any = frame(200).assign(time=[START + i for i in range(200)]).to_dict("list")
        training = Training(topology=trainable(), detector="scale", source=TrainingSource(frame=columns))
        trainer.check(training)
        async with asyncio.TaskGroup() as tasks:
            found = [tasks.create_task(trainer.train(training, hear)) for _ in range(2)]
        assert sorted(each.result()["model"]["version"] for each in found) == [1, 2]

    run(story())
    assert told.count("waiting") == 1


def test_command_line_logs_everything_and_the_newer_of_two_trainings_is_loaded(
    tmp_path: Path, registry: str
) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(dump_yaml(trainable()))
    frame().to_csv(tmp_path / "may.csv", index=False)
    (tmp_path / "capture").mkdir()
    for number, part in enumerate(np.array_split(np.arange(300), 2)):
        frame(300, seed=5).iloc[part].to_parquet(tmp_path / "capture" / f"part-0000000{number}-0-1.parquet")
    first = mmlw("train", file, "--from", tmp_path / "may.csv", "--registry", registry)
    assert "training scale: reading\n" in first
    assert "training scale: fitting\n" in first
    assert "models:/pump@challenger now means version 1" in first
    assert "models:/pump@champion now means version 1" in first  # there was nothing to challenge
    second = mmlw("train", file, "--from", tmp_path / "capture", "--registry", registry)
    assert "models:/pump@challenger now means version 2" in second
    assert "@champion" not in second
    models = Registry(registry)
    challenger, champion = (models.resolve(f"models:/pump@{alias}") for alias in ("challenger", "champion"))
    assert (challenger.version, champion.version) == (2, 1)
    shelf = Shelf(models, tmp_path / "models")
    again = [shelf.model(ref, ("a", "b")) for ref in (challenger, champion)]
    scores = [m.score_learn(np.zeros(1, np.int64), np.array([[3.0, 3.0]]), np.zeros(1)) for m in again]
    assert scores[0] != scores[1]

    client = mlflow.MlflowClient(tracking_uri=registry, registry_uri=registry)
    newest, oldest = models.versions("pump")
    ran = client.get_run(newest.run_id)
    assert ran.info.status == "FINISHED"
    assert ran.data.params.items() >= {"kind": "isolation_forest", "rows": "300", "fit.n_trees": "10"}.items()
    assert ran.data.metrics.keys() >= {
        "rows",
        "threshold",
        "score_p99",
        "share_above_threshold",
        "missing_share",
    }
    assert ran.data.metrics["machines"] == 3
    tags = newest.tags
    assert (tags["mmlw.topology"], tags["mmlw.detector"], tags["mmlw.data"]) == ("plant", "scale", "capture")
    assert tags["mmlw.data_from"] == "2024-05-01 00:00:00"
    assert tags["mmlw.data_to"] == "2024-05-01 04:59:00"
    assert len(tags["mmlw.data_digest"]) == 64
    assert tags["mmlw.data_digest"] != oldest.tags["mmlw.data_digest"]
    figures = {item.path: item.file_size for item in client.list_artifacts(newest.run_id, "figures")}
    assert figures.keys() == {"figures/contributions.png", "figures/scores.png", "figures/training_data.png"}
    assert all(1000 < (size or 0) < 300_000 for size in figures.values())
    picture = Path(client.download_artifacts(newest.run_id, "figures/scores.png", str(tmp_path)))
    assert picture.read_bytes().startswith(b"\x89PNG")
    asked = (
        "predict",
        file,
        "--input",
        tmp_path / "may.csv",
        "--registry",
        registry,
        "--data",
        tmp_path,
        "--json",
    )
    by_champion, by_challenger = (
        [json.loads(line) for line in mmlw(*asked, "--model", f"models:/pump/{version}").splitlines()]
        for version in (1, 2)
    )
    served = [json.loads(line) for line in mmlw(*asked).splitlines()]
    assert [row["scores"]["scale"] for row in served] == [row["scores"]["scale"] for row in by_champion]
    assert served[0].keys() == {
        "machine",
        "time",
        "known",
        "scores",
        "thresholds",
        "anomalous",
        "contributions",
    }
    expected = shelf.model(challenger, ("a", "b")).score_learn(
        np.zeros(400, np.int64), frame()[["a", "b"]].to_numpy(), np.zeros(400)
    )
    np.testing.assert_allclose([row["scores"]["scale"] for row in by_challenger], expected)

    source = client.get_model_version_download_uri("pump", "2")
    stored = mlflow.artifacts.download_artifacts(
        artifact_uri=f"{source}/MLmodel", tracking_uri=registry, dst_path=str(tmp_path)
    )
    model = mlflow.models.Model.load(stored)
    assert model.signature.inputs.input_names() == ["a", "b"]
    assert model.saved_input_example_info["artifact_path"] == "input_example.json"


def test_message_trains_from_stream_capture_and_frame_while_the_stream_goes_on(
    tmp_path: Path, registry: str
) -> None:
    async def story() -> None:
        plant = Shop(tmp_path / "data", trainable(), shelf=ScaleShelf(), registry=registry)
        (plant.data / "capture" / "plant").mkdir(parents=True)
        frame(200).to_parquet(plant.data / "capture" / "plant" / "part-00000001-0-199.parquet")
        await plant.declare()
        await plant.publish(readings(500))
        async with plant.running() as worker:
            await plant.reached(worker, 500)
            async with asyncio.TaskGroup() as tasks:
                begun = tasks.create_task(plant.train(source={"stream": {"from": 100, "to": 400}}))
                while not plant.log:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                busy = await plant.train(source={"capture": "plant"})
                assert busy["status"] == "refused"
                assert "trains" in busy["reason"]
                await plant.publish(readings(100, seed=1))
                await plant.reached(worker, 600)  # it is read while the training runs
                assert not begun.done()
                assert (await plant.ask("pause"))["status"] == "applied"  # and so are commands
                assert (await plant.ask("resume"))["status"] == "applied"
            done = begun.result()
            assert done["status"] == "applied", done
            assert (done["model"]["name"], done["model"]["version"]) == ("pump", 1)
            assert done["aliases"] == ["challenger", "champion"]
            assert done["metrics"]["rows"] == 300
            phases = [told["phase"] for told in plant.log if "phase" in told]
            order = list(dict.fromkeys(phases))
            assert order == ["reading", "preparing", "fitting", "scoring", "registering"]
            assert {told["status"] for told in plant.log} == {"running"}
            columns = {name: frame(150)[name].tolist() for name in ("a", "b")}
            framed = await plant.train(source={"frame": columns}, alias="night", options={"rows": 120})
            assert (framed["model"]["version"], framed["metrics"]["rows"]) == (2, 120)
            assert framed["aliases"] == ["night"]
            captured = await plant.train(source={"capture": "plant"})
            assert (captured["model"]["version"], captured["metrics"]["rows"]) == (3, 200)
            audit = (await plant.ask("audit"))["audit"]
            outcomes = [line["status"] for line in audit if line["verb"] == "train"]
            assert outcomes == ["running", "refused", "applied", "running", "applied", "running", "applied"]
        models = Registry(registry)
        assert models.resolve("models:/pump@challenger").version == 3
        assert plant.value("mmlw_commands_total", verb="train", status="applied") == 3

    run(story())


def test_prediction_before_any_training_says_what_to_do(tmp_path: Path, local: str) -> None:
    (tmp_path / "t.yaml").write_text(dump_yaml(trainable()))
    frame().to_csv(tmp_path / "may.csv", index=False)
    asked = ("predict", tmp_path / "t.yaml", "--input", tmp_path / "may.csv", "--registry", local)
    with pytest.raises(ModelNotFound, match=r"detectors\.scale .*no model \"pump\".*Train it first"):
        mmlw(*asked)
    with pytest.raises(ModelNotFound, match=r'no model "pump"'):
        mmlw(*asked, "--model", "models:/pump/1")


@pytest.fixture
def local(tmp_path: Path, empty_database: Path) -> str:
    (tmp_path / "registry.db").write_bytes(empty_database.read_bytes())
    return f"sqlite:///{tmp_path}/registry.db"


def test_training_that_cannot_be_is_refused_and_names_the_reason(tmp_path: Path, local: str) -> None:
    async def story() -> None:
        plant = Shop(tmp_path / "data", trainable(), shelf=ScaleShelf(), registry=local)
        (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
        (plant.data).mkdir()
        (plant.data / "link.csv").symlink_to(tmp_path / "secret.csv")
        await plant.declare()
        async with plant.running():
            cases: list[tuple[dict[str, Any], str]] = [
                ({}, "exactly one of"),
                ({"source": {"stream": {}, "capture": "x"}}, "exactly one of"),
                ({"source": {"capture": "../secret.csv"}}, "is not in"),
                ({"source": {"capture": str(tmp_path / "secret.csv")}}, "is not in"),
                ({"source": {"capture": "link.csv"}}, "is not in"),
                ({"source": {"stream": {}}, "detector": "spike"}, "is not a batch detector"),
                ({"source": {"stream": {}}, "alias": "latest"}, "alias"),
                ({"source": {"stream": {"from": "yesterday"}}}, "is no range"),
                ({"source": {"stream": {}}, "options": {"rows": 0}}, '"options"'),
                ({"source": {"stream": {}}, "options": {"trees": 9}}, "unknown field"),
                ({"source": {"stream": {}}, "model": "models:/pump/1"}, 'train takes no "model"'),
            ]
            for body, reason in cases:
                receipt = await plant.train(**body)
                assert receipt["status"] == "refused"
                assert reason in receipt["reason"], receipt
            stranger = await plant.train(user="mallory", source={"stream": {}})
            assert "list of operators" in stranger["reason"]
            failing: list[tuple[dict[str, Any], str]] = [
                ({"frame": {"a": [1.0, 2.0]}}, "no column for the sensors b"),
                ({"frame": {"a": [1.0, 2.0], "b": [1.0]}}, "is not a table"),
                ({"stream": {}}, "no readings"),
                ({"frame": {"a": [1.0], "b": [None]}}, "has too few rows of a machine for b"),
            ]
            for source, reason in failing:
                receipt = await plant.train(source=source)
                assert receipt["status"] == "failed"
                assert reason in receipt["reason"], receipt
        assert Registry(local).names() == ()

    run(story())


def test_failed_training_is_called_failed_wherever_it_is_told(
    tmp_path: Path, local: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story() -> Any:
        plant = Shop(tmp_path / "data", trainable(), shelf=ScaleShelf(), registry=local)
        await plant.declare()
        with capture_logs() as lines:
            async with plant.running():
                receipt = await plant.train(source={"frame": {"a": [1.0, 2.0], "b": [1.0]}})
                assert receipt["status"] == "failed"
                audit = (await plant.ask("audit"))["audit"]
        ended = [line for line in lines if line.get("command") == receipt["command"]]
        assert [(line["event"], line["status"]) for line in ended] == [("training_failed", "failed")]
        assert plant.value("mmlw_commands_total", verb="train", status="failed") == 1
        assert plant.value("mmlw_commands_total", verb="train", status="refused") == 0
        assert plant.value("mmlw_commands_total", verb="train", status="cancelled") == 0
        return audit

    show_audit(run(story()))
    said = capsys.readouterr().out
    assert "refused" not in said
    assert "failed" in said


def test_killed_training_is_a_failed_receipt_and_the_stream_goes_on(tmp_path: Path, local: str) -> None:
    async def story() -> None:
        plant = Shop(tmp_path / "data", trainable(), shelf=ScaleShelf(), registry=local)
        await plant.declare()
        await plant.publish(readings(300))
        async with plant.running() as worker:
            await plant.reached(worker, 300)
            async with asyncio.TaskGroup() as tasks:
                begun = tasks.create_task(plant.train(source={"stream": {}}, id="again"))
                while not any("phase" in told and told["phase"] != "reading" for told in plant.log):  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
                [child] = trainings()
                assert os.getpriority(os.PRIO_PROCESS, child) == 15
                assert b"MMLW_BROKER" not in Path(f"/proc/{child}/environ").read_bytes()
                os.kill(child, signal.SIGKILL)
            receipt = begun.result()
            assert receipt["status"] == "failed"
            assert "was killed by SIGKILL" in receipt["reason"]
            await plant.publish(readings(50, seed=3))
            await plant.reached(worker, 350)
            slow = await plant.train(source={"stream": {}}, options={"timeout": 0.5})
            assert slow["status"] == "failed"
            assert "took longer than 0.5 s" in slow["reason"]
            assert trainings() == []
        assert Registry(local).names() == ()
        assert plant.value("mmlw_restarts_total", cause="broker") == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMLW_BROKER", "amqp://worker:secret@localhost/")
        run(story())


def test_stop_of_the_worker_ends_its_training_and_the_command_says_so_for_ever(
    tmp_path: Path, local: str
) -> None:
    async def story() -> None:
        plant = Shop(tmp_path / "data", trainable(), shelf=ScaleShelf(), registry=local)
        await plant.declare()
        await plant.publish(readings(300))
        body: dict[str, Any] = {"source": {"stream": {}}, "issued": time.time()}
        async with asyncio.TaskGroup() as tasks, plant.running() as worker:
            await plant.reached(worker, 300)
            begun = tasks.create_task(plant.train(**body))
            while not plant.log:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert begun.result()["status"] == "failed"
        assert begun.result()["reason"] == "the worker ended meanwhile"
        assert trainings() == []
        saved = plant.log[0]["command"]
        async with plant.running():
            audit = (await plant.ask("audit"))["audit"]
            assert [line["status"] for line in audit if line["id"] == saved] == ["running"]
            again = await plant.train(id=saved, **body)
            assert again["duplicate"], again
            assert (again["status"], "worker ended" in again["reason"]) == ("failed", True)
            assert trainings() == []

    run(story())


async def began(plant: Shop, phase: str) -> str:
    """Wait until a training's process is in this phase; the id of its command."""
    while not any(told.get("phase") == phase for told in plant.log):  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    command: str = plant.log[-1]["command"]
    return command


@pytest.mark.parametrize("via", ["broker", "http"])
def test_cancelled_training_leaves_nothing_and_both_receipts_say_so(
    tmp_path: Path, local: str, via: str
) -> None:
    async def story() -> None:
        plant = Shop(tmp_path / "data", trainable(), shelf=ScaleShelf(), registry=local)
        await plant.declare()
        await plant.publish(readings(300))
        body: dict[str, Any] = {"source": {"stream": {}}, "issued": time.time()}
        async with plant.running() as worker:
            await plant.reached(worker, 300)

            async def cancel(command: str) -> dict[str, Any]:
                if via == "broker":
                    return await plant.ask("cancel", command=command)
                control = worker.control("plant")
                assert control is not None
                text = json.dumps({"command": command}).encode()
                told = await control.ask(Asked("cancel", text, "http", "http", f"cancel-{command}"))
                assert told is not None
                return told

            async with asyncio.TaskGroup() as tasks:
                begun = tasks.create_task(plant.train(**body))
                training = await began(plant, "preparing")
                ended = await cancel(training)
                assert trainings() == []
            assert (ended["status"], ended["cancelled"], ended["detector"]) == ("applied", training, "scale")
            receipt = begun.result()
            assert (receipt["status"], receipt["reason"]) == (
                "cancelled",
                f'cancelled by the command "{ended["command"]}"',
            )
            again = await plant.train(id=training, **body)
            assert (again["status"], again["duplicate"]) == ("cancelled", True)
            late = await cancel(training) if via == "broker" else await plant.ask("cancel", command=training)
            assert (late["status"], late["reason"]) == (
                "refused",
                f'the training "{training}" does not run: it is cancelled',
            )
            lines = [line for line in (await plant.ask("audit"))["audit"] if line["id"] == training]
            assert [line["status"] for line in lines] == ["running", "cancelled", "duplicate"]
            status = (await plant.ask("status"))["consuming"]
            assert status
            fresh = await plant.train(source={"stream": {}})
            assert (fresh["status"], fresh["model"]["version"]) == ("applied", 1), "the next one can begin"
            done = await plant.ask("cancel", command=fresh["command"])
            assert "does not run: it is applied" in done["reason"]
        assert Registry(local).names() == ("pump",)
        client = mlflow.MlflowClient(tracking_uri=local, registry_uri=local)
        runs = client.search_runs([it.experiment_id for it in client.search_experiments()])
        assert [ran.info.status for ran in runs] == ["FINISHED"], "no run is left over"
        async with plant.running():
            kept = await plant.train(id=training, **body)
            assert (kept["status"], kept["duplicate"]) == ("cancelled", True), "also after a restart"

    run(story())


def test_training_is_cancelled_while_the_stream_is_read_for_it(
    tmp_path: Path, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def endless(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("stream.trainer.receive_stream", endless)

    async def story() -> None:
        plant = Shop(tmp_path / "data", trainable(), shelf=ScaleShelf(), registry=local)
        await plant.declare()
        async with plant.running(), asyncio.TaskGroup() as tasks:
            begun = tasks.create_task(plant.train(source={"stream": {}}))
            training = await began(plant, "reading")
            assert (await plant.ask("cancel", command=training))["status"] == "applied"
            assert (await begun)["status"] == "cancelled"
            assert plant.trainer is not None
            assert plant.trainer.running is None

    run(story())


class Failing(MemoryBroker):
    """Its stream gives the first 70 messages, and then nothing, or an error."""

    error: ClassVar[Exception | None] = None

    async def consume(self, *arguments: Any, **named: Any) -> Any:
        intake: Any = await super().consume(*arguments, **named)
        receive, left = intake.receive, [70]

        async def failing(most: int, linger: float, timeout: float) -> Any:
            if not left[0] and self.error is not None:
                raise self.error
            found = await receive(min(most, left[0]), linger, timeout) if left[0] else []
            left[0] -= len(found)
            return found

        intake.receive = failing
        return intake


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, "nothing came after offset 69, of 300"),
        (BrokerUnreachable("the wire is cut"), "the wire is cut"),
    ],
)
def test_stream_that_fails_in_the_middle_ends_the_training_with_its_reason(
    tmp_path: Path, local: str, error: Exception | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Failing, "error", error)

    async def story() -> None:
        plant = Shop(tmp_path / "data", trainable(), shelf=ScaleShelf(), registry=local)
        plant.reader = Failing
        await plant.declare()
        await plant.publish(readings(300))
        async with plant.running() as worker:
            await plant.reached(worker, 300)
            receipt = await plant.train(source={"stream": {}})
            assert (receipt["status"], reason in receipt["reason"]) == ("failed", True), receipt
            assert trainings() == []
            await plant.publish(readings(50, seed=3))
            await plant.reached(worker, 350)
        assert Registry(local).names() == ()
        assert plant.value("mmlw_restarts_total", cause="broker") == 0

    run(story())


class Endless(MemoryBroker):
    """Its stream gives what it holds, and then never anything."""

    async def consume(self, *arguments: Any, **named: Any) -> Any:
        intake: Any = await super().consume(*arguments, **named)
        receive = intake.receive

        async def endless(*asked: Any) -> Any:
            return await receive(10, 0.0, 0.0) or await asyncio.Event().wait()

        async def end() -> int:
            return 600

        intake.receive, intake.end = endless, end
        return intake


def test_training_tells_how_much_it_has_read_and_ends_by_command_or_in_time(
    tmp_path: Path, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.trainer._PULSE", 0.05)

    async def story() -> None:
        plant = Shop(tmp_path / "data", trainable(), shelf=ScaleShelf(), registry=local)
        plant.reader = Endless
        await plant.declare()
        await plant.publish(readings(300))
        async with plant.running() as worker, asyncio.TaskGroup() as tasks:
            await plant.reached(worker, 300)
            begun = tasks.create_task(plant.train(source={"stream": {}}))
            while not any(told.get("share") == 0.5 for told in plant.log):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            assert {told.get("phase", "reading") for told in plant.log} == {"reading"}
            [_] = trainings()
            assert (await plant.ask("cancel", command=plant.log[-1]["command"]))["status"] == "applied"
            assert (await begun)["status"] == "cancelled"
            assert trainings() == []
            slow = await plant.train(source={"stream": {}}, options={"timeout": 3.0})
            assert (slow["status"], "took longer than 3 s" in slow["reason"]) == ("failed", True)
            assert trainings() == []

    run(story())


def test_process_that_does_not_end_when_told_to_is_killed(
    tmp_path: Path, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.cancelling._GRACE", 0.2)

    async def story() -> None:
        plant = Shop(tmp_path / "data", trainable(), shelf=ScaleShelf(), registry=local)
        await plant.declare()
        await plant.publish(readings(300))
        async with plant.running() as worker, asyncio.TaskGroup() as tasks:
            await plant.reached(worker, 300)
            begun = tasks.create_task(plant.train(source={"stream": {}}))
            training = await began(plant, "preparing")
            [child] = trainings()
            os.kill(child, signal.SIGSTOP)
            assert (await plant.ask("cancel", command=training))["status"] == "applied"
            assert trainings() == []
            assert (await begun)["status"] == "cancelled"
        assert Registry(local).names() == ()

    run(story())


def test_training_that_registers_comes_to_its_end_whoever_wants_it_ended(tmp_path: Path, local: str) -> None:
    async def story() -> None:
        plant = Shop(tmp_path / "data", trainable(), shelf=ScaleShelf(), registry=local)
        await plant.declare()
        await plant.publish(readings(300))
        async with plant.running() as worker, asyncio.TaskGroup() as tasks:
            await plant.reached(worker, 300)
            begun = tasks.create_task(plant.train(source={"stream": {}}))
            training = await began(plant, "registering")
            [child] = trainings()
            os.kill(child, signal.SIGSTOP)
            refused = await plant.ask("cancel", command=training)
            assert (refused["status"], "is being registered" in refused["reason"]) == ("refused", True)
            os.kill(child, signal.SIGTERM)  # as it comes that was sent a moment before
            os.kill(child, signal.SIGCONT)
            assert (await begun)["status"] == "applied"
        ref = Registry(local).resolve("models:/pump@challenger")
        assert Registry(local).load(ref).kind == "isolation_forest"

    run(story())


HANGING = """
import os, sys, time
if "stream.training_process" in sys.orig_argv:
    import mlflow
    setattr(mlflow.MlflowClient, os.environ["HANGS_IN"], lambda *_, **__: time.sleep(600))
"""


@pytest.mark.parametrize("how", ["timeout", "killed", "stopped"])
@pytest.mark.parametrize("step", ["create_model_version", "set_registered_model_alias"])
def test_training_that_is_cut_off_while_it_registers_leaves_no_version_and_a_run_that_is_killed(
    tmp_path: Path, local: str, monkeypatch: pytest.MonkeyPatch, how: str, step: str
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HANGING)
    monkeypatch.setenv("HANGS_IN", step)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    client = mlflow.MlflowClient(tracking_uri=local, registry_uri=local)

    def left() -> list[str]:
        found = client.search_runs([it.experiment_id for it in client.search_experiments()])
        return [ran.info.status for ran in found]

    async def hung() -> None:
        while not left() or (step != "create_model_version" and not client.search_model_versions()):  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    async def cut(plant: Shop, worker: Worker) -> dict[str, Any]:
        if how == "timeout":
            for timeout in (15.0, 30.0, 60.0):  # until it is long enough to get there
                receipt = await plant.train(source={"stream": {}}, options={"timeout": timeout})
                assert f"took longer than {timeout:g} s" in receipt["reason"]
                if "while it was registered" in receipt["reason"]:
                    break
            return receipt
        async with asyncio.TaskGroup() as tasks:
            begun = tasks.create_task(plant.train(source={"stream": {}}))
            await began(plant, "registering")
            await hung()
            if how == "killed":
                os.kill(trainings()[0], signal.SIGKILL)
            else:
                return {"status": "failed", "reason": ""} if begun.cancel() else {}
        return begun.result()

    async def story() -> None:
        plant = Shop(tmp_path / "data", trainable(), shelf=ScaleShelf(), registry=local)
        await plant.declare()
        await plant.publish(readings(300))
        async with plant.running() as worker:
            await plant.reached(worker, 300)
            receipt = await cut(plant, worker)
            assert receipt["status"] == "failed"
            if how != "stopped":
                assert "nothing of it is left but a run that MLflow shows as KILLED" in receipt["reason"]
                assert "was killed by SIGKILL" in receipt["reason"] or how == "timeout"
        assert trainings() == []

    run(story())
    assert list(client.search_model_versions()) == []
    assert left() == ["KILLED"]


STEPS = ["create_model_version", "get_model_version_download_uri", "set_model_version_tag"]


@pytest.mark.parametrize("step", STEPS)
def test_what_a_training_left_half_registered_when_its_worker_was_killed_is_taken_back_by_the_next(
    tmp_path: Path, local: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Such a worker takes nothing back itself. What was registered as a whole, but for its alias, stays."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HANGING)
    monkeypatch.setenv("HANGS_IN", step)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    client = mlflow.MlflowClient(tracking_uri=local, registry_uri=local)
    versions, status = (0, "RUNNING") if step == STEPS[0] else (1, "RUNNING")
    if whole := step == STEPS[2]:
        status = "FINISHED"
    cleared, clear = list[str](), Registry.clear

    def noted(registry: Registry, mark: str) -> int | None:
        cleared.append(mark)
        return clear(registry, mark)

    async def nothing(*_: Any) -> str:
        return ""

    def left() -> tuple[int, list[str]]:
        runs = client.search_runs([it.experiment_id for it in client.search_experiments()])
        return len(client.search_model_versions()), [each.info.status for each in runs]

    async def story() -> None:
        plant = Shop(tmp_path / "data", trainable(), shelf=ScaleShelf(), registry=local)
        await plant.declare()
        await plant.publish(readings(300))
        body: dict[str, Any] = {"source": {"stream": {}}, "issued": time.time()}
        with monkeypatch.context() as dead:
            dead.setattr(Trainer, "_take_back", nothing)
            async with plant.running() as worker, asyncio.TaskGroup() as tasks:
                await plant.reached(worker, 300)
                begun = tasks.create_task(plant.train(**body))
                await began(plant, "registering")
                while left() != (versions, [status]):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
                begun.cancel()
        assert left() == (versions, [status])
        for _ in range(2):
            async with plant.running() as worker:
                control = worker.control("plant")
                assert control is not None
                while control._cut_off:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                found = await plant.train(id=plant.log[0]["command"], **body)
        assert cleared == [plant.log[0]["training"]], "once"
        assert (found["status"], found["duplicate"]) == ("failed", True)
        assert ("when version 1 was registered, which stays" in found["reason"]) is whole

    monkeypatch.setattr(Registry, "clear", noted)
    run(story())
    assert left() == ((1, ["FINISHED"]) if whole else (0, ["KILLED"]))


def test_a_version_that_somebody_uses_is_not_taken_back(
    tmp_path: Path, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another alias was set by hand before the worker came back; and other runs are nobody's business."""
    models = Registry(local)
    client = mlflow.MlflowClient(tracking_uri=local, registry_uri=local)
    columns: Any = frame(200).assign(time=[START + i for i in range(200)])
    table = frame_table("t", columns, trainable())
    for mark in ("mine", "others"):
        train_detector(trainable(), "scale", table, models, alias=None, mark=mark)
    for version in client.search_model_versions():
        client.update_run(version.run_id, status="RUNNING")
    models.set_alias("pump", "champion", 1)
    assert models.clear("mine") is None
    assert models.clear("nobody") is None
    found = {int(it.version): client.get_run(it.run_id).info.status for it in client.search_model_versions()}
    assert found == {1: "KILLED", 2: "RUNNING"}
    assert models.clear("others") is None
    assert [it.version for it in models.versions("pump")] == [1]


def test_cancel_of_what_is_no_running_training_is_refused_with_the_reason(tmp_path: Path, local: str) -> None:
    async def story() -> None:
        plant = Shop(tmp_path / "data", trainable(), shelf=ScaleShelf(), registry=local)
        await plant.declare()
        async with plant.running():
            paused = await plant.ask("resume")
            cases: list[tuple[dict[str, Any], str]] = [
                ({}, 'cancel needs "command"'),
                ({"command": "nobody"}, 'no command "nobody" is known here'),
                ({"command": paused["command"]}, "is no training, but resume"),
                ({"command": "x", "detector": "scale"}, 'takes no "detector"'),
                ({"command": "x", "model": "models:/pump/1"}, 'cancel takes no "model"'),
            ]
            for body, reason in cases:
                receipt = await plant.ask("cancel", **body)
                assert receipt["status"] == "refused"
                assert reason in receipt["reason"], receipt
            other = await plant.ask("pause", command="x")
            assert other["reason"] == 'pause takes no "command"'
            stranger = await plant.ask("cancel", user="mallory", command="x")
            assert "list of operators" in stranger["reason"]

    run(story())


def trainings() -> list[int]:
    """Processes of ours that train."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal():
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if b"stream.training_process" in words and parent == os.getpid():
                    found.append(int(entry.name))
    return found


@pytest.mark.parametrize("fed", ["not at all", "in part", "to the end"])
def test_process_ends_with_whoever_started_it(fed: str) -> None:
    async def story() -> int | None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "import os, time; from stream.feeding import Fed; fed = Fed(0, lambda: os._exit(1)); fed.columns();"
            "print(flush=True); time.sleep(600)",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        feed = Feed(process.stdin)
        if fed != "not at all":
            await feed.columns({"a": [1.0] * 100_000})
        if fed == "to the end":
            await feed.end()
            await process.stdout.readline()
        process.stdin.close()
        return await process.wait()

    assert run(story()) == 1


def test_stream_is_read_by_offset_and_by_time(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, trainable())
        await plant.declare()
        await plant.publish(readings(300, bad_every=10))
        async with MemoryBroker(plant.server) as broker:

            async def read(span: StreamRange) -> Any:
                return await stream_table(broker, plant.topology, span.span())

            every = await read(StreamRange())
            assert len(every.times) == 270
            part = await read(StreamRange(100, 200))
            np.testing.assert_array_equal(part.times, every.times[90:180])
            np.testing.assert_array_equal(part.values, every.values[90:180])
            assert part.machines == every.machines[90:180]
            timed = await read(StreamRange("2024-08-07T00:01:00Z", "2024-08-07T00:02:00+00:00"))
            inside = (every.times >= 1_722_988_860.0) & (every.times < 1_722_988_920.0)
            np.testing.assert_array_equal(timed.times, every.times[inside])
            assert inside.any()
            last = await read_stream(broker, plant.topology, Span(), newest=100)
            np.testing.assert_array_equal(last.times, every.times[every.times >= START + 200])
            span = StreamRange("2024-08-07T00:04:30Z").span()
            few = await read_stream(broker, plant.topology, span, newest=100)
            np.testing.assert_array_equal(few.times, every.times[every.times >= START + 270])
            with pytest.raises(ConfigError, match="or none of that range"):
                await read(StreamRange("2030-01-01"))

    run(story())


def test_one_sensor_a_message_is_read_as_whole_rows(tmp_path: Path) -> None:
    async def story() -> None:
        source = Source(
            sensors=(Sensor("a"), Sensor("b")), layout="narrow", routing_key="sensor.{machine}.{sensor}"
        )
        plant = Plant(tmp_path, msgspec.structs.replace(trainable(), source=source))
        await plant.declare()
        bodies = [
            (f"sensor.m{m}.{name}", {"time": START + 10 * i, "value": 10.0 * i + m + (name == "b") / 2})
            for i in range(5)
            for m in range(2)
            for name in "ab"
        ]
        await plant.publish(
            [
                Message(exchange="mmlw.sensors", routing_key=key, body=json.dumps(b).encode())
                for key, b in bodies
            ]
        )
        async with MemoryBroker(plant.server) as broker:
            table = await stream_table(broker, plant.topology, StreamRange().span())
        assert table.machines == ["m0", "m1"] * 5
        np.testing.assert_array_equal(
            table.values, [[10 * i + m, 10 * i + m + 0.5] for i in range(5) for m in (0, 1)]
        )

    run(story())


def test_frame_keeps_rows_by_time_and_refuses_what_is_no_time() -> None:
    shuffled = frame(50).sample(frac=1.0, random_state=1)
    table = frame_table("x", shuffled, trainable())
    np.testing.assert_array_equal(table.values[:, 0], frame(50)["a"].to_numpy())
    assert table.machines[:4] == ["m0", "m1", "m2", "m0"]
    assert table.times[0] == 1_714_521_600.0
    with pytest.raises(ConfigError, match='row 2: "never" is not a time'):
        frame_table(
            "x", pd.DataFrame({"time": ["2024-01-01", "never"], "a": [1, 2], "b": [1, 2]}), trainable()
        )


def test_named_path_stays_within_its_folders(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.csv").touch()
    assert within("x.csv", (tmp_path / "in",)) == tmp_path / "in" / "x.csv"
    for path in ("../in/../../etc/passwd", "/etc/passwd", "y.csv"):
        with pytest.raises(ConfigError, match="is not in"):
            within(path, (tmp_path / "in",))


def test_labels_are_not_trained_on_and_judge_the_model_as_a_backtest_does(tmp_path: Path, local: str) -> None:
    file, faults, data = tmp_path / "t.yaml", tmp_path / "faults.csv", tmp_path / "may.csv"
    whole = trainable()
    spec = msgspec.structs.replace(whole.registry_models["scale"], threshold=0.67)
    file.write_text(dump_yaml(msgspec.structs.replace(whole, detectors={"scale": spec})))
    readings = frame(900)
    faulty = np.zeros(900, np.bool_)
    for start in (300, 600):
        faulty[start : start + 40] = True
    faulty &= (readings["machine"] == "m1").to_numpy()
    readings.loc[faulty, ["a", "b"]] += 12.0
    readings.loc[[450, 453, 456], ["a", "b"]] -= 12.0  # of m0, and nobody says so
    readings.to_csv(data, index=False)
    stamps = readings["time"].astype(str)
    faults.write_text(
        "start,end,machine\n" + "".join(f"{stamps[start]},{stamps[start + 39]},m1\n" for start in (300, 600))
    )
    asked = ("--from", data, "--registry", local)
    said = mmlw("train", file, *asked, "--labels", faults)
    plain = mmlw("train", file, *asked)
    assert "found 2 of 2 events, precision " in said
    assert "events" not in plain
    judged = mmlw(
        "backtest", file, "--input", data, "--labels", faults, "--registry", local, "--data", tmp_path
    )
    client = mlflow.MlflowClient(local, local)
    newest, labelled = Registry(local).versions("pump")
    metrics = client.get_run(labelled.run_id).data.metrics
    assert metrics["rows"] == 900 - faulty.sum()
    assert (metrics["events"], metrics["events_found"], metrics["recall"]) == (2, 2, 1.0)
    assert 0 < metrics["precision"] < 1
    assert metrics["false_alarms"] > 0
    for name in ("precision", "f1", "vus_pr", "false_alarms_per_day"):
        text = f"{metrics[name]:.3f}" if metrics[name] < 100 else f"{metrics[name]:,.0f}"
        assert text in judged, (name, text, judged)
    unjudged = client.get_run(newest.run_id).data.metrics
    assert unjudged["rows"] == 900
    assert not {"events", "precision", "vus_pr"} & unjudged.keys()
    told = {"windows": [[stamps[300], stamps[339]]], "warmup_rows": 20}
    (tmp_path / "faults.json").write_text(json.dumps({"files": {"may/may.csv": told}}))
    assert "of 3 events" in mmlw("train", file, *asked, "--labels", tmp_path / "faults.json"), "one a machine"
    (tmp_path / "faults.json").write_text(json.dumps({"files": {"june.csv": told}}))
    with pytest.raises(ConfigError, match=r"--labels: says nothing of may\.csv"):
        mmlw("train", file, *asked, "--labels", tmp_path / "faults.json")


def test_a_frame_without_the_machines_that_the_detector_scores_is_refused_at_once() -> None:
    whole = trainable()
    trainer = Trainer("sqlite:///none", (), lambda: MemoryBroker(MemoryServer(), user="worker"))
    columns: Any = {"a": [1.0], "b": [2.0]}

    def check(topology: Topology, **more: Any) -> None:
        source = TrainingSource(frame={**columns, **more})
        trainer.check(Training(topology=topology, detector="scale", source=source))

    check(whole)
    spec = msgspec.structs.replace(whole.registry_models["scale"], machines="pump-*")
    bound = msgspec.structs.replace(whole, detectors={"scale": spec})
    check(bound, machine=["fan-1", "pump-1"])
    check(whole, machine=["fan-1"])
    only = r"scale is trained on pump-\* alone"
    with pytest.raises(CommandRefused, match=rf'"frame" names only fan-1: {only}'):
        check(bound, machine=["fan-1", "fan-1"])
    with pytest.raises(CommandRefused, match=r'"frame" names only 1, 2, None and 1 more: scale'):
        check(bound, machine=[1, 2, None, "fan-1"])
    with pytest.raises(CommandRefused, match=rf'"frame" needs "machine": {only}'):
        check(bound)


def test_only_the_machines_that_a_detector_scores_are_trained_on(tmp_path: Path, local: str) -> None:
    whole = trainable()
    spec = msgspec.structs.replace(whole.registry_models["scale"], machines="m[12]")
    file = tmp_path / "t.yaml"
    file.write_text(dump_yaml(msgspec.structs.replace(whole, detectors={"scale": spec})))
    frame().to_csv(tmp_path / "may.csv", index=False)
    mmlw("train", file, "--from", tmp_path / "may.csv", "--registry", local, "--rows", "200")
    models = Registry(local)
    [version] = models.versions("pump")
    metrics = mlflow.MlflowClient(local, local).get_run(version.run_id).data.metrics
    assert (metrics["rows"], metrics["machines"]) == (200, 2)
    file.write_text(file.read_text().replace("m[12]", "pump-*"))
    with pytest.raises(ConfigError, match=r"has no machine that scale scores \(pump-\*\)"):
        mmlw("train", file, "--from", tmp_path / "may.csv", "--registry", local)

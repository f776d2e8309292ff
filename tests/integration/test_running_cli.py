"""`mmlw predict --running`, `mmlw train --stream` and `mmlw cancel`: the command line beside a worker that runs."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import os
import subprocess
import threading
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from stream.brokers.base import Message
from stream.brokers.memory import MemoryBroker
from stream.brokers.rabbitmq import RabbitBroker
from stream.cli import cli
from stream.config import dump_yaml
from stream.control import request
from stream.errors import CommandRefused, ConfigError
from stream.models import Registry
from stream.plan import broker_plan
from stream.shelf import Shelf
from stream.topology import RegistryModel, Topology
from stream.validation import Reader
from tests.aio import run
from tests.integration.test_control_rabbitmq import ready
from tests.integration.test_deploy_rabbitmq import Site, generate
from tests.plant import Plant, readings, topology
from tests.rabbitmq_node import free_port, rabbit_node

pytestmark = pytest.mark.timeout(300)
FIT = {"kind": "isolation_forest", "n_trees": 10, "max_samples": 64}


def trainable(**rest: Any) -> Topology:
    """The plant with a batch detector that can be trained."""
    reader = Reader()
    spec = reader.read(RegistryModel, {"model": "models:/pump@champion", "fit": FIT}, "")
    assert not reader.problems
    plain = topology(batch_model=True)
    return replace(plain, detectors={**plain.detectors, "scale": spec}, **rest)


def table(path: Path, messages: list[Message]) -> Path:
    """Those readings as a file."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["time", "machine", "a", "b"])
        for message in messages:
            body = json.loads(message.body)
            rows.writerow([body["time"], body["machine"], body["values"]["a"], body["values"]["b"]])
    return path


# -- beside an embedded worker ------------------------------------------------------------------------------


class Shell:
    """The command line against the memory server of a plant. A command runs in a thread, as in a process of its own;
    what it awaits runs where the server lives."""

    def __init__(self, plant: Plant, patch: pytest.MonkeyPatch) -> None:
        self.plant, self.user = plant, "operator"
        self._loop: asyncio.AbstractEventLoop | None = None
        for module in ("predicting_command", "training_command", "steering"):
            patch.setattr(f"stream.{module}.connector", lambda _: self)
            patch.setattr(f"stream.{module}.asyncio", SimpleNamespace(run=self._run))

    def __call__(self) -> MemoryBroker:
        return MemoryBroker(self.plant.server, user=self.user)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)

    async def mmlw(self, *arguments: str | Path) -> str:
        """What a command prints. Raises what it fails with."""
        self._loop = asyncio.get_running_loop()
        words = [str(it) for it in arguments]
        done = await asyncio.to_thread(CliRunner().invoke, cli, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    plant = Plant(
        tmp_path / "data", trainable(), shelf=Shelf(Registry(registry(tmp_path)), tmp_path / "models")
    )
    (tmp_path / "t.yaml").write_text(dump_yaml(plant.topology))
    return Shell(plant, monkeypatch)


def registry(folder: Path) -> str:
    return f"sqlite:///{folder}/registry.db"


def test_what_is_trained_on_the_stream_serves_and_predicts_what_the_stream_then_scores(
    tmp_path: Path, shell: Shell
) -> None:
    past, next_ = readings(400), readings(430)[400:]
    file, plant = tmp_path / "t.yaml", shell.plant

    async def story() -> list[dict[str, Any]]:
        await plant.declare()
        await plant.publish(past)
        at = ("--registry", registry(tmp_path))
        told = await shell.mmlw("train", file, "--stream", "100..", *at)
        assert "pump version 1 (isolation_forest)" in told
        assert "models:/pump@champion now means version 1" in told
        async with plant.running() as worker:
            await plant.reached(worker, 400)
            part = await shell.mmlw("train", file, "--stream", "100..300", "--rows", "150", *at)
            assert "models:/pump@challenger now means version 2" in part, "while the worker reads it, too"
            asked = ("predict", file, "--input", table(tmp_path / "next.csv", next_), "--running")
            lines = (await shell.mmlw(*asked, "--json")).splitlines()
            by_second = (await shell.mmlw(*asked, "--json", "--model", "models:/pump/2")).splitlines()
            shown = await shell.mmlw(*asked)
            assert len(shown.splitlines()) == 30
            assert all("spike " in line and "scale " in line for line in shown.splitlines())
            status = await plant.ask("status")
            assert (status["next_offset"], status["models"]["scale"]["version"]) == (400, "1")
            await plant.publish(next_)
            await plant.reached(worker, 430)
        found = [json.loads(line) for line in lines]
        other = [json.loads(line) for line in by_second]
        assert {tuple(row["scores"]) for row in other} == {("scale",)}
        assert [row["scores"]["scale"] for row in other] != [row["scores"]["scale"] for row in found]
        return found

    predictions = run(story())
    live = {
        (int(offset), name): scored.scores[name][i]
        for scored in plant.scored
        for name in scored.scores
        for i, offset in enumerate(scored.offsets)
    }
    for i, row in enumerate(predictions):
        assert row["known"]
        assert row["scores"] == {name: live[400 + i, name] for name in ("spike", "scale")}
    models = Registry(registry(tmp_path))
    tags = {version.version: version.tags for version in models.versions("pump")}
    assert {number: tag["mmlw.data"] for number, tag in tags.items()} == {
        1: "stream of plant",
        2: "stream of plant",
    }


def test_a_prediction_that_the_worker_cannot_give_ends_with_its_reason(tmp_path: Path, shell: Shell) -> None:
    file, plant = tmp_path / "t.yaml", shell.plant

    async def story() -> None:
        await plant.declare()
        await plant.publish(readings(200))
        few, many = table(tmp_path / "few.csv", readings(3)), table(tmp_path / "many.csv", readings(1001))
        at = ("--registry", registry(tmp_path))
        await shell.mmlw("train", file, "--stream", "..", *at)
        (tmp_path / "narrow.csv").write_text("time,machine,a\n2024-05-01T00:00:00Z,m0,1\n")
        async with plant.running():
            with pytest.raises(ConfigError, match=r"narrow\.csv: has no column for the sensors b"):
                await shell.mmlw("predict", file, "--input", tmp_path / "narrow.csv", "--running")
            with pytest.raises(
                CommandRefused, match=r"plant predict: .*from 1 to 1000 of them; there are 1001"
            ):
                await shell.mmlw("predict", file, "--input", many, "--running")
            with pytest.raises(CommandRefused, match="version 9"):
                await shell.mmlw("predict", file, "--input", few, "--running", "--model", "models:/pump/9")
            shell.user = "mallory"
            with pytest.raises(CommandRefused, match="not on this topology's list of operators"):
                await shell.mmlw("predict", file, "--input", few, "--running")
            shell.user = "operator"
            status = await plant.ask("status")
            assert status["alerts_open"]["scale"] == 0

    run(story())


def test_a_training_that_the_stream_has_nothing_for_says_so_and_registers_nothing(
    tmp_path: Path, shell: Shell
) -> None:
    file, plant = tmp_path / "t.yaml", shell.plant

    async def story() -> None:
        await plant.declare()
        await plant.publish(readings(50))
        at = ("--registry", registry(tmp_path))
        cases: list[tuple[tuple[str, ...], type[Exception], str]] = [
            (("--stream", "2030-01-01.."), ConfigError, "no readings"),
            (("--stream", "yesterday.."), ConfigError, "yesterday"),
            (("--stream", "30..20"), ConfigError, "none of that range"),
            (("--stream", "..", "--dataset", "shuttle"), ConfigError, "one of them"),
            ((), ConfigError, "--stream FROM..TO"),
        ]
        for options, error, text in cases:
            with pytest.raises(error, match=text):
                await shell.mmlw("train", file, *options, *at)
        assert Registry(registry(tmp_path)).names() == ()

    run(story())


# -- on a real RabbitMQ, as processes -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A node with the deployment's users."""
    secrets = generate(tmp_path_factory.mktemp("running") / "generated")
    passwords = {path.name.removesuffix("_password"): path.read_text() for path in secrets.glob("*_password")}
    with rabbit_node(definitions=json.loads((secrets / "definitions.json").read_text())) as node:
        yield Site(node, secrets, passwords)


@contextlib.contextmanager
def worker(site: Site, folder: Path, file: Path) -> Iterator[None]:
    """`mmlw run` as a process, until it reads; ended in order."""
    port = free_port()
    options = [str(file), f"--data={folder}", f"--http=127.0.0.1:{port}", "--log=json", "--wait=20"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(site.mmlw("run", "worker", *options), cwd=folder, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 240
        while not ready(port):
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
            threading.Event().wait(0.1)
        yield
        process.terminate()
        assert process.wait(timeout=120) == 0, (folder / "log").read_text()[-3000:]
    finally:
        process.kill()
        process.wait(timeout=120)


def test_the_three_commands_on_rabbitmq(site: Site, tmp_path: Path) -> None:
    plan = trainable(name="line")
    file = tmp_path / "line.yaml"
    file.write_text(dump_yaml(plan))
    sent = [
        replace(message, routing_key="sensor.shuttle-1.x", body=message.body.replace(b'"m0"', b'"shuttle-1"'))
        for message in readings(400, machines=1)
    ]
    future = table(tmp_path / "future.csv", sent[-5:])

    def mmlw(verb: str, user: str, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            site.mmlw(verb, user, *arguments), cwd=tmp_path, capture_output=True, text=True, timeout=240,
            check=False, env=os.environ | {"COLUMNS": "200"},
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    async def publish() -> None:
        async with site.broker("worker") as link:
            await link.declare(broker_plan(plan), mode="declare")
        async with RabbitBroker(site.url("shuttle-1"), timeout=10.0) as machine:
            await machine.publish(sent)

    async def cancelled() -> tuple[dict[str, Any], str]:
        """A training that is cancelled as soon as its process works."""
        working: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def told(receipt: dict[str, Any]) -> None:
            if receipt.get("phase") == "preparing" and not working.done():
                working.set_result(receipt["command"])

        async with site.broker("operator") as link, asyncio.TaskGroup() as tasks:
            asked: dict[str, Any] = {"user": "operator", "timeout": 120.0, "told": told}
            training = tasks.create_task(request(link, "line", "train", source={"stream": {}}, **asked))
            command = await working
            async with site.broker("operator") as other:
                ended = await request(other, "line", "cancel", user="operator", timeout=60, command=command)
            assert ended["status"] == "applied", ended
        return training.result(), command

    missing = mmlw("predict", "operator", str(file), f"--input={future}", "--running", code=2)
    assert 'no worker has ever run a topology "line" on this broker. Start it with mmlw run' in missing
    run(publish())
    told = mmlw("train", "worker", str(file), "--stream=..", f"--data={tmp_path}")
    assert "models:/pump@champion now means version 1" in told
    with worker(site, tmp_path, file):
        rows = mmlw("predict", "operator", str(file), f"--input={future}", "--running", "--json")
        found = [json.loads(line) for line in rows.splitlines()]
        assert [set(row["scores"]) for row in found] == [{"spike", "scale"}] * 5
        assert {row["machine"] for row in found} == {"shuttle-1"}
        assert "no command" in mmlw("cancel", "operator", "line", "nosuch", code=1)
        receipt, command = run(cancelled())
        assert receipt["status"] == "cancelled", receipt
        assert "it is cancelled" in mmlw("cancel", "operator", str(file), command, code=1)
    log = (tmp_path / "log").read_text()
    assert '"training_started"' in log
    known = Registry(f"sqlite:///{tmp_path / 'mlflow' / 'registry.db'}").versions("pump")
    assert [version.version for version in known] == [1]

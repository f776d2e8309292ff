"""Commands on a real RabbitMQ with the deployment's users: by message, by command line, over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aio_pika import exceptions as amqp
from msgspec.structs import replace

from stream.brokers.rabbitmq import RabbitBroker
from stream.control import request
from stream.runtimes.local import Worker
from stream.topology import Topology
from tests.aio import run
from tests.integration.test_deploy_rabbitmq import Site, generate
from tests.plant import ScaleShelf, readings, topology
from tests.rabbitmq_node import free_port, rabbit_node

ROOT = Path(__file__).resolve().parents[2]
SWAP = {"model": "models:/scale/2"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A node with the deployment's definitions: it checks who a message says it is from."""
    secrets = generate(tmp_path_factory.mktemp("control") / "generated")
    passwords = {path.name.removesuffix("_password"): path.read_text() for path in secrets.glob("*_password")}
    definitions = json.loads((secrets / "definitions.json").read_text())
    with rabbit_node(definitions=definitions) as node:
        yield Site(node, secrets, passwords)


@contextlib.asynccontextmanager
async def running(site: Site, data: Path, plan: Topology) -> AsyncIterator[Worker]:
    worker = Worker((plan,), connect=lambda: site.broker("worker"), data=data, shelf=_shelf(plan), wait=20.0)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(worker.run(stop))
        while not worker.ready and not task.done():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        try:
            yield worker
        finally:
            stop.set()


def _shelf(plan: Topology) -> Any:
    return ScaleShelf() if plan.registry_models else None


@dataclass(frozen=True)
class Attempt:
    """A command as its sender makes it: `user_id` is what the message says, `user` who is connected."""

    name: str
    verb: str
    body: dict[str, Any] | bytes
    reason: str
    user: str = "operator"
    user_id: str | None = "operator"


BROKER = "user_id property|access to"
ATTEMPTS = [
    Attempt("says nothing of its sender", "swap", {**SWAP}, "does not state a user_id", user_id=None),
    Attempt("says nothing of its sender, pause", "pause", {}, "does not state a user_id", user_id=None),
    Attempt("forged as the worker", "pause", {}, BROKER, user_id="worker"),
    Attempt("forged as guest, who is on the list", "pause", {}, BROKER, user_id="guest"),
    Attempt("a machine as the operator", "pause", {}, BROKER, user="shuttle-1"),
    Attempt("a machine as itself", "pause", {}, BROKER, user="shuttle-1", user_id="shuttle-1"),
    Attempt("a dashboard as the operator", "pause", {}, BROKER, user="dashboard"),
    Attempt("the worker as itself", "pause", {}, BROKER, user="worker", user_id="worker"),
    Attempt("unknown verb", "stop", {}, "unknown command"),
    Attempt("no command", "pause", b"\x00\xff", "the body is not a command"),
    Attempt("too large", "pause", b" " * 2_000_000, "2000000 bytes; a command has at most 16384"),
    Attempt("no time", "pause", {"issued": None}, 'needs "issued"'),
    Attempt("expired", "swap", {"issued": -400, **SWAP}, "expired"),
    Attempt("from the future", "swap", {"issued": 100, **SWAP}, "in the future"),
    Attempt("out of order", "swap", {"issued": -100, **SWAP}, "out of order"),
    Attempt("unknown model", "swap", {"model": "models:/scale/99"}, "no such version"),
    Attempt("another model", "swap", {"model": "models:/scale/80"}, 'takes versions of "scale"'),
    Attempt("wrong digest", "swap", {**SWAP, "digest": f"sha256:{1:064x}"}, "not the one that the command"),
    Attempt("id of another command", "pause", {"id": "first"}, "was used by another command"),
]


async def send(site: Site, attempt: Attempt) -> tuple[str, dict[str, Any]]:
    """What the broker answered if it refused, and the receipt if there came one."""
    body = attempt.body
    if isinstance(body, dict):
        whole = {"id": attempt.name, "issued": 0, **body}
        if whole["issued"] is not None and whole["issued"] < 1e9:
            whole["issued"] += time.time()
        body = json.dumps({key: value for key, value in whole.items() if value is not None}).encode()
    connection = await aio_pika.connect(site.url(attempt.user), timeout=10)
    async with connection:
        replies = None
        if attempt.user == "operator":
            channel = await connection.channel()
            replies = await channel.declare_queue(f"mmlw.reply.operator.{time.time_ns()}", exclusive=True)
        message = aio_pika.Message(
            body, user_id=attempt.user_id, reply_to=replies.name if replies is not None else None
        )
        publishing = await connection.channel(publisher_confirms=True)
        try:
            exchange = await publishing.get_exchange("mmlw.control", ensure=False)
            await exchange.publish(message, f"control.plant.{attempt.verb}", mandatory=True, timeout=10)
        except amqp.ChannelClosed as error:
            return str(error), {}
        assert replies is not None, f"{attempt.name}: was let through"
        deadline = time.monotonic() + 240
        while (answer := await replies.get(no_ack=True, fail=False)) is None:
            assert time.monotonic() < deadline, f"{attempt.name}: no answer"
            await asyncio.sleep(0.02)
        receipt: dict[str, Any] = json.loads(answer.body)
        return "", receipt


def test_every_command_that_must_not_be_obeyed_is_refused_and_audited(site: Site, tmp_path: Path) -> None:
    async def story() -> tuple[list[str], list[dict[str, Any]]]:
        wrong: list[str] = []
        plan = topology(batch_model=True)
        async with running(site, tmp_path, plan):
            body = json.dumps({"id": "first", "issued": time.time()}).encode()
            first = Attempt("first", "resume", body, "")
            said, once = await send(site, first)
            assert once["status"] == "applied", said
            for attempt in ATTEMPTS:
                said, receipt = await send(site, attempt)
                reason = said or (receipt["reason"] if receipt["status"] == "refused" else "carried out")
                if not re.search(attempt.reason, reason) or (attempt.reason == BROKER) != bool(said):
                    wrong.append(f"{attempt.name}: {reason}")
            _, again = await send(site, first)
            assert (again["status"], again["issued"], again["duplicate"]) == ("applied", once["issued"], True)
            async with site.broker("operator") as operator:
                status = await request(operator, "plant", "status", user="operator", timeout=20)
                shown = await request(operator, "plant", "audit", user="operator", timeout=20)
        assert (status["paused"], status["models"]["scale"]["version"]) == (False, "1")
        # The same broker, another list of operators: the operator is a stranger.
        async with running(site, tmp_path, replace(plan, operators=("chief",))):
            _, receipt = await send(site, Attempt("stranger", "pause", {}, ""))
            if '"operator" is not on' not in receipt["reason"]:
                wrong.append(f"stranger: {receipt}")
        return wrong, shown["audit"]

    wrong, lines = run(story())
    print(f"{len(ATTEMPTS) + 1 - len(wrong)} of {len(ATTEMPTS) + 1} refused")
    assert not wrong
    reached = [attempt for attempt in ATTEMPTS if attempt.reason != BROKER]
    refused = [line for line in lines if line["status"] == "refused"][: len(reached)]
    for attempt, line in zip(reached, refused, strict=True):
        assert (line["by"], line["verb"]) == (attempt.user_id, attempt.verb)
        assert re.search(attempt.reason, line["reason"])


def test_a_flood_on_rabbitmq_does_not_stop_the_stream(site: Site, tmp_path: Path) -> None:
    flood = 2000

    async def story() -> None:
        plan = topology()
        async with running(site, tmp_path, replace(plan, name="flooded")) as worker:
            start = worker.next_offset("flooded")
            connection = await aio_pika.connect(site.url("operator"), timeout=10)
            async with connection:
                channel = await connection.channel(publisher_confirms=True)
                exchange = await channel.get_exchange("mmlw.control", ensure=False)
                for _ in range(flood):
                    await exchange.publish(aio_pika.Message(b"x" * 1000), "control.flooded.pause")
                async with RabbitBroker(site.url("shuttle-1"), timeout=10.0) as machine:
                    own = [replace(m, routing_key="sensor.shuttle-1.x") for m in readings(300, machines=1)]
                    await machine.publish(
                        [replace(m, body=m.body.replace(b'"m0"', b'"shuttle-1"')) for m in own]
                    )
                async with asyncio.timeout(240):
                    while worker.next_offset("flooded") < start + 300:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
            async with site.broker("operator") as operator:
                receipt = await request(operator, "flooded", "resume", user="operator", timeout=60)
                lines = (await request(operator, "flooded", "audit", user="operator", timeout=60))["audit"]
        assert receipt["status"] == "applied"
        listed = [line for line in lines if line["verb"] == "pause"]
        counted = [re.match(r"(\d+) more commands", line["reason"] or "") for line in lines]
        assert len(listed) < 60
        assert len(listed) + sum(int(found[1]) for found in counted if found) == flood

    run(story())


# -- the command line, and HTTP -----------------------------------------------------------------------------


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return int(answer.status) == 200
    except OSError:
        return False


@pytest.mark.timeout(240)
def test_the_command_line_and_http_steer_a_worker_and_show_the_audit(site: Site, tmp_path: Path) -> None:
    port, secret = free_port(), "a-long-random-text"
    token = tmp_path / "token"
    token.write_text(secret)
    water = str(ROOT / "topologies" / "water_flow.yaml")
    options = ["--data", str(tmp_path), f"--http=127.0.0.1:{port}", "--log=json", "--wait=20"]

    def said(verb: str, *arguments: str, code: int = 0) -> str:
        command = site.mmlw(verb, "operator", "water_flow", *arguments)
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
            env=os.environ | {"COLUMNS": "200"},
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr + (tmp_path / "log").read_text()[-2000:]
        return done.stdout

    def post(verb: str, authorization: str) -> tuple[int, dict[str, Any]]:
        address = f"http://127.0.0.1:{port}/topologies/water_flow/{verb}"
        headers = {"Authorization": authorization}
        asked = urllib.request.Request(address, data=b"", headers=headers, method="POST")
        try:
            with urllib.request.urlopen(asked, timeout=20) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    token.chmod(0o644)
    refused = subprocess.run(
        site.mmlw("run", "worker", water, *options, f"--http-token-file={token}"),
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert refused.stderr == (
        f"mmlw: --http-token-file: {token} is open to every user of this host: chmod 600 {token}\n"
    )
    token.chmod(0o600)
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(
            site.mmlw("run", "worker", water, *options), cwd=tmp_path, stdout=log, stderr=log,
            env=os.environ | {"MMLW_HTTP_TOKEN_FILE": str(token)},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 240
        while not ready(port):
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
            threading.Event().wait(0.1)
        assert "applied" in said("pause", "--timeout=300")
        assert post("resume", "Bearer wrong")[0] == 401
        status, receipt = post("resume", f"Bearer {secret}")
        assert (status, receipt["status"]) == (200, "applied")
        assert "refused" in said("swap", "models:/forest/2", "--digest=sha256:0", code=1)
        assert "has no open alert" in said("label", "false", "--machine=pump", "--learn", code=1)
        times = ("--from=2024-05-01T06:00Z", "--to=2024-05-01T07:00Z")
        assert 'no machine "pump" is known' in said("label", "anomaly", "--machine=pump", *times, code=1)
        receipt = json.loads(said("status", "--json"))
        assert receipt["paused"] is False
        lines = json.loads(said("audit", "--json"))["audit"]
        assert [(line["by"], line["verb"], line["status"]) for line in lines] == [
            ("operator", "pause", "applied"),
            ("http", "resume", "applied"),
            ("operator", "swap", "refused"),
            ("operator", "label", "refused"),
            ("operator", "label", "refused"),
            ("operator", "status", "applied"),
        ]
        table = said("audit")
        assert [row.split()[2:5] for row in table.splitlines()[1:3]] == [
            ["operator", "pause", "applied"],
            ["http", "resume", "applied"],
        ]
        assert "no batch detector" in table
        worker.terminate()
        assert worker.wait(timeout=120) == 0, (tmp_path / "log").read_text()[-3000:]
    finally:
        worker.kill()
        worker.wait(timeout=120)
    assert secret not in (tmp_path / "log").read_text()

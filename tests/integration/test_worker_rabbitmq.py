"""The whole arrow on a real RabbitMQ: thousands of real readings, a swap in mid-stream, a kill -9."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aio_pika
import msgspec
import numpy as np
import pytest

from stream.alerts import Alert
from stream.config import dump_yaml, load
from stream.models import Registry
from stream.tables import Table, from_dataset
from stream.training import train_detector
from tests.aio import run
from tests.rabbitmq_node import RabbitNode, free_port

ROOT = Path(__file__).resolve().parents[2]
ROWS = 6000


@dataclass
class Service:
    """`mmlw run` as a process of its own, on one virtual host and one data folder."""

    url: str
    data: Path
    topology: Path
    registry: str
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def mmlw(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "stream", *arguments],
            cwd=self.data,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def start(self) -> None:
        options = ["--broker", self.url, "--data", str(self.data), "--registry", self.registry]
        options += ["--http", f"127.0.0.1:{self.port}", "--log", "json"]
        with (self.data / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stream", "run", str(self.topology), *options],
                stdout=log,
                stderr=log,
                cwd=self.data,
            )
        wait_for(
            lambda: self.get("/readyz")[0] == 200 or self.process is None or self.process.poll() is not None
        )
        assert self.process.poll() is None, (self.data / "log").read_text()[-3000:]

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=120)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120)

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that bear these labels."""
        total, found = 0.0, False
        for line in self.get("/metrics")[1].splitlines():
            series, _, value = line.rpartition(" ")
            if series.split("{")[0] == name and all(f'{k}="{v}"' in series for k, v in labels.items()):
                total, found = total + float(value), True
        assert found, f"{name} {labels}"
        return total


def wait_for(condition: Any, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        pause.wait(0.1)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An embedded MLflow with two versions of the forest: @champion from 2,000 rows, version 2 from 4,000."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'registry.db'}"
    shuttle, table = load(ROOT / "topologies" / "shuttle.yaml"), from_dataset("shuttle")
    for rows, alias in ((2000, "champion"), (4000, "challenger")):
        train_detector(shuttle, "forest", table, Registry(uri), rows=rows, alias=alias)
    return uri


@contextmanager
def service(rabbitmq: RabbitNode, folder: Path, registry: str) -> Iterator[Service]:
    folder.mkdir(exist_ok=True)
    topology = folder / "shuttle.yaml"
    shuttle = load(ROOT / "topologies" / "shuttle.yaml")
    topology.write_text(dump_yaml(shuttle))
    worker = Service(rabbitmq.url(vhost=rabbitmq.vhost()), folder, topology, registry)
    worker.start()
    try:
        yield worker
    finally:
        if worker.process is not None and worker.process.poll() is None:
            worker.kill()


def bodies(table: Table, rows: range) -> list[bytes]:
    names = table.sensors
    return [
        json.dumps(
            {
                "machine": "shuttle-1",
                "time": table.times[i],
                "values": dict(zip(names, table.values[i].tolist(), strict=True)),
            }
        ).encode()
        for i in rows
    ]


async def publish(url: str, messages: Sequence[bytes], key: str = "sensor.shuttle-1.readings") -> None:
    """What any AMQP client does; nothing of ours."""
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange("mmlw.sensors", ensure=False)
        for start in range(0, len(messages), 200):
            async with asyncio.TaskGroup() as tasks:
                for body in messages[start : start + 200]:
                    tasks.create_task(exchange.publish(aio_pika.Message(body), key))


async def subscribe(url: str) -> None:
    """A consumer's own durable queue, bound to the alert exchange before anything happens."""
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("dashboard", durable=True)
        await queue.bind("mmlw.alerts", "alert.#")


async def received(url: str, queue: str = "dashboard") -> list[aio_pika.abc.AbstractIncomingMessage]:
    connection = await aio_pika.connect(url)
    found = []
    async with connection:
        channel = await connection.channel()
        declared = await channel.get_queue(queue)
        while (message := await declared.get(fail=False)) is not None:
            await message.ack()
            found.append(message)
    return found


def alerts(messages: Sequence[aio_pika.abc.AbstractIncomingMessage]) -> list[Alert]:
    """Each event once."""
    unique = {message.headers["ce-id"]: message for message in messages}
    return [msgspec.json.decode(message.body, type=Alert) for message in unique.values()]


def processed(worker: Service) -> float:
    return worker.metric("mmlw_messages_processed_total") + worker.metric("mmlw_messages_deadlettered_total")


@pytest.mark.timeout(300)
def test_real_readings_alerts_swap_and_shutdown(rabbitmq: RabbitNode, tmp_path: Path, registry: str) -> None:
    table = from_dataset("shuttle")
    with service(rabbitmq, tmp_path / "one", registry) as worker:
        run(subscribe(worker.url))
        good = bodies(table, range(ROWS))
        broken = [
            b"{",
            b'{"time": 1, "values": {"f1": 1}}',
            b'{"time": 1704067200, "values": {"f77": 1}}',
        ] * 5
        messages = [*good[:3000], *broken, *good[3000:]]
        run(publish(worker.url, messages[:2500]))
        swap = worker.mmlw(
            "swap", "shuttle", "models:/shuttle-forest@challenger", "--broker", worker.url, "--json"
        )
        receipt = json.loads(swap.stdout)
        run(publish(worker.url, messages[2500:]))
        wait_for(lambda: processed(worker) == len(messages))

        assert receipt["status"] == "applied"
        assert (receipt["replaced"]["version"], receipt["model"]["version"]) == (1, 2)
        assert worker.metric("mmlw_messages_received_total") == len(messages)
        for reason in ("not_decodable", "time_out_of_range", "unknown_sensor"):
            assert worker.metric("mmlw_messages_deadlettered_total", reason=reason) == 5
        for detector in ("spike", "examples", "forest"):
            assert worker.metric("mmlw_readings_scored_total", detector=detector) == ROWS
        assert worker.metric("mmlw_model_info", detector="forest", version="2") == 1

        got = alerts(run(received(worker.url)))
        assert len(got) == worker.metric("mmlw_alerts_total")
        first = receipt["partitions"]["0"]["first_offset"]
        by_forest = [alert for alert in got if alert.detector == "forest"]
        assert {a.model.version for a in by_forest if a.position.offset < first} <= {"1"}
        assert {a.model.version for a in by_forest if a.position.offset >= first} == {"2"}
        status = json.loads(worker.mmlw("status", "shuttle", "--broker", worker.url, "--json").stdout)
        assert (status["next_offset"], status["consuming"]) == (len(messages), True)
        back = json.loads(worker.mmlw("rollback", "shuttle", "--broker", worker.url, "--json").stdout)
        assert back["model"]["version"] == 1
        refused = worker.mmlw(
            "swap", "shuttle", "models:/shuttle-forest/99", "--broker", worker.url, check=False
        )
        assert refused.returncode == 1
        assert "99" in refused.stdout
        trained = worker.mmlw(
            "train", str(worker.topology), "--dataset", "shuttle", "--registry", registry, "--if-missing"
        )
        assert "models:/shuttle-forest@champion is version 1 already" in trained.stdout
        shown = worker.mmlw("alerts", "--broker", worker.url, "--from-start", "--limit", "5", "--json").stdout
        assert len([json.loads(line) for line in shown.splitlines()]) == 5
        assert worker.stop() == 0
        assert '"event": "topology_stopped"' in (worker.data / "log").read_text()


@pytest.mark.timeout(300)
def test_killed_or_stopped_and_restarted_gives_the_same_alerts(
    rabbitmq: RabbitNode, tmp_path: Path, registry: str
) -> None:
    messages = bodies(from_dataset("shuttle"), range(ROWS))
    with service(rabbitmq, tmp_path / "calm", registry) as calm:
        run(subscribe(calm.url))
        run(publish(calm.url, messages))
        wait_for(lambda: processed(calm) == ROWS)
        expected = alerts(run(received(calm.url)))
        assert calm.stop() == 0
    with service(rabbitmq, tmp_path / "shot", registry) as shot:
        run(subscribe(shot.url))
        rng = np.random.default_rng(seed := int.from_bytes(os.urandom(4)))
        print(f"seed {seed}")
        run(publish(shot.url, messages))
        for end in ("kill", "terminate", "kill"):
            threading.Event().wait(rng.uniform(0.0, 0.4))
            if end == "kill":
                shot.kill()
            else:
                assert shot.stop() == 0
            shot.start()

        def position() -> int:
            answer = shot.mmlw("status", "shuttle", "--broker", shot.url, "--json", check=False).stdout
            return int(json.loads(answer)["next_offset"]) if answer else -1

        wait_for(lambda: position() == ROWS)
        raw = run(received(shot.url))
        got = alerts(raw)
        print(f"{len(raw)} events received, {len(got)} distinct")
        assert sorted(map(_key, got)) == sorted(map(_key, expected))
        assert shot.stop() == 0


def _key(alert: Alert) -> bytes:
    return msgspec.json.encode(alert)


BAD: dict[str, bytes] = {
    "not JSON": b"{",
    "wrong type": b'{"machine": "branch-1", "time": 1648000000, "values": {"flow_l_s": "x"}}',
    "NaN": b'{"machine": "branch-1", "time": 1648000000, "values": {"flow_l_s": NaN}}',
    "infinity": b'{"machine": "branch-1", "time": 1648000000, "values": {"flow_l_s": -Infinity}}',
    "10 MB": b" " * 10_000_000,
    "nested 100,000 deep": b"[" * 100_000 + b"]" * 100_000,
    "1850": b'{"machine": "branch-1", "time": "1850-01-01T00:00:00Z", "values": {"flow_l_s": 1}}',
    "2100": b'{"machine": "branch-1", "time": "2100-01-01T00:00:00Z", "values": {"flow_l_s": 1}}',
    "unknown sensor": b'{"machine": "branch-1", "time": 1648000000, "values": {"x": 1}}',
    "no sensor": b'{"machine": "branch-1", "time": 1648000000, "values": {}}',
    "impossible": b'{"machine": "branch-1", "time": 1648000000, "values": {"flow_l_s": -5}}',
    "another machine": b'{"machine": "branch-2", "time": 1648000000, "values": {"flow_l_s": 5}}',
}


def test_bad_input_is_dead_lettered_counted_and_the_stream_goes_on(
    rabbitmq: RabbitNode, tmp_path: Path, registry: str
) -> None:
    water = tmp_path / "water_flow.yaml"
    shipped = (ROOT / "topologies" / "water_flow.yaml").read_text()
    water.write_text(shipped.replace("source:\n", "source:\n  out_of_range: deadletter\n"))
    worker = Service(rabbitmq.url(vhost=rabbitmq.vhost()), tmp_path, water, registry)
    worker.start()
    try:
        good = b'{"machine": "branch-1", "time": 1648000000, "values": {"flow_l_s": 101.5}}'
        mixed = [body for bad in BAD.values() for body in (bad, good)]
        run(publish(worker.url, mixed, key="sensor.branch-1.readings"))
        run(publish(worker.url, [good.replace(b'"machine": "branch-1", ', b"")], key="sensor.branch-1.a.b"))
        wait_for(lambda: processed(worker) == len(mixed) + 1)
        dead = worker.metric("mmlw_messages_deadlettered_total")
        assert (worker.metric("mmlw_messages_processed_total"), dead) == (len(BAD), len(BAD) + 1)
        for reason, count in {
            "not_decodable": 2, "wrong_type": 1, "not_finite": 2, "too_large": 1, "time_out_of_range": 2,
            "unknown_sensor": 1, "no_values": 1, "out_of_range": 1, "machine_mismatch": 1, "missing_machine": 1,
        }.items():  # fmt: skip
            assert worker.metric("mmlw_messages_deadlettered_total", reason=reason) == count, reason
        letters = run(dead_letters(worker.url, len(BAD) + 1))
        assert [body for body, _ in letters[:-1]] == list(BAD.values())
        assert {str(headers["mmlw-reason"]) for _, headers in letters} >= {"not_decodable", "too_large"}
        assert worker.stop() == 0
    finally:
        if worker.process is not None and worker.process.poll() is None:
            worker.kill()


async def dead_letters(url: str, count: int) -> list[tuple[bytes, Any]]:
    connection = await aio_pika.connect(url)
    found = []
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=100)
        queue = await channel.get_queue("mmlw.deadletters")
        async with queue.iterator(arguments={"x-stream-offset": "first"}) as letters:
            async for letter in letters:
                await letter.ack()
                found.append((letter.body, letter.headers))
                if len(found) == count:
                    break
    return found


def test_mistakes_of_a_beginner_get_one_clear_line(
    rabbitmq: RabbitNode, tmp_path: Path, registry: str
) -> None:
    water = str(ROOT / "topologies" / "water_flow.yaml")
    worker = Service(rabbitmq.url(vhost=rabbitmq.vhost()), tmp_path, Path(water), registry)
    shuttle = str(ROOT / "topologies" / "shuttle.yaml")
    empty = f"sqlite:///{tmp_path / 'none.db'}"
    nobody = f"amqp://guest:guest@127.0.0.1:{free_port()}/"
    wrong = worker.url.replace("guest:guest", "guest:sesame")
    cases: list[tuple[list[str], str]] = [
        (["run", water, "--broker", nobody], "Start it, or correct --broker"),
        (["run", water, "--broker", wrong], "check user name and password"),
        (["run", water, "--broker", worker.url + "x"], "virtual host"),
        (["run", water, "--broker", "http://x"], "amqp://"),
        (["run", "nothing.yaml", "--broker", worker.url], "no such file"),
        (["run", shuttle, "--broker", worker.url, "--registry", empty], "shuttle-forest"),
        (["run", water, "--broker", worker.url, "--http", "203.0.113.1:9464"], "--http"),
        (["publish", "--dataset", "shutle", "--broker", worker.url], 'Did you mean "shuttle"'),
        (["publish", "--broker", worker.url], "--dataset"),
        (["status", "nosuch", "--broker", worker.url], "mmlw run"),
        (["swap", "shuttle", "foo", "--broker", worker.url], "is not a model address"),
    ]
    for arguments, expected in cases:
        done = worker.mmlw(*arguments, check=False)
        assert done.returncode == 2, (arguments, done.stdout, done.stderr)
        assert expected in done.stderr, (arguments, done.stderr)
        assert "Traceback" not in done.stderr
        assert "sesame" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_declare_false_only_checks(rabbitmq: RabbitNode, tmp_path: Path, registry: str) -> None:
    water = load(ROOT / "topologies" / "water_flow.yaml")
    path = tmp_path / "checked.yaml"
    path.write_text(dump_yaml(msgspec.structs.replace(water, declare=False)))
    worker = Service(rabbitmq.url(vhost=rabbitmq.vhost()), tmp_path, path, registry)
    done = worker.mmlw("run", str(path), "--broker", worker.url, "--http", "off", check=False)
    assert done.returncode == 2
    assert 'exchange "mmlw.sensors" is missing' in done.stderr

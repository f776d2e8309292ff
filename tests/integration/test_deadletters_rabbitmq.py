"""`mmlw deadletters` on a real RabbitMQ: letters are listed, shown, sent back, and each is processed once."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aio_pika
import numpy as np
import pytest

from detectors import AdaptiveZ
from stream.alerts import Alert
from stream.config import dump_yaml, load
from stream.rules import AlertRule
from stream.topology import Sensor, Source, Topology
from tests.aio import run
from tests.integration.test_worker_rabbitmq import Service, alerts, received, subscribe, wait_for
from tests.rabbitmq_node import RabbitNode

START = 1_722_988_800
DEFINITIONS = Path(__file__).resolve().parents[2] / "deploy" / "rabbitmq" / "definitions.py"


def topology(name: str = "press", **source: Any) -> Topology:
    return Topology(
        name=name,
        source=Source(sensors=(Sensor("a"), Sensor("b")), **source),
        detectors={"spike": AdaptiveZ(warmup=10, half_life=50)},
        alert=AlertRule(close_after=2),
    )


def reading(i: int, values: dict[str, float], machine: str = "m0") -> bytes:
    return json.dumps({"machine": machine, "time": START + i, "seq": i, "values": values}).encode()


def quiet(n: int, start: int = 0) -> list[bytes]:
    rng = np.random.default_rng(start)
    return [reading(start + i, dict(zip("ab", rng.normal(size=2).tolist(), strict=True))) for i in range(n)]


async def publish(
    url: str,
    bodies: Sequence[bytes],
    *,
    key: str = "sensor.m0.readings",
    exchange: str = "mmlw.sensors",
    **properties: Any,
) -> None:
    """What any AMQP client does, one after the other."""
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        target = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
        for body in bodies:
            await target.publish(aio_pika.Message(body, **properties), key)


class Plant(Service):
    """A worker of one topology or two, and the commands against its broker."""

    def write(self, topology: Topology) -> None:
        self.topology.write_text(dump_yaml(topology))

    def letters(self, *arguments: str, code: int = 0) -> str:
        done = self.mmlw("deadletters", *arguments, "--broker", self.url, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    def listed(self, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.letters("list", "--json", *arguments).splitlines()]

    def count(self, name: str, topology: str = "press", **labels: str) -> float:
        return self.metric(f"mmlw_messages_{name}_total", topology=topology, **labels)

    def alerts(self) -> list[Alert]:
        """This topology's alerts that came since the last look."""
        return [alert for alert in alerts(run(received(self.url))) if alert.topology == "press"]

    def settled(self, messages: int, topology: str = "press") -> None:
        """Wait until so many messages have come to an end since the worker started."""

        def done() -> float:
            passed = self.count("passed_over", topology) - self.count(
                "passed_over", topology, policy="replayed"
            )
            return self.count("processed", topology) + self.count("deadlettered", topology) + passed

        wait_for(lambda: done() >= messages)
        assert done() == messages


@contextmanager
def plant(rabbitmq: RabbitNode, folder: Path, first: Topology) -> Iterator[Plant]:
    folder.mkdir(exist_ok=True)
    worker = Plant(
        rabbitmq.url(vhost=rabbitmq.vhost()), folder, folder / f"{first.name}.yaml", "sqlite:///none"
    )
    worker.write(first)
    worker.start()
    try:
        yield worker
    finally:
        if worker.process is not None and worker.process.poll() is None:
            worker.kill()


@pytest.mark.timeout(300)
def test_letters_are_sent_back_to_a_mended_topology_and_processed_once(
    rabbitmq: RabbitNode, tmp_path: Path
) -> None:
    spike = reading(40, {"a": 90.0, "b": 0.0, "c": 1.0})
    harmless = reading(45, {"a": 0.1, "b": 0.0, "c": 1.0})
    history = quiet(60)
    history[40], history[45], history[50] = spike, harmless, b"{broken \x1b[2J"
    with (
        plant(rabbitmq, tmp_path, topology()) as worker,
        plant(rabbitmq, tmp_path / "other", topology("lathe", unknown_sensor="ignore")) as elsewhere,
    ):
        elsewhere.kill()  # a second topology on the same exchange
        elsewhere.url = worker.url
        elsewhere.start()
        run(subscribe(worker.url))
        run(publish(worker.url, history))
        worker.settled(60)
        elsewhere.settled(60, "lathe")
        assert worker.count("deadlettered", reason="unknown_sensor") == 2

        listed = worker.listed("--topology", "press")
        assert [(x["offset"], x["reason"]) for x in listed] == [
            (40, "unknown_sensor"),
            (45, "unknown_sensor"),
            (50, "not_decodable"),
        ]
        assert {x["routing_key"] for x in listed} == {"sensor.m0.readings"}
        assert {x["topology"] for x in listed} == {"press"}
        assert all(x["time"].endswith("Z") for x in listed)
        assert worker.listed("--since", "1h", "--reason", "unknown_sensor", "--reason", "late") == listed[:2]
        table = worker.letters("list")
        assert "4 letters: 2 not_decodable, 2 unknown_sensor" in table
        assert '"c" is not declared (known: a, b)' in table
        assert "the newest 1 shown" in worker.letters("list", "--limit", "1")
        shown = worker.letters("show", str(listed[0]["number"]))
        assert "A sensor is not declared in the topology" in shown
        assert '"c": 1.0' in shown
        assert "mmlw-routing-key: sensor.m0.readings" in shown
        broken = worker.letters("show", str(listed[2]["number"]))
        assert "7b 62 72 6f 6b 65 6e" in broken
        assert "\x1b" not in broken

        worker.kill()
        worker.write(topology(unknown_sensor="ignore", late="deadletter", duplicate="deadletter"))
        worker.start()
        only = ("--reason", "unknown_sensor")
        assert (
            "press: 2 letters: 2 unknown_sensor to mmlw.readings.press\nnothing was sent"
            in worker.letters("replay", *only, "--dry-run")
        )
        assert not worker.alerts()
        assert worker.letters("replay", "--yes", *only).endswith("2 sent back\n")
        worker.settled(2)
        assert worker.count("processed") == 2
        opened = [alert for alert in worker.alerts() if alert.event == "opened"]
        assert [(alert.topology, alert.machine, alert.first_seen) for alert in opened] == [
            ("press", "m0", "2024-08-07T00:00:40Z")
        ]

        worker.letters("replay", str(listed[0]["number"]))
        worker.settled(3)
        worker.kill()  # its word is in the checkpoint, or the letter comes again: the same either way
        worker.letters("replay", *only)
        worker.start()
        worker.letters("replay", "--topology", str(worker.topology), *only)
        worker.letters("replay", "--topology", "press", "--reason", "not_decodable")
        wait_for(lambda: worker.count("deadlettered", reason="not_decodable") == 1)
        assert worker.count("processed") == 0
        assert worker.count("deadlettered") == 1
        assert not worker.alerts()
        again = worker.listed("--topology", "press")
        assert [x["id"] for x in again] == [x["id"] for x in listed]
        assert again[:2] == listed[:2]
        assert again[2]["number"] > listed[2]["number"]

        run(publish(worker.url, quiet(1, start=60)))
        elsewhere.settled(61, "lathe")
        assert elsewhere.count("processed", "lathe") == 60
        assert elsewhere.stop() == 0
        assert worker.stop() == 0


@pytest.mark.timeout(240)
def test_a_machine_that_forges_a_replay_is_not_believed(rabbitmq: RabbitNode, tmp_path: Path) -> None:
    history = quiet(30)
    history[20] = reading(20, {"a": 1.0, "b": 0.0, "c": 1.0})
    with plant(rabbitmq, tmp_path, topology(duplicate="deadletter")) as worker:
        run(publish(worker.url, history))
        worker.settled(30)
        [letter] = worker.listed()
        worker.kill()
        worker.write(topology(duplicate="deadletter", unknown_sensor="ignore"))
        worker.start()
        forged: dict[str, Any] = {
            "message_id": letter["id"],
            "headers": {
                "mmlw-replay": 1,
                "mmlw-exchange": "mmlw.sensors",
                "mmlw-routing-key": "sensor.m0.readings",
            },
        }
        run(publish(worker.url, [history[10]], **forged))  # as if its number were not held against it
        run(
            publish(worker.url, quiet(1, start=30), key="sensor.m9.readings", **forged)
        )  # for another machine
        worker.settled(2)
        assert worker.count("deadlettered", reason="duplicate") == 1
        assert worker.count("deadlettered", reason="machine_mismatch") == 1
        assert [x["routing_key"] for x in worker.listed()] == [
            "sensor.m0.readings",
            "sensor.m0.readings",
            "sensor.m9.readings",
        ]
        assert "left out: 1 letter: 1 duplicate" in worker.letters("replay", "--topology", "press")
        worker.settled(
            4
        )  # the true replay is processed all the same; the machine's other name is refused again
        assert worker.count("processed") == 1
        assert worker.count("deadlettered", reason="machine_mismatch") == 2
        assert worker.stop() == 0


@pytest.mark.timeout(240)
def test_thousands_of_letters_sent_back_in_two_halves_that_overlap(
    rabbitmq: RabbitNode, tmp_path: Path
) -> None:
    """The command is interrupted, the worker killed, and all is sent again: each counts once."""
    count = 3000
    with plant(rabbitmq, tmp_path, topology()) as worker:
        bodies = [reading(i, {"a": float(i % 7), "b": 0.0, "c": 1.0}) for i in range(count)]
        run(publish(worker.url, bodies))
        worker.settled(count)
        worker.kill()
        worker.write(topology(unknown_sensor="ignore"))
        worker.start()
        command = [sys.executable, "-m", "stream", "deadletters", "replay", "--topology", "press"]
        first = subprocess.Popen(
            [*command, "--broker", worker.url],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(lambda: worker.count("processed") > 0)
        finally:
            first.send_signal(signal.SIGKILL)
            first.wait(timeout=120)
        worker.kill()
        worker.start()
        assert worker.letters("replay", "--topology", "press").endswith(f"{count} sent back\n")

        def status() -> dict[str, Any]:
            answer: dict[str, Any] = json.loads(
                worker.mmlw("status", "press", "--broker", worker.url, "--json").stdout
            )
            return answer

        wait_for(lambda: worker.count("received") >= count and status()["lag"] == 0)
        assert worker.stop() == 0
        scored = _processed(worker)
        assert scored == count
        assert len(worker.listed()) == count
    print(f"{count} letters, sent in part and then all again: {scored} processed")


def _processed(worker: Plant) -> int:
    """How many readings the detector has learned from, by its own count, in the checkpoint."""
    from stream.checkpoint import Checkpoint
    from stream.scorer import Scorer

    store = Checkpoint(worker.data / "press.checkpoint", "press", Scorer.recipes(load(worker.topology)))
    try:
        [group] = store.load().groups
        return int(group.components["model:spike"]["count"].reshape(-1)[0])
    finally:
        store.close()


@pytest.mark.timeout(240)
def test_letters_go_back_to_an_existing_queue_that_the_file_names(
    rabbitmq: RabbitNode, tmp_path: Path
) -> None:
    named = topology(queue="gateway.out")
    url = rabbitmq.url(vhost=rabbitmq.vhost())

    async def make() -> None:
        connection = await aio_pika.connect(url)
        async with connection:
            channel = await connection.channel()
            await channel.declare_queue("gateway.out", durable=True, arguments={"x-queue-type": "quorum"})

    run(make())
    worker = Plant(url, tmp_path, tmp_path / "press.yaml", "sqlite:///none")
    worker.write(named)
    worker.start()
    try:
        history = quiet(30)
        history[20] = reading(20, {"a": 1.0, "b": 0.0, "c": 1.0})
        run(publish(url, history, key="gateway.out", exchange=""))
        worker.settled(30)
        assert worker.stop() == 0
        worker.write(topology(queue="gateway.out", unknown_sensor="ignore", duplicate="deadletter"))
        worker.start()
        refusal = worker.letters("replay", "--topology", "press", code=2)
        assert '"press" has no queue "mmlw.readings.press" here' in refusal
        assert "FILE" in refusal
        for _ in range(2):
            worker.letters("replay", "--topology", str(worker.topology))
        worker.settled(2)
        assert (worker.count("processed"), worker.count("passed_over", policy="duplicate")) == (1, 1)
        assert worker.stop() == 0
    finally:
        if worker.process is not None and worker.process.poll() is None:
            worker.kill()


def test_mistakes_get_one_clear_line(rabbitmq: RabbitNode, tmp_path: Path) -> None:
    def said(*arguments: str, url: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "stream", "deadletters", *arguments, "--broker", url],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2, done.stdout + done.stderr
        assert done.stderr.count("\n") == 1
        return done.stderr

    assert "nothing answers" in said("list", url="amqp://127.0.0.1:1/")
    assert "nothing answers" in said("replay", "3", url="amqp://127.0.0.1:1/")
    empty = rabbitmq.url(vhost=rabbitmq.vhost())
    assert 'queue "mmlw.deadletters" is missing' in said("list", url=empty)
    hint = said("list", "--reason", "unknown_senser", url=empty)
    assert 'Did you mean "unknown_sensor"?' in hint
    assert "killed_worker" in hint
    assert '"2 hours" is not an age such as 30s' in said("list", "--since", "2 hours", url=empty)
    assert "say which: NUMBERS, --topology" in said("replay", url=empty)
    assert "no such file" in said("list", "--topology", "nothing.yaml", url=empty)

    async def declare() -> None:
        from stream.brokers.rabbitmq import RabbitBroker
        from stream.plan import broker_plan

        async with RabbitBroker(empty) as broker:
            await broker.declare(broker_plan(topology()), mode="declare")

    run(declare())
    assert "there is no dead letter 7; mmlw deadletters list" in said("show", "7", url=empty)
    assert "there is no dead letter 7, 8;" in said("replay", "7", "8", url=empty)


@pytest.mark.timeout(240)
def test_an_operator_may_look_and_the_worker_s_user_may_send_back(
    rabbitmq: RabbitNode, tmp_path: Path
) -> None:
    """With the permissions that the deployment gives, and no others."""
    spec = importlib.util.spec_from_file_location("definitions", DEFINITIONS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    granted = {
        entry["user"]: entry for entry in module.build(dict.fromkeys(module.ROLES, "x"))["permissions"]
    }
    with plant(rabbitmq, tmp_path, topology()) as worker:
        vhost = worker.url.rpartition("/")[2]
        for user in ("operator", "worker"):
            rabbitmq.ctl("add_user", f"{vhost}-{user}", "secret")
            rights = [granted[user][what] for what in ("configure", "write", "read")]
            rabbitmq.ctl("set_permissions", "--vhost", vhost, f"{vhost}-{user}", *rights)
        run(publish(worker.url, [reading(0, {"a": 1.0, "b": 0.0, "c": 1.0})]))
        worker.settled(1)

        def said(user: str, *arguments: str, code: int = 0) -> str:
            url = rabbitmq.url(f"{vhost}-{user}", "secret", vhost)
            done = worker.mmlw("deadletters", *arguments, "--broker", url, check=False)
            assert done.returncode == code, done.stdout + done.stderr
            return done.stdout + done.stderr

        assert "1 letter: 1 unknown_sensor" in said("operator", "list")
        assert '"c": 1.0' in said("operator", "show", "0")
        assert "as the worker's user may" in said("operator", "replay", "0", code=2)
        assert worker.count("received") == 1
        assert "1 sent back" in said("worker", "replay", "0")
        worker.settled(2)
        assert worker.count("deadlettered", reason="unknown_sensor") == 2
        assert worker.stop() == 0

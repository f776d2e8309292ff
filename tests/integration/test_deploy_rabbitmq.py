"""The deployment's RabbitMQ: its configuration starts, each role can do its work, and nothing else."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import aio_pika
import pytest
from aio_pika import exceptions as amqp
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from msgspec.structs import replace

from stream.brokers.base import Delivery, Message, Queue
from stream.brokers.rabbitmq import RabbitBroker
from stream.config import load
from stream.control import request
from stream.errors import BrokerRefused, BrokerUnreachable
from stream.plan import broker_plan, deadletter_queue
from stream.runtimes.local import Worker
from stream.tables import from_dataset
from stream.topology import RegistryModel, Topology
from tests.aio import run
from tests.rabbitmq_node import RabbitNode, free_port

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SENSORS, ALERTS, CONTROL, DEAD = "mmlw.sensors", "mmlw.alerts", "mmlw.control", "mmlw.deadletters"
OWN_KEY = "sensor.shuttle-1.readings"

Act = Callable[[AbstractChannel], Awaitable[object]]


@dataclass(frozen=True)
class Site:
    """A running node with the deployment's users, and their passwords."""

    node: RabbitNode
    secrets: Path
    passwords: dict[str, str]

    def url(self, user: str) -> str:
        return self.node.url(user, self.passwords[user])

    def mmlw(self, verb: str, user: str, *arguments: str) -> list[str]:
        """A command line as docker-compose.yml has it: the user in the address, the password in a file."""
        address = f"--broker=amqp://{user}@127.0.0.1:{self.node.port}/"
        password = f"--broker-password-file={self.secrets / f'{user}_password'}"
        return [sys.executable, "-m", "stream", verb, address, password, *arguments]

    def broker(self, user: str) -> RabbitBroker:
        return RabbitBroker(self.url(user), timeout=10.0)


def shuttle() -> Topology:
    """The topology as deployed, without the detector that needs a registry."""
    topology = load(ROOT / "topologies" / "shuttle.yaml")
    online = {k: v for k, v in topology.detectors.items() if not isinstance(v, RegistryModel)}
    return replace(topology, detectors=online)


def settings(path: Path) -> dict[str, str]:
    """The keys and values of a rabbitmq.conf."""
    lines = (line.split("#")[0] for line in path.read_text().splitlines())
    pairs = (line.split("=", 1) for line in lines if line.strip())
    return {key.strip(): value.strip() for key, value in pairs}


def generate(folder: Path) -> Path:
    """Run generate.sh as an operator would, into this folder."""
    subprocess.run(
        ["sh", DEPLOY / "secrets" / "generate.sh"],
        env={"PATH": "/usr/bin:/bin", "MMLW_SECRETS": str(folder), "PYTHON": sys.executable},
        check=True,
        timeout=60,
        capture_output=True,
    )
    return folder


def definitions_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("definitions", DEPLOY / "rabbitmq" / "definitions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A node with the deployment's rabbitmq.conf, plugins and definitions; only ports and limits are the test's."""
    secrets = generate(tmp_path_factory.mktemp("site") / "generated")
    passwords = {path.name.removesuffix("_password"): path.read_text() for path in secrets.glob("*_password")}
    plugins = re.findall(r"\w+", (DEPLOY / "rabbitmq" / "enabled_plugins").read_text())
    folder = Path(tempfile.mkdtemp(prefix="mmlw-deploy-"))
    node = RabbitNode(folder, plugins, json.loads((secrets / "definitions.json").read_text()))
    conf = folder / "rabbitmq.conf"
    mine = {**settings(DEPLOY / "rabbitmq" / "rabbitmq.conf"), **settings(conf)}
    mine.pop("listeners.tcp.default")
    mine["stream.listeners.tcp.1"] = f"127.0.0.1:{free_port()}"
    del mine["log.file.level"]
    conf.write_text("".join(f"{key} = {value}\n" for key, value in mine.items()))
    try:
        node.start()
        found = Site(node, secrets, passwords)
        run(declare(found))
        yield found
    finally:
        node.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def declare(site: Site) -> None:
    """As `mmlw run` does for both topologies; and a queue of the dashboard's own."""
    async with site.broker("worker") as worker:
        for topology in (shuttle(), load(ROOT / "topologies" / "water_flow.yaml")):
            await worker.declare(broker_plan(topology), mode="declare")
    connection = await aio_pika.connect(site.url("dashboard"))
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("dashboard.wall", durable=True)
        await queue.bind(ALERTS, "alert.critical.#")


def test_guest_is_gone_and_roles_are_users(site: Site) -> None:
    listed = dict(line.split("\t") for line in site.node.ctl("list_users").splitlines() if "\t" in line)
    assert listed.pop("user", "tags") == "tags"
    assert set(listed) == set(site.passwords) - {"grafana_admin"}
    assert "guest" not in listed
    assert {user for user, tags in listed.items() if tags != "[]"} == {"monitoring"}
    assert listed["monitoring"] == "[monitoring]"


def test_monitoring_sees_the_node_and_nobody_without_password_does(site: Site) -> None:
    import base64
    import urllib.error
    import urllib.request

    def status(user: str, password: str, path: str) -> int:
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        address = f"http://127.0.0.1:{site.node.management_port}/api/{path}"
        asked = urllib.request.Request(address, headers={"Authorization": f"Basic {token}"})
        try:
            with urllib.request.urlopen(asked, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    password = site.passwords["monitoring"]
    assert status("monitoring", password, "nodes") == 200
    assert status("monitoring", password, "users") == 401  # an administrator's
    assert status("monitoring", "wrong", "nodes") == 401
    assert status("guest", "guest", "nodes") == 401
    assert status("operator", site.passwords["operator"], "nodes") == 401


def test_every_role_can_do_its_work(site: Site, tmp_path: Path) -> None:
    """Readings under the machine's name are scored; alerts, a receipt and a dead letter reach who they are for."""

    async def play() -> tuple[list[Delivery], list[Delivery], dict[str, object], list[Delivery]]:
        topology = shuttle()
        worker = Worker((topology,), connect=lambda: site.broker("worker"), data=tmp_path, wait=10.0)
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.run(stop))
            await until(lambda: worker.ready)
            bodies = readings(3000)
            async with site.broker("shuttle-1") as machine:
                await machine.publish(
                    [Message(exchange=SENSORS, routing_key=OWN_KEY, body=body) for body in [*bodies, b"{"]]
                )
            await until(lambda: worker.next_offset(topology.name) == len(bodies) + 1)
            async with site.broker("dashboard") as dashboard:
                stream = await dashboard.consume(Queue(name=ALERTS), offset=None, prefetch=50)
                by_stream = await stream.receive(50, 0.5, 10.0)
                wall = Queue(name="dashboard.wall", kind="classic")
                own = await dashboard.consume(wall, offset=None, prefetch=50)
                by_queue = await own.receive(50, 0.5, 10.0)
                if by_queue:
                    await own.ack(by_queue[-1].tag)
            async with site.broker("operator") as operator:
                receipt = await request(operator, topology.name, "status", user="operator", timeout=20.0)
                dead = await operator.consume(deadletter_queue(), offset=None, prefetch=10)
                letters = await dead.receive(1, 0.0, 10.0)
            stop.set()
        return by_stream, by_queue, receipt, letters

    by_stream, by_queue, receipt, letters = run(play())
    assert by_stream
    assert {delivery.user_id for delivery in by_stream} == {"worker"}
    assert by_queue
    assert all(delivery.routing_key.startswith("alert.critical.shuttle.") for delivery in by_queue)
    assert (receipt["status"], receipt["next_offset"]) == ("applied", 3001)
    assert [letter.user_id for letter in letters] == ["worker"]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 (a worker's progress has no event to wait for)
        await asyncio.sleep(0.05)


def readings(count: int) -> list[bytes]:
    table = from_dataset("shuttle")
    return [
        json.dumps(
            {
                "time": table.times[i],
                "values": dict(zip(table.sensors, table.values[i].tolist(), strict=True)),
            }
        ).encode()
        for i in range(count)
    ]


@pytest.mark.timeout(240)
def test_the_commands_of_the_compose_file_work(site: Site, tmp_path: Path) -> None:
    def said(command: list[str], code: int = 0) -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        log = (tmp_path / "log").read_text()[-2000:]
        assert done.returncode == code, done.stdout + done.stderr + log
        return done.stdout + done.stderr

    topology, port = ROOT / "topologies" / "water_flow.yaml", free_port()
    options = ["--data", str(tmp_path), f"--http=127.0.0.1:{port}", "--log=json", "--wait=20"]
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(
            site.mmlw("run", "worker", str(topology), *options), cwd=tmp_path, stdout=log, stderr=log
        )
    try:
        said(site.mmlw("publish", "branch-1", "--dataset=water_flow", "--limit=300"))
        asked = site.mmlw("status", "operator", "water_flow", "--json", "--timeout=300")
        status = json.loads(said(asked))
        deadline = time.monotonic() + 240
        while status["next_offset"] < 300:
            assert time.monotonic() < deadline, status
            status = json.loads(said(asked))
        assert status["machines"] == 1
        refusal = said(site.mmlw("publish", "branch-1", "--dataset=shuttle", "--limit=1"), code=2)
        assert "branch-1" in refusal
        assert "sensor.shuttle-1.readings" in refusal
        worker.terminate()
        assert worker.wait(timeout=120) == 0, (tmp_path / "log").read_text()[-3000:]
    finally:
        worker.kill()
        worker.wait(timeout=120)
    assert site.passwords["worker"] not in (tmp_path / "log").read_text()


def publish(exchange: str, key: str, *, user_id: str | None = None) -> Act:
    async def act(channel: AbstractChannel) -> None:
        target = (
            channel.default_exchange if not exchange else await channel.get_exchange(exchange, ensure=False)
        )
        await target.publish(aio_pika.Message(b"{}", user_id=user_id), key, mandatory=False, timeout=10)

    return act


async def ignore(message: AbstractIncomingMessage) -> None:
    pass


def consume(queue: str) -> Act:
    async def act(channel: AbstractChannel) -> None:
        await channel.set_qos(prefetch_count=1)
        found = await channel.get_queue(queue, ensure=False)
        await found.consume(ignore, timeout=10)

    return act


def declare_queue(name: str, *, exclusive: bool = False) -> Act:
    return lambda channel: channel.declare_queue(name, durable=not exclusive, exclusive=exclusive, timeout=10)


def declare_exchange(name: str) -> Act:
    return lambda channel: channel.declare_exchange(name, "topic", durable=True, timeout=10)


def bind(queue: str, exchange: str, key: str) -> Act:
    async def act(channel: AbstractChannel) -> None:
        await (await channel.get_queue(queue, ensure=False)).bind(exchange, key, timeout=10)

    return act


def unbind(queue: str, exchange: str, key: str) -> Act:
    async def act(channel: AbstractChannel) -> None:
        await (await channel.get_queue(queue, ensure=False)).unbind(exchange, key, timeout=10)

    return act


def purge(queue: str) -> Act:
    async def act(channel: AbstractChannel) -> None:
        await (await channel.get_queue(queue, ensure=False)).purge(timeout=10)

    return act


def delete_queue(name: str) -> Act:
    return lambda channel: channel.queue_delete(name, timeout=10)


def delete_exchange(name: str) -> Act:
    return lambda channel: channel.exchange_delete(name, timeout=10)


READINGS, COMMANDS = "mmlw.readings.shuttle", "mmlw.control.shuttle"
STATUS = "control.shuttle.status"
FORBIDDEN: list[tuple[str, str, Act]] = [
    ("shuttle-1", "forges user_id", publish(SENSORS, OWN_KEY, user_id="branch-1")),
    ("shuttle-1", "speaks for another machine", publish(SENSORS, "sensor.branch-1.readings")),
    ("shuttle-1", "speaks for a name that begins like its own", publish(SENSORS, "sensor.shuttle-10.readings")),
    ("shuttle-1", "uses a longer key", publish(SENSORS, "sensor.shuttle-1.a.b")),
    ("shuttle-1", "uses a shorter key", publish(SENSORS, "sensor.shuttle-1")),
    ("shuttle-1", "prefixes its key", publish(SENSORS, f"x.{OWN_KEY}")),
    ("shuttle-1", "publishes commands", publish(CONTROL, STATUS)),
    ("shuttle-1", "publishes alerts", publish(ALERTS, "alert.critical.shuttle.shuttle-1")),
    ("shuttle-1", "publishes dead letters", publish(DEAD, "deadletter.shuttle.x")),
    ("shuttle-1", "writes to a queue directly", publish("", READINGS)),
    ("shuttle-1", "uses amq.topic", publish("amq.topic", OWN_KEY)),
    ("shuttle-1", "uses amq.fanout", publish("amq.fanout", OWN_KEY)),
    ("shuttle-1", "reads readings", consume(READINGS)),
    ("shuttle-1", "reads alerts", consume(ALERTS)),
    ("shuttle-1", "reads commands", consume(COMMANDS)),
    ("shuttle-1", "reads dead letters", consume(DEAD)),
    ("shuttle-1", "declares a queue", declare_queue("shuttle-1")),
    ("shuttle-1", "declares an exclusive queue", declare_queue("shuttle-1.mine", exclusive=True)),
    ("shuttle-1", "declares an exchange", declare_exchange("shuttle-1")),
    ("shuttle-1", "declares the sensor exchange", declare_exchange(SENSORS)),
    ("shuttle-1", "binds a queue", bind(READINGS, SENSORS, "sensor.shuttle-1.#")),
    ("shuttle-1", "unbinds a queue", unbind(READINGS, SENSORS, "sensor.shuttle-1.#")),
    ("shuttle-1", "purges commands", purge(COMMANDS)),
    ("shuttle-1", "deletes the readings", delete_queue(READINGS)),
    ("shuttle-1", "deletes the exchange", delete_exchange(SENSORS)),
    ("branch-1", "speaks for another machine", publish(SENSORS, OWN_KEY)),
    ("pump-01", "speaks for another machine", publish(SENSORS, OWN_KEY)),
    ("dashboard", "publishes readings", publish(SENSORS, OWN_KEY)),
    ("dashboard", "publishes alerts", publish(ALERTS, "alert.critical.shuttle.shuttle-1")),
    ("dashboard", "publishes commands", publish(CONTROL, STATUS)),
    ("dashboard", "publishes dead letters", publish(DEAD, "deadletter.shuttle.x")),
    ("dashboard", "writes to a queue directly", publish("", "dashboard.wall")),
    ("dashboard", "uses amq.topic", publish("amq.topic", "x")),
    ("dashboard", "declares a foreign queue", declare_queue("mmlw.readings.mine")),
    ("dashboard", "declares a reply queue", declare_queue("mmlw.reply.operator.x", exclusive=True)),
    ("dashboard", "declares a name that begins like its own", declare_queue("dashboards")),
    ("dashboard", "declares an exchange", declare_exchange("mmlw.mine")),
    ("dashboard", "binds its queue to the readings", bind("dashboard.wall", SENSORS, "sensor.#")),
    ("dashboard", "binds its queue to the commands", bind("dashboard.wall", CONTROL, "control.#")),
    ("dashboard", "reads readings", consume(READINGS)),
    ("dashboard", "reads commands", consume(COMMANDS)),
    ("dashboard", "reads dead letters", consume(DEAD)),
    ("dashboard", "deletes the alerts", delete_queue(ALERTS)),
    ("operator", "publishes readings", publish(SENSORS, OWN_KEY)),
    ("operator", "publishes alerts", publish(ALERTS, "alert.critical.shuttle.shuttle-1")),
    ("operator", "publishes dead letters", publish(DEAD, "deadletter.shuttle.x")),
    ("operator", "writes to a queue directly", publish("", COMMANDS)),
    ("operator", "forges user_id", publish(CONTROL, STATUS, user_id="worker")),
    ("operator", "sends what is not a command", publish(CONTROL, "control.shuttle")),
    ("operator", "declares another's reply queue", declare_queue("mmlw.reply.admin.x", exclusive=True)),
    ("operator", "declares a queue of the worker's", declare_queue("mmlw.control.other")),
    ("operator", "declares an exchange", declare_exchange("mmlw.mine")),
    ("operator", "reads readings", consume(READINGS)),
    ("operator", "reads commands", consume(COMMANDS)),
    ("operator", "reads the dashboard's queue", consume("dashboard.wall")),
    ("operator", "purges commands", purge(COMMANDS)),
    ("operator", "deletes the alerts", delete_queue(ALERTS)),
    ("worker", "publishes readings", publish(SENSORS, OWN_KEY)),
    ("worker", "publishes commands", publish(CONTROL, STATUS)),
    ("worker", "publishes an alert under another key", publish(ALERTS, "x.critical")),
    ("worker", "publishes a dead letter under another key", publish(DEAD, "x.shuttle")),
    ("worker", "forges user_id", publish(ALERTS, "alert.critical.shuttle.x", user_id="operator")),
    ("worker", "declares a foreign queue", declare_queue("dashboard.mine")),
    ("worker", "declares a foreign exchange", declare_exchange("mmlw.mine")),
    ("worker", "reads the dashboard's queue", consume("dashboard.wall")),
    ("worker", "reads a reply queue", consume("mmlw.reply.operator.x")),
    ("worker", "deletes the dashboard's queue", delete_queue("dashboard.wall")),
]  # fmt: skip


def test_everything_else_is_refused(site: Site) -> None:
    """Each attempt on a connection of its own; what is not refused is named."""

    async def attempt(user: str, act: Act) -> str:
        connection = await aio_pika.connect(site.url(user), timeout=10)
        async with connection:
            channel = await connection.channel(publisher_confirms=True)
            try:
                async with asyncio.timeout(240):
                    await act(channel)
            except amqp.ChannelClosed as error:
                return str(error)
        return ""

    async def play() -> list[str]:
        return [await attempt(user, act) for user, _, act in FORBIDDEN]

    answers = run(play())
    allowed = [
        f"{user} {what}: {answer or 'was let through'}"
        for (user, what, _), answer in zip(FORBIDDEN, answers, strict=True)
        if not ("access to" in answer or "user_id property" in answer)
    ]
    print(f"{len(FORBIDDEN) - len(allowed)} of {len(FORBIDDEN)} forbidden acts refused")
    assert not allowed


def test_nobody_else_gets_in(site: Site) -> None:
    async def refused(user: str, password: str) -> bool:
        try:
            async with RabbitBroker(site.node.url(user, password), timeout=10.0):
                return False
        except BrokerRefused:
            return True
        except BrokerUnreachable as error:  # a user without rights on the virtual host is hung up on
            return "Connection.Close" in str(error)

    async def play() -> list[bool]:
        tried = [
            ("guest", "guest"),
            ("admin", "admin"),
            ("worker", "wrong"),
            ("worker", site.passwords["operator"]),
            ("monitoring", site.passwords["monitoring"]),  # for the management API only
        ]
        return [await refused(*login) for login in tried]

    answers = run(play())
    print(f"{sum(answers)} of {len(answers)} logins refused")
    assert all(answers)


def test_a_second_generation_changes_nothing(tmp_path: Path) -> None:
    folder = generate(tmp_path / "generated")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    generate(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert folder.stat().st_mode & 0o777 == 0o700
    passwords = {path.read_text() for path in folder.glob("*_password")}
    assert len(passwords) == 8
    assert all(re.fullmatch(r"[A-Za-z0-9]{32}", password) for password in passwords)
    text = (folder / "definitions.json").read_text()
    assert not any(password in text for password in passwords)


def test_definitions_refuse_what_would_open_a_hole() -> None:
    module = definitions_module()
    whole = dict.fromkeys((*module.ROLES, "pump-07"), "secret")
    assert {user["name"] for user in module.build(whole)["users"]} == set(whole)
    for spoiled in (
        {**whole, ".*": "secret"},
        {**whole, "guest": "guest"},
        {**whole, "pump-08": ""},
        {name: whole[name] for name in whole if name != "operator"},
    ):
        with pytest.raises(ValueError, match=r"cannot be a user|is empty|no password for"):
            module.build(spoiled)
    first = module.build(whole)
    changed = module.build({**whole, "worker": "other"}, first)
    hashes = [{user["name"]: user["password_hash"] for user in built["users"]} for built in (first, changed)]
    assert {name for name in whole if hashes[0][name] != hashes[1][name]} == {"worker"}
    assert module.verifies("other", hashes[1]["worker"])
    # The example of RabbitMQ's manual: salt 908DC60A, password test12.
    expected = "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"
    assert module.hashed("test12", bytes.fromhex("908DC60A")) == expected

"""TLS and client certificates against a real RabbitMQ: who is let in, who is refused, and in which words."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from stream.brokers import connect
from stream.brokers.base import Binding, Delivery, Exchange, Message, Plan, Queue
from stream.brokers.tls import Tls
from tests.aio import run
from tests.certificates import Authority
from tests.rabbitmq_node import RabbitNode, free_port, rabbit_node

ROOT = Path(__file__).resolve().parents[2]
USERS = ("worker", "operator", "dashboard", "monitoring", "pump-01", "pump-02")
PASSWORD = "s3cret-of-{}"
SETTINGS = [
    "auth_mechanisms.1 = PLAIN",
    "auth_mechanisms.2 = AMQPLAIN",
    "auth_mechanisms.3 = EXTERNAL",
    "ssl_cert_login_from = common_name",
    "ssl_options.verify = verify_peer",
    "ssl_options.fail_if_no_peer_cert = true",
]
READINGS = Queue(name="mmlw.readings.hall")
PLAN = Plan(
    exchanges=(Exchange("mmlw.sensors"),),
    queues=(READINGS,),
    bindings=(Binding(READINGS.name, "mmlw.sensors", "sensor.#"),),
)


@dataclass(frozen=True)
class Plant:
    """A node with the deployment's users. `port` of a listener: open, mutual, foreign, elsewhere, expired."""

    node: RabbitNode
    ours: Authority
    theirs: Authority
    port: dict[str, int]

    def client(self, user: str) -> Tls:
        pair = self.ours.client(user)
        return Tls(self.ours.ca, pair.cert, pair.key)

    def url(self, listener: str = "mutual", user: str | None = None) -> str:
        who = f"{user}:{PASSWORD.format(user)}@" if user else ""
        return f"amqps://{who}127.0.0.1:{self.port[listener]}/"


def _definitions() -> dict[str, object]:
    """As deploy/rabbitmq makes them."""
    spec = importlib.util.spec_from_file_location("definitions", ROOT / "deploy/rabbitmq/definitions.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    built: dict[str, object] = module.build({user: PASSWORD.format(user) for user in USERS})
    return built


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    folder = tmp_path_factory.mktemp("tls")
    ours, theirs = Authority(folder, "ours"), Authority(folder, "theirs")
    here = ("localhost", "127.0.0.1")
    more = {
        "open": (ours, ours.server("open", *here)),
        "foreign": (theirs, theirs.server("foreign", *here)),
        "elsewhere": (ours, ours.server("elsewhere", "rabbit.example", "192.0.2.1")),
        "expired": (ours, ours.server("expired", *here, expired=True)),
    }
    mutual, port = ours.server("mutual", *here), free_port()
    settings = [
        *SETTINGS,
        f"listeners.ssl.1 = 127.0.0.1:{port}",
        f"ssl_options.cacertfile = {ours.ca}",
        f"ssl_options.certfile = {mutual.cert}",
        f"ssl_options.keyfile = {mutual.key}",
    ]
    plugins = ["rabbitmq_auth_mechanism_ssl"]
    with rabbit_node(plugins=plugins, definitions=_definitions(), settings=settings) as node:
        ports = node.tls([(signer.ca, pair.cert, pair.key) for signer, pair in more.values()])
        found = Plant(node, ours, theirs, {"mutual": port, **dict(zip(more, ports, strict=True))})
        run(_declare(found))
        yield found


async def _declare(plant: Plant) -> None:
    async with connect(plant.url("open", "worker"), Tls(plant.ours.ca)) as worker:
        await worker.declare(PLAN, mode="declare")


def reading(machine: str) -> Message:
    return Message(exchange="mmlw.sensors", routing_key=f"sensor.{machine}.readings", body=b"{}")


async def enter(url: str, tls: Tls) -> None:
    async with connect(url, tls):
        pass


async def last_reading(url: str, tls: Tls) -> Delivery:
    async with connect(url, tls) as worker:
        intake = await worker.consume(READINGS, offset=None, prefetch=50)
        found = await intake.receive(50, 0.5, 10.0)
        await intake.close()
    return found[-1]


def test_publish_and_consume_over_tls(plant: Plant) -> None:
    async def play() -> Delivery:
        async with connect(plant.url("open", "pump-01"), Tls(plant.ours.ca)) as machine:
            await machine.publish([reading("pump-01")])
        return await last_reading(plant.url("open", "worker"), Tls(plant.ours.ca))

    assert run(play()).user_id == "pump-01"


def test_publish_and_consume_as_the_certificates_common_name(plant: Plant) -> None:
    async def play() -> Delivery:
        async with connect(plant.url(), plant.client("pump-02")) as machine:
            await machine.publish([reading("pump-02")])
        return await last_reading(plant.url(), plant.client("worker"))

    assert run(play()).user_id == "pump-02"

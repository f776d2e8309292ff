"""TLS and client certificates against a real RabbitMQ: who is let in, who is refused, and in which words."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from cryptography import x509
from pamqp import commands, frame

from stream.brokers import connect
from stream.brokers.base import Binding, Delivery, Exchange, Message, Plan, Queue
from stream.brokers.rabbitmq import RabbitBroker
from stream.brokers.tls import Tls, refusal
from stream.errors import BrokerError, BrokerRefused, BrokerUnreachable, ConfigError
from stream.options import BrokerOptions, connector
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
COMMANDS = Queue(name="mmlw.control.hall", kind="classic")
PLAN = Plan(
    exchanges=(Exchange("mmlw.sensors"), Exchange("mmlw.control")),
    queues=(READINGS, COMMANDS),
    bindings=(
        Binding(READINGS.name, "mmlw.sensors", "sensor.#"),
        Binding(COMMANDS.name, "mmlw.control", "control.hall.#"),
    ),
)


@dataclass(frozen=True)
class Refused:
    """A login that must fail, and what the one line that says so must hold."""

    what: str
    url: str
    tls: Tls
    says: str


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

    def refused(self) -> list[Refused]:
        """Every way not to get in, as a user would try it."""
        theirs, late = self.theirs.client("worker"), self.ours.client("pump-02", expired=True)
        ca = self.ours.ca
        plain, open_ = f"127.0.0.1:{self.node.port}/", f"127.0.0.1:{self.port['open']}/"
        secret = PASSWORD.format("worker")
        named = self.client("pump-01")
        return [
            Refused("server of an unknown authority", self.url("foreign", "worker"), Tls(ca), "--broker-ca"),
            Refused("server unknown to the system", self.url("open", "worker"), Tls(), "--broker-ca"),
            Refused("server for another host", self.url("elsewhere", "worker"), Tls(ca), "another host"),
            Refused("server's certificate expired", self.url("expired", "worker"), Tls(ca), "expired: renew"),
            Refused("client without certificate", self.url("mutual", "worker"), Tls(ca), "--broker-cert"),
            Refused(
                "client of another authority", self.url(), Tls(ca, theirs.cert, theirs.key), "--broker-cert"
            ),
            Refused(
                "client's certificate expired", self.url(), Tls(ca, late.cert, late.key), "expired: renew"
            ),
            Refused("client with a server's certificate", self.url(), self._server(), "--broker-cert"),
            Refused("user unknown to the broker", self.url(), self.client("nobody"), 'user "nobody"'),
            Refused("user of no virtual host", self.url(), self.client("monitoring"), 'user "monitoring"'),
            Refused("wrong password", f"amqps://worker:{secret}x@{open_}", Tls(ca), "password"),
            Refused("TLS to the plain port", f"amqps://worker:{secret}@{plain}", Tls(ca), "amqp://"),
            Refused("plain to the TLS port", f"amqp://worker:{secret}@{open_}", Tls(), "amqps://"),
            Refused(
                "another user than the certificate's",
                self.url().replace("//", "//pump-02@"),
                named,
                'knows this connection as "pump-01"',
            ),
        ]

    def _server(self) -> Tls:
        pair = self.ours.server("worker", "localhost")
        return Tls(self.ours.ca, pair.cert, pair.key)


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


async def publish(url: str, tls: Tls, *messages: Message) -> None:
    async with connect(url, tls) as machine:
        await machine.publish(messages)


async def last_reading(url: str, tls: Tls) -> Delivery:
    async with connect(url, tls) as worker:
        intake = await worker.consume(READINGS, offset=None, prefetch=50)
        found = await intake.receive(50, 0.5, 10.0)
        await intake.close()
    return found[-1]


def mmlw(plant: Plant, user: str, *arguments: str) -> list[str]:
    """A command line that logs in by certificate."""
    tls = plant.client(user)
    files = [f"--broker-ca={tls.ca}", f"--broker-cert={tls.cert}", f"--broker-key={tls.key}"]
    return [sys.executable, "-m", "stream", *arguments, f"--broker={plant.url()}", *files]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


# Let in


def test_publish_and_consume_over_tls(plant: Plant) -> None:
    async def play() -> Delivery:
        await publish(plant.url("open", "pump-01"), Tls(plant.ours.ca), reading("pump-01"))
        return await last_reading(plant.url("open", "worker"), Tls(plant.ours.ca))

    assert run(play()).user_id == "pump-01"


def test_publish_and_consume_as_the_certificates_common_name(plant: Plant) -> None:
    async def play() -> Delivery:
        await publish(plant.url(), plant.client("pump-02"), reading("pump-02"))
        return await last_reading(plant.url(), plant.client("worker"))

    assert run(play()).user_id == "pump-02"


def test_host_name_of_the_certificate_may_be_used_too(plant: Plant) -> None:
    url = plant.url().replace("127.0.0.1", "localhost")
    run(publish(url, plant.client("pump-02"), reading("pump-02")))


def test_one_file_may_hold_certificate_and_key(plant: Plant, tmp_path: Path) -> None:
    pair = plant.ours.client("pump-02")
    both = tmp_path / "both.pem"
    both.write_bytes(pair.cert.read_bytes() + pair.key.read_bytes())
    run(publish(plant.url(), Tls(plant.ours.ca, both), reading("pump-02")))


def test_command_bears_the_certificates_common_name(plant: Plant) -> None:
    async def play() -> list[Delivery]:
        command = Message(exchange="mmlw.control", routing_key="control.hall.status", body=b"{}")
        await publish(plant.url(), plant.client("operator"), command)
        async with connect(plant.url(), plant.client("worker")) as worker:
            intake = await worker.consume(COMMANDS, offset=None, prefetch=5)
            return await intake.receive(1, 0.0, 10.0)

    assert [delivery.user_id for delivery in run(play())] == ["operator"]


def test_renewed_certificate_is_used_at_the_next_connection(plant: Plant) -> None:
    late = plant.ours.client("dashboard", expired=True)
    again = connector(BrokerOptions(plant.url(), None, Tls(plant.ours.ca, late.cert, late.key)))

    async def enter() -> None:
        async with again():
            pass

    with pytest.raises(BrokerRefused, match="expired"):
        run(enter())
    plant.ours.client("dashboard")  # into the same files
    run(enter())


def test_worker_machine_and_operator_log_in_by_certificate(plant: Plant, tmp_path: Path) -> None:
    """The commands, as in docs/deployment.md: the topology obeys the operator whom the certificate names."""

    def said(user: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = mmlw(plant, user, *arguments)
        return subprocess.run(
            command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
        )

    text = (ROOT / "topologies" / "water_flow.yaml").read_text()
    (tmp_path / "water_flow.yaml").write_text(text.replace("sensor.branch-1.#", "sensor.pump-01.#"))
    with (tmp_path / "log").open("wb") as log:
        command = mmlw(plant, "worker", "run", "water_flow.yaml", "--http=off", "--log-level=debug")
        worker = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 240
        while (done := said("operator", "status", "water_flow", "--json")).returncode != 0:
            assert worker.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, done.stderr
        told = said("pump-01", "publish", "--dataset=water_flow", "--limit=50", "--machine=pump-01")
        assert told.returncode == 0, told.stderr
        while json.loads(said("operator", "status", "water_flow", "--json").stdout)["next_offset"] < 50:
            assert time.monotonic() < deadline
        stranger = said("worker", "status", "water_flow")
        assert stranger.returncode == 2
        assert 'user "worker"' in stranger.stderr
    finally:
        worker.terminate()
        assert worker.wait(timeout=120) == 0
    log_text = (tmp_path / "log").read_text()
    assert not any(secret in log_text for secret in secrets(plant))


# Refused


def test_every_other_login_is_refused_in_one_line_and_bounded_time(plant: Plant) -> None:
    async def attempt(tried: Refused) -> str:
        started = time.monotonic()
        try:
            await publish(tried.url, tried.tls, reading("pump-01"))
        except BrokerError as error:
            text = str(error)
            plain = tried.what == "plain to the TLS port"  # how a server ends what is not TLS says nothing
            wanted = BrokerUnreachable if plain else BrokerRefused
            sound = isinstance(error, wanted) and tried.says in text and "\n" not in text
            return "" if sound and time.monotonic() - started < 5.0 else f"{type(error).__name__}: {text}"
        return "let in"

    tried = plant.refused()
    answers = [run(attempt(one)) for one in tried]
    print(f"{answers.count('')} of {len(tried)} logins refused")
    assert not [f"{one.what}: {answer}" for one, answer in zip(tried, answers, strict=True) if answer]


def test_command_that_is_refused_says_one_line_and_leaves_with_2(plant: Plant, tmp_path: Path) -> None:
    def command(one: Refused) -> list[str]:
        files = (("ca", one.tls.ca), ("cert", one.tls.cert), ("key", one.tls.key))
        options = [f"--broker-{name}={path}" for name, path in files if path is not None]
        line = ["alerts"]  # which loads little
        if one.what == "another user than the certificate's":  # seen only as it publishes
            line = ["publish", "--dataset=water_flow", "--machine=pump-01", "--limit=1"]
        line.append(f"--broker={one.url}")
        return [sys.executable, "-m", "stream", *line, *options]

    started = [
        subprocess.Popen(
            command(one),
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for one in plant.refused()
    ]
    found = [(process.communicate(timeout=300), process.returncode) for process in started]
    for one, ((out, err), code) in zip(plant.refused(), found, strict=True):
        assert (out, code, err.count("\n"), err[:6]) == ("", 2, 1, "mmlw: "), (one.what, out, err)
        assert one.says in err
        assert not any(secret in err for secret in secrets(plant))


def secrets(plant: Plant) -> set[str]:
    """Every password, and every line of every key."""
    keys = {
        line for path in plant.ours.ca.parent.glob("*.key") for line in path.read_text().splitlines()[1:-1]
    }
    return keys | {PASSWORD.format(user) for user in USERS}


def test_certificate_grants_what_its_user_may_do_and_no_more(plant: Plant) -> None:
    def to(exchange: str, key: str) -> Message:
        return Message(exchange=exchange, routing_key=key, body=b"{}")

    forbidden = [
        reading("pump-02"),
        reading("pump-010"),
        to("mmlw.sensors", "sensor.pump-01.a.b"),
        to("mmlw.control", "control.hall.status"),
        to("", READINGS.name),
        to("amq.topic", "sensor.pump-01.readings"),
    ]

    async def play() -> list[str]:
        passed = []
        for message in forbidden:
            with contextlib.suppress(BrokerRefused):
                await publish(plant.url(), plant.client("pump-01"), message)
                passed.append(f"{message.exchange} {message.routing_key}")
        async with connect(plant.url(), plant.client("pump-01")) as machine:
            with contextlib.suppress(BrokerRefused):
                await machine.consume(READINGS, offset=None, prefetch=5)
                passed.append("consume")
            with contextlib.suppress(BrokerRefused):
                await machine.declare(PLAN, mode="declare")
                passed.append("declare")
        await publish(plant.url(), plant.client("pump-01"), reading("pump-01"))
        return passed

    passed = run(play())
    print(f"{len(forbidden) + 2 - len(passed)} of {len(forbidden) + 2} forbidden acts refused")
    assert not passed


def test_reason_is_told_to_one_who_listens(plant: Plant) -> None:
    """Where the driver, which speaks first, may see no more than a reset."""

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def play() -> tuple[list[ssl.SSLError | None], float]:
        mutual, context = plant.port["mutual"], Tls(plant.ours.ca).context()
        told = [await refusal("127.0.0.1", mutual, context, seconds=5.0) for _ in range(10)]
        started = time.monotonic()
        async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            told.append(await refusal("127.0.0.1", port, context, seconds=0.2))
        told.append(await refusal("127.0.0.1", free_port(), context, seconds=0.2))
        return told, time.monotonic() - started

    told, seconds = run(play())
    assert {error.reason for error in told[:10] if error} == {"TLSV13_ALERT_CERTIFICATE_REQUIRED"}
    assert None not in told[:10]
    assert told[10:] == [None, None]
    assert seconds < 3.0


def test_mute_tls_port_is_unreachable_within_the_timeout(plant: Plant) -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def play() -> None:
        async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
            url = f"amqps://worker:x@127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            async with RabbitBroker(url, timeout=0.5, tls=Tls(plant.ours.ca)):
                pass

    with pytest.raises(BrokerUnreachable, match=r"no answer within 0\.5 s"):
        run(play())


@pytest.mark.parametrize(
    ("offers", "user", "says"),
    [("PLAIN AMQPLAIN", None, "takes no login by certificate"), ("EXTERNAL", "worker", "takes no passwords")],
)
def test_broker_without_the_mechanism_is_refused(
    plant: Plant, offers: str, user: str | None, says: str
) -> None:
    pair = plant.ours.server("other", "127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=plant.ours.ca)
    context.load_cert_chain(pair.cert, pair.key)

    async def start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(frame.marshal(commands.Connection.Start(mechanisms=offers), 0))
        await reader.read()
        writer.close()

    async def play() -> None:
        async with await asyncio.start_server(start, "127.0.0.1", 0, ssl=context) as server:
            who = f"{user}:x@" if user else ""
            url = f"amqps://{who}127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            async with connect(url, Tls(plant.ours.ca) if user else plant.client("worker")):
                pass

    with pytest.raises(BrokerRefused, match=says):
        run(play())


def test_no_secret_is_logged_or_shown(plant: Plant, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    password = connector(BrokerOptions(plant.url("open", "pump-01"), None, Tls(plant.ours.ca)))
    certificate = connector(BrokerOptions(plant.url(), None, plant.client("pump-01")))
    run(publish(password.url, password.tls, reading("pump-01")))
    run(publish(certificate.url, certificate.tls, reading("pump-01")))
    with pytest.raises(BrokerRefused):
        run(publish(plant.url("open", "pump-01").replace("//pump-01", "//nobody"), Tls(plant.ours.ca)))
    shown = f"{caplog.text} {password!r} {certificate!r} {password()!r} {certificate()!r}"
    assert "aiormq" in shown
    assert not any(secret in shown for secret in secrets(plant))


# Files and addresses that cannot be used


def problems(url: str, tls: Tls, password_file: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        connector(BrokerOptions(url, password_file, tls))
    return str(caught.value)


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    ours = Authority(tmp_path, "ours")
    pair, other, nameless = ours.client("worker"), ours.client("other"), ours.client("x", common_name=False)
    locked, missing = ours.locked(pair, "open sesame"), tmp_path / "missing.pem"
    junk = tmp_path / "junk.pem"
    junk.write_text("hello")
    here = "amqps://127.0.0.1/"
    expected: Sequence[tuple[Tls, str, str]] = [
        (Tls(missing), "--broker-ca", "No such file"),
        (Tls(tmp_path), "--broker-ca", "Is a directory"),
        (Tls(junk), "--broker-ca", "no certificate"),
        (Tls(pair.key), "--broker-ca", "no certificate"),
        (Tls(ours.ca, missing, pair.key), "--broker-cert", "No such file"),
        (Tls(ours.ca, junk, pair.key), "--broker-cert", "no certificate"),
        (Tls(ours.ca, nameless.cert, nameless.key), "--broker-cert", "no common name"),
        (Tls(ours.ca, pair.cert), "--broker-cert", "--broker-key"),
        (Tls(ours.ca, pair.cert, missing), "--broker-key", "No such file"),
        (Tls(ours.ca, pair.cert, tmp_path), "--broker-key", "Is a directory"),
        (Tls(ours.ca, pair.cert, junk), "--broker-key", "no private key"),
        (Tls(ours.ca, pair.cert, other.key), "--broker-key", "is not the key of"),
        (Tls(ours.ca, pair.cert, locked.key), "--broker-key", "passphrase"),
        (Tls(ours.ca, None, pair.key), "--broker-key", "--broker-cert"),
    ]
    for tls, option, says in expected:
        text = problems(here, tls)
        assert text.startswith(f"{option}: "), text
        assert says in text, text
        assert "\n" not in text, text
    assert problems("amqps://u@127.0.0.1/", Tls(missing, missing, missing)).count("\n") == 2  # all at once


@pytest.mark.parametrize(
    "query", ["no_verify_ssl=1", "cafile=x", "auth=EXTERNAL", "certfile=x&keyfile=y", "no_verify_ssl"]
)
def test_address_cannot_switch_verification_off(query: str) -> None:
    text = problems(f"amqps://127.0.0.1/?{query}", Tls())
    assert text.startswith("--broker: takes no ")
    assert "always verified" in text


def test_certificates_fit_their_address(tmp_path: Path) -> None:
    ours = Authority(tmp_path, "ours")
    pair = ours.client("worker")
    tls = Tls(ours.ca, pair.cert, pair.key)
    secret = tmp_path / "password"
    secret.write_text("s3cret")
    assert "amqps://" in problems("amqp://guest:guest@localhost/", tls)
    assert "leave the password out" in problems("amqps://worker:s3cret@localhost/", tls)
    assert "leave the password out" in problems("amqps://localhost/", tls, secret)
    assert connector(BrokerOptions("amqps://localhost/", None, tls)).user == "worker"
    assert connector(BrokerOptions("amqps://CN%3Dworker@localhost/", None, tls)).user == "CN=worker"


def test_unusable_file_leaves_with_2(tmp_path: Path) -> None:
    names = {"MMLW_BROKER": "amqps://worker@127.0.0.1/", "MMLW_BROKER_CA": str(tmp_path / "nowhere.pem")}
    done = subprocess.run(
        [sys.executable, "-m", "stream", "alerts"],
        cwd=tmp_path,
        env={**ENVIRONMENT, **names},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mmlw: --broker-ca: ")
    assert "Traceback" not in done.stderr


def test_certificates_made_as_the_docs_say_sign_no_others(tmp_path: Path) -> None:
    """Without a key usage, some brokers take what a machine signed with its own certificate."""
    text = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text(encoding="utf-8")
    commands = next(part for part in text.split("```sh\n")[1:] if "openssl" in part).split("```")[0]
    subprocess.run(["sh", "-e", "-c", commands], cwd=tmp_path, check=True, capture_output=True)
    for name in ("server", "worker"):
        made = x509.load_pem_x509_certificate((tmp_path / f"{name}.pem").read_bytes())
        usage = made.extensions.get_extension_for_class(x509.KeyUsage)
        assert usage.critical
        assert (usage.value.digital_signature, usage.value.key_cert_sign) == (True, False)
        assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False

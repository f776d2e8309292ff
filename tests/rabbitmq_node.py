"""A private RabbitMQ node: own name, ports, cookie and folders, on loopback only, gone at the end."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

__all__ = ["RabbitNode", "free_port", "rabbit_node"]

_BIN = Path("/usr/lib/rabbitmq/bin")
_START_SECONDS = 90


_taken: set[int] = set()


def free_port() -> int:
    """A loopback port that nothing listens on, below those that connections take; never the same one twice."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = 12_000 + 2_000 * (number % 10) + random.randrange(2_000)
        if port not in _taken:
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
                _taken.add(port)
                return port


class RabbitNode:
    """A running node. `port` AMQP; `prometheus_port` metrics, where that plugin is enabled.

    `settings` are further lines of its rabbitmq.conf; `tls` adds listeners to a node that runs.
    """

    def __init__(
        self,
        folder: Path,
        plugins: Sequence[str],
        definitions: Mapping[str, object] | None,
        settings: Sequence[str] = (),
    ) -> None:
        if not (_BIN / "rabbitmq-server").exists():
            raise RuntimeError(
                "rabbitmq-server is not installed: run the tests with `make test`, which installs it"
            )
        self.folder = folder
        self.port, self._dist, self._epmd = free_port(), free_port(), free_port()
        self.prometheus_port, self.management_port = free_port(), free_port()
        lines = [
            f"listeners.tcp.1 = 127.0.0.1:{self.port}",
            "disk_free_limit.absolute = 200MB",
            "log.console = false",
            "log.file.level = info",
            f"prometheus.tcp.port = {self.prometheus_port}",
            "prometheus.tcp.ip = 127.0.0.1",
            f"management.tcp.port = {self.management_port}",
            "management.tcp.ip = 127.0.0.1",
        ]
        if definitions is not None:
            (folder / "definitions.json").write_text(json.dumps(definitions))
            lines.append(f"load_definitions = {folder / 'definitions.json'}")
        keep = [line for line in lines if line.split(".")[0] not in ("prometheus", "management")]
        if any("management" in plugin for plugin in plugins):
            keep += [line for line in lines if line.startswith("management")]
        if any("prometheus" in plugin for plugin in plugins):
            keep += [line for line in lines if line.startswith("prometheus")]
        (folder / "rabbitmq.conf").write_text("\n".join([*keep, *settings]) + "\n")
        (folder / "enabled_plugins").write_text(f"[{','.join(plugins)}].\n")
        (folder / "home").mkdir()
        self._name = f"mmlw{self.port}@localhost"
        self._env = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(folder / "home"),
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_PORT": str(self._epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._names = 0

    def start(self) -> None:
        """Start, and wait until it serves. Raises RuntimeError with the end of its output."""
        log = (self.folder / "output").open("ab")
        with log:
            self._process = subprocess.Popen(
                [_BIN / "rabbitmq-server"], env=self._env, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            done = subprocess.run(
                [_BIN / "rabbitmqctl", "--quiet", "await_startup", "--timeout", "20"],
                env=self._env,
                capture_output=True,
                timeout=60,
                check=False,
            )
            if done.returncode == 0:
                return
        self.stop()
        raise RuntimeError(f"RabbitMQ did not start: {(self.folder / 'output').read_text()[-2000:]}")

    def url(self, user: str = "guest", password: str = "guest", vhost: str = "/") -> str:
        """Its AMQP address."""
        return f"amqp://{user}:{password}@127.0.0.1:{self.port}/{'' if vhost == '/' else vhost}"

    def ctl(self, *arguments: str) -> str:
        """What `rabbitmqctl` prints."""
        done = subprocess.run(
            [_BIN / "rabbitmqctl", "--quiet", *arguments],
            env=self._env,
            capture_output=True,
            timeout=60,
            check=False,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def vhost(self) -> str:
        """A fresh virtual host, for a test that wants the broker for itself."""
        self._names += 1
        name = f"test{self._names}"
        self.ctl(
            "eval",
            f'rabbit_vhost:add(<<"{name}">>, <<"t">>), rabbit_auth_backend_internal:set_permissions('
            f'<<"guest">>, <<"{name}">>, <<".*">>, <<".*">>, <<".*">>, <<"t">>).',
        )
        return name

    def tls(self, listeners: Sequence[tuple[Path, Path, Path]]) -> list[int]:
        """Ports of new TLS listeners, each with authorities, certificate and key; clients need show none.

        One command, because each costs a second.
        """
        ports = [free_port() for _ in listeners]
        started = [
            f'ok = rabbit_networking:start_ssl_listener({{"127.0.0.1", {port}}}, [{{cacertfile, "{ca}"}}, '
            f'{{certfile, "{cert}"}}, {{keyfile, "{key}"}}, {{verify, verify_peer}}], 2)'
            for port, (ca, cert, key) in zip(ports, listeners, strict=True)
        ]
        self.ctl("eval", ", ".join(started) + ".")
        return ports

    def kill(self) -> None:
        """Die as in a power cut."""
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        """End in order; it may be started again."""
        self._signal(signal.SIGTERM)

    def user(self, name: str, password: str, vhost: str) -> None:
        """A user who may do everything on a virtual host; one command, because each costs a second."""
        self.ctl(
            "eval",
            f'rabbit_auth_backend_internal:add_user(<<"{name}">>, <<"{password}">>, <<"t">>), '
            f'rabbit_auth_backend_internal:set_permissions(<<"{name}">>, <<"{vhost}">>, <<".*">>, <<".*">>, '
            f'<<".*">>, <<"t">>).',
        )

    def freeze(self) -> None:
        """Stop answering while every connection stays open; `kill` it afterwards."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGSTOP)

    def stop(self) -> None:
        """Kill the node, of which nothing is kept: to end in order takes seconds. And its port mapper, which refuses
        while it still lists a node that just died."""
        self.kill()
        for _ in range(50):
            done = subprocess.run(
                ["epmd", "-kill"], env=self._env, capture_output=True, timeout=20, check=False
            )
            if b"living nodes" not in done.stdout:
                return
            time.sleep(0.1)
        raise RuntimeError(f"the port mapper of {self._name} on port {self._epmd} does not end")

    def _signal(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
            os.killpg(process.pid, signal.SIGCONT)  # a frozen node would not hear it
        try:
            process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=120)


@contextlib.contextmanager
def rabbit_node(
    *,
    plugins: Sequence[str] = (),
    definitions: Mapping[str, object] | None = None,
    settings: Sequence[str] = (),
) -> Iterator[RabbitNode]:
    """A node of one's own, stopped at the end."""
    folder = Path(tempfile.mkdtemp(prefix="mmlw-rabbit-"))
    node = RabbitNode(folder, plugins, definitions, settings)
    try:
        node.start()
        yield node
    finally:
        node.stop()
        shutil.rmtree(folder, ignore_errors=True)

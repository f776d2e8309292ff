"""What several commands share: options, the broker they name, the registry they read, the table they publish."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import click

from stream.brokers.tls import Tls
from stream.errors import ConfigError, Problem

if TYPE_CHECKING:
    from stream.brokers.base import Broker
    from stream.models import Registry
    from stream.shelf import Shelf
    from stream.tables import Table
    from stream.topology import Topology

__all__ = [
    "BrokerOptions",
    "Command",
    "Connector",
    "broker_options",
    "capture_option",
    "connector",
    "data_option",
    "interruptible",
    "registry_of",
    "registry_options",
    "shelf_of",
    "table_of",
    "timeout_option",
]

_BROKER = "amqp://guest:guest@localhost:5672/"
_BROKER_FILES = {
    "--broker-password-file": "File with the broker password, so that it stands in no command line.",
    "--broker-ca": "PEM file of the authorities trusted to sign an amqps:// broker's certificate.  "
    "[default: the system's]",
    "--broker-cert": "PEM file of a client certificate to log in with, in place of a password (SASL EXTERNAL).",
    "--broker-key": "PEM file of that certificate's key.  [default: in the same file]",
}
Command = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    """What a command was told about the broker, not checked yet."""

    url: str = field(repr=False)
    password_file: Path | None
    tls: Tls


@dataclass(frozen=True, slots=True)
class Connector:
    """Makes a fresh connection each time it is called, with the files as they then are."""

    url: str = field(repr=False)
    tls: Tls

    def __call__(self) -> Broker:
        """A connection not yet opened."""
        from stream.brokers import connect

        return connect(self.url, self.tls)

    @property
    def user(self) -> str:
        """As whom it connects."""
        return unquote(urlsplit(self.url).username or "guest")


def broker_options(role: str) -> Callable[[Command], Command]:
    """Adds `--broker` and what belongs to it, given to the command as `broker`; `role` says as whom one connects."""

    def add(command: Command) -> Command:
        @wraps(command)
        def given(
            *arguments: Any,
            broker_url: str,
            broker_password_file: Path | None,
            broker_ca: Path | None,
            broker_cert: Path | None,
            broker_key: Path | None,
            **options: Any,
        ) -> Any:
            tls = Tls(broker_ca, broker_cert, broker_key)
            broker = BrokerOptions(broker_url, broker_password_file, tls)
            return command(*arguments, broker=broker, **options)

        with_files: Command = given
        for name, text in reversed(_BROKER_FILES.items()):
            with_files = click.option(
                name,
                type=click.Path(path_type=Path),
                envvar="MMLW_" + name.removeprefix("--").replace("-", "_").upper(),
                show_envvar=True,
                help=text,
            )(with_files)
        return click.option(
            "--broker",
            "broker_url",
            default=_BROKER,
            envvar="MMLW_BROKER",
            show_envvar=True,
            help=f"amqp:// or amqps:// address, as {role}.  [default: guest on localhost]",
        )(with_files)

    return add


def registry_options(command: Command) -> Command:
    """Adds `--registry`."""
    return click.option(
        "--registry",
        "registry_uri",
        envvar="MMLW_REGISTRY",
        show_envvar=True,
        help="MLflow: sqlite:///FILE or http://HOST:PORT.  [default: sqlite file below --data]",
    )(command)


def data_option(command: Command) -> Command:
    """Adds `--data`."""
    return click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("mmlw-data"),
        show_default=True,
        envvar="MMLW_DATA",
        help="Folder of checkpoints and of the embedded model registry.",
    )(command)


def capture_option(command: Command) -> Command:
    """Adds `--capture`, given to the command as `captures`."""
    return click.option(
        "--capture",
        "captures",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="MMLW_CAPTURE",
        show_envvar=True,
        help="Folder of captures, one below it for each topology.  [default: capture below --data]",
    )(command)


def timeout_option(text: str) -> Callable[[Command], Command]:
    """Adds `--timeout`, by default a minute; `text` says what for."""
    return click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=60.0,
        show_default=True,
        help=text,
    )


def interruptible(work: Coroutine[Any, Any, Any]) -> Any:
    """Run until done; Ctrl-C and SIGTERM end it as asked, not with a traceback."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        sys.exit(0)


def connector(broker: BrokerOptions) -> Connector:
    """Makes connections to the broker. Raises ConfigError on an address or a file that cannot be used."""
    from stream.brokers import address

    url = address(broker.url, broker.tls)
    if broker.password_file is not None:
        try:
            password = broker.password_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([Problem("--broker-password-file", str(error))]) from error
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        user = parts.username or "guest"
        url = urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}"))
        url = address(url, broker.tls)
    if urlsplit(url).scheme == "amqps":
        broker.tls.context()
    return Connector(url, broker.tls)


def registry_of(uri: str | None, data: Path) -> Registry:
    """The model registry at an address, by default an embedded one below the data folder."""
    from stream.models import Registry

    return Registry(uri or f"sqlite:///{(data / 'mlflow' / 'registry.db').absolute()}")


def shelf_of(registry_uri: str | None, data: Path, topologies: tuple[Topology, ...]) -> Shelf | None:
    """The models of a registry; None where no topology needs one (MLflow is then never loaded)."""
    if not any(topology.registry_models for topology in topologies):
        return None
    from stream.shelf import Shelf

    specs = [spec for topology in topologies for spec in topology.registry_models.values() if spec.trust]
    pins = {spec.name: spec.pin for spec in specs}
    if odd := [spec.name for spec in specs if spec.pin != pins[spec.name]]:
        problem = f"{odd[0]} is pinned in two ways; say the same wherever it is used"
        raise ConfigError([Problem("trust", problem)])
    return Shelf(registry_of(registry_uri, data), data / "models", pins)


def table_of(file: Path | None, dataset: str | None) -> Table:
    """The readings of a file or of a data set. Raises ConfigError unless exactly one is named."""
    from stream.tables import from_dataset, read_csv

    if (file is None) == (dataset is None):
        raise ConfigError([Problem("", "say what to read: a CSV file or --dataset shuttle (not both)")])
    return read_csv(file) if file is not None else from_dataset(str(dataset))

"""What several commands share: options, the broker they name, the registry they read, the table they publish."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

import click

from stream.errors import ConfigError, Problem

if TYPE_CHECKING:
    from stream.brokers.base import Broker
    from stream.models import Registry
    from stream.shelf import Shelf
    from stream.tables import Table
    from stream.topology import Topology

__all__ = [
    "Command",
    "broker_options",
    "connector",
    "data_option",
    "interruptible",
    "registry_of",
    "registry_options",
    "shelf_of",
    "table_of",
]

_BROKER = "amqp://guest:guest@localhost:5672/"
Command = Callable[..., Any]


def broker_options(role: str) -> Callable[[Command], Command]:
    """Adds `--broker` and `--broker-password-file`; `role` says as whom one connects."""

    def add(command: Command) -> Command:
        command = click.option(
            "--broker-password-file",
            type=click.Path(path_type=Path, dir_okay=False),
            help="File with the broker password, so that it stands in no command line.",
        )(command)
        return click.option(
            "--broker",
            "broker_url",
            default=_BROKER,
            envvar="MMLW_BROKER",
            show_envvar=True,
            help=f"amqp:// or amqps:// address, as {role}.  [default: guest on localhost]",
        )(command)

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


def interruptible(work: Coroutine[Any, Any, Any]) -> Any:
    """Run until done; Ctrl-C and SIGTERM end it as asked, not with a traceback."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        sys.exit(0)


def connector(url: str, password_file: Path | None) -> Callable[[], Broker]:
    """Makes a fresh connection each time it is called. Raises ConfigError on a bad address or file."""
    from stream.brokers import connect

    if password_file is not None:
        try:
            password = password_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError([Problem("--broker-password-file", str(error))]) from error
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        user = parts.username or "guest"
        url = urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}"))
    return partial(connect, url)


def registry_of(uri: str | None, data: Path) -> Registry:
    """The model registry at an address, by default an embedded one below the data folder."""
    from stream.models import Registry

    return Registry(uri or f"sqlite:///{(data / 'mlflow' / 'registry.db').absolute()}")


def shelf_of(registry_uri: str | None, data: Path, topologies: tuple[Topology, ...]) -> Shelf | None:
    """The models of a registry; None where no topology needs one (MLflow is then never loaded)."""
    if not any(topology.registry_models for topology in topologies):
        return None
    from stream.shelf import Shelf

    return Shelf(registry_of(registry_uri, data), data / "models")


def table_of(file: Path | None, dataset: str | None) -> Table:
    """The readings of a file or of a data set. Raises ConfigError unless exactly one is named."""
    from stream.tables import from_dataset, read_csv

    if (file is None) == (dataset is None):
        raise ConfigError([Problem("", "say what to read: a CSV file or --dataset shuttle (not both)")])
    return read_csv(file) if file is not None else from_dataset(str(dataset))

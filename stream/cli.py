"""The `mmlw` command: one clear line for what goes wrong, exit code 2, no traceback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

import click
import msgspec

from stream import log
from stream.errors import ConfigError, MmlwError, Problem

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it: --help answers at once
    from stream.topology import RegistryModel, Topology

__all__ = ["main"]

_BROKER = "amqp://guest:guest@localhost:5672/"
_Command = Callable[..., Any]


def main() -> None:
    """Run the command line."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except BaseExceptionGroup as group:
        from stream.runtimes.local import first_error

        first = first_error(group)
        if not isinstance(first, MmlwError):
            raise
        _fail(first)
    except MmlwError as error:
        _fail(error)


def _fail(error: BaseException) -> None:
    for line in str(error).splitlines():
        click.echo(f"mmlw: {line}", err=True)
    sys.exit(2)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("mmlw"), prog_name="mmlw")
def cli() -> None:
    """Watches machines: reads their sensor readings from RabbitMQ, scores them, publishes alerts.

    \b
    Begin without any server:
      mmlw demo                 real data through the whole product, and a report to look at
      mmlw try FILE.csv         the same for your own readings
    \b
    In production:
      mmlw check FILE...        every problem of a topology file at once
      mmlw run FILE...          run topologies on RabbitMQ
      mmlw status TOPOLOGY      and swap, rollback, pause, resume: steer a running one
      mmlw alerts               watch alerts as they come
    """


def _broker_options(role: str) -> Callable[[_Command], _Command]:
    def add(command: _Command) -> _Command:
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


def _registry_options(command: _Command) -> _Command:
    return click.option(
        "--registry",
        "registry_uri",
        envvar="MMLW_REGISTRY",
        show_envvar=True,
        help="MLflow: sqlite:///FILE or http://HOST:PORT.  [default: sqlite file below --data]",
    )(command)


def _data_option(command: _Command) -> _Command:
    return click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("mmlw-data"),
        show_default=True,
        envvar="MMLW_DATA",
        help="Folder of checkpoints and of the embedded model registry.",
    )(command)


@cli.command()
@_data_option
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), default=Path("mmlw-report.html"))
@click.option(
    "--rows", type=click.IntRange(min=1000), help="Use only this many rows of Shuttle (a quicker look)."
)
def demo(data: Path, report: Path, rows: int | None) -> None:
    """Run the whole product on real data, with no server and no network.

    Trains a batch detector, registers it in an embedded MLflow, replays two data sets over the embedded
    broker, scores them with online and batch detectors, swaps the batch model half-way by a control message,
    and leaves an HTML report.
    """
    from stream.demo import run_demo

    log.configure("auto", "warning")
    asyncio.run(run_demo(data / "demo", report, rows))


@cli.command("try")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--machine", help="Name of the machine, where the file has no column for it.")
@click.option(
    "--topology", "output", type=click.Path(path_type=Path), help="Where to write the starter topology."
)
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the report.")
@click.option("--force", is_flag=True, help="Overwrite a topology file that is there.")
def try_(file: Path, machine: str | None, output: Path | None, report: Path | None, force: bool) -> None:
    """Look for anomalies in your own readings: a CSV file with a time and one column a sensor.

    Writes a starter topology beside the file (edit it, run it again), runs it on the embedded broker, and
    leaves an HTML report. A column named machine, device or asset tells machines apart; a column named
    anomaly or label is compared with the alerts and never shown to the detectors.
    """
    from stream.starter import run_try

    log.configure("auto", "warning")
    asyncio.run(run_try(file, machine=machine, output=output, report=report, force=force))


@cli.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def check(files: tuple[Path, ...]) -> None:
    """Report every problem of topology files at once, with place and remedy.

    Exit code 0: all are sound; 2: some are not.
    """
    from stream.config import load_all

    problems: list[Problem] = []
    for file in files:
        try:
            for topology in load_all(file):
                sensors = len(topology.source.sensors)
                click.echo(
                    f"{file}: {topology.name}: sound ({sensors} sensors, {len(topology.detectors)} detectors)"
                )
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
def graph(file: Path) -> None:
    """Draw topologies as Mermaid text (paste it into any Markdown viewer)."""
    from stream.config import load_all
    from stream.graph import mermaid

    click.echo("\n".join(mermaid(topology) for topology in load_all(file)))


@cli.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@_broker_options("the worker")
@_registry_options
@_data_option
@click.option(
    "--http", default="127.0.0.1:9464", show_default=True, help="/metrics, /healthz, /readyz; or off."
)
@click.option(
    "--log", "log_form", type=click.Choice(["auto", "console", "json"]), default="auto", show_default=True
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Seconds to wait for a broker that is not there.",
)
@click.option(
    "--grace", type=click.FloatRange(min=0), default=30.0, show_default=True, help="Seconds to stop within."
)
def run(
    files: tuple[Path, ...],
    broker_url: str,
    broker_password_file: Path | None,
    registry_uri: str | None,
    data: Path,
    http: str,
    log_form: Any,
    log_level: str,
    wait: float,
    grace: float,
) -> None:
    """Run topologies on RabbitMQ until SIGTERM or Ctrl-C; nothing is lost in either.

    Declares what a topology needs on the broker (with `declare: false` only checks it), resumes where the
    checkpoint in --data stands, and goes on after any lost connection. A second signal leaves at once: what
    was not committed is read again at the next start.
    """
    from stream.config import load_all

    log.configure(log_form, log_level)
    topologies = tuple(topology for file in files for topology in load_all(file))
    connect = _connector(broker_url, broker_password_file)
    asyncio.run(_run(topologies, connect, _shelf(registry_uri, data, topologies), data, http, wait, grace))


async def _run(
    topologies: tuple[Topology, ...],
    connect: Any,
    shelf: Any,
    data: Path,
    http: str,
    wait: float,
    grace: float,
) -> None:
    from stream.http import bind, serving
    from stream.metrics import Metrics
    from stream.runtimes.local import Worker

    stop = asyncio.Event()
    metrics = Metrics()
    metrics.info.labels(version("mmlw")).set(1)
    worker = Worker(topologies, connect=connect, data=data, shelf=shelf, metrics=metrics, wait=wait)
    loop = asyncio.get_running_loop()

    def leave() -> None:
        if stop.is_set():
            os._exit(1)
        log.get().info("stopping", grace_s=grace)
        stop.set()
        loop.call_later(grace, _overdue)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave)
    web = contextlib.nullcontext() if http == "off" else serving(bind(http), metrics, worker.problems)
    async with web:
        await worker.run(stop)


def _overdue() -> None:
    log.get().error("stopped_late", detail="the grace time is over; what was not committed is read again")
    os._exit(1)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--detector", help="Which batch detector, where the topology has several.")
@click.option("--input", "table", type=click.Path(path_type=Path), help="CSV file of readings to train on.")
@click.option("--dataset", help="Or a data set that comes with the product: shuttle, water_flow.")
@click.option("--rows", type=click.IntRange(min=1), help="Use only the first so many rows.")
@click.option("--alias", help="Alias to point at the new version.  [default: the one the topology names]")
@_registry_options
@_data_option
def train(
    file: Path,
    detector: str | None,
    table: Path | None,
    dataset: str | None,
    rows: int | None,
    alias: str | None,
    registry_uri: str | None,
    data: Path,
) -> None:
    """Train a topology's batch detector, register it in MLflow and point an alias at it.

    \b
    mmlw train topologies/shuttle.yaml --dataset shuttle --rows 10000
    """
    from stream.config import load
    from stream.training import train_detector

    topology = load(file)
    name, spec = _batch_detector(topology, detector)
    readings = _table(table, dataset)
    shelf = _shelf(registry_uri, data, (topology,))
    ref, weights = train_detector(
        topology, name, readings, shelf.registry, rows=rows, alias=alias or spec.alias
    )
    click.echo(
        f"{ref.name} version {ref.version} ({weights.kind}), threshold {weights.threshold:.4g}, {ref.digest}"
    )
    if alias or spec.alias:
        click.echo(f"models:/{ref.name}@{alias or spec.alias} now means version {ref.version}")


def _batch_detector(topology: Topology, name: str | None) -> tuple[str, RegistryModel]:
    models = dict(topology.registry_models)
    if name is None and len(models) == 1:
        name = next(iter(models))
    if name not in models:
        known = ", ".join(models) or "this topology has none"
        raise ConfigError([Problem("--detector", f"name one of the topology's batch detectors ({known})")])
    return name, models[name]


@cli.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--dataset", help="A data set that comes with the product: shuttle, water_flow.")
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), help="Messages a second.  [default: no limit]"
)
@click.option("--machine", help="Publish under this machine's name.")
@click.option("--exchange", default="mmlw.sensors", show_default=True)
@click.option("--format", "form", type=click.Choice(["json", "msgpack"]), default="json", show_default=True)
@click.option(
    "--rows", type=click.IntRange(min=1), default=1, show_default=True, help="Readings in a message."
)
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many messages.")
@click.option(
    "--loop", "again", is_flag=True, help="Begin anew at the end; readings then carry the present time."
)
@_broker_options("a machine")
def publish(
    file: Path | None,
    dataset: str | None,
    rate: float | None,
    machine: str | None,
    exchange: str,
    form: Any,
    rows: int,
    limit: int | None,
    again: bool,
    broker_url: str,
    broker_password_file: Path | None,
) -> None:
    """Play machines: publish the rows of a CSV file or of a data set as readings.

    \b
    mmlw publish --dataset shuttle --rate 200
    mmlw publish history.csv --machine pump-07
    """
    import itertools

    from stream.publisher import messages
    from stream.publisher import publish as publish_messages

    table = _table(file, dataset)
    one = partial(messages, table, exchange, form=form, rows=rows, machine=machine, restamp=again)
    source = itertools.chain.from_iterable(one() for _ in (itertools.count() if again else range(1)))
    connect = _connector(broker_url, broker_password_file)

    async def play() -> int:
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.completed} messages published"), TimeElapsedColumn())
        with Progress(*columns, disable=not sys.stderr.isatty(), transient=True) as bar:
            task = bar.add_task("publish", total=None)
            async with connect() as broker:
                chosen = itertools.islice(source, limit)
                return await publish_messages(
                    broker, chosen, rate=rate, report=lambda n: bar.update(task, completed=n)
                )

    click.echo(f"{_interruptible(play())} messages published to {exchange}")


@cli.command()
@_broker_options("a consumer")
@click.option("--queue", default="mmlw.alerts", show_default=True, help="The stream that keeps the alerts.")
@click.option("--from-start", is_flag=True, help="Show what is kept, too.")
@click.option("--limit", type=click.IntRange(min=1), help="Leave after so many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def alerts(
    broker_url: str,
    broker_password_file: Path | None,
    queue: str,
    from_start: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """Show alerts live, until Ctrl-C."""
    from stream.watch import watch_alerts

    connect = _connector(broker_url, broker_password_file)
    _interruptible(watch_alerts(connect, queue, from_start=from_start, limit=limit, as_json=as_json))


def _steering(verb: str, text: str, *, detector: bool = False, model: bool = False) -> None:
    """Add one of the commands that steer a running topology."""

    def command(
        topology: str,
        broker_url: str,
        broker_password_file: Path | None,
        timeout: float,
        as_json: bool,
        **arguments: str | None,
    ) -> None:
        from stream.config import load
        from stream.control import request
        from stream.watch import show_receipt

        name = load(topology).name if topology.endswith((".yaml", ".yml", ".py")) else topology
        connect = _connector(broker_url, broker_password_file)
        user = urlsplit(broker_url).username or "guest"

        async def send() -> Any:
            async with connect() as broker:
                return await request(broker, name, verb, user=user, timeout=timeout, **arguments)

        receipt = asyncio.run(send())
        if as_json:
            click.echo(msgspec.json.format(msgspec.json.encode(receipt), indent=2).decode())
        else:
            show_receipt(receipt)
        if receipt["status"] != "applied":
            sys.exit(1)

    command.__doc__ = text
    wrapped: _Command = command
    wrapped = click.option("--json", "as_json", is_flag=True, help="Print the receipt as JSON.")(wrapped)
    wrapped = click.option(
        "--timeout", default=60.0, show_default=True, help="Seconds to wait for the receipt."
    )(wrapped)
    wrapped = _broker_options("an operator")(wrapped)
    if detector:
        wrapped = click.option("--detector", help="Which batch detector, where there are several.")(wrapped)
    if model:
        wrapped = click.argument("model")(wrapped)
    wrapped = click.argument("topology")(wrapped)
    cli.command(verb)(wrapped)


_steering(
    "status",
    "Ask a running topology how it is: position, lag, models, open alerts.\n\nTOPOLOGY is a name or a file.",
)
_steering(
    "swap",
    "Put another version of a batch model in place while readings flow.\n\n"
    "MODEL is models:/NAME@ALIAS or models:/NAME/VERSION. The receipt names the first offset scored by it.",
    detector=True,
    model=True,
)
_steering("rollback", "Go back to the model that scored before the last swap.", detector=True)
_steering("pause", "Stop reading; what arrives waits in the stream.")
_steering("resume", "Go on reading where it was paused.")


def _interruptible(work: Coroutine[Any, Any, Any]) -> Any:
    """Run until done; Ctrl-C and SIGTERM end it as asked, not with a traceback."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        sys.exit(0)


def _connector(url: str, password_file: Path | None) -> Callable[[], Any]:
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


def _shelf(registry_uri: str | None, data: Path, topologies: tuple[Topology, ...]) -> Any:
    """The models of a registry; None where no topology needs one (MLflow is then never loaded)."""
    if not any(topology.registry_models for topology in topologies):
        return None
    from stream.models import Registry
    from stream.shelf import Shelf

    uri = registry_uri or f"sqlite:///{(data / 'mlflow' / 'registry.db').absolute()}"
    return Shelf(Registry(uri), data / "models")


def _table(file: Path | None, dataset: str | None) -> Any:
    from stream.tables import from_dataset, read_csv

    if (file is None) == (dataset is None):
        raise ConfigError([Problem("", "say what to read: a CSV file or --dataset shuttle (not both)")])
    return read_csv(file) if file is not None else from_dataset(str(dataset))

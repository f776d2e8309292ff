"""The `mmlw` command: one clear line for what goes wrong, exit code 2, no traceback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stream import log
from stream.backtesting import add_to as add_backtest
from stream.captured import add_to as add_captured
from stream.errors import ConfigError, MmlwError, Problem, first_error
from stream.kinds import add_to as add_kinds
from stream.letters import add_to as add_letters
from stream.lineup import add_to as add_lineup
from stream.options import (
    BrokerOptions,
    broker_options,
    capture_option,
    connector,
    data_option,
    interruptible,
    registry_options,
    shelf_of,
    table_of,
)
from stream.predicting_command import add_to as add_predicting
from stream.simulation.command import add_to as add_simulation
from stream.steering import add_to
from stream.training_command import add_to as add_training
from stream.upkeep import add_to as add_upkeep

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it: --help answers at once
    from stream.topology import Topology

__all__ = ["main"]


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
      mmlw status TOPOLOGY      and swap, rollback, pause, resume, audit: steer a running one
      mmlw shadow TOPOLOGY      have a model score beside the one that serves; models compare, promote
      mmlw alerts               watch alerts as they come
      mmlw cancel TOPOLOGY ID    end a training that a running topology began
      mmlw label TOPOLOGY ...   say which alerts were none: closed, left out of trainings, or learned
    """
    log.configure("auto", "warning")  # drivers' own words stay silent; what went wrong is said once, by us


@cli.command()
@data_option
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), default=Path("mmlw-report.html"))
@click.option(
    "--rows", type=click.IntRange(min=1000), help="Use only this many rows of Shuttle (a quicker look)."
)
def demo(data: Path, report: Path, rows: int | None) -> None:
    """Run the whole product on real data, without any server.

    Needs no network either. Trains a batch detector, registers it in an embedded MLflow, replays two data
    sets over the embedded broker, scores them with online and batch detectors, swaps the batch model
    half-way by a control message, and leaves an HTML report.
    """
    from stream.demo import run_demo

    asyncio.run(run_demo(data / "demo", report, rows))


@cli.command("try")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--machine", help="Name of the machine, where the file has no column for it.")
@click.option(
    "--topology", "output", type=click.Path(path_type=Path), help="Where to write the starter topology."
)
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the report.")
@click.option("--force", is_flag=True, help="Overwrite a topology file that is there.")
@registry_options
@data_option
def try_(
    file: Path,
    machine: str | None,
    output: Path | None,
    report: Path | None,
    force: bool,
    registry_uri: str | None,
    data: Path,
) -> None:
    """Look for anomalies in your own readings.

    FILE is a CSV file with a time and one column a sensor. Writes a starter topology beside the file (edit
    it, run it again), runs it on the embedded broker, and leaves an HTML report. A column named machine,
    device or asset tells machines apart; a column named anomaly or label is compared with the alerts and
    never shown to the detectors.
    """
    from stream.starter import run_try

    shelf = partial(shelf_of, registry_uri, data)
    asyncio.run(run_try(file, machine=machine, output=output, report=report, force=force, shelf=shelf))


@cli.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def check(files: tuple[Path, ...]) -> None:
    """Report every problem of topology files at once.

    Each with its place and remedy. Exit code 0: all are sound; 2: some are not.
    """
    from stream.config import load_all
    from stream.trial import build_online

    problems: list[Problem] = []
    for file in files:
        try:
            for topology in load_all(file):
                build_online(topology)
                parts = [f"{len(topology.source.sensors)} sensors", f"{len(topology.detectors)} detectors"]
                if topology.features:
                    parts.insert(1, f"{len(topology.features)} features")
                click.echo(f"{file}: {topology.name}: sound ({', '.join(parts)})")
                click.echo(f"  alert: {topology.alert_summary}")
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
def graph(file: Path) -> None:
    """Draw topologies as Mermaid text.

    Paste it into any Markdown viewer.
    """
    from stream.config import load_all
    from stream.graph import mermaid

    click.echo("\n".join(mermaid(topology) for topology in load_all(file)))


@cli.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@broker_options("the worker")
@registry_options
@data_option
@capture_option
@click.option(
    "--http", default="127.0.0.1:9464", show_default=True, help="/metrics, /healthz, /readyz; or off."
)
@click.option(
    "--http-token-file",
    type=click.Path(path_type=Path),
    envvar="MMLW_HTTP_TOKEN_FILE",
    show_envvar=True,
    help="File with the token for commands over HTTP: POST /topologies/NAME/VERB.  [default: none are taken]",
)
@click.option(
    "--webhook-secret-file",
    type=click.Path(path_type=Path),
    envvar="MMLW_WEBHOOK_SECRET_FILE",
    show_envvar=True,
    help="File with the secret of MLflow's webhooks: POST /webhooks/mlflow.  [default: none are taken]",
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
    broker: BrokerOptions,
    registry_uri: str | None,
    data: Path,
    captures: Path | None,
    http: str,
    http_token_file: Path | None,
    webhook_secret_file: Path | None,
    log_form: Any,
    log_level: str,
    wait: float,
    grace: float,
) -> None:
    """Run topologies on RabbitMQ until told to stop.

    SIGTERM or Ctrl-C finish the batch at hand and lose nothing. Declares what a topology needs on the broker
    (with `declare: false` only checks it), resumes where the checkpoint in --data stands, and goes on after
    any lost connection. A second signal leaves at once: what was not committed is read again at the next
    start.
    """
    from stream.config import load_all
    from stream.http import read_token
    from stream.webhooks import Webhooks

    log.configure(log_form, log_level)
    topologies = tuple(topology for file in files for topology in load_all(file))
    connect = connector(broker)
    token = None if http_token_file is None else read_token(http_token_file)
    secret = webhook_secret_file and read_token(webhook_secret_file, "--webhook-secret-file")
    webhooks = Webhooks(secret) if secret else None
    shelf = shelf_of(registry_uri, data, topologies)
    asyncio.run(_run(topologies, connect, shelf, data, captures, http, token, webhooks, wait, grace))


async def _run(
    topologies: tuple[Topology, ...],
    connect: Any,
    shelf: Any,
    data: Path,
    captures: Path | None,
    http: str,
    token: str | None,
    webhooks: Any,
    wait: float,
    grace: float,
) -> None:
    from detectors.kernels import ready
    from stream.http import bind, serving
    from stream.metrics import Metrics
    from stream.runtimes.local import Worker, steady
    from stream.trainer import Trainer

    ready()  # while nobody waits for an answer: it may take a minute
    stop = asyncio.Event()
    metrics = Metrics()
    metrics.info.labels(version("mmlw")).set(1)
    folders = (captures or data / "capture", data)
    trainer = None if shelf is None else Trainer(shelf.registry.uri, folders, connect)
    worker = Worker(
        topologies,
        connect=connect,
        data=data,
        captures=captures,
        shelf=shelf,
        metrics=metrics,
        wait=wait,
        trainer=trainer,
    )
    loop = asyncio.get_running_loop()

    def leave() -> None:
        if stop.is_set():
            os._exit(1)
        log.get().info("stopping", grace_s=grace)
        stop.set()
        loop.call_later(grace, _overdue)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave)
    async with contextlib.AsyncExitStack() as web:
        if http != "off":
            served = serving(
                bind(http),
                metrics,
                worker.problems,
                control=worker.control,
                token=token,
                webhooks=webhooks,
                hint=worker.hint,
            )
            await web.enter_async_context(served)
        steady()
        await worker.run(stop)


def _overdue() -> None:
    log.get().error("stopped_late", detail="the grace time is over; what was not committed is read again")
    os._exit(1)


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
@broker_options("a machine")
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
    broker: BrokerOptions,
) -> None:
    """Play machines: publish a table's rows as readings.

    \b
    mmlw publish --dataset shuttle --rate 200
    mmlw publish history.csv --machine pump-07
    """
    import itertools

    from stream.publisher import messages
    from stream.publisher import publish as publish_messages

    table = table_of(file, dataset)
    one = partial(messages, table, exchange, form=form, rows=rows, machine=machine, restamp=again)
    source = itertools.chain.from_iterable(one() for _ in (itertools.count() if again else range(1)))
    connect = connector(broker)

    async def play() -> int:
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.completed} messages published"), TimeElapsedColumn())
        with Progress(*columns, disable=not sys.stderr.isatty(), transient=True) as bar:
            task = bar.add_task("publish", total=None)
            async with connect() as link:
                chosen = itertools.islice(source, limit)
                return await publish_messages(
                    link, chosen, rate=rate, report=lambda n: bar.update(task, completed=n)
                )

    click.echo(f"{interruptible(play())} messages published to {exchange}")


add_to(cli)
add_simulation(cli)
add_letters(cli)
add_backtest(cli)
add_captured(cli)
add_training(cli)
add_predicting(cli)
add_kinds(cli)
add_upkeep(cli)
add_lineup(cli)

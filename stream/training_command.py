"""`mmlw train`: fits a topology's batch detector on readings of the past and registers it."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stream.options import (
    BrokerOptions,
    broker_options,
    connector,
    data_option,
    registry_of,
    registry_options,
)

if TYPE_CHECKING:
    from stream.tables import Table
    from stream.topology import Topology

__all__ = ["add_to"]


def add_to(group: click.Group) -> None:
    """Add the command to the command line."""
    group.add_command(train)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--detector", help="Which batch detector, where the topology has several.")
@click.option(
    "--from",
    "--input",
    "source",
    type=click.Path(path_type=Path),
    help="CSV or Parquet file of readings, or a folder of Parquet files (a capture).",
)
@click.option("--dataset", help="Or a data set that comes with the product: shuttle, water_flow.")
@click.option(
    "--stream", "span", help="Or the topology's own stream: FROM..TO, offsets or times; .. is all of it."
)
@click.option(
    "--labels",
    "labels_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="When something was wrong, as mmlw backtest takes it: it is not trained on, and the model is judged by it.",
)
@click.option("--rows", type=click.IntRange(min=1), help="Use only the first so many rows.")
@click.option(
    "--alias",
    help="Alias to point at the new version; the one the topology names, too, where it means none yet.  "
    "[default: challenger]",
)
@click.option("--if-missing", is_flag=True, help="Do nothing where the topology's alias means a version.")
@broker_options("a consumer")
@registry_options
@data_option
def train(
    file: Path,
    detector: str | None,
    source: Path | None,
    dataset: str | None,
    span: str | None,
    labels_file: Path | None,
    rows: int | None,
    alias: str | None,
    if_missing: bool,
    broker: BrokerOptions,
    registry_uri: str | None,
    data: Path,
) -> None:
    """Train a topology's batch detector.

    Registers the version in MLflow, with parameters, metrics and figures, and points the alias `challenger` at
    it. A running worker trains by the command `train` in a message.

    \b
    mmlw train topologies/shuttle.yaml --dataset shuttle --rows 10000
    mmlw train topologies/pump.yaml --stream 2024-05-01..2024-05-08 --alias champion
    mmlw train topologies/pump.yaml --from may.parquet --labels faults.csv
    """
    from rich.console import Console

    from stream.config import load
    from stream.errors import ModelNotFound
    from stream.labels import read_labels
    from stream.training import CHALLENGER, batch_detector, train_detector

    topology = load(file)
    name = batch_detector(topology, detector)
    spec, registry = topology.registry_models[name], registry_of(registry_uri, data)
    if if_missing and (wanted := alias or spec.alias):
        with contextlib.suppress(ModelNotFound):
            known = registry.resolve(f"models:/{spec.name}@{wanted}")
            click.echo(f"models:/{spec.name}@{wanted} is version {known.version} already")
            return
    labels = None if labels_file is None else read_labels(labels_file)
    console = Console(stderr=True)

    def told(phase: str) -> None:  # a line for each: without a terminal nothing else shows that it goes on
        console.print(f"training {name}: {phase}", soft_wrap=True, markup=False, highlight=False)

    with console.status(f"training {name}"):
        told("reading")
        readings = _readings(topology, source, dataset, span, broker)
        trained = train_detector(
            topology,
            name,
            readings,
            registry,
            rows=rows,
            alias=alias or CHALLENGER,
            labels=labels,
            told=told,
        )
    ref, weights = trained.ref, trained.weights
    click.echo(
        f"{ref.name} version {ref.version} ({weights.kind}), threshold {weights.threshold:.4g}, {ref.digest}"
    )
    if labels is not None:
        click.echo(_judged(trained.metrics))
    for moved in trained.aliases:
        click.echo(f"models:/{ref.name}@{moved} now means version {ref.version}")


def _judged(metrics: dict[str, float]) -> str:
    """How good the model is by the labels, in a line."""
    if "events" not in metrics:
        return "nothing could be judged by the labels"
    named = {
        "precision": "precision",
        "f1": "F1",
        "false_alarms_per_day": "false alarms a day",
        "vus_pr": "VUS-PR",
    }
    rest = [f"{text} {metrics[name]:.3g}" for name, text in named.items() if name in metrics]
    return ", ".join([f"found {metrics['events_found']:.0f} of {metrics['events']:.0f} events", *rest])


def _readings(
    topology: Topology, source: Path | None, dataset: str | None, span: str | None, broker: BrokerOptions
) -> Table:
    """The table that exactly one of the options names. Raises ConfigError."""
    from stream.errors import ConfigError, Problem
    from stream.spans import parse_span
    from stream.tables import from_dataset
    from stream.training_data import read_file, stream_table

    if sum(it is not None for it in (source, dataset, span)) != 1:
        problem = (
            "say what to train on: a CSV file (--from), --dataset shuttle or --stream FROM..TO; one of them"
        )
        raise ConfigError([Problem("", problem)])
    if source is not None:
        return read_file(source, topology)
    if dataset is not None:
        return from_dataset(dataset)
    wanted, connect = parse_span(str(span)), connector(broker)

    async def read() -> Table:
        async with connect() as link:
            return await stream_table(link, topology, wanted)

    return asyncio.run(read())

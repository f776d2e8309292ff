"""`mmlw predict`: scores the readings of a file, by a topology on its own or by the worker that runs it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from stream.options import (
    BrokerOptions,
    broker_options,
    connector,
    data_option,
    registry_options,
    shelf_of,
    timeout_option,
)

if TYPE_CHECKING:
    from stream.tables import Table
    from stream.topology import Topology

__all__ = ["add_to"]


def add_to(group: click.Group) -> None:
    """Add the command to the command line."""
    group.add_command(predict_)


@click.command("predict")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--input",
    "source",
    type=click.Path(path_type=Path),
    required=True,
    help="CSV or Parquet file of readings.",
)
@click.option("--model", help="Score by this model alone: models:/NAME@ALIAS or models:/NAME/VERSION.")
@click.option("--detector", help="Which batch detector that model is of, where several take it.")
@click.option(
    "--running", is_flag=True, help="Ask the worker that runs the topology, with its machines' state."
)
@timeout_option("With --running: seconds to wait for the worker's answer.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a reading, with contributions.")
@broker_options("an operator")
@registry_options
@data_option
def predict_(
    file: Path,
    source: Path,
    model: str | None,
    detector: str | None,
    running: bool,
    timeout: float,
    as_json: bool,
    broker: BrokerOptions,
    registry_uri: str | None,
    data: Path,
) -> None:
    """Score readings once.

    By the topology in FILE, its machines unknown until then, or with --running by the worker that runs it, as if the
    readings came next. No worker learns anything of it, and no alert opens.
    """
    from stream.config import load
    from stream.errors import ConfigError, Problem
    from stream.training_data import read_file

    topology = load(file)
    table = read_file(source, topology)
    if missing := [name for name in topology.source.names if name not in table.sensors]:
        raise ConfigError([Problem(str(source), f"has no column for the sensors {', '.join(missing)}")])
    found: Iterable[dict[str, Any]]
    if running:
        found = _asked(topology, table, model, detector, broker, timeout)
    else:
        found = _scored(topology, table, model, detector, registry_uri, data)
    for prediction in found:
        click.echo(msgspec.json.encode(prediction) if as_json else _line(prediction))


def _scored(
    topology: Topology,
    table: Table,
    model: str | None,
    detector: str | None,
    registry: str | None,
    data: Path,
) -> Iterator[dict[str, Any]]:
    """By the models that the registry has now. Raises ModelError, CommandRefused."""
    from stream.errors import ConfigError, ModelNotFound, Problem
    from stream.predicting import alone, batches_of, copied_scorer, predict
    from stream.references import parse_uri

    shelf, refs = shelf_of(registry, data, (topology,)), {}
    if model is not None:
        try:
            parse_uri(model)
        except ValueError as error:
            raise ConfigError([Problem("--model", str(error))]) from None
        if shelf is None:
            raise ConfigError([Problem("--model", f"{topology.name} has no batch detector")])
        ref = shelf.resolve(model)
        topology, name = alone(topology, ref, detector)
        refs[name] = ref
    for name, spec in topology.registry_models.items():
        try:
            if name not in refs and shelf is not None:
                refs[name] = shelf.resolve(spec.model)
        except ModelNotFound as error:
            hint = "Train it first (mmlw train FILE), or name the registry that has it (--registry)"
            raise ModelNotFound(
                f"{topology.name}: detectors.{name} ({spec.model}): {error}. {hint}"
            ) from error
    scorer = copied_scorer(topology, shelf, refs)
    for batch in batches_of(table, topology):
        yield from (msgspec.to_builtins(found) for found in predict(scorer, batch))


def _asked(
    topology: Topology,
    table: Table,
    model: str | None,
    detector: str | None,
    broker: BrokerOptions,
    timeout: float,
) -> list[dict[str, Any]]:
    """By a worker, in one request. Raises CommandRefused, BrokerError."""
    from stream.control import request
    from stream.errors import CommandRefused
    from stream.predicting import batches_of

    names, rows = topology.source.names, []
    for batch in batches_of(table, topology):
        for machine, time, values in zip(
            batch.machines, batch.times.tolist(), batch.values.tolist(), strict=True
        ):
            here = {name: value for name, value in zip(names, values, strict=True) if value == value}
            rows.append({"machine": machine, "time": time, "values": here})
    connect = connector(broker)

    async def ask() -> Any:
        async with connect() as link:
            asked = {"rows": rows, "model": model, "detector": detector}
            return await request(
                link, topology.name, "predict", user=connect.user, timeout=timeout, told=None, **asked
            )

    receipt = asyncio.run(ask())
    if receipt["status"] != "applied":
        raise CommandRefused(f"{topology.name} predict: {receipt['reason']}")
    found: list[dict[str, Any]] = receipt["predictions"]
    return found


def _line(found: dict[str, Any]) -> str:
    """One reading for people: every detector's score against its threshold, and what it is about where it counts."""
    from stream.alerts import rfc3339

    parts = []
    for name, score in found["scores"].items():
        text = f"{name} {score:.4g}/{found['thresholds'][name]:.4g}"
        shares = found["contributions"].get(name, {})
        if name in found["anomalous"] and shares:
            text += f" ({max(shares, key=lambda sensor: abs(shares[sensor]))})"
        parts.append(text)
    mark = "!" if found["anomalous"] else " "
    return f"{rfc3339(found['time'])[:19]} {found['machine']} {mark} {'  '.join(parts)}"

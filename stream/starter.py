"""`mmlw try`: from a CSV file to a topology, alerts and a report, with no server and nothing to configure."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
import numpy as np
from rich.live import Live

from detectors import registry
from detectors.base import Detector
from stream.backtest import fresh_scorer
from stream.config import dump_yaml, load
from stream.demo import LiveProgress, show_outcome, wide_console
from stream.embedded import Job, run
from stream.errors import ConfigError, Problem
from stream.kin import too_short
from stream.report import write_report
from stream.rules import AlertRule
from stream.shelf import Shelf
from stream.tables import Table, read_csv
from stream.topology import RegistryModel, Sensor, Source, Topology

__all__ = ["ShelfOf", "run_try", "starter_topology"]

ShelfOf = Callable[[tuple[Topology, ...]], Shelf | None]

_UNUSUAL = 0.005
"""Share of readings that a starter's thresholds let through, at least."""
_LEAST = 0.6
"""A starter's threshold is at least this fraction of its kind's own."""


async def run_try(
    file: Path, *, machine: str | None, output: Path | None, report: Path | None, force: bool, shelf: ShelfOf
) -> None:
    """Read the table, write the topology unless one is there, run it, write the report.

    `shelf` gives the models of topologies that have trained detectors. Raises ConfigError, ModelError.
    """
    console = wide_console()
    table = read_csv(file, machine=machine)
    console.print(f"[bold]{file}[/bold]: {len(table.times):,} rows")
    for note in table.notes:
        console.print(f"  {note}", markup=False)
    beside = file.with_name(f"{file.stem}.mmlw.yaml")
    output = output or beside
    report = report or file.with_name(f"{file.stem}.mmlw.html")
    if output.exists() and not force:
        console.print(f"using the topology {output} (--force writes it anew)")
        topology = load(output)
    else:
        topology = starter_topology(table)
        head = (
            f"# Written by mmlw try from {file.name}. Edit it and run mmlw try again, or mmlw run in production.\n"
            "# Thresholds were chosen on this very file, to show what is unusual: raise them for fewer alerts.\n"
        )
        try:
            output.write_text(head + dump_yaml(topology), encoding="utf-8")
        except OSError as error:
            raise ConfigError([Problem(str(output), f"cannot be written: {error.strerror}")]) from error
        console.print(f"topology written to {output}")
    models = shelf((topology,))
    readings = int(np.unique(table.machines, return_counts=True)[1].max())
    if short := too_short(fresh_scorer(topology, models).warmups(), readings):
        console.print(short, style="yellow", highlight=False)
    job = Job(topology, table)
    live = LiveProgress([job])
    with tempfile.TemporaryDirectory() as folder, Live(live.view, console=console, refresh_per_second=8):
        recordings = await run([job], data=Path(folder), shelf=models, progress=live.update)
    section = show_outcome(console, job, recordings[topology.name], live)
    write_report(report, f"MMLW: {file.name}", f"{file.name} on the embedded broker", [section])
    console.print(f"\nreport   {report.absolute()}", soft_wrap=True)
    hint = "" if output == beside else f" --topology {shlex.quote(str(output))}"
    click.echo(f"next     edit {output}, then: mmlw try {shlex.quote(str(file))}{hint}")


def starter_topology(table: Table) -> Topology:
    """A sensible beginning for these readings: each sensor against its own past, and all of them together."""
    name = re.sub(r"[^a-z0-9_-]+", "_", table.name.lower()).strip("_-")[:64] or "mine"
    per_machine = len(table.times) // max(len(set(table.machines)), 1)
    warmup = max(10, min(50, per_machine // 10))
    half_life = max(50, min(2000, per_machine // 5))
    detectors: dict[str, Detector | RegistryModel] = {
        "spike": _recipe(table, "adaptive_z", half_life=half_life, warmup=warmup)
    }
    if len(table.sensors) > 1:
        detectors["together"] = _recipe(table, "mahalanobis", half_life=half_life, warmup=warmup)
    return Topology(
        name=name,
        description=f"Started from {table.name}",
        source=Source(sensors=tuple(Sensor(sensor) for sensor in table.sensors)),
        detectors=detectors,
        alert=AlertRule(hold=2, at_once=3.0, close_after=5),
    )


def _recipe(table: Table, kind: str, **settings: object) -> Detector:
    """A recipe whose threshold lets this table's most unusual readings through: its kind's own, or less.

    Less, down to a fraction, where hardly a reading would reach it: a first look should show something.
    """
    recipe = msgspec.convert(settings, registry.ONLINE[kind])
    model = recipe.build(table.sensors)
    slots = np.unique(table.machines, return_inverse=True)[1].astype(np.int64)
    scores = model.score_learn(slots, table.values, table.times)
    wanted = float(np.quantile(scores, 1 - _UNUSUAL))
    threshold = min(model.threshold, max(wanted, _LEAST * model.threshold))
    return msgspec.structs.replace(recipe, threshold=float(f"{threshold:.3g}"))

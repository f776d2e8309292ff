"""`mmlw backtest`: what a topology, or several, would have found in readings of the past."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stream.options import (
    BrokerOptions,
    Connector,
    broker_options,
    connector,
    data_option,
    interruptible,
    registry_options,
    shelf_of,
)

if TYPE_CHECKING:  # what is heavy is imported when the command runs: --help answers at once
    from rich.progress import Progress

    from stream.comparison import Comparison
    from stream.histories import History
    from stream.topology import Topology

__all__ = ["add_to"]

_SHOWN = 5
"""Alerts told of each history."""


def add_to(group: click.Group) -> None:
    """Add the command to the command line."""
    group.add_command(backtest_)


@click.command("backtest")
@click.argument("topology", type=click.Path(path_type=Path))
@click.argument("others", nargs=-1)
@click.option(
    "--input",
    "source",
    type=click.Path(path_type=Path),
    help="A CSV or Parquet file, or a folder: every file in it and below is a history of its own, all of a capture "
    "one.",
)
@click.option("--stream", "span", help="FROM..TO of the topology's own stream: offsets, times, or nothing.")
@click.option(
    "--compare",
    is_flag=True,
    help="OTHERS follow: versions (v12), aliases (@challenger) or topology files; DETECTOR=VERSION where there are "
    "several trained detectors. One runs beside the topology as it is, several instead of it.",
)
@click.option(
    "--labels",
    "labels_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="When something was wrong: CSV with start,end[,machine], or labels.json with windows by file.",
)
@click.option("--label-column", help="Or the column of the input that says so, row by row.")
@click.option(
    "--scores",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the scores: a CSV file for each input, at the same place below it; of several runs, below a "
    "folder of each one's name.",
)
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write an HTML report.")
@broker_options("a reader of the stream")
@registry_options
@data_option
def backtest_(
    topology: Path,
    others: tuple[str, ...],
    source: Path | None,
    span: str | None,
    compare: bool,
    labels_file: Path | None,
    label_column: str | None,
    scores: Path | None,
    report: Path | None,
    broker: BrokerOptions,
    registry_uri: str | None,
    data: Path,
) -> None:
    """Run a topology over readings of the past.

    From files: columns named as the sensors, a time, a machine where there are several. Or from what the
    topology's own stream still holds, read beside its worker. The engine is the one that runs live: score before
    learn, the file's own alert rule; every history begins with a fresh state. Prints the alerts that would have
    opened, their quality where labels are known, and readings/s.

    \b
    mmlw backtest pumps.yaml --input history/ --labels faults.csv --report out.html
    mmlw backtest pumps.yaml --stream 2024-05-01T00:00:00Z.. --compare v12 v13
    """
    from stream.errors import ConfigError, Problem

    if (source is None) == (span is None):
        raise ConfigError([Problem("", "say what to read: --input FILE or FOLDER, or --stream FROM..TO")])
    if compare != bool(others):
        hint = "name what to compare with" if compare else f'say --compare before "{others[0]}"'
        raise ConfigError([Problem("--compare", hint)])
    comparison, wanted = _comparison(
        topology, others, labels_file, registry_uri, data, record=report is not None
    )
    with _progress() as bar:
        if source is not None:
            histories = _from_files(wanted, source, label_column)
        else:
            histories = _from_stream(wanted, str(span), connector(broker), bar)
        for place, history in histories:
            _one(comparison, place, history, scores, bar)
    _tell(comparison)
    if scores is not None:
        click.echo(f"scores in {scores}")
    if report is not None:
        _write_report(report, topology, comparison)
        click.echo(f"report in {report}")


def _comparison(
    topology: Path,
    others: Sequence[str],
    labels: Path | None,
    registry_uri: str | None,
    data: Path,
    *,
    record: bool,
) -> tuple[Comparison, Topology]:
    from stream.candidates import candidates
    from stream.comparison import Comparison
    from stream.config import load
    from stream.labels import read_labels

    wanted = load(topology)
    found = candidates(wanted, others)
    shelf = shelf_of(registry_uri, data, tuple(candidate.topology for candidate in found))
    known = None if labels is None else read_labels(labels)
    return Comparison(found, shelf, known, record=record), wanted


def _from_files(topology: Topology, source: Path, label_column: str | None) -> Iterator[tuple[Path, History]]:
    from stream.histories import pasts_below, read_past

    for past in pasts_below(source):
        yield past.place, read_past(past, topology, label_column)


def _from_stream(
    topology: Topology, text: str, connect: Connector, bar: Progress
) -> Iterator[tuple[Path, History]]:
    from stream.spans import parse_span
    from stream.stream_history import read_stream

    span = parse_span(text)
    task = bar.add_task("reading the stream", total=None)

    async def read() -> History:
        async with connect() as broker:
            return await read_stream(
                broker, topology, span, lambda done, of: bar.update(task, completed=done, total=of)
            )

    history = interruptible(read())
    bar.remove_task(task)
    yield Path(f"{topology.name}.csv"), history


def _one(comparison: Comparison, place: Path, history: History, scores: Path | None, bar: Progress) -> None:
    """Run a history, tell its alerts, write its scores."""
    from stream.backtest import write_scores

    several = len(comparison.runs) > 1
    task = bar.add_task(str(place.with_suffix("")), total=len(history) * len(comparison.runs))
    for run, outcome, opened in comparison.over(place, history, lambda rows: bar.advance(task, rows)):
        name = run.candidate.name
        beside = f" [{name}]" if several else ""
        click.echo(
            f"{place.with_suffix('')}{beside}: {len(history):,} rows, {_counted(len(opened), 'alert')}"
        )
        for note in (*history.notes, *run.notes):
            click.echo(f"  {note}")
        for alert in opened[:_SHOWN]:
            where = f" {alert.machine}" if len(set(history.machines)) > 1 else ""
            click.echo(f"  {alert.time} {alert.severity}{where}: {alert.reason}")
        if len(opened) > _SHOWN:
            click.echo(f"  and {len(opened) - _SHOWN} more")
        if scores is not None:
            folder = scores / re.sub(r"[^A-Za-z0-9._-]+", "_", name) if several else scores
            write_scores(folder / place, history, outcome)
    bar.remove_task(task)


def _tell(comparison: Comparison) -> None:
    """The end: counts and speed of each run, quality, agreement."""
    several = len(comparison.runs) > 1
    for run in comparison.runs:
        beside = f"[{run.candidate.name}] " if several else ""
        files, alerts = _counted(comparison.histories, "file"), _counted(run.opened, "alert")
        counts = f"{files}, {run.readings:,} readings, {alerts} opened"
        click.echo(f"{beside}{counts}, {run.rate:,.0f} readings/s")
    for title, rows in (("against the labels", comparison.quality()), ("agreement", comparison.agreement())):
        if rows:
            click.echo(f"{title}:")
            _table(rows)


def _table(rows: Sequence[Mapping[str, str]]) -> None:
    """A column for each row of the table: they stand side by side."""
    names = list(rows[0])
    left = max(map(len, names))
    widths = [max(len(row[name]) for name in names) for row in rows]
    for name in names:
        cells = "  ".join(f"{row[name]:>{width}}" for row, width in zip(rows, widths, strict=True))
        click.echo(f"  {name:<{left}}  {cells}")


def _write_report(path: Path, topology: Path, comparison: Comparison) -> None:
    from stream.errors import ConfigError, Problem
    from stream.report import write_report

    sections = comparison.sections()
    agreement = comparison.agreement()
    if agreement:
        told = ["; ".join(f"{name}: {text}" for name, text in row.items()) for row in agreement]
        sections[0] = replace(sections[0], notes=told)
    try:
        write_report(path, f"Backtest of {topology.name}", f"{comparison.histories} histories", sections)
    except OSError as error:
        raise ConfigError([Problem(str(path), f"cannot be written: {error.strerror}")]) from error


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}"),
        TimeRemainingColumn(),
    )
    terminal = sys.stderr.isatty()
    return Progress(*columns, console=Console(file=sys.stderr), transient=True, disable=not terminal)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"

"""`mmlw backtest`: what a topology would have found in files of the past."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from stream.options import data_option, registry_options, shelf_of

__all__ = ["add_to"]


def add_to(group: click.Group) -> None:
    """Add the command to the command line."""
    group.add_command(backtest_)


@click.command("backtest")
@click.argument("topology", type=click.Path(path_type=Path))
@click.option(
    "--input",
    "source",
    type=click.Path(path_type=Path),
    required=True,
    help="A CSV file, or a folder: every CSV file in it and below is a machine of its own.",
)
@click.option(
    "--scores",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the scores: a CSV file for each input, at the same place below it.",
)
@registry_options
@data_option
def backtest_(
    topology: Path, source: Path, scores: Path | None, registry_uri: str | None, data: Path
) -> None:
    """Run a topology over files of the past.

    The first column of each file is the time, every other one a sensor. The engine is the one that runs live:
    score before learn, the file's own alert rule; every file begins with a fresh state. Prints the alerts that
    would have opened; --scores writes anomaly_score, alert and changepoint for each row.
    """
    from rich.console import Console
    from rich.progress import Progress

    from stream.backtest import backtest, files_below, fresh_scorer, read_history, write_scores
    from stream.config import load

    wanted = load(topology)
    shelf = shelf_of(registry_uri, data, (wanted,))
    files = files_below(source)
    root = source if source.is_dir() else source.parent
    console = Console(soft_wrap=True)
    rows = opened = 0
    spent = 0.0
    with Progress(console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task("backtest", total=len(files))
        for path in files:
            place = path.relative_to(root)
            progress.update(task, description=str(place))
            history = read_history(path, wanted)
            scorer = fresh_scorer(wanted, shelf)
            started = time.perf_counter()
            outcome = backtest(scorer, history)
            spent += time.perf_counter() - started
            if scores is not None:
                write_scores(scores / place, history, outcome)
            rows += len(history.times)
            here = [alert for alert in outcome.alerts if alert.event == "opened"]
            opened += len(here)
            progress.advance(task)
            console.print(f"{place}: {len(history.times):,} rows, {len(here)} alerts", highlight=False)
            for alert in here[:5]:
                console.print(
                    f"  {alert.time} {alert.severity}: {alert.reason}", highlight=False, markup=False
                )
            if len(here) > 5:
                console.print(f"  and {len(here) - 5} more", highlight=False)
    rate = rows / spent if spent else 0.0
    console.print(
        f"{len(files)} files, {rows:,} readings, {opened} alerts opened, {rate:,.0f} readings/s",
        highlight=False,
    )
    if scores is not None:
        console.print(f"scores in {scores}", highlight=False)

"""`mmlw demo`: the whole product on real data, with no server."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table as Grid

from stream.config import dump_yaml, load
from stream.embedded import Job, PlannedSwap, run
from stream.models import Registry
from stream.recording import Recording
from stream.report import Section, write_report
from stream.shelf import Shelf
from stream.tables import Table, from_dataset
from stream.training import train_detector
from stream.verdict import quality_rows
from stream.watch import alert_line

__all__ = ["LiveProgress", "run_demo", "show_outcome", "wide_console"]

_TRAINED_ON = (5_000, 10_000)
"""Rows of Shuttle that the first and the second version of the batch model learn from."""
_SHOWN = 3
"""Alerts of a topology that are printed: those highest above their threshold."""
_TOPOLOGIES = Path(__file__).resolve().parent.parent / "topologies"


async def run_demo(data: Path, report: Path, rows: int | None) -> None:
    """Train, register, run, swap half-way, and report. `data` keeps the embedded registry between runs."""
    console = wide_console()
    began = time.monotonic()
    shuttle, water = load(_TOPOLOGIES / "shuttle.yaml"), load(_TOPOLOGIES / "water_flow.yaml")
    readings, flow = from_dataset("shuttle"), from_dataset("water_flow")
    readings = _first(readings, rows or len(readings.times))
    trained_on = [min(count, len(readings.times) // (4 - 2 * i)) for i, count in enumerate(_TRAINED_ON)]
    registry = Registry(f"sqlite:///{(data / 'mlflow' / 'registry.db').absolute()}")

    console.rule("[bold]1  Train a batch detector, register it in the embedded MLflow")
    with console.status("opening MLflow (SQLite file, no server) …") as status:
        for count, alias in zip(trained_on, ("champion", "challenger"), strict=True):
            status.update(f"training an isolation forest on the first {count:,} rows of Shuttle …")
            trained = train_detector(shuttle, "forest", readings, registry, rows=count, alias=alias)
            ref, weights = trained.ref, trained.weights
            console.print(
                f"  models:/{ref.name}@{alias} = version {ref.version}: isolation forest from {count:,} rows, "
                f"threshold {weights.threshold:.3f}, {ref.digest[:19]}…"
            )

    console.rule("[bold]2  Machines publish, the topologies watch, the model is swapped half-way")
    swap = PlannedSwap(len(readings.times) // 2, "forest", "models:/shuttle-forest@challenger")
    jobs = [Job(shuttle, readings, (swap,)), Job(water, flow)]
    live = LiveProgress(jobs)
    with tempfile.TemporaryDirectory() as folder, Live(live.view, console=console, refresh_per_second=8):
        recordings = await run(
            jobs, data=Path(folder), shelf=Shelf(registry, data / "models"), progress=live.update
        )
    sections = []
    for job in jobs:
        skip = trained_on[-1] if job.swaps else 0
        sections.append(show_outcome(console, job, recordings[job.topology.name], live, skip=skip))
    for receipt in recordings["shuttle"].receipts:
        first = receipt.get("partitions", {}).get("0", {}).get("first_offset")
        console.print(
            f"  [magenta]swap {receipt['status']}[/magenta]: forest is version {receipt['model']['version']} from "
            f"offset {first} on; prepared in {receipt['prepared_s'] * 1e3:.0f} ms while readings flowed, "
            f"stream paused {receipt['pause_s'] * 1e3:.1f} ms"
        )
    took = time.monotonic() - began
    write_report(
        report, "MMLW demo", f"Shuttle and WaterFlow on the embedded broker, {took:.0f} s in all", sections
    )
    console.rule("[bold]3  Look")
    console.print(f"  report   {report.absolute()}", soft_wrap=True)
    console.print("  yours    mmlw try FILE.csv", soft_wrap=True)


def wide_console() -> Console:
    """The terminal; where there is none, lines of a fixed width."""
    return Console(width=None if sys.stdout.isatty() else 120)


class LiveProgress:
    """What is seen while jobs run: bars, rates, and the latest alerts."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:>9,.0f} readings/s  {task.fields[alerts]:>5} alerts"),
        )
        self._tasks: dict[str, TaskID] = {
            job.topology.name: self._bars.add_task(
                job.topology.name, total=len(job.table.times), rate=0.0, alerts=0
            )
            for job in jobs
        }
        self._began = time.monotonic()
        self.seconds = dict.fromkeys(self._tasks, 0.0)
        self.view = Grid.grid()
        self.view.add_row(self._bars)

    def update(self, name: str, done: int, recording: Recording) -> None:
        """Show how far a topology is."""
        if done and recording.readings and done < self._total(name):
            self.seconds[name] = 0.0
        if not self.seconds[name]:
            elapsed = max(time.monotonic() - self._began, 1e-9)
            opened = sum(alert.event == "opened" for alert in recording.alerts)
            self._bars.update(
                self._tasks[name], completed=done, rate=recording.readings / elapsed, alerts=opened
            )
            if done >= self._total(name):
                self.seconds[name] = elapsed

    def _total(self, name: str) -> float:
        return self._bars.tasks[list(self._tasks).index(name)].total or 0


def show_outcome(
    console: Console, job: Job, recording: Recording, live: LiveProgress, *, skip: int = 0
) -> Section:
    """Print what one topology found; its section of the report. `skip` rows are left out of the quality."""
    name, table = job.topology.name, job.table
    seconds = max(live.seconds[name], 1e-9)
    episodes = recording.episodes()
    closed = sum(episode.closed is not None for episode in episodes)
    rate = recording.readings / seconds
    console.print(
        f"\n[bold]{name}[/bold]: {recording.readings:,} readings in {seconds:.1f} s ({rate:,.0f}/s), "
        f"{len(episodes)} alerts opened, {closed} closed again"
    )
    worst = sorted(episodes, key=lambda e: -e.opened.score / max(e.opened.threshold, 1e-12))[:_SHOWN]
    for episode in sorted(worst, key=lambda e: e.opened.time):
        for alert in (episode.opened, episode.closed):
            if alert is not None:
                console.print(alert_line(alert), soft_wrap=True)
    if recording.dead_letters:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in recording.dead_letters.items())
        console.print(f"  [yellow]messages that could not be used:[/yellow] {reasons}")
    if not episodes:
        series = recording.series()
        for detector, scores in series.scores.items():
            if len(scored := np.flatnonzero(np.isfinite(scores))):
                limit, highest = series.thresholds[detector][scored[-1]], scores[scored].max()
                console.print(f"  {detector}: highest score {highest:.3g}, threshold {limit:.3g}")
    rows = quality_rows(recording.series(), episodes, table.labels, skip=skip)
    if rows:
        console.print(_grid(rows))
    notes = [*table.notes]
    if skip:
        notes.append(
            f"Quality is measured on the rows after the first {skip:,}, which the batch detector learned from."
        )
    cards = {
        "readings": f"{recording.readings:,}",
        "readings a second": f"{rate:,.0f}",
        "alerts opened": f"{len(episodes):,}",
        "closed again": f"{closed:,}",
        "machines": f"{len(set(table.machines)):,}",
    }
    if recording.dead_letters:
        cards["could not be used"] = f"{sum(recording.dead_letters.values()):,}"
    text = dump_yaml(job.topology)
    title = f"{name}: {job.topology.description}" if job.topology.description else name
    return Section(title, recording, table.labels, rows, notes, text, cards)


def _first(table: Table, rows: int) -> Table:
    labels = None if table.labels is None else table.labels[:rows]
    return replace(
        table,
        machines=table.machines[:rows],
        times=table.times[:rows],
        values=table.values[:rows],
        labels=labels,
    )


def _grid(rows: Sequence[Mapping[str, str]]) -> Grid:
    grid = Grid(box=None, padding=(0, 2), header_style="dim")
    for name in rows[0]:
        grid.add_column(name, justify="left" if name == "detector" else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*row.values())
    return grid

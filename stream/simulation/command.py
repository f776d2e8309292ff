"""`mmlw simulate`: look for a seed after which something is wrong."""

from __future__ import annotations

import multiprocessing
import random
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # imported when the command runs: --help answers at once
    from stream.simulation.search import Failure

__all__ = ["add_to", "search_in_parallel"]

_AT_A_TIME = 50
_COMPILING = "compiling the detectors' kernels (minutes the first time, then seconds)"


def add_to(group: click.Group) -> None:
    """Add the command to the command line."""
    group.add_command(command)


def search_in_parallel(seeds: range, jobs: int) -> Iterator[tuple[int, list[Failure]]]:
    """Schedules done since the last time, and the failures among them.

    The first comes by itself: it has the kernels compiled and kept, so the other processes need not do it again."""
    rest = seeds[1:]
    parts = [rest[i : i + _AT_A_TIME] for i in range(0, len(rest), _AT_A_TIME)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_prepare) as pool:
        yield 1, pool.submit(_search, seeds[:1]).result()
        futures = {pool.submit(_search, part): len(part) for part in parts}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _prepare() -> None:
    import stream.simulation.search  # noqa: F401 - what is imported now is never garbage
    from stream.runtimes.local import steady

    steady()


def _search(seeds: range) -> list[Failure]:
    from stream.simulation.search import search

    return list(search(seeds))


@click.command("simulate")
@click.option(
    "--seed", type=click.IntRange(min=0), help="First seed.  [default: a random one, which is shown]"
)
@click.option(
    "--schedules", type=click.IntRange(min=1), default=1000, show_default=True, help="How many seeds."
)
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Processes.")
@click.option("--no-shrink", is_flag=True, help="Show a failing schedule as it is, not made small.")
def command(seed: int | None, schedules: int, jobs: int, no_shrink: bool) -> None:
    """Put the engine through simulated failures, and audit what came of it.

    The production worker runs over a simulated broker, store and clock. Each seed decides what is sent, which
    commands come and what goes wrong: crashes before and after every effect, lost confirms, redelivery, lost
    connections, a silent consumer, a full disk, a damaged checkpoint, retention. An auditor that shares no code
    with the engine compares state, alerts, dead letters, counts and receipts with an uninterrupted run.

    \b
    mmlw simulate --schedules 10000
    mmlw simulate --seed 4711 --schedules 1      that one again, told in full

    Exit code 0: all is well; 1: a seed was found after which something is wrong.
    """
    first = random.SystemRandom().randrange(1_000_000_000) if seed is None else seed
    if schedules == 1:
        _tell(first, no_shrink)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    failures: list[Failure] = []
    click.echo(f"seeds {first} to {first + schedules - 1}")
    told = not sys.stderr.isatty()
    if told:
        click.echo(f"{_COMPILING} …", err=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    done = 0
    with Progress(*columns, console=Console(stderr=True), disable=told) as bar:
        task = bar.add_task(_COMPILING, total=schedules)
        for count, found in search_in_parallel(range(first, first + schedules), jobs):
            failures += found
            bar.update(task, advance=count, description="simulating")
            if told and (done == 0 or (done + count) * 10 // schedules > done * 10 // schedules):
                click.echo(f"{done + count} of {schedules}, {len(failures)} with something wrong", err=True)
            done += count
    if not failures:
        click.echo(f"{schedules} schedules, nothing wrong")
        return
    from stream.simulation.search import shrink

    failures.sort(key=lambda failure: failure.schedule.seed)
    click.echo(f"{schedules} schedules, {len(failures)} with something wrong: ", nl=False)
    click.echo(", ".join(str(failure.schedule.seed) for failure in failures[:20]))
    _show(failures[0] if no_shrink else shrink(failures[0]))
    sys.exit(1)


def _tell(seed: int, no_shrink: bool) -> None:
    from stream.simulation.search import Failure, shrink, simulate
    from stream.simulation.seeds import schedule

    plan = schedule(seed)
    outcome, problems = simulate(plan)
    if problems:
        failure = Failure(plan, problems)
        _show(failure if no_shrink else shrink(failure))
        sys.exit(1)
    assert outcome is not None  # noqa: S101 - nothing was wrong
    click.echo(plan.text())
    events = len({alert.message_id for alert in outcome.alerts})
    click.echo(
        f"nothing wrong: {len(outcome.published)} messages, {outcome.crashes} deaths, the source was read "
        f"{len(outcome.lives)} times; {len(outcome.alerts)} alert messages of {events} events, "
        f"{len(outcome.dead)} dead letters, {len(outcome.replies)} receipts"
    )


def _show(failure: Failure) -> None:
    click.echo(failure.schedule.text())
    for reading in failure.schedule.readings:
        click.echo(f"  at {reading.at:.2f} s: {reading.machine} sends {reading.body}")
    for problem in failure.problems[:10]:
        click.echo(f"WRONG: {problem}")

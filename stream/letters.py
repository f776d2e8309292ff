"""Commands for dead letters: list them, look at one, send them back once their cause is mended."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, get_args

import click
import msgspec

from stream.errors import ConfigError, Problem
from stream.options import BrokerOptions, Command, Connector, broker_options, connector, interruptible

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it: --help answers at once
    from stream.brokers.base import Delivery, Queue
    from stream.letterbox import Letter, Survey, Wanted

__all__ = ["add_to"]

_SHOWN = 50
"""Letters in a table where no limit is given."""
_ON_PURPOSE = ("killed_worker", "duplicate")
"""Letters of these reasons are sent back only where they are named: it may do harm."""


def add_to(group: click.Group) -> None:
    """Add these commands to the command line."""
    group.add_command(deadletters)


@click.group()
def deadletters() -> None:
    """Messages that could not be used: list, show, replay.

    They are kept as they came, with the reason, in the stream mmlw.deadletters. Looking at them consumes none.
    """


def _filters(command: Command) -> Command:
    """Adds `--topology`, `--reason` and `--since`."""
    for option in (
        click.option("--since", metavar="AGE", help="Only of the last 30s, 10m, 2h or 7d."),
        click.option("--reason", "reasons", multiple=True, help="Only for this reason; may be repeated."),
        click.option("--topology", help="Only of this topology: its name or its file."),
    ):
        command = option(command)
    return command


@deadletters.command("list")
@broker_options("an operator")
@_filters
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help=f"Show the newest so many.  [default: {_SHOWN}; with --json all]",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_(
    broker: BrokerOptions,
    topology: str | None,
    reasons: tuple[str, ...],
    since: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """List dead letters, newest last.

    A letter that was sent back and refused again stands there once, as it was refused last. One that was sent
    back and processed stays until the stream forgets it; sending it again changes nothing.
    """
    wanted, _ = _wanted(topology, reasons, since, ())
    limit = limit or (None if as_json else _SHOWN)
    found, letters = interruptible(_list(connector(broker), wanted, limit))
    if as_json:
        for letter in letters:
            click.echo(msgspec.json.encode({**msgspec.structs.asdict(letter), "time": _instant(letter)}))
        return
    _print_table(letters)
    shown = f", the newest {len(letters)} shown" if len(letters) < len(found.marks) else ""
    click.echo(f"{_count(found.reasons)}{shown}")


async def _list(connect: Connector, wanted: Wanted, limit: int | None) -> tuple[Survey, list[Letter]]:
    from stream.letterbox import letter_of, read_letters, survey

    async with connect() as link:
        with _progress("letters read") as report:
            found = await survey(link, wanted, report)
        async with aclosing(read_letters(link, found.numbers[-(limit or 0) :])) as letters:
            return found, [letter_of(delivery) async for delivery in letters]


@deadletters.command()
@click.argument("number", type=click.IntRange(min=0))
@broker_options("an operator")
def show(number: int, broker: BrokerOptions) -> None:
    """Show one dead letter: why, where from, and its body.

    NUMBER as in the list.
    """

    async def read() -> Delivery | None:
        from stream.letterbox import read_letter

        async with connect() as link:
            return await read_letter(link, number)

    connect = connector(broker)
    delivery = interruptible(read())
    if delivery is None:
        raise ConfigError([_no_such([number])])
    _print_letter(delivery)


@deadletters.command()
@click.argument("numbers", nargs=-1, type=click.IntRange(min=0))
@broker_options("the worker")
@_filters
@click.option("--dry-run", is_flag=True, help="Only say what would be sent back.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def replay(
    numbers: tuple[int, ...],
    broker: BrokerOptions,
    topology: str | None,
    reasons: tuple[str, ...],
    since: str | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Send dead letters back to be processed.

    Each goes to the topology that refused it, and to no other, under the id it has: it is processed once,
    however often it is sent, and neither its age nor its sequence number is held against it. What is refused
    again comes back under the same id. Letters that killed the worker, and duplicates, are sent only where
    their reason or NUMBERS name them. Where a topology reads a queue of its own (source.queue), give its file
    as --topology.

    \b
    mmlw deadletters replay --topology pump_line --reason unknown_sensor
    """
    if not (numbers or topology or reasons or since):
        raise ConfigError([Problem("replay", "say which: NUMBERS, --topology, --reason or --since")])
    wanted, queues = _wanted(topology, reasons, since, numbers)
    interruptible(_replay(connector(broker), wanted, queues, dry_run=dry_run, ask=not yes))


async def _replay(
    connect: Connector, wanted: Wanted, queues: Mapping[str, Queue], *, dry_run: bool, ask: bool
) -> None:
    from stream.brokers.base import Queue
    from stream.letterbox import check_queues, send_back, survey

    async with connect() as link:
        with _progress("letters read") as report:
            found = await survey(link, wanted, report)
        if found.missing:
            raise ConfigError([_no_such(found.missing)])
        marks = [mark for mark in found.marks.values() if mark.topology]
        spared = () if wanted.numbers else set(_ON_PURPOSE) - set(wanted.reasons)
        if left := Counter(mark.reason for mark in marks if mark.reason in spared):
            click.echo(f"left out: {_count(left)}; name them by --reason or number")
        marks = [mark for mark in marks if mark.reason not in spared]
        topologies = sorted({mark.topology for mark in marks})
        targets = {name: queues.get(name, Queue(name=f"mmlw.readings.{name}")) for name in topologies}
        await check_queues(link, targets)
        for name in topologies:
            reasons = Counter(mark.reason for mark in marks if mark.topology == name)
            click.echo(f"{name}: {_count(reasons)} to {targets[name].name}")
        if dry_run or not marks:
            click.echo("nothing was sent" if dry_run else "nothing to send")
            return
        if ask and sys.stdin.isatty():
            await asyncio.to_thread(click.confirm, f"Send {len(marks)} back?", abort=True)
        with _progress("letters sent back", len(marks)) as report:
            sent = await send_back(link, [mark.number for mark in marks], targets, report)
    gone = f" ({len(marks) - sent} were forgotten by the stream meanwhile)" if sent < len(marks) else ""
    click.echo(f"{sent} sent back{gone}")


def _wanted(
    topology: str | None, reasons: tuple[str, ...], since: str | None, numbers: tuple[int, ...]
) -> tuple[Wanted, dict[str, Queue]]:
    """Which letters the options mean, and the queue of the topology where its file tells it. Raises ConfigError."""
    from stream.letterbox import Wanted
    from stream.metrics import Reason
    from stream.validation import suggest

    known = get_args(Reason)
    if unknown := [reason for reason in reasons if reason not in known]:
        hint = suggest(unknown[0], known).split(" Known:")[0].removesuffix(".")
        text = f'"{unknown[0]}" is not a reason{hint}{"" if hint else "."} Known: {", ".join(known)}'
        raise ConfigError([Problem("--reason", text)])
    queues = {}
    if topology is not None and topology.endswith((".yaml", ".yml", ".py")):
        from stream.config import load
        from stream.plan import readings_queue

        declared = load(topology)
        topology, queues = declared.name, {declared.name: readings_queue(declared)}
    after = time.time() - _age(since) if since is not None else 0.0
    return Wanted(topology=topology or "", reasons=reasons, since=after, numbers=numbers), queues


def _age(text: str) -> float:
    """Seconds of `30s`, `10m`, `2h` or `7d`. Raises ConfigError."""
    from stream.settings import Seconds
    from stream.validation import Reader

    reader = Reader()
    seconds = reader.read(Seconds, text, "--since")
    if reader.problems:
        raise ConfigError([Problem("--since", f'"{text}" is not an age such as 30s, 10m, 2h or 7d')])
    return float(seconds)


def _no_such(numbers: list[int]) -> Problem:
    which = ", ".join(map(str, numbers[:8])) + (", …" if len(numbers) > 8 else "")
    return Problem("NUMBER", f"there is no dead letter {which}; mmlw deadletters list shows those there are")


def _count(reasons: Counter[str]) -> str:
    """`120 letters: 100 unknown_sensor, 20 late`."""
    total = reasons.total()
    by_count = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    parts = ", ".join(f"{count} {reason or 'without a reason'}" for reason, count in by_count)
    return f"{total} letter{'' if total == 1 else 's'}{': ' if parts else ''}{parts}"


def _instant(letter: Letter) -> str | None:
    if letter.time is None:
        return None
    return datetime.fromtimestamp(letter.time, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _print_table(letters: list[Letter]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from stream.letter_text import legible

    if not letters:
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("number", justify="right")
    for name in ("when (UTC)", "topology", "reason"):
        table.add_column(name, no_wrap=True)
    for name in ("detail", "routing key"):
        table.add_column(name, overflow="fold")
    table.add_column("offset", justify="right")
    for letter in letters:
        when = (_instant(letter) or "")[:19].replace("T", " ")
        words = (letter.topology, letter.reason, letter.detail, letter.routing_key)
        cells = [when, *(legible(word) for word in words), str(letter.offset)]
        table.add_row(str(letter.number), *(Text(cell) for cell in cells))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _print_letter(delivery: Delivery) -> None:
    from stream.letter_text import MEANINGS, body_text, legible
    from stream.letterbox import letter_of

    letter = letter_of(delivery)
    meanings: Mapping[str, str] = MEANINGS  # type: ignore[assignment]
    click.echo(f"dead letter {letter.number}: {legible(letter.reason) or 'without a reason'}")
    if letter.reason in meanings:
        click.echo(meanings[letter.reason])
    click.echo()
    headers = {
        "when": _instant(letter),
        "id": letter.id,
        "content type": delivery.content_type,
        "published by": delivery.user_id,
        **delivery.headers,
    }
    for name, value in headers.items():
        if value not in (None, ""):
            click.echo(f"{legible(name)}: {legible(str(value))}")
    click.echo(f"\nbody, {letter.bytes} bytes:")
    click.echo(body_text(delivery.body))


@contextmanager
def _progress(what: str, total: int | None = None) -> Iterator[Callable[[int], object]]:
    """A line on a terminal that tells how many there were so far."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    of = "" if total is None else f" of {total}"
    columns = (SpinnerColumn(), TextColumn("{task.completed}" + f"{of} {what}"), TimeElapsedColumn())
    with Progress(*columns, disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.update(task, completed=count)

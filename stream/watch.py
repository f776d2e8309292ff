"""Alerts and receipts on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence

import click
import msgspec
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from stream.alerts import PROCESS, Alert
from stream.brokers.base import Broker, Delivery, Queue
from stream.control import Receipt
from stream.letter_text import legible

__all__ = ["alert_line", "show_audit", "show_receipt", "terminal", "watch_alerts"]

_WIDE = 120
"""Columns from which the audit is one table."""
_NAME = 24
"""Columns for names that are shorter; longer ones push what comes after."""
_COLOURS = {"warning": "yellow", "critical": "bold red"}


async def watch_alerts(
    connect: Callable[[], Broker], queue: str, *, from_start: bool, limit: int | None, as_json: bool
) -> None:
    """Print alerts as they arrive; what comes twice is shown once. Raises BrokerError."""
    console = Console()
    shown: set[str] = set()
    stream = Queue(name=queue)
    async with connect() as broker:
        offset: int | None = None
        if not from_start:
            probe = await broker.consume(stream, offset=None, prefetch=1)
            offset = await probe.end()
            await probe.close()
        intake = await broker.consume(stream, offset=offset, prefetch=200)
        if not as_json and sys.stdout.isatty():
            console.print("[dim]waiting for alerts, Ctrl-C ends[/dim]")
        while limit is None or len(shown) < limit:
            for delivery in await intake.receive(100, 0.0, 1.0):
                await intake.ack(delivery.tag)
                identity = delivery.message_id or ""
                if identity in shown or (limit is not None and len(shown) >= limit):
                    continue
                shown.add(identity)
                _show(console, delivery, as_json=as_json)


def _show(console: Console, delivery: Delivery, *, as_json: bool) -> None:
    if as_json:
        click.echo(delivery.body)
        return
    try:
        alert = msgspec.json.decode(delivery.body, type=Alert)
    except msgspec.DecodeError as error:
        console.print(f"[red]not an alert of ours: {error}[/red]")
        return
    console.print(alert_line(alert))


def alert_line(alert: Alert) -> Text:
    """One line for one event: when, what, where, why."""
    style = "green" if alert.event == "closed" else _COLOURS.get(alert.severity, "magenta")
    text = Text()
    text.append(f"{alert.time[:19].replace('T', ' ')}  ", style="dim")
    text.append(f"{alert.event:<8}{alert.severity:<10}", style=style)
    text.append(f"{alert.machine}  ", style="bold")
    if alert.type != PROCESS:
        text.append(f"{alert.type}  ", style="cyan")
    text.append(alert.reason)
    return text


def show_receipt(receipt: Receipt) -> None:
    """A receipt for people: the outcome first, then what was done."""
    applied = receipt["status"] == "applied"
    console = Console()
    head = Text(
        f"{receipt['topology']} {receipt['verb']}: {receipt['status']}", style="green" if applied else "red"
    )
    console.print(head)
    hidden = {"command", "verb", "topology", "status", "issued", "by", "body"}
    for key, value in receipt.items():
        if key not in hidden:
            console.print(f"  {key}: ", end="", style="dim")
            console.print(
                value if isinstance(value, str) else msgspec.json.encode(value).decode(), markup=False
            )


def show_audit(lines: Sequence[Mapping[str, str | None]]) -> None:
    """Commands that came, oldest first: when, from whom, what, and what became of them; on a narrow terminal with the
    id and the reason below. An id is never cut: it can be given to `mmlw cancel`."""
    console = terminal()
    if not lines:
        console.print("no command has come yet")
        return
    found = [_audited(line) for line in lines]
    if console.width < _WIDE:
        by_width, verb_width = (max(len(cells[i]) for cells in found) for i in (1, 2))
        for at, by, verb, outcome, name, reason in found:
            by.align("left", min(by_width, _NAME))
            verb.align("left", min(verb_width, _NAME))
            console.print(Text("  ").join([at, by, verb, outcome]))
            console.print(Padding(Text("  ").join(filter(None, [name, reason])), (0, 0, 0, 4)))
        return
    table = Table("at", "by", "command", "outcome", "id", "reason", box=None, pad_edge=False)
    for column in table.columns[:5]:
        column.no_wrap, column.overflow = True, "fold"
    for cells in found:
        table.add_row(*cells)
    console.print(table)


def terminal() -> Console:
    """The terminal with its width; where there is none, a width at which little has to be wrapped."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200)


def _audited(line: Mapping[str, str | None]) -> tuple[Text, Text, Text, Text, Text, Text]:
    """When, from whom, what, what became of it, its id, and why."""
    style = "red" if line["status"] in ("refused", "failed", "cancelled") else "green"
    by, verb, name, reason = (Text(legible(line[key] or "")) for key in ("by", "verb", "id", "reason"))
    at = Text((line["at"] or "")[:19].replace("T", " "))
    return at, by, verb, Text(line["status"] or "", style=style), name, reason

"""Alerts and receipts on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stream.alerts import PROCESS, Alert
from stream.brokers.base import Broker, Delivery, Queue
from stream.control import Receipt

__all__ = ["alert_line", "show_audit", "show_receipt", "watch_alerts"]

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
    """Commands that came, oldest first: when, from whom, what, and what became of them."""
    table = Table("at", "by", "command", "outcome", "id", "reason", box=None, pad_edge=False)
    for line in lines:
        style = "red" if line["status"] in ("refused", "failed", "cancelled") else "green"
        outcome = Text(line["status"] or "", style=style)
        at = (line["at"] or "")[:19].replace("T", " ")
        rest = (line["by"], line["verb"], outcome, line["id"], line["reason"])
        table.add_row(at, *(part if isinstance(part, Text) else Text(part or "") for part in rest))
    Console().print(table if lines else "no command has come yet")

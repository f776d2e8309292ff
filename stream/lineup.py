"""`mmlw models`: which versions the registry holds, and how shadows compare with their champions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from stream.errors import CommandRefused
from stream.options import (
    BrokerOptions,
    broker_options,
    connector,
    data_option,
    registry_of,
    registry_options,
    timeout_option,
)

if TYPE_CHECKING:
    from rich.table import Table

    from stream.references import ModelVersion

__all__ = ["add_to", "comparison_rows"]


_UNBOUND = 10_000
"""Columns in which any table has room."""


def add_to(group: click.Group) -> None:
    """Add these commands to the command line."""
    group.add_command(models)


@click.group()
def models() -> None:
    """Registered models, and shadows beside their champions."""


@models.command("list")
@click.argument("name", required=False)
@registry_options
@data_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_(name: str | None, registry_uri: str | None, data: Path, as_json: bool) -> None:
    """List the versions of a model, or of all."""
    from stream.watch import terminal

    registry = registry_of(registry_uri, data)
    found = [
        (each, item) for each in ([name] if name else registry.names()) for item in registry.versions(each)
    ]
    if as_json:
        for each, item in found:
            click.echo(msgspec.json.encode({"name": each, **msgspec.to_builtins(item)}))
        return
    console = terminal()
    if not found:
        console.print("no model is registered yet: mmlw train FILE")
        return
    table = _versions(found, "name")
    if console.measure(table, options=console.options.update(width=_UNBOUND)).maximum <= console.width:
        console.print(table)
        return
    for each in dict.fromkeys(each for each, _ in found):
        console.print(each, style="bold", highlight=False, markup=False)
        console.print(_versions([pair for pair in found if pair[0] == each]))


def _versions(found: Sequence[tuple[str, ModelVersion]], *names: str) -> Table:
    """A row for each version; with the model's name first where that column is wanted. Only aliases are wrapped."""
    from rich.table import Table

    table = Table(*names, "version", "aliases", "kind", "created", "digest", box=None, pad_edge=False)
    for column in table.columns:
        column.no_wrap = column.header != "aliases"
    for each, item in found:
        created = datetime.fromtimestamp(item.created, UTC).strftime("%Y-%m-%d %H:%M")
        kind, digest = (item.ref.kind, item.ref.digest[:19]) if item.ref else ("not of mmlw", "")
        name = [each] if names else []
        table.add_row(*name, str(item.version), ", ".join(item.aliases), kind, created, digest)
    return table


@models.command()
@click.argument("topology")
@broker_options("an operator")
@timeout_option("Seconds to wait for the answer.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def compare(topology: str, broker: BrokerOptions, timeout: float, as_json: bool) -> None:
    """Compare the shadows of a running topology with their champions.

    TOPOLOGY is a name or a file. Since the shadow began, and in the last whole window of promote_when.
    """
    from rich.console import Console
    from rich.table import Table

    from stream.config import load
    from stream.control import request

    name = load(topology).name if topology.endswith((".yaml", ".yml", ".py")) else topology
    connect = connector(broker)

    async def ask() -> Any:
        async with connect() as link:
            return await request(link, name, "status", user=connect.user, timeout=timeout)

    receipt = asyncio.run(ask())
    if receipt["status"] != "applied":
        raise CommandRefused(receipt["reason"])
    shadows: Mapping[str, Mapping[str, Any]] = receipt["shadows"]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(shadows), indent=2).decode())
        return
    console = Console()
    if not shadows:
        console.print("no shadow runs; start one: mmlw shadow TOPOLOGY models:/NAME@ALIAS")
    for detector, figures in shadows.items():
        champion, shadow = figures["champion"]["version"], figures["model"]["version"]
        console.print(f"{detector}: champion v{champion}, shadow v{shadow}", style="bold", highlight=False)
        table = Table("", "since it began", "last window", box=None, pad_edge=False)
        for row in comparison_rows(figures):
            table.add_row(*row)
        console.print(table)
        told = figures["unmet"] or ["promote_when is met, or not declared: mmlw promote"]
        console.print("\n".join(told), style="yellow" if figures["unmet"] else "green", highlight=False)


def comparison_rows(figures: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What is compared, since the shadow began, and in the last whole window (a dash before the first has ended)."""
    window = figures["window"]
    rows = []
    for name, label in _LABELS.items():
        rows.append((label, _shown(figures[name]), "-" if window is None else _shown(window[name])))
    return rows


_LABELS = {
    "readings": "readings",
    "agreement": "agreement",
    "kappa": "Cohen's kappa",
    "drift": "drift of scores (KS)",
    "alerts": "alerts, champion / shadow",
    "us_per_reading": "µs a reading, champion / shadow",
    "unscored": "readings without a score",
}


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['champion']:g} / {value['shadow']:g}"
    return f"{value:g}"

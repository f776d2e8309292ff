"""`mmlw capture`: what was captured, and one file of it."""

from __future__ import annotations

import time
from pathlib import Path

import click

from stream.options import capture_option, data_option

__all__ = ["add_to"]


def add_to(group: click.Group) -> None:
    """Add the commands to the command line."""
    group.add_command(capture)


@click.group()
def capture() -> None:
    """Readings and scores that a topology wrote to Parquet: list, export.

    A topology captures where its file says so (`capture: {}`). TOPOLOGY is a name or a file. pandas reads the
    folder as it is: pandas.read_parquet(FOLDER).
    """


@capture.command("list")
@click.argument("topology")
@capture_option
@data_option
def list_(topology: str, captures: Path | None, data: Path) -> None:
    """Show the files: messages covered, rows, times of the readings, bytes."""
    from stream.capture_files import journals, parts
    from stream.journal import records

    folder = _folder(topology, captures, data)
    rows = size = 0
    for part in parts(folder):
        count, first, last = part.span()
        rows, size = rows + count, size + part.bytes
        between = f"{_day(first)} to {_day(last)}" if count else "no readings"
        click.echo(f"{part.path.name}  {count:>9,} rows  {between}  {part.bytes:>12,} bytes")
    waiting = sum(record.rows for _, path in journals(folder) for record in records(path))
    click.echo(f"{folder}: {rows:,} rows in files, {size:,} bytes; {waiting:,} rows wait for theirs")


@capture.command()
@click.argument("topology")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
@capture_option
@data_option
def export(topology: str, file: Path, force: bool, captures: Path | None, data: Path) -> None:
    """Write all of it to one FILE, .csv or .parquet.

    Rows that wait for their file (up to `capture.rotate.age`) are not in it.
    """
    from stream.capture_files import export as write
    from stream.capture_files import parts
    from stream.errors import ConfigError, Problem

    if file.suffix not in (".csv", ".parquet"):
        raise ConfigError([Problem(str(file), "name a file that ends in .csv or .parquet")])
    if file.exists() and not force:
        raise ConfigError([Problem(str(file), "is there already; say --force to overwrite it")])
    folder = _folder(topology, captures, data)
    found = parts(folder)
    if not found:
        raise ConfigError([Problem(str(folder), "holds no finished file yet; stop the worker, or wait")])
    try:
        rows = write(found, file)
    except OSError as error:
        raise ConfigError([Problem(str(file), f"cannot be written: {error.strerror or error}")]) from error
    click.echo(f"{file}: {rows:,} rows of {len(found)} files, {file.stat().st_size:,} bytes")


def _folder(topology: str, captures: Path | None, data: Path) -> Path:
    """Where a topology, by name or file, captures. Raises ConfigError where it did not yet."""
    from stream.errors import ConfigError, Problem

    name = topology
    if topology.endswith((".yaml", ".yml", ".py")):
        from stream.config import load

        name = load(topology).name
    folder = (captures or data / "capture") / name
    if not folder.is_dir():
        hint = "does the topology say capture: {}, and is --data (or --capture) that of its worker?"
        raise ConfigError([Problem(str(folder), f"nothing was captured here: {hint}")])
    return folder


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))

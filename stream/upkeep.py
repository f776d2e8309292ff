"""Commands for checkpoints: look into one, copy it, put a copy back, start over."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from stream.options import data_option

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it: --help answers at once
    from stream.checkpoint import Checkpoint
    from stream.state import Saved

__all__ = ["add_to"]

_BEGINNING = "a stream is read from its oldest message, a queue from what it still holds"


def add_to(group: click.Group) -> None:
    """Add these commands to the command line."""
    group.add_command(checkpoint)


@click.group()
def checkpoint() -> None:
    """What a topology knows, on disk: show, export, import, reset.

    State of every machine, position in the stream, open alerts, models and commands, always changed together.
    TOPOLOGY is a name or a file; --data is the folder that its worker was given.
    """


@checkpoint.command()
@click.argument("topology")
@click.option("--machine", help="Show the state of this machine.")
@click.option("--audit", is_flag=True, help="Show every command that came, and what became of it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@data_option
def show(topology: str, machine: str | None, audit: bool, as_json: bool, data: Path) -> None:
    """Look into a checkpoint, also while its worker runs.

    It is read as a copy, and every checksum verified. One that a worker would refuse, because commits are lost or it
    is another or older one, is shown all the same: that is said first, and the command ends with 2.
    """
    from stream.checkpoint_files import checkpoint_of
    from stream.errors import CheckpointUnproven

    name = _name(topology)
    path = checkpoint_of(data, name)
    refused = ""
    try:
        told = _told(path, name, machine, audit=audit)
    except CheckpointUnproven as error:
        refused = str(error)
        told = {"refused": refused, **_told(path, name, machine, audit=audit, refused=True)}
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(told, enc_hook=repr), indent=2).decode())
    else:
        if told.pop("refused", None):
            click.echo(f"a worker refuses it: {refused}")
        _print(told)
    if refused:
        sys.exit(2)


@checkpoint.command()
@click.argument("topology")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
@data_option
def export(topology: str, file: Path, force: bool, data: Path) -> None:
    """Copy a checkpoint to FILE, also while its worker runs.

    The copy is consistent and verified: a backup, or the way to another host. A checkpoint that a worker would
    refuse is not copied.
    """
    from stream.checkpoint_files import checkpoint_of, snapshot
    from stream.errors import CheckpointError

    name = _name(topology)
    path = checkpoint_of(data, name)
    if file.resolve() in {
        path.resolve(),
        *(path.with_name(path.name + end).resolve() for end in ("-wal", "-shm")),
    }:
        raise CheckpointError(f"{file} is the checkpoint itself; name another file")
    if file.exists() and not force:
        raise CheckpointError(f"{file} is there already; say --force to overwrite it")
    fresh = file.with_name(
        f".{file.name}.{uuid.uuid4().hex}"
    )  # whatever is at FILE stays until the copy is sound
    try:
        with snapshot(path, name, kept=fresh) as copied:
            saved = copied.load()
            commits = copied.commits
        fresh.replace(file)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(fresh), str(path))) from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be written: {error.strerror}") from error
    finally:
        fresh.unlink(missing_ok=True)
    click.echo(
        f"{file}: commit {commits}, next message {saved.position.next_offset}, {saved.stored} machines, "
        f"{file.stat().st_size:,} bytes; verified"
    )


@checkpoint.command("import")
@click.argument("topology")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@data_option
def import_(topology: str, file: Path, data: Path) -> None:
    """Put a copy in place of a checkpoint. Its worker must be stopped.

    It is verified first, and the one that was there is kept under another name. Reading goes on where the copy
    stands: what a stream still keeps from there on is processed again, with the same alerts under the same ids.
    Commands that came after the copy are forgotten.
    """
    from stream.checkpoint_files import install, snapshot
    from stream.errors import CheckpointError

    name = _name(topology)
    if not file.exists():
        raise CheckpointError(f"{file}: no such file")
    data.mkdir(parents=True, exist_ok=True)
    path = data / f"{name}.checkpoint"
    replaced = install(file, path, name)
    with snapshot(path, name) as installed:
        saved = installed.load()
    goes_on = f"reading goes on at {saved.position.next_offset}"
    click.echo(f"{path}: commit {installed.commits}, {saved.stored} machines; {goes_on}")
    if replaced is not None:
        click.echo(f"the one before is kept as {replaced}")


@checkpoint.command()
@click.argument("topology")
@click.option("--keep-state", is_flag=True, help="Forget only the position: for a stream that was made anew.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@data_option
def reset(topology: str, keep_state: bool, yes: bool, data: Path) -> None:
    """Start over. The worker must be stopped.

    The checkpoint is kept under another name. A stream is then read from its oldest message, a queue from what it
    still holds, with detectors that have learned nothing; with --keep-state they know what they know, and only the
    place in the stream is forgotten.
    """
    from stream.checkpoint import Checkpoint
    from stream.checkpoint_files import aside_of, checkpoint_of, copy, put_aside
    from stream.errors import CheckpointError
    from stream.state import Changes, StreamPosition

    name = _name(topology)
    path = data / f"{name}.checkpoint"
    if not path.with_suffix(".lock").exists():
        path = checkpoint_of(data, name)
    what = "forget the position" if keep_state else "forget the state of all machines and the position"
    if not yes:
        if not sys.stdin.isatty():
            raise CheckpointError(f"this would {what} of {name}; say --yes if you mean it")
        click.confirm(f"{what} of {name}?", abort=True)
    if not keep_state:
        aside = put_aside(path)
        kept = f"; the old one is kept as {aside}" if aside else ""
        click.echo(f"{name} starts over: {_BEGINNING}{kept}")
        return
    aside = aside_of(path)
    copy(path, aside)
    opened = Checkpoint(path, name, None)
    try:
        opened.load(0)
        opened.commit(Changes(StreamPosition()))
    finally:
        opened.close()
    click.echo(f"{name} keeps its state: {_BEGINNING}; the old one is kept as {aside}")


def _name(topology: str) -> str:
    if topology.endswith((".yaml", ".yml", ".py")):
        from stream.config import load

        return load(topology).name
    return topology


def _told(
    path: Path, name: str, machine: str | None, *, audit: bool, refused: bool = False
) -> dict[str, Any]:
    """What is shown of a checkpoint. Raises CheckpointUnproven, unless it is known that a worker refuses it."""
    from stream.checkpoint_files import in_use, snapshot

    with snapshot(path, name, adopt=refused) as copied:
        saved = copied.load()
        if machine is not None:
            return {"machine": machine, "state": _state_of(saved, machine, path)}
        if audit:
            return {"audit": copied.audit()}
        told = _summary(path, copied, saved, running=in_use(path))
        if refused and told["worker"] != "runs":
            told["worker"] = "unknown"  # what it did last may be among what was lost
        return told


def _summary(path: Path, copied: Checkpoint, saved: Saved, *, running: bool) -> dict[str, Any]:
    open_: dict[str, int] = {}
    for group in saved.groups:
        for table, rows in group.components.items():
            kind, _, detector = table.partition(":")
            if kind == "alert":
                open_[detector] = open_.get(detector, 0) + int((rows["severity"] >= 0).sum())
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "worker": "runs" if running else "died" if saved.died else "stopped in order",
        "commit": copied.commits,
        "next_message": saved.position.next_offset,
        "machines": saved.stored,
        "open_alerts": open_,
        "paused": saved.paused,
        "models": {
            name: {"current": _model(current), "previous": _model(previous)}
            for name, (current, previous) in saved.models.items()
            if ":" not in name  # not of what runs beside
        },
        "commands_carried_out": len(saved.commands),
        "last_commands": [
            f"{receipt.get('verb')} by {receipt.get('by')} ({command})"
            for command, receipt in list(saved.commands.items())[-5:]
        ],
        "dead_letters_replayed": len(saved.replays),
    }


def _model(reference: dict[str, Any] | None) -> str | None:
    return f"{reference['name']} version {reference['version']}, {reference['digest']}" if reference else None


def _state_of(saved: Saved, machine: str, path: Path) -> dict[str, Any]:
    """A machine's rows, by table and array."""
    from stream.errors import CheckpointError

    for group in saved.groups:
        if machine in group.machines:
            i = list(group.machines).index(machine)
            return {
                table: {
                    name: f"{len(column[i])} bytes" if column.dtype == object else column[i].tolist()
                    for name, column in rows.items()
                }
                for table, rows in group.components.items()
            }
    some = ", ".join(saved.machines[:8])
    raise CheckpointError(f'{path}: knows no machine "{machine}" (it knows {saved.stored}: {some})')


def _print(told: Any, indent: str = "") -> None:
    for name, value in told.items():
        if isinstance(value, dict) and value:
            click.echo(f"{indent}{name.replace('_', ' ')}")
            _print(value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], (dict, str)):
            click.echo(f"{indent}{name.replace('_', ' ')}")
            for item in value:
                text = item if isinstance(item, str) else "  ".join(f"{k}={v}" for k, v in item.items())
                click.echo(f"{indent}  {text}")
        else:
            shown = "none" if value in (None, {}, []) else _short(value)
            click.echo(f"{indent}{name.replace('_', ' ') + ' ':.<26} {shown}")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}…"

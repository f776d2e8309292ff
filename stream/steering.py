"""Commands for operators: watch alerts, and steer a running topology by control messages."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Literal

import click
import msgspec

from stream.errors import ConfigError, Problem
from stream.options import BrokerOptions, Command, broker_options, connector, interruptible, timeout_option

__all__ = ["add_to"]


def add_to(group: click.Group) -> None:
    """Add these commands to the command line."""
    for command in (alerts, *_COMMANDS):
        group.add_command(command)


@click.command()
@broker_options("a consumer")
@click.option("--queue", default="mmlw.alerts", show_default=True, help="The stream that keeps the alerts.")
@click.option("--from-start", is_flag=True, help="Show what is kept, too.")
@click.option("--limit", type=click.IntRange(min=1), help="Leave after so many events, repeats not counted.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def alerts(
    broker: BrokerOptions,
    queue: str,
    from_start: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """Show alerts live, until Ctrl-C."""
    from stream.watch import watch_alerts

    connect = connector(broker)
    interruptible(watch_alerts(connect, queue, from_start=from_start, limit=limit, as_json=as_json))


_COMMANDS: list[click.Command] = []


def _steering(
    verb: str,
    text: str,
    *,
    detector: bool = False,
    model: Literal["needed", "optional"] | None = None,
    machine: bool = False,
    flag: tuple[str, str] | None = None,
) -> None:
    """Add one of the commands that steer a running topology."""

    def command(
        topology: str,
        broker: BrokerOptions,
        timeout: float,
        as_json: bool,
        **arguments: Any,
    ) -> None:
        from stream.references import parse_uri

        if (address := arguments.get("model")) is not None:
            try:
                parse_uri(address)
            except ValueError as error:
                raise ConfigError([Problem("MODEL", str(error))]) from None
        _send(topology, verb, broker, timeout, as_json=as_json, **arguments)

    command.__doc__ = text
    wrapped: Command = command
    wrapped = click.option("--json", "as_json", is_flag=True, help="Print the receipt as JSON.")(wrapped)
    wrapped = timeout_option("Seconds to wait for the receipt.")(wrapped)
    wrapped = broker_options("an operator")(wrapped)
    if detector:
        wrapped = click.option("--detector", help="Which batch detector, where there are several.")(wrapped)
    if model:
        wrapped = click.option("--digest", help="Refuse any other content: sha256:... as mmlw train tells.")(
            wrapped
        )
        wrapped = click.argument("model", required=model == "needed")(wrapped)
    if flag:
        wrapped = click.option(f"--{flag[0]}", is_flag=True, help=flag[1])(wrapped)
    if machine:
        wrapped = click.option("--detector", help="Whose alert.  [default: all of the machine's]")(wrapped)
        wrapped = click.argument("machine")(wrapped)
    wrapped = click.argument("topology")(wrapped)
    _COMMANDS.append(click.command(verb)(wrapped))


def _send(
    topology: str, verb: str, broker: BrokerOptions, timeout: float, *, as_json: bool, **arguments: Any
) -> None:
    """Send a command and show its receipt; whatever is not applied ends with 1."""
    from stream.config import load
    from stream.control import request
    from stream.watch import show_audit, show_receipt

    name = load(topology).name if topology.endswith((".yaml", ".yml", ".py")) else topology
    connect = connector(broker)

    async def send() -> Any:
        async with connect() as link:
            return await request(link, name, verb, user=connect.user, timeout=timeout, **arguments)

    receipt = asyncio.run(send())
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(receipt), indent=2).decode())
    elif "audit" in receipt:
        show_audit(receipt["audit"])
    else:
        show_receipt(receipt)
    if receipt["status"] != "applied":
        sys.exit(1)


_steering(
    "status",
    "Ask a running topology how it is.\n\nPosition, lag, models, open alerts. TOPOLOGY is a name or a file.",
)
_steering(
    "swap",
    "Swap a batch model while readings flow.\n\n"
    "MODEL is models:/NAME@ALIAS or models:/NAME/VERSION. The receipt names the first offset scored by it.",
    detector=True,
    model="needed",
)
_steering(
    "shadow",
    "Have a model score beside the one that serves.\n\n"
    "MODEL is models:/NAME@ALIAS or models:/NAME/VERSION. It alerts nowhere; mmlw models compare tells how it does.",
    detector=True,
    model="optional",
    flag=("stop", "End the shadow that runs."),
)
_steering(
    "promote",
    "Put a detector's shadow in its model's place.\n\n"
    "Refused, with the figures, where it has not shown what the topology asks for (promote_when). Moves the alias "
    "that the topology names.",
    detector=True,
    flag=("force", "Whatever promote_when says; it stands in the audit."),
)
_steering(
    "audit",
    "Show the last hundred commands that came.\n\nApplied or refused, with time, sender and reason. Oldest first.",
)
_steering("rollback", "Go back to the model that scored before the last swap.", detector=True)
_steering("pause", "Stop reading; what arrives waits in the stream.")
_steering("resume", "Go on reading where it was paused.")


@click.command()
@click.argument("topology")
@click.argument("label", type=click.Choice(["true", "false", "anomaly", "normal"]))
@click.option("--alert", help="The alert's id, as mmlw alerts --json shows it.")
@click.option("--machine", help="Or a machine: its open alerts, or with --from and --to a time of it.")
@click.option("--detector", help="Whose open alerts.  [default: all of the machine's]")
@click.option("--from", "since", help="When that time began: RFC 3339, such as 2024-05-01T06:00:00Z.")
@click.option("--to", "until", help="And ended.")
@click.option("--learn", is_flag=True, help="What was no fault is learned, online and in the next training.")
@timeout_option("Seconds to wait for the receipt.")
@click.option("--json", "as_json", is_flag=True, help="Print the receipt as JSON.")
@broker_options("an operator")
def label(
    topology: str,
    label: str,
    learn: bool,
    broker: BrokerOptions,
    timeout: float,
    as_json: bool,
    **arguments: str | None,
) -> None:
    """Say whether an alert was one, or what a time of a machine was.

    \b
    mmlw label pumps false --alert 4f0c…          this was normal: an open alert is closed
    mmlw label pumps false --machine pump-7 --learn
    mmlw label pumps true --alert 4f0c…
    mmlw label pumps anomaly --machine pump-7 --from 2024-05-01T06:00Z --to 2024-05-01T07:30Z

    true and false are said of alerts, anomaly and normal of a time. What was a fault is left out when models are
    trained, and so is what was none but is not to be learned. mmlw status counts the labels.
    """
    called = {"since": "from", "until": "to"}
    given = {called.get(name, name): value for name, value in arguments.items()}
    _send(topology, "label", broker, timeout, as_json=as_json, label=label, learn=learn or None, **given)


_COMMANDS.append(label)


@click.command()
@click.argument("topology")
@click.argument("command_id")
@timeout_option("Seconds to wait for the receipt.")
@click.option("--json", "as_json", is_flag=True, help="Print the receipt as JSON.")
@broker_options("an operator")
def cancel(topology: str, command_id: str, broker: BrokerOptions, timeout: float, as_json: bool) -> None:
    """End a training that a running topology began.

    COMMAND_ID is the id of the command train; mmlw audit shows it. Nothing of the training is registered; once it is
    registering it cannot be cancelled any more.
    """
    _send(topology, "cancel", broker, timeout, as_json=as_json, command=command_id)


_COMMANDS.append(cancel)
_steering(
    "accept",
    "Take a machine's open alert for its new normal.\n\n"
    "While an alert is open its readings are not learned; from now on they are, and the alert closes when the "
    "detector knows them.",
    machine=True,
)

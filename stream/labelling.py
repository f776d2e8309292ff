"""The command `label`: an operator's word on an alert, or on a time of a machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

from stream.commands import Command, Receipt
from stream.engine import Engine
from stream.errors import CommandRefused, ReadingRejected
from stream.feedback import Raised, Window
from stream.readings import epoch_seconds
from stream.state import Changes
from stream.validation import suggest

__all__ = ["labelled"]


async def labelled(engine: Engine, command: Command, receipt: Receipt, now: float) -> Callable[[], Changes]:
    """What the command does, as an act between two batches. Raises CommandRefused on one that says nothing.

    `{"alert": ID, "label": "true" | "false"}`: was it one? `{"machine", "label": "true" | "false"}` says it of the
    machine's open alerts. What is false and open is closed; what was closed so and lasts is learned from here on or
    is not, as the last word says. With `from` and `to` the label is `anomaly` or `normal`, and says what that time
    was.
    """
    label, window = command.label, command.since is not None or command.until is not None
    if (command.alert is None) == (command.machine is None):
        raise CommandRefused('label needs either "alert", its id, or "machine"')
    words = ("anomaly", "normal") if window else ("true", "false")
    if label not in words:
        of = "a time of a machine" if window else "an alert"
        raise CommandRefused(
            f'"label" of {of} is {" or ".join(words)}{suggest(label, words) if label else ""}'
        )
    if command.learn and label != "false":
        raise CommandRefused('"learn" belongs to the label false: is what was no fault to be learned?')
    if window:
        return await _marked(engine, command, receipt, now)
    if command.detector is not None and command.detector not in (raising := engine.scorer.open_alerts()):
        raise CommandRefused(
            f'"{command.detector}" raises no alerts here{suggest(command.detector, raising)}'
        )
    said = cast('Literal["true", "false"]', label)
    receipt |= {"label": said, **({"learn": bool(command.learn)} if said == "false" else {})}
    return lambda: _said(engine, command, receipt, said, now)


def _said(
    engine: Engine, command: Command, receipt: Receipt, label: Literal["true", "false"], now: float
) -> Changes:
    meant, learned = _meant(engine, command), bool(command.learn)
    closed = corrected = 0
    for raised in meant:
        engine.scorer.beside.feedback.label(raised, label, learned=learned, at=now)
        if label == "false" and raised.closed is None:
            closed += engine.acts.close_alert(raised, learned=learned)
        else:
            corrected += engine.acts.correct_alert(raised, learned=learned)
    receipt |= {"alerts": [raised.id for raised in meant], "machine": meant[0].machine}
    receipt |= {"closed": closed, "corrected": corrected}
    return Changes(engine.position)


def _meant(engine: Engine, command: Command) -> list[Raised]:
    """The alerts that a command is about. Raises CommandRefused where there are none."""
    feedback = engine.scorer.beside.feedback
    if command.alert is not None:
        if (raised := feedback.find(command.alert)) is None:
            hint = "label its machine and time instead, with from and to"
            raise CommandRefused(
                f'no alert "{command.alert[:64]}" is known here, or it is too long ago: {hint}'
            )
        return [raised]
    found = [
        raised
        for raised in feedback.open
        if raised.machine == command.machine and command.detector in (None, raised.detector)
    ]
    if not found:
        hint = 'name the alert ("alert"), or a time ("from", "to")'
        raise CommandRefused(f'"{command.machine}" has no open alert: {hint}')
    return found


async def _marked(engine: Engine, command: Command, receipt: Receipt, now: float) -> Callable[[], Changes]:
    machine, name = command.machine, receipt["command"]
    if machine is None or command.detector is not None:
        raise CommandRefused('"from" and "to" go with "machine" alone')
    if command.since is None or command.until is None:
        raise CommandRefused('a time needs both "from" and "to"')
    try:
        start, end = epoch_seconds(command.since), epoch_seconds(command.until)
    except ReadingRejected as error:
        raise CommandRefused(f'"from", "to": {error.detail}') from None
    if end < start:
        raise CommandRefused('"to" is before "from"')
    if not await engine.state_of([machine]):
        raise CommandRefused(f'no machine "{machine}" is known here')
    window = Window(machine, start, end, cast('Literal["anomaly", "normal"]', command.label), now)
    receipt |= {"machine": machine, "label": window.label}

    def act() -> Changes:
        engine.scorer.beside.feedback.mark(name, window)
        return Changes(engine.position)

    return act

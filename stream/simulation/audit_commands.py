"""The auditor of commands: which had to be carried out, what they had to do, and what was told of them."""

from __future__ import annotations

from collections import Counter

from stream.simulation.audit_models import followed
from stream.simulation.outcome import Committed, Loaded, Outcome
from stream.simulation.schedule import START, Command

__all__ = ["check_commands"]

_MISSING = ("models:/scale/7", "models:/scale/8")
"""Versions that the registry does not give."""


def check_commands(outcome: Outcome) -> list[str]:
    """What is wrong, in sentences. Commands are decided in the order in which they were sent."""
    found = [f"{receipt['command']}: the answer came before it was written down" for receipt in outcome.hasty]
    return [
        *found,
        *_check_order(outcome),
        *_check_decisions(outcome),
        *_check_receipts(outcome),
        *_check_pauses(outcome),
    ]


def _first(outcome: Outcome) -> list[Command]:
    """Each command once, where it came first."""
    found: dict[str, Command] = {}
    for command in outcome.schedule.commands:
        found.setdefault(command.id, command)
    return list(found.values())


def _check_order(outcome: Outcome) -> list[str]:
    """Each command is decided once, in the order in which they were sent, and the audit says so."""
    decided = [line for line in outcome.saved.audit if line["status"] in ("applied", "refused")]
    sent = [command.id for command in _first(outcome) if command.verb != "status"]
    told = [line["id"] for line in decided if line["id"] in sent]
    found = [] if told == sent else [f"decided were {told}, sent were {sent}"]
    applied = Counter(
        line["id"] for line in decided if line["status"] == "applied" and line["verb"] != "status"
    )
    if applied != Counter(list(outcome.saved.commands)):
        found.append(
            f"the audit tells of {sorted(applied)}, receipts are of {sorted(outcome.saved.commands)}"
        )
    return found


def _check_decisions(outcome: Outcome) -> list[str]:
    """Which were carried out, and which model each put in place, or beside the one that scores."""
    found: list[str] = []
    kept = outcome.saved.commands
    sent = {command.id: command for command in _first(outcome)}
    current, before, shadow, last = "1", None, None, float("-inf")
    for line in outcome.saved.audit:
        name, verb = line["id"], line["verb"]
        if line["status"] == "duplicate" or verb == "status":
            continue
        command, issued = sent.get(name), last
        if command is not None:
            issued, model = round(START + command.issued, 6), str(command.model)
        elif line["by"] in ("registry", "rollback_when"):
            model = f"models:/scale/{followed(line)}"
        else:
            found.append(f"{name}: a command that nobody sent")
            continue
        back = {"rollback": before, "promote": shadow}
        version = back.get(verb, model.rpartition("/")[2])
        stale = issued < last
        refused = stale or model in _MISSING or version is None
        done = line["status"] == "applied"
        if done and refused:
            why = "out of order" if stale else "impossible"
            found.append(f"{name}: {verb} was carried out, and is {why}")
        if not done and not refused and verb not in ("accept", "label"):  # whose alert may have closed
            found.append(f"{name}: {verb} was not carried out")
        if not done:
            continue
        last = max(last, float(kept[name]["issued"]))
        if verb in ("swap", "shadow", *back):
            told = str(kept[name]["model"]["version"])
            if told != version:
                found.append(f"{name}: {verb} put version {told} in place, not {version or 'nothing'}")
            if line["by"] == "registry" and told == current:
                found.append(f"{name}: version {told} served already")
            if verb in ("shadow", "promote"):
                shadow = told if verb == "shadow" else None
            if verb != "shadow" and told != current:
                current, before = told, None if verb == "rollback" else current
    return found


def _check_receipts(outcome: Outcome) -> list[str]:
    """Answers say what the checkpoint says, and name the place at which it was done."""
    found: list[str] = []
    kept = outcome.saved.commands
    sent = {command.id: command for command in outcome.schedule.commands}
    for reply in outcome.replies:
        name = reply.get("command")
        if name not in sent:
            found.append(f"an answer to a command that nobody sent: {name}")
        elif reply["status"] == "applied" and sent[name].verb != "status":
            told = (reply.get("model"), reply.get("partitions"))
            stored = kept.get(name, {})
            if told != (stored.get("model"), stored.get("partitions")):
                found.append(f"{name}: the receipt says {told}, the checkpoint {stored}")
        elif reply["status"] == "refused" and name in kept:
            found.append(f"{name} was refused and carried out")
    for what in outcome.story:
        for name in what.commands if isinstance(what, Committed) else ():
            first = kept[name]["partitions"]["0"]["first_offset"] if "partitions" in kept[name] else None
            if first not in (None, what.position + 1):
                found.append(f"{name}: the receipt names {first}, it was done after {what.position}")
    return found


def _check_pauses(outcome: Outcome) -> list[str]:
    """While it was paused nothing new was processed, over every restart; and it said so."""
    found: list[str] = []
    plan, paused, limit, again = outcome.schedule, False, -1, -1
    offsets = [message.offset for message in outcome.published]
    for what in outcome.story:
        if isinstance(
            what, Loaded
        ):  # what may have been scored before is scored again, and the batch it ends in
            floor = what.position + plan.after + plan.max_batch
            places = range(floor, floor + plan.max_batch) if plan.source == "queue" else offsets
            batch = [place for place in places if place >= floor][: plan.max_batch]
            again = (batch or offsets)[-1] if what.again else -1
            continue
        if plan.retention:  # the next message may be anywhere
            break
        if paused and what.position > max(limit, again):
            found.append(f"paused at {limit}, and went on to {what.position}")
        if what.paused is not None:
            paused, limit = what.paused, what.position
    times = Counter(command.id for command in plan.commands)
    said = {reply["command"]: reply.get("paused") for reply in outcome.replies}
    paused = False
    for command in _first(outcome):
        if command.verb in ("pause", "resume") and command.id in outcome.saved.commands:
            paused = command.verb == "pause"
        if command.verb == "status" and times[command.id] == 1 and said.get(command.id) is not paused:
            found.append(f"{command.id}: the status says paused: {said.get(command.id)}, not {paused}")
    return found

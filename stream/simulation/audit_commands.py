"""The auditor of commands: which had to be carried out, what they had to do, and what was told of them."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

from stream.simulation.audit_models import followed
from stream.simulation.outcome import Committed, Loaded, Outcome
from stream.simulation.schedule import START, Command

__all__ = ["check_commands"]

_MISSING = ("models:/scale/7", "models:/scale/8")
"""Versions that the registry does not give."""
_COMMIT, _ROUNDING = 0.0015, 0.001
"""Seconds between a command's turn and the end of its commit, at most; and the audit's times are of milliseconds."""


def check_commands(outcome: Outcome) -> list[str]:
    """What is wrong, in sentences. Commands are decided in the order in which they were sent."""
    found = [f"{receipt['command']}: the answer came before it was written down" for receipt in outcome.hasty]
    return [
        *found,
        *_check_order(outcome),
        *_check_decisions(outcome),
        *_check_receipts(outcome),
        *_check_pauses(outcome),
        *_check_strangers(outcome),
    ]


def _first(outcome: Outcome) -> list[Command]:
    """Each operator's command once, where it came first."""
    found: dict[str, Command] = {}
    for command in (command for command in outcome.schedule.commands if command.by == "operator"):
        found.setdefault(command.id, command)
    return list(found.values())


def _check_order(outcome: Outcome) -> list[str]:
    """Each command is decided once, in the order in which they were sent, and the audit says so."""
    first = {command.id: command.digest for command in _first(outcome)}
    decided = [
        line
        for line in outcome.saved.audit
        if line["status"] in ("applied", "refused")
        and line["digest"] == first.get(line["id"], line["digest"])
    ]
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
    done_at = {
        name: what.at for what in outcome.story if isinstance(what, Committed) for name in what.commands
    }
    current, before, shadow, last = "1", None, None, float("-inf")
    for line in outcome.saved.audit:
        name, verb = line["id"], line["verb"]
        if line["status"] == "duplicate" or verb == "status" or line["by"] == "stranger":
            continue
        command, issued = sent.get(name), last
        if command is not None and line["digest"] != command.digest:
            if line["status"] != "refused":
                found.append(f"{name}: another command under its id was {line['status']}")
            continue
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
        done = line["status"] == "applied"
        over = command is not None and _is_over(command, done_at.get(name) if done else None, line["at"])
        refused = stale or model in _MISSING or version is None or over
        if done and refused:
            why = "out of order" if stale else "expired" if over else "impossible"
            found.append(f"{name}: {verb} was carried out, and is {why}")
        if not done and not refused and verb not in ("accept", "label"):  # whose alert may have closed
            found.append(f"{name}: {verb} was not carried out")
        if not done:
            continue
        if command is not None:  # what the worker does by its own rules voids no operator's command
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


def _is_over(command: Command, committed: float | None, refused: str) -> bool:
    """Whether a command had expired when it was carried out, or can have when it was refused."""
    if command.expires is None:
        return False
    until = command.issued + command.expires
    if committed is not None:
        return committed - _COMMIT > until
    return datetime.fromisoformat(refused).timestamp() - START + _ROUNDING >= until


def _check_strangers(outcome: Outcome) -> list[str]:
    """What comes of nobody's on the list is refused and written down, and has no effect."""
    found: list[str] = []
    told = [line for line in outcome.saved.audit if line["by"] == "stranger"]
    for line in told:
        if line["status"] != "refused":
            found.append(f"a stranger's {line['verb']} was {line['status']}")
    known = {line["digest"] for line in told}
    for command in outcome.schedule.commands:
        if command.by == "stranger" and command.digest not in known:
            found.append(f"{command.id}: the audit has nothing of a stranger's {command.verb}")
    found += [
        f"{name}: is a stranger's" for name, r in outcome.saved.commands.items() if r["by"] == "stranger"
    ]
    return found


def _check_receipts(outcome: Outcome) -> list[str]:
    """Answers say what the checkpoint says, and name the place at which it was done."""
    found: list[str] = []
    kept = outcome.saved.commands
    sent = {command.id: command for command in _first(outcome)}
    for number, reply in outcome.replies:
        command, name = outcome.schedule.commands[number], reply.get("command")
        if command.by == "stranger":
            if reply["status"] != "refused":
                found.append(f"{command.id}: a stranger was told: {reply['status']}")
        elif name != command.id:
            found.append(f"an answer to a command that nobody sent: {name}")
        elif command.digest != sent[command.id].digest:
            if reply["status"] != "refused" or "duplicate" in reply:
                found.append(f"{name}: another command under its id was answered like the first: {reply}")
        elif reply["status"] == "applied" and command.verb != "status":
            told = (reply.get("model"), reply.get("partitions"))
            stored = kept.get(command.id, {})
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
            most = plan.after + 2 * plan.max_batch - 1
            next_one = what.position + 1
            places = range(next_one, next_one + most) if plan.source == "queue" else offsets
            behind = [place for place in places if place >= next_one][:most]
            again = (behind or offsets)[-1] if what.again else -1
            limit = max(limit, what.position)  # how far the one before went was judged
            continue
        if plan.retention:  # the next message may be anywhere
            break
        if paused and what.position > max(limit, again):
            found.append(f"paused at {limit}, and went on to {what.position}")
        if what.paused is not None:
            paused, limit = what.paused, what.position
    times = Counter(command.id for command in plan.commands)
    said = {plan.commands[number].id: reply.get("paused") for number, reply in outcome.replies}
    paused = False
    for command in _first(outcome):
        if command.verb in ("pause", "resume") and command.id in outcome.saved.commands:
            paused = command.verb == "pause"
        if command.verb == "status" and times[command.id] == 1 and said.get(command.id) is not paused:
            found.append(f"{command.id}: the status says paused: {said.get(command.id)}, not {paused}")
    return found

"""The auditor: works out from the readings alone what should have come, and compares. It knows no engine.

What it shares with the product are the detectors (their mathematics is tested elsewhere) and the formats of
messages; decoding, duplicates, the alert's life and the order of things are written here once more, plainly.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from stream.brokers.base import Delivery
from stream.simulation.audit_commands import check_commands
from stream.simulation.audit_models import check_models
from stream.simulation.audit_state import check_state
from stream.simulation.outcome import Outcome
from stream.simulation.reference import Reference
from stream.simulation.schedule import DEADLY

__all__ = ["audit", "check_any"]

_DEATHS = 3
"""Processes that a reading kills before it is put aside."""


def audit(outcome: Outcome) -> list[str]:
    """What is wrong, in sentences; nothing if the run equals an uninterrupted one."""
    if outcome.stuck:
        return [f"not everything was processed: {outcome.stuck}"]
    found: list[str] = []
    used, lost = _used(outcome, found)
    expected = Reference(outcome)
    found += expected.process(used)
    found += _compare_alerts(outcome, expected)
    found += _compare_dead_letters(outcome, expected)
    found += check_state(outcome, expected)
    found += _check_counts(outcome, expected)
    found += check_commands(outcome)
    found += check_models(outcome, expected.condemned)
    killers = len({message.tag for message, why in expected.refused if why == "killed_worker"})
    if outcome.killed > _DEATHS * killers and not outcome.schedule.retention:
        found.append(f"{killers} readings killed {outcome.killed} processes: each may kill {_DEATHS}")
    outside = any(fault.kind in DEADLY for fault in outcome.schedule.faults)
    if not outside and outcome.killed < _DEATHS * killers:
        found.append(f"{killers} readings were put aside after {outcome.killed} deaths: too few")
    found += check_any(outcome)
    if outcome.took_stranger:
        found.append("another stream was taken for the one that was read")
    least, most = lost
    if not least <= outcome.gaps <= most:
        found.append(
            f"{outcome.gaps:g} offsets were told to be lost to retention, and it took {least} to {most}"
        )
    if outcome.gaps and len(used) == len(outcome.published):
        found.append("a loss was told, and there was none")
    return found


def check_any(outcome: Outcome) -> list[str]:
    """What is wrong of any run, whatever was sent."""
    found: list[str] = []
    if not outcome.conserved:
        found.append("received is not processed + dead-lettered + passed over")
    for told, committed in outcome.miscounted:
        found.append(f"{told:g} messages were counted in a life that committed {committed}")
    if outcome.used_damage:
        found.append("a damaged checkpoint was used")
    return found


def _used(outcome: Outcome, found: list[str]) -> tuple[list[tuple[int, Delivery]], tuple[int, int]]:
    """The messages whose effect must be in the end, in order, each with its place; and the offsets that
    retention took: those before what was committed, and before anything that was delivered.

    A stream's message counts in the life of the reader that saw it and whose successor went on behind it. A
    queue's place is how many were committed before; what came again behind its commit takes a place once more.
    """
    published = {delivery.offset: delivery for delivery in outcome.published}
    places: list[tuple[int, int]] = []
    least = most = 0
    ends = [life.start for life in outcome.lives[1:]] + [outcome.saved.position.last_offset]
    for (start, seen), end in zip(outcome.lives, ends, strict=True):
        if end < start:
            found.append(f"the position went back from {start} to {end}")
        if outcome.schedule.source == "queue":
            if end - start > len(seen):
                found.append(f"{end - start} messages were committed, and {len(seen)} were delivered")
            places += enumerate(seen[: max(end - start, 0)], start + 1)
            continue
        before = start
        for offset in seen:
            step = offset - before if before >= 0 else 0
            if step > 2:  # a stream skips one offset at the end of a segment
                most += step - 1
                least += step - 1 if offset <= end else 0
            before = max(before, offset)
            if start < offset <= end:
                places.append((offset, offset))
    order = [message for _, message in places]
    if outcome.schedule.source == "queue":
        if list(dict.fromkeys(order)) != list(published):
            found.append("messages took effect in another order, or one of them did not")
    elif order != sorted(set(order)):
        found.append("a message took effect twice, or out of order")
    return [(place, published[message]) for place, message in places], (least, most)


def _check_counts(outcome: Outcome, expected: Reference) -> list[str]:
    """Each process that was not killed counted what became of the messages that it committed."""
    found: list[str] = []
    for start, end, told in outcome.counted:
        wanted = Counter(fate for place, fate in expected.fates.items() if start < place <= end)
        twice = Counter(fate for place, fate in expected.twice.items() if start < place <= end)
        missing, more = wanted - Counter(told), Counter(told) - wanted
        if missing - twice or more != Counter({"dropped duplicate": missing.total()}):
            found.append(f"counted were {dict(told)}, and there were {dict(wanted)}")
    return found


def _compare_alerts(outcome: Outcome, expected: Reference) -> list[str]:
    """Whole alerts after deduplication by id. Where retention took readings, what was read again before and after it
    may differ: then every message counts."""
    found: list[str] = []
    bodies: dict[tuple[str | None, bytes], Delivery] = {}
    told: dict[str | None, bytes] = {}
    for delivery in outcome.alerts:
        bodies.setdefault((delivery.message_id, delivery.body), delivery)
        if (
            told.setdefault(delivery.message_id, delivery.body) != delivery.body
            and not outcome.schedule.retention
        ):
            found.append(f"two different alerts have the id {delivery.message_id}")
    alerts = []
    for delivery in bodies.values():
        alert = json.loads(delivery.body)
        if delivery.message_id != f"{alert['id']}-{alert['sequence']}":
            found.append(f"an alert has the id {delivery.message_id}, which is not its own")
        if delivery.routing_key != f"alert.{alert['severity']}.{alert['topology']}.{alert['machine']}":
            found.append(
                f"an alert of {alert['machine']}, {alert['severity']}, went to {delivery.routing_key}"
            )
        alerts.append(alert)
    return found + _differing(alerts, expected.alerts, outcome)


def _differing(
    alerts: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]], outcome: Outcome
) -> list[str]:
    """What is missing, what is too much, and what is otherwise than it should be."""
    names = ("machine", "detector", "event", "sequence", "position", "score", "model")
    told: dict[str, list[Any]] = {}
    wanted: dict[str, list[Any]] = {}
    for items, by in ((alerts, told), (expected, wanted)):
        for alert in items:
            alert["model"].pop("digest", None)  # of the version, which is compared
            key = json.dumps([alert[name] for name in names], sort_keys=True)
            by.setdefault(key, []).append(alert)
    wanted_times, told_times = (
        Counter({key: len(items) for key, items in by.items()}) for by in (wanted, told)
    )
    found = _differences("alert", wanted_times, told_times, outcome)
    for key in wanted.keys() & told.keys():
        for alert in told[key]:
            if alert not in wanted[key] and not outcome.schedule.retention:
                other = wanted[key][0]
                off = {
                    name: (alert.get(name), other.get(name))
                    for name in alert.keys() | other.keys()
                    if alert.get(name) != other.get(name)
                }
                found.append(f"alert differs: {key}: {off}")
        if outcome.schedule.retention and any(alert not in told[key] for alert in wanted[key]):
            found.append(f"alert differs: {key}")
    return found


def _differences(what: str, wanted: Counter[Any], told: Counter[Any], outcome: Outcome) -> list[str]:
    """What is missing, and what is too much: unless the reading it came of was lost to retention later."""
    found = [f"{what} lost: {item}" for item in (wanted - told)]
    if not outcome.schedule.retention:
        found += [f"{what} spurious: {item}" for item in (told - wanted)]
    return found


def _compare_dead_letters(outcome: Outcome, expected: Reference) -> list[str]:
    """With reason and place. What a queue brings again is numbered anew, and what is sent back again and again may be
    refused once for all: these are dead letters at least once."""
    stream, here = outcome.schedule.source == "stream", outcome.topology.name
    once = {message.offset for message, _ in expected.refused if stream and message.exchange}
    wanted = Counter(
        (message.body, why, here, message.offset if message.offset in once else None)
        for message, why in expected.refused
    )
    told: Counter[Any] = Counter()
    for letter in {
        (letter.message_id, letter.headers["mmlw-offset"]): letter for letter in outcome.dead
    }.values():
        headers = letter.headers
        place = headers["mmlw-offset"] if headers["mmlw-offset"] in once else None
        told[letter.body, headers["mmlw-reason"], headers["mmlw-topology"], place] += 1
    for counted in (wanted, told):
        for key in counted:
            counted[key] = 1 if key[3] is None else counted[key]
    found = _differences("dead letter", wanted, told, outcome)
    ids = {letter.message_id for letter in outcome.dead}
    known = {
        message.offset if stream else (message.routing_key, message.body)
        for message, _ in expected.refused
        if message.exchange
    }
    if not outcome.schedule.retention and len(ids) > len(known):
        found.append(
            f"{len(known)} messages were refused, under {len(ids)} ids: one that comes again keeps its own"
        )
    return found

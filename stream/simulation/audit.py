"""The auditor: works out from the readings alone what should have come, and compares. It knows no engine.

What it shares with the product are the detectors (their mathematics is tested elsewhere) and the formats of
messages; decoding, duplicates, the alert's life and the order of things are written here once more, plainly.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stream.brokers.base import Delivery
from stream.simulation.audit_commands import check_commands
from stream.simulation.audit_models import Watch, changes, check_models
from stream.simulation.outcome import Committed, Outcome
from stream.simulation.schedule import KILLER, Command

__all__ = ["audit"]

_LATENESS = 10.0
_THRESHOLDS = {"spike": 6.0, "scale": 60.0}
_NOTHING = (-np.inf, -1)
"""Newest time and highest sequence number of a machine that has sent nothing."""


def audit(outcome: Outcome) -> list[str]:
    """What is wrong, in sentences; nothing if the run equals an uninterrupted one."""
    if outcome.stuck:
        return [f"not everything was processed: {outcome.stuck}"]
    found: list[str] = []
    used, lost = _used(outcome, found)
    expected = _Reference(outcome).process(used, found)
    found += _compare_alerts(outcome, expected)
    found += _compare_dead_letters(outcome, expected)
    found += _compare_state(outcome, expected)
    found += check_commands(outcome)
    found += check_models(outcome, expected.condemned)
    if not outcome.conserved:
        found.append("received is not processed + dead-lettered + passed over")
    for told, committed in outcome.miscounted:
        found.append(f"{told:g} messages were counted in a life that committed {committed}")
    if outcome.used_damage:
        found.append("a damaged checkpoint was used")
    if outcome.took_stranger:
        found.append("another stream was taken for the one that was read")
    if lost and not outcome.gaps:
        found.append(f"{lost} readings were lost to retention, and nobody was told")
    if outcome.gaps and len(used) == len(outcome.published):
        found.append("a loss was told, and there was none")
    return found


def _used(outcome: Outcome, found: list[str]) -> tuple[list[tuple[int, Delivery]], int]:
    """The messages whose effect must be in the end, in order, each with its place; and what retention took.

    A stream's message counts in the life of the reader that saw it and whose successor went on behind it. A
    queue's place is how many were committed before; what came again behind its commit takes a place once more.
    """
    published = {delivery.offset: delivery for delivery in outcome.published}
    places: list[tuple[int, int]] = []
    lost = 0
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
            missed = [o for o in published if before < o < offset] if before >= 0 else []
            if len(missed) > 1 and offset <= end:
                lost += len(missed)
            before = max(before, offset)
            if start < offset <= end:
                places.append((offset, offset))
    order = [message for _, message in places]
    if outcome.schedule.source == "queue":
        if list(dict.fromkeys(order)) != list(published):
            found.append("messages took effect in another order, or one of them did not")
    elif order != sorted(set(order)):
        found.append("a message took effect twice, or out of order")
    return [(place, published[message]) for place, message in places], lost


@dataclass
class _Life:
    """An alert's state for one machine and detector."""

    open: bool = False
    accepted: bool = False
    silent: bool = False
    """An operator closed it: until it has calmed down, or is worse, it opens no more."""
    held_back: bool = False
    """And is not learned."""
    calm: int = 0
    level: int = 0
    updates: int = 0
    closed_at: float = -np.inf
    peak: float = 0.0
    position: int = -1
    """Of the reading that opened it."""


@dataclass
class _Reference:
    """An uninterrupted run, reading by reading."""

    outcome: Outcome
    events: list[tuple[Any, ...]] = field(default_factory=list)
    bad: list[Delivery] = field(default_factory=list)
    rows: dict[str, dict[str, bytes]] = field(default_factory=dict)
    arrivals: dict[str, tuple[float, int]] = field(default_factory=dict)
    back: set[str] = field(default_factory=set)
    """Dead letters that were sent back and were of use."""
    condemned: Mapping[str, int] = field(default_factory=dict)
    """Swaps that are to be taken back, and the place of the reading that showed it."""

    def process(self, messages: Sequence[tuple[int, Delivery]], found: list[str]) -> _Reference:
        """Read these, each at its place, with the models that the receipts name and what operators accepted."""
        detector: Any = self.outcome.topology.detectors["spike"]
        spike = detector.build(("a",))
        plan, changed = self.outcome.schedule, changes(self.outcome)
        swaps, accepted = (
            [(_place(receipt), receipt["model"]["version"]) for receipt in changed],
            _accepted(self.outcome),
        )
        watch = Watch(plan.rollback, plan.within) if plan.rollback else None
        latest: dict[str, float] = {}
        slots: dict[str, int] = {}
        lives: dict[tuple[str, str], _Life] = {}
        for place, message in messages:
            while accepted and accepted[0][0] < place:
                found += self._accept(lives, latest, *accepted.pop(0)[1:])
            letter = "" if message.exchange else str(message.message_id)
            if letter in self.back:
                continue
            reading = _parsed(message.body)
            if reading is None:
                self._refuse(message, letter)
                continue
            machine, time, seq, value = reading
            if value == KILLER and (letter or not self._verdict(machine, time, seq)[0]):
                self._refuse(message, letter)
                continue
            if machine not in slots and len(slots) >= self.outcome.schedule.most:
                self._refuse(message, letter)
                continue
            slot = slots.setdefault(machine, len(slots))
            if letter:
                self.back.add(letter)
            else:
                verdict, self.arrivals[machine] = self._verdict(machine, time, seq)
                if verdict == "late" and self.outcome.schedule.late == "deadletter":
                    self._refuse(message, letter)
                if verdict:
                    continue
            alert = lives.setdefault((machine, "spike"), _Life())
            learn = np.array([alert.accepted if alert.open else not (alert.silent and alert.held_back)])
            latest[machine] = time
            while changed and _place(changed[0]) <= place:
                receipt = changed.pop(0)
                if watch is not None:
                    watch.changed(receipt)
            row = np.array([slot]), np.array([[value]]), np.array([time]), learn
            version = next((v for at, v in reversed(swaps) if at <= place), 1)
            scores = {"spike": float(spike.score_learn(*row)[0]), "scale": abs(value) * version}
            position = message.offset if self.outcome.schedule.source == "stream" else seq
            for name, score in scores.items():
                life = lives.setdefault((machine, name), _Life())
                told = _step(life, score / _THRESHOLDS[name], time)
                if name == "scale" and watch is not None:
                    watch.add(time, place, opened=told == ("opened", 0))
                if told == ("opened", 0):
                    life.peak, life.position = score, position
                life.peak = max(life.peak, score) if score >= _THRESHOLDS[name] else life.peak
                if told is not None:
                    model = str(version) if name == "scale" else "online"
                    self.events.append((machine, name, *told, score, position, model))
        self.condemned = {} if watch is None else watch.condemned
        for _, command, served in accepted:
            found += self._accept(lives, latest, command, served)
        for machine, slot in slots.items():
            state = spike.snapshot(np.array([slot]))
            self.rows[machine] = {
                name: np.ascontiguousarray(column).tobytes() for name, column in state.items()
            }
        return self

    def _accept(
        self,
        lives: Mapping[tuple[str, str], _Life],
        latest: Mapping[str, float],
        command: Command,
        version: str,
    ) -> list[str]:
        """Take a machine's open alerts for normal, or close them; what is wrong with that."""
        names = ("spike", "scale") if command.detector is None else (command.detector,)
        machine = str(command.machine)
        alerts = [(name, lives[machine, name]) for name in names if (machine, name) in lives]
        alerts = [(name, alert) for name, alert in alerts if alert.open]
        for name, alert in alerts:
            if command.verb == "accept":
                alert.accepted = True
                continue
            alert.open, alert.calm, alert.closed_at = False, 0, latest[machine]
            alert.silent, alert.held_back = True, not command.learn
            model = version if name == "scale" else "online"
            told = ("closed", alert.updates + 1, alert.peak, alert.position, model)
            self.events.append((machine, name, *told))
        return [] if alerts else [f"{command.id}: accepted an alert that was not open"]

    def _refuse(self, message: Delivery, letter: str) -> None:
        """It is a dead letter; one that was sent back is the same one again."""
        if not letter:
            self.bad.append(message)

    def _verdict(self, machine: str, time: float, seq: int) -> tuple[str, tuple[float, int]]:
        """What a reading is, `duplicate` or `late` or nothing of it, and the machine's newest and highest with it."""
        newest, highest = self.arrivals.get(machine, _NOTHING)
        if 0 <= seq <= highest and time <= newest:
            return "duplicate", (newest, highest)
        late = time < newest - _LATENESS
        newest = max(newest, time)
        if seq >= 0 and (seq > highest or time >= newest):
            highest = seq
        return "late" if late else "", (newest, highest)


def _place(receipt: Mapping[str, Any]) -> int:
    """The place of the first reading that a model scores which a command put in place."""
    return int(receipt["partitions"]["0"]["first_offset"])


def _accepted(outcome: Outcome) -> list[tuple[int, Command, str]]:
    """What operators said of alerts, the last place before it, and the version of the model that served."""
    sent = {command.id: command for command in outcome.schedule.commands}
    found, version = [], "1"
    for what in outcome.story:
        for name in what.commands if isinstance(what, Committed) else ():
            receipt = outcome.saved.commands[name]
            if receipt["verb"] in ("accept", "label"):
                found.append((what.position, sent[name], version))
            elif receipt["verb"] in ("swap", "rollback", "promote"):
                version = str(receipt["model"]["version"])
    return found


def _step(life: _Life, ratio: float, time: float) -> tuple[str, int] | None:
    """One score, as a part of its threshold: the event's kind and its number in the alert's life.

    A reading from before the last alert closed opens none."""
    level = 2 if ratio >= 2.0 else 1
    if not life.open:
        life.accepted = False
        if life.silent and (ratio < 1.0 or level <= life.level):
            life.calm = life.calm + 1 if ratio < 0.9 else 0
            life.silent = life.calm < 2
            return None
        life.silent = False
        if ratio < 1.0 or time < life.closed_at:
            return None
        life.open, life.calm, life.level, life.updates = True, 0, level, 0
        return "opened", 0
    if ratio < 0.9:
        life.calm += 1
        if life.calm < 2:
            return None
        life.open, life.closed_at = False, time
        return "closed", life.updates + 1
    life.calm = 0
    if ratio >= 1.0 and level > life.level:
        life.level = level
        life.updates += 1
        return "updated", life.updates
    return None


def _parsed(body: bytes) -> tuple[str, float, int, float] | None:
    try:
        message = json.loads(body)
        return message["machine"], message["time"], message.get("seq", -1), message["values"]["a"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _compare_alerts(outcome: Outcome, expected: _Reference) -> list[str]:
    """Alerts after deduplication by id. Where retention took readings, what was read again before and after it may
    differ: then every message counts."""
    wanted = Counter(expected.events)
    if outcome.schedule.retention:
        told = Counter(map(_event, map(json.loads, {delivery.body for delivery in outcome.alerts})))
        return _differences("alert", wanted, told, outcome)
    found: list[str] = []
    bodies: dict[str | None, bytes] = {}
    for delivery in outcome.alerts:
        if bodies.setdefault(delivery.message_id, delivery.body) != delivery.body:
            found.append(f"two different alerts have the id {delivery.message_id}")
    told = Counter(map(_event, map(json.loads, bodies.values())))
    return found + _differences("alert", wanted, told, outcome)


def _differences(what: str, wanted: Counter[Any], told: Counter[Any], outcome: Outcome) -> list[str]:
    """What is missing, and what is too much: unless the reading it came of was lost to retention later."""
    found = [f"{what} lost: {item}" for item in (wanted - told)]
    if not outcome.schedule.retention:
        found += [f"{what} spurious: {item}" for item in (told - wanted)]
    return found


def _event(alert: Mapping[str, Any]) -> tuple[Any, ...]:
    names = ("machine", "detector", "event", "sequence", "score")
    return (*(alert[name] for name in names), alert["position"]["offset"], alert["model"]["version"])


def _compare_dead_letters(outcome: Outcome, expected: _Reference) -> list[str]:
    if outcome.schedule.source == "queue":  # numbered anew when they come again: at least once
        told = Counter(dict.fromkeys((letter.body for letter in outcome.dead), 1))
        wanted = Counter(dict.fromkeys((message.body for message in expected.bad), 1))
    else:
        unique = {letter.message_id: letter for letter in outcome.dead}.values()
        told = Counter(letter.body for letter in unique)
        wanted = Counter(message.body for message in expected.bad)
    return _differences("dead letter", wanted, told, outcome)


def _compare_state(outcome: Outcome, expected: _Reference) -> list[str]:
    found: list[str] = []
    kept: dict[str, dict[str, bytes]] = {}
    seen: dict[str, tuple[float, int]] = {}
    for group in outcome.saved.groups:
        for i, machine in enumerate(group.machines):
            state = group.components["model:spike"]
            kept[machine] = {
                name: np.ascontiguousarray(column[i]).tobytes() for name, column in state.items()
            }
            arrivals = group.components["arrivals"]
            seen[machine] = (float(arrivals["time"][i][0]), int(arrivals["seq"][i][0]))
    if set(kept) != set(expected.rows):
        found.append(f"machines known: {sorted(kept)}, expected {sorted(expected.rows)}")
    for machine in kept.keys() & expected.rows.keys():
        if kept[machine] != expected.rows[machine]:
            found.append(f"the state of {machine} differs: a reading was learned twice, or not at all")
        if seen[machine] != (wanted := expected.arrivals.get(machine, _NOTHING)):
            found.append(f"{machine}: newest and highest are {seen[machine]}, expected {wanted}")
    return found

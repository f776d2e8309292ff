"""What a seed decides: always the same schedule."""

from __future__ import annotations

import json
import random
from typing import Any, Literal

import msgspec

from stream.simulation.full import filled
from stream.simulation.mishaps import deployed, refused
from stream.simulation.schedule import (
    DEADLY,
    KILLER,
    START,
    Command,
    Fault,
    Kind,
    Move,
    Op,
    Reading,
    Schedule,
)

__all__ = ["schedule"]

_KINDS: dict[Op, tuple[Kind, ...]] = {
    "load": ("crash", "fail"),
    "commit": ("crash", "fail", "full", "torn", "relapse"),
    "connect": ("disconnect",),
    "declare": ("crash", "disconnect"),
    "consume": ("crash", "disconnect"),
    "receive": ("crash", "disconnect", "silent", "deaf"),
    "publish": ("crash", "disconnect", "part", "relapse"),
    "ack": ("crash", "disconnect", "relapse"),
    "answer": ("crash", "disconnect", "relapse"),
}
_ASKING: tuple[Kind, ...] = ("fail", "fail", "crash")
"""What goes wrong as the registry is asked what an alias means."""
_MACHINES = 4


def schedule(seed: int) -> Schedule:
    """The schedule of a seed: always the same one."""
    rng = random.Random(seed)
    source: Literal["stream", "queue"] = "queue" if rng.random() < 0.3 else "stream"
    segment = rng.choice((0, 0, 3, 10)) if source == "stream" else 0
    readings = _begun_anew(random.Random(f"{seed}, anew"), _readings(rng, source))
    killing = rng.random() < 0.06
    if killing:
        readings = _with_killer(rng, readings, segment)
    last = readings[-1].at
    commands = _commands(rng, readings) if rng.random() < 0.6 else ()
    retention: tuple[tuple[float, int], ...] = ()
    if source == "stream" and rng.random() < 0.15:
        retention = ((rng.uniform(0.1, last), rng.randrange(1, 12)),)
    late: Literal["drop", "deadletter"] = rng.choice(("drop", "deadletter"))
    most = rng.choice((100, 100, 100, _MACHINES - 1, _MACHINES - 2))
    replays: tuple[float, ...] = ()
    if source == "stream" and rng.random() < 0.3:
        replays = tuple(sorted(rng.uniform(0.1, last + 0.5) for _ in range(rng.choice((1, 2, 2)))))
    plan = Schedule(
        seed=seed,
        source=source,
        max_batch=rng.choice((1, 2, 5, 16)),
        every=rng.choice((0.0, 0.02, 0.2)),
        after=rng.choice((1, 4, 20, 1000)),
        segment=segment,
        resident=rng.choice((2, 3, 100)),
        most=most,
        late=late,
        replays=replays,
        readings=readings,
        commands=commands,
        faults=_faults(rng, deadly=not killing),
        retention=retention,
        down=rng.choice((0.05, 0.05, 0.4)),
        eager=rng.random() < 0.5,
        stranger=rng.choice(("other", "other", "shorter"))
        if source == "stream" and rng.random() < 0.1
        else "",
    )
    pointed = plan if killing else _pointed(rng, plan)
    if pointed is plan:
        pointed = _by_themselves(random.Random(f"{seed}, models"), plan, deadly=not killing)
    plan = refused(random.Random(f"{seed}, refused"), pointed if killing else deployed(pointed))
    if len(plan.replays) == 2 and random.Random(f"{seed}, twice").random() < 0.5:  # asked twice in a row
        plan = msgspec.structs.replace(plan, replays=(plan.replays[0], plan.replays[0] + 0.001))
    plan = _struck_at_work(random.Random(f"{seed}, at work"), plan)
    full = random.Random(f"{seed}, full")
    return filled(full, plan) if not killing and full.random() < 0.03 else plan


def _struck_at_work(rng: random.Random, plan: Schedule) -> Schedule:
    """Some workers are killed from outside while they score; that alone has nobody put aside."""
    deaths = sum(fault.kind in DEADLY for fault in plan.faults)
    if deaths > 1 or rng.random() > 0.15:
        return plan
    death = Fault("note", rng.randrange(2, 80), "crash", rng.random() < 0.5)
    return msgspec.structs.replace(plan, faults=(*plan.faults, death))


def _by_themselves(rng: random.Random, plan: Schedule, *, deadly: bool) -> Schedule:
    """Some topologies take swaps back by themselves, some follow the alias, some do both."""
    follows = rng.random() < 0.2
    if rng.random() < (0.5 if follows else 0.15):
        plan = _watched(rng, plan, swaps=rng.choice((0, 1, 2) if follows else (1, 1, 2)))
    return _followed(rng, plan, deadly=deadly) if follows else plan


def _watched(rng: random.Random, plan: Schedule, swaps: int) -> Schedule:
    """A rule that takes swaps back, and so many more of them; models from version 3 on raise alerts."""
    rules = ("> 0", "> 0", ">= 2", "> 1 x before", "> 0.5 x before")
    commands = list(plan.commands)
    for i, at in enumerate(sorted(rng.uniform(0.0, plan.readings[-1].at) for _ in range(swaps))):
        commands.append(Command(at, "swap", f"w{i}", at, f"models:/scale/{rng.randrange(2, 7)}", "scale"))
    commands.sort(key=lambda command: command.at)
    rule, within = rng.choice(rules), rng.choice((1.0, 3.0, 1000.0))
    return msgspec.structs.replace(plan, commands=tuple(commands), rollback=rule, within=within)


def _followed(rng: random.Random, plan: Schedule, *, deadly: bool) -> Schedule:
    """An alias that moves, there and back at times, while the registry fails now and then; or it is moved by a
    promotion, which is taken back."""
    last = plan.readings[-1].at
    versions = [rng.randrange(1, 8) for _ in range(rng.choice((1, 1, 2, 3)))]
    if rng.random() < 0.2:
        versions = [versions[0], rng.randrange(1, 8), versions[0]]
    times = sorted(rng.uniform(0.0, last + 0.5) for _ in versions)
    if len(versions) == 3 and rng.random() < 0.5:  # each of them is seen
        times = [times[0], times[0] + 1.5, times[0] + 3.0]
    moves = tuple(Move(at, version, rng.random() < 0.5) for at, version in zip(times, versions, strict=True))
    commands = plan.commands
    if rng.random() < 0.15:
        at, moves = rng.uniform(0.0, last), ()
        shadow = Command(at, "shadow", "p0", at, f"models:/scale/{rng.randrange(2, 7)}", "scale")
        further: tuple[tuple[Literal["promote", "rollback"], float], ...]
        further = (("promote", 0.1), ("rollback", 0.1 + rng.choice((0.01, 0.1, 0.5))))
        after = [Command(at + s, verb, f"p{s}", at + s, detector="scale") for verb, s in further]
        commands = tuple(sorted([*commands, shadow, *after], key=lambda command: command.at))
    deaths = sum(fault.kind in DEADLY for fault in plan.faults) if deadly else 2
    faults = [
        Fault("ask", rng.randrange(1, 6), kind, rng.random() < 0.5)
        for i, kind in enumerate(rng.choices(_ASKING, k=rng.choice((0, 0, 1, 2))))
        if kind not in DEADLY or deaths + i < 2
    ]
    poll, faults = rng.choice((0.3, 1.0)), [*plan.faults, *faults]
    return msgspec.structs.replace(plan, commands=commands, faults=tuple(faults), poll=poll, moves=moves)


def _pointed(rng: random.Random, plan: Schedule) -> Schedule:
    """Some schedules put together what rarely meets by chance: swaps that come the moment something goes wrong, and
    the death of a worker that has just said that an alert is taken for normal."""
    roll, last = rng.random(), plan.readings[-1].at
    if roll < 0.1:
        times = sorted(rng.uniform(0.0, last) for _ in range(rng.randrange(1, 4)))
        swaps = [
            Command(at, "swap", f"c{i}", at, f"models:/scale/{rng.randrange(2, 7)}", "scale")
            for i, at in enumerate(times)
        ]
        return msgspec.structs.replace(plan, commands=tuple(swaps), eager=True)
    if roll < 0.2:
        raised = rng.choice(_raising(plan.readings) or [plan.readings[0]])
        at = raised.at + rng.choice((0.0, 0.001, 0.05))
        accept = Command(at, "accept", "c0", raised.at, machine=raised.machine)
        faults = tuple(fault for fault in plan.faults if fault.kind not in DEADLY)
        death = Fault("answer", 1, "crash", after=True)
        return msgspec.structs.replace(plan, commands=(accept,), faults=(*faults, death), eager=False)
    return plan


def _readings(rng: random.Random, source: str) -> tuple[Reading, ...]:
    """Machines, most with a sequence number; spikes, late readings, repeated ones, and some that are no use."""
    found: list[Reading] = []
    numbered = _MACHINES if source == "queue" or rng.random() < 0.5 else _MACHINES - 2
    at, seqs = 0.0, [0] * _MACHINES
    times = [START] * _MACHINES
    for _ in range(rng.randrange(8, 48)):
        at += rng.choice((0.0, 0.0, 0.001, 0.05, 0.3))
        number = rng.randrange(_MACHINES)
        machine = f"m{number}"
        roll = rng.random()
        if roll < 0.06:
            found.append(Reading(at, machine, rng.choice(("{broken", '{"values": {"a": 1.0}}', '"text"'))))
            continue
        if roll < 0.14 and found:
            found.append(msgspec.structs.replace(rng.choice(found[-6:]), at=at))
            continue
        seqs[number] += rng.choice((1, 1, 1, 3))
        times[number] += rng.choice((1.0, 1.0, 0.5))
        late = 30.0 if roll < 0.2 else 0.0
        value = round(rng.gauss(0.0, 1.0) + (25.0 if rng.random() < 0.3 else 0.0), 3)
        body: dict[str, object] = {"machine": machine, "time": times[number] - late, "values": {"a": value}}
        if number < numbered:
            body["seq"] = seqs[number]
        found.append(Reading(at, machine, json.dumps(body)))
    return tuple(found)


def _begun_anew(rng: random.Random, readings: tuple[Reading, ...]) -> tuple[Reading, ...]:
    """Sequence counters of some machines begin anew, once or twice; a message that came before stays as it was."""
    if rng.random() < 0.5:
        return readings
    cuts = {
        f"m{n}": sorted(rng.choices(range(len(readings)), k=rng.choice((1, 2)))) for n in range(_MACHINES)
    }
    first: dict[str, int] = {}
    """Of a machine's present life, the number that its first message had."""
    known: dict[str, str] = {}
    found: list[Reading] = []
    for i, reading in enumerate(readings):
        if '"seq": ' not in reading.body:
            found.append(reading)
            continue
        body, cut = json.loads(reading.body), cuts[reading.machine]
        if cut and i >= cut[0] and reading.body not in known:
            del cut[0]
            first[reading.machine] = body["seq"]
        body["seq"] -= first.get(reading.machine, 0)
        known.setdefault(reading.body, json.dumps(body))
        found.append(msgspec.structs.replace(reading, body=known[reading.body]))
    return tuple(found)


def _with_killer(rng: random.Random, readings: tuple[Reading, ...], segment: int) -> tuple[Reading, ...]:
    """One reading is of the value that kills; often the first behind an offset that the stream skips."""
    usable = [
        i
        for i, reading in enumerate(readings)
        if '"values": {"a": ' in reading.body and '"time"' in reading.body
    ]
    if not usable:
        return readings
    i = rng.choice([i for i in usable if segment and i % segment == 0] or usable)
    body = {**json.loads(readings[i].body), "values": {"a": KILLER}}
    killer = msgspec.structs.replace(readings[i], body=json.dumps(body))
    return (*readings[:i], killer, *readings[i + 1 :])


def _commands(rng: random.Random, readings: tuple[Reading, ...]) -> tuple[Command, ...]:
    found: list[Command] = []
    last = readings[-1].at
    for number in range(rng.randrange(1, 5)):
        at, name = rng.uniform(0.0, last + 0.5), f"c{number}"
        issued = at - rng.choice((0.0, 0.0, 0.0, 0.0, rng.uniform(0.0, 2.0)))
        roll = rng.random()
        if roll < 0.45:
            verb: Literal["swap", "shadow"] = "swap" if roll < 0.33 else "shadow"
            model = f"models:/scale/{rng.randrange(1, 9)}"
            found.append(Command(at, verb, name, issued, model, "scale"))
            if verb == "shadow" and rng.random() < 0.7:
                when = at + rng.uniform(0.0, 1.0)
                found.append(Command(when, "promote", f"{name}p", when, detector="scale"))
        elif roll < 0.55:
            back: Literal["rollback", "promote"] = "rollback" if roll < 0.53 else "promote"
            found.append(Command(at, back, name, issued, detector="scale"))
        elif roll < 0.75:
            raised = rng.choice(_raising(readings) or [readings[0]])  # soon after it, while its alert is open
            at, issued = raised.at + rng.choice((0.0, 0.001, 0.05)), raised.at
            machine, detector = raised.machine, rng.choice((None, "spike", "spike", "scale"))
            asked: dict[str, Any] = {"verb": "accept"}
            if rng.random() < 0.5:
                asked = {"verb": "label", "label": "false", "learn": rng.random() < 0.5}
            found.append(Command(at, id=name, issued=issued, detector=detector, machine=machine, **asked))
        elif roll < 0.9:
            until = at + rng.uniform(0.1, 2.0)
            found.append(Command(at, "pause", name, issued))
            found.append(Command(until, "resume", f"{name}r", until))
            if rng.random() < 0.5:
                when = rng.uniform(at, until)
                found.append(Command(when, "status", f"{name}s", when))
        else:
            found.append(Command(at, "status", name, issued))
    if found and rng.random() < 0.3:  # the same command once more
        again = rng.choice(found)
        found.append(msgspec.structs.replace(again, at=again.at + rng.uniform(0.0, 1.0)))
    return tuple(sorted(found, key=lambda command: command.at))


def _raising(readings: tuple[Reading, ...]) -> list[Reading]:
    """The first spike of each machine that was seen often enough before."""
    seen: dict[str, int] = {}
    found = []
    for reading in readings:
        count = seen.get(reading.machine, 0)
        spike = '{"a": 2' in reading.body and '{"a": 2.' not in reading.body
        if spike and count >= 3:
            found.append(reading)
        seen[reading.machine] = -len(readings) if spike else count + 1
    return found


def _faults(rng: random.Random, *, deadly: bool) -> tuple[Fault, ...]:
    """At most two deaths: after a third over the same message, that message would be put aside."""
    found: list[Fault] = []
    deaths = 0 if deadly else 2
    for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4, 6))):
        op = rng.choice(("commit", "commit", "publish", "publish", "receive", "ack", *_KINDS))
        kinds = _KINDS[op] if deaths < 2 else tuple(k for k in _KINDS[op] if k not in DEADLY)
        kind = rng.choice(kinds)
        deaths += kind in DEADLY
        found.append(Fault(op, 1 + int(rng.expovariate(0.15)), kind, rng.random() < 0.5))
    return tuple(found)

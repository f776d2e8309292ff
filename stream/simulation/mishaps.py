"""What is put on top of a schedule: commands that must be refused, and workers that are stopped in order."""

from __future__ import annotations

import random
from typing import Literal

import msgspec

from stream.simulation.schedule import DEADLY, Command, Fault, Schedule

__all__ = ["deployed", "refused"]


def refused(rng: random.Random, plan: Schedule) -> Schedule:
    """Strangers send commands, some commands are good for a moment only, and an id comes again with another body."""
    commands, last = list(plan.commands), plan.readings[-1].at
    if rng.random() < 0.08:
        for i in range(rng.choice((1, 1, 2))):
            at = rng.uniform(0.0, last)
            verb: Literal["swap", "pause", "shadow"] = rng.choice(("swap", "swap", "shadow", "pause"))
            model = None if verb == "pause" else f"models:/scale/{rng.randrange(2, 7)}"
            detector = None if verb == "pause" else "scale"
            commands.append(Command(at, verb, f"s{i}", at, model, detector, by="stranger"))
    known = {command.id for command in commands}
    brief = [i for i, command in enumerate(commands) if command.verb in ("swap", "shadow")]
    if brief and rng.random() < 0.2:  # it is good until it comes, or until just before its turn
        i = rng.choice(brief)
        expires = rng.choice((rng.uniform(0.0005, 0.006), rng.uniform(0.0005, 0.006), 0.05, 1.0))
        if sum(command.id == commands[i].id for command in commands) == 1:
            commands[i] = msgspec.structs.replace(commands[i], expires=expires)
    mine = [c for c in commands if c.by == "operator" and c.verb in ("swap", "shadow", "accept")]
    if mine and rng.random() < 0.15:
        first = rng.choice(mine)
        at = first.at + rng.uniform(0.0, 1.0)
        other = Command(at, "swap", first.id, at, f"models:/scale/{rng.randrange(2, 7)}", "scale")
        if first.model != other.model and first.id in known:
            commands.append(other)
    commands.sort(key=lambda command: command.at)
    return msgspec.structs.replace(plan, commands=tuple(commands))


def deployed(plan: Schedule) -> Schedule:
    """Workers are stopped in order with readings still to come: at any time, or soon after a death, when what was
    scored before has not all been scored again and a swap waits for that."""
    rng = random.Random(f"{plan.seed}, stops")
    roll = rng.random()
    if roll < 0.1:
        numbers = sorted(rng.sample(range(1, 5), rng.choice((1, 2, 3))))
        stops = tuple((n, rng.choice((rng.uniform(0.0, 0.05), rng.uniform(0.0, 1.0)))) for n in numbers)
        return msgspec.structs.replace(plan, stops=stops)
    if 0.2 < roll < 0.25 and not plan.moves:
        return _shadowed(rng, plan)
    if roll > 0.2 or plan.moves or plan.rollback or plan.poll or plan.stranger:
        return plan
    first, then = rng.sample(range(3, 7), 2)
    pace = rng.choice((0.0, 0.05, 1.0))
    readings = tuple(msgspec.structs.replace(r, at=r.at * pace) for r in plan.readings)
    last = readings[-1].at
    commands = (
        Command(0.0, "swap", "d0", 0.0, f"models:/scale/{first}", "scale"),
        Command(last + 0.5, "swap", "d1", 0.5, f"models:/scale/{then}", "scale"),
    )
    struck = rng.randrange(1, 6)
    faults = [fault for fault in plan.faults if fault.kind not in DEADLY and fault.op != "publish"]
    faults.append(Fault("publish", struck, "crash", after=True))
    stops, roll = (), rng.random()
    if roll < 0.4:
        stops = ((2, rng.uniform(0.005, 0.03)),)
    elif roll < 0.6:
        faults.append(Fault("publish", struck + rng.randrange(1, 3), "crash", after=True))
    return msgspec.structs.replace(
        plan,
        readings=readings,
        commands=commands,
        faults=tuple(faults),
        stops=stops,
        eager=True,
        replays=(),
        retention=(),
        max_batch=rng.choice((2, 5, 16)),
        every=0.2,
        after=rng.choice((1, 4, 20)),
    )


def _shadowed(rng: random.Random, plan: Schedule) -> Schedule:
    """A shadow that begins while alerts of its champion are open, and with everybody in memory: all of its state is
    compared in the end."""
    last = plan.readings[-1].at
    at, later = sorted(rng.uniform(0.0, last) for _ in range(2))
    champion, shadow = rng.randrange(3, 7), rng.randrange(2, 7)
    commands = [
        Command(0.0, "swap", "b0", 0.0, f"models:/scale/{champion}", "scale"),
        Command(at, "shadow", "b1", at, f"models:/scale/{shadow}", "scale"),
    ]
    if rng.random() < 0.3:
        learn = rng.random() < 0.5
        machine = rng.choice(plan.readings).machine
        commands.append(
            Command(
                later, "label", "b2", later, detector="scale", machine=machine, label="false", learn=learn
            )
        )
    return msgspec.structs.replace(plan, commands=tuple(commands), rollback="", poll=0.0, resident=100)

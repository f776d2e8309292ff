"""A topology with everything that one may have, and readings for it.

What should come of it is not worked out anew: it is compared with a run of the same readings in which nothing goes
wrong and that takes one message at a time.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import msgspec
import numpy as np

from detectors.base import Detector
from detectors.calibration import Calibration
from detectors.features import Lag, Rolling
from detectors.health import Health
from detectors.registry import ONLINE
from stream.brokers.base import Delivery
from stream.rules import AlertRule, Combination, Learning
from stream.simulation.audit import check_any
from stream.simulation.outcome import Outcome
from stream.simulation.schedule import ODD, RAISING, START, Reading, Schedule
from stream.topology import Sensor, Topology

__all__ = ["compare", "filled", "full_topology", "undisturbed"]

_MACHINES = 3
_STANDING = 8.0
"""A level of one sensor at which the other stands still."""
_LEAST, _MOST = 30, 60
"""Messages of a schedule."""


def filled(rng: random.Random, plan: Schedule) -> Schedule:
    """The schedule with a full topology and its readings: without commands, and what else makes runs differ."""
    return msgspec.structs.replace(
        plan,
        full=rng.choice((1, 2)),
        resident=100,
        most=100,
        readings=_readings(rng),
        commands=(),
        faults=tuple(fault for fault in plan.faults if fault.op != "ask"),
        replays=(),
        retention=(),
        eager=False,
        rollback="",
        poll=0.0,
        moves=(),
        stranger="",
    )


def undisturbed(plan: Schedule) -> Schedule:
    """The same readings in a calm world, one message at a time."""
    return msgspec.structs.replace(plan, faults=(), stops=(), max_batch=1, every=0.2, after=1000)


def full_topology(plain: Topology, number: int) -> Topology:
    """The plain topology with all that one may have: one where detectors decide together within a budget, and one
    where each decides for itself."""
    sensors = (Sensor("a", maximum=1000.0), Sensor("b", min_deviation=0.1))
    detectors: dict[str, Any] = {
        **plain.detectors,
        "forest": _kind("half_space_trees", n_trees=3, height=4, window_size=20),
        "rise": _kind("cusum"),
    }
    together = {
        "calibration": Calibration(history=60, warmup=50),
        "combine": Combination(method="max"),
        "alert": AlertRule(close_after=2, budget=5000.0, budget_per="topology", escalation=0.5),
    }
    alone = {"alert": AlertRule(hold=2, within=3, close_after=2, cooldown=3.0, cooldown_readings=2)}
    return msgspec.structs.replace(
        plain,
        source=msgspec.structs.replace(plain.source, sensors=sensors, out_of_range="alert"),
        features={"mean": Rolling(of="a", rolling="mean", window=5), "before": Lag(of="b", lag=2)},
        detectors=detectors,
        health=Health(silent_after=20.0, stuck_after=5, skew=300.0),
        learning=Learning(accept_after=30.0, start_from="sister"),
        **(together if number == 1 else alone),
    )


def _kind(name: str, **settings: Any) -> Detector:
    recipe: Any = ONLINE[name]
    detector: Detector = recipe(**settings)
    return detector


def _readings(rng: random.Random) -> tuple[Reading, ...]:
    """Messages of one to twenty rows, most of one machine: spikes, levels that stay, sensors that stand still, are
    missing or beyond their range, machines that pause, messages that come again, and rows over which the model
    fails."""
    found: list[Reading] = []
    at, seqs, times, level = 0.0, [0] * _MACHINES, [START] * _MACHINES, [0.0] * _MACHINES
    for _ in range(rng.randrange(_LEAST, _MOST)):
        at += rng.choice((0.0, 0.0, 0.001, 0.05, 0.3))
        number = rng.choice((0, 0, 0, 0, 1, 2))
        if rng.random() < 0.06 and found:
            found.append(msgspec.structs.replace(rng.choice(found[-6:]), at=at))
            continue
        if rng.random() < 0.05:
            level[number] = rng.choice((0.0, 0.0, _STANDING, 30.0))
        if rng.random() < 0.03:
            times[number] += rng.choice((60.0, 2000.0))
        rows = []
        for _ in range(rng.choice((1, 2, 6, 12, 20))):
            seqs[number] += 1
            times[number] += 1.0
            rows.append(_row(rng, f"m{number}", times[number], seqs[number], level[number]))
        found.append(Reading(at, f"m{number}", json.dumps(rows if len(rows) > 1 else rows[0])))
    return tuple(found)


def _row(rng: random.Random, machine: str, time: float, seq: int, level: float) -> dict[str, Any]:
    values: dict[str, float | None] = {
        "a": round(level + rng.gauss(0.0, 1.0), 2),
        "b": round(rng.gauss(5.0, 1.0), 1),
    }
    roll = rng.random()
    if roll < 0.01:
        values["a"] = rng.choice((RAISING, ODD, 5000.0))
    elif roll < 0.04:
        values["a"] = rng.choice((25.0, 90.0))
    elif roll < 0.1:
        values["b"] = None
    elif level == _STANDING:
        values["b"] = 4.0
    return {"machine": machine, "time": time, "seq": seq, "values": values}


def compare(outcome: Outcome, calm: Outcome) -> list[str]:
    """What is otherwise than where nothing went wrong, in sentences."""
    for each in (outcome, calm):
        if each.stuck:
            return [f"not everything was processed: {each.stuck}"]
    stream = outcome.schedule.source == "stream"
    found = _different("alert", outcome.alerts, calm.alerts)
    found += _different("dead letter", outcome.dead, calm.dead)
    held, wanted = _state(outcome), _state(calm)
    for place in sorted(held.keys() | wanted.keys()):
        if held.get(place) != wanted.get(place):
            found.append("the state differs: " + ", ".join(place))
    if stream and outcome.saved.position.last_offset != calm.saved.position.last_offset:
        found.append(f"the position is {outcome.saved.position}, not {calm.saved.position}")
    found += check_any(outcome)
    if outcome.killed:
        found.append(f"{outcome.killed} processes were killed by a reading that does not")
    return found


def _different(what: str, told: list[Delivery], wanted: list[Delivery]) -> list[str]:
    """After deduplication by id. A letter's headers tell when it was written; its reason and source count."""
    found, counted = [], []
    for deliveries in (told, wanted):
        by_id: dict[object, tuple[str, bytes, str]] = {}
        for delivery in deliveries:
            reason = str(delivery.headers.get("mmlw-reason", ""))
            item = (delivery.routing_key, delivery.body, reason)
            if by_id.setdefault(delivery.message_id or item, item) != item:
                found.append(f"{what} {delivery.message_id} was told in two ways")
        counted.append(Counter(by_id.items()))
    found += [f"{what} lost: {item}" for item in counted[1] - counted[0]]
    return found + [f"{what} spurious: {item}" for item in counted[0] - counted[1]]


def _state(outcome: Outcome) -> dict[tuple[str, str, str], bytes]:
    """Every number of every machine, by machine, table and column."""
    return {
        (machine, table, name): np.ascontiguousarray(column[i]).tobytes()
        for group in outcome.saved.groups
        for table, rows in group.components.items()
        for name, column in rows.items()
        for i, machine in enumerate(group.machines)
    }

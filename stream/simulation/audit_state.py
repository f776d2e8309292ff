"""The auditor of state: every table of the checkpoint, bit for bit, and what it keeps beside them."""

from __future__ import annotations

from typing import Any

import numpy as np

from stream.simulation.episodes import Episode
from stream.simulation.outcome import Outcome
from stream.simulation.reference import Reference

__all__ = ["check_state"]


def check_state(outcome: Outcome, expected: Reference) -> list[str]:
    """What is wrong, in sentences.

    Left out: a shadow's tables where not every machine fits in memory. Whoever is not in memory when a shadow begins
    starts it afresh, and who is there depends on how batches were cut."""
    found: list[str] = []
    whole = _fit(outcome)
    kept: set[str] = set()
    for group in outcome.saved.groups:
        for i, machine in enumerate(group.machines):
            kept.add(machine)
            if machine not in expected.slots:
                continue
            wanted = expected.tables(machine)
            if whole and (shadow := expected.shadow) is not None:
                life = shadow.lives.get(machine, Episode())
                wanted |= {f"{shadow.name}alert:scale": life.columns(), f"{shadow.name}model:scale": {}}
            held = {
                table: {name: np.ascontiguousarray(column[i]).tobytes() for name, column in rows.items()}
                for table, rows in group.components.items()
                if whole or not table.startswith("shadow:")
            }
            found += _differences(machine, held, wanted)
    if kept != set(expected.slots):
        found.append(f"machines known: {sorted(kept)}, expected {sorted(expected.slots)}")
    if outcome.saved.replays != expected.back:
        found.append(f"sent back and of use: {sorted(outcome.saved.replays)}, not {sorted(expected.back)}")
    return [*found, *_check_beside(outcome, expected)]


def _differences(machine: str, held: dict[str, dict[str, bytes]], wanted: dict[str, Any]) -> list[str]:
    if held == wanted:
        return []
    if held.keys() != wanted.keys():
        return [f"the tables of {machine} are {sorted(held)}, not {sorted(wanted)}"]
    return [
        f"the state of {machine} differs: {table}, {name}"
        for table, columns in wanted.items()
        for name in sorted(columns.keys() | held[table].keys())
        if columns.get(name) != held[table].get(name)
    ]


def _check_beside(outcome: Outcome, expected: Reference) -> list[str]:
    """A shadow's comparison with its champion, and the watch over a swap."""
    found: list[str] = []
    models = outcome.saved.models
    if (shadow := expected.shadow) is not None and "shadow:scale" not in models:
        found.append("the shadow is gone")
    elif (shadow is None) != ("shadow:scale" not in models):
        found.append("there is a shadow, which is to have ended")
    elif shadow is not None and _fit(outcome):
        kept: Any = models["shadow:scale"][1]
        total = kept["total"]
        told = {name: total[name] for name in shadow.tally if name not in ("champion", "shadow")}
        told |= {name: total[name]["alerts"] for name in ("champion", "shadow")}
        if told != shadow.tally:
            found.append(f"the shadow's comparison is {told}, not {shadow.tally}")
    if (watch := expected.watch) is not None and "probation:scale" in models:
        state: Any = models["probation:scale"][1]
        for name, span in watch.spans.items():
            counted = tuple(state[name][key] for key in ("alerts", "since", "until"))
            if counted != span:
                found.append(f"the watch over swaps has {name} {counted}, not {span}")
    return found


def _fit(outcome: Outcome) -> bool:
    """Whether nobody ever has to make room."""
    plan = outcome.schedule
    return plan.resident >= len({reading.machine for reading in plan.readings})

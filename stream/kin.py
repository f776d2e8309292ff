"""How much each machine has shown of itself, and from which sister one that was never seen before starts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from detectors.base import Rows, Slots
from detectors.table import Column, Table
from stream.residents import Residents
from stream.rules import StartFrom

__all__ = ["Kin", "too_short"]

_NUMBERED = re.compile(r"(.*?)(\d+)", re.DOTALL)


class Kin:
    """Readings that stand behind each machine's state, its sister's included: a table by slot, 8 bytes a key.

    `warmup`: readings a sister must have behind it, else a machine starts from nothing. The sister is the one that
    the rule names, or, with `sister`, the machine with the lowest number of those named alike (`pump-07`: `pump-`
    and a number) that had a reading before.
    """

    def __init__(self, rule: StartFrom | None, residents: Residents, warmup: int) -> None:
        self._rule = rule
        self._residents = residents
        self._warmup = warmup
        self._lowest: dict[str, str] = {}
        """Of each kind of name, the machine with the lowest number."""
        self._table = Table({"readings": Column(np.int64)})

    def know(self, machines: Iterable[str]) -> None:
        """Machines that had readings before, in memory or not."""
        if self._rule == "sister":
            for machine in machines:
                self._meet(machine)

    def absent(self, machines: Sequence[str]) -> list[str]:
        """Sisters that must be in memory before these machines, which are, can start."""
        if self._rule is None:
            return []
        slots = self._residents.slots(machines)
        self._table.reserve(slots)
        new = np.flatnonzero(self._table["readings"][slots] == 0).tolist()
        sisters = [self._sister(machine) for machine in dict.fromkeys(machines[i] for i in new)]
        return self._residents.missing([sister for sister in sisters if sister is not None])

    def count(self, machines: Sequence[str], slots: Slots) -> Mapping[int, tuple[int, int]]:
        """Count readings (n,) in arrival order. By row, each machine that starts from a sister there, and the sister,
        both by slot: the sister's state as it is before that row."""
        self._table.reserve(slots)
        readings = self._table["readings"]
        starts: dict[int, tuple[int, int]] = {}
        if self._rule is not None:
            _, firsts = np.unique(slots, return_index=True)
            for row in sorted(firsts[readings[slots[firsts]] == 0].tolist()):
                slot, machine = int(slots[row]), machines[row]
                sister = self._sister(machine)
                if sister is not None and not self._residents.missing([sister]):
                    other = self._residents.find(sister)
                    behind = int(readings[other]) + int(np.count_nonzero(slots[:row] == other))
                    if behind >= max(self._warmup, 1):
                        starts[row] = slot, other
                        readings[slot] = behind
                if self._rule == "sister":
                    self._meet(machine)
        np.add.at(readings, slots, 1)
        return starts

    def warming(self, needed: Iterable[int]) -> list[int]:
        """How many machines in memory have fewer readings behind them than each of these."""
        taken = self._residents.taken
        self._table.reserve(np.array([len(taken) - 1]) if len(taken) else np.zeros(0, np.int64))
        readings = self._table["readings"][: len(taken)][taken]
        return [int(np.count_nonzero(readings < count)) for count in needed]

    def snapshot(self, slots: Slots) -> Rows:
        """`readings` (k,)."""
        return self._table.snapshot(slots)

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Put back what `snapshot` returned. Raises ValueError on a mismatch."""
        self._table.restore(slots, rows)
        had: NDArray[np.bool_] = rows["readings"] > 0
        self.know(self._residents.name(slot) for slot in slots[had].tolist())

    def _sister(self, machine: str) -> str | None:
        if self._rule == "sister":
            kind = _kind(machine)
            return None if kind is None else self._lowest.get(kind)
        named = (sister for pattern, sister in (self._rule or {}).items() if fnmatchcase(machine, pattern))
        sister = next(named, None)
        return None if sister == machine else sister

    def _meet(self, machine: str) -> None:
        if (kind := _kind(machine)) is None:
            return
        lowest = self._lowest.get(kind)
        if lowest is None or (len(machine), machine) < (len(lowest), lowest):
            self._lowest[kind] = machine


def _kind(machine: str) -> str | None:
    """What stands before a machine's number; None where it has none."""
    match = _NUMBERED.fullmatch(machine)
    return None if match is None else match[1]


def too_short(needed: Mapping[str, int], readings: int) -> str | None:
    """What to say of so many readings of a machine, where they are not enough to warm up; None where they are."""
    short = ", ".join(f"{name} {count:,}" for name, count in needed.items() if count >= readings)
    if not short:
        return None
    return f"too short to judge: {readings:,} readings of a machine, and to warm up it takes: {short}"

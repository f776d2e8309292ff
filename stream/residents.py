"""Which machines are in memory, and in which slot of the state tables; the longest unseen make room."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from detectors.base import Slots

__all__ = ["Residents"]


class Residents:
    """Machines by name and slot. A slot that became free is used again."""

    def __init__(self) -> None:
        self._slot_of: dict[str, int] = {}
        self._names: list[str] = []
        self._free: list[int] = []
        self._seen: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._taken: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        self._tick = 0

    def __len__(self) -> int:
        return len(self._slot_of)

    @property
    def names(self) -> list[str]:
        """The machines in memory, in the order in which they came."""
        return list(self._slot_of)

    @property
    def occupied(self) -> Slots:
        """Their slots, (n,), in the same order."""
        return np.fromiter(self._slot_of.values(), dtype=np.int64, count=len(self._slot_of))

    @property
    def taken(self) -> NDArray[np.bool_]:
        """By slot: whether a machine is in it."""
        return self._taken[: len(self._names)]

    def name(self, slot: int) -> str:
        """Who is in a slot."""
        return self._names[slot]

    def missing(self, machines: Collection[str]) -> list[str]:
        """Those that are not in memory, each once, in order."""
        return [machine for machine in dict.fromkeys(machines) if machine not in self._slot_of]

    def slots(self, machines: Sequence[str]) -> Slots:
        """The slots of machines that are all in memory, (n,); they count as seen now."""
        find = self._slot_of.__getitem__
        slots = np.fromiter(map(find, machines), dtype=np.int64, count=len(machines))
        self._tick += 1
        self._seen[slots] = self._tick
        return slots

    def find(self, machine: str) -> int:
        """The slot of a machine that is in memory; it does not count as seen."""
        return self._slot_of[machine]

    def place(self, machines: Sequence[str]) -> tuple[Slots, Slots]:
        """Slots for machines that are not in memory, (n,); and those of them that somebody used before."""
        count = min(len(self._free), len(machines))
        used = [self._free.pop() for _ in range(count)]
        start = len(self._names)
        fresh = range(start, start + len(machines) - count)
        self._names += [""] * len(fresh)
        if (more := len(self._names) - len(self._seen)) > 0:
            room = max(more, len(self._seen))
            self._seen = np.concatenate([self._seen, np.zeros(room, dtype=np.int64)])
            self._taken = np.concatenate([self._taken, np.zeros(room, dtype=np.bool_)])
        slots = [*used, *fresh]
        for machine, slot in zip(machines, slots, strict=True):
            self._slot_of[machine] = slot
            self._names[slot] = machine
        self._taken[slots] = True
        return np.array(slots, dtype=np.int64), np.array(used, dtype=np.int64)

    def evict(self, count: int, keep: Slots) -> Slots:
        """Let go of so many machines, the longest unseen first, but of none in `keep`; the slots that became free."""
        free = len(self._free)
        spared = set(keep.tolist()) | set(self._free)
        for slot in np.argsort(self._seen[: len(self._names)], kind="stable").tolist():
            if count <= 0:
                break
            if slot not in spared:
                del self._slot_of[self._names[slot]]
                self._names[slot] = ""
                self._free.append(slot)
                self._taken[slot] = False
                count -= 1
        return np.array(self._free[free:], dtype=np.int64)

"""How long a window of readings is, by the readings' own times, where not every machine's clock need be right."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from detectors.base import Floats

__all__ = ["Elapsed"]

_MACHINES = 64
"""So many machines are asked whether a window is over."""


class _Heard(msgspec.Struct, array_like=True):
    """A machine's first time in the window, its newest one, and the number of its last reading, from 1."""

    first: float
    newest: float
    number: int


class Elapsed(msgspec.Struct):
    """Each machine's time counts from its own first reading in the window: a clock that is ahead, or of another time
    zone, ends nothing. The window is over once half of the machines that were heard in the later half of its readings
    have told of its length: one clock that jumps ends it for nobody else, and who stopped holds it up no longer."""

    machines: dict[str, _Heard] = {}
    readings: int = 0

    @property
    def seconds(self) -> float:
        """What half of the machines have told of, at least; 0 before the first."""
        told = sorted(heard.newest - heard.first for heard in self.machines.values() if self._still(heard))
        return told[len(told) // 2] if told else 0.0

    def until(self, machines: Sequence[str], times: Floats, length: float) -> int | None:
        """The index of the first of these readings, in order, with which `length` seconds have passed; None where
        they have not."""
        for i, (machine, time) in enumerate(zip(machines, times.tolist(), strict=True)):
            self.readings += 1
            heard = self.machines.get(machine)
            if heard is None:
                if len(self.machines) >= _MACHINES:
                    self.machines = {name: each for name, each in self.machines.items() if self._still(each)}
                if len(self.machines) < _MACHINES:
                    self.machines[machine] = _Heard(time, time, self.readings)
                continue
            heard.newest, heard.number = max(heard.newest, time), self.readings
            if time - heard.first >= length and self.seconds >= length:
                return i
        return None

    def _still(self, heard: _Heard) -> bool:
        return 2 * heard.number > self.readings

"""How long a window of readings is, by the readings' own times, where not every machine's clock need be right."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from detectors.base import Floats

__all__ = ["Elapsed", "PlantTime"]

_MACHINES = 64
"""So many machines are asked whether a window is over."""
_MISSED = 2
"""So many windows a machine is waited for after the one that it was heard in last."""
_LONGEST = 3.0
"""Lengths of a window after which nobody is waited for."""
_DAY = 86400.0
_MOST = 10_000
"""Readings after which it is looked at anew which machines are heard, also where they tell of no day."""


class _Heard(msgspec.Struct, array_like=True):
    """A machine's first time in the window, its newest one, the number of its last reading, from 1, and its time."""

    first: float
    newest: float
    number: int
    last: float = 0.0


class _Waited(msgspec.Struct, array_like=True):
    """A machine's last time before the window, and for how many windows it is waited for, this one too."""

    last: float
    windows: int


class Elapsed(msgspec.Struct):
    """Each machine's time counts from its own first reading in the window: a clock that is ahead, or of another time
    zone, ends nothing. The window is over once half of the machines that were heard in the later half of its readings
    have told of its length: one clock that jumps ends it for nobody else, and who stopped holds it up no longer.

    Machines of the two windows before that were not heard yet are waited for, up to three times its length by those
    that were: where machines deliver by turns, an hour of one and then of the next, none ends it alone."""

    machines: dict[str, _Heard] = {}
    readings: int = 0
    waited: dict[str, _Waited] = {}
    """Not heard yet, those that were heard last first."""
    full: int = 0
    """Before so many readings nobody gives way to a machine that was not heard yet."""

    @property
    def seconds(self) -> float:
        """What half of the machines have told of, at least; 0 before the first."""
        return _half([*self._told(), *([0.0] * len(self.waited))]) or 0.0

    @property
    def now(self) -> float | None:
        """The newest time that half of the machines have reached; None before the first."""
        heard = [each.last for each in self.machines.values() if self._still(each)]
        return _half([*heard, *(each.last for each in self.waited.values())])

    def until(self, machines: Sequence[str], times: Floats, length: float) -> int | None:
        """The index of the first of these readings, in order, with which `length` seconds have passed; None where
        they have not."""
        for i, (machine, time) in enumerate(zip(machines, times.tolist(), strict=True)):
            self.readings += 1
            heard = self.machines.get(machine)
            if heard is None:
                self._meet(machine, time)
                continue
            heard.newest, heard.number, heard.last = max(heard.newest, time), self.readings, time
            if time - heard.first >= length and self._is_over(length):
                return i
        return None

    def after(self, scored: Callable[[str], bool] = lambda machine: True) -> Elapsed:
        """The window that follows, which waits for the machines of this one that are `scored`."""
        waited = {name: _Waited(heard.last, _MISSED) for name, heard in self.machines.items()}
        for name, each in self.waited.items():
            if each.windows > 1:
                waited[name] = _Waited(each.last, each.windows - 1)
        return Elapsed(waited={name: each for name, each in waited.items() if scored(name)})

    def _is_over(self, length: float) -> bool:
        if self.waited and (_half(self._told()) or 0.0) >= _LONGEST * length:
            self.waited.clear()
        return self.seconds >= length

    def _told(self) -> list[float]:
        return [heard.newest - heard.first for heard in self.machines.values() if self._still(heard)]

    def _meet(self, machine: str, time: float) -> None:
        """A machine is heard for the first time; it gets a place where there is one."""
        self.waited.pop(machine, None)
        if len(self.machines) + len(self.waited) >= _MACHINES and self.readings >= self.full:
            if self.waited:
                self.waited.popitem()
            else:
                self.machines = {name: each for name, each in self.machines.items() if self._still(each)}
                self.full = 2 * min((each.number for each in self.machines.values()), default=0)
        if len(self.machines) + len(self.waited) < _MACHINES:
            self.machines[machine] = _Heard(time, time, self.readings, time)

    def _still(self, heard: _Heard) -> bool:
        return 2 * heard.number > self.readings


class PlantTime(msgspec.Struct):
    """What time it is in a plant, by its readings: the newest that half of the machines have reached that were heard
    in the last days, so that one clock that is ahead moves it for nobody. Of two machines it is the newer one's.

    It depends on the readings and their order alone, not on how they were cut into batches."""

    elapsed: Elapsed = msgspec.field(default_factory=Elapsed)

    @property
    def now(self) -> float | None:
        """In epoch seconds; None before the first reading."""
        return self.elapsed.now

    def add(self, machines: Sequence[str], times: Floats, rows: Sequence[int] = ()) -> list[float]:
        """Readings (n,) in order; what time it was at these rows of them, which are in order."""
        found, start = [], 0
        for row in rows:
            self._pass(machines[start : row + 1], times[start : row + 1])
            assert self.now is not None  # noqa: S101 - there was a reading
            found.append(self.now)
            start = row + 1
        self._pass(machines[start:], times[start:])
        return found

    def _pass(self, machines: Sequence[str], times: Floats) -> None:
        start = 0
        while start < len(times):
            end = min(start + _MOST - self.elapsed.readings, len(times))
            over = self.elapsed.until(machines[start:end], times[start:end], _DAY)
            start = end if over is None else start + over + 1
            if over is not None or self.elapsed.readings >= _MOST:
                self.elapsed = self.elapsed.after()


def _half(values: list[float]) -> float | None:
    """The largest value that half of these reach; None where there are none."""
    return sorted(values)[len(values) // 2] if values else None

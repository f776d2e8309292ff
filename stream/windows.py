"""How long a window of readings is, by the readings' own times, where no machine's clock need be right."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from detectors.base import Floats

__all__ = ["Elapsed"]

_MACHINES = 64
"""So many machines are watched for when a window is over: those that were heard first in it."""


class Elapsed(msgspec.Struct):
    """Each machine's time counts from its own first reading in the window: a clock that is ahead, or of another time
    zone, ends nothing."""

    first: dict[str, float] = {}
    longest: float = 0.0
    """Seconds, of the machine that told of the longest time."""

    def until(self, machines: Sequence[str], times: Floats, length: float) -> int | None:
        """The index of the first of these readings, in order, with which a machine has told of `length` seconds; None
        where there is none."""
        first = self.first
        for i, (machine, time) in enumerate(zip(machines, times.tolist(), strict=True)):
            began = first.get(machine)
            if began is None:
                if len(first) < _MACHINES:
                    first[machine] = time
            elif time - began > self.longest:
                self.longest = time - began
                if self.longest >= length:
                    return i
        return None

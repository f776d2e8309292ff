"""Time, passed in: so that a simulation can make it pass, and a test stand still."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["SYSTEM_CLOCK", "Clock"]


@dataclass(frozen=True, slots=True)
class Clock:
    """`now` epoch seconds, `monotonic` seconds for durations (the same clock as `Delivery.received`)."""

    now: Callable[[], float]
    monotonic: Callable[[], float]


SYSTEM_CLOCK = Clock(time.time, time.monotonic)

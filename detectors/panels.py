"""What may score a key of `auto`: the panel that each number of sensors has, and what it is given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from detectors.acquaintance import Acquaintance
from detectors.base import Floats, Mask, Model, Rows, Slots

__all__ = ["TOLD", "Arrivals", "Panel", "Stateful"]

TOLD = 0.8
"""Share of its limit from which a chart counts beside others: less of it tells nothing, and would order scores."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Readings as `score_learn` takes them, and how many with a value their keys had so far, itself among them."""

    slots: Slots
    values: Floats
    times: Floats
    learn: Mask
    counts: Floats

    @property
    def calibrating(self) -> Mask:
        """Which readings (n,) calibrate: those to be learned that bring a value; of others a score says nothing."""
        seen: Mask = self.learn & np.isfinite(self.values).any(axis=1)
        return seen


class Stateful(Protocol):
    """Anything with a table by slot."""

    def snapshot(self, slots: Slots) -> Rows:
        """See `Model`."""
        ...

    def restore(self, slots: Slots, rows: Rows) -> None:
        """See `Model`."""
        ...


class Panel(Protocol):
    """Models that may score, in an order of their own."""

    models: tuple[Model, ...]

    def tables(self) -> Iterator[tuple[str, Stateful]]:
        """What has state, by name."""
        ...

    def counting(self, seen: Acquaintance, slots: Slots) -> Mask:
        """Which models (n, models) count, by what was seen of these keys."""
        ...

    def ratios(self, rows: Arrivals, used: Mask, seen: Acquaintance) -> tuple[Floats, NDArray[np.int64]]:
        """Multiples of the threshold (n,) by the models that are `used` (n, models), and whose each is (n,)."""
        ...

    def explain(self, seen: Acquaintance, slot: int) -> str:
        """What scores a key, and why."""
        ...

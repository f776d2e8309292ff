"""When it is time to commit: by time and by count, whichever comes first."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from stream.clock import Clock
from stream.ledger import Ledger, Tally
from stream.metrics import Metrics, TopologyMetrics
from stream.state import Saved, StreamPosition
from stream.topology import CheckpointRule

NOTHING: Any = None
"""In place of a store and a scorer, which have no say in it."""


class Hands:
    """A clock that is put forward by hand."""

    def __init__(self) -> None:
        self.time = 100.0

    def ledger(self, every: float, after: int) -> Ledger:
        metrics = TopologyMetrics(Metrics(), "t", ())
        clock = Clock(lambda: self.time, lambda: self.time)
        rule = CheckpointRule(every=every, after=after)
        return Ledger(NOTHING, NOTHING, Saved(), rule=rule, metrics=metrics, clock=clock)


def add(ledger: Ledger, messages: int) -> None:
    ledger.add(
        StreamPosition(ledger.processed.last_offset + messages), np.array([0]), Tally(), messages=messages
    )


def test_nothing_to_commit_waits_for_ever() -> None:
    assert Hands().ledger(1.0, 100).wait() == math.inf


def test_time_counts_from_the_first_message_that_is_not_committed() -> None:
    hands = Hands()
    ledger = hands.ledger(1.0, 100)
    for _ in range(4):  # a stream that never rests
        add(ledger, 1)
        hands.time += 0.25
    assert ledger.wait() == pytest.approx(0.0)


def test_count_does_not_wait_for_the_time() -> None:
    ledger = Hands().ledger(1000.0, 100)
    add(ledger, 99)
    assert ledger.wait() == pytest.approx(1000.0)
    add(ledger, 1)
    assert ledger.wait() == 0.0

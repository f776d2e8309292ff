"""Ten thousand lives of a worker, each with failures of its own."""

from __future__ import annotations

import pytest

from stream.simulation.command import search_in_parallel

SCHEDULES = 10_000


@pytest.mark.timeout(1800)
def test_ten_thousand_schedules_equal_an_uninterrupted_run() -> None:
    done = 0
    for count, failures in search_in_parallel(range(SCHEDULES), jobs=1):
        assert not failures, f"{failures[0].schedule.text()}\n{failures[0].problems}"
        done += count
    assert done == SCHEDULES

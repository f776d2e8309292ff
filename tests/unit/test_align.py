"""One sensor per message becomes rows."""

from __future__ import annotations

import numpy as np
import pytest

from stream.align import Aligner
from stream.errors import ReadingRejected


def one(sensor: int, value: float, n: int = 2) -> np.ndarray:
    row = np.full(n, np.nan)
    row[sensor] = value
    return row


def push(aligner: Aligner, time: float, sensor: int, value: float) -> list[tuple[float, list[float]]]:
    return [(t, row.tolist()) for t, row in aligner.push(0, time, one(sensor, value))]


def test_row_leaves_when_every_sensor_has_a_value() -> None:
    aligner = Aligner(2, 1.0)
    assert push(aligner, 10.0, 0, 1.0) == []
    assert push(aligner, 10.4, 1, 2.0) == [(10.0, [1.0, 2.0])]


def test_incomplete_row_leaves_when_a_later_one_begins() -> None:
    aligner = Aligner(2, 1.0)
    push(aligner, 10.0, 0, 1.0)
    [(time, row)] = push(aligner, 11.0, 0, 3.0)
    assert time == 10.0
    np.testing.assert_array_equal(row, [1.0, np.nan])
    assert push(aligner, 11.1, 1, 4.0) == [(11.0, [3.0, 4.0])]


def test_repeated_sensor_begins_the_next_row() -> None:
    aligner = Aligner(2, 60.0)
    push(aligner, 10.0, 0, 1.0)
    [(_, row)] = push(aligner, 10.1, 0, 2.0)
    np.testing.assert_array_equal(row, [1.0, np.nan])


def test_value_whose_row_has_left_is_refused() -> None:
    aligner = Aligner(2, 1.0)
    push(aligner, 10.0, 0, 1.0)
    push(aligner, 10.0, 1, 2.0)
    with pytest.raises(ReadingRejected, match="late"):
        push(aligner, 9.0, 0, 1.0)


def test_snapshot_continues_in_another_slot() -> None:
    aligner, other = Aligner(2, 1.0), Aligner(2, 1.0)
    push(aligner, 10.0, 0, 1.0)
    other.restore(np.array([3]), aligner.snapshot(np.array([0])))
    assert [row.tolist() for _, row in other.push(3, 10.2, one(1, 5.0))] == [[1.0, 5.0]]

"""Reasons of detectors that give none: which sensors bring the score down, or up."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.base import Floats
from detectors.occlusion import occlusion


def off_plane(reading: Floats) -> float:
    """Far where the first two do not sum to the third."""
    return float((reading[0] + reading[1] - reading[2]) ** 2)


def test_a_sensor_that_is_off_has_the_whole_share() -> None:
    shares = occlusion(lambda x: abs(float(x[1])), np.array([5.0, -3.0]), np.zeros(2), np.ones(2, np.bool_))
    assert shares.tolist() == [0.0, -1.0]


def test_where_covering_any_sensor_makes_it_worse_each_has_the_share_that_it_has_alone() -> None:
    """The third follows the first as it must, but not quite: covering either breaks the relation altogether."""
    reading, usual = np.array([8.0, 0.0, 7.0]), np.zeros(3)
    whole = off_plane(reading)
    assert all(off_plane(np.where(np.arange(3) == j, usual, reading)) >= whole for j in range(3))
    shares = occlusion(off_plane, reading, usual, np.ones(3, np.bool_))
    assert np.abs(shares).sum() == pytest.approx(1.0)
    assert shares == pytest.approx([64 / 113, 0.0, 49 / 113])
    unknown = occlusion(off_plane, reading, usual, np.array([True, True, False]))
    assert unknown[2] == 0.0


def test_a_score_that_no_sensor_changes_has_no_reasons() -> None:
    assert not occlusion(lambda x: 1.0, np.array([5.0, 3.0]), np.zeros(2), np.ones(2, np.bool_)).any()

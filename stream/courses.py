"""The stretches that alerts speak of: what a sensor's last readings as a whole were compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from detectors.base import Floats, StretchModel
from stream.alerts import Stretch, rfc3339
from stream.ensemble import Lane

__all__ = ["courses"]


def courses(
    lanes: Sequence[Lane],
    scores: Mapping[str, Floats],
    weights: Mapping[str, float],
    row: int,
    time: float,
    width: int,
) -> list[Stretch | None]:
    """For each of so many columns the stretch that ended with this row of the latest scores (n,) by lane, taken at
    `time` (epoch seconds); None where the lane that weighs most of those that see the column compares none."""
    most: Floats = np.full(width, -1.0)
    found: list[Stretch | None] = [None] * width
    for lane in lanes:
        weighs = (
            weights.get(lane.name, 1.0) * float(scores[lane.name][row]) if lane.name in scores else np.nan
        )
        better = lane.looks_at(width) & (weighs > most)
        most[better] = weighs
        told = _told(lane, row, time, width) if better.any() else found
        found = [new if mine else old for new, old, mine in zip(told, found, better, strict=True)]
    return found


def _told(lane: Lane, row: int, time: float, width: int) -> list[Stretch | None]:
    found: list[Stretch | None] = [None] * width
    if not isinstance(lane.model, StretchModel):
        return found
    told = lane.model.stretches(np.array([row]))
    readings, since, rank = int(told.readings[0]), float(told.since[0]), int(told.rank[0])
    columns = np.arange(width) if lane.inputs is None else lane.inputs
    for j, distance, shift in zip(columns.tolist(), told.distances[0], told.shifts[0], strict=True):
        if readings and np.isfinite(distance):
            first = rfc3339(since) if np.isfinite(since) else None
            found[j] = Stretch(readings, first, rfc3339(time), float(distance), float(shift), rank)
    return found

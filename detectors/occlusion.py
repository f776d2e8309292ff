"""Reasons of a detector that gives none: by how much its score falls where a sensor shows its usual value."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from detectors.base import Floats, Mask

__all__ = ["occlusion"]


def occlusion(score: Callable[[Floats], float], reading: Floats, usual: Floats, known: Mask) -> Floats:
    """Signed shares (n_sensors,) of one reading; all 0 where no single sensor changes the score.

    After Zeiler and Fergus, "Visualizing and understanding convolutional networks", ECCV 2014: what is covered and
    lowers the score was a reason for it. Where covering no sensor does, as where two together are wrong, a sensor
    is the more a reason the more it raises the score of what is usual by itself. `score` is called once or twice
    for each `known` sensor, and twice more. Positive: higher than `usual`.
    """
    sensors, reasons = np.flatnonzero(known).tolist(), np.zeros(len(reading))
    whole = score(reading)
    for j in sensors:
        covered = reading.copy()
        covered[j] = usual[j]
        reasons[j] = max(whole - score(covered), 0.0)
    if not reasons.any():
        normal = np.where(known, usual, reading)
        least = score(normal)
        for j in sensors:
            alone = normal.copy()
            alone[j] = reading[j]
            reasons[j] = max(score(alone) - least, 0.0)
    total = reasons.sum()
    if total <= 0.0:
        return reasons
    return np.asarray(np.where(reading >= usual, 1.0, -1.0) * reasons / total, dtype=np.float64)

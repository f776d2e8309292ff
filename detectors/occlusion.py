"""Reasons of a detector that gives none: by how much its score falls where a sensor shows its usual value."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from detectors.base import Floats, Mask

__all__ = ["occlusion"]


def occlusion(score: Callable[[Floats], float], reading: Floats, usual: Floats, known: Mask) -> Floats:
    """Signed shares (n_sensors,) of one reading; all 0 where no single sensor brings the score down.

    After Zeiler and Fergus, "Visualizing and understanding convolutional networks", ECCV 2014: what is covered and
    lowers the score was a reason for it. `score` is called once and again for each `known` sensor. Positive: higher
    than `usual`.
    """
    drops = np.zeros(len(reading))
    whole = score(reading)
    for j in np.flatnonzero(known).tolist():
        covered = reading.copy()
        covered[j] = usual[j]
        drops[j] = max(whole - score(covered), 0.0)
    total = drops.sum()
    if total <= 0.0:
        return drops
    return np.asarray(np.where(reading >= usual, 1.0, -1.0) * drops / total, dtype=np.float64)

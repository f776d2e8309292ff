"""Something in place of missing sensors, for detectors of libraries that one NaN would blind."""

from __future__ import annotations

import numpy as np

from detectors.base import Floats, Mask, Slots
from detectors.statistical import AdaptiveZModel

__all__ = ["fill"]


def fill(
    normal: AdaptiveZModel,
    slots: Slots,
    values: Floats,
    times: Floats,
    learn: Mask | None,
    largest: float,
) -> tuple[Floats, Mask]:
    """Readings (n, n_sensors) bounded by `largest`, and which values were there.

    A missing or non-finite value is that of the key's running mean before the reading, by `normal`, which learns
    the readings; 0 where there is none.
    """
    normal.score_learn(slots, values, times, learn)
    known = np.ones(values.shape, np.bool_)
    np.isfinite(values, out=known)
    expected = normal.contributions(np.arange(len(values))).expected
    filled = np.where(known, values, np.nan_to_num(expected))
    return np.clip(filled, -largest, largest), known

"""Epoch seconds and whole nanoseconds, from one to the other and back to the very same number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from detectors.base import Floats

__all__ = ["nanoseconds", "seconds"]

_SECOND = 1_000_000_000
_FURTHEST = 9.2e9
"""Seconds that fit: from 1678 to 2261."""


def nanoseconds(times: Floats) -> NDArray[np.int64]:
    """Epoch seconds (n,) as whole nanoseconds, from which `seconds` makes the same numbers again."""
    clipped = np.clip(times, -_FURTHEST, _FURTHEST)
    whole = np.floor(clipped)
    found: NDArray[np.int64] = whole.astype(np.int64) * _SECOND
    found += np.rint((clipped - whole) * _SECOND).astype(np.int64)
    return found


def seconds(times: Any) -> Floats:
    """Epoch seconds (n,) of whatever pandas takes for instants (UTC where they name no zone), each the number
    closest to it: dividing nanoseconds by 1e9 is off by up to 0.2 µs."""
    number = pd.DatetimeIndex(pd.to_datetime(times, utc=True)).as_unit("ns").asi8
    found: Floats = number // _SECOND + (number % _SECOND) / _SECOND
    return found

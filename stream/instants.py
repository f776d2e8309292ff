"""Epoch seconds and whole nanoseconds, from one to the other and back to the very same number."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from detectors.base import Floats

__all__ = ["nanoseconds", "parsed", "seconds"]

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


def parsed(texts: pd.Series[Any], *, errors: Literal["raise", "coerce"] = "raise") -> pd.Series[Any]:
    """Instants (n,) in UTC of texts: those of ISO 8601 all at once, the others cell by cell, which takes longer.
    `coerce`: NaT where a cell is no time; else raises ValueError, as pandas does of all of them."""
    found = pd.to_datetime(texts, utc=True, format="ISO8601", errors="coerce")
    if not (odd := found.isna()).any():
        return found
    rest = pd.to_datetime(texts[odd], utc=True, format="mixed", errors="coerce")
    if errors == "raise" and rest.isna().any():
        return pd.to_datetime(texts, utc=True, format="mixed")
    found = found.astype("datetime64[ns, UTC]")
    found[odd] = rest
    return found


def seconds(times: Any) -> Floats:
    """Epoch seconds (n,) of whatever pandas takes for instants (UTC where they name no zone), each the number
    closest to it: dividing nanoseconds by 1e9 is off by up to 0.2 µs."""
    number = pd.DatetimeIndex(pd.to_datetime(times, utc=True)).as_unit("ns").asi8
    found: Floats = number // _SECOND + (number % _SECOND) / _SECOND
    return found

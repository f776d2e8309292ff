"""Local time of many instants, from the time zone database."""

from __future__ import annotations

import datetime
import functools
import zoneinfo

import numpy as np

from detectors.base import Floats

__all__ = ["local_seconds"]

_QUARTER = 900
"""Seconds: every change of a zone's offset since 1990 came at a quarter of an hour."""


def local_seconds(times: Floats, zone: str) -> Floats:
    """Epoch seconds (n,) as the clocks of a zone show them, counted from 1970-01-01T00:00 of that clock.

    >>> local_seconds(np.array([0.0, 1.7e9]), "Europe/Berlin") - np.array([0.0, 1.7e9])
    array([3600., 3600.])
    """
    if zone == "UTC" or not len(times):
        return times
    quarters, which = np.unique(np.floor(times / _QUARTER), return_inverse=True)
    offsets: Floats = np.array([_offset(quarter, zone) for quarter in quarters.tolist()])
    return times + offsets[which]


@functools.lru_cache(4096)
def _offset(quarter: float, zone: str) -> float:
    """Seconds by which a zone is ahead of UTC in this quarter of an hour since 1970; 0 beyond the calendar."""
    try:
        offset = datetime.datetime.fromtimestamp(quarter * _QUARTER, zoneinfo.ZoneInfo(zone)).utcoffset()
    except (OverflowError, ValueError, OSError):
        return 0.0
    return 0.0 if offset is None else offset.total_seconds()

"""The last values of a ring in order of size, kept so while values come and go: quantiles without sorting."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats
from detectors.kernels import compiled

__all__ = ["in_order", "renew"]


def in_order(rings: Floats, counts: NDArray[np.int64]) -> Floats:
    """The values of rings (…, length) in order; inf beyond the count (…) of values that a ring has had.

    >>> in_order(np.array([[3.0, 1.0, 0.0]]), np.array([2]))
    array([[ 1.,  3., inf]])
    """
    kept = np.arange(rings.shape[-1]) < counts[..., np.newaxis]
    return np.sort(np.where(kept, rings, np.inf), axis=-1)


@compiled("void(float64[::1], float64[::1], int64, float64)")
def renew(ring: Floats, ordered: Floats, count: int, value: float) -> None:
    """Put a value into a ring that has had `count`, in place of the oldest where it is full, and into its
    order.

    >>> ring, ordered = np.array([3.0, 1.0]), np.array([1.0, 3.0])
    >>> renew(ring, ordered, 2, 0.5)
    >>> ring, ordered
    (array([0.5, 1. ]), array([0.5, 1. ]))
    """
    length = len(ring)
    kept, place = min(count + 1, length), min(count, length - 1)
    if count >= length:
        place = int(np.searchsorted(ordered, ring[count % length]))
    while place > 0 and ordered[place - 1] > value:
        ordered[place] = ordered[place - 1]
        place -= 1
    while place < kept - 1 and ordered[place + 1] < value:
        ordered[place] = ordered[place + 1]
        place += 1
    ordered[place] = value
    ring[count % length] = value

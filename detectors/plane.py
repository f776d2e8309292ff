"""A reading and a plane of principal components: how far out on it, how far off it, and by which sensors."""

from __future__ import annotations

import numpy as np

from detectors.base import Floats, Mask
from detectors.fitting import LARGEST_DEVIATION
from detectors.kernels import compiled

__all__ = ["measure"]

_MOST_ROUNDS = 100
"""Bound on the iteration that fills missing sensors."""


@compiled(
    "Tuple((float64, boolean))(float64[::1], boolean[::1], float64[:,::1], float64[::1], float64, float64,"
    " float64[::1], float64[::1], float64[::1])"
)
def measure(
    z: Floats,
    known: Mask,
    components: Floats,
    variances: Floats,
    distance_limit: float,
    error_limit: float,
    inner: Floats,
    rebuilt: Floats,
    shares: Floats,
) -> tuple[float, bool]:
    """The larger of T² and SPE, each as a multiple of its limit, and whether it is SPE.

    `z` (n_sensors,) in sigmas, 0 where not `known`: those are filled in place with what fits the plane best
    (projection to the known data, Nelson et al. 1996). Writes `rebuilt`, the reading's foot on the plane, and
    `shares` of the known sensors, signed: SPE's squared residuals, or T²'s complete decomposition (a sensor's
    terms of the sum, negative ones left out). `inner` (at least n_kept,) is scratch space.
    """
    n_kept, n_sensors = components.shape
    complete = True
    for j in range(n_sensors):
        complete = complete and known[j]
    for _ in range(1 if complete else _MOST_ROUNDS):
        rebuilt[:] = 0.0
        for c in range(n_kept):
            inner[c] = 0.0
            for j in range(n_sensors):
                inner[c] += components[c, j] * z[j]
            for j in range(n_sensors):
                rebuilt[j] += inner[c] * components[c, j]
        change = 0.0
        for j in range(n_sensors):
            if not known[j]:
                change = max(change, abs(rebuilt[j] - z[j]))
                z[j] = min(max(rebuilt[j], -LARGEST_DEVIATION), LARGEST_DEVIATION)
        if change < 1e-9:
            break
    distance, error = 0.0, 0.0
    for c in range(n_kept):
        distance += inner[c] * inner[c] / variances[c]
    for j in range(n_sensors):
        if known[j]:
            error += (z[j] - rebuilt[j]) ** 2
    off_plane = error / error_limit >= distance / distance_limit
    for j in range(n_sensors):
        shares[j] = 0.0
        if not known[j]:
            continue
        if off_plane:
            shares[j] = (z[j] - rebuilt[j]) * abs(z[j] - rebuilt[j])
            continue
        gradient = 0.0
        for c in range(n_kept):
            gradient += inner[c] / variances[c] * components[c, j]
        shares[j] = max(z[j] * gradient, 0.0) * np.sign(z[j])
    return max(distance / distance_limit, error / error_limit), off_plane

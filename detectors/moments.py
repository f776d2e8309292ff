"""Running means and covariances of a key's sensors, exponentially weighted, and the axes along which they vary."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats, Mask
from detectors.fitting import LARGEST_DEVIATION
from detectors.kernels import compiled

__all__ = ["axes", "learn", "memory", "standardise"]

_LARGEST_VALUE = 1e100
"""Beyond it values are taken as if they were it: their squares must stay finite."""
_TRUSTED_AFTER = 10
"""Readings after which a sensor's variance is good enough to clip by, doubly wide until it is warm."""
_STEP_SIGMA = 0.5
"""Sigma of a flat sensor that moves, as a fraction of its first step."""
_SWEEPS = 30
"""Jacobi's method converges quadratically: five to ten sweeps are usual."""


def memory(half_life: float) -> tuple[float, float]:
    """Weight of a new reading, and the number of equally weighted readings that tell as much: (2 - rate) / rate."""
    rate = 1.0 - 0.5 ** (1.0 / half_life)
    return rate, (2.0 - rate) / rate


@compiled(
    "int64(float64[::1], int64[::1], float64[::1], float64[:,::1], int64, UniTuple(float64, 4), float64[::1],"
    " float64[::1], boolean[::1])"
)
def standardise(
    values: Floats,
    count: NDArray[np.int64],
    mean: Floats,
    covariance: Floats,
    warmup: int,
    learning: tuple[float, float, float, float],
    z: Floats,
    scale: Floats,
    known: Mask,
) -> int:
    """Writes deviations in sigmas `z`, 0 where not `known`, and `scale`; how many sensors are known.

    Known: present, and seen `warmup` times. `learning`: rate, clip, floor and relative floor. Of a sensor that has
    not moved, the first move is scaled as if it had been learned already.
    """
    rate, _, floor, floor_relative = learning
    width = 0
    for j in range(len(values)):
        deviation = 0.0
        known[j] = np.isfinite(values[j]) and count[j] >= warmup
        if known[j]:
            width += 1
            deviation = min(max(values[j], -_LARGEST_VALUE), _LARGEST_VALUE) - mean[j]
        least = max(floor, floor_relative * abs(mean[j]))
        scale[j] = math.sqrt(covariance[j, j])
        if scale[j] <= least:
            weight = max(1.0 / (count[j] + 1), rate)
            scale[j] = math.sqrt(least * least + weight * deviation * deviation)
        z[j] = deviation / scale[j] if scale[j] > 0.0 else 0.0
        z[j] = min(max(z[j], -LARGEST_DEVIATION), LARGEST_DEVIATION)
    return width


@compiled(
    "boolean(float64[::1], int64[::1], float64[::1], float64[:,::1], int64, UniTuple(float64, 4), float64[::1],"
    " float64[::1])"
)
def learn(
    values: Floats,
    count: NDArray[np.int64],
    mean: Floats,
    covariance: Floats,
    warmup: int,
    learning: tuple[float, float, float, float],
    deltas: Floats,
    weights: Floats,
) -> bool:
    """Learn a reading; whether there was anything to learn. `deltas` and `weights` (n_sensors,) are scratch space.

    West 1979 for a weight that is at first that of a plain mean. A pair of sensors is learned where both are
    present, with the geometric means of their weights and of what these leave: a covariance matrix then stays one
    though one sensor started later, and a first value, which is no deviation, counts for nothing. Deviations beyond
    `clip` sigmas (twice that during the warm-up) count as `clip`.
    """
    rate, clip, floor, floor_relative = learning
    anything = False
    for j in range(len(values)):
        weights[j] = 0.0
        if not np.isfinite(values[j]):
            continue
        anything = True
        value = min(max(values[j], -_LARGEST_VALUE), _LARGEST_VALUE)
        seen, sigma = count[j], math.sqrt(covariance[j, j])
        moved = sigma > max(floor, floor_relative * abs(mean[j]))
        weights[j], deltas[j] = max(1.0 / (seen + 1), rate), value - mean[j]
        if moved and seen >= _TRUSTED_AFTER:
            most = sigma * (clip if seen >= warmup else 2.0 * clip)
            deltas[j] = min(max(deltas[j], -most), most)
        mean[j] += weights[j] * deltas[j]
        count[j] = seen + 1
        if not moved and seen >= _TRUSTED_AFTER:
            step = _STEP_SIGMA * deltas[j]
            least = step * step / (1.0 - weights[j])
            covariance[j, j] = max(covariance[j, j], least - weights[j] * deltas[j] * deltas[j])
    for j in range(len(values)):
        if weights[j] == 0.0:
            continue
        for k in range(j + 1):
            if weights[k] > 0.0:
                weight = math.sqrt(weights[j]) * math.sqrt(weights[k])
                rest = 1.0 - weight if j == k else math.sqrt(1.0 - weights[j]) * math.sqrt(1.0 - weights[k])
                learned = rest * (covariance[j, k] + weight * deltas[j] * deltas[k])
                covariance[j, k] = covariance[k, j] = learned
    return anything


@compiled("void(float64[:,::1], float64[:,::1], int64, int64)")
def _rotate(matrix: Floats, vectors: Floats, p: int, q: int) -> None:
    """Make the element (p, q) zero by a rotation of these two axes."""
    if matrix[p, q] == 0.0:
        return
    slant = (matrix[q, q] - matrix[p, p]) / (2.0 * matrix[p, q])
    tangent = 1.0 / (abs(slant) + math.sqrt(1.0 + slant * slant))
    tangent = tangent if slant >= 0.0 else -tangent
    cosine = 1.0 / math.sqrt(1.0 + tangent * tangent)
    sine = tangent * cosine
    for k in range(len(matrix)):
        left, right = matrix[k, p], matrix[k, q]
        matrix[k, p], matrix[k, q] = cosine * left - sine * right, sine * left + cosine * right
    for k in range(len(matrix)):
        left, right = matrix[p, k], matrix[q, k]
        matrix[p, k], matrix[q, k] = cosine * left - sine * right, sine * left + cosine * right
        left, right = vectors[p, k], vectors[q, k]
        vectors[p, k], vectors[q, k] = cosine * left - sine * right, sine * left + cosine * right


@compiled("void(float64[:,::1], float64[:,::1])")
def axes(matrix: Floats, vectors: Floats) -> None:
    """Eigenvalues, largest first, into the diagonal of a symmetric `matrix`, and their vectors into rows.

    Cyclic Jacobi (Golub and Van Loan, "Matrix computations", 8.5): plain arithmetic in a fixed order, so that the
    same matrix gives the same bits whatever library is installed. Overwrites `matrix`.
    """
    size = len(matrix)
    vectors[:] = 0.0
    for j in range(size):
        vectors[j, j] = 1.0
    for _ in range(_SWEEPS):
        off, total = 0.0, 0.0
        for p in range(size):
            total += matrix[p, p] * matrix[p, p]
            for q in range(p):
                off += matrix[p, q] * matrix[p, q]
        if off <= 1e-30 * total:
            break
        for p in range(size - 1):
            for q in range(p + 1, size):
                _rotate(matrix, vectors, p, q)
    for place in range(size):
        best = place
        for j in range(place + 1, size):
            if matrix[j, j] > matrix[best, best]:
                best = j
        matrix[place, place], matrix[best, best] = matrix[best, best], matrix[place, place]
        for k in range(size):
            vectors[place, k], vectors[best, k] = vectors[best, k], vectors[place, k]

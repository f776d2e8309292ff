"""The compiled loop of the control charts: what is normal, the chart's memory, and its distance from the limit."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats, Mask, Slots
from detectors.kernels import compiled

__all__ = ["chart", "shrunk_distance"]

_LARGEST_VALUE = 1e100
"""Beyond it values are taken as if they were it: their squares must stay finite."""
_LARGEST_DEVIATION = 1e6
_TRUSTED_AFTER = 10
"""Readings after which a young sensor's variance is good enough to clip by, doubly wide until it is warm."""
_LEARNED_SIGMAS = 3.0
"""A deviation moves the centre no further than one of so many sigmas."""
_LEAST_SHRINKAGE = 0.01
_LEAST_PIVOT = 0.5 * _LEAST_SHRINKAGE
"""Correlations that hold together, shrunk by the least, leave each sensor at least twice this variance of its own."""
_SHRINK_FURTHER = 0.8
_LARGEST_SQUARE = 1e100
_FLAT = 0.01
"""Least sigma of a sensor that never moved in the warm-up, as a fraction of its centre's size."""
_STEP_SIGMA = 0.5
"""Sigma of such a sensor that moves, as a fraction of its move; its variance then follows as its centre does."""
_MOST_ROOM = 4.0
"""A cumulative sum stays below so many limits, so that it comes down again after a long fault."""


@compiled("boolean(float64[:,::1], float64, int64)")
def _factorise(matrix: Floats, kept: float, width: int) -> bool:
    """Cholesky factor of what is above the diagonal, times `kept`, into the lower half; whether there is one."""
    for j in range(width):
        for k in range(j + 1):
            total = 1.0 if j == k else kept * matrix[k, j]
            for m in range(k):
                total -= matrix[j, m] * matrix[k, m]
            if j == k and not total > _LEAST_PIVOT:
                return False
            matrix[j, k] = math.sqrt(total) if j == k else total / matrix[k, k]
    return True


@compiled("float64(float64[:,::1], float64[::1], int64, int64)")
def shrunk_distance(scatter: Floats, deviations: Floats, blocks: int, width: int) -> float:
    """Squared Mahalanobis length of the first `width` deviations; overwrites them with R⁻¹ times themselves.

    The correlations R of `scatter` (width, width), its lower half, are shrunk towards none (Schäfer and Strimmer
    2005), as if there were as many independent readings as blocks, and further until R is positive definite: pairs
    that were learned from different readings may contradict each other. `scatter` is overwritten, its lower half
    with R's Cholesky factor.
    """
    doubt, strength = 0.0, 0.0
    for j in range(width):
        for k in range(j):
            size = np.sqrt(scatter[j, j]) * np.sqrt(scatter[k, k])
            r = min(max(scatter[j, k] / size, -1.0), 1.0) if size > 0 else 0.0
            scatter[k, j] = r
            doubt += (1.0 - r * r) ** 2 / max(blocks - 1, 1)
            strength += r * r
    kept = 1.0 - min(max(doubt / strength, _LEAST_SHRINKAGE), 1.0) if strength > 0 else 0.0
    while not _factorise(scatter, kept, width):
        kept *= _SHRINK_FURTHER
    squared = 0.0
    for j in range(width):
        for k in range(j):
            deviations[j] -= scatter[j, k] * deviations[k]
        deviations[j] /= scatter[j, j]
        squared += deviations[j] * deviations[j]
    for j in range(width - 1, -1, -1):
        for k in range(j + 1, width):
            deviations[j] -= scatter[k, j] * deviations[k]
        deviations[j] /= scatter[j, j]
    return min(squared, _LARGEST_SQUARE)


@compiled("float64(float64, int64, int64, float64, float64, float64, float64)")
def _noise(
    variance: float, block: int, blocks: int, spread: float, moves: float, wander: float, least: float
) -> float:
    """Sigma of the mean of a block, for a reading long after the warm-up.

    `spread` and `moves`: sums of squared deviations of the block means from their mean and from the block before.
    Not below what `variance` of independent readings gives. `moves / spread` (von Neumann 1941) is about 2 for a
    steady sensor and near 0 for one that drifts; below `wander` it widens sigma in proportion: such a sensor
    will go on to where it has not been.
    """
    result = variance / block
    if blocks >= 2:
        result = max(result, spread / (blocks - 1) * (1.0 + 1.0 / blocks))
        if moves < wander * spread:
            result *= min(wander * spread / max(moves, 1e-300), 1e6)
    return max(math.sqrt(result), least)


@compiled(
    "void(int64, int64, int64[:,::1], float64[:,::1], float64[:,:,::1], float64[:,::1], int64[:,::1], float64[:,::1],"
    " float64[:,::1])"
)
def _forget(
    slot: int,
    j: int,
    count: NDArray[np.int64],
    mean: Floats,
    scatter: Floats,
    memory: Floats,
    blocks: NDArray[np.int64],
    block_sum: Floats,
    block_mean: Floats,
) -> None:
    """A sensor begins anew."""
    count[slot, j] = blocks[slot, j] = 0
    mean[slot, j] = memory[slot, j] = block_sum[slot, j] = block_mean[slot, j] = 0.0
    scatter[slot, j, :] = 0.0
    scatter[slot, :, j] = 0.0


@compiled(
    "void(int64[::1], float64[:,::1], boolean[::1], int64[:,::1], float64[:,::1], float64[:,:,::1], float64[:,::1],"
    " int64[:,::1], float64[:,::1], float64[:,::1], float64[:,::1], float64[:,::1], float64[:,::1], int64[:,::1],"
    " boolean, boolean, float64, float64, int64, int64, float64, float64, float64, float64, float64, int64,"
    " float64[::1], float64[:,::1], float64[:,::1], float64[:,::1])"
)
def chart(
    slots: Slots,
    values: Floats,
    learn: Mask,
    count: NDArray[np.int64],
    mean: Floats,
    scatter: Floats,
    memory: Floats,
    blocks: NDArray[np.int64],
    block_sum: Floats,
    block_mean: Floats,
    block_last: Floats,
    block_spread: Floats,
    block_moves: Floats,
    beyond: NDArray[np.int64],
    cumulative: bool,
    joint: bool,
    pace: float,
    limit: float,
    warmup: int,
    block: int,
    learning: float,
    clip: float,
    wander: float,
    floor: float,
    floor_relative: float,
    patience: int,
    scores: Floats,
    shares: Floats,
    expected: Floats,
    means: Floats,
) -> None:
    """Score and learn rows in order; `pace` is the rate of the average or the slack of the cumulative sum. `means`:
    the averages that are charted, NaN of sensors that are not warm, and of sums."""
    n_sensors = values.shape[1]
    bounded, noise = np.empty(n_sensors), np.empty(n_sensors)
    steps, deviations = np.empty(n_sensors), np.empty(n_sensors)
    warm, known = np.empty(n_sensors, np.bool_), np.empty(n_sensors, np.bool_)
    flat = np.empty(n_sensors)
    part, index = np.empty((n_sensors, n_sensors)), np.empty(n_sensors, np.int64)
    for i in range(values.shape[0]):
        slot, width, few = slots[i], 0, 2**62
        for j in range(n_sensors):
            seen, center = count[slot, j], mean[slot, j]
            expected[i, j] = center if seen else np.nan
            known[j] = np.isfinite(values[i, j])
            warm[j] = known[j] and seen >= warmup
            if not known[j]:
                continue
            value = min(max(values[i, j], -_LARGEST_VALUE), _LARGEST_VALUE)
            least = max(floor, floor_relative * abs(center))
            variance = scatter[slot, j, j] / max(seen, 1)
            done = blocks[slot, j]
            flat[j] = 0.0
            if warm[j] and block_spread[slot, j] <= done * least * least:
                flat[j] = max(least, _FLAT * abs(center))
                variance, least = max(variance, flat[j] * flat[j]), 0.0
            noise[j] = _noise(
                variance, block, done, block_spread[slot, j], block_moves[slot, j], wander, least
            )
            sigma = np.sqrt(variance)
            if warm[j]:
                most = clip * sigma
            else:
                most = 2.0 * clip * sigma if seen >= _TRUSTED_AFTER and sigma > least else np.inf
            bounded[j] = center + min(max(value - center, -most), most) if seen else value
            if not cumulative:
                memory[slot, j] = (
                    memory[slot, j] + pace * (bounded[j] - memory[slot, j]) if seen else bounded[j]
                )
            if not warm[j]:
                continue
            index[width] = j
            if cumulative:  # a reading's own sigma, as wide as that of a block's mean asks for
                scale = noise[j] * np.sqrt(block)
                deviation = memory[slot, j] + (bounded[j] - center) / scale if scale > 0 else 0.0
            else:
                deviation = (memory[slot, j] - center) / noise[j] if noise[j] > 0 else 0.0
                means[i, j] = memory[slot, j]
            steps[width] = min(max(deviation, -_LARGEST_DEVIATION), _LARGEST_DEVIATION)
            few = min(few, done)
            width += 1
        squared = 0.0
        deviations[:width] = steps[:width]
        if joint:
            for a in range(width):
                for b in range(a + 1):
                    part[a, b] = scatter[slot, index[a], index[b]]
            squared = max(shrunk_distance(part, deviations, few, width), 0.0)
        bound = np.sqrt(width - 1.0 + limit * limit) if joint and width else limit
        length = np.sqrt(squared)
        for a in range(width):
            j = index[a]
            reach = length if joint else abs(steps[a])
            shrunk = 1.0
            if cumulative:
                shrunk = 0.0 if reach <= pace else min(1.0 - pace / reach, _MOST_ROOM * bound / reach)
                memory[slot, j] = shrunk * steps[a]
            scores[i] = max(scores[i], shrunk * reach / bound)
            if learn[i]:
                beyond[slot, j] = beyond[slot, j] + 1 if shrunk * reach >= bound else 0
            terms = steps[a] * deviations[a] if joint else steps[a] * steps[a]
            if shrunk > 0 and terms > 0:
                shares[i, j] = terms if steps[a] > 0 else -terms
        if not learn[i]:
            continue
        for j in range(
            n_sensors
        ):  # what each sensor adds to the scatter, exact as Welford's where none is missing
            steps[j] = 0.0
            if not known[j]:
                continue
            delta, seen = bounded[j] - mean[slot, j], count[slot, j]
            if seen >= warmup:
                most = _LEARNED_SIGMAS * max(flat[j], np.sqrt(scatter[slot, j, j] / seen))
                if flat[j] > 0.0 and learning > 0.0:
                    move = min(max(values[i, j], -_LARGEST_VALUE), _LARGEST_VALUE) - mean[slot, j]
                    spread = (1.0 - learning) * (scatter[slot, j, j] + seen * learning * move * move)
                    scatter[slot, j, j] = max(spread, seen * (_STEP_SIGMA * move) ** 2)
                mean[slot, j] += learning * min(max(delta, -most), most)
                if beyond[slot, j] > patience:
                    _forget(slot, j, count, mean, scatter, memory, blocks, block_sum, block_mean)
                    block_last[slot, j] = block_spread[slot, j] = block_moves[slot, j] = 0.0
                    beyond[slot, j] = 0
                continue
            count[slot, j] = seen + 1
            if seen:
                steps[j] = delta * np.sqrt(seen / (seen + 1.0))
            mean[slot, j] += delta / (seen + 1.0)
            block_sum[slot, j] += bounded[j] / block
            if (seen + 1) % block:
                continue
            done, last = blocks[slot, j], block_sum[slot, j]
            if done:
                block_moves[slot, j] += (last - block_last[slot, j]) ** 2
            away = last - block_mean[slot, j]
            blocks[slot, j] = done + 1
            block_mean[slot, j] += away / (done + 1.0)
            block_spread[slot, j] += away * (last - block_mean[slot, j])
            block_last[slot, j], block_sum[slot, j] = last, 0.0
        for j in range(n_sensors):
            if steps[j] != 0.0:
                for k in range(n_sensors):
                    scatter[slot, j, k] += steps[j] * steps[k]

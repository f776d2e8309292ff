"""What the contract checks stand on: readings to try a model with, and comparisons to the last bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectors.base import Contributions, Floats, Mask, Model, Rows, Slots

__all__ = [
    "N_KEYS",
    "N_READINGS",
    "Build",
    "ContractBroken",
    "Stream",
    "readings",
    "require",
    "require_fine",
    "require_same",
    "require_same_numbers",
    "require_same_state",
    "run",
]

Build = Callable[[], Model]
"""Gives a fresh model each time; with short warm-up and windows, or most checks see only zeros."""

N_READINGS = 300
N_KEYS = 3


class ContractBroken(AssertionError):
    """A model does not keep what the contract promises."""


class Stream(NamedTuple):
    """Readings in arrival order: the arguments of `score_learn`."""

    slots: Slots
    values: Floats
    times: Floats
    learn: Mask | None = None

    def at(self, rows: Any) -> Stream:
        """Some of the rows, by slice, mask or indices."""
        learn = None if self.learn is None else self.learn[rows]
        return Stream(self.slots[rows], self.values[rows], self.times[rows], learn)


def readings(build: Build, seed: int) -> Stream:
    """Readings of a few machines in any mix, each with its own level, some missing values and some spikes."""
    n_sensors = len(build().sensors)
    rng = np.random.default_rng(seed)
    slots = rng.integers(0, N_KEYS, N_READINGS)
    values = 10.0 * slots[:, np.newaxis] + np.arange(n_sensors) + rng.normal(size=(N_READINGS, n_sensors))
    values[rng.random(values.shape) < 0.05] = np.nan
    values[:N_KEYS] = np.arange(n_sensors)
    values[rng.integers(100, N_READINGS, 6), rng.integers(0, n_sensors, 6)] += 50.0
    times = np.arange(N_READINGS, dtype=np.float64)
    return Stream(slots.astype(np.int64), values, 1.7e9 + 60.0 * times)


def run(model: Model, stream: Stream, cuts: list[int]) -> tuple[Floats, Contributions, Rows]:
    """Scores and contributions of every row, and the final state, with the stream cut at these rows."""
    scores, reasons = [], []
    for part in _parts(cuts):
        batch = stream.at(part)
        scores.append(model.score_learn(*batch))
        reasons.append(model.contributions(np.arange(len(batch.slots))))
    together = Contributions(
        np.concatenate([reason.shares for reason in reasons]),
        np.concatenate([reason.expected for reason in reasons]),
    )
    return np.concatenate(scores), together, model.snapshot(np.arange(N_KEYS))


def _parts(cuts: list[int]) -> Iterator[slice]:
    for start, end in itertools.pairwise(cuts):
        yield slice(start, end)


def require_fine(model: Model, scores: Floats, when: str) -> None:
    """Scores and state are finite."""
    require(
        bool(np.isfinite(scores).all() and (scores >= 0).all()), f"a score is not finite or negative {when}"
    )
    for name, array in model.snapshot(np.arange(N_KEYS)).items():
        fine = array.dtype.kind != "f" or np.isfinite(array).all()
        require(bool(fine), f"state {name!r} is not finite {when}")


def require_same_state(one: Rows, other: Rows, message: str) -> None:
    """Same names, same arrays."""
    require(set(one) == set(other), f"{message}: {sorted(one)} and {sorted(other)}")
    for name in one:
        require_same(one[name], other[name], f"{message}: {name}")


def require_same_numbers(one: Rows, other: Rows, message: str) -> None:
    """Without object arrays: the same object may be pickled in more than one way."""
    kept = [name for name in one if one[name].dtype != object]
    require_same_state({name: one[name] for name in kept}, {name: other[name] for name in kept}, message)


def require_same(one: NDArray[Any], other: NDArray[Any], message: str) -> None:
    """Same type and shape, equal to the last bit; NaN equals NaN."""
    equal = np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    require(one.dtype == other.dtype and equal, message)


def require(condition: bool, message: str) -> None:
    """Raises ContractBroken with the message unless the condition holds."""
    if not condition:
        raise ContractBroken(message)

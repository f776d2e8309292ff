"""Declared features as arrays that a compiled loop walks through: operations, and the rings they look back in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats
from detectors.features.declared import Band, Change, Crossings, Feature, Lag, Rate, Rolling
from detectors.features.relations import Calendar, Correlation, Difference, Product, Ratio, Sum
from detectors.features.spectrum import taper
from detectors.features.windows import STATISTICS

__all__ = ["OPERATIONS", "TIME", "Program", "columns_of", "definitions", "program"]

OPERATIONS = (
    "statistic",
    "slope",
    "lag",
    "change",
    "rate",
    "band",
    "crossings",
    "correlation",
    "ratio",
    "difference",
    "product",
    "sum",
    "hour",
    "weekday",
    "weekend",
)
TIME = -1
"""Source of a ring that remembers the readings' times."""

_SECONDS = {"per_second": 1.0, "per_minute": 60.0, "per_hour": 3600.0, "per_day": 86400.0}


class _Step(NamedTuple):
    """One column: its operation, a number that says which of its kind, its arguments and what it looks back in."""

    operation: str
    which: int = 0
    arguments: tuple[int, ...] = ()
    ring: int = 0
    second: int = 0
    """Another ring, or the number of a time zone."""
    window: int = 0
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Program:
    """What to compute, in order.

    `steps` (n_columns, 7): operation, which of its kind, first argument, number of arguments, ring, second ring or
    zone, window. `numbers` (n_columns, 4): what else an operation needs. `arguments` (k,): columns of the wide
    matrix, sensors first. `rings` (n_rings, 5), in the order in which they can be filled: after which column,
    source, partner (both must be there), start and length among the `cells` that a key's rings hold in all.
    """

    steps: NDArray[np.int64]
    numbers: Floats
    arguments: NDArray[np.int64]
    rings: NDArray[np.int64]
    cells: int
    longest: int
    """The longest window or transform."""
    transform: int
    """The longest transform, a power of two."""
    tapers: Floats
    zones: tuple[str, ...]


def columns_of(features: Mapping[str, Feature]) -> tuple[str, ...]:
    """The names of the columns that features give, in order."""
    return tuple(column for name, feature in features.items() for column in feature.columns(name))


def definitions(sensors: Sequence[str], features: Mapping[str, Feature]) -> dict[str, str]:
    """Every column with a text that changes when it means something else; a sensor's is its name."""
    found = {sensor: sensor for sensor in sensors}
    for name, feature in features.items():
        text = msgspec.json.encode(feature).decode()
        made_of = ", ".join(found[read] for read in feature.reads)
        found |= {column: f"{column} = {text} of ({made_of})" for column in feature.columns(name)}
    return found


def program(sensors: Sequence[str], features: Mapping[str, Feature]) -> Program:
    """The steps of features, in order. Raises ValueError where one reads what is not there before it."""
    read = _read(sensors, features)
    lengths: dict[tuple[int, int], int] = {}
    for name, feature in features.items():
        for ring, length in _looks_back(feature, read[name]).items():
            lengths[ring] = max(length, lengths.get(ring, 0))
    order = sorted(lengths, key=max)
    starts = np.cumsum([0, *(lengths[ring] for ring in order)]).tolist()
    number = {ring: i for i, ring in enumerate(order)}
    zones = list(dict.fromkeys(f.zone for f in features.values() if isinstance(f, Calendar)))
    bands = [f for f in features.values() if isinstance(f, Band)]
    windows = list(dict.fromkeys(f.window for f in bands))
    tapers = dict(zip(windows, np.cumsum([0, *windows]).tolist(), strict=False))
    steps = [
        step
        for name, feature in features.items()
        for step in _steps(feature, read[name], number, zones, tapers)
    ]
    transform = max([2, *(band.padded for band in bands)])
    rings = [(max(ring), *ring, starts[i], lengths[ring]) for i, ring in enumerate(order)]
    return Program(
        *_arrays(steps),
        np.array(rings, np.int64).reshape(-1, 5),
        starts[-1],
        max([transform, *lengths.values()]),
        transform,
        np.concatenate([np.zeros(0), *map(taper, windows)]),
        tuple(zones),
    )


def _read(sensors: Sequence[str], features: Mapping[str, Feature]) -> dict[str, tuple[int, ...]]:
    """The columns that each feature is made of."""
    places = {name: i for i, name in enumerate(sensors)}
    found: dict[str, tuple[int, ...]] = {}
    for name, feature in features.items():
        if missing := [it for it in feature.reads if it not in places]:
            raise ValueError(f'{name}: "{missing[0]}" is neither a sensor nor a feature above it')
        found[name] = tuple(places[it] for it in feature.reads)
        for column in feature.columns(name):
            places[column] = len(places)
    return found


def _arrays(steps: Sequence[_Step]) -> tuple[NDArray[np.int64], Floats, NDArray[np.int64]]:
    """Steps, numbers and arguments as `Program` has them."""
    firsts = np.cumsum([0, *(len(step.arguments) for step in steps)]).tolist()
    rows = [
        (OPERATIONS.index(s.operation), s.which, first, len(s.arguments), s.ring, s.second, s.window)
        for s, first in zip(steps, firsts, strict=False)
    ]
    numbers = np.zeros((len(steps), 4))
    for i, step in enumerate(steps):
        numbers[i, : len(step.numbers)] = step.numbers
    arguments = np.array([it for step in steps for it in step.arguments], np.int64)
    return np.array(rows, np.int64).reshape(-1, 7), numbers, arguments


def _looks_back(feature: Feature, of: tuple[int, ...]) -> dict[tuple[int, int], int]:
    """The rings that a feature needs, by source and partner, and how much each must hold."""
    match feature:
        case Rolling(rolling="slope"):
            return {(of[0], of[0]): feature.window, (TIME, of[0]): feature.window}
        case Rolling() | Band() | Crossings():
            return {(of[0], of[0]): feature.window}
        case Lag():
            return {(of[0], of[0]): feature.lag + 1}
        case Change():
            return {(of[0], of[0]): feature.change + 1}
        case Rate():
            return {(of[0], of[0]): 2, (TIME, of[0]): 2}
        case Correlation():
            return {of[:2]: feature.window, of[::-1]: feature.window}  # type: ignore[dict-item]
    return {}


def _steps(
    feature: Feature,
    of: tuple[int, ...],
    number: Mapping[tuple[int, int], int],
    zones: Sequence[str],
    tapers: Mapping[int, int],
) -> list[_Step]:
    own, clock = (number.get((source, of[0]), 0) for source in (of[0], TIME)) if of else (0, 0)
    match feature:
        case Rolling(rolling="slope"):
            return [_Step("slope", 0, of, own, clock, feature.window)]
        case Rolling():
            return [_Step("statistic", STATISTICS.index(feature.rolling), of, own, 0, feature.window)]
        case Lag():
            return [_Step("lag", 0, of, own, 0, feature.lag + 1)]
        case Change():
            return [_Step("change", 0, of, own, 0, feature.change + 1)]
        case Rate():
            falls = -1.0 if feature.resets else feature.wraps_at or 0.0
            return [_Step("rate", 0, of, own, clock, 2, (_SECONDS[feature.rate], falls))]
        case Band():
            numbers = (*feature.bins, tapers[feature.window], feature.padded)
            return [_Step("band", int(feature.power == "share"), of, own, 0, feature.window, numbers)]
        case Crossings():
            about_mean, level = int(feature.crossings == "mean"), feature.level or 0.0
            return [_Step("crossings", about_mean, of, own, 0, feature.window, (level,))]
        case Correlation():
            one, other = number[of[0], of[1]], number[of[1], of[0]]
            return [_Step("correlation", 0, of, one, other, feature.window)]
        case Calendar(calendar="weekend"):
            return [_Step("weekend", second=zones.index(feature.zone))]
        case Calendar():
            return [_Step(feature.calendar, i, second=zones.index(feature.zone)) for i in range(2)]
        case Ratio() | Difference() | Product() | Sum():
            return [_Step(feature.told_by, 0, of)]
    raise ValueError(f"{type(feature).__name__} is no kind of feature")

"""Whether one sensor's readings can be what it measures: silent, out of range, stuck, or in another unit since."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats
from detectors.kernels import compiled

__all__ = [
    "ACCEPTED",
    "COUNT",
    "LEVEL",
    "LEVELS",
    "OFFSET",
    "OUT_OF_RANGE",
    "ROW",
    "RUNS",
    "SICK",
    "SILENT",
    "SINCE",
    "STUCK",
    "UNIT",
    "UNITS",
    "UNIT_JUMP",
    "examine_sensor",
    "take_for_normal",
]

Ints = NDArray[np.int64]

SILENT, OUT_OF_RANGE, STUCK, UNIT_JUMP = 1, 2, 3, 4
"""What ails a sensor; it has one ailment at a time."""
ACCEPTED = 10
"""Added to an ailment that somebody takes for normal."""

UNITS = (
    ("10 times as much", 10.0, 0.0),
    ("a tenth", 0.1, 0.0),
    ("100 times as much (bar in kPa)", 100.0, 0.0),
    ("a hundredth (kPa in bar)", 0.01, 0.0),
    ("1,000 times as much", 1000.0, 0.0),
    ("a thousandth", 0.001, 0.0),
    ("60 times as much (a minute for a second)", 60.0, 0.0),
    ("a sixtieth (a second for a minute)", 1 / 60, 0.0),
    ("14.5 times as much (bar in psi)", 14.5038, 0.0),
    ("1/14.5 of it (psi in bar)", 1 / 14.5038, 0.0),
    ("what °C is in °F", 1.8, 32.0),
    ("what °F is in °C", 1 / 1.8, -32 / 1.8),
    ("what °C is in K", 1.0, 273.15),
    ("what K is in °C", 1.0, -273.15),
)
"""Changes of unit: in words, and the factor and the summand that make the new number of the old one."""

LEVELS = 7
_LAST, _HEARD, LEVEL, _SPREAD, _SUM, _DEVIATION, SINCE = range(LEVELS)
"""Numbers of a sensor: its last value and the time of it; its level and spread; sum and deviation of a suspected run;
the start of the ailment."""
RUNS = 14
_SEEN, _SAME, _LONGEST, _MOVES, _MISSING, _LONGEST_GAP, _SETTLED = range(7)
UNIT, _RUN, _CALM, SICK, COUNT, OFFSET, ROW = range(7, RUNS)
"""Counts of a sensor: readings; the run at one value, the longest; changes of value; the run without a value, the
longest; readings in the level; the suspected unit and its run; healthy readings in a row; the ailment, its readings,
and the place of its first."""

_REGULAR = 20
"""Readings, or changes of value, from which a sensor is known well enough to be missed or to be stuck."""
_LEAST_GAP = 10
"""Readings without a value, at least, until a sensor is silent."""
_TIMES_LONGEST = 5.0
"""So many times the longest run that was normal is no longer normal."""
_TIMES_MEAN = 20.0
_CALM_READINGS = 3
_SETTLE = 50
"""Readings that make a level, and that a level in another unit has to last."""
_RATE, _CLIP, _NEAR = 0.02, 3.0, 8.0
"""Weight of a reading in the level; bounds of a reading's weight and of what is near, in mean deviations."""
_CLEAR = 0.1
"""A level is known well enough where the mean deviation is below this part of it."""
_TOLERANCE = 0.02
"""A unit fits where the new level is this close to it, as a part."""
_ALIKE = 2.5
"""And where the spread has changed as the unit has, but for this factor."""


@compiled("int64(int64, int64, float64, float64[::1], int64[::1])")
def _begin(ailment: int, count: int, since: float, levels: Floats, runs: Ints) -> int:
    runs[SICK], runs[COUNT], runs[_CALM] = ailment, count, 0
    levels[SINCE] = since
    return ailment


@compiled("int64(float64[::1], int64[::1], float64, float64)")
def _missed(levels: Floats, runs: Ints, time: float, silent_after: float) -> int:
    """A reading of the machine without a value of this sensor."""
    if runs[_SEEN] == 0:
        return 0
    runs[_MISSING] += 1
    if runs[SICK] == SILENT:
        runs[COUNT] += 1
    if runs[SICK] != 0 or silent_after <= 0.0 or runs[_SEEN] < _REGULAR:
        return 0
    usual = max(float(_LEAST_GAP), _TIMES_LONGEST * runs[_LONGEST_GAP])
    if runs[_MISSING] < usual or time - levels[_HEARD] < silent_after:
        return 0
    return _begin(SILENT, runs[_MISSING], levels[_HEARD], levels, runs)


@compiled("int64(float64, float64, float64[::1], int64[::1], float64)")
def _stand(time: float, value: float, levels: Floats, runs: Ints, stuck_after: float) -> int:
    """How long the sensor has stood at this very value."""
    runs[_SEEN] += 1
    moves = runs[_MOVES]
    usual = max(
        stuck_after,
        _TIMES_LONGEST * runs[_LONGEST],
        _TIMES_MEAN * (runs[_SEEN] - 1 - runs[_SAME]) / max(float(moves), 1.0),
    )
    if runs[_SEEN] == 1 or value != levels[_LAST]:
        if runs[_SEEN] > 1:
            runs[_MOVES] += 1
            runs[_LONGEST] = max(runs[_LONGEST], min(runs[_SAME], int(usual)))
        levels[_LAST] = value
        runs[_SAME] = 1
        if runs[SICK] == STUCK:
            runs[SICK] = 0
            return -STUCK
        return 0
    runs[_SAME] += 1
    if runs[SICK] == STUCK:
        runs[COUNT] += 1
    if runs[SICK] != 0 or stuck_after <= 0.0 or moves < _REGULAR or runs[_SAME] < usual:
        return 0
    return _begin(STUCK, runs[_SAME], time, levels, runs)


@compiled("void(float64, float64[::1], int64[::1])")
def _settle(value: float, levels: Floats, runs: Ints) -> None:
    """Move the level and its spread, by a bounded step once they are known."""
    error = value - levels[LEVEL]
    if runs[_SETTLED] < _SETTLE:
        runs[_SETTLED] += 1
        rate = 1.0 / runs[_SETTLED]
        levels[LEVEL] += rate * error
        levels[_SPREAD] += rate * (abs(error) - levels[_SPREAD]) if runs[_SETTLED] > 1 else 0.0
        return
    spread = max(levels[_SPREAD], 1e-9 * abs(levels[LEVEL]))
    levels[LEVEL] += _RATE * min(max(error, -_CLIP * spread), _CLIP * spread)
    levels[_SPREAD] = spread + _RATE * (min(abs(error), 2.0 * _CLIP * spread) - spread)


@compiled("boolean(float64, float64, float64, float64[:,::1])")
def _converts(value: float, level: float, spread: float, units: Floats) -> bool:
    """Whether some change of unit makes this value of the level."""
    for u in range(len(units)):
        expected = units[u, 0] * level + units[u, 1]
        if abs(value - expected) <= _NEAR * units[u, 0] * spread + _TOLERANCE * abs(expected):
            return 0.0 < spread <= _CLEAR * abs(level)
    return False


@compiled("int64(float64, float64, float64, float64, float64[:,::1])")
def _unit_of(mean: float, deviation: float, level: float, spread: float, units: Floats) -> int:
    """The change of unit, counted from 1, that makes this mean and deviation of level and spread; 0: none."""
    found, nearest = 0, _TOLERANCE
    for u in range(len(units)):
        expected = units[u, 0] * level + units[u, 1]
        off = abs(mean - expected) / max(abs(expected), 1e-300)
        if off <= nearest and 1.0 / _ALIKE <= deviation / (units[u, 0] * spread) <= _ALIKE:
            found, nearest = u + 1, off
    return found


@compiled("int64(float64, float64, float64[::1], int64[::1], float64[:,::1])")
def _convert(time: float, value: float, levels: Floats, runs: Ints, units: Floats) -> int:
    """Whether the level has become that of another unit, at once, and stays."""
    level, spread = levels[LEVEL], levels[_SPREAD]
    if runs[SICK] == UNIT_JUMP:
        factor, summand = units[runs[UNIT] - 1]
        runs[COUNT] += 1
        back = abs(value - level) < abs(value - (factor * level + summand))
        runs[_CALM] = runs[_CALM] + 1 if back else 0
        if runs[_CALM] < _CALM_READINGS:
            return 0
        runs[SICK] = 0
        runs[_RUN] = 0
        return -UNIT_JUMP
    if runs[SICK] != 0:
        return 0
    if runs[_SETTLED] < _SETTLE or abs(value - level) <= _NEAR * spread:
        runs[_RUN] = 0
        _settle(value, levels, runs)
        return 0
    if runs[_RUN] < 0 or not _converts(value, level, spread, units):
        runs[_RUN] = -1  # another level, not reached at once: not before it is settled again
        _settle(value, levels, runs)
        return 0
    if runs[_RUN] == 0:
        levels[_SUM], levels[_DEVIATION] = 0.0, 0.0
    runs[_RUN] += 1
    levels[_SUM] += value
    levels[_DEVIATION] += abs(value - levels[_SUM] / runs[_RUN])
    if runs[_RUN] < _SETTLE:
        return 0
    count = runs[_RUN]
    unit = _unit_of(levels[_SUM] / count, levels[_DEVIATION] / count, level, spread, units)
    if unit == 0:
        runs[_RUN] = -1
        return 0
    runs[UNIT] = unit
    return _begin(UNIT_JUMP, runs[_RUN], time, levels, runs)


@compiled(
    "int64(float64, float64, float64[::1], int64[::1], float64, float64, float64, float64, boolean,"
    " float64[:,::1])"
)
def examine_sensor(
    time: float,
    value: float,
    levels: Floats,
    runs: Ints,
    low: float,
    high: float,
    stuck_after: float,
    silent_after: float,
    unit_jump: bool,
    units: Floats,
) -> int:
    """The ailment that begins with this reading, the negative of one that ends with it, or 0.

    `levels` (LEVELS,) and `runs` (RUNS,) are the sensor's state, changed in place. NaN is a missing value.
    """
    ended = 0
    if runs[SICK] > ACCEPTED:
        ended = ACCEPTED - runs[SICK]
        runs[SICK] = 0
    if value != value:
        return ended if ended != 0 else _missed(levels, runs, time, silent_after)
    if runs[SICK] == SILENT:
        ended = -SILENT
        runs[SICK] = 0
    if runs[_MISSING] > 0 and ended == 0:  # a silence is a fault and no habit
        runs[_LONGEST_GAP] = max(runs[_LONGEST_GAP], runs[_MISSING])
    runs[_MISSING] = 0
    levels[_HEARD] = time
    if value < low or value > high:
        if runs[SICK] == OUT_OF_RANGE:
            runs[COUNT] += 1
            runs[_CALM] = 0
        if runs[SICK] != 0 or ended != 0:
            return ended
        return _begin(OUT_OF_RANGE, 1, time, levels, runs)
    if runs[SICK] == OUT_OF_RANGE:
        runs[_CALM] += 1
        if runs[_CALM] < _CALM_READINGS:
            return 0
        ended = -OUT_OF_RANGE
        runs[SICK] = 0
    if ended != 0:
        return ended
    found = _stand(time, value, levels, runs, stuck_after)
    return found if found != 0 or not unit_jump else _convert(time, value, levels, runs, units)


def take_for_normal(levels: Floats, runs: Ints) -> NDArray[np.bool_]:
    """Take the ailments of sensors for normal, in place: they end with the next reading. Which (...,) had one.

    `levels` (..., LEVELS), `runs` (..., RUNS). A value out of range stays one, for the range is stated."""
    sick = runs[..., SICK]
    silent, stuck, jumped = (sick == ailment for ailment in (SILENT, STUCK, UNIT_JUMP))
    runs[..., _SEEN][silent] = 0
    runs[..., _LONGEST][stuck] = runs[..., _SAME][stuck]
    runs[..., _SETTLED][jumped] = 0
    runs[..., _RUN][jumped] = 0
    taken: NDArray[np.bool_] = silent | stuck | jumped
    runs[..., SICK][taken] += ACCEPTED
    return taken

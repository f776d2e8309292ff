"""Whether a machine keeps the time of its plant: clocks that run off, and machines that fall silent.

There is no clock but the readings' own times. The plant's time is the newest of them in order of arrival, except of
readings that are ahead of it by more than the tolerance: they move it only when a second machine, or nobody else for
longer than the tolerance, says the same; and where two machines agree that it is behind, and only one keeps it, it is
set back. So one wrong clock does not move it, and a replay finds the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats, Mask
from detectors.kernels import compiled

__all__ = [
    "CLOCK",
    "LAST_TIME",
    "NOW",
    "PACE",
    "PASSED",
    "PLANT",
    "SILENT_OFFSET",
    "SILENT_ROW",
    "SILENT_SINCE",
    "SILENT_STATE",
    "SKEW_COUNT",
    "SKEW_OFFSET",
    "SKEW_ROW",
    "SKEW_SINCE",
    "SKEW_STATE",
    "TICK",
    "TICKS",
    "earliest",
    "examine_clock",
    "hear",
    "overdue",
]

Ints = NDArray[np.int64]

PLANT = 4
NOW, PASSED, _AHEAD, _BEHIND = range(PLANT)
"""Numbers of the plant: its time; the time that passed, long jumps cut short; the last that was ahead, or behind."""
TICKS = 5
TICK, _AHEAD_TICK, _BEHIND_TICK, _NORMAL_TICK, _SECOND_TICK = range(TICKS)
"""Counts of the plant: readings; and the last one that was ahead; behind; neither; neither, and of another machine
than the one of that kind before."""
CLOCK = 9
_HEARD, _LONGEST, _NEWEST, _OFF_TIME, _OFF_PLANT, _BACK_PLANT = range(6)
SILENT_SINCE, SKEW_SINCE, LAST_TIME = range(6, CLOCK)
"""Numbers of a machine: the passed time when it was heard last and its longest pause; its newest time; its own and
the plant's time when it ran off; the plant's when it went back; since when it is silent or off; its last time."""
PACE = 15
_COUNT, _OFF_RUN, _OFF_TICK, _OWN_AHEAD, _OWN_BEHIND, _OWN_NORMAL, _BACK_RUN, _CALM = range(8)
SILENT_STATE, SILENT_OFFSET, SILENT_ROW, SKEW_STATE, SKEW_OFFSET, SKEW_ROW, SKEW_COUNT = range(8, PACE)
"""Counts of a machine: readings; the run of those that are off, and the tick of its first; its last ticks ahead,
behind, and neither; the run of those that went back; the run of those that are right; whether it is silent or off,
the place of the reading that showed it, and the readings since."""

_REGULAR = 10
"""Readings from which a machine is known well enough to be missed, or to be off."""
_TIMES_LONGEST = 3.0
"""So many times its longest pause is too long."""
_FADING = 0.9993
"""What a longest pause is after each reading: half after a thousand."""
_STEADY = 0.25
"""A clock is off, and not a backlog read in haste, where the difference changes by less than this part of time."""
_CALM_READINGS = 3


@compiled("void(float64, float64[::1], float64)")
def _move(time: float, plant: Floats, step: float) -> None:
    plant[PASSED] += min(time - plant[NOW], step)
    plant[NOW] = time


@compiled("void(float64, float64[::1], int64[::1], float64[::1], int64[::1], float64, float64)")
def _keep(
    time: float, plant: Floats, ticks: Ints, clock: Floats, pace: Ints, tolerance: float, step: float
) -> None:
    """The plant's time after a reading."""
    ticks[TICK] += 1
    tick = ticks[TICK]
    if tick == 1:
        plant[NOW] = time
    now = plant[NOW]
    if time <= now + tolerance or tolerance <= 0.0:
        if pace[_OWN_NORMAL] != ticks[_NORMAL_TICK] and time >= now - tolerance:
            ticks[_SECOND_TICK] = tick
        if time >= now - tolerance or tolerance <= 0.0:
            ticks[_NORMAL_TICK] = pace[_OWN_NORMAL] = tick
        if time > now:
            _move(time, plant, step)
        return
    candidate = ticks[_AHEAD_TICK] > 0 and plant[_AHEAD] > now + tolerance
    own = candidate and pace[_OWN_AHEAD] == ticks[_AHEAD_TICK]
    if candidate and not own:
        _move(min(time, plant[_AHEAD]), plant, step)
    else:
        alone = own and pace[_OFF_RUN] > 0 and ticks[_NORMAL_TICK] < pace[_OFF_TICK]
        if alone and time - clock[_OFF_TIME] >= tolerance:
            _move(time, plant, step)
    if time > plant[NOW] + tolerance:
        plant[_AHEAD], ticks[_AHEAD_TICK] = time, tick
        pace[_OWN_AHEAD] = tick


@compiled("boolean(float64, float64[::1], int64[::1], float64[::1], int64[::1], float64)")
def _is_off(time: float, plant: Floats, ticks: Ints, clock: Floats, pace: Ints, tolerance: float) -> bool:
    """Whether the machine's clock goes, but not with the plant's; which is set back where it is the wrong one."""
    now, off = plant[NOW], time - plant[NOW]
    if abs(off) <= tolerance:
        pace[_OFF_RUN] = 0
        return False
    if pace[_OFF_RUN] == 0 or (off > 0.0) != (clock[_OFF_TIME] > clock[_OFF_PLANT]):
        pace[_OFF_RUN], pace[_OFF_TICK] = 1, ticks[TICK]
        clock[_OFF_TIME], clock[_OFF_PLANT] = time, now
    else:
        pace[_OFF_RUN] += 1
    gone, went = now - clock[_OFF_PLANT], time - clock[_OFF_TIME]
    steady: bool = pace[_OFF_RUN] >= _REGULAR and gone >= tolerance and abs(went - gone) <= _STEADY * gone
    if off > 0.0:
        return steady
    other = ticks[_BEHIND_TICK] > 0 and pace[_OWN_BEHIND] != ticks[_BEHIND_TICK]
    alone = ticks[_SECOND_TICK] < pace[_OFF_TICK]
    if steady and alone and other and abs(time - plant[_BEHIND]) <= tolerance:
        plant[NOW] = max(time, plant[_BEHIND])
        pace[_OFF_RUN] = 0
        return False
    plant[_BEHIND], ticks[_BEHIND_TICK] = time, ticks[TICK]
    pace[_OWN_BEHIND] = ticks[TICK]
    return steady


@compiled("int64(float64, float64[::1], int64[::1], float64[::1], int64[::1], float64, float64)")
def examine_clock(
    time: float, plant: Floats, ticks: Ints, clock: Floats, pace: Ints, tolerance: float, step: float
) -> int:
    """1 where this reading shows that the machine's clock is off, -1 where it is right again, else 0.

    `plant` (PLANT,) and `ticks` (TICKS,) are the plant's state, `clock` (CLOCK,) and `pace` (PACE,) the machine's,
    changed in place; `tolerance` in seconds, 0: no clock is judged; `step`: seconds that a jump counts at the most.
    """
    _keep(time, plant, ticks, clock, pace, tolerance, step)
    if tolerance <= 0.0:
        return 0
    steady = _is_off(time, plant, ticks, clock, pace, tolerance)
    now, off = plant[NOW], time - plant[NOW]
    back = pace[_COUNT] > 0 and time < clock[_NEWEST] - tolerance
    if not back or clock[_BACK_PLANT] != now:
        pace[_BACK_RUN], clock[_BACK_PLANT] = 0, now
    if back:
        pace[_BACK_RUN] += 1
    elif off <= tolerance:
        clock[_NEWEST] = max(clock[_NEWEST], time) if pace[_COUNT] > 0 else time
    if pace[SKEW_STATE] != 0:
        pace[SKEW_COUNT] += 1
        pace[_CALM] = pace[_CALM] + 1 if abs(off) <= tolerance and not back else 0
        if pace[_CALM] < _CALM_READINGS:
            return 0
        pace[SKEW_STATE] = 0
        return -1
    if not steady and pace[_BACK_RUN] < _REGULAR:
        return 0
    pace[SKEW_STATE], pace[_CALM] = 1, 0
    pace[SKEW_COUNT] = pace[_OFF_RUN] if steady else pace[_BACK_RUN]
    clock[SKEW_SINCE] = clock[_OFF_TIME] if steady else time
    return 1


@compiled("int64(float64, float64[::1], float64[::1], int64[::1], float64)")
def hear(time: float, plant: Floats, clock: Floats, pace: Ints, silent_after: float) -> int:
    """Note that the machine sent; -1 where that ends its silence, else 0."""
    passed = plant[PASSED]
    if pace[_COUNT] > 0:
        longest = clock[_LONGEST]
        pause = min(passed - clock[_HEARD], max(silent_after, _TIMES_LONGEST * longest))
        clock[_LONGEST] = max(_FADING * longest, pause)
    clock[_HEARD] = passed
    clock[LAST_TIME] = time
    pace[_COUNT] += 1
    if pace[SILENT_STATE] == 0:
        return 0
    pace[SILENT_STATE] = 0
    return -1


@compiled("float64(float64[:,::1], int64[:,::1], float64)")
def earliest(clocks: Floats, paces: Ints, silent_after: float) -> float:
    """The passed time at which the first of these machines is overdue; infinite where none is waited for.

    `clocks` (k, CLOCK) and `paces` (k, PACE) are the machines' states."""
    first = np.inf
    for k in range(len(clocks)):
        if paces[k, _COUNT] >= _REGULAR and paces[k, SILENT_STATE] == 0:
            first = min(first, clocks[k, _HEARD] + max(silent_after, _TIMES_LONGEST * clocks[k, _LONGEST]))
    return first


def overdue(plant: Floats, clocks: Floats, paces: Ints, silent_after: float) -> Mask:
    """Which machines (k,) sent nothing for too long."""
    deadlines = clocks[:, _HEARD] + np.maximum(silent_after, _TIMES_LONGEST * clocks[:, _LONGEST])
    watched = (paces[:, _COUNT] >= _REGULAR) & (paces[:, SILENT_STATE] == 0)
    found: Mask = watched & (deadlines <= plant[PASSED])
    return found

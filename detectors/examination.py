"""Readings one after another: each machine's clock and each sensor's plausibility, in one compiled loop."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats, Slots
from detectors.kernels import compiled
from detectors.plausibility import COUNT, LEVEL, OFFSET, ROW, SICK, SINCE, UNIT, examine_sensor
from detectors.punctuality import (
    NOW,
    PASSED,
    SILENT_OFFSET,
    SILENT_ROW,
    SILENT_SINCE,
    SKEW_COUNT,
    SKEW_OFFSET,
    SKEW_ROW,
    SKEW_SINCE,
    earliest,
    examine_clock,
    hear,
)

__all__ = ["CLOCK_SKEW", "FIGURES", "LONGEST_STEP", "MACHINE_SILENT", "WORDS", "examine"]

CLOCK_SKEW, MACHINE_SILENT = 5, 6
"""Ailments of a machine, numbered on from those of a sensor."""
LONGEST_STEP = 0.25
"""A jump of the plant's time counts as at most this part of `silent_after`: a pause of all is nobody's silence."""
WORDS, FIGURES = 8, 3
INDEX_AT, SLOT_AT, AILMENT_AT, SENSOR_AT, OFFSET_AT, ROW_AT, COUNT_AT, UNIT_AT = range(WORDS)
SINCE_AT, VALUE_AT, USUAL_AT = range(FIGURES)
"""A finding in whole numbers (the ailment negative where it ends, the sensor -1 for the machine), and others."""


@compiled(
    "int64(int64, int64[::1], float64[:,::1], float64[::1], int64[::1], int64[::1], float64[:,:,::1],"
    " int64[:,:,::1], float64[:,::1], int64[:,::1], float64[:,::1], int64[:,::1], float64[::1], int64[::1],"
    " float64[:,::1], float64[::1], float64, float64, boolean, float64[::1], float64[:,::1], float64[:,::1],"
    " int64[:,::1], float64[:,::1], int64[::1])"
)
def examine(
    start: int,
    slots: Slots,
    values: Floats,
    times: Floats,
    offsets: NDArray[np.int64],
    rows: NDArray[np.int64],
    levels: Floats,
    runs: NDArray[np.int64],
    clocks: Floats,
    paces: NDArray[np.int64],
    plants: Floats,
    tickses: NDArray[np.int64],
    plant: Floats,
    ticks: NDArray[np.int64],
    bounds: Floats,
    stuck_after: Floats,
    silent_after: float,
    skew: float,
    unit_jump: bool,
    soonest: Floats,
    units: Floats,
    masked: Floats,
    words: NDArray[np.int64],
    figures: Floats,
    told: NDArray[np.int64],
) -> int:
    """Examine readings from row `start` on; the row to go on with.

    Stops where `words` and `figures`, of which `told[0]` rows are filled, have no more room for a reading, and where
    a machine is overdue; before the passed time `soonest` (1,) none can be."""
    n_sensors = values.shape[1]
    for i in range(start, len(slots)):
        if told[0] + n_sensors + 2 > len(words):
            return i
        slot, time = slots[i], times[i]
        clock, pace = clocks[slot], paces[slot]
        step = LONGEST_STEP * silent_after
        change = examine_clock(time, plant, ticks, clock, pace, skew, step)
        if change > 0:
            pace[SKEW_OFFSET], pace[SKEW_ROW] = offsets[i], rows[i]
        heard = hear(time, plant, clock, pace, silent_after)
        for j in range(-2, n_sensors):
            found = change * CLOCK_SKEW if j == -2 else heard * MACHINE_SILENT
            if j >= 0:
                run, level = runs[slot, j], levels[slot, j]
                value, low, high = values[i, j], bounds[j, 0], bounds[j, 1]
                found = examine_sensor(
                    time, value, level, run, low, high, stuck_after[j], silent_after, unit_jump, units
                )
                if found > 0:
                    run[OFFSET], run[ROW] = offsets[i], rows[i]
                if run[SICK] != 0 or value < low or value > high:
                    masked[i, j] = np.nan
            if found == 0:
                continue
            word, figure = words[told[0]], figures[told[0]]
            told[0] += 1
            word[INDEX_AT], word[SLOT_AT], word[AILMENT_AT], word[SENSOR_AT] = i, slot, found, max(j, -1)
            if j >= 0:
                word[OFFSET_AT], word[ROW_AT], word[COUNT_AT], word[UNIT_AT] = (
                    run[OFFSET],
                    run[ROW],
                    run[COUNT],
                    run[UNIT],
                )
                figure[SINCE_AT], figure[VALUE_AT], figure[USUAL_AT] = level[SINCE], value, level[LEVEL]
            elif j == -2:
                word[OFFSET_AT], word[ROW_AT], word[COUNT_AT] = (
                    pace[SKEW_OFFSET],
                    pace[SKEW_ROW],
                    pace[SKEW_COUNT],
                )
                figure[SINCE_AT], figure[VALUE_AT] = clock[SKEW_SINCE], time - plant[NOW]
            else:
                word[OFFSET_AT], word[ROW_AT], word[COUNT_AT] = pace[SILENT_OFFSET], pace[SILENT_ROW], 0
                figure[SINCE_AT], figure[VALUE_AT] = clock[SILENT_SINCE], np.nan
        plants[slot], tickses[slot] = plant, ticks
        if silent_after > 0.0 and plant[PASSED] >= soonest[0]:
            soonest[0] = min(earliest(clocks, paces, silent_after), plant[PASSED] + silent_after)
            if soonest[0] <= plant[PASSED]:
                return i + 1
    return len(slots)

"""The health of sensors and machines: what is a fault of the measuring, and not of what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from detectors.base import Floats, Rows, Slots
from detectors.examination import CLOCK_SKEW, FIGURES, WORDS, examine
from detectors.kernels import floats, slot_numbers
from detectors.plausibility import (
    ACCEPTED,
    COUNT,
    LEVELS,
    OFFSET,
    ROW,
    RUNS,
    SICK,
    SINCE,
    UNITS,
    take_for_normal,
)
from detectors.punctuality import (
    CLOCK,
    LAST_TIME,
    PACE,
    PASSED,
    PLANT,
    SILENT_OFFSET,
    SILENT_ROW,
    SILENT_SINCE,
    SILENT_STATE,
    SKEW_COUNT,
    SKEW_OFFSET,
    SKEW_ROW,
    SKEW_SINCE,
    SKEW_STATE,
    TICK,
    TICKS,
    overdue,
)
from detectors.table import Column, Table

__all__ = ["AILMENTS", "Ailment", "Examination", "Finding", "Health", "HealthTable", "ailing"]

Ailment = Literal[
    "sensor_silent", "sensor_out_of_range", "sensor_stuck", "unit_jump", "clock_skew", "machine_silent"
]
AILMENTS: tuple[Ailment, ...] = (
    "sensor_silent",
    "sensor_out_of_range",
    "sensor_stuck",
    "unit_jump",
    "clock_skew",
    "machine_silent",
)
_UNIT_NUMBERS = np.array([unit[1:] for unit in UNITS])
_ROOM = 256
"""Findings told at a time."""


class Health(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What tells a sick sensor or machine. Each raises alerts of its own, and 0 or false leaves it out.

    What is usual is learned: a value that stays, a sensor that is missing and a machine that pauses are compared with
    the longest such run of their own past, and nothing is told of what is not known yet.
    """

    silent_after: Annotated[float, Meta(ge=0, extra={"unit": "seconds"})] = 600.0
    """A sensor, or a machine, that sends nothing for so long is silent while others send; at least: one that
    pauses longer by itself gets several times its own longest pause."""
    stuck_after: Annotated[int, Meta(ge=0)] = 100
    """A sensor that stands at one value for so many readings is stuck; at least: one that stands still by itself gets
    five times its own longest run."""
    skew: Annotated[float, Meta(ge=0, extra={"unit": "seconds"})] = 300.0
    """A machine whose times stay so far from those of the others has a wrong clock."""
    unit_jump: bool = True
    """A level that at once becomes what it would be in another unit (°C in °F, 10 times as much), and stays."""

    def build(self, bounds: Floats, stuck_after: Floats) -> HealthTable:
        """A table that has seen nothing; see there."""
        return HealthTable(self, bounds, stuck_after)


@dataclass(frozen=True, slots=True)
class Finding:
    """An ailment that began or ended with a reading. Times are epoch seconds."""

    index: int
    """Row of the batch."""
    slot: int
    began: bool
    ailment: Ailment
    sensor: int
    """Column, -1 where it is the whole machine."""
    offset: int
    row: int
    """Position of the reading with which it began."""
    since: float
    count: int
    """Readings of the ailment so far."""
    value: float
    """What the sensor said, or by how many seconds the clock is ahead; NaN where there is none."""
    usual: float
    """The sensor's level before its unit changed; when a silent machine was heard last; else NaN."""
    unit: str = ""
    """What the new unit makes of the old number."""


@dataclass(frozen=True, slots=True)
class Examination:
    """`values` (n, n_sensors) with NaN in place of what sick sensors say, and what was found, in order."""

    values: Floats
    findings: Sequence[Finding]


class HealthTable:
    """State per key: 168 bytes a sensor and 264 a machine. About 0.1 µs per value.

    `bounds` (n_sensors, 2): least and largest value that is possible, infinite where there is no bound; `stuck_after`
    (n_sensors,) readings, 0 where a sensor may stand still.

    Every reading brings the plant's state along and leaves it in its key's row: whoever restores the rows has it.

    >>> table = Health(stuck_after=3, skew=0).build(np.array([[0.0, 10.0]]), np.array([3.0]))
    >>> slots, values, place = np.zeros(2, np.int64), np.array([[5.0], [12.0]]), np.arange(2)
    >>> found = table.examine(slots, values, place.astype(float), place, place)
    >>> found.values.ravel(), found.findings[0].ailment
    (array([ 5., nan]), 'sensor_out_of_range')
    """

    def __init__(self, recipe: Health, bounds: Floats, stuck_after: Floats) -> None:
        n = len(bounds)
        self._recipe = recipe
        self._bounds, self._stuck_after = floats(bounds), floats(stuck_after)
        self._plant, self._ticks = np.zeros(PLANT), np.zeros(TICKS, np.int64)
        self._soonest = np.zeros(1)
        """Passed time before which no machine can be overdue; a guess that is never too late, and no state."""
        self._table = Table(
            {
                "levels": Column(np.float64, (n, LEVELS)),
                "runs": Column(np.int64, (n, RUNS)),
                "clock": Column(np.float64, (CLOCK,)),
                "pace": Column(np.int64, (PACE,)),
                "plant": Column(np.float64, (PLANT,)),
                "ticks": Column(np.int64, (TICKS,)),
            }
        )

    def examine(
        self, slots: Slots, values: Floats, times: Floats, offsets: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> Examination:
        """Examine readings in arrival order: all arrays (n,), `values` (n, n_sensors) with NaN where one is missing.

        `offsets` and `rows` say where a reading stands in its stream, to be told again when an ailment ends.
        Splitting a call anywhere changes nothing. The inputs are not changed."""
        slots, values, times = slot_numbers(slots), floats(values), floats(times)
        offsets, rows = slot_numbers(offsets), slot_numbers(rows)
        self._table.reserve(slots)
        masked = values.copy()
        room = max(_ROOM, 2 * (values.shape[1] + 2))
        findings: list[Finding] = []
        start = 0
        while start < len(slots):
            words, figures = np.zeros((room, WORDS), np.int64), np.full((room, FIGURES), np.nan)
            told = np.zeros(1, np.int64)
            start = examine(
                start,
                slots,
                values,
                times,
                offsets,
                rows,
                self._table["levels"],
                self._table["runs"],
                self._table["clock"],
                self._table["pace"],
                self._table["plant"],
                self._table["ticks"],
                self._plant,
                self._ticks,
                self._bounds,
                self._stuck_after,
                self._recipe.silent_after,
                self._recipe.skew,
                self._recipe.unit_jump,
                self._soonest,
                _UNIT_NUMBERS,
                masked,
                words,
                figures,
                told,
            )
            findings += [_finding(*line) for line in zip(words[: told[0]], figures[: told[0]], strict=True)]
            if self._recipe.silent_after and self._plant[PASSED] >= self._soonest[0]:
                findings += self._overdue(start - 1, offsets, rows)
        return Examination(masked, findings)

    def accept(self, slots: Slots) -> Slots:
        """Take the ailments of these slots for normal where that can be (not a value out of its range, nor a wrong
        clock or a silence): they end with the next reading, and are learned. The slots that had one."""
        self._table.reserve(slots)
        levels, runs = (self._table[name][slots] for name in ("levels", "runs"))
        taken = take_for_normal(levels, runs)
        self._table["runs"][slots] = runs
        return slots[taken.any(axis=1)]

    def forget(self, slots: Slots) -> None:
        """Miss these no more: their machines wait in the checkpoint."""
        self._table.reserve(slots)
        for name in ("runs", "pace"):
            self._table[name][slots] = 0

    def sick(self) -> dict[Ailment, int]:
        """How many sensors or machines have each ailment now."""
        ailments = self._table["runs"][:, :, SICK]
        counts = np.bincount(ailments[ailments > 0] % ACCEPTED, minlength=CLOCK_SKEW)[1:CLOCK_SKEW].tolist()
        pace = self._table["pace"]
        counts += [np.count_nonzero(pace[:, state]) for state in (SKEW_STATE, SILENT_STATE)]
        return dict(zip(AILMENTS, map(int, counts), strict=True))

    def snapshot(self, slots: Slots) -> Rows:
        """`levels`, `runs`, `clock`, `pace`, and the plant's `plant` and `ticks` as of each key's last reading."""
        return self._table.snapshot(slots)

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Put rows back; the plant's state is that of the latest. Raises ValueError on a mismatch."""
        self._table.restore(slots, rows)
        if len(slots):
            latest = int(np.argmax(rows["ticks"][:, TICK]))
            if rows["ticks"][latest, TICK] > self._ticks[TICK]:
                self._plant, self._ticks = rows["plant"][latest].copy(), rows["ticks"][latest].copy()
        self._soonest[0] = 0.0

    def _overdue(self, index: int, offsets: NDArray[np.int64], rows: NDArray[np.int64]) -> list[Finding]:
        """The machines that this reading shows to be silent."""
        clock, pace = self._table["clock"], self._table["pace"]
        slots = np.flatnonzero(overdue(self._plant, clock, pace, self._recipe.silent_after))
        pace[slots, SILENT_STATE] = 1
        pace[slots, SILENT_OFFSET], pace[slots, SILENT_ROW] = offsets[index], rows[index]
        clock[slots, SILENT_SINCE] = clock[slots, LAST_TIME]
        return [
            Finding(
                index,
                slot,
                True,
                "machine_silent",
                -1,
                int(offsets[index]),
                int(rows[index]),
                since,
                0,
                np.nan,
                np.nan,
            )
            for slot, since in zip(slots.tolist(), clock[slots, SILENT_SINCE].tolist(), strict=True)
        ]


def ailing(rows: Rows) -> list[Finding]:
    """What ails the keys of these rows of a snapshot: findings that ended, `index` and `slot` the row, without what
    was said or usual."""
    levels, runs, clock, pace = (rows[name] for name in ("levels", "runs", "clock", "pace"))
    found = []
    for i, sensor in np.argwhere(runs[:, :, SICK] > 0).tolist():
        run = runs[i, sensor]
        place = (int(run[OFFSET]), int(run[ROW]), float(levels[i, sensor, SINCE]), int(run[COUNT]))
        found.append(Finding(i, i, False, AILMENTS[run[SICK] % ACCEPTED - 1], sensor, *place, np.nan, np.nan))
    for i in np.flatnonzero(pace[:, SKEW_STATE]).tolist():
        since, count = float(clock[i, SKEW_SINCE]), int(pace[i, SKEW_COUNT])
        place = (int(pace[i, SKEW_OFFSET]), int(pace[i, SKEW_ROW]), since, count)
        found.append(Finding(i, i, False, "clock_skew", -1, *place, np.nan, np.nan))
    for i in np.flatnonzero(pace[:, SILENT_STATE]).tolist():
        place = (int(pace[i, SILENT_OFFSET]), int(pace[i, SILENT_ROW]), float(clock[i, SILENT_SINCE]), 0)
        found.append(Finding(i, i, False, "machine_silent", -1, *place, np.nan, np.nan))
    return found


def _finding(word: NDArray[np.int64], figure: Floats) -> Finding:
    index, slot, ailment, sensor, offset, row, count, unit = word.tolist()
    since, value, usual = figure.tolist()
    words = UNITS[unit - 1][0] if unit else ""
    name = AILMENTS[abs(ailment) - 1]
    return Finding(index, slot, ailment > 0, name, sensor, offset, row, since, count, value, usual, words)

"""Whether a sensor goes by the clock: the profile of its day and week, asked once they have proven themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats, Mask, Model, Slots
from detectors.calibration import Calibration, Calibrator
from detectors.kernels import compiled
from detectors.profiles import SeasonalProfile
from detectors.table import Column, Table

__all__ = ["Rhythm", "Season"]

_DAY = 86_400.0
_PROFILES = (SeasonalProfile(), SeasonalProfile(period=7 * _DAY, bins=336))
_FROM, _UNTIL = (2 * _DAY, 14 * _DAY), (8 * _DAY, 22 * _DAY)
"""When the profile of the day, and of the week, is judged: once it scores, over six days and eight, so that a weekend
is in it: of machines that rest then, a day's profile explains little, or its limit has seen it."""
_EXPLAINS = 0.5
"""Share of the variance that a profile must explain, beyond what did before, to count."""
_LEAST = 100
"""Readings that judge."""
_MOST = 25.0
"""Times the usual that one squared error counts: a spike proves nothing."""
_RARELY = 5.0
"""-log10 probability, by a key's own deviations from its profile, from which one is anomalous."""
_STEP = 8 * _DAY / 1000
"""Seconds between deviations that are remembered: so a thousand reach back over a week, however often it is read."""
_NEITHER, _OF_DAY, _OF_WEEK = range(3)


@dataclass(frozen=True, slots=True)
class Season:
    """What is known of a key's rhythm: `name` "day" or "week" where its profile counts, else empty; the share of the
    variance that it explains, or that of the day where none counts, negative where it was read too seldom to tell;
    days until a first verdict, 0 once there is one."""

    name: str
    explains: float
    days: float

    @property
    def told(self) -> str:
        """In words.

        >>> Season("week", 0.934, 0.0).told, Season("", 0.0, 2.25).told
        ('the profile of its week explains 93 % of it', 'the profile of its day is judged in 2.2 d')
        """
        if self.name:
            return f"the profile of its {self.name} explains {100 * self.explains:.0f} % of it"
        if self.days:
            return f"the profile of its day is judged in {self.days:.1f} d"
        if self.explains < 0.0:
            return "it is read too seldom for a profile of its day"
        return f"the profile of its day explains {100 * self.explains:.0f} % of it, too little"


class Rhythm:
    """Profiles of one sensor's day and week, learned from the first reading on.

    That of the day counts where it explained half of the variance of readings that it had not seen, from the third to
    the eighth day; that of the week takes its place where it leaves less than half of what the day's leaves, in the
    third week, at whose end the day's is judged anew. Errors are prequential (Dawid 1984): forecast, then learned.
    A deviation is anomalous from six sigmas, and from what the key's own deviations pass once in 100,000.
    """

    def __init__(self, sensors: tuple[str, ...]) -> None:
        self.models: tuple[Model, ...] = tuple(profile.build(sensors) for profile in _PROFILES)
        self._limits = tuple(Calibration().build() for _ in _PROFILES)
        self._table = Table(
            {
                "count": Column(np.int64),
                "start": Column(np.float64),
                "newest": Column(np.float64),
                "kept": Column(np.int64, (), -(2**62)),
                "judged": Column(np.int64),
                "taken": Column(np.int64),
                "explains": Column(np.float64),
                "sums": Column(np.float64, (5,)),
            }
        )

    def tables(self) -> Iterator[tuple[str, Model | Calibrator | Table]]:
        """What has state, by name."""
        names = ("day", "week")
        yield from zip(names, self.models, strict=True)
        yield from zip((f"limits.{name}" for name in names), self._limits, strict=True)
        yield "rhythm", self._table

    def ratios(self, slots: Slots, values: Floats, times: Floats, learn: Mask) -> Floats:
        """Multiples (n, 2) of their thresholds of the two profiles, 0 of one that does not count."""
        table, n = self._table, len(slots)
        table.reserve(slots)
        scores, expected = np.zeros((n, 2)), np.full((n, 2), np.nan)
        for number, model in enumerate(self.models):
            scores[:, number] = model.score_learn(slots, values, times, learn)
            expected[:, number] = model.contributions(np.arange(n)).expected[:, 0]
        taken, kept = np.zeros(n, np.int64), np.zeros((n, 2), np.bool_)
        whose = (table["count"], table["start"], table["newest"], table["kept"])
        verdicts = (table["judged"], table["taken"], table["explains"], table["sums"])
        _judge(slots, values[:, 0], times, expected, learn, *whose, *verdicts, taken, kept)
        for number, (model, limits) in enumerate(zip(self.models, self._limits, strict=True)):
            own = limits.limits(slots, scores[:, number], _RARELY, model.threshold, kept[:, number])
            scores[:, number] = np.where(taken == number + 1, scores[:, number] / own, 0.0)
        return scores

    def season(self, slot: int) -> Season:
        """What is known of a key."""
        row = {name: column[0] for name, column in self._table.snapshot(np.array([slot])).items()}
        left = 0.0 if row["judged"] else max(_UNTIL[0] - float(row["newest"] - row["start"]), 0.0)
        return Season(("", "day", "week")[int(row["taken"])], float(row["explains"]), left / _DAY)


_N, _MEAN, _SPREAD, _BY_DAY, _BY_WEEK = range(5)


@compiled("void(float64, float64[::1], float64[::1])")
def _count(value: float, expected: Floats, sums: Floats) -> None:
    """Add the squared errors of the mean so far and of both profiles."""
    if not (np.isfinite(value) and np.isfinite(expected[0]) and np.isfinite(expected[1])):
        return
    value = min(max(value, -1e100), 1e100)
    off = value - sums[_MEAN]
    first = sums[_N] == 0.0
    sums[_N] += 1.0
    if first:
        sums[_MEAN] = value
        return
    most = _MOST * sums[_SPREAD] / (sums[_N] - 1.0) if sums[_N] > 30.0 and sums[_SPREAD] > 0.0 else np.inf
    sums[_MEAN] += min(max(off, -np.sqrt(most)), np.sqrt(most)) / sums[_N]
    sums[_SPREAD] += min(off * off, most)
    sums[_BY_DAY] += min((value - expected[0]) ** 2, most)
    sums[_BY_WEEK] += min((value - expected[1]) ** 2, most)


@compiled("Tuple((int64, float64))(float64[::1], int64)")
def _verdict(sums: Floats, judged: int) -> tuple[int, float]:
    """Which profile counts, and how much of the variance it explains; -1 where too few readings tell."""
    if sums[_N] < _LEAST:
        return _NEITHER, -1.0
    if not sums[_SPREAD] > 0.0:
        return _NEITHER, 0.0
    day, week = 1.0 - sums[_BY_DAY] / sums[_SPREAD], 1.0 - sums[_BY_WEEK] / sums[_SPREAD]
    before = max(day, 0.0)
    if judged == 1 and 1.0 - week <= (1.0 - _EXPLAINS) * (1.0 - before):
        return _OF_WEEK, week
    return (_OF_DAY if day >= _EXPLAINS else _NEITHER), before


@compiled(
    "void(int64[::1], float64[:], float64[::1], float64[:,::1], boolean[::1], int64[::1], float64[::1], float64[::1],"
    " int64[::1], int64[::1], int64[::1], float64[::1], float64[:,::1], int64[::1], boolean[:,::1])"
)
def _judge(
    slots: Slots,
    values: Floats,
    times: Floats,
    expected: Floats,
    learn: Mask,
    count: NDArray[np.int64],
    start: Floats,
    newest: Floats,
    last_kept: NDArray[np.int64],
    judged: NDArray[np.int64],
    chosen: NDArray[np.int64],
    explains: Floats,
    sums: Floats,
    taken: NDArray[np.int64],
    kept: Mask,
) -> None:
    """Which profile counts for each reading, and whose deviations are remembered."""
    for i in range(len(slots)):
        slot, now = slots[i], times[i]
        if count[slot] == 0:
            start[slot] = newest[slot] = now
        count[slot] += 1
        newest[slot] = max(newest[slot], now)
        known_for = now - start[slot]
        at = judged[slot]
        if at < 2 and known_for >= _UNTIL[at]:
            chosen[slot], explains[slot] = _verdict(sums[slot], at)
            sums[slot, :] = 0.0
            judged[slot] += 1
            at += 1
        if at < 2 and known_for >= _FROM[at] and learn[i]:
            _count(values[i], expected[i], sums[slot])
        taken[i] = chosen[slot]
        step = int(np.floor(now / _STEP)) if abs(now) < 1e15 else 0
        if learn[i] and np.isfinite(values[i]) and step != last_kept[slot]:
            last_kept[slot] = step
            kept[i, 0], kept[i, 1] = known_for >= _FROM[0], known_for >= _FROM[1]

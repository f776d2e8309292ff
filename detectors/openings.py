"""How often an alert rule would open at each of many thresholds: which threshold keeps a budget of alerts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats, Mask, Rows, Slots
from detectors.kernels import compiled, floats, learned, slot_numbers
from detectors.table import Column, Table

__all__ = ["OpeningRule", "Openings"]

_LEVELS, _STEP = 64, 0.1
"""The ladder: thresholds tried beside the one in force, in decades of probability."""
_MEMORY = 100_000.0
"""Readings after which a count weighs 1/e."""
_ENOUGH = 50.0
"""Openings at a level from which its rate is known."""
_PRIOR = 10.0
"""Openings that the expected slope beyond counts for."""
_FAR = 20
"""Steps beyond the last known level that an episode counts for: what lies further off was no false alarm."""
_REFIT = 64


@dataclass(frozen=True, slots=True)
class OpeningRule:
    """When alerts open and close, as far as thresholds play a part: the settings of `AlertRule` by the same names."""

    hold: int = 1
    within: int = 1
    at_once: float = np.inf
    close_after: int = 3
    hysteresis: float = 0.0
    cooldown: float = 0.0
    cooldown_readings: int = 0


class Openings:
    """Keeps a budget: finds the threshold at which a rule opens as often as it may. 1.9 kB a key.

    Scores are -log10 of a reading's probability. Beside the alerts in earnest the rule is followed at a ladder of
    thresholds, most of them lower, where it opens often, so that its rate there is known soon: with its k of n
    readings, its hysteresis and rests, and with readings that depend on each other. Between levels that opened 50
    times the rate is interpolated; beyond them it falls by so much for each decade of probability as it did for
    the episodes that got there (a geometric distribution of their peaks, the exponential tail of peaks over
    threshold; what came 2 decades further counts as 2, so that faults do not make the tail heavy). It is peaks over
    threshold with clusters taken for one (Davison and Smith, "Models for exceedances over high thresholds", JRSS B
    1990), with the rule itself telling clusters apart.

    >>> rng = np.random.default_rng(0)
    >>> scores = rng.exponential(1 / np.log(10), 50_000)
    >>> openings = Openings(OpeningRule(hold=2, within=2))
    >>> wanted = np.full(50_000, 4.0)
    >>> limits = openings.thresholds(np.zeros(50_000, np.int64), scores, np.arange(5e4), wanted)
    >>> bool(limits[0] == 4.0), bool(1.7 < limits[-1] < 2.3)
    (True, True)
    """

    def __init__(self, rule: OpeningRule) -> None:
        self._rule = rule
        self._table = Table(
            {
                "readings": Column(np.float64),
                "fresh": Column(np.int64),
                "number": Column(np.int64),
                "top": Column(np.int64),
                "tail": Column(np.float64, (2,)),
                "counts": Column(np.float32, (_LEVELS,)),
                "recent": Column(np.int64, (_LEVELS,)),
                "calm": Column(np.int32, (_LEVELS,)),
                "rest_time": Column(np.float64, (_LEVELS if rule.cooldown else 1,), -np.inf),
                "rest_number": Column(np.int64, (_LEVELS if rule.cooldown_readings else 1,)),
            }
        )

    def thresholds(
        self, slots: Slots, scores: Floats, times: Floats, wanted: Floats, learn: Mask | None = None
    ) -> Floats:
        """The score (n,) from which each reading is to be anomalous, as of the readings before it, in arrival order.

        `wanted` (n,): -log10 of the openings that each reading may bring. `learn` as in `Model`: readings that are
        not learned do not count, nor advance any level. A key that was never seen has the threshold of independent
        readings of which one is enough: `wanted`. About 0.1 µs per reading."""
        slots, scores, times, wanted = slot_numbers(slots), floats(scores), floats(times), floats(wanted)
        table, rule = self._table, self._rule
        table.reserve(slots)
        limits = np.empty(len(slots))
        _thresholds(
            slots,
            scores,
            times,
            wanted,
            learned(learn, len(slots)),
            table["readings"],
            table["fresh"],
            table["number"],
            table["top"],
            table["tail"],
            table["counts"],
            table["recent"],
            table["calm"],
            table["rest_time"],
            table["rest_number"],
            rule.hold,
            rule.within,
            rule.at_once,
            rule.close_after,
            rule.hysteresis,
            rule.cooldown,
            rule.cooldown_readings,
            limits,
        )
        return limits

    def snapshot(self, slots: Slots) -> Rows:
        """Readings counted, openings by level, and where each level stands."""
        return self._table.snapshot(slots)

    def restore(self, slots: Slots, rows: Rows) -> None:
        """Put rows back. Raises ValueError on a mismatch."""
        top = np.asarray(rows.get("top", 0))
        if top.size and (top.min() < 0 or top.max() > _LEVELS):
            raise ValueError("state 'top' is no level")
        self._table.restore(slots, rows)


_OPEN = -1
"""Instead of bits of the latest readings, where a level is open."""
_BASE, _FALL = range(2)


@compiled("void(float64, float32[::1], float64[::1], int64)")
def _fit(readings: float, counts: NDArray[np.float32], tail: Floats, hold: int) -> None:
    """The highest level whose rate is known, and by how much (natural logarithm) rates fall with each step beyond."""
    base = -1
    for j in range(_LEVELS):
        if counts[j] >= _ENOUGH:
            base = j
    tail[_BASE] = base
    if base < 0:
        return
    last = min(base + _FAR, _LEVELS - 1)
    survived = 0.0
    for j in range(base + 1, last + 1):
        survived += counts[j]
    ended = counts[base] - counts[last]
    usual = 10.0 ** (-_STEP * np.sqrt(hold))
    survived += _PRIOR * usual / (1.0 - usual)
    ended = max(ended, 0.0) + _PRIOR
    tail[_FALL] = -np.log(survived / (survived + ended))


@compiled("float64(float64, float64, float32[::1], float64[::1])")
def _limit(wanted: float, readings: float, counts: NDArray[np.float32], tail: Floats) -> float:
    base = int(tail[_BASE])
    if readings < _REFIT or base < 0:
        return wanted
    rate = readings * 10.0**-wanted
    if counts[base] <= rate:
        for j in range(base - 1, -1, -1):
            if counts[j] >= rate:
                share = np.log(counts[j] / rate) / max(np.log(counts[j] / counts[j + 1]), 1e-9)
                return float(_STEP * (j + 1 + min(share, 1.0)))
            if counts[j] < counts[j + 1]:  # lower levels open less often, for they hardly close
                return _STEP * (j + 2)
        return _STEP
    return float(_STEP * (base + 1 + np.log(counts[base] / rate) / tail[_FALL]))


@compiled("int64(int64)")
def _ones(bits: int) -> int:
    found = 0
    while bits:
        bits &= bits - 1
        found += 1
    return found


@compiled(
    "void(int64[::1], float64[::1], float64[::1], float64[::1], boolean[::1], float64[::1], int64[::1], int64[::1],"
    " int64[::1], float64[:,::1], float32[:,::1], int64[:,::1], int32[:,::1], float64[:,::1], int64[:,::1], int64,"
    " int64, float64, int64, float64, float64, int64, float64[::1])"
)
def _thresholds(
    slots: Slots,
    scores: Floats,
    times: Floats,
    wanted: Floats,
    learn: Mask,
    readings: Floats,
    fresh: NDArray[np.int64],
    number: NDArray[np.int64],
    top: NDArray[np.int64],
    tail: Floats,
    counts: NDArray[np.float32],
    recent: NDArray[np.int64],
    calm: NDArray[np.int32],
    rest_time: Floats,
    rest_number: NDArray[np.int64],
    hold: int,
    within: int,
    at_once: float,
    close_after: int,
    hysteresis: float,
    cooldown: float,
    cooldown_readings: int,
    limits: Floats,
) -> None:
    keep = (1 << within) - 1
    for i in range(len(slots)):
        slot, score = slots[i], scores[i]
        limits[i] = _limit(wanted[i], readings[slot], counts[slot], tail[slot])
        if not learn[i]:
            continue
        readings[slot] += 1.0
        number[slot] += 1
        highest = 0
        for j in range(_LEVELS):
            level = _STEP * (j + 1)
            if level > score and j >= top[slot]:
                break
            closes = False
            if recent[slot, j] == _OPEN:
                calm[slot, j] = calm[slot, j] + 1 if score < level * (1.0 - hysteresis) else 0
                closes = calm[slot, j] >= close_after
            elif (cooldown and times[i] < rest_time[slot, j]) or (
                cooldown_readings and number[slot] <= rest_number[slot, j]
            ):
                recent[slot, j] = 0
            else:
                anomalous = score >= level
                recent[slot, j] = ((recent[slot, j] << 1) & keep) | anomalous
                if anomalous and (_ones(recent[slot, j]) >= hold or score >= level * at_once):
                    counts[slot, j] += 1.0
                    recent[slot, j], calm[slot, j] = _OPEN, 0
                    closes = close_after == 0
            if closes:
                recent[slot, j] = 0
                if cooldown:
                    rest_time[slot, j] = times[i] + cooldown
                if cooldown_readings:
                    rest_number[slot, j] = number[slot] + cooldown_readings
            if recent[slot, j] != 0:
                highest = j + 1
        top[slot] = highest
        fresh[slot] += 1
        if fresh[slot] >= _REFIT:
            if readings[slot] > _MEMORY:
                kept = _MEMORY / readings[slot]
                readings[slot] *= kept
                for j in range(_LEVELS):
                    counts[slot, j] *= kept
            _fit(readings[slot], counts[slot], tail[slot], hold)
            fresh[slot] = 0

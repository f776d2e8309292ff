"""`detectors: auto` asks the clock about a single sensor, once a profile has proven itself, and says so."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.single import NORMAL, SERIES, START, alerts
from detectors import Auto
from detectors.automatic import AutoModel
from detectors.base import Floats
from detectors.kernels import floats

HOUR, DAY = 3600.0, 86_400.0


def daily(times: Floats, seed: int = 0) -> Floats:
    """A sine of the day and noise."""
    noise = np.random.default_rng(seed).normal(scale=0.5, size=len(times))
    return floats(-5.0 * np.cos(2 * np.pi * times / DAY) + noise)


def weekly(times: Floats, seed: int = 0) -> Floats:
    """On from 6 to 18 o'clock, Monday to Friday."""
    on = (times % DAY >= 6 * HOUR) & (times % DAY < 18 * HOUR) & ((times // DAY + 3) % 7 < 5)
    return floats(10.0 * on + np.random.default_rng(seed).normal(scale=0.5, size=len(times)))


def clock(days: float, every: float) -> Floats:
    """Times from a Wednesday, 00:00 UTC, on."""
    return floats(START + np.arange(0.0, days * DAY, every))


def fed(times: Floats, values: Floats) -> tuple[AutoModel, Floats]:
    """A model that has seen them, and the scores."""
    model = Auto().build(("a",))
    return model, model.score_learn(np.zeros(len(times), np.int64), floats(values[:, None]), times)


@pytest.mark.parametrize(
    "name", ["day, night's level at noon", "counts by day, at night as by day", "shifts, does not start"]
)
def test_fault_that_only_the_clock_gives_away_is_found(name: str) -> None:
    found = 0
    for seed in range(3):
        at, opened = alerts(SERIES[name], seed)
        assert at >= NORMAL
        found += any(offset >= at for offset in opened)
    assert found >= 2


def test_reason_is_what_is_usual_at_this_time_of_the_day() -> None:
    times = clock(20, 600.0)
    values = daily(times)
    at = np.flatnonzero((times >= START + 19 * DAY) & (times % DAY == 12 * HOUR))[0]
    values[at] = -5.0
    model, scores = fed(times, values)
    assert scores[at] > 1.0
    shares, expected = model.contributions(np.array([at]))
    assert shares[0, 0] == -1.0
    assert expected[0, 0] == pytest.approx(5.0, abs=0.5)


def test_profile_counts_where_it_explains_readings_it_had_not_seen() -> None:
    days, _ = fed(times := clock(9, 600.0), daily(times))
    assert days.explain(0).startswith(
        "left_matrix_profile, seasonal_profile: one sensor, a reading each 10 min: "
    )
    assert "the profile of its day explains 9" in days.explain(0)
    weeks, _ = fed(times := clock(23, 1800.0), weekly(times))
    assert "the profile of its week explains 9" in weeks.explain(0)
    noise, _ = fed(times := clock(9, 600.0), np.random.default_rng(1).normal(size=len(times)))
    assert noise.explain(0).startswith("left_matrix_profile: one sensor")
    assert noise.explain(0).endswith("the profile of its day explains 0 % of it, too little")


def test_profile_says_when_it_is_judged_and_where_it_cannot_be() -> None:
    young, _ = fed(times := clock(5.0, 600.0), daily(times))
    assert young.explain(0).endswith("the profile of its day is judged in 3.0 d")
    seldom, _ = fed(times := clock(200.0, 8 * HOUR), daily(times))
    assert seldom.explain(0).endswith("it is read too seldom for a profile of its day")


def test_spike_while_a_profile_is_judged_changes_no_verdict() -> None:
    for spike in (1e6, 1e300, np.nan):
        values = daily(times := clock(9, 600.0))
        values[600] = spike
        model, scores = fed(times, values)
        assert "seasonal_profile" in model.explain(0), spike
        assert np.isfinite(scores).all()


def test_rhythm_that_began_late_is_found_in_the_third_week() -> None:
    times = clock(23, 1800.0)
    values = np.where(times < START + 9 * DAY, np.random.default_rng(2).normal(size=len(times)), daily(times))
    early, _ = fed(times[: 9 * 48], values[: 9 * 48])
    late, _ = fed(times, floats(values))
    assert "seasonal_profile" not in early.explain(0)
    assert "seasonal_profile" in late.explain(0)


@pytest.mark.parametrize("cut", [1, 700, 1153, 1999])
def test_cuts_and_restarts_change_no_score(cut: int) -> None:
    times = clock(23, 900.0)
    values = weekly(times)
    values[-30:-10] = 0.3
    whole, scores = fed(times, values)
    first, start = fed(times[:cut], values[:cut])
    second = Auto().build(("a",))
    second.restore(np.array([3]), first.snapshot(np.array([0])))
    rest = second.score_learn(np.full(len(times) - cut, 3), floats(values[cut:, None]), times[cut:])
    np.testing.assert_array_equal(np.r_[start, rest], scores)
    assert second.explain(3) == whole.explain(0)

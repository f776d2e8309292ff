"""A shadow beside its champion in figures: counted by hand, and independent of the cut of batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from detectors.base import Floats
from stream.agreement import Comparison, Readings, Tally
from stream.gates import Condition, PromoteWhen, RollbackWhen
from stream.probation import Probation


def readings(
    champion: Floats, shadow: Floats, times: Floats | None = None, machines: Sequence[str] | None = None
) -> Readings:
    n = len(champion)
    opened = np.zeros(n, np.bool_)
    return Readings(
        ["m"] * n if machines is None else machines,
        np.arange(n, dtype=np.float64) if times is None else times,
        champion,
        shadow,
        opened | (champion >= 2.0),
        opened | (shadow >= 2.0),
        0.002 * n,
        0.004 * n,
    )


def test_figures_are_those_of_the_table() -> None:
    """20 both, 15 both not, 5 and 10 one alone: Cohen's own kind of table; agreement 0.7, chance 0.5, kappa 0.4."""
    first = np.array([1.0] * 20 + [0.5] * 15 + [1.5] * 5 + [0.2] * 10 + [np.nan])
    second = np.array([2.0] * 20 + [0.5] * 15 + [0.9] * 5 + [1.0] * 10 + [1.0])
    found = Comparison(readings=None, seconds=None)
    found.add(readings(first, second))
    total = found.total
    assert (total.both, total.neither, total.champion_only, total.shadow_only) == (20, 15, 5, 10)
    assert (total.readings, total.unscored) == (50, 1)
    assert total.agreement == pytest.approx(0.7)
    assert total.kappa == pytest.approx(0.4)
    assert (total.champion.alerts, total.shadow.alerts) == (0, 20)
    assert total.figures()["us_per_reading"] == {
        "champion": pytest.approx(2040.0),
        "shadow": pytest.approx(4080.0),
    }
    assert (total.since, total.until) == (0.0, 50.0)


def test_drift_is_the_distance_of_the_distributions() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.uniform(0, 1, 1000), rng.uniform(0, 1, 1000)
    alike, apart = Comparison(readings=None, seconds=None), Comparison(readings=None, seconds=None)
    alike.add(readings(first, second))
    apart.add(readings(first, second * 0.5))
    assert alike.total.drift < 0.08
    assert apart.total.drift == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("window", [{"readings": 100, "seconds": None}, {"readings": None, "seconds": 70.0}])
def test_windows_do_not_depend_on_the_cut_of_batches(window: dict[str, float | None]) -> None:
    rng = np.random.default_rng(1)
    first, second = rng.uniform(0, 1.2, 450), rng.uniform(0, 1.2, 450)
    whole = Comparison(**window)  # type: ignore[arg-type]
    whole.add(readings(first, second))
    for size in (1, 7, 100):
        parts = Comparison(**window)  # type: ignore[arg-type]
        for start in range(0, 450, size):
            rows = slice(start, start + size)
            times = np.arange(450.0)[rows]
            parts.add(readings(first[rows], second[rows], times))
            parts = Comparison(**window, saved=parts.saved())  # type: ignore[arg-type]  # as after a restart
        for one, other in ((whole.total, parts.total), (whole.window, parts.window)):
            assert one is not None
            assert other is not None
            assert _counts(one) == _counts(other)
    assert whole.window is not None
    assert whole.window.readings == (100 if window["readings"] else 71)


def _counts(tally: Tally) -> tuple[object, ...]:
    sides = [(side.alerts, side.scores) for side in (tally.champion, tally.shadow)]
    counts = (tally.both, tally.neither, tally.champion_only, tally.shadow_only, tally.unscored)
    return counts, sides, tally.since, tally.until


def test_a_gate_says_which_conditions_are_not_met_and_the_figures() -> None:
    gate = PromoteWhen(
        readings=10,
        agreement=">= 0.98",
        alerts="<= 1.2 x champion",
        latency="<= 1.5 x champion",
        drift="< 0.5",
    )
    assert gate.unmet(None) == ["the first window of the comparison has not ended yet"]
    found = Comparison(readings=10, seconds=None)
    found.add(readings(np.full(10, 0.5), np.array([0.5] * 9 + [2.5])))
    assert gate.unmet(found.window) == [
        "agreement is 0.9, which is not >= 0.98",
        "alerts is 1 beside 0 of the champion, which is not <= 1.2 x champion",
        "latency is 0.004 beside 0.002 of the champion, which is not <= 1.5 x champion",
    ]
    found.add(readings(np.full(10, 0.5), np.full(10, 0.5)))
    [slow] = gate.unmet(found.window)
    assert slow.startswith("latency is 0.004 beside 0.002")


@pytest.mark.parametrize(
    ("text", "value", "other", "holds"),
    [
        (">= 0.98", 0.98, 0.0, True),
        ("> 0.98", 0.98, 0.0, False),
        ("<= 1.2 x champion", 12.1, 10.0, False),
        ("<2x before", 19.9, 10.0, True),
        ("< 2", 2.0, 99.0, False),
    ],
)
def test_conditions(text: str, value: float, other: float, *, holds: bool) -> None:
    assert Condition.parse(text).holds(value, other) is holds


def test_what_is_no_condition_is_told() -> None:
    with pytest.raises(ValueError, match='agreement: "high" is no condition') as told:
        PromoteWhen(readings=10, agreement="high", alerts="< 2 x before")
    assert 'alerts: compare with "x champion", not "x before"' in str(told.value)
    with pytest.raises(ValueError, match="window: say how long is compared"):
        PromoteWhen(agreement="> 0.9")
    with pytest.raises(ValueError, match="state at least one of alerts, errors and latency"):
        RollbackWhen()


def watched(rule: RollbackWhen, opened: Floats, *, size: int, swap_at: int) -> tuple[Probation, int | None]:
    """Readings a second apart, of which some open an alert; the state goes through the checkpoint after each batch.
    The probation, and the reading with whose batch a verdict came."""
    found, start = Probation(rule), 0
    machines = ["m"] * len(opened)
    for end in sorted({*range(size, len(opened), size), swap_at, len(opened)}):
        rows = np.arange(start, end)
        times, none = rows.astype(np.float64), np.zeros(len(rows), np.bool_)
        found.add(machines[start:end], times, opened[rows] > 0, none, 0.001 * len(rows))
        found = Probation(rule, found.saved())
        if end == swap_at:
            found.swapped()
        if found.verdict is not None:
            return found, end
        start = end
    return found, None


def alerts(*stretches: tuple[int, int]) -> Floats:
    """So many readings, of which every so manieth opens an alert."""
    return np.concatenate([(np.arange(n) % every == every - 1).astype(np.float64) for n, every in stretches])


def test_an_alert_storm_after_a_swap_is_seen_whatever_the_cut() -> None:
    """5 alerts in 1,000 s before: the 26th within 1,000 s after is more than five times as many."""
    rule = RollbackWhen(within=1000.0, alerts="> 5 x before")
    storm = alerts((1000, 200), (1000, 10))
    for size in (1, 10, 130):
        found, at = watched(rule, storm, size=size, swap_at=1000)
        assert at is not None
        assert 1260 <= at < 1260 + size
        assert found.verdict is not None
        assert found.verdict.startswith("alerts since the swap: ")
        assert " beside 5 before the swap, which is > 5 x before" in found.verdict


def test_what_comes_after_the_time_is_no_matter_of_the_swap() -> None:
    rule = RollbackWhen(within=1000.0, alerts="> 5 x before")
    assert watched(rule, alerts((1000, 200), (1001, 200), (1000, 10)), size=50, swap_at=1000)[1] is None


def test_alerts_without_a_swap_condemn_nobody_and_errors_do_after_one() -> None:
    rule = RollbackWhen(within=100.0, alerts="> 1", errors="> 2")
    found, at = watched(rule, alerts((500, 3)), size=50, swap_at=500)
    assert at is None
    for _ in range(3):
        assert found.verdict is None
        found.failed()
    assert found.verdict == "errors since the swap: 3, which is > 2"
    found.rolled_back()
    assert found.verdict is None


def test_a_slow_model_is_seen_after_a_thousand_readings() -> None:
    found = Probation(RollbackWhen(within=1e6, latency="> 3 x before"))
    times, none = np.arange(1000.0), np.zeros(1000, np.bool_)
    found.add(["m"] * 1000, times, none, none, 0.001)
    found.swapped()
    found.add(["m"] * 999, times[:999] + 1000, none[:999], none[:999], 0.1)
    assert not found.verdict
    found.add(["m"], times[:1] + 2000, none[:1], none[:1], 0.0)
    assert "latency since the swap: 0.0001 beside 1e-06" in str(found.verdict)


@pytest.mark.parametrize("ahead", [3700.0, -3700.0, 0.0])
def test_a_machine_whose_clock_is_wrong_ends_no_time_on_probation(ahead: float) -> None:
    """Every fifth reading is of a machine of another time zone; a storm is seen, one after the hour not."""
    for quiet, condemned in ((1000, True), (4000, False)):
        found = Probation(RollbackWhen(within=3600.0, alerts="> 2"))
        opened = alerts((1000, 2000), (quiet, 5000), (600, 60))
        for i, opens in enumerate(opened.tolist()):
            if i == 1000:
                found.swapped()
            others = i % 5 == 4
            time = np.array([float(i) + (ahead if others else 0.0)])
            found.add(["other" if others else "m"], time, np.array([opens > 0]), np.zeros(1, np.bool_), 0.0)
        assert (found.verdict is not None) is condemned, (ahead, quiet)


def test_what_a_wrong_clock_tells_is_no_time_before_a_swap() -> None:
    found = Probation(RollbackWhen(within=1000.0, alerts="> 1 x before"))
    none, opened = np.zeros(2, np.bool_), np.array([True, True])
    for i in range(5):
        found.add(["m", "other"], np.array([100.0 * i, 1e6 + 100.0 * i]), opened, none, 0.0)
    found.swapped()
    found.add(["m", "other"], np.array([600.0, 1e6]), none, none, 0.0)
    for i in range(5):
        found.add(["m", "other"], np.array([610.0 + i, 1e6 + i]), opened, none, 0.0)
    assert found.verdict is None, "10 beside 10: time that nobody lived through makes not fewer of them"


def test_a_machine_whose_clock_is_ahead_opens_no_gate() -> None:
    gate = PromoteWhen(window=1000.0, agreement=">= 0.9")
    found = Comparison(readings=None, seconds=gate.window)
    same, machines = np.full(100, 0.5), ["m", "ahead"] * 50
    times = np.repeat(np.arange(50.0) * 19.0, 2) + np.tile([0.0, 90_000.0], 50)
    found.add(readings(same, same, times, machines))
    assert gate.unmet(found.window) == ["the first window of the comparison has not ended yet"]
    found.add(readings(same, same, times + 950.0, machines))
    assert gate.unmet(found.window) == []


def test_a_clock_that_jumps_ends_a_window_for_nobody_else() -> None:
    """One of three machines is set forward by a day; and one that stopped holds up nothing."""
    found = Comparison(readings=None, seconds=1000.0)
    same, machines = np.full(150, 0.5), ["a", "b", "jumps"] * 50
    times: Floats = np.repeat(np.arange(50.0) * 19.0, 3)
    times[74::3] += 86_400.0
    found.add(readings(same, same, times, machines))
    assert found.window is None, "931 s have passed"
    found.add(readings(np.full(9, 0.5), np.full(9, 0.5), np.linspace(940.0, 1020.0, 9), ["a"] * 9))
    assert found.window is not None


def test_of_many_machines_some_are_asked_and_those_that_stopped_give_way() -> None:
    coming_and_going = Comparison(readings=None, seconds=3600.0)
    same = np.full(101, 0.5)
    for i in range(400):
        names = [f"m{10 * (i // 10) + j}" for j in range(100)] + ["stays"]
        coming_and_going.add(readings(same, same, np.full(101, 30.0 * i), names))
    asked = coming_and_going.saved()["elapsed"]["machines"]
    assert len(asked) <= 64
    assert "stays" in asked
    staying = Comparison(readings=None, seconds=3600.0)
    for i in range(120):
        staying.add(readings(same, same, np.full(101, 30.0 * i), [f"m{j}" for j in range(101)]))
    assert staying.window is None
    for i in range(120, 124):  # whom to ask is found out in the first rounds
        staying.add(readings(same, same, np.full(101, 30.0 * i), [f"m{j}" for j in range(101)]))
    assert staying.window is not None


def test_window_of_few_readings_opens_no_gate() -> None:
    gate = PromoteWhen(window=1000.0, agreement=">= 0.9")
    found = Comparison(readings=None, seconds=gate.window)
    found.add(readings(np.full(3, 0.5), np.full(3, 0.5), np.array([0.0, 10.0, 2000.0])))
    assert gate.unmet(found.window) == ["the window has 3 readings that both gave a score for, not 30"]


def test_readings_that_the_shadow_gave_no_score_for_are_none_of_a_window() -> None:
    champion, shadow = np.full(100, 0.5), np.full(100, np.nan)
    shadow[::50] = 0.5
    counted, timed = Comparison(readings=10, seconds=None), Comparison(readings=None, seconds=90.0)
    for found in (counted, timed):
        found.add(readings(champion, shadow))
    assert counted.window is None
    assert (counted.total.readings, counted.total.missed) == (2, 98)
    assert PromoteWhen(window=90.0, least=1).unmet(timed.window) == ["missing is 0.978, which is not <= 0.01"]

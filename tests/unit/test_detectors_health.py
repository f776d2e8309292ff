"""What tells a sick sensor or machine, and what does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.base import Floats
from detectors.datasets import DATASETS
from detectors.health import Examination, Finding, Health, HealthTable
from detectors.plausibility import UNITS

FREE = np.array([[-np.inf, np.inf]])


def table(recipe: Health | None = None, *, sensors: int = 1, bounds: Floats | None = None) -> HealthTable:
    recipe = recipe or Health()
    limits = np.repeat(FREE, sensors, axis=0) if bounds is None else bounds
    return recipe.build(limits, np.full(len(limits), float(recipe.stuck_after)))


def examine(
    health: HealthTable, values: Any, times: Any = None, slots: Any = None, *, start: int = 0
) -> Examination:
    """One machine, a reading a minute, unless said otherwise; a reading's offset is its number."""
    columns = np.atleast_2d(np.asarray(values, dtype=np.float64).T).T
    n = len(columns)
    places = np.arange(start, start + n)
    return health.examine(
        np.zeros(n, np.int64) if slots is None else np.asarray(slots, np.int64),
        columns,
        np.asarray(60.0 * places if times is None else times, np.float64),
        places,
        np.zeros(n, np.int64),
    )


def told(found: Examination) -> list[tuple[int, str, bool]]:
    return [(item.index, item.ailment, item.began) for item in found.findings]


def noise(n: int, level: float = 50.0, *, seed: int = 0) -> Floats:
    return level + np.random.default_rng(seed).normal(size=n)


def test_a_sensor_that_stands_still_is_stuck_until_it_moves() -> None:
    values = noise(400)
    values[200:320] = 51.5
    found = examine(table(), values)
    assert told(found) == [(299, "sensor_stuck", True), (320, "sensor_stuck", False)]
    assert (found.findings[0].value, found.findings[0].count, found.findings[1].count) == (51.5, 100, 120)
    assert (found.findings[0].offset, found.findings[1].offset) == (299, 299)
    assert np.flatnonzero(np.isnan(found.values)).tolist() == list(range(299, 320))


def test_a_sensor_that_always_stands_still_for_long_is_not_stuck() -> None:
    steps = np.repeat(np.arange(60.0), 90)
    assert not examine(table(), np.append(steps, np.full(400, 99.0))).findings
    assert told(examine(table(), np.append(steps, np.full(1801, 99.0))))[0][0] == 5400 + 20 * 90 - 1
    assert not examine(table(), np.full(5000, 7.0)).findings
    assert not examine(table(Health(stuck_after=0)), np.append(noise(200), np.full(5000, 7.0))).findings


def test_a_sensor_that_is_missing_is_silent_until_it_is_back() -> None:
    values = np.column_stack([noise(200), noise(200, seed=1)])
    values[100:140, 1] = np.nan
    found = examine(table(sensors=2), values)
    assert told(found) == [(109, "sensor_silent", True), (140, "sensor_silent", False)]
    assert [item.sensor for item in found.findings] == [1, 1]
    assert (found.findings[0].since, found.findings[1].count) == (99 * 60.0, 40)
    assert not examine(table(Health(silent_after=0), sensors=2), values).findings


def test_a_sensor_that_comes_seldom_or_never_is_not_silent() -> None:
    values = np.column_stack([noise(900), np.full(900, np.nan), np.full(900, np.nan)])
    values[::8, 1] = 5.0 + np.arange(113)
    assert not examine(table(sensors=3), values).findings


def test_a_value_out_of_range_is_masked_at_once_and_the_alert_ends_with_the_third_in_range() -> None:
    values = noise(60)
    values[[20, 22]] = -1.0, 1e300
    found = examine(table(bounds=np.array([[0.0, 100.0]])), values)
    assert told(found) == [(20, "sensor_out_of_range", True), (25, "sensor_out_of_range", False)]
    assert np.flatnonzero(np.isnan(found.values)).tolist() == [20, 21, 22, 23, 24]
    assert found.findings[1].count == 2


@pytest.mark.parametrize("unit", range(len(UNITS)))
def test_a_level_in_another_unit_is_told_and_masked(unit: int) -> None:
    words, factor, summand = UNITS[unit]
    level = 300.0 if " K in" in words or summand < 0 else 20.0 if summand else 50.0
    values = noise(400, level)
    values[200:300] = factor * values[200:300] + summand
    found = examine(table(), values)
    assert told(found) == [(249, "unit_jump", True), (302, "unit_jump", False)]
    assert found.findings[0].unit == words
    assert found.findings[0].usual == pytest.approx(level, abs=1.0)
    assert np.flatnonzero(np.isnan(found.values)).tolist() == list(range(249, 302))


@pytest.mark.parametrize("factor", [1.5, 3.0, 7.0, 12.0, 0.0, -1.0])
def test_another_level_is_no_change_of_unit(factor: float) -> None:
    values = noise(600)
    values[200:] = factor * 50.0 + noise(400, 0.0, seed=1)
    assert not examine(table(), values).findings


def test_a_level_reached_step_by_step_is_no_change_of_unit() -> None:
    ramp = np.concatenate([np.full(200, 50.0), np.linspace(50.0, 500.0, 30), np.full(300, 500.0)])
    assert not examine(table(), ramp + noise(530, 0.0) * ramp / 50).findings


def plant(n: int, machines: int = 3, *, every: float = 20.0) -> tuple[Any, Any]:
    """Times and slots: machines take turns, each a reading a minute."""
    return every * np.arange(n), np.arange(n) % machines


def test_a_machine_that_sends_nothing_is_silent_while_others_send() -> None:
    times, slots = plant(900)
    quiet = (slots == 2) & (times >= 6000) & (times < 12000)
    kept = np.flatnonzero(~quiet)
    found = examine(table(), noise(len(kept)), times[kept], slots[kept])
    opened, closed = found.findings
    assert told(found) == [(opened.index, "machine_silent", True), (closed.index, "machine_silent", False)]
    assert (opened.slot, closed.slot) == (2, 2)
    heard = times[(slots == 2) & (times < 6000)].max()
    assert opened.since == heard
    assert times[kept][opened.index] - heard == pytest.approx(600, abs=20)
    assert slots[kept][opened.index] != 2
    assert (closed.offset, closed.row) == (opened.offset, opened.row)


def test_a_pause_of_all_machines_is_nobodys_silence() -> None:
    times, slots = plant(900)
    times[300:] += 36000.0
    times[600:] += 5 * 86400.0
    assert not examine(table(), noise(900), times, slots).findings


def test_a_machine_that_pauses_by_itself_is_given_time() -> None:
    """One machine sends once in 15 minutes, longer than `silent_after`."""
    times, slots = plant(3000)
    seldom = slots == 2
    kept = np.flatnonzero(~seldom | (np.cumsum(seldom) % 15 == 0))
    assert not examine(table(), noise(len(kept)), times[kept], slots[kept]).findings


@pytest.mark.parametrize("off", [3600.0, -3600.0, 86400.0, -86400.0])
def test_a_wrong_clock_is_told_and_masks_nothing(off: float) -> None:
    times, slots = plant(900)
    wrong = (slots == 1) & (times >= 6000) & (times < 12000)
    times[wrong] += off
    found = examine(table(), noise(900), times, slots)
    opened, closed = found.findings
    assert told(found) == [(opened.index, "clock_skew", True), (closed.index, "clock_skew", False)]
    assert (opened.slot, closed.slot) == (1, 1)
    assert opened.value == pytest.approx(off, abs=60)
    assert 6000 <= 20.0 * opened.index <= 6700
    assert 12000 <= 20.0 * closed.index <= 12200
    assert not np.isnan(found.values).any()


def test_a_machine_alone_may_pause_and_is_told_where_its_clock_goes_back() -> None:
    times = 60.0 * np.arange(300)
    times[100:] += 7200.0
    assert not examine(table(), noise(300), times).findings
    times[200:] -= 3600.0
    assert told(examine(table(), noise(300), times)) == [
        (209, "clock_skew", True),
        (256, "clock_skew", False),
    ]


def test_a_backlog_read_in_haste_is_no_wrong_clock() -> None:
    times, slots = plant(900)
    held = (slots == 1) & (times >= 6000) & (times < 12000)
    order = np.concatenate([np.flatnonzero(~held & (times < 12000)), np.flatnonzero(held)])
    late = np.concatenate([order, np.flatnonzero(times >= 12000)])
    found = examine(table(Health(silent_after=0)), noise(900), times[late], slots[late])
    assert not found.findings


def test_the_whole_plant_of_one_wrong_clock_is_no_silence() -> None:
    """A clock a year ahead does not make the others silent."""
    times, slots = plant(900)
    times[slots == 0] += 365 * 86400.0
    found = examine(table(), noise(900), times, slots)
    assert {(item.ailment, item.slot) for item in found.findings} == {("clock_skew", 0)}


def test_what_an_operator_accepts_ends_with_the_next_reading_and_is_learned() -> None:
    health = table()
    values = noise(800)
    values[200:] *= 10.0
    assert told(examine(health, values[:400])) == [(249, "unit_jump", True)]
    assert health.sick()["unit_jump"] == 1
    assert health.accept(np.array([0])).tolist() == [0]
    rest = examine(health, values[400:], start=400)
    assert told(rest) == [(0, "unit_jump", False)]
    assert not np.isnan(rest.values).any()
    assert not health.accept(np.array([0])).size


def test_healthy_data_raise_nothing() -> None:
    for name, load in DATASETS.items():
        frame = load().frame
        times = frame.index.astype("datetime64[ns, UTC]").astype(np.int64).to_numpy() / 1e9
        found = examine(table(sensors=frame.shape[1]), frame.to_numpy(np.float64), times)
        assert not found.findings, name


def sick_plant(seed: int, n: int = 700) -> tuple[Floats, Floats, Any]:
    """Every ailment, in four machines of two sensors."""
    rng = np.random.default_rng(seed)
    times, slots = 30.0 * np.arange(n), rng.integers(0, 4, n)
    values = rng.normal([50.0, 300.0], 1.0, (n, 2))
    values[(slots == 0) & (times > 9000), 0] = 52.0
    values[(slots == 1) & (times > 6000) & (times < 12000), 1] = np.nan
    values[(slots == 2) & (times > 9000), 1] *= 10.0
    values[rng.random(n) < 0.01, 0] = 200.0
    times[(slots == 3) & (times > 4000) & (times < 9000)] += 7200.0
    kept = ~((slots == 1) & (times > 13000) & (times < 18000))
    return values[kept], times[kept], slots[kept]


RECIPE = Health(stuck_after=15, silent_after=300.0, skew=120.0)
BOUNDS = np.array([[0.0, 100.0], [-np.inf, np.inf]])


def in_pieces(seed: int, cuts: list[int], *, restart: bool) -> tuple[list[Finding], Floats, Any]:
    values, times, slots = sick_plant(seed)
    health = table(RECIPE, bounds=BOUNDS)
    findings: list[Finding] = []
    masked = []
    for start, stop in zip([0, *cuts], [*cuts, len(times)], strict=True):
        part = examine(health, values[start:stop], times[start:stop], slots[start:stop], start=start)
        findings += part.findings
        masked.append(part.values)
        if restart:
            known = np.unique(slots[:stop])[::-1].copy()
            rows, health = health.snapshot(known), table(RECIPE, bounds=BOUNDS)
            health.restore(known, rows)
    places = [
        (item.slot, item.ailment, item.began, item.sensor, item.offset, item.count) for item in findings
    ]
    return places, np.vstack(masked), health.snapshot(np.arange(4))  # type: ignore[return-value]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    cuts=st.lists(st.integers(0, 500), max_size=6).map(sorted),
    restart=st.booleans(),
)
def test_cuts_and_restarts_change_nothing(seed: int, cuts: list[int], *, restart: bool) -> None:
    np.testing.assert_equal(in_pieces(seed, cuts, restart=restart), in_pieces(seed, [], restart=False))


def test_the_plant_compared_has_every_ailment() -> None:
    values, times, slots = sick_plant(0)
    found = examine(table(RECIPE, bounds=BOUNDS), values, times, slots)
    assert {item.ailment for item in found.findings} == {
        "sensor_silent",
        "sensor_out_of_range",
        "sensor_stuck",
        "unit_jump",
        "clock_skew",
        "machine_silent",
    }

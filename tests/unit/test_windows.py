"""How long windows are, and what time it is in a plant, where clocks are wrong and machines come by turns."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

from detectors.base import Floats
from stream.windows import Elapsed, PlantTime

DAY = 86400.0
YEAR = 365 * DAY

Stretch = tuple[list[str], Floats]


def blocks(machines: int, readings: int, rounds: int) -> Iterator[Stretch]:
    """A reading a second, but of one machine after the other: each delivers so many, and then the next."""
    for i in range(rounds):
        for machine in range(machines):
            yield [f"m{machine}"] * readings, np.arange(i * readings, (i + 1) * readings, dtype=np.float64)


def windows(elapsed: Elapsed, stretches: Iterator[Stretch], length: float) -> list[tuple[set[str], int]]:
    """Of each whole window, its machines and how many readings it has."""
    found: list[tuple[set[str], int]] = []
    names: set[str] = set()
    for machines, times in stretches:
        start = 0
        while start < len(times):
            over = elapsed.until(machines[start:], times[start:], length)
            end = len(times) if over is None else start + over + 1
            names |= set(machines[start:end])
            if over is not None:
                found.append((names, elapsed.readings))
                names, elapsed = set(), elapsed.after()
            start = end
    return found


@pytest.mark.parametrize("machines", [2, 10, 50])
def test_where_machines_deliver_by_turns_windows_come_to_be_those_of_half_of_them(machines: int) -> None:
    found = [len(names) for names, _ in windows(Elapsed(), blocks(machines, 600, 6), 590.0)]
    assert found[0] == 1, "of those heard so far it is one of one"
    assert found == sorted(found)
    assert found[-1] >= machines / 2


def test_a_window_that_knows_who_is_heard_does_not_end_with_the_first_machine() -> None:
    known = PlantTime()
    for machines, times in blocks(10, 600, 3):
        known.add(machines, times)
    first, _ = windows(known.elapsed.after(), blocks(10, 600, 1), 590.0)[0]
    assert len(first) >= 5
    alone, _ = windows(known.elapsed.after(lambda name: name == "m0"), blocks(10, 600, 1), 590.0)[0]
    assert alone == {"m0"}, "those that are not scored are not waited for"


def test_machines_that_stopped_are_waited_for_no_longer_than_three_windows_last() -> None:
    def plant() -> Iterator[Stretch]:
        for second in range(1000):
            names = [f"m{i}" for i in range(10 if second < 300 else 2)]
            yield names, np.full(len(names), float(second))

    sizes = [readings for _, readings in windows(Elapsed(), plant(), 99.0)]
    of_ten, of_two = sizes[:3], sizes[-2:]
    assert [round(size, -2) for size in of_ten + of_two] == [1000, 1000, 1000, 200, 200]
    assert 590 <= max(sizes[3:]) <= 610


@pytest.mark.parametrize("ahead", [YEAR, -YEAR, 7200.0])
@pytest.mark.parametrize("size", [1, 7, 300])
def test_one_clock_of_three_moves_nothing(ahead: float, size: int) -> None:
    plant, n = PlantTime(), 300
    names = ["a", "wrong", "b"] * (n // 3)
    times: Floats = np.arange(0.0, n) * 60.0 + np.where(np.arange(n) % 3 == 1, ahead, 0.0)
    seen = []
    for start in range(0, n, size):
        seen += plant.add(
            names[start : start + size], times[start : start + size], range(min(size, n - start))
        )
        plant = msgspec.convert(msgspec.json.decode(msgspec.json.encode(plant)), PlantTime)
    right = np.arange(n) * 60.0
    assert np.abs(np.array(seen) - right)[3:].max() <= 180.0


def test_of_one_machine_it_is_its_last_time() -> None:
    plant = PlantTime()
    assert plant.now is None
    assert plant.add(["a"] * 3, np.array([10.0, 20.0, 15.0]), [0, 1, 2]) == [10.0, 20.0, 15.0]
    plant.add(["a"] * 3, np.array([2 * DAY, 2 * DAY + 1, 2 * DAY + 2]))
    assert plant.now == 2 * DAY + 2


def test_a_clock_that_was_ahead_for_a_moment_is_forgotten() -> None:
    plant = PlantTime()
    plant.add(["a"], np.array([YEAR]))
    plant.add(["a"] * 96, np.arange(0.0, 96.0) * 3600.0)
    assert plant.now == 95 * 3600.0


def test_time_goes_on_where_most_machines_stopped() -> None:
    plant = PlantTime()
    plant.add([f"m{i}" for i in range(10)] * 10, np.repeat(np.arange(10) * 3600.0, 10))
    hours: Floats = np.repeat(np.arange(10, 24 * 6) * 3600.0, 4)
    plant.add(["m0", "m1", "m2", "m3"] * (len(hours) // 4), hours)
    assert plant.now == hours[-1]


def test_time_goes_on_where_each_name_is_heard_once() -> None:
    plant, n = PlantTime(), 60_000
    plant.add([f"part-{i}" for i in range(n)], np.arange(0.0, n) * 60.0)
    assert plant.now is not None
    assert n * 60.0 - plant.now < 10_000 * 60.0


def test_how_readings_are_cut_changes_nothing() -> None:
    rng = np.random.default_rng(11)
    n = 30_000
    names = [f"m{i}" for i in rng.integers(0, 100, n)]
    times: Floats = np.cumsum(rng.exponential(10.0, n)) + rng.normal(0, 3000.0, n)
    whole, cut, rows = PlantTime(), PlantTime(), [5, 700, 29_999]
    told = whole.add(names, times, rows)
    found, start = [], 0
    for end in [*sorted(rng.integers(0, n, 50).tolist()), n]:
        inside = [row - start for row in rows if start <= row < end]
        found += cut.add(names[start:end], times[start:end], inside)
        start = end
    assert found == told
    assert msgspec.json.encode(whole) == msgspec.json.encode(cut)
    assert len(whole.elapsed.machines) + len(whole.elapsed.waited) <= 64

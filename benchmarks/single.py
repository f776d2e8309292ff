"""What `detectors: auto` does with one sensor: faults within its usual range, and false alerts.

Run it: `python -m benchmarks.single [KIND ...]` (some minutes). Generated sensors, ten seeds: 8,000 readings in which
every alert from the 1,000th on is false, then a fault that no value of its own gives away. Prints a Markdown table:
false alerts in all 70,000 readings, then how many of ten faults opened an alert while they lasted, and the median
delay in readings.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from detectors.base import Floats
from detectors.kernels import floats
from stream.alerts import PROCESS
from stream.backtest import backtest, fresh_scorer
from stream.histories import History
from stream.topology import Sensor, Source, Topology

__all__ = ["SERIES", "Series", "alerts"]

START, NORMAL, SETTLED = 1_700_006_400.0, 8000, 1000
"""A Wednesday, 00:00 UTC; readings before the fault; those of them that are not judged."""
SEEDS = range(100, 110)

Rng = np.random.Generator
Values = Callable[[Rng, Floats], Floats]


class Series(NamedTuple):
    """A healthy sensor by epoch seconds (n,), seconds between readings, and how long the fault lasts in readings. It
    begins at so many seconds of the day, the first such after `NORMAL` readings, and changes the values (k,)."""

    healthy: Values
    every: float
    fault: Values
    lasts: int
    at: float = 12 * 3600.0


def smooth(rng: Rng, n: int, memory: float = 0.9) -> Floats:
    """Autoregressive readings of sigma 1."""
    found: Floats = rng.normal(size=n)
    for i in range(1, n):
        found[i] = memory * found[i - 1] + (1.0 - memory**2) ** 0.5 * found[i]
    return found


def _hours(times: Floats) -> Floats:
    return np.asarray(times / 3600.0 % 24.0)


def _day(rng: Rng, times: Floats) -> Floats:
    return -5.0 * np.cos(2 * np.pi * _hours(times) / 24.0) + smooth(rng, len(times))


def _shifts(rng: Rng, times: Floats) -> Floats:
    """On from 6 to 18 o'clock, Monday to Friday."""
    weekday = (times // 86400.0 + 3) % 7
    on = (_hours(times) >= 6) & (_hours(times) < 18) & (weekday < 5)
    return np.asarray(10.0 * on + 0.5 * smooth(rng, len(times)))


def _counts(rng: Rng, times: Floats) -> Floats:
    return rng.poisson(3.0, len(times)).astype(np.float64)


def _daily_counts(rng: Rng, times: Floats) -> Floats:
    rate = 8.0 - 7.0 * np.cos(2 * np.pi * _hours(times) / 24.0)
    return rng.poisson(rate).astype(np.float64)


def _stages(rng: Rng, times: Floats) -> Floats:
    """Stages of a process, 0 to 4, each for about ten readings."""
    stage, found = 2, np.empty(len(times))
    for i in range(len(times)):
        if rng.random() < 0.1:
            stage = int(np.clip(stage + rng.choice([-1, 1]), 0, 4))
        found[i] = stage
    return found


SERIES: Mapping[str, Series] = {
    "noise, 1.5 sigmas higher": Series(lambda r, t: r.normal(size=len(t)), 300.0, lambda r, v: v + 1.5, 200),
    "memory, 2 sigmas higher": Series(lambda r, t: smooth(r, len(t)), 300.0, lambda r, v: v + 2.0, 200),
    "memory, stands still": Series(lambda r, t: smooth(r, len(t)), 300.0, lambda r, v: 0 * v + v[0], 144),
    "day, night's level at noon": Series(_day, 300.0, lambda r, v: -5.0 + smooth(r, len(v)), 36, 10.5 * 3600),
    "day, each hour": Series(_day, 3600.0, lambda r, v: -5.0 + smooth(r, len(v)), 6, 10.0 * 3600),
    "day, stands still": Series(_day, 300.0, lambda r, v: 0 * v + v[0], 144, 18 * 3600.0),
    "shifts, does not start": Series(_shifts, 600.0, lambda r, v: 0.5 * smooth(r, len(v)), 24, 6 * 3600.0),
    "counts, twice as many": Series(_counts, 300.0, lambda r, v: v + _counts(r, v), 100),
    "counts, none": Series(_counts, 300.0, lambda r, v: 0 * v, 60),
    "counts by day, at night as by day": Series(
        _daily_counts, 300.0, lambda r, v: r.poisson(12.0, len(v)).astype(float), 36, 86400 - 5400.0
    ),
    "stages, stays in one": Series(_stages, 300.0, lambda r, v: 0 * v + 2.0, 200),
    "day each second, stands still": Series(
        lambda r, t: -5.0 * np.cos(t / 10.0) + 0.3 * r.normal(size=len(t)), 1.0, lambda r, v: 0 * v + v[0], 100, 0.0
    ),
}  # fmt: skip
"""By name."""


def alerts(series: Series, seed: int) -> tuple[int, list[int]]:
    """Where its fault begins, and the readings at which `detectors: auto`, nothing else stated, opened an alert."""
    rng = np.random.default_rng(seed)
    phase = (START + series.every * NORMAL) % 86400.0
    at = NORMAL + int(((series.at - phase) % 86400.0) // series.every) if series.every > 1 else NORMAL
    times = floats(START + series.every * np.arange(at + series.lasts))
    values = floats(series.healthy(rng, times))
    values[at:] = series.fault(rng, values[at:])
    source = Source(sensors=(Sensor("value"),))
    scorer = fresh_scorer(Topology(name="t", source=source, detectors="auto"))  # type: ignore[arg-type]
    stamps = pd.Series(pd.to_datetime((times * 1e9).astype("int64")).astype(str))
    found = backtest(scorer, History("m", stamps, times, floats(values[:, None])))
    return at, [
        alert.position.offset for alert in found.alerts if alert.event == "opened" and alert.type == PROCESS
    ]


def main() -> None:
    """Print the table."""
    print("| series | false | found, after |")
    print("|---|---|---|")
    for name in sys.argv[1:] or SERIES:
        false, delays = 0, []
        for seed in SEEDS:
            at, opened = alerts(SERIES[name], seed)
            false += sum(SETTLED <= offset < at for offset in opened)
            delays += [offset - at for offset in opened if offset >= at][:1]
        found = f"{len(delays)}, {np.median(delays):.0f}" if delays else "0"
        print(f"| {name} | {false} | {found} |", flush=True)


if __name__ == "__main__":
    main()

"""What `detectors: auto` does with several sensors: lasting and short faults of one of them, and false alerts.

Run it: `python -m benchmarks.several` (two minutes). Three generated sensors, a reading each five minutes, ten seeds.
Normal readings: 10,000 after the 400 that `auto` looks at. A fault is added to the second sensor from reading 4,000
on, in its standard deviations. Prints a Markdown table: false alerts in all 100,000 normal readings, then for each
fault how many of ten opened an alert while it lasted, and the median reading of the fault at which they did.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from detectors.base import Floats
from detectors.kernels import floats
from stream.backtest import backtest, fresh_scorer
from stream.histories import History
from stream.topology import Sensor, Source, Topology

__all__ = ["FAULTS", "KINDS", "Told", "plant", "told"]

KINDS = ("noise", "memory", "day", "wander", "switched", "switched at random", "set points")
"""Independent readings; AR(1) of 0.9; a sine of 288 readings; one random walk that all follow, less its mean of 300;
on and off by turns of 60 readings; the same by chance; a level for 1,500 readings, then another."""
FAULTS = ((3.0, 1500), (6.0, 1500), (6.0, 60), (12.0, 20), (12.0, 3))
"""Sigmas, readings."""
STEP = 300.0
_SEEDS = range(100, 110)
_AT, _NORMAL = 4000, 10_400


class Told(NamedTuple):
    """Offsets of the readings that opened an alert, and whether one is open (n,)."""

    alerts: list[int]
    open: NDArray[np.bool_]


def plant(kind: str, n: int, seed: int) -> Floats:
    """Three sensors (n, 3) that are healthy."""
    rng = np.random.default_rng(seed)
    noise = floats(rng.normal(size=(n, 3)))
    if kind == "memory":
        for i in range(1, n):
            noise[i] += 0.9 * noise[i - 1]
        return noise
    if kind == "day":
        turns = (np.arange(n)[:, np.newaxis] - [0, 20, 40]) * (2.0 * np.pi / 288)
        return floats(10.0 * np.sin(turns) + 0.5 * noise)
    if kind == "wander":
        walk = pd.Series(np.cumsum(rng.normal(size=n)))
        return floats(np.outer(walk - walk.rolling(300, 1).mean(), [1.0, -2.0, 0.5]) + 0.3 * noise)
    if kind.startswith("switched"):
        turn = np.arange(n) // 60
        on = turn % 2 if kind == "switched" else rng.integers(0, 2, turn[-1] + 1)[turn]
        return floats(np.c_[20.0 * on, 5.0 * on, np.full(n, 20.0)] + noise * [0.5, 0.1, 0.3])
    if kind == "set points":
        level = np.repeat(rng.normal(0.0, 5.0, n // 1500 + 1), 1500)[:n]
        return floats(np.c_[level, 2.0 * level, np.full(n, 20.0)] + noise * [1.0, 1.0, 0.3])
    return noise


def told(values: Floats) -> Told:
    """What `detectors: auto`, nothing else stated, makes of the readings (n, 3) of one machine."""
    source = Source(sensors=tuple(Sensor(name) for name in "abc"))
    scorer = fresh_scorer(Topology(name="t", source=source, detectors="auto"))  # type: ignore[arg-type]
    times = np.arange(float(len(values))) * STEP
    stamps = pd.Series(pd.to_datetime((times * 1e9).astype("int64")).astype(str))
    found = backtest(scorer, History("m", stamps, times, values))
    return Told([alert.position.offset for alert in found.alerts if alert.event == "opened"], found.open)


def _found(kind: str, sigmas: float, lasts: int) -> str:
    """How many of ten, and the median delay."""
    delays = []
    for seed in _SEEDS:
        values = plant(kind, _AT + lasts, seed)
        values[_AT:, 1] += sigmas * values[:_AT, 1].std()
        opened = np.flatnonzero(told(values).open[_AT:])
        delays += opened[:1].tolist()
    return f"{len(delays)}, {np.median(delays):.0f}" if delays else "0"


def main() -> None:
    """Print the table."""
    print("| series | false |" + "".join(f" {s:.0f} sigmas, {lasts} |" for s, lasts in FAULTS))
    print("|---|---|" + "---|" * len(FAULTS))
    for kind in KINDS:
        false = sum(len(told(plant(kind, _NORMAL, seed)).alerts) for seed in _SEEDS)
        print(f"| {kind} | {false} |" + "".join(f" {_found(kind, *fault)} |" for fault in FAULTS), flush=True)


if __name__ == "__main__":
    main()

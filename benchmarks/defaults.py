"""What every online kind does at its defaults on one plain sensor: false alarms, and whether plain faults are found.

Run it: `python -m benchmarks.defaults [KIND ...]` (some minutes for all). Series are generated, a reading each five
minutes: 2,000 to learn from, 10,000 in which every alert is false, then three spikes of 8 sigmas and three shifts by
4 sigmas of 50 readings, 500 readings apart. Prints a Markdown table: false alarms, spikes found, shifts found.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from detectors import registry
from detectors.base import Floats
from stream.arrivals import UNNUMBERED
from stream.backtest import fresh_scorer
from stream.readings import Batch
from stream.topology import Source, Topology

__all__ = ["SERIES", "Outcome", "kinds", "outcome"]

LEARN, QUIET, APART, FAULTS = 2000, 10_000, 500, 3
_N = LEARN + QUIET + (2 * FAULTS + 1) * APART
_LASTS = 50
_START, _EVERY = 1_700_000_000.0, 300.0

Rng = np.random.Generator


class Outcome(NamedTuple):
    """Alerts in 10,000 normal readings, and how many of three spikes and of three shifts opened one."""

    false_alarms: int
    spikes: int
    shifts: int


def _smooth(rng: Rng) -> Floats:
    found: Floats = rng.normal(size=_N)
    for i in range(1, _N):
        found[i] = 0.9 * found[i - 1] + 0.19**0.5 * found[i]
    return found


def _daily(rng: Rng) -> Floats:
    return 3.0 * np.sin(2 * np.pi * np.arange(_N) / 288) + rng.normal(size=_N)


def _steps(rng: Rng) -> Floats:
    """A set point, moved by one about every thousand readings."""
    return np.cumsum(np.where(rng.random(_N) < 1e-3, rng.choice([-1.0, 1.0], _N), 0.0))


def _discrete(rng: Rng) -> Floats:
    """Stages of a process, 0 to 4, each for about ten readings."""
    stage, found = 2, np.empty(_N)
    for i in range(_N):
        if rng.random() < 0.1:
            stage = int(np.clip(stage + rng.choice([-1, 1]), 0, 4))
        found[i] = stage
    return found


SERIES: Mapping[str, Callable[[Rng], Floats]] = {
    "noise": lambda rng: rng.normal(size=_N),
    "AR(1) 0.9": _smooth,
    "day + noise": _daily,
    "rare steps": _steps,
    "stages": _discrete,
}
"""Series by what they are like; sigma is 1."""


def kinds() -> list[str]:
    """The online kinds, but those of other libraries."""
    return [kind for kind in registry.ONLINE if kind not in ("river", "pyod")]


def outcome(kind: str, series: str, *, seed: int = 0) -> Outcome:
    """What a kind at its defaults, with the alert rule that goes with it, does on a series."""
    values = 50.0 + SERIES[series](np.random.default_rng(seed))
    spikes = [LEARN + QUIET + APART * i for i in range(1, FAULTS + 1)]
    shifts = [spikes[-1] + APART * i for i in range(1, FAULTS + 1)]
    values[spikes] += 8.0
    for start in shifts:
        values[start : start + _LASTS] += 4.0
    detectors = registry.ONLINE[kind]() if kind != "auto" else None
    topology = Topology(
        name="t",
        source=Source(sensors=("value",)),  # type: ignore[arg-type]
        detectors="auto" if detectors is None else {kind: detectors},  # type: ignore[arg-type]
        health=None,
    )
    scorer = fresh_scorer(topology)
    scorer.admit(["m"], {})
    none, rows = np.full(_N, UNNUMBERED), np.arange(_N)
    times = np.asarray(_START + _EVERY * rows, np.float64)
    opened = []
    for part in np.array_split(rows, 8):
        batch = Batch(
            ["m"] * len(part),
            times[part],
            values[part, None],
            np.arange(len(part)),
            np.zeros(len(part), np.int64),
            none[part],
        )
        scored = scorer.process(batch, part)
        opened += [alert.position.offset for alert in scored.alerts if alert.event == "opened"]
    at = np.array(opened, np.int64)
    return Outcome(
        int(((at >= LEARN) & (at < LEARN + QUIET)).sum()),
        sum(bool(np.isin(at, [start, start + 1, start + 2]).any()) for start in spikes),
        sum(bool(((at >= start) & (at < start + _LASTS)).any()) for start in shifts),
    )


def main() -> None:
    """Print the table."""
    print("| kind |" + "".join(f" {name} |" for name in SERIES))
    print("|---|" + "---|" * len(SERIES))
    for kind in sys.argv[1:] or kinds():
        cells = [outcome(kind, series) for series in SERIES]
        told = "".join(f" {cell.false_alarms}, {cell.spikes}/{cell.shifts} |" for cell in cells)
        print(f"| `{kind}` |{told}", flush=True)


if __name__ == "__main__":
    main()

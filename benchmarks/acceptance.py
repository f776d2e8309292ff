"""How long an alert lasts once a new regime is accepted: readings from its opening to its close, by kind.

Run it: `python -m benchmarks.acceptance` (some ten seconds). Two generated sensors of independent readings, one a
minute; one of them shifts for good, by 10 or by 30 of its sigmas, and `accept_after` is an hour, so 60 readings.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from detectors.registry import ONLINE
from stream.backtest import backtest, fresh_scorer
from stream.histories import History
from stream.rules import Learning
from stream.topology import Sensor, Source, Topology

__all__ = ["lasted"]

KINDS = ("adaptive_z", "robust_z", "mahalanobis", "knn", "left_matrix_profile", "cusum", "mewma", "mcusum")
BEFORE, READINGS = 3000, 12_000


def lasted(kind: str, sigmas: float, *, seed: int = 1) -> int | None:
    """Readings that the longest alert after the shift was open; None where none opened."""
    topology = Topology(
        name="acceptance",
        source=Source(sensors=(Sensor("a"), Sensor("b"))),
        detectors={"shift": ONLINE[kind]()},
        learning=Learning(accept_after=3600.0),
        health=None,
    )
    values = 50.0 + np.random.default_rng(seed).normal(size=(READINGS, 2))
    values[BEFORE:, 0] += sigmas
    times = np.asarray(1.7e9 + 60.0 * np.arange(READINGS), np.float64)
    outcome = backtest(fresh_scorer(topology), History("m", pd.Series(times.astype(str)), times, values))
    edges = np.flatnonzero(np.diff(np.concatenate(([False], outcome.open[BEFORE:], [False])).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max()) if len(edges) else None


def main() -> None:
    """Print the table."""
    print("| kind | 10 sigmas | 30 sigmas |\n|---|---|---|")
    for kind in KINDS:
        found = [lasted(kind, sigmas) for sigmas in (10.0, 30.0)]
        print(f"| {kind} | " + " | ".join("-" if n is None else f"{n:,}" for n in found) + " |", flush=True)


if __name__ == "__main__":
    main()

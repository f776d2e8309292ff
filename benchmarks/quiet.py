"""False alarms where nothing is wrong: SKAB's anomaly-free run, cut into pieces as long as its runs with faults.

    python -m benchmarks.quiet --shared ../shared

Each piece begins with a fresh state; as in SKAB's runs its first 400 readings teach and are not counted. The pieces
begin at even distances, so that they overlap. `make accuracy` prints it too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from stream.backtest import backtest, fresh_scorer
from stream.config import load
from stream.histories import History, read_history
from stream.topology import Topology

__all__ = ["ROOT", "quiet"]

ROOT = Path(__file__).resolve().parents[1]
PIECES = 16
LENGTH = 1145
"""Readings of a run of SKAB with a fault: the median of the valve1 runs, which have 1,075 to 1,154."""
TAUGHT = 400


def main() -> None:
    """Print the line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder with data/")
    parser.add_argument("--length", type=int, default=LENGTH, help="readings in a piece")
    options = parser.parse_args()
    if not (path := run_of(options.shared)).is_file():
        parser.error(f"--shared: {path} is missing")
    try:
        print(quiet(load(ROOT / "topologies" / "skab.yaml"), path, options.length))
    except ValueError as error:
        parser.error(f"--length: {error}")


def run_of(shared: Path) -> Path:
    """The file of the anomaly-free run."""
    return shared / "data" / "skab" / "anomaly-free" / "anomaly-free.csv"


def quiet(topology: Topology, path: Path, length: int = LENGTH) -> str:
    """One line: the share of readings that alarm, and false episodes a piece. Raises ValueError on a length that
    leaves nothing to count, or more than there is."""
    whole = read_history(path, topology)
    if not TAUGHT < length <= len(whole.times):
        raise ValueError(f"{length} readings, from {TAUGHT + 1} to {len(whole.times):,} can be")
    alarms, counted, episodes = 0, 0, 0
    for start in np.linspace(0, len(whole.times) - length, PIECES).astype(int).tolist():
        part = slice(start, start + length)
        stamps = whole.timestamps[part].reset_index(drop=True)
        outcome = backtest(
            fresh_scorer(topology), History(whole.machine, stamps, whole.times[part], whole.values[part])
        )
        alarm = np.concatenate(([False], outcome.open[TAUGHT:]))
        alarms, counted = alarms + int(alarm.sum()), counted + len(alarm) - 1
        episodes += int((alarm[1:] & ~alarm[:-1]).sum())
    return (
        f"{topology.name}, anomaly-free run, {len(whole.times):,} readings, {PIECES} pieces of {length:,}, "
        f"the first {TAUGHT} uncounted: {alarms / counted:.1%} of readings alarm, "
        f"{episodes / PIECES:.2f} false episodes a piece"
    )


if __name__ == "__main__":
    main()

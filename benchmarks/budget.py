"""Whether a budget of alerts holds: realised alerts over budgeted ones, for scores of many kinds. A Markdown table.

    python -m benchmarks.budget                                           # calibration evt, all kinds: about a minute
    python -m benchmarks.budget --method conformal --kind normal --kind "t(3)"

Scores are generated; machines that report each minute are
calibrated and judged as in a topology, and counted from reading 2,000 on.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping

import numpy as np

from detectors.base import Floats
from detectors.calibration import Calibration
from detectors.openings import Openings
from stream.alerting import AlertTable, EventKind, Place
from stream.rules import AlertRule

__all__ = ["KINDS", "realised"]

Rng = np.random.Generator


def _smooth(rng: Rng, shape: tuple[int, int], memory: float = 0.9) -> Floats:
    """Autoregressive noise of unit variance."""
    found: Floats = rng.normal(size=shape)
    found[1:] *= math.sqrt(1 - memory**2)
    for i in range(1, shape[0]):
        found[i] += memory * found[i - 1]
    return found


KINDS: Mapping[str, Callable[[Rng, tuple[int, int]], Floats]] = {
    "normal": lambda rng, shape: np.abs(rng.normal(size=shape)),
    "exponential": lambda rng, shape: rng.exponential(1.0, shape),
    "lognormal": lambda rng, shape: rng.lognormal(0.0, 1.0, shape),
    "t(3)": lambda rng, shape: np.abs(rng.standard_t(3, shape)),
    "beta(2, 5)": lambda rng, shape: rng.beta(2, 5, shape),
    "uniform": lambda rng, shape: rng.random(shape),
    "rounded to 0.1": lambda rng, shape: np.abs(rng.normal(size=shape)).round(1),
    "Poisson(3)": lambda rng, shape: rng.poisson(3, shape).astype(np.float64),
    "AR(1) 0.9": lambda rng, shape: np.abs(_smooth(rng, shape)),
    "AR(1) 0.9, exponential": lambda rng, shape: np.exp(_smooth(rng, shape)),
}
"""Scores (n, machines) by what they are like."""
RULES = {"1": AlertRule(), "3 of 5": AlertRule(hold=3, within=5), "moments": AlertRule(close_after=0)}
BUDGETS = {"1 in 300": 1 / 300, "1 in 1,000": 1e-3, "1 in 10,000": 1e-4}


def realised(
    kind: str,
    rule: AlertRule,
    rate: float,
    *,
    calibration: Calibration = Calibration(),  # noqa: B008  # frozen
    readings: int = 60_000,
    machines: int = 4,
    seed: int = 0,
) -> float:
    """Alerts that opened over those that the budget allows, from reading 2,000 of each machine on."""
    scores = KINDS[kind](np.random.default_rng(seed), (readings, machines)).ravel()
    slots = np.tile(np.arange(machines), readings)
    n = np.arange(len(slots)) // machines
    times = np.asarray(60.0 * n, np.float64)
    surprise = calibration.build().score_learn(slots, scores)
    wanted = np.full(len(slots), -np.log10(rate))
    limits = Openings(rule.openings).thresholds(slots, surprise, times, wanted)
    place = Place(n, np.zeros_like(n), n, np.zeros(len(n), np.bool_))
    events = AlertTable(rule).decide(limits, slots, times, surprise, place)
    opened = sum(event.kind is EventKind.OPENED and int(n[event.index]) >= 2000 for event in events)
    return opened / (rate * machines * (readings - 2000))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", choices=["evt", "conformal"], default="evt", help="of the calibration")
    parser.add_argument(
        "--kind", action="append", choices=list(KINDS), help="only these; all where none is named"
    )
    options = parser.parse_args()
    calibration = Calibration(method=options.method)
    print("| scores | rule |" + "".join(f" {name} |" for name in BUDGETS))
    print("|---|---|" + "---|" * len(BUDGETS))
    for kind in options.kind or KINDS:
        for name, rule in RULES.items():
            found = [
                realised(
                    kind, rule, rate, calibration=calibration, readings=200_000 if rate < 3e-4 else 60_000
                )
                for rate in BUDGETS.values()
            ]
            print(f"| {kind} | {name} |" + "".join(f" {ratio:.2f} |" for ratio in found), flush=True)


if __name__ == "__main__":
    main()

"""How good a backtest was where labels are known, and how far two of them agree: as rows of tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from detectors import quality
from detectors.base import Floats, Mask
from stream.backtest import Outcome
from stream.histories import History

__all__ = ["Agreement", "Judgement", "agreement_row", "quality_row"]


@dataclass(slots=True)
class Judgement:
    """Gathers what was found in histories with labels, machine by machine."""

    times: list[Floats] = field(default_factory=list)
    labels: list[Mask] = field(default_factory=list)
    open: list[Mask] = field(default_factory=list)
    scores: list[Floats] = field(default_factory=list)

    def add(self, history: History, outcome: Outcome, labels: Mask, warmup: int = 0) -> None:
        """A history; the first `warmup` rows of each machine are not judged, nor is what was not scored."""
        machines = np.array(history.names)
        for machine in dict.fromkeys(machines.tolist()):
            rows = np.flatnonzero((machines == machine) & outcome.scored)[warmup:]
            if len(rows):
                self.times.append(history.times[rows])
                self.labels.append(labels[rows])
                self.open.append(outcome.open[rows])
                self.scores.append(outcome.scores[rows])

    def quality(self) -> quality.EventQuality:
        """By events: an alert counts where it begins."""
        keys = [np.full(len(times), i) for i, times in enumerate(self.times)]
        columns = (np.concatenate(column) for column in (self.times, self.labels, self.open, keys))
        return quality.event_quality(*columns)

    def vus_pr(self) -> float:
        """Mean over the machines that have events; NaN where none has."""
        pairs = zip(self.labels, self.scores, strict=True)
        found = [quality.vus_pr(labels, scores) for labels, scores in pairs if labels.any()]
        return float(np.mean(found)) if found else float("nan")


@dataclass(slots=True)
class Agreement:
    """How far a second outcome agrees with a first, over histories."""

    rows: int = 0
    same: int = 0
    """Rows at which both have an alert open, or neither."""
    both: int = 0
    either: int = 0
    episodes: int = 0
    """Alerts of the second."""
    shared: int = 0
    """Those of them that overlap one of the first."""
    ranks: list[float] = field(default_factory=list)
    """Rank correlation of the scores, by history."""

    def add(self, history: History, first: Outcome, second: Outcome) -> None:
        """A history that both were run over."""
        machines = np.unique(history.names, return_inverse=True)[1]
        judged = first.scored & second.scored
        self.rows += int(judged.sum())
        self.same += int((first.open == second.open)[judged].sum())
        self.both += int((first.open & second.open)[judged].sum())
        self.either += int((first.open | second.open)[judged].sum())
        for machine in range(int(machines.max()) + 1 if len(machines) else 0):
            rows = np.flatnonzero((machines == machine) & judged)
            for start, end in quality.events(second.open[rows]):
                self.episodes += 1
                self.shared += bool(first.open[rows[start:end]].any())
        one, other = _ranks(first.scores[judged]), _ranks(second.scores[judged])
        if len(one) > 1 and one.std() > 0 and other.std() > 0:
            self.ranks.append(float(np.corrcoef(one, other)[0, 1]))


def quality_row(name: str, judgement: Judgement) -> Mapping[str, str]:
    """What a table shows of a backtest's quality."""
    found = judgement.quality()
    return {
        "run": name,
        "events found": f"{found.found} of {found.events}",
        "recall": _number(found.recall),
        "precision": _number(found.precision),
        "F1": _number(found.f1),
        "false alarms": str(found.false_alarms),
        "false alarms/day": _number(found.false_alarms_per_day),
        "median delay": _duration(found.median_delay),
        "VUS-PR": _number(judgement.vus_pr()),
    }


def agreement_row(name: str, reference: str, agreement: Agreement) -> Mapping[str, str]:
    """What a table shows of two backtests' agreement."""
    return {
        "run": name,
        "beside": reference,
        "rows alike": f"{agreement.same / max(agreement.rows, 1):.2%}",
        "open in both / in either": f"{agreement.both:,} / {agreement.either:,} rows",
        "alerts shared": f"{agreement.shared} of {agreement.episodes}",
        "rank correlation of scores": _number(float(np.mean(agreement.ranks or [np.nan]))),
    }


def _ranks(scores: Floats) -> Floats:
    """Rank of each score, ties in the middle of their place."""
    _, place, size = np.unique(scores, return_inverse=True, return_counts=True)
    return (np.cumsum(size) - (size - 1) / 2)[place]


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}" if value < 100 else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    if np.isnan(seconds):
        return "-"
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"

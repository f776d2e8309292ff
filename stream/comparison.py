"""One or several candidates over the same histories: what each found, how good it was, how far they agree."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stream.alerts import Alert
from stream.backtest import Outcome, backtest, fresh_scorer, resolved, whole_rows
from stream.candidates import Candidate
from stream.config import dump_yaml
from stream.histories import History
from stream.judging import Agreement, Judgement, agreement_row, quality_row
from stream.kin import too_short
from stream.labels import Labels
from stream.recording import Recording
from stream.references import ModelRef
from stream.report import Section
from stream.scorer import Scored, Scorer
from stream.shelf import Shelf

__all__ = ["Comparison", "Run"]

Progress = Callable[[int], None]
"""Told how many rows were scored since the last time."""
_TOLD = 5
"""Machines of which it is said what was chosen."""


@dataclass(slots=True)
class Run:
    """A candidate with the versions of its models, and what came of it so far."""

    candidate: Candidate
    refs: Mapping[str, ModelRef]
    recording: Recording | None = None
    judgement: Judgement | None = None
    """None until a history has labels."""
    opened: int = 0
    readings: int = 0
    seconds: float = 0.0
    notes: Sequence[str] = ()
    """What to say of the latest history: what was chosen and why, and where it is too short to warm up."""
    truth: list[bool] = field(default_factory=list)
    """Labels by row of the recording."""

    @property
    def rate(self) -> float:
        """Readings a second."""
        return self.readings / self.seconds if self.seconds else 0.0


class Comparison:
    """Runs candidates over history after history. Models are resolved once, at the start. Raises ModelError."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        shelf: Shelf | None = None,
        labels: Labels | None = None,
        *,
        record: bool = False,
    ) -> None:
        self._shelf = shelf
        self._labels = labels
        self.runs = [
            Run(
                candidate,
                resolved(candidate.topology, shelf),
                Recording(candidate.topology.name, candidate.topology.source.names) if record else None,
            )
            for candidate in candidates
        ]
        self.agreements = [Agreement() for _ in self.runs[1:]]
        self.histories = 0

    def over(
        self, place: Path, history: History, progress: Progress = lambda rows: None
    ) -> Iterator[tuple[Run, Outcome, list[Alert]]]:
        """Each candidate's outcome of one more history, and the alerts that opened in it. Raises ModelError."""
        self.histories += 1
        truth, warmup = (history.labels, 0) if self._labels is None else self._labels.of(place, history)
        first: Outcome | None = None
        for run, agreement in zip(self.runs, [None, *self.agreements], strict=True):
            outcome = self._run(run, history, progress)
            if truth is None and self._labels is not None:
                run.notes = [*run.notes, "no labels are known for it"]
            if truth is not None:
                run.judgement = run.judgement or Judgement()
                run.judgement.add(history, outcome, truth, warmup)
            if run.recording is not None:
                known = np.zeros(len(history), np.bool_) if truth is None else truth
                run.truth += known[outcome.scored].tolist()
            if first is not None and agreement is not None:
                agreement.add(history, first, outcome)
            first = first or outcome
            opened = [alert for alert in outcome.alerts if alert.event == "opened"]
            run.opened += len(opened)
            yield run, outcome, opened

    def quality(self) -> list[Mapping[str, str]]:
        """A row for each run, where labels are known."""
        return [
            quality_row(run.candidate.name, run.judgement) for run in self.runs if run.judgement is not None
        ]

    def agreement(self) -> list[Mapping[str, str]]:
        """A row for each run beside the first."""
        reference = self.runs[0].candidate.name
        pairs = zip(self.runs[1:], self.agreements, strict=True)
        return [agreement_row(run.candidate.name, reference, agreement) for run, agreement in pairs]

    def sections(self) -> list[Section]:
        """A part of the report for each run that was recorded."""
        sections = []
        for run in self.runs:
            if run.recording is None:
                continue
            cards = {
                "histories": f"{self.histories:,}",
                "readings": f"{run.readings:,}",
                "alerts opened": f"{run.opened:,}",
                "readings/s": f"{run.rate:,.0f}",
            }
            cards |= {f"model of {name}": f"{ref.name} v{ref.version}" for name, ref in run.refs.items()}
            quality = [] if run.judgement is None else [quality_row(run.candidate.name, run.judgement)]
            topology = run.candidate.topology
            title = topology.name if len(self.runs) == 1 else f"{topology.name}: {run.candidate.name}"
            truth = np.array(run.truth, np.bool_) if run.judgement is not None else None
            sections.append(Section(title, run.recording, truth, quality, (), dump_yaml(topology), cards))
        return sections

    def _run(self, run: Run, history: History, progress: Progress) -> Outcome:
        topology = run.candidate.topology
        if history.order is None or not history.order.narrow:
            topology = whole_rows(topology)

        def observe(scored: Scored) -> None:
            progress(len(scored.batch))
            if run.recording is not None:
                run.recording.add(scored)

        scorer = fresh_scorer(topology, self._shelf, run.refs)
        started = time.perf_counter()
        outcome = backtest(scorer, history, observe)
        run.seconds += time.perf_counter() - started
        run.readings += len(history)
        run.notes = list(_notes(scorer, history))
        return outcome


def _notes(scorer: Scorer, history: History) -> Iterator[str]:
    for name, machines in scorer.chosen(_TOLD).items():
        for machine, why in machines.items():
            yield f"{name}: {machine}: {why}" if len(set(history.names)) > 1 else f"{name}: {why}"
    if short := too_short(scorer.warmups(), max(Counter(history.names).values(), default=0)):
        yield short

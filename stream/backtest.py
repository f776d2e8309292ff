"""A topology over readings of the past: the engine that runs live, with a fresh state; scores as CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from detectors.base import Floats, Mask
from stream.alerts import Alert
from stream.arrivals import UNNUMBERED
from stream.errors import ConfigError, Problem
from stream.histories import History, Order
from stream.readings import Batch
from stream.recipes import online_info
from stream.references import ModelRef
from stream.rules import COMBINED
from stream.scorer import Scored, Scorer
from stream.shelf import Shelf, info_of
from stream.standing import Standing
from stream.topology import RegistryModel, Topology
from stream.trial import build_online

__all__ = ["Outcome", "backtest", "fresh_scorer", "resolved", "whole_rows", "write_scores"]

_BATCH = 4096
"""Rows given to the engine at once: their number changes nothing but the speed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the topology found, row by row (n,): the score that decides and its threshold, whether an alert about what
    is measured is open, whether one opens or closes, and whether the row was scored (not dropped as a duplicate,
    say); and all alert events, those of sick sensors, too."""

    scores: Floats
    thresholds: Floats
    open: Mask
    changes: Mask
    alerts: list[Alert]
    scored: Mask


def backtest(
    scorer: Scorer, history: History, observe: Callable[[Scored], None] = lambda scored: None
) -> Outcome:
    """Give a fresh scorer a history's readings in order, as a worker would. `observe` is shown every batch."""
    n = len(history)
    found = Outcome(
        np.zeros(n),
        np.full(n, np.inf),
        np.zeros(n, np.bool_),
        np.zeros(n, np.bool_),
        [],
        np.zeros(n, np.bool_),
    )
    names, order = history.names, history.order or _one_by_one(n)
    standing = Standing(scorer.open_alerts())
    scorer.admit(list(dict.fromkeys(names)), {})
    for rows in _slices(order.messages):
        if history.refused is not None:
            rows = rows[~history.refused[rows]]
        if not len(rows):
            continue
        batch = _batch(history, order, names, rows)
        replayed = set(batch.messages[order.replayed[rows]].tolist())
        scored = scorer.process(batch, order.offsets[rows], replayed=replayed)
        at = rows[_places(batch, scored.batch)]
        found.scores[at], found.thresholds[at] = _deciding(scored.scores, scored.thresholds)
        stand = standing.follow(scored)
        found.open[at] = np.logical_or.reduce(list(stand.open.values()))
        found.changes[at] = np.logical_or.reduce(list(stand.changed.values()))
        found.scored[at] = True
        found.alerts.extend(scored.alerts)
        observe(scored)
    return found


def resolved(topology: Topology, shelf: Shelf | None) -> dict[str, ModelRef]:
    """What the topology's trained detectors mean in the registry now. Raises ModelError, ConfigError."""
    refs = {}
    for name, spec in topology.registry_models.items():
        if shelf is None:
            raise ConfigError([Problem(f"detectors.{name}", f"{spec.model} needs a model registry")])
        refs[name] = shelf.resolve(spec.model)
    return refs


def fresh_scorer(
    topology: Topology, shelf: Shelf | None = None, refs: Mapping[str, ModelRef] | None = None
) -> Scorer:
    """A scorer that has seen nothing; its trained models as `refs` says, or as the registry has them now. Raises
    ModelError."""
    refs = resolved(topology, shelf) if refs is None else refs
    online = build_online(topology)
    models = {}
    for name, spec in topology.detectors.items():
        if not isinstance(spec, RegistryModel):
            models[name] = (online[name], online_info(spec))
        elif shelf is not None:
            models[name] = (shelf.model(refs[name], topology.inputs(name)), info_of(refs[name]))
    return Scorer(topology, models)


def whole_rows(topology: Topology) -> Topology:
    """The topology for tables, whose rows are whole: nothing is left to be aligned."""
    source = msgspec.structs.replace(topology.source, layout="auto")
    return msgspec.structs.replace(topology, source=source)


def write_scores(path: Path, history: History, outcome: Outcome) -> None:
    """`timestamp, anomaly_score, alert, changepoint` for every row: `alert` is 1 while an alert is open,
    `changepoint` where one opens or closes; and `machine`, where there are several. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, object] = {"timestamp": history.timestamps}
    if len(set(history.machines)) > 1:
        columns["machine"] = history.machines
    columns |= {
        "anomaly_score": outcome.scores,
        "alert": outcome.open.astype(np.int64),
        "changepoint": outcome.changes.astype(np.int64),
    }
    pd.DataFrame(columns).to_csv(path, index=False)


def _one_by_one(n: int) -> Order:
    zeros = np.zeros(n, np.int64)
    return Order(np.arange(n), zeros, np.full(n, UNNUMBERED), np.arange(n), np.zeros(n, np.bool_))


def _slices(messages: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Row indices, so many at a time; a message is not cut."""
    start, n = 0, len(messages)
    while start < n:
        last = messages[min(start + _BATCH, n) - 1]
        stop = int(np.searchsorted(messages, last, side="right"))
        yield np.arange(start, stop, dtype=np.int64)
        start = stop


def _batch(history: History, order: Order, names: Sequence[str], rows: NDArray[np.int64]) -> Batch:
    messages = np.unique(order.messages[rows], return_inverse=True)[1].astype(np.int64)
    return Batch(
        [names[row] for row in rows.tolist()],
        history.times[rows],
        history.values[rows],
        messages,
        order.rows[rows],
        order.seqs[rows],
    )


def _places(given: Batch, scored: Batch) -> NDArray[np.int64]:
    """Which of the readings given each scored one is; one that was aligned, that which made it leave."""
    first = np.searchsorted(given.messages, scored.messages)
    last = np.searchsorted(given.messages, scored.messages, side="right") - 1
    found: NDArray[np.int64] = np.clip(first + scored.rows - given.rows[first], first, last)
    return found


def _deciding(scores: Mapping[str, Floats], thresholds: Mapping[str, Floats]) -> tuple[Floats, Floats]:
    """One score and threshold a row: what decides, or of several detectors the one nearest to an alert.

    Scores of several are told as multiples of their thresholds."""
    names = [COMBINED] if COMBINED in scores else list(scores)
    if len(names) == 1:
        return np.nan_to_num(scores[names[0]]), thresholds[names[0]]
    ratios = np.array([np.nan_to_num(scores[name]) / np.maximum(thresholds[name], 1e-12) for name in names])
    return ratios.max(axis=0), np.ones(ratios.shape[1])

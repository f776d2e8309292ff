"""A topology over files of the past: the engine that runs live, every file with a fresh state, scores as CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from detectors.base import Floats
from stream.alerts import Alert
from stream.errors import ConfigError, Problem
from stream.readings import Batch
from stream.rules import COMBINED
from stream.scorer import Scored, Scorer, online_info
from stream.shelf import Shelf, info_of
from stream.topology import RegistryModel, Topology
from stream.trial import build_online

__all__ = ["History", "Outcome", "backtest", "files_below", "fresh_scorer", "read_history", "write_scores"]

_BATCH = 4096
"""Rows given to the engine at once: their number changes nothing but the speed."""


@dataclass(frozen=True, slots=True)
class History:
    """Readings of one machine from one file: the file's own `timestamps` (n texts), `times` (n,) epoch seconds,
    `values` (n, n_sensors), NaN where one is missing."""

    machine: str
    timestamps: pd.Series[str]
    times: Floats
    values: Floats


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the topology found, row by row (n,): the score that decides, whether an alert is open, whether one
    opens or closes; and the alert events."""

    scores: Floats
    thresholds: Floats
    open: NDArray[np.bool_]
    changes: NDArray[np.bool_]
    alerts: list[Alert]


def files_below(folder: Path) -> list[Path]:
    """The CSV files in a folder and below, in order; of a file, itself. Raises ConfigError if there are none."""
    found = [folder] if folder.is_file() else sorted(folder.rglob("*.csv"))
    if not found:
        raise ConfigError([Problem(str(folder), "has no .csv file" if folder.is_dir() else "no such folder")])
    return found


def read_history(path: Path, topology: Topology) -> History:
    """Read a CSV file: the first column is the time, every other one a sensor of the topology, in any order.

    What is no finite number is missing. Raises ConfigError on other columns and on times that cannot be read.
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ConfigError([Problem(str(path), f"cannot be read: {error}")]) from error
    stamps, names = frame.iloc[:, 0], topology.source.names
    if missing := [name for name in names if name not in frame.columns[1:]]:
        has = ", ".join(frame.columns[1:]) or "none"
        problem = f"has no column {', '.join(missing)} (columns: {has}); they are the topology's sensors"
        raise ConfigError([Problem(str(path), problem)])
    times = pd.to_datetime(stamps, errors="coerce", utc=True, format="mixed")
    if (odd := np.flatnonzero(times.isna())).size:
        row = int(odd[0])
        raise ConfigError([Problem(f"{path}:{row + 2}", f'"{stamps.iloc[row]}" is not a time')])
    columns = [pd.to_numeric(frame[name], errors="coerce").to_numpy(np.float64) for name in names]
    values = np.column_stack(columns) if len(frame) else np.zeros((0, len(names)))
    values[~np.isfinite(values)] = np.nan
    seconds = times.to_numpy("datetime64[ns]").astype(np.int64) / 1e9
    return History(path.stem, stamps, seconds, values)


def backtest(
    scorer: Scorer, history: History, observe: Callable[[Scored], None] = lambda scored: None
) -> Outcome:
    """Give a fresh scorer a file's readings in order, as a worker would. `observe` is shown every batch."""
    n = len(history.times)
    scores, thresholds = np.zeros(n), np.full(n, np.inf)
    is_open, changes = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    alerts: list[Alert] = []
    standing: set[str] = set()
    scorer.admit([history.machine], {})
    for rows in _slices(n):
        scored = scorer.process(_batch(history, rows), rows)
        at = scored.offsets
        scores[at], thresholds[at] = _deciding(scored.scores, scored.thresholds)
        alerts += scored.alerts
        by_row: dict[int, list[Alert]] = {}
        for alert in scored.alerts:
            by_row.setdefault(alert.position.offset, []).append(alert)
        for row in rows.tolist():
            opened = False
            for alert in by_row.get(row, ()):
                changes[row] |= alert.event != "updated"
                opened |= alert.event == "opened"
                (standing.discard if alert.event == "closed" else standing.add)(alert.id)
            is_open[row] = opened or bool(standing)
        observe(scored)
    return Outcome(scores, thresholds, is_open, changes, alerts)


def fresh_scorer(topology: Topology, shelf: Shelf | None = None) -> Scorer:
    """A scorer that has seen nothing; its trained models as the registry has them now. Raises ModelError."""
    online = build_online(topology)
    models = {}
    for name, spec in topology.detectors.items():
        inputs = topology.inputs(name)
        if isinstance(spec, RegistryModel):
            if shelf is None:
                raise ConfigError([Problem(f"detectors.{name}", f"{spec.model} needs a model registry")])
            ref = shelf.resolve(spec.model)
            models[name] = (shelf.model(ref, inputs), info_of(ref))
        else:
            models[name] = (online[name], online_info(spec))
    return Scorer(topology, models)


def write_scores(path: Path, history: History, outcome: Outcome) -> None:
    """`timestamp, anomaly_score, alert, changepoint` for every row: `alert` is 1 while an alert is open,
    `changepoint` where one opens or closes. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: Mapping[str, object] = {
        "timestamp": history.timestamps,
        "anomaly_score": outcome.scores,
        "alert": outcome.open.astype(np.int64),
        "changepoint": outcome.changes.astype(np.int64),
    }
    pd.DataFrame(columns).to_csv(path, index=False)


def _slices(n: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, n, _BATCH):
        yield np.arange(start, min(start + _BATCH, n), dtype=np.int64)


def _batch(history: History, rows: NDArray[np.int64]) -> Batch:
    count = len(rows)
    unnumbered = np.full(count, -1, dtype=np.int64)
    first = np.zeros(count, dtype=np.int64)
    return Batch(
        [history.machine] * count,
        history.times[rows],
        history.values[rows],
        np.arange(count),
        first,
        unnumbered,
    )


def _deciding(scores: Mapping[str, Floats], thresholds: Mapping[str, Floats]) -> tuple[Floats, Floats]:
    """One score and threshold a row: what decides, or of several detectors the one nearest to an alert.

    Scores of several are told as multiples of their thresholds."""
    names = [COMBINED] if COMBINED in scores else list(scores)
    if len(names) == 1:
        return np.nan_to_num(scores[names[0]]), thresholds[names[0]]
    ratios = np.array([np.nan_to_num(scores[name]) / np.maximum(thresholds[name], 1e-12) for name in names])
    return ratios.max(axis=0), np.ones(ratios.shape[1])

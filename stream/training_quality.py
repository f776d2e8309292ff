"""How good a model is that was just trained, where it is known when something was wrong."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from detectors import registry
from detectors.base import Mask, Weights
from stream.alerts import ModelInfo
from stream.backtest import backtest, whole_rows
from stream.errors import ConfigError, Problem
from stream.histories import History
from stream.judging import Judgement
from stream.labels import Labels
from stream.scorer import Scorer
from stream.tables import Table
from stream.topology import Topology

__all__ = ["labelled", "labelled_quality"]


def labelled(labels: Labels, table: Table) -> tuple[Mask, int]:
    """Which rows of a table are anomalous (n,), and how many at each machine's start are not judged.

    Raises ConfigError where the labels say nothing of it."""
    place = f"{table.name.removesuffix('.csv').removesuffix('.parquet')}.csv"  # as a backtest calls it
    truth, warmup = labels.of(Path(place), _history(table))
    if truth is None:
        remedy = f"says nothing of {place}; name it there, or use start,end"
        raise ConfigError([Problem("--labels", remedy)])
    return truth, warmup


def labelled_quality(
    topology: Topology, detector: str, weights: Weights, table: Table, truth: Mask, warmup: int
) -> dict[str, float]:
    """Metrics of the model as the topology's detector, alone, over all rows of the table: the backtest's, by event.

    What is not defined, such as a precision without alerts, is left out."""
    spec = topology.registry_models[detector]
    alone = msgspec.structs.replace(topology, detectors={detector: spec}, combine=None)
    info = ModelInfo(spec.name, "", "", weights.kind)
    scorer = Scorer(whole_rows(alone), {detector: (registry.load(weights), info)})
    order = np.argsort(table.times, kind="stable")
    columns = [table.sensors.index(name) for name in topology.source.names]
    history = _history(table, order, columns)
    judgement = Judgement()
    judgement.add(history, backtest(scorer, history), truth[order], warmup)
    if not judgement.times:
        return {}
    found = judgement.quality()
    metrics = {
        "events": float(found.events),
        "events_found": float(found.found),
        "recall": found.recall,
        "precision": found.precision,
        "f1": found.f1,
        "false_alarms": float(found.false_alarms),
        "false_alarms_per_day": found.false_alarms_per_day,
        "median_delay_s": found.median_delay,
        "vus_pr": judgement.vus_pr(),
    }
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _history(
    table: Table, rows: NDArray[np.int64] | None = None, columns: list[int] | None = None
) -> History:
    """The table, or these rows and columns of it, as a backtest reads it."""
    taken = np.arange(len(table.times)) if rows is None else rows
    values = table.values[taken] if columns is None else table.values[taken][:, columns]
    machines = [table.machines[i] for i in taken.tolist()]
    return History(table.name, pd.Series(dtype=str), table.times[taken], values, machines)

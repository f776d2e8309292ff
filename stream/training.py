"""Trains a topology's batch detector on a table and registers what was learned."""

from __future__ import annotations

import hashlib

import msgspec
import numpy as np
import pandas as pd

from detectors import registry
from detectors.base import Floats, Weights
from detectors.features import FeatureTable
from stream.errors import ConfigError, Problem
from stream.models import ModelRef, Registry
from stream.tables import Table
from stream.topology import Topology

__all__ = ["train_detector"]

_LONGEST_TAG = 5000
"""Characters that MLflow keeps of a tag."""


def train_detector(
    topology: Topology,
    detector: str,
    table: Table,
    models: Registry,
    *,
    rows: int | None = None,
    alias: str | None,
) -> tuple[ModelRef, Weights]:
    """Fit on the first `rows` rows, register the version, move the alias. Raises ConfigError, ModelError."""
    spec = topology.registry_models[detector]
    if spec.fit is None:
        problem = f'add "fit: {{kind: …}}" to say how it is trained (one of {", ".join(registry.TRAINABLE)})'
        raise ConfigError([Problem(f"{topology.name}: detectors.{detector}", problem)])
    if missing := [name for name in topology.source.names if name not in table.sensors]:
        raise ConfigError([Problem(table.name, f"has no column for the sensors {', '.join(missing)}")])
    data = _inputs(topology, detector, table, rows)
    frame = pd.DataFrame(data, columns=list(topology.inputs(detector)))
    if empty := [str(name) for name in frame if frame[name].isna().all()]:
        raise ConfigError([Problem(table.name, f"has too few rows of a machine for {', '.join(empty)}")])
    try:
        weights = spec.fit.fit(frame)
    except ValueError as error:
        raise ConfigError([Problem(table.name, str(error))]) from error
    scores = registry.load(weights).score_learn(np.zeros(len(data), np.int64), data, table.times[:rows])
    params = {"kind": weights.kind, "rows": len(data), "topology": topology.name, "detector": detector}
    settings = {f"fit.{key}": value for key, value in msgspec.to_builtins(spec.fit).items()}
    metrics = {
        "threshold": weights.threshold,
        "score_median": float(np.median(scores)),
        "score_p99": float(np.quantile(scores, 0.99)),
        "share_above_threshold": float(np.mean(scores >= weights.threshold)),
    }
    tags = {
        "mmlw.data": table.name,
        "mmlw.data_digest": hashlib.sha256(data.tobytes()).hexdigest(),
        "mmlw.data_from": str(pd.to_datetime(table.times[0], unit="s")),
        "mmlw.data_to": str(pd.to_datetime(table.times[len(data) - 1], unit="s")),
    }
    if topology.features:
        tags["mmlw.features"] = msgspec.json.encode(topology.features).decode()[:_LONGEST_TAG]
    example = frame.dropna().head(5)
    ref = models.register(
        spec.name, weights, example=example, params=params | settings, metrics=metrics, tags=tags, alias=alias
    )
    return ref, weights


def _inputs(topology: Topology, detector: str, table: Table, rows: int | None) -> Floats:
    """What the detector will be shown of the first rows, (n, n_inputs): features as they run live, by machine."""
    columns = [table.sensors.index(name) for name in topology.source.names]
    slots = np.unique(table.machines, return_inverse=True)[1].astype(np.int64)[:rows]
    features = FeatureTable(topology.source.names, topology.features)
    wide = features.compute(slots, table.values[:rows, columns], table.times[:rows])
    return np.ascontiguousarray(wide[:, [topology.columns.index(name) for name in topology.inputs(detector)]])

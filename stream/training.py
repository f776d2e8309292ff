"""Trains a topology's batch detector on a table and registers what was learned."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import pandas as pd

from detectors import registry
from detectors.base import Floats, Mask, Slots, Weights
from detectors.features import FeatureTable
from stream.binding import Binding, patterns_of
from stream.errors import ConfigError, ModelNotFound, Problem
from stream.labels import Labels
from stream.models import MARK, ModelRef, Registry
from stream.tables import Table
from stream.topology import RegistryModel, Topology
from stream.training_data import Marked, kept_rows
from stream.training_quality import labelled, labelled_quality

__all__ = ["CHALLENGER", "Choice", "Phase", "Trained", "batch_detector", "train_detector"]

CHALLENGER = "challenger"
"""The alias of a model that was trained and has not proved itself."""
_LONGEST_TAG = 5000
"""Characters that MLflow keeps of a tag."""
_HIGHEST = 0.01
"""Share of the rows, those with the highest scores, whose contributions are shown."""

Phase = Literal["reading", "preparing", "fitting", "scoring", "registering"]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows are trained on: the first so many or the `newest`, from a time on, without what is marked as not to
    be trained on."""

    rows: int | None = None
    newest: bool = False
    since: float | None = None
    marked: Sequence[Marked] = ()


@dataclass(frozen=True, slots=True)
class Trained:
    """A registered version, its weights, how it scored what it was trained on, and the aliases that mean it now."""

    ref: ModelRef
    weights: Weights
    metrics: dict[str, float]
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Shown:
    """What a detector is shown: the machines' slots (n,), inputs (n, n_inputs) and times (n,)."""

    slots: Slots
    values: Floats
    times: Floats


def batch_detector(topology: Topology, name: str | None) -> str:
    """The batch detector of this name, or the only one. Raises ConfigError where that is none, or has no `fit`."""
    models = topology.registry_models
    if name is None and len(models) == 1:
        name = next(iter(models))
    if name is None or name not in models:
        known = ", ".join(models) or "this topology has none"
        raise ConfigError([Problem("detector", f"name one of the topology's batch detectors ({known})")])
    if models[name].fit is None:
        problem = f'add "fit: {{kind: …}}" to say how it is trained (one of {", ".join(registry.TRAINABLE)})'
        raise ConfigError([Problem(f"{topology.name}: detectors.{name}", problem)])
    return name


def train_detector(
    topology: Topology,
    detector: str,
    table: Table,
    models: Registry,
    *,
    rows: int | None = None,
    alias: str | None,
    choice: Choice | None = None,
    told: Callable[[Phase], None] = lambda phase: None,
    mark: str = "",
    labels: Labels | None = None,
) -> Trained:
    """Fit on the first `rows` rows, or as `choice` says; register the version with figures, move the alias.

    Where the alias that the topology names means nothing yet, it is set, too: there is nothing to be challenged.
    By `labels` what was anomalous is left out, and the model's alerts on all rows are judged; the metrics say how.
    `told` is called as each phase begins; by `mark` `Registry.withdraw` finds what was registered.
    Raises ConfigError, ModelError.
    """
    spec = topology.registry_models[batch_detector(topology, detector)]
    assert spec.fit is not None  # noqa: S101 - looked at by batch_detector
    told("preparing")
    truth, warmup = (None, 0) if labels is None else labelled(labels, table)
    shown = _shown(topology, detector, table, choice or Choice(rows), truth)
    frame = pd.DataFrame(shown.values, columns=list(topology.inputs(detector)))
    told("fitting")
    try:
        weights = spec.fit.fit(frame)
    except ValueError as error:
        raise ConfigError([Problem(table.name, str(error))]) from error
    told("scoring")
    metrics, figures = _judged(weights, shown)
    if truth is not None:
        metrics |= labelled_quality(topology, detector, weights, table, truth, warmup)
    told("registering")
    ref = models.register(
        spec.name,
        weights,
        example=frame.dropna().head(5),
        params=_params(topology, detector, weights, shown),
        metrics=metrics,
        tags=_tags(topology, detector, table, shown) | ({MARK: mark} if mark else {}),
        figures=figures,
    )
    wanted = [alias] if alias else []
    if alias is not None and spec.alias != alias and _is_free(spec, models):
        wanted.append(str(spec.alias))
    aliases = tuple(name for name in wanted if models.advance(spec.name, name, ref.version) == ref.version)
    return Trained(ref, weights, metrics, aliases)


def _shown(topology: Topology, detector: str, table: Table, choice: Choice, faulty: Mask | None) -> _Shown:
    """What the detector will be shown of those rows of its machines: features as they run live, by machine. What is
    `faulty`, of all rows (n,), is left out.

    Raises ConfigError where there is too little."""
    if missing := [name for name in topology.source.names if name not in table.sensors]:
        raise ConfigError([Problem(table.name, f"has no column for the sensors {', '.join(missing)}")])
    columns = [table.sensors.index(name) for name in topology.source.names]
    names, slots = np.unique(table.machines, return_inverse=True)
    taken = np.arange(len(slots))
    if machines := topology.registry_models[detector].machines:
        scored = Binding(machines)
        taken = np.flatnonzero(np.array([scored.matches(str(name)) for name in names])[slots])
        if not len(taken):
            problem = f"has no machine that {detector} scores ({', '.join(patterns_of(machines))})"
            raise ConfigError([Problem(table.name, problem)])
    if choice.since is not None:
        taken = taken[table.times[taken] >= choice.since]
    taken = taken[-choice.rows :] if choice.newest and choice.rows else taken[: choice.rows]
    times, slots = table.times[taken], slots[taken].astype(np.int64)
    features = FeatureTable(topology.source.names, topology.features)
    wide = features.compute(slots, table.values[taken][:, columns], times)
    kept = kept_rows([table.machines[i] for i in taken.tolist()], times, choice.marked)
    if faulty is not None:
        kept = kept[~faulty[taken[kept]]]
    if not len(kept):
        raise ConfigError([Problem(table.name, "holds no readings to train on, or all are marked as faults")])
    wide, times, slots = wide[kept], times[kept], slots[kept]
    inputs = topology.inputs(detector)
    values = np.ascontiguousarray(wide[:, [topology.columns.index(name) for name in inputs]])
    if empty := [name for name, column in zip(inputs, values.T, strict=True) if np.isnan(column).all()]:
        raise ConfigError([Problem(table.name, f"has too few rows of a machine for {', '.join(empty)}")])
    return _Shown(slots, values, times)


def _judged(weights: Weights, shown: _Shown) -> tuple[dict[str, float], dict[str, bytes]]:
    """Metrics and figures of a model on the rows it was trained on."""
    from stream.training_figures import training_figures

    model = registry.load(weights)
    scores = model.score_learn(shown.slots, shown.values, shown.times)
    highest = np.flatnonzero(scores >= np.quantile(scores, 1 - _HIGHEST))
    metrics = {
        "rows": float(len(scores)),
        "machines": float(len(np.unique(shown.slots))),
        "missing_share": float(np.isnan(shown.values).mean()),
        "threshold": weights.threshold,
        "score_median": float(np.median(scores)),
        "score_p99": float(np.quantile(scores, 0.99)),
        "score_max": float(scores.max()),
        "share_above_threshold": float(np.mean(scores >= weights.threshold)),
    }
    shares = np.abs(model.contributions(highest).shares).mean(axis=0)
    return metrics, dict(training_figures(weights.sensors, shown.values, scores, weights.threshold, shares))


def _params(topology: Topology, detector: str, weights: Weights, shown: _Shown) -> dict[str, object]:
    plain = msgspec.to_builtins(topology.registry_models[detector].fit)
    settings = {f"fit.{key}": value for key, value in plain.items()}
    named = {"kind": weights.kind, "topology": topology.name, "detector": detector}
    return {**named, "rows": len(shown.values), **settings}


def _tags(topology: Topology, detector: str, table: Table, shown: _Shown) -> dict[str, str]:
    tags = {
        "mmlw.topology": topology.name,
        "mmlw.detector": detector,
        "mmlw.data": table.name[:_LONGEST_TAG],
        "mmlw.data_digest": hashlib.sha256(shown.values.tobytes()).hexdigest(),
        "mmlw.data_from": str(pd.to_datetime(shown.times.min(), unit="s")),
        "mmlw.data_to": str(pd.to_datetime(shown.times.max(), unit="s")),
    }
    if topology.features:
        tags["mmlw.features"] = msgspec.json.encode(topology.features).decode()[:_LONGEST_TAG]
    return tags


def _is_free(spec: RegistryModel, models: Registry) -> bool:
    """Whether the alias that a topology names means no version yet."""
    if spec.alias is not None:
        with contextlib.suppress(ModelNotFound):
            models.resolve(f"models:/{spec.name}@{spec.alias}")
            return False
    return spec.alias is not None

"""One-shot scores: what the topology would make of some readings, on a copy of its state that is thrown away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from detectors.base import Floats
from stream.errors import CommandRefused, ReadingRejected
from stream.readings import Batch, epoch_seconds
from stream.recipes import online_info
from stream.references import ModelRef
from stream.scorer import Scorer
from stream.shelf import Shelf, info_of
from stream.state import Group
from stream.tables import Table
from stream.topology import RegistryModel, Topology
from stream.trial import build_online
from stream.validation import suggest

__all__ = ["MOST_ROWS", "Prediction", "Row", "alone", "batches_of", "copied_scorer", "predict", "rows_of"]

MOST_ROWS = 1000
"""Readings of one request."""
_DEFAULT_MACHINE = "machine-1"
_NOT_COPIED = ("align", "arrivals")
"""State of the way in; readings of a request are whole, and neither late nor duplicate."""


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A reading to score."""

    values: dict[str, float | None]
    """By sensor; one that is not named is missing."""
    machine: str | None = None
    time: str | int | float | None = None
    """RFC 3339 or epoch seconds; now where it is left out."""


class Prediction(msgspec.Struct, frozen=True):
    """What came of one reading, by detector (and of all combined, where they decide together). A detector that does
    not score this machine is not in it."""

    machine: str
    time: float
    known: bool
    """Whether the machine was seen before; else every detector that learns begins with this request."""
    scores: dict[str, float]
    thresholds: dict[str, float]
    anomalous: list[str]
    contributions: dict[str, dict[str, float]]
    """By detector and sensor (or feature): signed shares of the score."""


def rows_of(rows: Sequence[Row], topology: Topology, now: float) -> Batch:
    """Rows as columns, in their order. Raises CommandRefused on what cannot be scored."""
    if not 0 < len(rows) <= MOST_ROWS:
        raise CommandRefused(f'predict needs "rows", from 1 to {MOST_ROWS} of them; there are {len(rows)}')
    names, source = topology.source.names, topology.source
    index = {name: i for i, name in enumerate(names)}
    values, times = np.full((len(rows), len(names)), np.nan), np.full(len(rows), now)
    for i, row in enumerate(rows):
        for name, value in row.values.items():
            if name not in index:
                raise CommandRefused(f'row {i + 1}: "{name}" is not a sensor{suggest(name, names)}')
            values[i, index[name]] = np.nan if value is None else value
        try:
            times[i] = now if row.time is None else epoch_seconds(row.time)
        except ReadingRejected as error:
            raise CommandRefused(f"row {i + 1}: {error.detail}") from None
    values[~np.isfinite(values)] = np.nan
    machines = [row.machine or source.machine or _DEFAULT_MACHINE for row in rows]
    number = np.arange(len(rows))
    return Batch(machines, times, values, number, number * 0, number * 0 - 1)


def batches_of(table: Table, topology: Topology) -> Iterator[Batch]:
    """The rows of a table, as many at a time as one request may have. Its sensors include the topology's."""
    columns = [table.sensors.index(name) for name in topology.source.names]
    for start in range(0, len(table.times), MOST_ROWS):
        rows = slice(start, start + MOST_ROWS)
        machines = table.machines[rows]
        number = np.arange(len(machines))
        values = table.values[rows][:, columns]
        yield Batch(machines, table.times[rows], values, number, number * 0, number * 0 - 1)


def alone(topology: Topology, ref: ModelRef, detector: str | None) -> tuple[Topology, str]:
    """The topology with nothing but the detector that takes this model, and that detector's name.

    Raises CommandRefused where none does."""
    models = topology.registry_models
    fitting = [name for name, spec in models.items() if spec.name == ref.name and detector in (None, name)]
    if not fitting:
        takes = ", ".join(f'"{name}" takes {spec.name}' for name, spec in models.items())
        raise CommandRefused(f'no detector that was asked takes versions of "{ref.name}" ({takes or "none"})')
    name = fitting[0]
    return msgspec.structs.replace(topology, detectors={name: models[name]}, combine=None), name


def copied_scorer(
    topology: Topology, shelf: Shelf | None, refs: Mapping[str, ModelRef], groups: Iterable[Group] = ()
) -> Scorer:
    """A scorer of these very models, with these machines' state. Blocks: call it from a thread. Raises ModelError."""
    online, models = build_online(topology), {}
    for name, spec in topology.detectors.items():
        if not isinstance(spec, RegistryModel):
            models[name] = (online[name], online_info(spec))
        elif shelf is not None:
            models[name] = (shelf.model(refs[name], topology.inputs(name)), info_of(refs[name]))
    whole = msgspec.structs.replace(topology.source, layout="auto")
    scorer = Scorer(msgspec.structs.replace(topology, source=whole), models)
    for machines, components in groups:
        kept = {name: rows for name, rows in components.items() if name not in _NOT_COPIED}
        scorer.admit(machines, kept)
    return scorer


def predict(scorer: Scorer, batch: Batch) -> list[Prediction]:
    """Score readings one after the other, as if they came next; the scorer learns from them as it does live."""
    known = set(scorer.residents.names)
    scorer.admit(scorer.residents.missing(batch.machines), {})
    return [_one(scorer, batch.select(np.array([i])), known) for i in range(len(batch))]


def _one(scorer: Scorer, reading: Batch, known: set[str]) -> Prediction:
    here = np.array([0])
    reading.messages[:] = 0
    scored = scorer.process(reading, here, replayed=(0,))  # so it is neither late nor duplicate
    scores = {name: float(it[0]) for name, it in scored.scores.items() if np.isfinite(it[0])}
    thresholds = {name: float(scored.thresholds[name][0]) for name in scores}
    columns = scorer.columns
    contributions = {
        name: _shares(columns, lane.reasons(here, len(columns)).shares[0])
        for name, lane in scorer.lanes.items()
        if name in scores
    }
    return Prediction(
        reading.machines[0],
        float(reading.times[0]),
        reading.machines[0] in known,
        scores,
        thresholds,
        [name for name in scores if scores[name] >= thresholds[name]],
        contributions,
    )


def _shares(columns: Sequence[str], shares: Floats) -> dict[str, Any]:
    return {name: share for name, share in zip(columns, shares.tolist(), strict=True) if share}

"""What a model is trained on: a table from a file, a capture, a frame in a message, or the topology's own stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from detectors.base import Floats
from stream.align import Aligner
from stream.brokers.base import Broker
from stream.errors import ConfigError, Problem, ReadingRejected
from stream.histories import History, pasts_below, read_past
from stream.instants import parsed, seconds
from stream.readings import LARGEST
from stream.spans import Span, parse_span
from stream.stream_history import read_stream
from stream.tables import Table, read_csv
from stream.topology import Source, Topology

__all__ = [
    "Frame",
    "Marked",
    "StreamRange",
    "TrainingOptions",
    "TrainingSource",
    "columns_table",
    "frame_table",
    "history_table",
    "kept_rows",
    "read_file",
    "stream_table",
    "within",
]

_STEP = 1.0
_START = 1_704_067_200.0
_MICROSECOND = 1e-6

Frame = Mapping[str, list[float | int | str | None]]
"""A data frame as columns: `machine` and `time` where there are any, and the sensors."""


class StreamRange(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"start": "from", "end": "to"}
):
    """A part of a stream, each bound an offset or a time (RFC 3339). None: as far as it goes."""

    start: int | str | None = None
    """The first that is in it."""
    end: int | str | None = None
    """The first that is not."""

    def span(self) -> Span:
        """The same, read. Raises ConfigError."""
        return parse_span("..".join("" if bound is None else str(bound) for bound in (self.start, self.end)))


class TrainingSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a training takes its readings from: exactly one."""

    stream: StreamRange | None = None
    capture: str | None = None
    """A folder or file below the worker's folder of captures, or of its data."""
    frame: Frame | None = None


class TrainingOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much is taken, and how long it may last."""

    rows: int | None = None
    """Only so many rows, the first ones."""
    timeout: float = 3600.0
    """Seconds."""
    newest: bool = False
    """The last `rows`, not the first ones."""
    since: float | None = None
    """Only readings from this time on, in epoch seconds."""


class Marked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A time of a machine, both ends in it, of which somebody said whether it is to be trained on."""

    machine: str
    start: float
    end: float | None
    """None: it lasts."""
    keep: bool


def kept_rows(machines: Sequence[str], times: Floats, marked: Sequence[Marked]) -> NDArray[np.int64]:
    """Which readings (n machines, times (n,)) are trained on: all that nobody marked, and else by the last word.

    >>> kept_rows(["a", "b"], np.array([1.0, 1.0]), [Marked("a", 0.0, None, False)]).tolist()
    [1]
    """
    keep = np.ones(len(times), np.bool_)
    rows: dict[str, NDArray[np.int64]] = {}
    if marked:
        names, places = np.unique(np.array(machines, dtype=np.str_), return_inverse=True)
        rows = {str(name): np.flatnonzero(places == i) for i, name in enumerate(names)}
    for mark in marked:
        own = rows.get(mark.machine, np.zeros(0, np.int64))
        last = np.inf if mark.end is None else mark.end + _MICROSECOND  # alerts tell times in microseconds
        inside = (times[own] >= mark.start - _MICROSECOND) & (times[own] <= last)
        keep[own[inside]] = mark.keep
    return np.flatnonzero(keep)


def within(path: str, folders: Sequence[Path]) -> Path:
    """A path that somebody else named, in one of these folders. Raises ConfigError on any other place."""
    for folder in folders:
        found = (folder / path).resolve()
        if found.is_relative_to(folder.resolve()) and found.exists():
            return found
    where = " or ".join(map(str, folders))
    raise ConfigError([Problem("capture", f'"{path}" is not in {where}; name a file or folder that is')])


def read_file(path: Path, topology: Topology) -> Table:
    """The readings of a CSV or Parquet file, or of all that are in a folder (a capture). Raises ConfigError."""
    if path.is_file() and path.suffix != ".parquet":
        table = read_csv(path)
        return replace(table, values=_possible(topology.source, table.sensors, table.values))
    return _table(path.name, topology, [read_past(past, topology) for past in pasts_below(path)])


def frame_table(name: str, frame: pd.DataFrame, topology: Topology) -> Table:
    """Rows of sensors as a table, by time where there is one; cells that are no numbers are missing.

    Raises ConfigError."""
    sensors = topology.source.names
    if missing := [sensor for sensor in sensors if sensor not in frame]:
        raise ConfigError([Problem(name, f"has no column for the sensors {', '.join(missing)}")])
    if not len(frame):
        raise ConfigError([Problem(name, "holds no rows")])
    numbers = [pd.to_numeric(frame[sensor], errors="coerce").to_numpy(np.float64) for sensor in sensors]
    values = np.column_stack(numbers)
    values[~np.isfinite(values)] = np.nan
    values = _possible(topology.source, sensors, values)
    times = _START + _STEP * np.arange(len(frame), dtype=np.float64)
    if "time" in frame:
        times = _times(name, frame["time"])
    order = np.argsort(times, kind="stable")
    machines = frame["machine"].astype(str).tolist() if "machine" in frame else ["machine-1"] * len(frame)
    return Table(name, sensors, [machines[i] for i in order.tolist()], times[order], values[order], None)


def columns_table(name: str, columns: Frame, topology: Topology) -> Table:
    """A message's columns as a table, as `frame_table`. Raises ConfigError."""
    try:
        frame = pd.DataFrame(dict(columns))
    except ValueError as error:
        raise ConfigError([Problem(name, f"is not a table: {error}")]) from error
    return frame_table(name, frame, topology)


async def stream_table(broker: Broker, topology: Topology, span: Span) -> Table:
    """The readings of a part of the topology's stream, by `read_stream`. Raises ConfigError, BrokerError."""
    return history_table(topology, await read_stream(broker, topology, span))


def history_table(topology: Topology, history: History) -> Table:
    """What was read of the topology's stream as a table. Raises ConfigError where it is nothing."""
    return _table(f"stream of {topology.name}", topology, [history])


def _table(name: str, topology: Topology, histories: Sequence[History]) -> Table:
    sensors = topology.source.names
    whole = [_aligned(history, topology) for history in histories]
    times = np.concatenate([history.times for history in whole])
    if not len(times):
        raise ConfigError([Problem(name, "holds no readings, or none of that range")])
    machines = [machine for history in whole for machine in history.names]
    values = _possible(topology.source, sensors, np.concatenate([it.values for it in whole]))
    return Table(name, sensors, machines, times, values, None)


def _possible(source: Source, names: Sequence[str], values: Floats) -> Floats:
    """Values (n, n_names), NaN where a sensor says what cannot be: no model learns from a broken one."""
    limits = {sensor.name: (sensor.minimum, sensor.maximum) for sensor in source.sensors}
    bounds = [limits.get(name, (None, None)) for name in names]
    low = np.array([-LARGEST if least is None else least for least, _ in bounds])
    high = np.array([LARGEST if most is None else most for _, most in bounds])
    return np.where((values < low) | (values > high), np.nan, values)


def _aligned(history: History, topology: Topology) -> History:
    """Whole rows, where one sensor a message was read; what is too late for its row is left out."""
    if history.order is None or not history.order.narrow:
        return history
    aligner = Aligner(len(topology.source.names), topology.source.align_within)
    names, slots = np.unique(np.array(history.names, dtype=np.str_), return_inverse=True)
    machines: list[str] = []
    rows: list[tuple[float, Floats]] = []
    for slot, time, values in zip(slots.tolist(), history.times.tolist(), history.values, strict=True):
        try:
            left = aligner.push(slot, time, values)
        except ReadingRejected:
            continue
        rows += left
        machines += [str(names[slot])] * len(left)
    times = np.array([time for time, _ in rows], dtype=np.float64)
    matrix = np.array([row for _, row in rows], dtype=np.float64).reshape(
        len(rows), len(topology.source.names)
    )
    return History(history.machine, pd.Series(times, dtype=str), times, matrix, machines)


def _times(name: str, column: pd.Series[Any]) -> Floats:
    if pd.api.types.is_numeric_dtype(column):
        times = column.to_numpy(np.float64)
    else:
        instants = parsed(column, errors="coerce")
        times = np.where(instants.isna(), np.nan, seconds(instants))
    if (odd := np.flatnonzero(~np.isfinite(times))).size:
        raise ConfigError([Problem(name, f'row {odd[0] + 1}: "{column.iloc[odd[0]]}" is not a time')])
    return times

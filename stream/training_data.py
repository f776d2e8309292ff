"""What a model is trained on: a table from a file, a capture, a frame in a message, or the topology's own stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from stream.brokers.base import Broker
from stream.errors import BrokerError, ConfigError, Problem
from stream.readings import Batch, Decoder
from stream.settings import epoch
from stream.tables import Table, read_csv
from stream.topology import Topology, readings_queue

__all__ = [
    "Frame",
    "Span",
    "TrainingOptions",
    "TrainingSource",
    "frame_table",
    "parse_span",
    "read_file",
    "read_stream",
    "within",
]

_AT_A_TIME = 64
"""Messages of the past that are read before the present ones have their turn."""
_BREATH = 0.01
"""Seconds that are theirs."""
_SILENCE = 5.0
_STEP = 1.0
_START = 1_704_067_200.0

Frame = Mapping[str, list[float | int | str | None]]
"""A data frame as columns: `machine` and `time` where there are any, and the sensors."""


class Span(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"start": "from", "end": "to"}):
    """A part of a stream, each bound an offset or a time (RFC 3339). None: as far as it goes."""

    start: int | str | None = None
    """The first that is in it."""
    end: int | str | None = None
    """The first that is not."""


class TrainingSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a training takes its readings from: exactly one."""

    stream: Span | None = None
    capture: str | None = None
    frame: Frame | None = None


class TrainingOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much is taken, and how long it may last."""

    rows: int | None = None
    """Only so many rows, the first ones."""
    timeout: float = 3600.0
    """Seconds."""


def parse_span(text: str) -> Span:
    """`FROM..TO`: each an offset, a time (RFC 3339), or nothing. Raises ConfigError.

    >>> parse_span("1000..2024-05-01T06:00:00Z")
    Span(start=1000, end='2024-05-01T06:00:00Z')
    """
    start, dots, end = text.partition("..")
    bounds = [int(part) if part.strip().isdecimal() else part.strip() or None for part in (start, end)]
    span = Span(*bounds)
    if not dots or _wrong(span):
        hint = "write FROM..TO, each an offset, a time such as 2024-05-01T06:00:00Z, or nothing"
        raise ConfigError([Problem("--stream", f'"{text}" is no range; {hint}')])
    return span


def within(path: str, folders: Sequence[Path]) -> Path:
    """A path that somebody else named, in one of these folders. Raises ConfigError on any other place."""
    for folder in folders:
        found = (folder / path).resolve()
        if found.is_relative_to(folder.resolve()) and found.exists():
            return found
    where = " or ".join(map(str, folders))
    raise ConfigError([Problem("capture", f'"{path}" is not in {where}; name a file or folder that is')])


def read_file(path: Path, topology: Topology) -> Table:
    """The readings of a CSV or Parquet file, or of every Parquet file in a folder. Raises ConfigError."""
    if path.is_file() and path.suffix != ".parquet":
        return read_csv(path)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        hint = "name a folder of Parquet files (a capture), or a CSV file"
        raise ConfigError([Problem(str(path), f"holds no readings; {hint}")])
    try:
        frames = [pd.read_parquet(file) for file in files]
    except (OSError, ValueError) as error:
        raise ConfigError([Problem(str(path), f"cannot be read: {error}")]) from error
    return frame_table(path.stem, pd.concat(frames, ignore_index=True), topology)


def frame_table(name: str, frame: pd.DataFrame, topology: Topology) -> Table:
    """Rows of sensors as a table, by time where there is one; cells that are no numbers are missing.

    Raises ConfigError."""
    sensors = topology.source.names
    if missing := [sensor for sensor in sensors if sensor not in frame]:
        raise ConfigError([Problem(name, f"has no column for the sensors {', '.join(missing)}")])
    if not len(frame):
        raise ConfigError([Problem(name, "holds no rows")])
    values = np.column_stack(
        [pd.to_numeric(frame[it], errors="coerce").to_numpy(np.float64) for it in sensors]
    )
    values[~np.isfinite(values)] = np.nan
    times = _START + _STEP * np.arange(len(frame), dtype=np.float64)
    if "time" in frame:
        times = _times(name, frame["time"])
    order = np.argsort(times, kind="stable")
    machines = frame["machine"].astype(str).tolist() if "machine" in frame else ["machine-1"] * len(frame)
    return Table(name, sensors, [machines[i] for i in order.tolist()], times[order], values[order], None)


async def read_stream(
    broker: Broker, topology: Topology, span: Span, told: Callable[[float], None] = lambda share: None
) -> Table:
    """The readings of a part of the topology's stream, by a consumer of its own, decoded as its worker does.

    `told` is given the share that was read. Whoever else uses the event loop has turns of their own in between.
    Raises ConfigError, BrokerError.
    """
    queue = readings_queue(topology)
    if queue.kind != "stream":
        hint = "an existing queue keeps nothing that was read; train on a file or a capture"
        raise ConfigError([Problem(topology.name, f'reads the queue "{queue.name}"; {hint}')])
    if problem := _wrong(span):
        raise ConfigError([Problem("stream", problem)])
    first = span.start if isinstance(span.start, int) else 0
    decoder, batches = Decoder(topology.source, time.time), []
    intake = await broker.consume(queue, offset=first, prefetch=2 * _AT_A_TIME)
    try:
        end = await intake.end()
        last = min(span.end, end) if isinstance(span.end, int) else end
        at = first - 1
        while at < last - 1:
            deliveries = await intake.receive(_AT_A_TIME, 0.0, _SILENCE)
            if not deliveries:
                raise BrokerError(f"{queue.name}: nothing came after offset {at}, of {last}; try again")
            at = deliveries[-1].offset
            batches.append(decoder.decode([d for d in deliveries if first <= d.offset < last])[0])
            await intake.ack(deliveries[-1].tag)
            told(min((at + 1 - first) / max(last - first, 1), 1.0))
            await asyncio.sleep(_BREATH)
    finally:
        await intake.close()
    return _stream_table(f"{queue.name} {first}..{last}", topology, batches, span)


def _stream_table(name: str, topology: Topology, batches: Sequence[Batch], span: Span) -> Table:
    sensors = topology.source.names
    times = np.concatenate([np.zeros(0), *(batch.times for batch in batches)])
    values = np.concatenate([np.zeros((0, len(sensors))), *(batch.values for batch in batches)])
    machines = [machine for batch in batches for machine in batch.machines]
    keep = np.ones(len(times), np.bool_)
    if isinstance(span.start, str):
        keep &= times >= epoch(span.start)
    if isinstance(span.end, str):
        keep &= times < epoch(span.end)
    if not keep.any():
        raise ConfigError([Problem(name, "holds no readings of that range")])
    kept = np.flatnonzero(keep)
    return Table(name, sensors, [machines[i] for i in kept.tolist()], times[kept], values[kept], None)


def _times(name: str, column: pd.Series[Any]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    if pd.api.types.is_numeric_dtype(column):
        times = column.to_numpy(np.float64)
    else:
        instants = pd.to_datetime(column, utc=True, errors="coerce", format="mixed")
        times = instants.astype("datetime64[ns, UTC]").astype(np.int64).to_numpy(np.float64) / 1e9
        times[instants.isna().to_numpy()] = np.nan
    if (odd := np.flatnonzero(~np.isfinite(times))).size:
        raise ConfigError([Problem(name, f'row {odd[0] + 1}: "{column.iloc[odd[0]]}" is not a time')])
    return times


def _wrong(span: Span) -> str:
    """What is wrong about the bounds; nothing where they are sound."""
    for bound in (span.start, span.end):
        try:
            if isinstance(bound, str):
                epoch(bound)
        except ValueError:
            return f'"{bound}" is neither an offset nor a time such as 2024-05-01T06:00:00Z'
    return ""

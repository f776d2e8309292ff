"""The Parquet files of a capture: columns made, files written whole, listed, read, and let go when there are many.

A file is `part-<number>-<first>-<last>.parquet`: the messages it covers, as the checkpoint counts them. What is not
in a file yet is in a journal, `.journal-<number>`, which becomes the file of that number. Raises OSError.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from detectors.base import Mask
from stream.capture_rule import Retention, column
from stream.instants import nanoseconds, seconds
from stream.journal import records
from stream.scorer import Scored

__all__ = [
    "Part",
    "Piece",
    "encode",
    "export",
    "journals",
    "parts",
    "prune",
    "seal",
]

_PART = re.compile(r"part-([0-9]{8,})-([0-9]+)-([0-9]+)\.parquet")
_JOURNAL = re.compile(r"\.journal-([0-9]{8,})")


@dataclass(frozen=True, slots=True)
class Part:
    """One file: its number, and the first and last message it covers."""

    path: Path
    number: int
    first: int
    last: int

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.path.stat().st_size

    def span(self) -> tuple[int, float, float]:
        """Rows in it, and the earliest and latest time of its readings (epoch seconds; NaN where there are none)."""
        with pq.ParquetFile(self.path) as file:
            rows = file.metadata.num_rows
            times = file.read(columns=["time"]).column("time").to_pandas()
        if not rows:
            return 0, float("nan"), float("nan")
        first, last = seconds([times.min(), times.max()])
        return rows, float(first), float(last)


@dataclass(frozen=True, slots=True)
class Piece:
    """A scored batch as it is captured: with the masks (n,) of open alerts by what raises them, and the version of
    each detector's model."""

    scored: Scored
    open: Mapping[str, Mask]
    versions: Mapping[str, str]


def encode(pieces: Sequence[Piece], sensors: Sequence[str]) -> bytes:
    """The columns of these batches, as one Arrow stream."""
    scored = [piece.scored for piece in pieces]
    values = np.concatenate([item.batch.values for item in scored])
    first = scored[0]
    columns: dict[str, pa.Array] = {
        "machine": pa.array([m for item in scored for m in item.batch.machines], pa.string()),
        "time": pa.array(
            nanoseconds(np.concatenate([item.batch.times for item in scored])), pa.timestamp("ns", "UTC")
        ),
        "offset": pa.array(np.concatenate([item.offsets for item in scored]), pa.int64()),
        "row": pa.array(np.concatenate([item.batch.rows for item in scored]), pa.int32()),
    }
    columns |= {name: pa.array(values[:, j], pa.float64()) for j, name in enumerate(sensors)}
    for name in first.scores:
        columns[column("score", name)] = pa.array(np.concatenate([item.scores[name] for item in scored]))
        columns[column("threshold", name)] = pa.array(
            np.concatenate([item.thresholds[name] for item in scored])
        )
    for name in pieces[0].open:
        columns[column("alert", name)] = pa.array(np.concatenate([piece.open[name] for piece in pieces]))
    for name in pieces[0].versions:
        columns[column("version", name)] = pa.concat_arrays([_versions(piece, name) for piece in pieces])
    batch = pa.record_batch(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return bytes(sink.getvalue())


def _versions(piece: Piece, name: str) -> pa.Array:
    """The version of a detector's model by row; null where it does not score the machine."""
    scored, count = piece.scored, len(piece.scored.batch)
    unscored = np.isnan(scored.scores[name]) & np.isinf(scored.thresholds[name])
    if not unscored.any():
        return pa.repeat(piece.versions[name], count)
    return pc.if_else(pa.array(unscored), pa.scalar(None, pa.string()), piece.versions[name])


def parts(folder: Path) -> list[Part]:
    """The files in a capture's folder, oldest first."""
    found = []
    for path in folder.glob("part-*.parquet"):
        if name := _PART.fullmatch(path.name):
            found.append(Part(path, *(int(text) for text in name.groups())))
    return sorted(found, key=lambda part: part.number)


def journals(folder: Path) -> list[tuple[int, Path]]:
    """The journals in a capture's folder with their numbers, oldest first."""
    found = [(int(name[1]), path) for path in folder.iterdir() if (name := _JOURNAL.fullmatch(path.name))]
    return sorted(found)


def seal(folder: Path, number: int, journal: Path) -> Part | None:
    """Make the file of a journal, whole on the disk or not at all, and remove the journal; None if it is empty."""
    kept = list(records(journal))
    if not kept:
        journal.unlink()
        return None
    written = [pa.ipc.open_stream(record.payload).read_all() for record in kept]
    table = pa.concat_tables(written, promote_options="default")  # by name, in whatever order columns came
    first, last = kept[0].before.next_offset, kept[-1].after.last_offset
    path = folder / f"part-{number:08}-{first}-{last}.parquet"
    _write(path, table)
    journal.unlink()
    return Part(path, number, first, last)


def prune(folder: Path, keep: Retention, now: float) -> list[Part]:
    """Remove the files that are too old or too many, journals counted; those removed. `now`: epoch seconds."""
    there = parts(folder)
    sizes = {part.number: part.bytes for part in there}
    total = sum(sizes.values()) + sum(path.stat().st_size for _, path in journals(folder))
    gone = []
    for part in there:
        if total <= keep.bytes and now - part.path.stat().st_mtime <= keep.age:
            continue
        part.path.unlink()
        total -= sizes[part.number]
        gone.append(part)
    return gone


def export(found: Sequence[Part], path: Path) -> int:
    """Write the rows of these files to one CSV or Parquet file, by its ending; how many there were.

    Columns that a file lacks are empty in its rows."""
    tables = [pq.read_table(part.path) for part in found]
    table = pa.concat_tables(tables, promote_options="default")
    if path.suffix == ".parquet":
        _write(path, table)
    else:
        table.to_pandas().to_csv(path, index=False)
    return int(table.num_rows)


def _write(path: Path, table: pa.Table) -> None:
    """By another name first, so that nobody sees half a file."""
    fresh = path.with_name(f".{path.name}.tmp")
    try:
        pq.write_table(table, fresh, compression="zstd")
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

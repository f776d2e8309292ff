"""Readings of the past: from CSV and Parquet files, one machine or many in each, and from captures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from detectors.base import Floats, Mask
from stream.arrivals import UNNUMBERED
from stream.capture_rule import PLACE_COLUMNS
from stream.cells import check_widths, parse_numbers, unreadable
from stream.dates import join_date_and_time, parse_dates
from stream.errors import ConfigError, Problem
from stream.instants import seconds
from stream.readings import Decoder
from stream.tables import MACHINE_NAMES, TIME_NAMES, widen
from stream.topology import Source, Topology

__all__ = ["History", "Order", "Past", "files_below", "pasts_below", "read_history", "read_past"]

_PART = re.compile(r"part-[0-9]{8,}-[0-9]+-[0-9]+\.parquet")

_MISSING = ("nan", "na", "n/a", "null", "none", "-", "<na>")


@dataclass(frozen=True, slots=True)
class Order:
    """How readings stood in a stream, all arrays (n,): the offset and row that alerts name; what orders a machine's
    readings, -1 where nothing does; which belong to one message (rising numbers); and which were sent again after
    they had become dead letters."""

    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]
    seqs: NDArray[np.int64]
    messages: NDArray[np.int64]
    replayed: Mask
    narrow: bool = False
    """One sensor a reading, as they came: rows are still to be aligned."""


@dataclass(frozen=True, slots=True)
class History:
    """Readings in order: `timestamps` (n texts, as they stood in the file), `times` (n,) epoch seconds,
    `values` (n, n_sensors), NaN where one is missing."""

    machine: str
    """Whose they are, or what all of them are called where they are of several."""
    timestamps: pd.Series[str]
    times: Floats
    values: Floats
    machines: Sequence[str] = ()
    """The machine of each (n), where there may be several."""
    labels: Mask | None = None
    """Which are known to be anomalous (n,), where a column says so."""
    order: Order | None = None
    """None: one after the other, each a message of its own, numbered from 0."""
    notes: tuple[str, ...] = ()
    """How the file was understood, where that was in doubt."""
    refused: Mask | None = None
    """Which the topology's source does not take for their values (n,), where there are any: live they are dead
    letters, and here they are passed over."""

    def __len__(self) -> int:
        return len(self.times)

    @property
    def names(self) -> Sequence[str]:
        """The machine of each reading."""
        return self.machines or [self.machine] * len(self.times)


@dataclass(frozen=True, slots=True)
class Past:
    """Files that are one history: `place` is where it lies below what was asked for, and names its scores."""

    place: Path
    machine: str
    files: tuple[Path, ...]


def pasts_below(root: Path) -> list[Past]:
    """The histories in a folder and below: every CSV or Parquet file is one, the parts of a capture together are one.

    A machine is called as its file, or as its place where two files have one name. Raises ConfigError.
    """
    base = root if root.is_dir() else root.parent
    whole: dict[Path, list[Path]] = {}
    found: list[tuple[Path, tuple[Path, ...]]] = []
    for path in files_below(root):
        if _PART.fullmatch(path.name) and path.parent.is_dir() and root.is_dir():
            whole.setdefault(path.parent, []).append(path)
        else:
            found.append((path.relative_to(base).with_suffix(".csv"), (path,)))
    for folder, parts in whole.items():
        place = folder.relative_to(base) / f"{folder.name}.csv"
        found.append((place, tuple(sorted(parts, key=_number))))
    stems = [place.stem for place, _ in found]
    pasts = []
    for place, files in sorted(found):
        machine = place.stem if stems.count(place.stem) == 1 else place.with_suffix("").as_posix()
        pasts.append(Past(place, machine, files))
    return pasts


def files_below(folder: Path) -> list[Path]:
    """The CSV and Parquet files in a folder and below, in order; of a file, itself. Raises ConfigError."""
    if folder.is_file():
        return [folder]
    found = sorted(
        path for path in folder.rglob("*") if path.suffix in (".csv", ".parquet") and path.name[0] not in "._"
    )
    if not found:
        what = "has no .csv or .parquet file" if folder.is_dir() else "no such file or folder"
        raise ConfigError([Problem(str(folder), what)])
    return found


def read_past(past: Past, topology: Topology, label_column: str | None = None) -> History:
    """All files of a history, one after the other. Raises ConfigError."""
    parts = [read_history(path, topology, past.machine, label_column) for path in past.files]
    if len(parts) == 1:
        return parts[0]
    orders = [part.order for part in parts if part.order is not None]
    order = None
    if len(orders) == len(parts):
        order = Order(
            np.concatenate([order.offsets for order in orders]),
            np.concatenate([order.rows for order in orders]),
            np.concatenate([order.seqs for order in orders]),
            np.arange(sum(len(part) for part in parts)),
            np.concatenate([order.replayed for order in orders]),
        )
    labels = [part.labels for part in parts if part.labels is not None]
    none = [np.zeros(len(part), np.bool_) if part.refused is None else part.refused for part in parts]
    return History(
        past.machine,
        pd.concat([part.timestamps for part in parts], ignore_index=True),
        np.concatenate([part.times for part in parts]),
        np.concatenate([part.values for part in parts]),
        [name for part in parts for name in part.names],
        np.concatenate(labels) if labels else None,
        order,
        tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        np.concatenate(none) if any(mask.any() for mask in none) else None,
    )


_MASKED = (
    "a capture leaves out what sick sensors said: alerts of sensors' health may differ from those of live; "
    "--stream has them all"
)


def read_history(
    path: Path, topology: Topology, machine: str | None = None, label_column: str | None = None
) -> History:
    """Read a CSV or Parquet file: columns named as the topology's sensors, in any order, and a time (a column named
    so, else the first); a column named machine, device or asset tells machines apart. A capture's rows keep their
    offsets; a long table (time, sensor, value) is widened.

    What is no finite number is missing; what else is wrong with values is treated as live, by the source's settings.
    Raises ConfigError on other columns and on times that cannot be read.
    """
    notes: list[str] = []
    names = topology.source.names
    frame = _read(path)
    if not {"date", "time"} & {name.lower() for name in names}:
        frame = join_date_and_time(frame, notes)
    if any(name not in frame.columns for name in names) and frame is not (wide := widen(frame, [])):
        stamps = _column(wide, TIME_NAMES)
        order = (
            np.arange(len(wide)) if stamps is None else np.argsort(_times(path, stamps, []), kind="stable")
        )
        frame = wide.iloc[order].reset_index(drop=True)
    if missing := [name for name in names if name not in frame.columns]:
        has = ", ".join(frame.columns[1:]) or "none"
        problem = f"has no column {', '.join(missing)} (columns: {has}); they are the topology's sensors"
        raise ConfigError([Problem(str(path), problem)])
    if label_column is not None and label_column not in frame.columns:
        raise ConfigError([Problem(str(path), f'has no column "{label_column}" of labels')])
    rest = frame.drop(columns=[*names, *([label_column] if label_column else [])])
    stamps = _column(rest, TIME_NAMES)
    if stamps is None:
        stamps = frame.iloc[:, 0]
    columns = [_readings(frame[name], notes) for name in names]
    values = np.column_stack(columns) if len(frame) else np.zeros((0, len(names)))
    values[~np.isfinite(values)] = np.nan
    machines = _column(rest, MACHINE_NAMES)
    if machines is not None and machines.name != "machine" and machines.nunique() > max(len(frame) // 5, 1):
        machines = None  # a number of each row, say
    captured = all(name in rest.columns for name in PLACE_COLUMNS) and path.suffix == ".parquet"
    if captured and topology.health is not None:
        notes.append(_MASKED)
    refused = None
    if not captured:  # what is captured was taken
        values, refused = _checked(topology.source, values, notes)
    times = _times(path, stamps, notes)
    return History(
        machine or path.stem,
        stamps.astype(str),
        times,
        values,
        () if machines is None else machines.astype(str).tolist(),
        None if label_column is None else _flags(frame[label_column]),
        _order(frame) if captured else _by_time(topology.source, times),
        tuple(notes),
        refused,
    )


def _checked(source: Source, values: Floats, notes: list[str]) -> tuple[Floats, Mask | None]:
    """The values as the source takes them, and the rows that it refuses; what it refuses is told."""
    values, refused = Decoder(source, lambda: 0.0).check_rows(values)
    if not refused:
        return values, None
    for reason in dict.fromkeys(error.reason for error in refused.values()):
        rows = [row for row, error in refused.items() if error.reason == reason]
        first = f"the first: row {rows[0] + 1}, {refused[rows[0]].detail.partition(' in row ')[0]}"
        notes.append(f"{len(rows):,} rows are passed over, as live they are dead letters {reason} ({first})")
    mask = np.zeros(len(values), np.bool_)
    mask[list(refused)] = True
    return values, mask


def _read(path: Path) -> pd.DataFrame:
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            with path.open(encoding="utf-8-sig") as file:
                head = file.readline()
            separator = max(",;\t|", key=head.count)
            frame = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
            check_widths(path, frame)
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        if path.suffix != ".parquet":
            raise unreadable(path, error) from error
        raise ConfigError([Problem(str(path), f"cannot be read as Parquet: {error}")]) from error
    frame.columns = pd.Index([str(name) for name in frame.columns])
    return frame


def _column(frame: pd.DataFrame, names: Sequence[str]) -> pd.Series | None:
    """The first column with one of these names, the best name first."""
    known = {re.sub(r"[ -]", "_", name.lower().strip()): name for name in reversed(list(frame.columns))}
    found = next((known[name] for name in names if name in known), None)
    return None if found is None else frame[found]


def _readings(column: pd.Series, notes: list[str]) -> Floats:
    """The numbers of a sensor (n,), NaN where there is none; what was meant as one and cannot be read is told."""
    numbers = parse_numbers(column).to_numpy(np.float64)
    missing = np.isnan(numbers)
    texts = column[missing].dropna().astype(str).str.strip()
    texts = texts[texts != ""]
    first = f' (the first: "{texts.iloc[0]}")' if len(texts) else ""
    odd = texts[~texts.str.lower().isin(_MISSING)]
    if len(numbers) and missing.all():
        notes.append(f'warning: sensor "{column.name}" has no number in {len(numbers):,} rows{first}')
    elif len(odd):
        what = f'cells that are no numbers, taken as missing: {len(odd):,} (the first: "{odd.iloc[0]}")'
        notes.append(f'sensor "{column.name}": {what}')
    return numbers


def _times(path: Path, stamps: pd.Series, notes: list[str]) -> Floats:
    """Epoch seconds of texts, instants or numbers (seconds, milli-, micro- or nanoseconds by their size)."""
    if not pd.api.types.is_datetime64_any_dtype(stamps):
        numbers = pd.to_numeric(stamps, errors="coerce")
        if len(numbers) and numbers.notna().all():
            size = float(numbers.abs().max())
            unit = 1.0 if size < 1e11 else 1e3 if size < 1e14 else 1e6 if size < 1e17 else 1e9
            return numbers.to_numpy(np.float64) / unit
    times = parse_dates(stamps, str(path), notes)
    if (odd := np.flatnonzero(times.isna())).size:
        row = int(odd[0])
        raise ConfigError([Problem(f"{path}:{row + 2}", f'"{stamps.iloc[row]}" is not a time')])
    return seconds(times)


def _flags(column: pd.Series) -> Mask:
    """Which cells say yes (n,): a number above 0, or the word."""
    words = column.astype(str).str.strip().str.lower().isin(("true", "yes")).to_numpy(np.bool_)
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    return np.asarray(words | (np.nan_to_num(numbers) > 0), dtype=np.bool_)


def _by_time(source: Source, times: Floats) -> Order | None:
    """A file's readings one after the other, where the machines' clocks tell them apart."""
    if source.order_by != "time":
        return None
    n = len(times)
    zeros, each = np.zeros(n, np.int64), np.arange(n)
    return Order(each, zeros, (times * 1e6).astype(np.int64), each, np.zeros(n, np.bool_))


def _order(frame: pd.DataFrame) -> Order:
    n = len(frame)
    return Order(
        frame["offset"].to_numpy(np.int64),
        frame["row"].to_numpy(np.int64),
        np.full(n, UNNUMBERED),
        np.arange(n),
        np.zeros(n, np.bool_),
    )


def _number(part: Path) -> int:
    return int(part.name.split("-")[1])

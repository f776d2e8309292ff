"""Tables of readings from files: which column is the time, which names the machine, which are sensors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from detectors.base import Floats
from detectors.datasets import DATASETS
from stream.cells import check_widths, parse_numbers, unreadable
from stream.dates import join_date_and_time, parse_dates
from stream.errors import ConfigError, Problem
from stream.instants import seconds as seconds_of
from stream.validation import suggest

__all__ = ["MACHINE_NAMES", "TIME_NAMES", "Table", "from_dataset", "read_csv", "widen"]

TIME_NAMES = ("time", "timestamp", "datetime", "date", "ds", "ts", "t", "zeit", "zeitstempel")
MACHINE_NAMES = (
    "machine",
    "machine_id",
    "device",
    "device_id",
    "asset",
    "asset_id",
    "unit",
    "unit_id",
    "equipment",
    "equipment_id",
    "machine_name",
    "device_name",
    "asset_name",
    "unit_name",
    "equipment_name",
    "pump_id",
    "maschine",
    "anlage",
    "id",
)
_NO_MACHINE = re.compile(
    r"stat(e|us)|zustand|mode|label|class|comment|remark|note|alarm|event|quality|flag|time|date"
)
"""In the name of a column of texts: what it says is no machine's name."""
_STATE = re.compile(
    r"on|off|open|closed|true|false|yes|no|ok|good|bad|run|stop|running|stopped|idle|auto|manual|normal|fault|high|"
    r"low|active|inactive"
)
_TIME_LIKE = r"\d{1,2}:\d{2}|^\d{1,4}[./-]\d{1,2}[./-]\d{1,4}"
_LABEL_NAMES = ("anomaly", "label", "is_anomaly", "outlier", "changepoint")
_SENSOR_NAMES = (
    "sensor",
    "sensor_id",
    "tag",
    "signal",
    "channel",
    "variable",
    "metric",
    "target",
    "parameter",
)
_VALUE_NAMES = ("value", "reading", "measurement", "val")
_MOST_SENSORS = 500
_STEP = 1.0


@dataclass(frozen=True, slots=True)
class Table:
    """Readings in order. `times` (n,) epoch seconds; `machines` n names; `values` (n, n_sensors), NaN: missing;
    `labels` (n,) True where known to be anomalous, or None. `notes` says how the columns were understood."""

    name: str
    sensors: tuple[str, ...]
    machines: list[str]
    times: Floats
    values: Floats
    labels: NDArray[np.bool_] | None
    notes: tuple[str, ...] = ()


def from_dataset(name: str) -> Table:
    """One of the data sets that come with the product (`shuttle`, `water_flow`). Raises ConfigError."""
    if name not in DATASETS:
        raise ConfigError([Problem("--dataset", f'unknown data set "{name}"{suggest(name, DATASETS)}')])
    data = DATASETS[name]()
    times = seconds_of(data.frame.index.to_series())
    values = data.frame.to_numpy(dtype=np.float64)
    sensors = tuple(str(column) for column in data.frame.columns)
    return Table(name, sensors, [data.machine] * len(times), times, values, data.labels)


def read_csv(path: Path, *, machine: str | None = None) -> Table:
    """Readings of a CSV file, its columns found out by name and content. Raises ConfigError with the remedy."""
    notes: list[str] = []
    frame = _read(path, notes)
    if not len(frame):
        raise ConfigError([Problem(str(path), "holds no rows")])
    frame = widen(join_date_and_time(frame, notes), notes)
    times, time_name = _find_time(frame, str(path), notes)
    rest = frame.drop(columns=[time_name] if time_name else [])
    machines, machine_name = _find_machine(rest, machine or path.stem, notes)
    rest = rest.drop(columns=[machine_name] if machine_name else [])
    label_name = next((c for c in rest.columns if c.lower() in _LABEL_NAMES), None)
    labels = None
    if label_name is not None:
        labels = pd.to_numeric(rest.pop(label_name), errors="coerce").fillna(0).to_numpy() > 0
        notes.append(f'labels: column "{label_name}" (not shown to the detectors)')
        rest = rest.drop(columns=[c for c in rest.columns if c.lower() in _LABEL_NAMES])
    numbers = rest.apply(parse_numbers).astype(np.float64)
    numbers = numbers.replace([np.inf, -np.inf], np.nan)
    bad = int((numbers[rest.columns].isna() & rest.notna()).to_numpy().sum())
    usable = [c for c in numbers.columns if numbers[c].notna().mean() >= 0.5]
    if left_out := [c for c in numbers.columns if c not in usable]:
        notes.append(f"left out (not numbers): {', '.join(left_out)}")
    if not usable:
        raise ConfigError(
            [Problem(str(path), "has no column of numbers besides the time; sensors must be numbers")]
        )
    if bad and not left_out:
        notes.append(f"cells that are no numbers, taken as missing: {bad:,}")
    notes.append(f"sensors: {', '.join(usable)}")
    order = np.argsort(times, kind="stable")
    values = numbers[usable].to_numpy()[order]
    ordered = [machines[i] for i in order]
    sorted_labels = None if labels is None else labels[order]
    return Table(path.stem, tuple(usable), ordered, times[order], values, sorted_labels, tuple(notes))


def widen(frame: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """A long table (time, sensor, value) with one column a sensor instead; any other as it is."""
    sensor = next((c for c in frame.columns if c.lower().strip() in _SENSOR_NAMES), None)
    value = next((c for c in frame.columns if c.lower().strip() in _VALUE_NAMES), None)
    if sensor is None or value is None or not 1 < frame[sensor].nunique() <= _MOST_SENSORS:
        return frame
    rest = [c for c in frame.columns if c not in (sensor, value)]
    values = frame.assign(**{value: parse_numbers(frame[value])})
    wide = values.pivot_table(index=rest, columns=sensor, values=value, aggfunc="last", sort=False)
    notes.append(f'long table: one row a value; sensors named by column "{sensor}"')
    return wide.reset_index().rename_axis(columns=None).rename(columns=str)


def _read(path: Path, notes: list[str]) -> pd.DataFrame:
    """The file as it is: separator and encoding found out, a header only where there is one."""
    encoding = "utf-8-sig"
    try:
        try:
            head = path.read_text(encoding).split("\n", 1)[0]
        except UnicodeDecodeError:
            encoding = "cp1252"
            head = path.read_text(encoding).split("\n", 1)[0]
            notes.append("text: not UTF-8, read as Windows-1252")
        if "\0" in head:
            raise ConfigError([Problem(str(path), "cannot be read as CSV: it is no text; unpack it first?")])
        separator = max(",;\t|", key=head.count)
        cells = [cell.strip().strip('"') for cell in head.split(separator)]
        headless = pd.to_numeric(pd.Series(cells), errors="coerce").notna().all()
        frame = pd.read_csv(path, sep=separator, encoding=encoding, header=None if headless else 0)
        check_widths(path, frame)
    except ConfigError:
        raise
    except UnicodeDecodeError:
        raise ConfigError(
            [Problem(str(path), "cannot be read as CSV: it is no text; unpack it first?")]
        ) from None
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise unreadable(path, error) from error
    if headless:
        frame.columns = pd.Index([f"column_{i + 1}" for i in range(frame.shape[1])])
        notes.append("header: none found, columns are numbered")
    frame.columns = pd.Index([str(column) for column in frame.columns])
    return frame


def _find_time(frame: pd.DataFrame, place: str, notes: list[str]) -> tuple[Floats, str | None]:
    """Epoch seconds by row, and the column they came from; rows are numbered by seconds where there is none."""
    named = [c for c in frame.columns if c.lower().strip() in TIME_NAMES]
    texts = [c for c in frame.columns if c not in named and not pd.api.types.is_numeric_dtype(frame[c])]
    texts = [c for c in texts if parse_numbers(frame[c]).notna().mean() < 0.5]
    for column in named + texts:
        times = _parse_times(frame[column], place, notes)
        if times is not None:
            notes.append(f'time: column "{column}"')
            return times, column
    notes.append("time: none found, rows are taken as one second apart")
    return 1704067200.0 + _STEP * np.arange(len(frame), dtype=np.float64), None


def _parse_times(column: pd.Series, place: str, notes: list[str]) -> Floats | None:
    if pd.api.types.is_numeric_dtype(column):
        numbers = column.to_numpy(dtype=np.float64)
        if not np.isfinite(numbers).all():
            return None
        largest = np.abs(numbers).max()
        unit = 1.0 if largest < 1e11 else 1e3 if largest < 1e14 else 1e6 if largest < 1e17 else 1e9
        seconds = numbers / unit
        return seconds if seconds.min() > 6e8 else seconds - seconds.min() + 1704067200.0
    told: list[str] = []
    parsed = parse_dates(column, place, told)
    if parsed.isna().any():
        return None
    notes += told
    return seconds_of(parsed)


def _find_machine(frame: pd.DataFrame, default: str, notes: list[str]) -> tuple[list[str], str | None]:
    """The machine of every row: a column named so, else the only text that may be one, else one machine."""
    named = [c for c in frame.columns if re.sub(r"[ -]", "_", c.lower().strip()) in MACHINE_NAMES]
    texts = [c for c in frame.columns if c not in named and not pd.api.types.is_numeric_dtype(frame[c])]
    texts = [c for c in texts if parse_numbers(frame[c]).notna().mean() < 0.5 and frame[c].nunique() > 1]
    able = [c for c in texts if _may_be_machine(frame[c])]
    for column in named + (able if len(able) == 1 else []):
        if 1 <= frame[column].nunique() <= max(len(frame) // 5, 1) and frame[column].notna().all():
            machines = frame[column].astype(str).str.strip().tolist()
            notes.append(f'machine: column "{column}" (machines: {len(set(machines))})')
            return machines, column
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", default).strip("-") or "machine-1"
    hint = f'; if one of {", ".join(texts)} names machines, call it "machine"' if texts else ""
    notes.append(f'machine: none found, all rows belong to "{name}"{hint}')
    return [name] * len(frame), None


def _may_be_machine(column: pd.Series) -> bool:
    """Whether texts name machines though the column's name does not say so: few, and no states, times or remarks."""
    texts = column.dropna().astype(str).str.strip().str.lower()
    kinds = texts.unique()
    few = len(texts) == len(column) and 10 * len(kinds) <= len(column)
    if not few or _NO_MACHINE.search(str(column.name).lower()) or all(map(_STATE.fullmatch, kinds)):
        return False
    return not any(re.search(_TIME_LIKE, kind) for kind in kinds)

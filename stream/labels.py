"""Labels: when something was really wrong, so that alerts can be judged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from detectors.base import Floats, Mask
from stream.errors import ConfigError, Problem
from stream.histories import History
from stream.instants import parsed, seconds

__all__ = ["Labels", "read_labels"]

_PROBATION, _LONGEST = 0.15, 5000
"""Where labels.json states no `warmup_rows`, as NAB has it: the first 15 % of rows, of 5,000 at the most."""


@dataclass(frozen=True, slots=True)
class _Window:
    """From `start` to `end`, both in it (epoch seconds); of a machine, or of all (None)."""

    start: float
    end: float
    machine: str | None = None


@dataclass(frozen=True, slots=True)
class Labels:
    """Windows by file (of `labels.json`), or for every file under the name ""."""

    windows: dict[str, list[_Window]]
    warmup: dict[str, int | None]
    """Rows at the start of a file that are not judged, where it says so; None: NAB's probation."""

    def of(self, place: Path, history: History) -> tuple[Mask | None, int]:
        """Which rows of a history are anomalous (n,), None where nothing is known; and how many at its start are
        not judged."""
        name = self._named(place.as_posix())
        if name is None:
            return history.labels, 0
        truth = np.zeros(len(history), np.bool_)
        machines = np.array(history.names)
        for window in self.windows[name]:
            rows = np.arange(len(history))
            if window.machine is not None:
                rows = np.flatnonzero(machines == window.machine)
            truth[rows[_inside(history.times[rows], window)]] = True
        warmup = self.warmup.get(name, 0)
        if warmup is None:
            warmup = int(min(np.floor(_PROBATION * len(history)), _PROBATION * _LONGEST))
        return truth, warmup

    def _named(self, place: str) -> str | None:
        """Under which name a file's windows stand: its own, or the only one that ends with it."""
        if "" in self.windows or place in self.windows:
            return "" if "" in self.windows else place
        ending = [name for name in self.windows if name.endswith(f"/{place}")]
        return ending[0] if len(ending) == 1 else None


def read_labels(path: Path) -> Labels:
    """Labels of a file. Raises ConfigError.

    CSV: columns `start` and `end`, and `machine` where they are of one; both ends are in the window. JSON:
    `{"files": {"folder/one.csv": {"windows": [[start, end], …], "warmup_rows": 400}}}`, by the file's place below
    the input; without `warmup_rows` the first 15 % of rows (750 at the most) are not judged.
    """
    try:
        return _from_json(path) if path.suffix == ".json" else _from_csv(path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        shape = '{"files": {FILE: {"windows": [[start, end], …]}}}' if path.suffix == ".json" else "start,end"
        raise ConfigError([Problem(str(path), f"cannot be read as labels ({shape}): {error}")]) from error


def _from_csv(path: Path) -> Labels:
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    frame.columns = pd.Index([str(name).strip().lower() for name in frame.columns])
    starts, ends = _instants(frame["start"]), _instants(frame["end"])
    machines: list[Any] = frame["machine"].tolist() if "machine" in frame.columns else [None] * len(frame)
    windows = [
        _Window(start, end, machine or None)
        for start, end, machine in zip(starts.tolist(), ends.tolist(), machines, strict=True)
    ]
    if wrong := next((window for window in windows if window.end < window.start), None):
        raise ValueError(f"row {windows.index(wrong) + 2} ends before it starts")
    return Labels({"": windows}, {})


def _from_json(path: Path) -> Labels:
    files = json.loads(path.read_text(encoding="utf-8"))["files"]
    pairs = [(name, start, end) for name, told in files.items() for start, end in told["windows"]]
    texts = pd.Series([bound for _, *pair in pairs for bound in pair], dtype=str)
    bounds = pd.to_numeric(texts, errors="coerce").to_numpy(np.float64, copy=True).reshape(-1, 2)
    dated = np.isnan(bounds).any(axis=1)
    bounds[dated] = _instants(texts[np.repeat(dated, 2)]).reshape(-1, 2)
    windows: dict[str, list[_Window]] = {name: [] for name in files}
    for (name, _, _), (start, end) in zip(pairs, bounds.tolist(), strict=True):
        windows[name].append(_Window(start, end))
    return Labels(windows, {name: told.get("warmup_rows") for name, told in files.items()})


def _instants(texts: pd.Series) -> Floats:
    if not len(texts):
        return np.zeros(0)
    numbers = pd.to_numeric(texts, errors="coerce")
    if numbers.notna().all():
        return numbers.to_numpy(np.float64)
    return seconds(parsed(texts))


def _inside(times: Floats, window: _Window) -> Mask:
    """Rows (n,) of the window. Where its end is a row's time it ends there, though later rows may say the same."""
    inside = (times >= window.start) & (times <= window.end)
    ends = np.flatnonzero(inside & (times == window.end))
    if len(ends):
        inside[ends[0] + 1 :] = False
    return inside

"""The real data sets that the river package carries, as tables with labels: for demonstrations and tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["DATASETS", "Dataset"]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Readings of one machine. `frame`: one column a sensor, indexed by time (UTC); `labels` (n,) True: anomalous."""

    name: str
    machine: str
    frame: pd.DataFrame
    labels: NDArray[np.bool_]


def _shuttle() -> Dataset:
    """Statlog (Shuttle), 49,097 rows of nine sensors, 7 % anomalous; rows carry no time, so we give them seconds."""
    from river.datasets import Shuttle

    table = pd.read_csv(Shuttle().path)
    labels = table.pop("anomaly").to_numpy() == 1
    times = pd.date_range("2024-01-01", periods=len(table), freq="s", tz="UTC")
    return Dataset("shuttle", "shuttle-1", table.astype(np.float64).set_index(times), labels)


def _water_flow() -> Dataset:
    """Hourly flow of a pipeline branch, 1,268 rows in l/s (kindly donated by Tecnojest s.r.l.).

    River describes four anomalous segments, three of low values and a small peak, without their times; the
    bounds below are ours, read off the series.
    """
    from river.datasets import WaterFlow

    table = pd.read_csv(WaterFlow().path)
    times = pd.to_datetime(table["Time"], utc=True)
    frame = pd.DataFrame({"flow_l_s": table["Water flow [l/s]"].to_numpy()}, index=pd.DatetimeIndex(times))
    segments = [
        ("2022-03-24T08:00+01:00", "2022-03-25T01:00+01:00"),
        ("2022-03-29T07:00+02:00", "2022-03-29T20:00+02:00"),
        ("2022-04-03T05:00+02:00", "2022-04-03T06:00+02:00"),
        ("2022-04-27T15:00+02:00", "2022-04-28T06:00+02:00"),
    ]
    labels = np.zeros(len(frame), dtype=bool)
    for first, last in segments:
        labels |= (frame.index >= pd.Timestamp(first)) & (frame.index <= pd.Timestamp(last))
    return Dataset("water_flow", "branch-1", frame, labels)


DATASETS: Mapping[str, Callable[[], Dataset]] = {"shuttle": _shuttle, "water_flow": _water_flow}
"""Loaders by name."""

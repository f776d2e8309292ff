"""A sensor beyond its physical limits is sick, its machine is not silenced; a backtest sees what is seen live."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stream.alerts import Alert
from stream.backtest import Outcome, backtest, fresh_scorer
from stream.config import dump_yaml, load
from stream.embedded import Job
from stream.embedded import run as run_jobs
from stream.errors import ConfigError
from stream.histories import History, read_history
from stream.tables import read_csv
from stream.topology import Topology
from stream.training_data import read_file
from tests.aio import run

BROKEN, FAULT = slice(200, 300), slice(240, 260)
"""Rows in which sensor b says -999, and in which a is wrong indeed."""


def readings(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    values = rng.normal([50.0, 100.0, 200.0], 1.0, (400, 3))
    values[BROKEN, 1] = -999.0
    values[FAULT, 0] += 15.0
    values[350, 2] = np.nan
    values[360] = np.nan
    frame = pd.DataFrame(values, columns=list("abc"))
    frame.insert(0, "time", pd.date_range("2026-01-01", periods=400, freq="min", tz="UTC").astype(str))
    frame.insert(1, "machine", "pump-1")
    path = folder / "m.csv"
    frame.to_csv(path, index=False)
    return path


def topology(folder: Path, source: str = "", more: str = "") -> Topology:
    path = folder / "t.yaml"
    path.write_text(
        f"name: t\nsource: {{sensors: [a, {{name: b, minimum: 0, maximum: 300}}, c]{source}}}\n"
        f"detectors: {{m: {{kind: mahalanobis, warmup: 50}}}}\n{more}"
    )
    return load(path)


def past(folder: Path, wanted: Topology) -> tuple[History, Outcome]:
    history = read_history(readings(folder), wanted)
    return history, backtest(fresh_scorer(wanted), history)


def opened(alerts: list[Alert]) -> list[tuple[str, str]]:
    return [(alert.type, alert.time[11:16]) for alert in alerts if alert.event == "opened"]


def test_a_broken_sensor_is_told_and_a_fault_of_another_is_found_meanwhile(tmp_path: Path) -> None:
    _, found = past(tmp_path, topology(tmp_path))
    assert opened(found.alerts) == [("sensor_out_of_range", "03:20"), ("process", "04:00")]
    told = next(alert for alert in found.alerts if alert.type == "process")
    assert told.contributions[0].sensor == "a"
    assert not found.open[200:240].any(), "what the sick sensor says is masked"


def test_a_dead_letter_is_passed_over_and_told(tmp_path: Path) -> None:
    history, found = past(tmp_path, topology(tmp_path, ", out_of_range: deadletter"))
    assert opened(found.alerts) == []
    assert np.flatnonzero(~found.scored).tolist() == [*range(200, 300), 360]
    second, first = history.notes
    assert "1 rows are passed over, as live they are dead letters no_values" in first
    assert (
        '100 rows are passed over, as live they are dead letters out_of_range (the first: row 201, "b"'
        in second
    )


@pytest.mark.parametrize(
    "source",
    [
        "",
        ", out_of_range: missing",
        ", out_of_range: deadletter",
        ", missing_sensor: deadletter",
        ", order_by: time",
    ],
)
def test_a_backtest_finds_what_is_found_live(tmp_path: Path, source: str) -> None:
    wanted = topology(tmp_path, source)
    _, found = past(tmp_path, wanted)
    job = Job(wanted, read_csv(tmp_path / "m.csv"))
    recording = run(run_jobs([job], data=tmp_path / "live"))["t"]
    live = [(alert.event, alert.type, alert.time, alert.score) for alert in recording.alerts]
    assert [(alert.event, alert.type, alert.time, alert.score) for alert in found.alerts] == live
    assert int(found.scored.sum()) == recording.readings


def test_limits_without_a_look_at_health_need_a_word(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"alert, the default, needs health.* missing or deadletter"):
        topology(tmp_path, more="health: null\n")
    refusing = topology(tmp_path, ", out_of_range: deadletter", "health: null\n")
    assert refusing.source.out_of_range == "deadletter"
    path = tmp_path / "plain.yaml"
    path.write_text("name: t\nsource: {sensors: [a]}\ndetectors: {z: {kind: adaptive_z}}\nhealth: null\n")
    plain = load(path)
    assert plain.source.out_of_range == "deadletter", "what no sensor measures has nobody to tell it"
    path.write_text(dump_yaml(plain))
    assert load(path) == plain


def test_what_cannot_be_is_not_trained_on(tmp_path: Path) -> None:
    wanted = topology(tmp_path)
    table = read_file(readings(tmp_path), wanted)
    assert np.isnan(table.values[BROKEN, 1]).all()
    assert np.isfinite(table.values[BROKEN, 0]).all()

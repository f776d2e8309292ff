"""How well the shipped topologies find: on generated series, and a small part of `make accuracy`.

The floors lie far below what is found today: they tell that detection broke, and tune nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import accuracy, tables
from benchmarks.quiet import quiet
from detectors.base import Floats, Mask
from detectors.quality import EventQuality, event_quality
from stream.backtest import backtest, fresh_scorer
from stream.config import load
from stream.histories import History

FLOORS = {
    "nab": {"as shipped": 40.0, "event recall": 0.5, "VUS-PR": 0.25},
    "skab": {"F1": 0.4, "event recall": 0.5, "VUS-PR": 0.45},
}
"""Of the five and four files that `--files 4` takes: 68.5, 0.8, 0.46; 0.65, 0.75, 0.74."""
CEILINGS = {"nab": {"false a day": 0.15}, "skab": {"FAR %": 10.0, "false alarms": 3.0}}
"""0.043; 1.2, 0."""


@pytest.mark.timeout(600)
def test_shipped_topologies_are_scored_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shuttle comes with river; NAB and SKAB only where the judge and its data lie beside the project."""
    report = tmp_path / "accuracy.html"
    told = printed(["--files", "4", "--report", str(report)], monkeypatch, capsys)
    auc = re.search(r"ROC AUC\s+(0\.\d+)", told)
    assert auc is not None
    assert float(auc[1]) > 0.99
    assert "shuttle_online" in report.read_text(encoding="utf-8")
    for corpus, floors in FLOORS.items():
        if f"{corpus} is left out" in told:
            assert f"{corpus}: " not in told.replace(f"{corpus} is left out", "")
            continue
        for row in (corpus, f"{corpus}_auto"):
            found = figures(told, corpus, row)
            for name, floor in floors.items():
                assert found[name] >= floor, f"{row}: {name} is {found[name]}"
            for name, ceiling in CEILINGS[corpus].items():
                assert found[name] <= ceiling, f"{row}: {name} is {found[name]}"
    assert ("ARTime" in told) != ("nab is left out" in told)
    assert ("anomaly-free run" in told) != ("skab is left out" in told)


@pytest.mark.timeout(120)
def test_one_file_of_each_corpus_is_scored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """NAB's first file has no label, so no score."""
    told = printed(["--files", "1", "--no-report"], monkeypatch, capsys)
    for corpus in ("nab", "skab"):
        assert (f"{corpus}: 1 files" in told) != (f"{corpus} is left out" in told)
        assert "nan" not in told


def test_no_files_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["accuracy", "--files", "0"])
    with pytest.raises(SystemExit):
        accuracy.main()
    assert "--files: 0 files: at least 1" in capsys.readouterr().err


def test_faults_of_a_generated_daily_load_are_found_by_the_shipped_topology() -> None:
    """Six weeks of a load each five minutes; from the fourth on it stands still, jumps, swings, falls, and spikes.

    Standing still within its range is what is missed today."""
    n = 6 * 7 * 288
    rng, phase = np.random.default_rng(11), 2 * np.pi * np.arange(n) / 288
    values = 40.0 + 15.0 * np.sin(phase) + 4.0 * np.sin(3 * phase) + rng.normal(scale=0.6, size=n)
    faults = {6500: "flat", 7900: "jump", 9100: "swing", 10300: "fall", 11500: "spikes"}
    labels = np.zeros(n, np.bool_)
    for start, what in faults.items():
        part = slice(start, start + 144)
        labels[part] = True
        values[part] = {
            "flat": np.full(144, values[start]),
            "jump": values[part] + 45.0,
            "swing": 40.0 + 40.0 * np.sin(np.arange(144) / 2.0),
            "fall": values[part] - 60.0,
            "spikes": values[part] + 80.0 * (np.arange(144) % 10 == 0),
        }[what]
    quality = judged("nab", values[:, np.newaxis], labels, 300.0)
    assert quality.events == 5
    assert quality.recall >= 0.6
    assert quality.false_alarms <= 5


def test_faults_of_a_generated_testbed_are_found_by_the_shipped_topology() -> None:
    """Eight sensors with a memory, a reading a second; one, two or four of them drift off by some sigmas."""
    n = 6000
    rng = np.random.default_rng(12)
    noise = rng.normal(size=(n, 8))
    for i in range(1, n):
        noise[i] = 0.6 * noise[i - 1] + 0.8 * noise[i]
    values, labels = 100.0 + np.arange(8.0) + 0.5 * noise, np.zeros(n, np.bool_)
    for start, sensors in ((2000, [7]), (3500, [0, 1]), (5000, [2, 3, 4, 5])):
        labels[start : start + 300] = True
        values[start : start + 300, sensors] += 3.0
    quality = judged("skab", values, labels, 1.0)
    assert quality.events == 3
    assert quality.recall >= 2 / 3
    assert quality.false_alarms <= 4


def test_false_alarms_of_a_run_without_faults_are_told_with_the_length_of_its_pieces(tmp_path: Path) -> None:
    topology = load(accuracy.ROOT / "topologies" / "skab.yaml")
    values = np.random.default_rng(13).normal(100.0, 1.0, (1500, 8))
    values[700:800] += 8.0  # in each piece once, a tenth of what is counted
    frame = pd.DataFrame(values, columns=list(topology.source.names))
    frame.insert(0, "timestamp", pd.date_range("2026-01-01", periods=1500, freq="s"))
    frame.to_csv(tmp_path / "run.csv", index=False)
    told = quiet(topology, tmp_path / "run.csv", 1400)
    share = re.search(
        r"16 pieces of 1,400, the first 400 uncounted: ([\d.]+)% of readings alarm, 1.00 false", told
    )
    assert share is not None, told
    assert 10.0 <= float(share[1]) < 60.0
    with pytest.raises(ValueError, match="400 readings, from 401 to 1,500 can be"):
        quiet(topology, tmp_path / "run.csv", 400)


def printed(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr("sys.argv", ["accuracy", *arguments])
    monkeypatch.setattr(tables, "DRAWS", 20)
    monkeypatch.setattr(tables, "HALVES", 2)
    accuracy.main()
    return capsys.readouterr().out


def figures(told: str, corpus: str, row: str) -> dict[str, float]:
    """A row of a corpus' table by the names of its columns."""
    lines = [line.strip() for line in told.splitlines()]
    head, cells = (
        re.split(r"\s{2,}", next(line for line in lines if re.match(rf"{name}\s{{2,}}", line)))[1:]
        for name in (corpus.upper(), row)
    )
    pairs = zip(head, cells, strict=True)
    return {name: float(cell) for name, cell in pairs if cell != "-"}


def judged(name: str, values: Floats, labels: Mask, step: float) -> EventQuality:
    """The alerts that a shipped topology opens, against the labels."""
    times = np.asarray(1.7e9 + step * np.arange(len(values)), np.float64)
    stamps = pd.Series(pd.to_datetime(times, unit="s")).astype(str)
    topology = load(accuracy.ROOT / "topologies" / f"{name}.yaml")
    outcome = backtest(fresh_scorer(topology), History("m", stamps, times, np.ascontiguousarray(values)))
    return event_quality(times, labels, outcome.open)

"""How well the shipped topologies detect, on public benchmarks, scored by a judge from outside.

    make accuracy                      # python -m benchmarks.accuracy --shared ../shared
    python -m benchmarks.accuracy --files 2 --no-report

Each topology of `topologies/` runs as shipped, by the engine that runs live: score before learn, the alerts of its
own rule; and beside it `detectors: auto` with nothing else stated. The judge is a script that knows nothing of this
project. Without the folder only Shuttle is scored, which the river package carries.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.published import PUBLISHED
from detectors.base import Floats
from detectors.datasets import DATASETS
from detectors.quality import roc_auc
from stream.backtest import Outcome, backtest, fresh_scorer
from stream.config import load
from stream.histories import History, read_history
from stream.recording import Recording
from stream.report import Section, write_report
from stream.topology import Sensor, Source, Topology

ROOT = Path(__file__).resolve().parents[1]
CORPORA = ("nab", "skab")
DRAWS = 200
"""Bootstrap draws over files."""
HALVES = 100
"""Random splits of the files in two, for `auto` against the tuned topology."""


def main() -> None:
    """Print a table, write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shared", type=Path, default=ROOT.parent / "shared", help="folder with data/ and judge/"
    )
    parser.add_argument("--files", type=int, help="only about so many of each corpus, spread evenly")
    parser.add_argument("--report", type=Path, default=Path("accuracy.html"))
    parser.add_argument("--no-report", action="store_true")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    options = parser.parse_args()
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("mmlw", "numpy", "numba", "river", "scikit-learn")
    )
    print(
        f"Python {platform.python_version()}, {packages}; bootstrap seed {options.seed}, {DRAWS} draws over files\n"
    )
    sections: list[Section] = []
    judge = _judge(options.shared)
    for corpus in CORPORA:
        if judge is None:
            print(f"no judge in {options.shared}: {corpus} is left out\n")
            continue
        sections += _corpus(judge, options, corpus)
    sections.append(_shuttle())
    if not options.no_report:
        write_report(options.report, "Accuracy of the shipped topologies", _told(), sections)
        print(f"\nreport   {options.report.absolute()}")


def _corpus(judge: ModuleType, options: argparse.Namespace, corpus: str) -> list[Section]:
    """The tuned topology and `auto` on a corpus, beside what others published."""
    tuned = load(ROOT / "topologies" / f"{corpus}.yaml")
    sections, found = [], []
    for topology in (tuned, _automatic(tuned)):
        drawn, files = _run(judge, options, corpus, topology)
        sections += drawn if topology is tuned else []  # auto is told in figures, not drawn
        found.append(files)
        for line in _table(judge, corpus, files, options.seed):
            print(f"  {line}")
    print(f"  {_in_halves(judge, corpus, *found, seed=options.seed)}")
    head, *rows = PUBLISHED[corpus][0], *PUBLISHED[corpus][1]
    print("\n  published  " + "  ".join(f"{name:>20}" for name in head))
    for row in rows:
        print("             " + "  ".join(f"{cell:>20}" for cell in row))
    print()
    return sections


def _automatic(tuned: Topology) -> Topology:
    """The same sensors, and nothing else stated."""
    sensors = tuple(Sensor(sensor.name) for sensor in tuned.source.sensors)
    said: Any = "auto"
    return Topology(name=f"{tuned.name}_auto", source=Source(sensors=sensors), detectors=said)


def _run(
    judge: ModuleType, options: argparse.Namespace, corpus: str, topology: Topology
) -> tuple[list[Section], list[dict[str, Any]]]:
    """A figure for each file, and the files as the judge takes them."""
    root = options.shared / "data" / corpus
    labels: Mapping[str, Any] = json.loads((root / "labels.json").read_text())["files"]
    names = sorted(labels)
    names = names[:: max(1, len(names) // options.files)] if options.files else names
    sections, files, rows, spent = [], [], 0, 0.0
    for name in names:
        history = read_history(root / "data" / name, topology)
        recording = Recording(name, topology.source.names)
        started = time.perf_counter()
        outcome = backtest(fresh_scorer(topology), history, recording.add)
        spent += time.perf_counter() - started
        rows += len(history.times)
        files.append(_judged_file(judge, corpus, labels[name], history, outcome, name))
        opened = sum(alert.event == "opened" for alert in outcome.alerts)
        cards = {"readings": f"{len(history.times):,}", "alerts": str(opened)}
        truth = np.array(files[-1]["y"], dtype=bool)
        sections.append(Section(f"{topology.name}: {name}", recording, labels=truth, cards=cards))
    print(f"{topology.name}: {len(files)} files, {rows:,} readings, {rows / spent:,.0f} readings/s")
    return sections, files


def _in_halves(
    judge: ModuleType, corpus: str, tuned: list[dict[str, Any]], automatic: list[dict[str, Any]], *, seed: int
) -> str:
    """How far `auto` stays behind the tuned topology, on halves of the files drawn at random."""
    rng, name, behind = np.random.default_rng(seed), {"nab": "NAB standard", "skab": "F1"}[corpus], []
    for _ in range(HALVES):
        order = rng.permutation(len(tuned))
        for half in (order[: len(order) // 2], order[len(order) // 2 :]):
            with np.errstate(invalid="ignore", divide="ignore"):  # a half without any event
                one, other = (
                    _figures(corpus, judge.evaluate(corpus, [dict(files[i]) for i in half], vus=False))[name]
                    for files in (tuned, automatic)
                )
            behind.append(one - other)
    worst = float(np.nanmax(behind))
    return f"auto is behind by {np.nanmedian(behind):.3f} {name} (median of {2 * HALVES} halves; at most {worst:.3f})"


def _judged_file(
    judge: ModuleType, corpus: str, label: Mapping[str, Any], history: History, outcome: Outcome, name: str
) -> dict[str, Any]:
    """One file as the judge's `evaluate` takes it: what its `load` makes of a CSV file."""
    stamps = pd.to_datetime(history.timestamps).to_numpy()
    n = len(stamps)
    truth, windows = np.zeros(n, int), []
    for first, last in label["windows"]:
        start = int(np.flatnonzero(stamps == np.datetime64(first))[0])
        stop = start + int(np.flatnonzero(stamps[start:] == np.datetime64(last))[0])
        windows.append((start, stop))
        truth[start : stop + 1] = 1
    found = {
        "rel": name, "ts": stamps, "score": outcome.scores, "n": n, "wins": windows, "nw": len(windows), "y": truth,
        "p": label.get("warmup_rows", judge.probation(n)), "alert": outcome.open.astype(int),
    }  # fmt: skip
    if corpus == "skab":
        found["cp"] = np.isin(stamps, np.array(label["changepoints"], dtype=stamps.dtype)).astype(int)
        found["cp_given"] = outcome.changes.astype(int)
    return found


def _table(judge: ModuleType, corpus: str, files: list[dict[str, Any]], seed: int) -> list[str]:
    """The judge's figures, each with a 90 % bootstrap interval over files."""
    whole = judge.evaluate(corpus, [dict(file) for file in files])
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(DRAWS):
        drawn = [dict(files[i]) for i in rng.integers(0, len(files), len(files))]
        with np.errstate(invalid="ignore", divide="ignore"):  # a draw without any event
            draws.append(_figures(corpus, judge.evaluate(corpus, drawn, vus=False)))
    volumes = np.array([file["vus"] for file in whole_files(judge, files) if file["vus"] is not None])
    lines = []
    for name, value in _figures(corpus, whole).items():
        low, high = np.nanquantile([draw[name] for draw in draws], [0.05, 0.95])
        lines.append(f"{name:<26}{value:8.3f}   [{low:.3f}, {high:.3f}]")
    means = [rng.choice(volumes, len(volumes)).mean() for _ in range(DRAWS)]
    low, high = np.quantile(means, [0.05, 0.95])
    lines.append(f"{'VUS-PR':<26}{volumes.mean():8.3f}   [{low:.3f}, {high:.3f}]")
    return lines


def whole_files(judge: ModuleType, files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The files with the judge's VUS-PR of each that has labels."""
    found = []
    for file in files:
        truth, score = file["y"][file["p"] :], file["score"][file["p"] :]
        found.append({**file, "vus": judge.vus_pr(truth, score) if truth.any() else None})
    return found


def _figures(corpus: str, result: Mapping[str, Any]) -> dict[str, float]:
    events = result["events"]
    figures: dict[str, float] = {}
    if corpus == "nab":
        figures |= {f"NAB {name}": float(value) for name, value in result["nab"].items()}
    else:
        figures |= {"F1": result["F1"], "FAR %": result["FAR"], "MAR %": result["MAR"]}
        figures["changepoint standard"] = float(result["cp_nab"]["standard"] or np.nan)
    figures |= {"event F1": events["event_f1"], "event recall": events["event_recall"]}
    figures |= {"false alarms": events["false_alarms"], "false alarms a day": events["false_alarms_per_day"]}
    return figures


def _shuttle() -> Section:
    """All 49,097 rows, scored before they are learned."""
    data, topology = DATASETS["shuttle"](), load(ROOT / "topologies" / "shuttle_online.yaml")
    times: Floats = data.frame.index.to_numpy("datetime64[ns]").astype(np.int64) / 1e9
    values = np.ascontiguousarray(data.frame.to_numpy(dtype=np.float64))
    history = History("shuttle-1", pd.Series(data.frame.index.astype(str)), times, values)
    recording = Recording("shuttle", topology.source.names)
    started = time.perf_counter()
    outcome = backtest(fresh_scorer(topology), history, recording.add)
    rate = len(times) / (time.perf_counter() - started)
    auc = roc_auc(data.labels, outcome.scores)
    print(f"{topology.name}: {len(times):,} readings, {rate:,.0f} readings/s")
    print(f"  {'ROC AUC':<26}{auc:8.4f}")
    return Section("shuttle_online: Shuttle", recording, labels=data.labels, cards={"ROC AUC": f"{auc:.4f}"})


def _judge(shared: Path) -> ModuleType | None:
    path = shared / "judge" / "score.py"
    spec = importlib.util.spec_from_file_location("judge", path) if path.is_file() else None
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _told() -> str:
    return (
        "Score before learn, one fixed configuration, the alerts that the topology ships. Orange: labelled."
    )


if __name__ == "__main__":
    main()

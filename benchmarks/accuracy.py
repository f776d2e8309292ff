"""How well the shipped topologies detect, on public benchmarks, scored by a judge from outside.

    make accuracy                      # python -m benchmarks.accuracy --shared ../shared
    python -m benchmarks.accuracy --files 2 --no-report
    python -m benchmarks.quiet         # the anomaly-free run alone

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
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import tables
from benchmarks.quiet import quiet, run_of
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


def main() -> None:
    """Print a table, write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shared", type=Path, default=ROOT.parent / "shared", help="folder with data/ and judge/"
    )
    parser.add_argument("--files", type=_some, help="only about so many of each corpus, spread evenly")
    parser.add_argument("--report", type=Path, default=Path("accuracy.html"))
    parser.add_argument("--no-report", action="store_true")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    options = parser.parse_args()
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("mmlw", "numpy", "numba", "river", "scikit-learn")
    )
    print(
        f"Python {platform.python_version()}, {packages}; bootstrap seed {options.seed}, "
        f"{tables.DRAWS} draws over files\n"
    )
    sections: list[Section] = []
    judge = _judge(options.shared)
    for corpus in CORPORA:
        if judge is None:
            print(f"no judge in {options.shared}: {corpus} is left out\n")
            continue
        sections += _corpus(judge, options, corpus)
        if corpus == "skab" and (run := run_of(options.shared)).is_file():
            print(f"{quiet(load(ROOT / 'topologies' / 'skab.yaml'), run)}\n")
    sections.append(_shuttle())
    if not options.no_report:
        write_report(options.report, "Accuracy of the shipped topologies", _told(), sections)
        print(f"\nreport   {options.report.absolute()}")


def _corpus(judge: ModuleType, options: argparse.Namespace, corpus: str) -> list[Section]:
    """The tuned topology and `auto` on a corpus, beside what others published."""
    tuned = load(ROOT / "topologies" / f"{corpus}.yaml")
    sections: list[Section] = []
    found: dict[str, Sequence[Mapping[str, Any]]] = {}
    for topology in (tuned, _automatic(tuned)):
        drawn, found[topology.name] = _run(judge, options, corpus, topology)
        sections += drawn if topology is tuned else []  # auto is told in figures, not drawn
    print()
    for line in tables.table(judge, corpus, found, options.seed):
        print(f"  {line}")
    print(f"\n  {tables.in_halves(judge, corpus, *found.values(), seed=options.seed)}\n")
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


def _some(text: str) -> int:
    """A number of files. Raises ValueError."""
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{count} files: at least 1")
    return count


def _told() -> str:
    return (
        "Score before learn, one fixed configuration, the alerts that the topology ships. Orange: labelled."
    )


if __name__ == "__main__":
    main()

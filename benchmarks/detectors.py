"""What every native detector and every feature costs, and the detectors' ROC AUC on Shuttle.

    python -m benchmarks.detectors

Online detectors score all 49,097 rows before they learn them. Trained ones are fitted on the first 10,000 rows,
unlabelled and with their anomalies, and scored on the rest. Costs: microseconds of processor time, which other
work on the machine does not lengthen, per reading of Shuttle's nine sensors (one key, and a thousand keys in
turn), the median of three runs in batches of 512; bytes of state per key. One-sensor kinds are also timed on
one sensor. Features, on random numbers, each by itself and a typical ten together: processor
time, the best of eight passes.
"""

from __future__ import annotations

import time

import numpy as np

from detectors import quality, registry
from detectors.base import Floats, Model
from detectors.datasets import DATASETS
from detectors.features import (
    Band,
    Calendar,
    Change,
    Correlation,
    Crossings,
    Feature,
    FeatureTable,
    Lag,
    Rate,
    Ratio,
    Rolling,
)

TRAINED_ON = 10_000
ROWS = 6_000
DAYS = {"seasonal_profile"}
"""Kinds that need days of readings; Shuttle has no times."""
SLOW = {*registry.ADAPTERS, "random_cut_forest"}
OF_ONES_OWN = {"onnx"}
"""Kinds that need a file."""
TYPICAL: dict[str, Feature] = {
    "mean of 60": Rolling(of="a", rolling="mean", window=60),
    "std of 60": Rolling(of="a", rolling="std", window=60),
    "slope of 60": Rolling(of="b", rolling="slope", window=60),
    "lag of 24": Lag(of="b", lag=24),
    "rate": Rate(of="b", rate="per_second"),
    "band of 256": Band(of="c", band=(10.0, 50.0), window=256, sample_rate=100.0),
    "crossings of 100": Crossings(of="c", crossings="mean", window=100),
    "ratio": Ratio(ratio=("a", "b")),
    "correlation of 60": Correlation(correlation=("a", "b"), window=60),
    "hour": Calendar(calendar="hour", zone="Europe/Berlin"),
}
OTHER: dict[str, Feature] = {
    "median of 60": Rolling(of="a", rolling="median", window=60),
    "kurtosis of 60": Rolling(of="a", rolling="kurtosis", window=60),
    "mean of 1000": Rolling(of="a", rolling="mean", window=1000),
    "median of 1000": Rolling(of="a", rolling="median", window=1000),
    "band of 1024": Band(of="c", band=(10.0, 50.0), window=1024, sample_rate=100.0),
    "change": Change(of="a", change=1),
}


def main() -> None:
    """Print three tables."""
    features()
    data = DATASETS["shuttle"]()
    sensors = tuple(str(name) for name in data.frame.columns)
    values, labels = np.ascontiguousarray(data.frame.to_numpy(dtype=np.float64)), data.labels
    print(f"{'kind':<22}{'us, 1 key':>11}{'us, 1,000 keys':>16}{'us, 1 sensor':>14}{'bytes a key':>13}")
    for kind, recipe in registry.ONLINE.items():
        if kind in registry.ADAPTERS:
            continue
        rows = values[: ROWS // 10 if kind in SLOW else ROWS]
        one, many = (cost(recipe().build(sensors), rows, keys) for keys in (1, 1000))
        alone = cost(recipe().build(sensors[:1]), rows[:, :1].copy(), 1)
        print(
            f"{kind:<22}{one:>11.2f}{many:>16.2f}{alone:>14.2f}{size(recipe().build(sensors)):>13,}",
            flush=True,
        )
    trained = {
        kind: registry.load(registry.TRAINABLE[kind]().fit(data.frame.iloc[:TRAINED_ON]))
        for kind in sorted(registry.TRAINABLE.keys() - OF_ONES_OWN)
    }
    for kind, model in trained.items():
        one, many = (cost(model, values[-ROWS:], keys) for keys in (1, 1000))
        print(f"{kind:<22}{one:>11.2f}{many:>16.2f}{'':>14}{size(model):>13,}", flush=True)
    print(f"\n{'kind':<22}{'ROC AUC':>9}   rows of Shuttle")
    for kind, recipe in registry.ONLINE.items():
        if kind not in SLOW | DAYS:
            auc(kind, recipe().build(sensors), values, labels, "all, score before learn")
    for kind, model in trained.items():
        auc(kind, model, values[TRAINED_ON:], labels[TRAINED_ON:], f"after the first {TRAINED_ON:,}")


def features() -> None:
    """Print what features cost: each by itself, then the typical ten together."""
    print(f"{'feature':<22}{'us a reading':>13}{'bytes a key':>13}")
    values = np.random.default_rng(0).normal(size=(ROWS, 3))
    alone = {name: {name: feature} for name, feature in (TYPICAL | OTHER).items()}
    for name, declared in {**alone, "the first ten": TYPICAL}.items():
        state = FeatureTable(("a", "b", "c"), declared).snapshot(np.array([0]))
        bytes_ = sum(array.nbytes for array in state.values())
        print(f"{name:<22}{_features_cost(declared, values):>13.2f}{bytes_:>13,}")
    print(flush=True)


def _features_cost(declared: dict[str, Feature], values: Floats) -> float:
    """Microseconds of the processor per reading of one key, the best of eight passes after one that fills windows."""
    table, n = FeatureTable(("a", "b", "c"), declared), len(values)
    slots, spent = np.zeros(n, np.int64), []
    for turn in range(9):
        times = 1.7e9 + 3600 * turn + np.arange(n) / 100
        began = time.thread_time()
        for i in range(0, n, 512):
            table.compute(slots[i : i + 512], values[i : i + 512], times[i : i + 512])
        spent.append(1e6 * (time.thread_time() - began) / n)
    return min(spent[1:])


def cost(model: Model, values: Floats, keys: int) -> float:
    """Microseconds of processor time per reading, the median of three passes after one that warms up."""
    n = len(values)
    slots, times = np.arange(n, dtype=np.int64) % keys, np.arange(n, dtype=np.float64)
    spent = []
    for _ in range(4):
        began = time.process_time()
        for i in range(0, n, 512):
            model.score_learn(slots[i : i + 512], values[i : i + 512], times[i : i + 512])
        spent.append(1e6 * (time.process_time() - began) / n)
    return float(np.median(spent[1:]))


def size(model: Model) -> int:
    """Bytes that a key's state takes in a checkpoint."""
    return sum(array.nbytes for array in model.snapshot(np.array([0])).values())


def auc(kind: str, model: Model, values: Floats, labels: np.ndarray, rows: str) -> None:
    """Score in batches of 512, as a worker does, and print a line."""
    n = len(values)
    slots, times = np.zeros(n, np.int64), np.arange(n, dtype=np.float64)
    parts = [
        model.score_learn(slots[i : i + 512], values[i : i + 512], times[i : i + 512])
        for i in range(0, n, 512)
    ]
    print(f"{kind:<22}{quality.roc_auc(labels, np.concatenate(parts)):>9.3f}   {rows}", flush=True)


if __name__ == "__main__":
    main()

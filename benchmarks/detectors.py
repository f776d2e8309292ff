"""What every native detector costs, and its ROC AUC on Shuttle.

    python -m benchmarks.detectors

Online detectors score all 49,097 rows before they learn them. Trained ones are fitted on the first 10,000 rows,
unlabelled and with their anomalies, and scored on the rest. Costs: microseconds of processor time, which other
work on the machine does not lengthen, per reading of Shuttle's nine sensors (one key, and a thousand keys in
turn), the median of three runs in batches of 512; bytes of state per key. One-sensor kinds are also timed on
one sensor.
"""

from __future__ import annotations

import time

import numpy as np

from detectors import quality, registry
from detectors.base import Floats, Model
from detectors.datasets import DATASETS

TRAINED_ON = 10_000
ROWS = 6_000
SLOW = {"river", "random_cut_forest"}
DAYS = {"seasonal_profile"}
"""Kinds that need days of readings; Shuttle has no times."""
SLOW = {*registry.ADAPTERS, "random_cut_forest"}
OF_ONES_OWN = {"onnx"}
"""Kinds that need a file."""


def main() -> None:
    """Print two tables."""
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
    print(f"\n{'kind':<22}{'ROC AUC':>9}   rows of Shuttle")
    for kind, recipe in registry.ONLINE.items():
        if kind not in SLOW | DAYS:
            auc(kind, recipe().build(sensors), values, labels, "all, score before learn")
    for kind in sorted(registry.TRAINABLE.keys() - OF_ONES_OWN):
        model = registry.load(registry.TRAINABLE[kind]().fit(data.frame.iloc[:TRAINED_ON]))
        auc(kind, model, values[TRAINED_ON:], labels[TRAINED_ON:], f"after the first {TRAINED_ON:,}")


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

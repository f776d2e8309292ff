"""ROC AUC of every native detector on Shuttle, and what a reading costs.

    python -m benchmarks.detectors

Online detectors score all 49,097 rows before they learn them. Trained ones are fitted on the first 10,000 rows,
unlabelled and with their anomalies, and scored on the rest.
"""

from __future__ import annotations

import time

import numpy as np

from detectors import quality, registry
from detectors.base import Model
from detectors.datasets import DATASETS

TRAINED_ON = 10_000


def main() -> None:
    """Print a table."""
    data = DATASETS["shuttle"]()
    sensors = tuple(str(name) for name in data.frame.columns)
    values, labels = np.ascontiguousarray(data.frame.to_numpy(dtype=np.float64)), data.labels
    print(f"{'kind':<20}{'ROC AUC':>9}{'us/reading':>12}   rows")
    for kind, recipe in registry.ONLINE.items():
        if kind != "river":
            report(kind, recipe().build(sensors), values, labels, "all, score before learn")
    for kind, trainable in registry.TRAINABLE.items():
        model = registry.load(trainable().fit(data.frame.iloc[:TRAINED_ON]))
        report(kind, model, values[TRAINED_ON:], labels[TRAINED_ON:], f"after the first {TRAINED_ON:,}")


def report(kind: str, model: Model, values: np.ndarray, labels: np.ndarray, rows: str) -> None:
    """Score in batches of 512, as a worker does, and print a line."""
    n = len(values)
    slots, times = np.zeros(n, np.int64), np.arange(n, dtype=np.float64)
    began = time.perf_counter()
    parts = [
        model.score_learn(slots[i : i + 512], values[i : i + 512], times[i : i + 512])
        for i in range(0, n, 512)
    ]
    micros = 1e6 * (time.perf_counter() - began) / n
    print(f"{kind:<20}{quality.roc_auc(labels, np.concatenate(parts)):>9.3f}{micros:>12.2f}   {rows}")


if __name__ == "__main__":
    main()

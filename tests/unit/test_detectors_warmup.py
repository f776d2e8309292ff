"""Kinds say how many readings of a key they need before they score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detectors.registry import ONLINE

DECLARED = (
    "adaptive_z",
    "adwin",
    "auto",
    "autoregressive",
    "cusum",
    "half_space_trees",
    "holt_winters",
    "knn",
    "kswin",
    "left_matrix_profile",
    "loda",
    "mahalanobis",
    "mcusum",
    "mewma",
    "online_pca",
    "page_hinkley",
    "random_cut_forest",
    "river",
    "robust_z",
)
"""Online kinds that declare a number; of others the contract's own check says whether it holds."""
SETTINGS: dict[str, dict[str, Any]] = {
    "river": {"river": "LODA"},
    "left_matrix_profile": {"length": 8},
}


@pytest.mark.parametrize("kind", DECLARED)
def test_scores_begin_with_the_end_of_the_declared_warm_up(kind: str) -> None:
    model: Any = ONLINE[kind](**SETTINGS.get(kind, {})).build(("a", "b", "c"))
    declared = model.warmup_readings
    assert declared > 0
    n = declared + 20
    values = np.random.default_rng(0).normal(size=(n, 3))
    scores = model.score_learn(np.zeros(n, np.int64), values, np.arange(float(n)))
    assert not scores[:declared].any()
    assert scores[declared : declared + 10].any()

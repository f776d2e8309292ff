"""Kinds say how many readings of a key they need before they score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detectors.registry import ONLINE

BY_TIME = {"seasonal_profile"}
"""They warm up by the readings' time, and declare no number."""
SETTINGS: dict[str, dict[str, Any]] = {"river": {"river": "LODA"}, "left_matrix_profile": {"length": 8}}


@pytest.mark.parametrize("kind", sorted(ONLINE.keys() - BY_TIME))
def test_scores_begin_with_the_end_of_the_declared_warm_up(kind: str) -> None:
    model: Any = ONLINE[kind](**SETTINGS.get(kind, {})).build(("a", "b", "c"))
    declared = model.warmup_readings
    assert declared > 0
    n = declared + 20
    values = np.random.default_rng(0).normal(size=(n, 3))
    scores = model.score_learn(np.zeros(n, np.int64), values, np.arange(float(n)))
    assert not scores[:declared].any()
    assert scores[declared : declared + 10].any()

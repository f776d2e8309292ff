"""Imported once by the server that lives are forked from: whatever takes long at a start."""

from __future__ import annotations

import numpy as np

from detectors import AdaptiveZ
from tests.torture import life

__all__ = ["life"]

AdaptiveZ().build(("a",)).score_learn(np.zeros(1, np.int64), np.zeros((1, 1)), np.zeros(1))

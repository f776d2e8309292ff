"""A detector that takes its process with it, on one reading."""

from __future__ import annotations

import os
from typing import ClassVar

import numpy as np

from detectors.base import Detector, Floats, Mask, Slots
from tests.plant import Scale

__all__ = ["DETONATES", "Detonator"]

DETONATES = 666.0
"""The first sensor's value that does it."""


class Detonator(Detector, frozen=True, kw_only=True):
    """Scores 0; dies of one value, as a fault in compiled code would: without a word."""

    kind: ClassVar[str] = "detonator"

    def build(self, sensors: tuple[str, ...]) -> Detonating:
        return Detonating(0.0, sensors)


class Detonating(Scale):
    def score_learn(self, slots: Slots, values: Floats, times: Floats, learn: Mask | None = None) -> Floats:
        if np.any(values[:, 0] == DETONATES):
            os._exit(1)
        return super().score_learn(slots, values, times, learn)

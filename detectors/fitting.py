"""What all trained detectors share: clean training data on the way in, checked weights on the way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats, TrainableDetector, Weights

if TYPE_CHECKING:  # takes a while, for those who train
    import pandas as pd

__all__ = ["LARGEST_DEVIATION", "LEAST_LIMIT", "checked", "made", "spread", "training_matrix"]

LARGEST_DEVIATION = 1e6
"""Standardised values are bounded by it, so that no reading gives a score that is not finite."""
LEAST_LIMIT = 1e-3
"""A limit chosen by quantile is at least this part of the theoretical one: data that never moves has none."""


def training_matrix(frame: pd.DataFrame, least: int) -> tuple[tuple[str, ...], Floats]:
    """Sensor names and the complete, finite rows as (n, n_sensors).

    Raises ValueError if there are no columns, a column is not numeric or always missing, or fewer than
    `least` rows are complete.
    """
    sensors = tuple(str(name) for name in frame.columns)
    if not sensors or len(set(sensors)) != len(sensors):
        raise ValueError("training data needs columns of different names, one per sensor")
    try:
        values = frame.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise ValueError(f"training data is not numeric: {error}") from error
    finite = np.isfinite(values)
    if len(values) and (
        empty := [name for name, any_ in zip(sensors, finite.any(axis=0), strict=True) if not any_]
    ):
        raise ValueError(f'training data has no value of "{empty[0]}"; leave that sensor out')
    complete = finite.all(axis=1)
    if complete.sum() < least:
        raise ValueError(
            f"training needs at least {least} complete rows; {complete.sum()} of {len(values)} are complete"
        )
    return sensors, np.ascontiguousarray(np.clip(values[complete], -1e100, 1e100))


def spread(matrix: Floats, center: Floats) -> Floats:
    """Standard deviation per column (n_sensors,); a constant column counts 0.1% of its level, or 1 if that is 0."""
    deviation: Floats = np.sqrt(((matrix - center) ** 2).mean(axis=0))
    constant = deviation <= 1e-9 * np.abs(center)
    level = np.where(center == 0, 1.0, 1e-3 * np.abs(center))
    return np.where(constant, level, deviation)


def made(
    recipe: TrainableDetector, sensors: Sequence[str], threshold: float, arrays: dict[str, NDArray[Any]]
) -> Weights:
    """Weights of a recipe, its settings as JSON data."""
    settings = msgspec.to_builtins(recipe)
    return Weights(recipe.kind, tuple(sensors), float(threshold), settings, arrays)


def checked(weights: Weights, kind: str, shapes: dict[str, tuple[int | None, ...]]) -> dict[str, Floats]:
    """The arrays by name as fresh float64, verified: these names, these shapes (None: any length), finite.

    Raises ValueError on anything else, on another kind, and on a threshold that is not finite.
    """
    if weights.kind != kind:
        raise ValueError(f'weights are of kind "{weights.kind}", not "{kind}"')
    if not weights.sensors or not np.isfinite(weights.threshold):
        raise ValueError("weights need sensors and a finite threshold")
    if set(weights.arrays) != set(shapes):
        raise ValueError(f"weights hold {sorted(weights.arrays)}, expected {sorted(shapes)}")
    arrays: dict[str, Floats] = {}
    for name, shape in shapes.items():
        found = np.asarray(weights.arrays[name])
        fits = found.ndim == len(shape) and all(
            wanted in (None, length) for wanted, length in zip(shape, found.shape, strict=True)
        )
        if not fits or found.dtype.kind not in "iuf":
            raise ValueError(
                f'weights "{name}" are {found.dtype}{found.shape}, expected numbers of shape {shape}'
            )
        arrays[name] = np.array(found, dtype=np.float64, order="C")
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f'weights "{name}" hold numbers that are not finite')
    return arrays

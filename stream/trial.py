"""From weights to a model that has proved it can score: sensors checked, a probe scored, results finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from detectors import registry
from detectors.base import Detector, Floats, Model, Weights
from stream.errors import ConfigError, ModelRejected, Problem
from stream.topology import Topology

__all__ = ["Scorer", "build", "build_online", "example_rows", "score"]


def build(weights: Weights, sensors: Sequence[str]) -> Model:
    """A fresh model of these weights, for a topology with these sensors, after another like it scored a probe.

    Raises ModelRejected if the sensors differ in name or order, if the weights do not make a model, or if
    its scores are not finite.
    """
    if problem := _sensor_problem(weights.sensors, tuple(sensors)):
        raise ModelRejected(problem)
    size = len(weights.sensors)
    one_missing = np.where(np.arange(size) == 0, np.nan, 0.0)
    _score(_model(weights), np.vstack([np.zeros(size), np.ones(size), one_missing]))
    return _model(weights)


def build_online(topology: Topology) -> dict[str, Model]:
    """Fresh models of the detectors that learn as they go, by name.

    Raises ConfigError with every one whose settings do not suit its inputs.
    """
    built: dict[str, Model] = {}
    problems: list[Problem] = []
    for name, spec in topology.detectors.items():
        if isinstance(spec, Detector):
            try:
                built[name] = spec.build(topology.inputs(name))
            except ValueError as error:
                problems.append(Problem(f"{topology.name}: detectors.{name}", str(error)))
    if problems:
        raise ConfigError(problems)
    return built


def score(weights: Weights, frame: pd.DataFrame) -> Floats:
    """Scores (n,) of the rows of a frame, taken as one machine's, by a fresh model. Raises ModelRejected."""
    return _score(_model(weights), frame[list(weights.sensors)].to_numpy(np.float64))


def example_rows(example: pd.DataFrame, sensors: Sequence[str]) -> pd.DataFrame:
    """The sensors' columns as floats, in order. Raises ValueError if one is missing or there are no rows."""
    if missing := [sensor for sensor in sensors if sensor not in example.columns]:
        raise ValueError(f"the example lacks {', '.join(missing)}")
    if example.empty:
        raise ValueError("the example has no rows; give the model a few to score")
    return example[list(sensors)].astype(np.float64).reset_index(drop=True)


class Scorer:
    """What `mlflow.pyfunc.load_model` wraps: the same rows always give the same scores."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        build(weights, weights.sensors)

    def predict(self, frame: pd.DataFrame, params: Mapping[str, Any] | None = None) -> Floats:
        """Scores (n,) of rows whose columns include the model's sensors."""
        return score(self._weights, frame)


def _model(weights: Weights) -> Model:
    try:
        return registry.load(weights)
    except (ValueError, LookupError, TypeError) as error:
        raise ModelRejected(f"{weights.kind} weights that do not make a model: {error}") from error


def _score(model: Model, values: Floats) -> Floats:
    size = len(values)
    slots, times = np.zeros(size, np.int64), np.arange(size, dtype=np.float64)
    scores: Floats = np.asarray(model.score_learn(slots, values, times), dtype=np.float64)
    if scores.shape != (size,) or not np.isfinite(scores).all() or (scores < 0).any():
        raise ModelRejected(f"scored a probe of {size} rows as {scores[:5]}; scores are finite and >= 0")
    return scores


def _sensor_problem(trained: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    if trained == wanted:
        return ""
    missing = ", ".join(sensor for sensor in trained if sensor not in wanted)
    extra = ", ".join(sensor for sensor in wanted if sensor not in trained)
    if not missing and not extra:
        return f"trained on the same sensors in another order: {', '.join(trained)}; list the topology's so"
    parts = (missing and f"the topology lacks {missing}", extra and f"the model does not know {extra}")
    return "trained on other sensors: " + "; ".join(part for part in parts if part)

"""Which detectors river offers, and whether settings fit them: every mistake is found before the first reading."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import random
from collections.abc import Mapping
from typing import Any

__all__ = ["DEFAULT_THRESHOLDS", "TARGET_ONLY", "construct", "names", "positive", "scaler", "validate"]

_SEED = 42
TARGET_ONLY = frozenset({"GaussianScorer", "StandardAbsoluteDeviation"})
"""Detectors that judge the target and look at no other sensor."""
DEFAULT_THRESHOLDS: Mapping[str, float] = {
    "GaussianScorer": 0.99999,
    "HalfSpaceTrees": 0.95,
    "LODA": 12.0,
    "LocalOutlierFactor": 3.0,
    "OneClassSVM": 3.0,
    "PredictiveAnomalyDetection": 1.0,
    "StandardAbsoluteDeviation": 6.0,
}
_MAY_BE_NEGATIVE = frozenset({"LODA", "OneClassSVM"})
_MAY_BE_ZERO = frozenset({"grace_period", "intercept_lr", "seed", "warmup_period"})
_WHOLE = frozenset({"seed", "window_size"})
"""Settings that default to None and take a whole number."""
_MOST_NODES = 2**22
"""Of a HalfSpaceTrees per key; river builds every node as an object."""


@functools.cache
def names() -> tuple[str, ...]:
    """The detectors of river.anomaly that can be used: all but its filters."""
    return tuple(name for name, kind in _offered().items() if not issubclass(kind, _base().AnomalyFilter))


def validate(name: str, settings: Mapping[str, Any], target: str | None) -> None:
    """Raises ValueError, saying what to write instead, if the detector cannot be built from this."""
    if name in _offered() and name not in names():
        raise ValueError(f"{name} is a filter; the topology has thresholds: use one of {', '.join(names())}")
    if name not in names():
        raise ValueError(
            f'river has no detector "{name}"{_guess(name, names())} There are {", ".join(names())}'
        )
    supervised = issubclass(_offered()[name], _base().SupervisedAnomalyDetector)
    if supervised and target is None:
        raise ValueError(f"{name} judges one sensor: name it as target")
    if not supervised and target is not None:
        raise ValueError(f"{name} judges all sensors together: leave target out")
    parameters = inspect.signature(_offered()[name]).parameters
    for key, value in settings.items():
        if key not in parameters:
            raise ValueError(f'settings: {name} has no "{key}"{_guess(key, parameters)}')
        _check(name, key, value, parameters[key].default)
    nodes = settings.get("n_trees", 10) * 2.0 ** (settings.get("height", 8) + 1)
    if name == "HalfSpaceTrees" and nodes > _MOST_NODES:
        raise ValueError(
            f"settings: HalfSpaceTrees would build {nodes:.3g} nodes per key; lower n_trees or height"
        )
    try:
        construct(name, settings)
    except Exception as error:
        raise ValueError(f"settings: {name} refuses them: {error}") from error


def construct(name: str, settings: Mapping[str, Any]) -> Any:
    """A fresh river object; seeded, so that every key and every run gives the same."""
    kind = _offered()[name]
    arguments = dict(settings)
    if "limits" in arguments:
        arguments["limits"] = {sensor: tuple(pair) for sensor, pair in arguments["limits"].items()}
    if "seed" in inspect.signature(kind).parameters:
        arguments.setdefault("seed", _SEED)
    built = kind(**arguments)
    rng = getattr(getattr(built, "gaussian", None), "_rng", None)
    if isinstance(
        rng, random.Random
    ):  # never drawn from, but part of the state: it must not be left to chance
        rng.seed(_SEED)
    return built


def scaler(name: str) -> Any:
    """River's MinMaxScaler for `minmax`, its StandardScaler for `standard`, else None."""
    from river import preprocessing

    kinds = {"minmax": preprocessing.MinMaxScaler, "standard": preprocessing.StandardScaler}
    return kinds[name]() if name in kinds else None


def positive(name: str, score: float) -> float:
    """The score, non-negative and in the same order; softplus where river's may be negative."""
    if name in _MAY_BE_NEGATIVE:
        return max(score, 0.0) + math.log1p(math.exp(-abs(score)))
    return max(score, 0.0)


@functools.cache
def _offered() -> Mapping[str, Any]:
    from river import anomaly  # takes more than a second, for those who need it

    return {name: getattr(anomaly, name) for name in sorted(anomaly.__all__)}


def _base() -> Any:
    from river import base

    return base


def _check(name: str, key: str, value: Any, default: Any) -> None:
    where = f"settings: {name}.{key}"
    if key == "limits":
        _check_limits(where, value)
        return
    if key in _WHOLE and value is None:
        return
    whole = key in _WHOLE or (isinstance(default, int) and not isinstance(default, bool))
    if not whole and not isinstance(default, float):
        raise ValueError(f"{where} takes a Python object and cannot be set here")
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not number:
        raise ValueError(f"{where} must be a {'whole number' if whole else 'number'}, not {value!r}")
    if not math.isfinite(value) or value < 0 or (value == 0 and key not in _MAY_BE_ZERO):
        raise ValueError(f"{where} must be positive, not {value!r}")


def _check_limits(where: str, value: Any) -> None:
    fits = isinstance(value, Mapping) and all(
        isinstance(pair, (list, tuple))
        and len(pair) == 2
        and all(isinstance(end, (int, float)) and math.isfinite(end) for end in pair)
        and pair[0] < pair[1]
        for pair in value.values()
    )
    if not fits:
        raise ValueError(f"{where} must map sensors to [lower, upper]")


def _guess(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f'. Did you mean "{close[0]}"?' if close else "."

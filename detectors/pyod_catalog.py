"""Which detectors of PyOD can be used in a stream, and whether settings fit them: before the first reading."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["MODULES", "construct", "validate"]

MODULES: Mapping[str, str] = {
    "COPOD": "copod",
    "ECOD": "ecod",
    "HBOS": "hbos",
    "IForest": "iforest",
    "KDE": "kde",
    "KNN": "knn",
    "LOF": "lof",
    "MCD": "mcd",
    "OCSVM": "ocsvm",
    "PCA": "pca",
    "Sampling": "sampling",
}
"""Detectors that fit a few hundred readings in milliseconds, on the processor, the same each time. Left out: those
that need PyTorch, those that score only what they were fitted on, those whose fit depends on threads (k-means), and
LODA, which takes what lies beyond its histograms for normal (`loda` does not)."""
_SEED = 42
_THREADS = frozenset({"n_jobs", "verbose"})


def validate(name: str, settings: Mapping[str, Any]) -> None:
    """Raises ValueError, saying what to do, if PyOD is missing or the detector cannot be built from this."""
    if name not in MODULES:
        close = difflib.get_close_matches(name, MODULES, n=1, cutoff=0.6)
        guess = f' Did you mean "{close[0]}"?' if close else ""
        raise ValueError(
            f'"{name}" of PyOD is not offered: no such detector, or too slow or not repeatable in a stream.{guess}'
            f" There are {', '.join(MODULES)}"
        )
    if importlib.util.find_spec("pyod") is None:
        raise ValueError("PyOD is not installed; say pip install 'mmlw[pyod]'")
    parameters = inspect.signature(_offered(name)).parameters
    for key, value in settings.items():
        if key not in parameters:
            known = ", ".join(sorted(set(parameters) - _THREADS))
            raise ValueError(f'settings: {name} has no "{key}"; it has {known}')
        if key in _THREADS:
            raise ValueError(
                f"settings: leave {key} out: a detector of a stream has one thread and is silent"
            )
        plain = value is None or isinstance(value, (bool, int, str))
        if not plain and not (isinstance(value, float) and math.isfinite(value)):
            raise ValueError(f"settings: {name}.{key} must be a number, a word or true/false, not {value!r}")
    try:
        construct(name, settings)
    except Exception as error:
        raise ValueError(f"settings: {name} refuses them: {error}") from error


def construct(name: str, settings: Mapping[str, Any]) -> Any:
    """A fresh PyOD object; seeded, so that the same readings always make the same detector."""
    kind = _offered(name)
    arguments = dict(settings)
    if "random_state" in inspect.signature(kind).parameters:
        arguments.setdefault("random_state", _SEED)
    return kind(**arguments)


def _offered(name: str) -> Any:
    return getattr(importlib.import_module(f"pyod.models.{MODULES[name]}"), name)  # takes seconds

"""Reading back river's objects from a checkpoint: only known classes are found, nothing else can be called."""

from __future__ import annotations

import io
import pickle
from typing import Any

__all__ = ["StateRejected", "restricted_loads"]

_EXACT = frozenset(
    {
        *(("builtins", name) for name in ("bool", "complex", "dict", "float", "frozenset", "int", "list")),
        *(("builtins", name) for name in ("set", "str", "tuple")),
        *(("collections", name) for name in ("Counter", "OrderedDict", "defaultdict", "deque")),
        ("datetime", "datetime"),
        ("datetime", "timedelta"),
        ("functools", "partial"),
        ("random", "Random"),
        ("river._river_rust.vectordict", "VectorDict"),
        ("river._river_rust.vectordict", "euclidean_distance_tuple"),
        ("river.utils.vectordict", "VectorDict"),
        ("river.utils.vectordict", "euclidean_distance_tuple"),
    }
)
_CLASSES_OF = (
    "river.anomaly.",
    "river.compose.pipeline",
    "river.linear_model.",
    "river.neighbors.",
    "river.optim.",
    "river.preprocessing.",
    "river.proba.",
    "river.sketch.",
    "river.stats.",
    "river.tree.padded",
    "river.utils.rolling",
    "river._river_rust.stats",
)
"""Modules whose own classes may be built: river's arithmetic, not its data sets, files or downloads."""


class StateRejected(ValueError):
    """State that is damaged, or names something that a detector's state never holds."""


def restricted_loads(data: bytes) -> Any:
    """The object in `data`. Raises StateRejected on anything but river's own classes and plain containers."""
    try:
        return _Restricted(io.BytesIO(data)).load()
    except StateRejected:
        raise
    except Exception as error:  # damaged bytes make pickle raise nearly anything
        raise StateRejected(f"damaged state: {type(error).__name__}: {error}") from error


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if "." in name or not name.isidentifier():
            raise StateRejected(f"state names {module}.{name}, which is not allowed")
        if (module, name) in _EXACT:
            return super().find_class(module, name)
        if module.startswith(_CLASSES_OF):
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise StateRejected(f"state names {module}.{name}, which is not allowed")

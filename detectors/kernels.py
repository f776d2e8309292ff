"""Compiled inner loops: numba with fixed signatures, ready at import; no reading waits for a compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal, ParamSpec, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats, Mask, Slots

__all__ = ["compiled", "floats", "learned", "slot_numbers"]

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=np.generic)

_NEEDS: Final[tuple[Literal["C", "A", "W", "E"], ...]] = ("C", "A", "W", "E")
"""Contiguous, aligned, writeable, a plain array: to numba a read-only array is another type."""


def compiled(signature: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile a function for exactly this numba signature, now. The result is kept on disk where possible.

    Division by zero gives inf or NaN as in numpy. Arguments of other types raise TypeError: pass arrays
    through `floats` and `slot_numbers`.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        options: dict[str, Any] = {"error_model": "numpy", "nogil": True}
        try:
            kernel = numba.njit(signature, cache=True, **options)(function)
        except (RuntimeError, OSError):  # no folder to keep it in, as in a read-only container
            kernel = numba.njit(signature, **options)(function)
        return cast(Callable[P, R], kernel)

    return decorate


def floats(array: NDArray[Any]) -> Floats:
    """The array as kernels take it; a copy only where it is read-only, strided or of another type."""
    return _as(array, np.float64)


def learned(learn: Mask | None, count: int) -> Mask:
    """Which of so many readings are learned, as kernels take it: all where nobody says."""
    return np.ones(count, np.bool_) if learn is None else _as(learn, np.bool_)


def slot_numbers(array: NDArray[Any]) -> Slots:
    """Like `floats`, for slots and row indices."""
    return _as(array, np.int64)


def _as(array: NDArray[Any], dtype: type[S]) -> NDArray[S]:
    if type(array) is np.ndarray and array.dtype == dtype and array.flags.carray:  # as nearly always
        return array
    return np.require(array, dtype, _NEEDS)

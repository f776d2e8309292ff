"""Compiled inner loops: numba with fixed signatures, compiled before the first reading; a command that scores nothing
starts without a compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import update_wrapper
from types import CodeType, FunctionType
from typing import Any, Final, Literal, ParamSpec, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from detectors.base import Floats, Mask, Slots

__all__ = ["compiled", "floats", "learned", "ready", "slot_numbers"]

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=np.generic)

_NEEDS: Final[tuple[Literal["C", "A", "W", "E"], ...]] = ("C", "A", "W", "E")
"""Contiguous, aligned, writeable, a plain array: to numba a read-only array is another type."""


def compiled(signature: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile a function for exactly this numba signature: at `ready`, or when it is first called. The result is kept
    on disk where possible.

    Division by zero gives inf or NaN as in numpy. Arguments of other types raise TypeError: pass arrays
    through `floats` and `slot_numbers`.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        return cast(Callable[P, R], _Kernel(cast(FunctionType, function), signature))

    return decorate


def ready() -> None:
    """Compile every kernel imported so far: no reading waits for a compiler after that."""
    for kernel in list(_waiting):
        kernel.dispatcher()


class _Kernel:
    """A function that numba compiles when it is needed; from then on what numba made of it stands in its module."""

    def __init__(self, function: FunctionType, signature: str) -> None:
        update_wrapper(self, function)
        self._function = function
        self._signature = signature
        self._dispatcher: Callable[..., Any] | None = None
        _waiting[self] = None

    def __call__(self, *args: Any) -> Any:
        return (self._dispatcher or self.dispatcher())(*args)

    def dispatcher(self) -> Callable[..., Any]:
        """What numba made of it."""
        if self._dispatcher is None:
            names = self._function.__globals__
            for name in set(_names(self._function.__code__)):  # numba takes what it calls from its module
                if isinstance(called := names.get(name), _Kernel):
                    names[name] = called.dispatcher()
            self._dispatcher = self._compiled()
            if names.get(self._function.__name__) is self:
                names[self._function.__name__] = self._dispatcher
            _waiting.pop(self, None)  # another thread may have been as quick
        return self._dispatcher

    def _compiled(self) -> Callable[..., Any]:
        import numba  # takes a second, for those who score

        options: dict[str, Any] = {"error_model": "numpy", "nogil": True}
        try:
            kernel = numba.njit(self._signature, cache=True, **options)(self._function)
        except (RuntimeError, OSError):  # no folder to keep it in, as in a read-only container
            kernel = numba.njit(self._signature, **options)(self._function)
        return cast(Callable[..., Any], kernel)


_waiting: dict[_Kernel, None] = {}
"""Not compiled yet, in the order of their definitions."""


def _names(code: CodeType) -> Iterator[str]:
    """The global names that a function uses, and others."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


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

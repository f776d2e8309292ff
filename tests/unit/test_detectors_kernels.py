"""Kernels: compiled once, also where nothing can be kept on disk; arrays as they take them."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

from detectors.forest import _score_learn
from detectors.kernels import compiled, floats, ready, slot_numbers


def test_no_array_makes_a_kernel_compile_again() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    array.flags.writeable = False
    for given in (array, array.astype(np.float64)[:, ::-1], array.astype(">f8"), array.astype(np.float64).T):
        ready = floats(given)
        assert ready.flags.c_contiguous
        assert ready.flags.writeable
        assert ready.dtype == np.float64
        assert np.array_equal(ready, given)
    assert slot_numbers(np.array([1, 2], dtype=np.int32)).dtype == np.int64
    kernel: Any = _score_learn
    assert len(kernel.dispatcher().signatures) == 1


@compiled("float64(float64)")
def _doubled(x: float) -> float:
    return 2 * x


@compiled("float64(float64)")
def _fourfold(x: float) -> float:
    return _doubled(_doubled(x))


def test_every_kernel_is_compiled_before_a_reading_comes() -> None:
    ready()
    for kernel in (_doubled, _fourfold):  # what stands in the module now is numba's
        assert isinstance(kernel, numba.core.dispatcher.Dispatcher)
    assert _fourfold(1.5) == 6.0


def test_an_array_that_fits_is_not_copied() -> None:
    array = np.zeros((2, 3))
    assert floats(array) is array


def test_a_folder_that_cannot_be_written_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    real = numba.njit

    def no_cache(*args: Any, **options: Any) -> Any:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return real(*args, **options)

    monkeypatch.setattr(numba, "njit", no_cache)

    @compiled("float64(float64)")
    def twice(x: float) -> float:
        return 2 * x

    assert twice(2.0) == 4.0

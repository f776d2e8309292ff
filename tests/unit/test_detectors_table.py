"""State tables: what they held stays when they grow, whoever looks at it meanwhile."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.table import Column, Table

WIDE = 4096
"""Numbers in a row: wide enough that a table soon grows by steps."""


def table() -> Table:
    return Table({"wide": Column(np.float64, (WIDE,), np.nan), "count": Column(np.int64, (), -1)})


def test_rows_stay_and_new_ones_are_fresh_however_a_table_grows() -> None:
    rows = table()
    for slot in range(400):
        rows.reserve(np.array([slot]))
        assert rows["count"][slot] == -1
        assert np.isnan(rows["wide"][slot]).all()
        rows["wide"][slot], rows["count"][slot] = slot, slot
    found = rows.snapshot(np.arange(400))
    np.testing.assert_array_equal(found["wide"], np.repeat(np.arange(400.0)[:, None], WIDE, axis=1))
    np.testing.assert_array_equal(found["count"], np.arange(400))


def test_view_that_somebody_holds_outlives_growth() -> None:
    rows = table()
    rows.reserve(np.arange(300))
    rows["wide"][:] = 7.0
    view = rows["wide"][:, 0]
    rows.reserve(np.array([5000]))
    assert (view[:300] == 7.0).all()
    assert (rows["wide"][:300, 0] == 7.0).all()
    assert np.isnan(rows["wide"][5000]).all()


def test_table_grows_by_steps_and_not_to_twice_its_size() -> None:
    rows = table()
    rows.reserve(np.arange(1000))
    rows.reserve(np.array([1000]))
    assert 1001 <= len(rows["count"]) <= 1200


def test_large_array_is_not_moved_when_it_grows() -> None:
    rows = table()
    rows.reserve(np.arange(300))
    before = rows["wide"]
    rows.reserve(np.array([3000]))
    assert np.shares_memory(before, rows["wide"])


def test_table_grows_where_the_system_grants_little_address_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detectors.table._RESERVED", 2**62)
    rows = table()
    rows.reserve(np.array([300]))
    rows["wide"][300] = 1.0
    assert rows["wide"][300].sum() == WIDE

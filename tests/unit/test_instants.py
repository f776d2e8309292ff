"""Texts of instants are read as pandas reads them one by one, and ISO 8601 many times faster."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from stream.instants import parsed


@pytest.mark.parametrize(
    "texts",
    [
        ["2024-05-01T22:00:00Z", "2024-05-01 22:00:00.25", "2024-05-01"],
        ["2024-05-01T22:00:00+02:00", "May 3, 2024 4:05 PM", "2024-05-01T22:00:00"],
        ["1 Feb 2024", "3 Feb 2024 07:00"],
        [],
    ],
)
def test_instants_are_those_that_pandas_reads_cell_by_cell(texts: list[str]) -> None:
    column: pd.Series[Any] = pd.Series(texts, dtype=str)
    cell_by_cell = pd.to_datetime(column, utc=True, format="mixed")
    assert [*map(str, parsed(column))] == [*map(str, cell_by_cell)]


def test_what_is_no_instant_is_the_same_error_or_nothing() -> None:
    column: pd.Series[Any] = pd.Series(["2024-05-01", "May 3, 2024", "soon"])
    assert parsed(column, errors="coerce").isna().tolist() == [False, False, True]
    with pytest.raises(ValueError, match="soon") as ours:
        parsed(column)
    with pytest.raises(ValueError, match="soon") as theirs:
        pd.to_datetime(column, utc=True, format="mixed")
    assert str(ours.value) == str(theirs.value)

"""Cells of a CSV file: numbers as people write them, and what is wrong with a file in a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from stream.errors import ConfigError, Problem

__all__ = ["check_widths", "parse_numbers", "unreadable"]

_POINT = r"[+-]?\d{1,3}(?:(?:,\d{3})+\.\d*|(?:,\d{3}){2,})"
"""1,200.5 or 1,200,300: the comma parts thousands, whatever the other cells are."""
_COMMA = r"[+-]?\d{1,3}(?:(?:\.\d{3})+,\d*|(?:\.\d{3}){2,})"
"""1.200,5 or 1.200.300: the point does."""
_EITHER = r"[+-]?[1-9]\d{0,2},\d{3}"
_WHOLE = r"[+-]?\d{1,3}(?:\.\d{3})+"
_REMEDY = "put a cell that has the separator in it in quotes, or save the file with another separator"


def parse_numbers(column: pd.Series) -> pd.Series:
    """Cells (n,) as numbers, NaN where one is none: 3.14, 3,14, 1,200.5 and 1.200,5.

    What a comma means holds for the whole column. 1,200 alone is 1.2, unless a cell beside it tells otherwise:
    one with a decimal point, or a whole number of 100 or more. Where both marks are decimal, the more frequent wins.
    """
    numbers = pd.to_numeric(column, errors="coerce")
    if pd.api.types.is_numeric_dtype(column) or not numbers.isna().any():
        return numbers
    texts = column.astype("str").str.strip()
    odd = texts[numbers.isna().to_numpy()]
    commas = odd[odd.str.contains(r"^[+-]?[\d.]*,\d", na=False)]
    plain = texts[numbers.notna().to_numpy()]
    pointed = plain.str.contains(".", regex=False).any()
    if odd.str.fullmatch(_POINT, na=False).any() or (
        len(commas) and commas.str.fullmatch(_EITHER).all() and (pointed or (numbers.abs() >= 100).any())
    ):
        grouped = texts.str.fullmatch(f"{_POINT}|{_EITHER}", na=False)
        texts = texts.where(~grouped, texts.str.replace(",", "", regex=False))
    elif odd.str.fullmatch(_COMMA, na=False).any():
        grouped = texts.str.fullmatch(f"{_COMMA}|{_WHOLE}", na=False)
        texts = texts.where(~grouped, texts.str.replace(".", "", regex=False))
        texts = texts.str.replace(",", ".", regex=False)
    elif not pointed or len(plain) < len(commas):
        texts = texts.str.replace(",", ".", regex=False)
    return pd.to_numeric(texts, errors="coerce")


def check_widths(path: Path, frame: pd.DataFrame) -> None:
    """Raises ConfigError where rows have more cells than the header: pandas takes the first ones for an index."""
    if not isinstance(frame.index, pd.RangeIndex):
        cells = frame.shape[1] + frame.index.nlevels
        what = f"rows have {cells} cells where the header has {frame.shape[1]}; {_REMEDY}"
        raise ConfigError([Problem(str(path), f"cannot be read as CSV: {what}")])


def unreadable(path: Path, error: Exception) -> ConfigError:
    """What pandas or the disk said of a file, as a sentence with what to do."""
    said = str(error).strip().removeprefix("Error tokenizing data. C error: ")
    if isinstance(error, FileNotFoundError):
        return ConfigError([Problem(str(path), "no such file")])
    if isinstance(error, UnicodeDecodeError):
        said = "it is no text in UTF-8; unpack it, or save it as UTF-8"
    elif isinstance(error, pd.errors.EmptyDataError):
        said = "it is empty; name a file with a line of column names and rows below it"
    elif ragged := re.match(r"Expected (\d+) fields in line (\d+), saw (\d+)", said):
        expected, line, cells = ragged.groups()
        said = f"line {line} has {cells} cells where the lines above have {expected}; {_REMEDY}"
    elif quote := re.match(r"EOF inside string starting at row (\d+)", said):
        said = f"a quote that opens in line {int(quote[1]) + 1} is never closed; close or remove it"
    return ConfigError([Problem(str(path), f"cannot be read as CSV: {said}")])

"""Dates of a column of texts: one order of day and month for all of it, and a date and a time of day as one."""

from __future__ import annotations

import numpy as np
import pandas as pd

from stream.errors import ConfigError, Problem
from stream.instants import seconds

__all__ = ["join_date_and_time", "parse_dates"]

_DATE = r"^\s*(\d{1,2})([./-])(\d{1,2})\2(\d{4}|\d{2})((?:\D.*)?)$"
"""Two numbers that are day and month in one order or the other, the year, whatever follows."""
_DATE_ONLY = r"\s*(?:\d{1,2}([./-])\d{1,2}\1(?:\d{4}|\d{2})|\d{4}([./-])\d{1,2}\2\d{1,2})\s*"
_TIME_OF_DAY = r"\s*(?:\d{1,2}(?::\d{2}){1,2}(?:[.,]\d+)?(?:\s*[AaPp][Mm])?|\d{1,2}\.\d{2}\.\d{2})\s*"
_DATE_NAMES = ("date", "datum", "day")
_TIME_OF_DAY_NAMES = ("time", "zeit", "uhrzeit", "time_of_day", "timestamp")
_CENTURY = 69
"""Years of two digits below it are of this century."""


def parse_dates(column: pd.Series, place: str, notes: list[str]) -> pd.Series:
    """Instants (n,) in UTC of texts or instants, NaT where a cell is no time.

    ISO 8601 is read as it is. Where dates are like 03/04/2025, all of them have one order: the one that a number
    above 12 tells; else the one in which the times change direction less often; else day first. A note says which.
    Fails to see a wrong order only where both are equally smooth, such as twelve days in a row.
    Raises ConfigError with the line (the first row is line 2) where one date has the day first and one the month.
    """
    column = column.reset_index(drop=True)
    found = pd.to_datetime(column, utc=True, format="ISO8601", errors="coerce")
    odd = found.isna().to_numpy()
    if not odd.any() or pd.api.types.is_datetime64_any_dtype(column):
        return found
    parts = column[odd].astype(str).str.extract(_DATE)
    dated = parts[0].notna()
    rest = column[odd][~dated]
    found = found.astype("datetime64[ns, UTC]")
    if len(rest):
        found[rest.index] = pd.to_datetime(rest, utc=True, format="mixed", errors="coerce")
    parts = parts[dated]
    if not len(parts):
        return found
    first, second = parts[0].astype(int), parts[2].astype(int)
    by_day = (first > 12) & (second <= 12)
    by_month = (second > 12) & (first <= 12)
    if by_day.any() and by_month.any():
        raise _contradiction(column, place, by_day, by_month)
    numbers = {"day first": (first, second), "month first": (second, first)}
    taken, why = "day first", "a number above 12 tells"
    if by_month.any():
        taken = "month first"
    elif not by_day.any():
        turns = {order: _turns(_put(found, parts, *numbers[order])) for order in numbers}
        taken = "month first" if turns["month first"] < turns["day first"] else "day first"
        even = turns["month first"] == turns["day first"]
        why = "both orders fit" if even else "the times rise more evenly so"
        why += "; write dates as 2025-12-31 if it is the other"
    instants = _put(found, parts, *numbers[taken])
    notes.append(f"dates: {taken}, as in {column[parts.index[0]]} = {_day(instants, parts)} ({why})")
    return instants


def join_date_and_time(frame: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """A table with a column of dates and one of times of day with one column `time` instead; any other as it is."""
    date = _matching(frame, _DATE_NAMES, _DATE_ONLY)
    clock = _matching(frame, _TIME_OF_DAY_NAMES, _TIME_OF_DAY)
    if date is None or clock is None:
        return frame
    hours = frame[clock].astype(str).str.strip()
    hours = hours.str.replace(r"^(\d{1,2})\.(\d{2})\.(\d{2})$", r"\1:\2:\3", regex=True)
    whole = frame[date].astype(str).str.strip() + " " + hours.str.replace(",", ".", regex=False)
    place = list(frame.columns).index(date)
    rest = frame.drop(columns=[date, clock])
    rest.insert(min(place, rest.shape[1]), "time", whole, allow_duplicates=True)
    notes.append(f'time: columns "{date}" and "{clock}" together')
    return rest


def _matching(frame: pd.DataFrame, names: tuple[str, ...], pattern: str) -> str | None:
    """The first column with one of these names whose cells all look like that."""
    for column in frame.columns:
        if column.lower().strip() not in names or pd.api.types.is_numeric_dtype(frame[column]):
            continue
        if len(frame) and frame[column].astype(str).str.fullmatch(pattern).all():
            return str(column)
    return None


def _put(found: pd.Series, parts: pd.DataFrame, days: pd.Series, months: pd.Series) -> pd.Series:
    """All instants, where these rows have these days and months."""
    years = parts[3].astype(int)
    short = parts[3].str.len() == 2
    years = years + 1900 * short + 100 * (short & (years < _CENTURY))
    two = [number.astype(str).str.zfill(2) for number in (months, days)]
    texts = years.astype(str).str.zfill(4) + "-" + two[0] + "-" + two[1] + parts[4].fillna("")
    instants = found.copy()
    instants[parts.index] = pd.to_datetime(texts, utc=True, format="mixed", errors="coerce")
    return instants


def _turns(instants: pd.Series) -> float:
    """How many steps go against most others (a file may be newest first); infinite where a cell is no time."""
    if instants.isna().any():
        return float("inf")
    steps = np.diff(seconds(instants))
    return float(min((steps < 0).sum(), (steps > 0).sum()))


def _day(instants: pd.Series, parts: pd.DataFrame) -> str:
    instant = instants[parts.index[0]]
    return "no time" if pd.isna(instant) else f"{instant:%Y-%m-%d}"


def _contradiction(column: pd.Series, place: str, by_day: pd.Series, by_month: pd.Series) -> ConfigError:
    day, month = (int(rows.index[int(np.argmax(rows.to_numpy()))]) for rows in (by_day, by_month))
    (earlier, one), (later, other) = sorted([(day, "day"), (month, "month")])
    said = f'"{column[later]}" has the {other} first, but "{column[earlier]}" in line {earlier + 2} the {one}'
    problem = f"{said}; write all dates one way, best as 2025-12-31"
    return ConfigError([Problem(f"{place}:{later + 2}", problem)])

"""Schedules as cron has them: five fields, in a time zone that is named."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import croniter

__all__ = ["cron_problem", "next_instant", "previous_instant", "zone_problem"]

_SOME_DAY = datetime(2024, 1, 1, tzinfo=UTC)


def cron_problem(expression: str) -> str:
    """What is wrong with an expression; empty if nothing.

    >>> cron_problem("0 3 * * 1")
    ''
    """
    if len(expression.split()) == 5:
        with contextlib.suppress(
            ValueError
        ):  # also of a day that never comes, and of what needs more than a time
            croniter(expression, _SOME_DAY).get_prev()
            return ""
    return f'"{expression}" is no cron expression: minute, hour, day, month and weekday, such as "0 3 * * 1"'


def zone_problem(zone: str) -> str:
    """What is wrong with a time zone's name; empty if nothing."""
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return f'"{zone}" is no time zone; write UTC, or one such as Europe/Zurich'
    return ""


def previous_instant(expression: str, zone: str, now: float) -> float:
    """The last instant up to `now`, in epoch seconds.

    >>> previous_instant("0 3 * * 1", "UTC", 1_722_988_800.0)  # a Wednesday at midnight: the Monday before
    1722826800.0
    """
    at = datetime.fromtimestamp(now, ZoneInfo(zone))
    if croniter.match(expression, at) and not at.second:
        return at.replace(microsecond=0).timestamp()
    found: datetime = croniter(expression, at).get_prev(datetime)
    return found.timestamp()


def next_instant(expression: str, zone: str, now: float) -> float:
    """The first instant after `now`, in epoch seconds."""
    found: datetime = croniter(expression, datetime.fromtimestamp(now, ZoneInfo(zone))).get_next(datetime)
    return found.timestamp()

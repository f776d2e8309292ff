"""Features of several sensors, and of the reading's time, as data."""

from __future__ import annotations

import difflib
import zoneinfo
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from detectors.features.declared import Feature, Settings

__all__ = ["Calendar", "Correlation", "Difference", "Product", "Ratio", "Sum"]


class Ratio(Feature, frozen=True, kw_only=True):
    """The first sensor divided by the second; missing where that is 0."""

    told_by: ClassVar[str] = "ratio"

    ratio: tuple[str, ...]

    @staticmethod
    def check(settings: Settings) -> Iterator[str]:
        """See `Feature`."""
        yield from _two(settings, "ratio")


class Difference(Feature, frozen=True, kw_only=True):
    """The first sensor minus the second."""

    told_by: ClassVar[str] = "difference"

    difference: tuple[str, ...]

    @property
    def keeps_unit(self) -> bool:
        """See `Feature`."""
        return True

    @staticmethod
    def check(settings: Settings) -> Iterator[str]:
        """See `Feature`."""
        yield from _two(settings, "difference")


class Product(Feature, frozen=True, kw_only=True):
    """Two sensors or more, multiplied."""

    told_by: ClassVar[str] = "product"

    product: tuple[str, ...]

    @staticmethod
    def check(settings: Settings) -> Iterator[str]:
        """See `Feature`."""
        yield from _several(settings, "product")


class Sum(Feature, frozen=True, kw_only=True):
    """Two sensors or more, added."""

    told_by: ClassVar[str] = "sum"

    sum: tuple[str, ...]

    @property
    def keeps_unit(self) -> bool:
        """See `Feature`."""
        return True

    @staticmethod
    def check(settings: Settings) -> Iterator[str]:
        """See `Feature`."""
        yield from _several(settings, "sum")


class Correlation(Feature, frozen=True, kw_only=True):
    """Pearson's correlation of two sensors over the last readings that have both, -1 to 1.

    Missing while one of them is flat.
    """

    told_by: ClassVar[str] = "correlation"

    correlation: tuple[str, ...]
    window: Annotated[int, Meta(ge=3, le=10_000)]

    @staticmethod
    def check(settings: Settings) -> Iterator[str]:
        """See `Feature`."""
        yield from _two(settings, "correlation")


class Calendar(Feature, frozen=True, kw_only=True):
    """Where in the day or the week the reading was taken, in the `zone`'s own time.

    `hour` and `weekday` are a place on a circle, in two columns NAME_sin and NAME_cos: midnight, or Monday's
    midnight, is at (0, 1). `weekend` is 1 on Saturdays and Sundays, else 0.
    """

    told_by: ClassVar[str] = "calendar"

    calendar: Literal["hour", "weekday", "weekend"]
    zone: str = "UTC"
    """A name of the time zone database, such as Europe/Berlin."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Nothing but the reading's time."""
        return ()

    def columns(self, name: str) -> tuple[str, ...]:
        """See `Feature`."""
        return (name,) if self.calendar == "weekend" else (f"{name}_sin", f"{name}_cos")

    @staticmethod
    def check(settings: Settings) -> Iterator[str]:
        """See `Feature`."""
        if (zone := settings.get("zone", "UTC")) == "UTC":
            return
        try:
            zoneinfo.ZoneInfo(zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            close = difflib.get_close_matches(zone, zoneinfo.available_timezones(), n=1)
            hint = f'. Did you mean "{close[0]}"?' if close else "; say one such as Europe/Berlin"
            yield f'zone: "{zone}" is not a time zone{hint}'


def _two(settings: Settings, name: str) -> Iterator[str]:
    if name in settings and len(settings[name]) != 2:
        yield f"{name}: takes two sensors, such as [pressure, flow]"


def _several(settings: Settings, name: str) -> Iterator[str]:
    if name in settings and len(settings[name]) < 2:
        yield f"{name}: takes two sensors or more, such as [pressure, flow]"

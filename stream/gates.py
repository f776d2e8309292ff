"""Conditions on models, as a topology states them: when a shadow may be promoted, and when a swap is taken back."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec
from msgspec import structs

from stream.agreement import Tally
from stream.settings import Count, Seconds, Settings, refuse

__all__ = ["Condition", "PromoteWhen", "RollbackWhen"]

_FORM = re.compile(r"\s*(<=|>=|<|>)\s*([0-9]+(?:\.[0-9]+)?)\s*(?:x\s+(champion|before))?\s*")


class Condition(msgspec.Struct, frozen=True):
    """A comparison with a number, or with so many times another figure.

    >>> Condition.parse("<= 1.2 x champion").holds(12.0, 10.0)
    True
    """

    operator: str
    number: float
    of: str | None = None
    """What the number is a multiple of: `champion` or `before`; None: it is the limit itself."""

    @staticmethod
    def parse(text: str) -> Condition:
        """Raises ValueError on another form."""
        if (found := _FORM.fullmatch(text)) is None:
            raise ValueError(f'"{text}" is no condition; write such as ">= 0.98" or "<= 1.2 x champion"')
        return Condition(found[1], float(found[2]), found[3])

    def holds(self, value: float, other: float) -> bool:
        """Whether it is true of a value, beside the other figure."""
        limit = self.number * (other if self.of else 1.0)
        if self.operator in ("<", "<="):
            return value < limit or (self.operator == "<=" and value == limit)
        return value > limit or (self.operator == ">=" and value == limit)


def _problems(settings: Settings, names: tuple[str, ...], of: str) -> Iterator[str]:
    for name in names:
        if (text := settings.get(name)) is None:
            continue
        try:
            condition = Condition.parse(text)
        except ValueError as error:
            yield f"{name}: {error}"
        else:
            if condition.of not in (None, of):
                yield f'{name}: compare with "x {of}", not "x {condition.of}"'


class PromoteWhen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the last whole window of a comparison must show before `promote` is carried out."""

    window: Seconds | None = None
    """So long, by the readings' times."""
    readings: Count | None = None
    """Or so many readings that both gave a score for."""
    least: Count = 30
    """`window` has at least so many of them, or it says nothing."""
    missing: str | None = "<= 0.01"
    """The share of the champion's readings for which the shadow gave no score."""
    agreement: str | None = None
    """The share of readings that both judge alike: `>= 0.98`."""
    kappa: str | None = None
    alerts: str | None = None
    """The shadow's: `<= 1.2 x champion`, or a number."""
    latency: str | None = None
    """Seconds of its model: `<= 2 x champion`, or a number a reading."""
    drift: str | None = None

    def __post_init__(self) -> None:
        refuse(self.check(structs.asdict(self)))

    @staticmethod
    def check(settings: Settings) -> Iterator[str]:
        """See `Settings`."""
        if (settings.get("window") is None) == (settings.get("readings") is None):
            yield "window: say how long is compared (1d), or how many readings: (10000); one of the two"
        if settings.get("window") == 0:
            yield "window: must be above 0"
        yield from _problems(
            settings, ("missing", "agreement", "kappa", "alerts", "latency", "drift"), "champion"
        )

    def unmet(self, window: Tally | None) -> list[str]:
        """Which conditions do not hold, with the figures."""
        if window is None:
            return ["the first window of the comparison has not ended yet"]
        if self.window is not None and window.readings < self.least:
            return [f"the window has {window.readings} readings that both gave a score for, not {self.least}"]
        n = max(window.readings, 1)
        figures = {
            "missing": (window.missing, 0.0),
            "agreement": (window.agreement, 0.0),
            "kappa": (window.kappa, 0.0),
            "alerts": (window.shadow.alerts, window.champion.alerts),
            "latency": (window.shadow.seconds / n, window.champion.seconds / n),
            "drift": (window.drift, 0.0),
        }
        found = []
        for name, (value, other) in figures.items():
            text = getattr(self, name)
            if text is None or (condition := Condition.parse(text)).holds(value, other):
                continue
            beside = f" beside {other:.4g} of the champion" if condition.of else ""
            found.append(f"{name} is {value:.4g}{beside}, which is not {text}")
        return found


class RollbackWhen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the model before takes over again by itself: any of these, within so long after a swap."""

    within: Seconds = 3600.0
    """By the readings' times; what was before the swap is measured over as long."""
    alerts: str | None = None
    """Alerts opened since: `> 5 x before` (as many as opened in as long before, at least 1), or a number."""
    errors: str | None = None
    """Readings without a score since: `> 10`."""
    latency: str | None = None
    """Seconds of the model for a reading, looked at from 1,000 readings on: `> 3 x before`, or a number."""

    def __post_init__(self) -> None:
        refuse(self.check(structs.asdict(self)))

    @staticmethod
    def check(settings: Settings) -> Iterator[str]:
        """See `Settings`."""
        names = ("alerts", "errors", "latency")
        if all(name in settings and settings[name] is None for name in names):
            yield "alerts: state at least one of alerts, errors and latency"
        if settings.get("within") == 0:
            yield "within: must be above 0"
        yield from _problems(settings, names, "before")

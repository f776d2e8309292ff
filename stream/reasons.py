"""Why an alert opened or closed, in one sentence for a person who knows the machine and not the mathematics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stream.alerting import Event, EventKind
from stream.alerts import SensorReason, Stretch

__all__ = ["apart", "duration", "number", "sentence"]

_ENOUGH = 0.7
"""Sensors are named until they make up so much of what is unusual."""
_MOST_NAMED = 3
_LEAST_SHARE = 0.1
_ALL = 0.995
_OWN = 0.5
"""Share of a stretch's squared distance from which its last value alone is what is off."""
_ALONE = 5.0
"""Times the shift of a mean that its latest value is off from which that value alone is what is off."""
_ONE_SIDED = 0.8
"""Mean over root mean square difference from which a stretch lies above or below, on the whole."""


def sentence(
    detector: str,
    event: Event,
    score: float,
    reasons: Sequence[SensorReason],
    units: Mapping[str, str],
    *,
    calibrated: bool,
) -> str:
    """What a technician should know. `reasons` with the largest share first; `units` of the sensors that have one;
    `calibrated`: scores are -log10 of a probability."""
    if event.kind is EventKind.CLOSED:
        return _closed(event)
    named = _named(reasons)
    share = sum(abs(reason.share) for reason in named)
    how = _how(detector, score, event.threshold, calibrated=calibrated)
    if not named:
        return f"The reading as a whole is unusual ({how})."
    told = [_sensor(reason, units) for reason in named]
    who = told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"
    part = "" if share > _ALL else f"{share:.0%} of what is unusual; "
    return f"{who} ({part}{how})."


def number(value: float, digits: int = 4) -> str:
    """So many significant digits, as people write them.

    >>> number(100.8999), number(123456.7), number(-0.00002), number(123456.7, 7)
    ('100.9', '123,457', '-2e-05', '123,456.7')
    """
    text = f"{value:,.{digits}g}"
    return f"{value:,.0f}" if "e+" in text and abs(value) < 1e15 else text


def apart(value: float, other: float) -> tuple[str, str]:
    """Two numbers with as many digits as it takes to tell them apart.

    >>> apart(52.171, 52.172), apart(1e12 + 1, 1e12), apart(3.0, 3.0)
    (('52.171', '52.172'), ('1,000,000,000,001', '1,000,000,000,000'), ('3', '3'))
    """
    pairs = [(number(value, digits), number(other, digits)) for digits in range(4, 18)]
    return next((pair for pair in pairs if pair[0] != pair[1]), pairs[0])


def duration(seconds: float) -> str:
    """A span of time in its two largest units.

    >>> duration(0.25), duration(75.0), duration(7260.0), duration(3 * 86400.0)
    ('0.25 s', '1 min 15 s', '2 h 1 min', '3 d')
    """
    if seconds < 60:
        return f"{number(seconds)} s"
    left, parts = round(seconds), []
    for name, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        parts.append((count, name))
    first = next(i for i, (count, _) in enumerate(parts) if count)
    return " ".join(f"{count} {name}" for count, name in parts[first : first + 2] if count)


def _closed(event: Event) -> str:
    episode = event.episode
    if episode.last_seen == episode.first_seen and episode.readings == 1:
        seen = "one anomalous reading"
    else:
        seen = f"{episode.readings} anomalous readings in {duration(episode.last_seen - episode.first_seen)}"
    return f"Back to normal after {seen} (peak score {number(episode.peak)}, alert from {number(event.threshold)})."


def _named(reasons: Sequence[SensorReason]) -> list[SensorReason]:
    """The sensors to blame: the fewest that make up most of it."""
    found: list[SensorReason] = []
    covered = 0.0
    for reason in reasons:
        share = abs(reason.share)
        if reason.value is None or share < _LEAST_SHARE or covered >= _ENOUGH or len(found) == _MOST_NAMED:
            continue
        found.append(reason)
        covered += share
    return found


def _sensor(reason: SensorReason, units: Mapping[str, str]) -> str:
    unit = f" {units[reason.sensor]}" if reason.sensor in units else ""
    value = reason.value if reason.value is not None else float("nan")
    if reason.expected is None:
        side = "high" if reason.share > 0 else "low"
        return f"{reason.sensor} is unusually {side} at {number(value)}{unit}"
    here, there = apart(value, reason.expected)
    stretch = reason.stretch
    if stretch is not None and stretch.rank == 0:
        if abs(value - reason.expected) <= _ALONE * stretch.distance:
            return _mean(reason.sensor, stretch, reason.expected, unit)
        stretch = None
    if stretch is not None and stretch.readings == 1:
        like = "nearest" if stretch.rank == 1 else f"{_nth(stretch.rank)} nearest"
        often = "never was" if stretch.rank == 1 else f"was at most {_times(stretch.rank - 1)}"
        return f"{reason.sensor} is at {here}{unit}, where it {often}: the {like} value before was {there}"
    if stretch is not None and (value - reason.expected) ** 2 < _OWN * stretch.readings * stretch.distance**2:
        return _course(reason.sensor, stretch, unit)
    above = reason.share > 0 if reason.expected == value else value > reason.expected
    return f"{reason.sensor} is {'high' if above else 'low'} at {here}{unit}, expected about {there}"


def _mean(sensor: str, stretch: Stretch, expected: float, unit: str) -> str:
    """Where the last readings are off on the whole, however the latest one is."""
    here, there = apart(expected + stretch.shift, expected)
    side = "high" if stretch.shift > 0 else "low"
    return (
        f"{sensor} is {side} on average, over about its last {stretch.readings} readings: {here}{unit}, "
        f"expected about {there}"
    )


def _course(sensor: str, stretch: Stretch, unit: str) -> str:
    """Where no single value is off, but how they follow each other."""
    like = "most similar" if stretch.rank == 1 else f"{_nth(stretch.rank)} most similar"
    often = "unlike ever" if stretch.rank == 1 else f"as at most {_times(stretch.rank - 1)}"
    side = "from"
    if abs(stretch.shift) > _ONE_SIDED * stretch.distance:
        side = "above" if stretch.shift > 0 else "below"
    return (
        f"{sensor} ran {often} before over its last {stretch.readings} readings "
        f"({_span(stretch.first_seen or stretch.last_seen, stretch.last_seen)}), "
        f"about {number(stretch.distance, 2)}{unit} {side} the {like} stretch"
    )


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _nth(rank: int) -> str:
    return {2: "second", 3: "third"}.get(rank, f"{rank}th")


def _span(first: str, last: str) -> str:
    """Two times (RFC 3339, UTC), the day once where it is the same.

    >>> _span("2026-01-04T12:00:00Z", "2026-01-04T13:55:00Z")
    '2026-01-04 12:00:00 to 13:55:00 UTC'
    """
    (day, clock), (last_day, last_clock) = first[:-1].split("T"), last[:-1].split("T")
    until = last_clock if day == last_day else f"{last_day} {last_clock}"
    return f"{day} {clock} to {until} UTC"


def _how(detector: str, score: float, threshold: float, *, calibrated: bool) -> str:
    if not calibrated:
        return f"{detector}: score {number(score)}, alert from {number(threshold)}"
    return f"{detector}: as rare as {_one_in(score)} normal readings, alert from {_one_in(threshold)}"


def _one_in(surprise: float) -> str:
    """A probability given as -log10."""
    return f"1 in {float(f'{10.0 ** min(surprise, 15.0):.2g}'):,.0f}"

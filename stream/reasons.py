"""Why an alert opened or closed, in one sentence for a person who knows the machine and not the mathematics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stream.alerting import Event, EventKind
from stream.alerts import SensorReason

__all__ = ["duration", "number", "sentence"]

_ENOUGH = 0.7
"""Sensors are named until they make up so much of what is unusual."""
_MOST_NAMED = 3
_LEAST_SHARE = 0.1
_ALL = 0.995


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


def number(value: float) -> str:
    """Four significant digits, as people write them.

    >>> number(100.8999), number(123456.7), number(-0.00002)
    ('100.9', '123,457', '-2e-05')
    """
    text = f"{value:.4g}"
    return f"{value:,.0f}" if "e+" in text and abs(value) < 1e12 else text


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
    above = reason.share > 0 if reason.expected in (None, value) else value > reason.expected
    side = "high" if above else "low"
    if reason.expected is None:
        return f"{reason.sensor} is unusually {side} at {number(value)}{unit}"
    return f"{reason.sensor} is {side} at {number(value)}{unit}, expected about {number(reason.expected)}"


def _how(detector: str, score: float, threshold: float, *, calibrated: bool) -> str:
    if not calibrated:
        return f"{detector}: score {number(score)}, alert from {number(threshold)}"
    return f"{detector}: as rare as {_one_in(score)} normal readings, alert from {_one_in(threshold)}"


def _one_in(surprise: float) -> str:
    """A probability given as -log10."""
    return f"1 in {float(f'{10.0 ** min(surprise, 15.0):.2g}'):,.0f}"

"""What an alert tells a person."""

from __future__ import annotations

import pytest

from stream.alerting import Episode, Event, EventKind
from stream.alerts import SensorReason
from stream.reasons import sentence

UNITS = {"flow": "l/s"}


def opened(threshold: float = 6.0) -> Event:
    return Event(0, EventKind.OPENED, Episode(), "warning", threshold)


def told(reasons: list[SensorReason], score: float = 7.66, *, calibrated: bool = False) -> str:
    return sentence("level", opened(), score, reasons, UNITS, calibrated=calibrated)


def test_one_sensor_to_blame_is_told_with_unit_and_expectation() -> None:
    assert told([SensorReason("flow", 97.221, 100.94, -1.0)]) == (
        "flow is low at 97.22 l/s, expected about 100.9 (level: score 7.66, alert from 6)."
    )


def test_sensors_are_named_until_they_explain_most_of_it() -> None:
    reasons = [
        SensorReason("flow", 97.0, None, -0.5),
        SensorReason("p", None, 3.0, 0.2),
        SensorReason("t", 3e6, 2e6, 0.25),
        SensorReason("u", 3.0, 2.0, 0.05),
    ]
    assert told(reasons) == (
        "flow is unusually low at 97 l/s and t is high at 3,000,000, expected about 2,000,000 "
        "(75% of what is unusual; level: score 7.66, alert from 6)."
    )


def test_side_is_told_by_what_was_expected() -> None:
    assert told([SensorReason("flow", 72.8, 73.2, 1.0)]).startswith(
        "flow is low at 72.8 l/s, expected about 73.2"
    )


def test_reading_without_a_sensor_to_blame_is_unusual_as_a_whole() -> None:
    assert told([SensorReason("flow", 1.0, None, 0.0)]).startswith(
        "The reading as a whole is unusual (level:"
    )


def test_probability_is_told_in_numbers_of_readings() -> None:
    text = told([SensorReason("flow", 97.0, 100.0, -1.0)], score=4.0, calibrated=True)
    assert text.endswith("(level: as rare as 1 in 10,000 normal readings, alert from 1 in 1,000,000).")


@pytest.mark.parametrize(
    ("readings", "seconds", "says"),
    [(1, 0.0, "one anomalous reading ("), (18, 7500.0, "18 anomalous readings in 2 h 5 min (")],
)
def test_end_of_an_alert_is_told_with_its_length(readings: int, seconds: float, says: str) -> None:
    episode = Episode(readings=readings, first_seen=100.0, last_seen=100.0 + seconds, peak=141.2)
    text = sentence(
        "level", Event(0, EventKind.CLOSED, episode, "critical", 6.0), 0.1, [], {}, calibrated=False
    )
    assert text == f"Back to normal after {says}peak score 141.2, alert from 6)."

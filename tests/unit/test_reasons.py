"""What an alert tells a person."""

from __future__ import annotations

import pytest

from stream.alerting import Episode, Event, EventKind
from stream.alerts import SensorReason, Stretch
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


DAY = ("2026-01-04T12:00:00Z", "2026-01-04T13:55:00Z")


def test_course_is_told_where_no_single_value_is_off() -> None:
    stretch = Stretch(24, *DAY, distance=3.21, shift=0.4, rank=1)
    assert told([SensorReason("flow", 52.17, 52.22, -1.0, stretch)]) == (
        "flow ran unlike ever before over its last 24 readings (2026-01-04 12:00:00 to 13:55:00 UTC), "
        "about 3.2 l/s from the most similar stretch (level: score 7.66, alert from 6)."
    )


def test_course_is_above_where_it_lies_above_on_the_whole_and_its_days_are_told() -> None:
    stretch = Stretch(
        24, "2026-01-04T23:00:00Z", "2026-01-05T01:00:00.500Z", distance=10.0, shift=9.5, rank=2
    )
    assert told([SensorReason("flow", 62.0, 52.0, 1.0, stretch)]).startswith(
        "flow ran as at most once before over its last 24 readings (2026-01-04 23:00:00 to 2026-01-05 "
        "01:00:00.500 UTC), about 10 l/s above the second most similar stretch ("
    )


def test_mean_is_told_where_it_is_off_and_the_latest_value_is_not() -> None:
    stretch = Stretch(19, None, DAY[1], distance=0.12, shift=0.12, rank=0)
    for latest in (4.9, 5.3):
        assert told([SensorReason("flow", latest, 5.0, 1.0, stretch)]).startswith(
            "flow is high on average, over about its last 19 readings: 5.12 l/s, expected about 5 ("
        )
    assert told([SensorReason("flow", 9.0, 5.0, 1.0, stretch)]).startswith(
        "flow is high at 9 l/s, expected about 5 ("
    )


def test_value_is_told_where_it_alone_makes_the_stretch_unlike() -> None:
    stretch = Stretch(24, *DAY, distance=8.2, shift=1.7, rank=1)
    assert told([SensorReason("flow", 92.0, 52.0, 1.0, stretch)]).startswith(
        "flow is high at 92 l/s, expected about 52 ("
    )


def test_single_value_is_compared_with_the_nearest_before() -> None:
    value = Stretch(1, DAY[1], DAY[1], distance=0.05, shift=-0.05, rank=1)
    assert told([SensorReason("flow", 52.17, 52.22, -1.0, value)]).startswith(
        "flow is at 52.17 l/s, where it never was: the nearest value before was 52.22 ("
    )


@pytest.mark.parametrize(
    ("value", "expected", "says"),
    [
        (1e12 + 3000.0, 1e12, "high at 1,000,000,003,000 l/s, expected about 1,000,000,000,000"),
        (1e18 + 1e6, 1e18, "high at 1.000000000001e+18 l/s, expected about 1e+18"),
        (100.0001, 100.0002, "low at 100.0001 l/s, expected about 100.0002"),
        (123456.7, 123456.9, "low at 123,456.7 l/s, expected about 123,456.9"),
    ],
)
def test_numbers_that_differ_are_told_with_digits_that_differ(
    value: float, expected: float, says: str
) -> None:
    assert told([SensorReason("flow", value, expected, 1.0)]).startswith(f"flow is {says} (")


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

"""The size of a batch follows how long batches take."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stream.pace import Pace


def settled(each: float, limit: int = 500) -> Pace:
    pace = Pace(limit)
    for _ in range(50):
        pace.took(pace.most, pace.most * each)
    return pace


def test_quick_messages_come_in_full_batches() -> None:
    assert settled(each=10e-6).most == 500


def test_slow_messages_come_in_batches_of_some_milliseconds() -> None:
    assert 60 <= settled(each=100e-6).most <= 80


def test_a_message_that_takes_too_long_comes_by_itself() -> None:
    assert settled(each=1.0).most == 1


def test_batches_grow_again_when_messages_are_quick_again() -> None:
    pace = settled(each=1e-3)
    for _ in range(30):
        pace.took(pace.most, pace.most * 10e-6)
    assert pace.most == 500


def test_a_single_long_moment_halves_the_batch_at_most() -> None:
    pace = Pace(500)
    pace.took(500, 30.0)
    assert pace.most == 250


def test_single_messages_say_nothing_about_full_batches() -> None:
    pace = Pace(500)
    for _ in range(100):
        pace.took(1, 0.002)
    assert pace.most == 500


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0.0, 10.0))), st.integers(1, 500))
def test_there_is_always_at_least_one_and_never_more_than_the_limit(
    past: list[tuple[int, float]], limit: int
) -> None:
    pace = Pace(limit)
    for count, seconds in past:
        pace.took(min(count, pace.most), seconds)
        assert 1 <= pace.most <= limit

"""When scores become an alert, and when it ends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stream.alerting import AlertTable, Event, Place
from stream.rules import AlertRule


def place(n: int) -> Place:
    return Place(np.arange(n), np.zeros(n, np.int64), np.arange(n), np.zeros(n, np.bool_))


def decide(rule: AlertRule, scores: list[float], *, threshold: float = 10.0) -> list[Event]:
    n = len(scores)
    table = AlertTable(rule)
    return table.decide(
        np.full(n, threshold),
        np.zeros(n, np.int64),
        np.arange(n, dtype=float),
        np.array(scores),
        place(n),
    )


def kinds(events: list[Event]) -> list[tuple[int, str]]:
    return [(event.index, event.kind.value) for event in events]


def test_alert_opens_updates_and_closes() -> None:
    events = decide(AlertRule(close_after=2), [1, 11, 25, 11, 1, 1, 1])
    assert kinds(events) == [(1, "opened"), (2, "updated"), (5, "closed")]
    assert (events[-1].episode.peak, events[-1].episode.readings, events[-1].episode.offset) == (25, 3, 1)


def test_hold_waits_for_readings_in_a_row() -> None:
    assert kinds(decide(AlertRule(hold=3), [11, 11, 1, 11, 11, 11])) == [(5, "opened")]


def test_first_seen_is_the_first_of_the_run_that_opened_it() -> None:
    [event] = decide(AlertRule(hold=2), [11, 1, 11, 11])
    assert (event.episode.first_seen, event.episode.last_seen) == (2.0, 3.0)


def test_hysteresis_keeps_it_open_just_below_the_threshold() -> None:
    rule = AlertRule(close_after=1, hysteresis=0.2)
    assert kinds(decide(rule, [11, 9, 8.5, 7.9])) == [(0, "opened"), (3, "closed")]


def test_cooldown_keeps_it_closed() -> None:
    rule = AlertRule(close_after=1, cooldown=3)
    assert kinds(decide(rule, [11, 1, 11, 11, 11])) == [(0, "opened"), (1, "closed"), (4, "opened")]


def test_severity_only_rises_while_open() -> None:
    rule = AlertRule(severities={"low": 1.0, "high": 2.0, "worst": 4.0})
    assert kinds(decide(rule, [45, 21, 11])) == [(0, "opened")]


def test_keys_do_not_mix() -> None:
    table = AlertTable(AlertRule(hold=2))
    slots = np.array([0, 1, 0, 1])
    events = table.decide(
        np.full(4, 10.0),
        slots,
        np.arange(4.0),
        np.array([11.0, 11, 1, 11]),
        place(4),
    )
    assert kinds(events) == [(3, "opened")]
    assert table.open_slots().tolist() == [1]


def test_so_many_readings_keep_it_closed() -> None:
    rule = AlertRule(close_after=1, cooldown_readings=3)
    assert kinds(decide(rule, [11, 1, 11, 11, 11, 11])) == [(0, "opened"), (1, "closed"), (5, "opened")]


def test_anomalous_readings_among_some_open_it() -> None:
    rule = AlertRule(hold=2, within=3, close_after=1)
    assert kinds(decide(rule, [11, 1, 1, 11, 1, 11, 1])) == [(5, "opened"), (6, "closed")]


def test_momentary_alert_is_over_with_its_reading() -> None:
    rule = AlertRule(close_after=0, cooldown_readings=2)
    told = kinds(decide(rule, [1, 11, 25, 25, 25, 1]))
    assert told == [(1, "opened"), (1, "closed"), (4, "opened"), (4, "closed")]


def test_who_cried_wolf_is_heard_less_until_it_is_long_ago() -> None:
    rule = AlertRule(close_after=0, escalation=10.0)
    scores = [
        11.0,
        1.0,
        12.9,
        13.1,
        14.7,
        14.8,
    ]  # log10(2), log10(3) of the alerts before, times ten, above 10
    assert [index for index, kind in kinds(decide(rule, scores)) if kind == "opened"] == [0, 3, 5]
    soon = AlertRule(close_after=0, escalation=10.0, escalation_memory=1e-3)
    assert [index for index, kind in kinds(decide(soon, scores)) if kind == "opened"] == [0, 2, 3, 4, 5]


def test_a_reading_that_is_not_newer_may_open_an_alert_again() -> None:
    table = AlertTable(AlertRule(close_after=1))
    counts = np.array([7, 7, 7])  # of a replayed message, or in the same second: no newer reading to count
    events = table.decide(
        np.full(3, 10.0),
        np.zeros(3, np.int64),
        np.zeros(3),
        np.array([11.0, 1.0, 11.0]),
        replace(place(3), numbers=counts),
    )
    assert kinds(events) == [(0, "opened"), (1, "closed"), (2, "opened")]


def test_what_an_operator_closed_is_silent_and_not_learned_for_as_long_and_its_end_is_told_once() -> None:
    """Also of an alert that was open for longer than that: the time counts from the operator's word."""
    table, slot = AlertTable(AlertRule(close_after=3), silence=10.0), np.zeros(1, np.int64)

    def read(time: float, score: float) -> list[str]:
        events = table.decide(np.full(1, 10.0), slot, np.array([time]), np.array([score]), place(1))
        return [event.kind.value for event in events]

    def held(time: float) -> bool:
        return bool(table.is_open(slot, np.array([time]), 10.0)[0])

    assert [read(float(time), 11.0) for time in range(20)] == [["opened"], *[[]] * 19]
    assert not held(19.0), "accepted by time"
    assert table.close(0, 19.0, 20, learned=False) is not None
    assert [read(float(time), 11.0) for time in range(20, 29)] == [[]] * 9
    assert held(28.0)
    assert not held(29.0)
    assert read(29.0, 1.0) == ["released"]
    assert read(30.0, 11.0) == ["opened"]


class Follower:
    """One machine with an alert rule that closes after two normal readings, read by read; threshold 10."""

    def __init__(self, silence: float) -> None:
        self.table = AlertTable(AlertRule(close_after=2), silence)
        self.slot = np.zeros(1, np.int64)

    def read(self, time: float, score: float) -> str:
        limit, at, found = np.full(1, 10.0), np.array([time]), np.array([score])
        return " ".join(
            event.kind.value for event in self.table.decide(limit, self.slot, at, found, place(1))
        )


@pytest.mark.parametrize("by", ["time", "word", "label"])
def test_what_was_accepted_is_known_before_an_alert_opens_of_it_again(by: str) -> None:
    machine = Follower(silence=200.0)
    assert machine.read(0.0, 11.0) == "opened"
    if by == "word":
        assert machine.table.accept(machine.slot).tolist() == [0]
    if by == "label":
        assert machine.table.close(0, 200.0, 1, learned=True) is not None
    assert machine.read(200.0, 1.0) == ""
    assert machine.read(201.0, 1.0) == ("released" if by == "label" else "closed")
    assert [machine.read(202.0 + i, score) for i, score in enumerate((11.0, 1.0, 19.0, 1.0))] == [""] * 4
    assert not machine.table.is_open(machine.slot, np.array([206.0]), 200.0)[0], "it is learned"
    assert machine.read(206.0, 20.0) == "opened", "twice the threshold is something else"
    assert machine.table.is_open(machine.slot, np.array([207.0]), 200.0)[0]


@pytest.mark.parametrize(("calm", "told"), [(49, ""), (50, "opened")])
def test_a_regime_is_known_after_fifty_normal_readings_in_a_row(calm: int, told: str) -> None:
    machine = Follower(silence=1000.0)
    assert machine.read(0.0, 11.0) == "opened"
    machine.table.accept(machine.slot)
    after = [""] * calm if calm < 50 else [*[""] * 49, "settled"]
    assert [machine.read(1.0 + i, 1.0) for i in range(2 + calm)] == ["", "closed", *after]
    assert machine.read(100.0, 11.0) == told


def test_a_regime_is_changing_from_its_alert_until_it_has_settled() -> None:
    machine = Follower(silence=100.0)

    def changing(time: float) -> bool:
        return bool(machine.table.is_changing(machine.slot, np.array([time]), 100.0)[0])

    assert not changing(0.0)
    machine.read(0.0, 11.0)
    assert changing(1.0)
    assert changing(199.0), "also after it was accepted by time"
    assert not changing(200.0), "a regime may stay as unusual as it began"
    assert [machine.read(150.0, 1.0), machine.read(151.0, 1.0)] == ["", "closed"]
    assert changing(152.0)
    assert not changing(251.0)
    assert [machine.read(152.0 + i, 1.0) for i in range(50)][-1] == "settled"
    assert not changing(202.0)


def test_a_regime_that_never_calms_down_is_known_after_as_long_as_acceptance_takes() -> None:
    machine = Follower(silence=1000.0)
    assert machine.read(0.0, 11.0) == "opened"
    machine.table.accept(machine.slot)
    assert [machine.read(2.0, 1.0), machine.read(3.0, 1.0)] == ["", "closed"]
    assert [machine.read(time, 11.0) for time in (4.0, 1002.0, 1003.0)] == ["", "", "opened"]


def test_an_alert_that_nobody_accepted_opens_again_at_once() -> None:
    machine = Follower(silence=1000.0)
    told = [machine.read(float(i), score) for i, score in enumerate((11.0, 1.0, 1.0, 11.0))]
    assert told == ["opened", "", "closed", "opened"]

"""The alert rule, held against what its settings say: told from the whole past at each reading, and cut anywhere."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.alerting import AlertTable, EventKind, Place
from stream.rules import AlertRule

Told = tuple[int, str, str]


@dataclass(frozen=True)
class Seen:
    """One reading of a machine: seconds since the one before, score over threshold, and whether work goes on."""

    gap: float
    ratio: float
    quiet: bool


RULES = st.builds(
    lambda hold, more, at_once, **rest: AlertRule(
        hold=hold, within=None if more is None else hold + more, at_once=at_once if hold > 1 else None, **rest
    ),
    hold=st.integers(1, 4),
    more=st.none() | st.integers(0, 4),
    at_once=st.sampled_from([None, 1.5, 2.0]),
    close_after=st.integers(0, 4),
    hysteresis=st.sampled_from([0.0, 0.1, 0.5]),
    cooldown=st.sampled_from([0.0, 3.0, 20.0]),
    cooldown_readings=st.sampled_from([0, 1, 5]),
    severities=st.sampled_from([{"warning": 1.0, "critical": 2.0}, {"any": 1.0}]),
)
READINGS = st.lists(
    st.builds(
        Seen,
        gap=st.sampled_from([1.0, 2.5]),
        ratio=st.sampled_from([0.0, 0.4, 0.85, 0.95, 1.0, 1.5, 2.5]),
        quiet=st.sampled_from([False] * 9 + [True]),
    ),
    max_size=60,
)
THRESHOLD = 4.0


def said(rule: AlertRule, readings: list[Seen]) -> list[Told]:
    """Events (reading, kind, severity) as the settings have them: at each reading the past is looked at anew."""
    times = np.cumsum([reading.gap for reading in readings])
    events: list[Told] = []
    opened = -1  # the reading that opened the alert, -1 while none is open
    fresh = 0  # the first reading that may count for the next alert
    closed = -1
    names = list(rule.severities)

    def severity(first: int, last: int) -> str:
        worst = max(reading.ratio for reading in readings[first : last + 1])
        return names[sum(worst >= ratio for ratio in rule.severities.values()) - 1]

    first = 0
    for i, reading in enumerate(readings):
        if opened < 0:
            rests = closed >= 0 and (
                times[i] < times[closed] + rule.cooldown or i - closed <= rule.cooldown_readings
            )
            if rests or reading.quiet:
                fresh = i + 1
                continue
            window = range(max(fresh, i - (rule.within or rule.hold) + 1), i + 1)
            hits = [j for j in window if readings[j].ratio >= 1.0]
            at_once = rule.at_once is not None and reading.ratio >= rule.at_once
            if reading.ratio < 1.0 or (len(hits) < rule.hold and not at_once):
                continue
            first = hits[0]
            while chain := [
                j
                for j in range(max(fresh, first - (rule.within or rule.hold) + 1), first)
                if readings[j].ratio >= 1
            ]:
                first = chain[0]  # an anomaly counts for as long as the next comes within the window
            events.append((i, "opened", severity(first, i)))
            opened = i
            if rule.close_after > 0:
                continue
        calm = 0
        for j in range(i, opened, -1):
            if readings[j].ratio >= 1.0 - rule.hysteresis:
                break
            calm += 1
        if calm >= max(rule.close_after, 0) and (calm or rule.close_after == 0):
            events.append((i, "closed", severity(first, i)))
            opened, closed, fresh = -1, i, i + 1
        elif i > opened and reading.ratio >= 1.0 and severity(first, i) != severity(first, i - 1):
            events.append((i, "updated", severity(first, i)))
    return events


def told(rule: AlertRule, readings: list[Seen], cuts: list[int]) -> list[Told]:
    """What the rule says, cut into batches, each taken up by a table restored from the one before."""
    table, events = AlertTable(rule), []
    n = len(readings)
    times = np.cumsum([reading.gap for reading in readings]).astype(np.float64)
    scores = THRESHOLD * np.array([reading.ratio for reading in readings], dtype=np.float64)
    quiet = np.array([reading.quiet for reading in readings], dtype=np.bool_)
    edges = sorted({0, n, *(cut % (n + 1) for cut in cuts)})
    for start, stop in itertools.pairwise(edges):
        rows = np.arange(start, stop)
        slots = np.full(len(rows), 3, np.int64)
        place = Place(rows, np.zeros_like(rows), rows + 1, quiet[rows])
        limits = np.full(len(rows), THRESHOLD)
        for event in table.decide(limits, slots, times[rows], scores[rows], place):
            events.append((start + event.index, event.kind.value, event.severity))
        rest = AlertTable(rule)
        rest.restore(np.array([3]), table.snapshot(np.array([3])))
        table = rest
    return events


@settings(max_examples=400, deadline=None)
@given(RULES, READINGS, st.lists(st.integers(0, 1000), max_size=6))
def test_rule_does_what_its_settings_say_however_it_is_cut(
    rule: AlertRule, readings: list[Seen], cuts: list[int]
) -> None:
    assert told(rule, readings, cuts) == said(rule, readings)


@settings(max_examples=200, deadline=None)
@given(RULES, READINGS)
def test_alerts_open_and_close_in_turn_and_grow_only_worse(rule: AlertRule, readings: list[Seen]) -> None:
    events = told(rule, readings, [])
    kinds = [kind for _, kind, _ in events if kind != EventKind.UPDATED]
    assert kinds == [("opened", "closed")[i % 2] for i in range(len(kinds))]
    names, worst = list(rule.severities), -1
    for _, kind, severity in events:
        level = names.index(severity)
        assert level >= worst if kind == "closed" else level > worst
        worst = -1 if kind == "closed" else level
    assert not any(readings[i].quiet for i, kind, _ in events if kind == "opened")

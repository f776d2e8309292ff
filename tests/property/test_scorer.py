"""Splitting the stream anywhere gives the same scores, alerts and state, and so does a restart in between."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from detectors import KNN, AdaptiveZ, HalfSpaceTrees, River
from detectors.calibration import Calibration
from detectors.features import Calendar, Difference, Feature, Rate, Rolling
from stream.alerts import Alert
from stream.brokers.base import Delivery
from stream.readings import Decoder
from stream.recipes import online_info
from stream.rules import AlertRule, Combination, Learning, Maintenance
from stream.scorer import Scorer
from stream.topology import Sensor, Source, Topology

N = 240
SENSORS = ("a", "b")
DETECTORS: dict[str, Any] = {
    "z": AdaptiveZ(warmup=5, half_life=20),
    "trees": HalfSpaceTrees(n_trees=3, height=3, window_size=10, threshold=0.7),
    "river": River(river="LODA", warmup=5, settings={"n_random_cuts": 5}, threshold=2.0),
}


MAINTENANCE = Maintenance(start="2024-08-07T00:00:30Z", end="2024-08-07T00:00:40Z", machines=("m1",))
CALIBRATION = Calibration(warmup=20)
FEATURES: dict[str, Feature] = {
    "a_mean": Rolling(of="a", rolling="mean", window=4),
    "a_rate": Rate(of="a", rate="per_second"),
    "spread": Rolling(of="a_rate", rolling="range", window=3),
    "gap": Difference(difference=("a", "b")),
    "day": Calendar(calendar="weekday", zone="Asia/Kolkata"),
}
INPUTS = {"z": ("b", "gap", "a_mean", "spread"), "trees": ("a", "b")}
RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "relative": {},
    "learning": {"learning": Learning(while_open=True)},
    "accepted": {"learning": Learning(accept_after=3.0)},
    "moments": {"alert": AlertRule(close_after=0, cooldown=5.0, hold=2, within=3)},
    "calibrated": {"calibration": CALIBRATION, "alert": AlertRule(probability=0.05)},
    "budget": {
        "calibration": CALIBRATION,
        "alert": AlertRule(budget=6000.0, direction="up", min_deviation=0.1),
    },
    "mean": {
        "calibration": CALIBRATION,
        "combine": Combination(),
        "alert": AlertRule(probability=0.1, close_after=1),
    },
    "two": {
        "calibration": CALIBRATION,
        "combine": Combination(method="k_of_n"),
        "alert": AlertRule(probability=0.05, close_after=1, maintenance=(MAINTENANCE,)),
    },
    "some": {
        "calibration": CALIBRATION,
        "alert": AlertRule(probability=0.05, hold=2, within=3, close_after=1),
    },
    "some_together": {
        "calibration": CALIBRATION,
        "combine": Combination(weights={"trees": 0.5}),
        "alert": AlertRule(probability=0.1, close_after=1),
    },
    "features": {"features": FEATURES},
    "features_together": {
        "features": FEATURES,
        "calibration": CALIBRATION,
        "combine": Combination(method="max"),
        "alert": AlertRule(probability=0.05, close_after=1, direction="up"),
    },
}


def recipes(rule: str) -> dict[str, Any]:
    """Calibrated scores are held against a probability, not against the detectors' thresholds."""
    found = DETECTORS
    if rule == "relative":
        return {"knn": KNN(warmup=10, k=3), "z": DETECTORS["z"]}
    if "calibration" in RULES[rule]:
        found = {name: structs.replace(recipe, threshold=None) for name, recipe in found.items()}
    if rule.startswith("some"):  # which abstain where it is missing
        found = {n: structs.replace(recipe, inputs=("b",)) for n, recipe in found.items() if n != "trees"} | {
            "trees": found["trees"]
        }
    if "features" in RULES[rule]:
        found = {n: structs.replace(recipe, inputs=INPUTS.get(n, ())) for n, recipe in found.items()}
    return found


def topology(*, narrow: bool, rule: str = "plain") -> Topology:
    layout: dict[str, Any] = (
        {"layout": "narrow", "routing_key": "sensor.{machine}.{sensor}"} if narrow else {}
    )
    return Topology(
        name="t",
        source=Source(sensors=tuple(map(Sensor, SENSORS)), missing_sensor="accept", **layout),
        **{"alert": AlertRule(close_after=2), "detectors": recipes(rule), **RULES[rule]},
    )


def stream(seed: int, *, narrow: bool) -> list[Delivery]:
    """Three machines, spikes, missing sensors; now and then two rows in a message."""
    rng = np.random.default_rng(seed)
    found = []
    for offset in range(N):
        machine, time = f"m{rng.integers(3)}", 1_722_988_800.0 + offset * 0.4
        values = rng.normal(size=2) + 8.0 * (rng.random() < 0.08)
        body: dict[str, Any] = {"time": time, "values": dict(zip(SENSORS, values, strict=True))}
        key = f"sensor.{machine}.readings"
        if narrow:
            sensor = SENSORS[rng.integers(2)]
            key, body = f"sensor.{machine}.{sensor}", {"time": time, "value": values[0]}
        elif rng.random() < 0.1:
            del body["values"]["b"]
        elif rng.random() < 0.1:
            body = {"time": [time, time + 0.1], "values": {"a": [values[0], 1.0], "b": [values[1], 1.0]}}
        encoded = msgspec.json.encode(body, enc_hook=float)
        found.append(
            Delivery(body=encoded, exchange="x", routing_key=key, offset=offset, tag=offset, received=0.0)
        )
    return found


def fresh(wanted: Topology, rule: str) -> Scorer:
    models = {
        name: (recipe.build(wanted.inputs(name)), online_info(recipe))
        for name, recipe in recipes(rule).items()
    }
    return Scorer(wanted, models)


def process(
    deliveries: list[Delivery],
    cuts: list[int],
    *,
    narrow: bool,
    restart: bool,
    rule: str = "plain",
    closed: frozenset[int] = frozenset(),
) -> tuple[Any, ...]:
    """Scores, alerts and refusals. At the offsets of `closed` an operator closes every open alert."""
    wanted = topology(narrow=narrow, rule=rule)
    decoder, scorer = Decoder(wanted.source, lambda: 1_722_999_000.0), fresh(wanted, rule)
    scores: dict[str, list[float]] = defaultdict(list)
    alerts: list[Alert] = []
    refused: list[int] = []
    cuts = sorted([*cuts, *closed])
    for start, stop in zip([0, *cuts], [*cuts, N], strict=True):
        if start in closed:
            whose = [(machine, by) for machine in scorer.residents.names for by in scorer.open_alerts()]
            ended = [scorer.close_alert(*one, learned=start % 2 == 0) for one in whose]
            alerts += [alert for alert in ended if alert is not None]
        part = deliveries[start:stop]
        batch, rejected = decoder.decode(part)
        assert not rejected
        offsets = np.array([delivery.offset for delivery in part], dtype=np.int64)
        scorer.admit(scorer.residents.missing(batch.machines), {})
        scored = scorer.process(batch, offsets[batch.messages])
        for name, column in scored.scores.items():
            scores[name] += np.nan_to_num(column, nan=-1.0).tolist()  # who abstained: -1, which equals itself
        alerts += scored.alerts
        refused += [part[index].offset for index, _ in scored.refused]
        if restart:
            names = scorer.residents.names
            saved, scorer = (names, scorer.components(scorer.residents.slots(names))), fresh(wanted, rule)
            scorer.admit(*saved)
    return scores, alerts, refused


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    cuts=st.lists(st.integers(0, N), max_size=6).map(sorted),
    narrow=st.booleans(),
    restart=st.booleans(),
    rule=st.sampled_from(sorted(RULES)),
)
def test_cuts_and_restarts_change_nothing(
    seed: int, cuts: list[int], *, narrow: bool, restart: bool, rule: str
) -> None:
    deliveries = stream(seed, narrow=narrow)
    assert process(deliveries, cuts, narrow=narrow, restart=restart, rule=rule) == process(
        deliveries, [], narrow=narrow, restart=False, rule=rule
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    cuts=st.lists(st.integers(0, N), max_size=6),
    closed=st.frozensets(st.integers(20, N - 1), min_size=1, max_size=8),
    restart=st.booleans(),
    rule=st.sampled_from(["plain", "accepted", "calibrated", "mean", "two"]),
)
def test_cuts_change_nothing_where_operators_close_alerts(
    seed: int, cuts: list[int], closed: frozenset[int], *, restart: bool, rule: str
) -> None:
    deliveries = stream(seed, narrow=False)
    asked: dict[str, Any] = {"narrow": False, "rule": rule, "closed": closed}
    cuts = sorted(set(cuts) - closed)
    whole = process(deliveries, [], restart=False, **asked)
    assert process(deliveries, cuts, restart=restart, **asked) == whole
    kinds: dict[tuple[str, str], list[str]] = defaultdict(list)
    for alert in whole[1]:
        kinds[alert.machine, alert.detector].append(alert.event)
    for events in kinds.values():
        turns = [event for event in events if event != "updated"]
        assert turns == [("opened", "closed")[i % 2] for i in range(len(turns))]


@pytest.mark.parametrize("rule", RULES)
def test_a_batch_gives_what_reading_after_reading_gives(rule: str) -> None:
    deliveries = stream(1, narrow=False)
    whole = process(deliveries, [], narrow=False, restart=False, rule=rule)
    assert process(deliveries, list(range(1, N)), narrow=False, restart=False, rule=rule) == whole
    assert {alert.event for alert in whole[1]} >= {"opened", "closed"}
    seen = {alert.detector for alert in whole[1]}
    assert seen == {"combined"} if "combine" in RULES[rule] else seen <= set(recipes(rule))


@pytest.mark.parametrize("rule", RULES)
def test_state_that_is_dear_to_copy_is_judged_turn_by_turn_with_the_same_outcome(
    monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    deliveries = stream(2, narrow=False)
    cuts = list(range(0, N, 8))[1:]
    by_copies = process(deliveries, cuts, narrow=False, restart=False, rule=rule)
    monkeypatch.setattr("stream.ensemble._COPIED", -1)
    monkeypatch.setattr("stream.ensemble._TURNS", N)
    assert process(deliveries, cuts, narrow=False, restart=False, rule=rule) == by_copies


def test_the_streams_compared_do_have_alerts_and_refusals() -> None:
    wide = process(stream(0, narrow=False), [], narrow=False, restart=False)
    assert {alert.detector for alert in wide[1]} == set(DETECTORS)
    assert {alert.event for alert in wide[1]} >= {"opened", "closed"}
    narrow = process(stream(0, narrow=True), [], narrow=True, restart=False)
    assert narrow[1]

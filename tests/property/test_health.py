"""Sick sensors and machines in a topology: cuts and restarts change neither scores nor alerts nor state."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors import MEWMA, AdaptiveZ, LeftMatrixProfile
from detectors.features import Rolling
from detectors.health import AILMENTS, Health
from stream.alerts import Alert
from stream.brokers.base import Delivery
from stream.readings import Decoder
from stream.recipes import online_info
from stream.rules import AlertRule
from stream.scorer import Scorer
from stream.topology import Sensor, Source, Topology

N = 500
START = 1_722_988_800.0
SENSORS = ("pressure", "flow")


def topology(*, narrow: bool) -> Topology:
    layout: dict[str, Any] = (
        {"layout": "narrow", "routing_key": "sensor.{machine}.{sensor}"} if narrow else {}
    )
    return Topology(
        name="t",
        source=Source(
            sensors=(Sensor("pressure", minimum=0, maximum=100), Sensor("flow", unit="l/s")),
            out_of_range="alert",
            **layout,
        ),
        features={"usual": Rolling(of="pressure", rolling="mean", window=4)},
        detectors={
            "z": AdaptiveZ(warmup=5, half_life=20),
            "chart": MEWMA(warmup=30, rate=0.3),
            "profile": LeftMatrixProfile(length=4, history=40, inputs=SENSORS),
        },
        health=Health(stuck_after=12, silent_after=60.0, skew=30.0),
        alert=AlertRule(close_after=2),
    )


def stream(seed: int, *, narrow: bool) -> list[Delivery]:
    """Four machines in turn, a reading in four seconds, each with an ailment of its own, and a spike now and then."""
    rng = np.random.default_rng(seed)
    found = []
    for offset in range(N):
        number, time = int(rng.integers(4)), START + 4.0 * offset
        values = dict(zip(SENSORS, rng.normal([50.0, 300.0]) + 9.0 * (rng.random() < 0.02), strict=True))
        if rng.random() < 0.02:
            values["pressure"] = 150.0
        if number == 0 and offset > 300:
            values["pressure"] = 52.5
        if number == 1 and 200 < offset < 400:
            del values["flow"]
        if number == 2 and offset > 260:
            values["flow"] *= 10.0
        if number == 3 and 150 < offset < 300:
            time += 3600.0
        if number == 3 and 330 < offset < 400:
            continue
        if narrow:
            for sensor, value in values.items():
                found.append((f"sensor.m{number}.{sensor}", {"time": time, "value": value}))
        else:
            found.append((f"sensor.m{number}.all", {"time": time, "values": values}))
    return [
        Delivery(
            body=msgspec.json.encode(body, enc_hook=float),
            exchange="x",
            routing_key=key,
            offset=offset,
            tag=offset,
            received=0.0,
        )
        for offset, (key, body) in enumerate(found)
    ]


def fresh(wanted: Topology) -> Scorer:
    models = {
        name: (spec.build(wanted.inputs(name)), online_info(spec))  # type: ignore[union-attr, arg-type]
        for name, spec in wanted.detectors.items()
    }
    return Scorer(wanted, models)


def process(deliveries: list[Delivery], cuts: list[int], *, narrow: bool, restart: bool) -> tuple[Any, ...]:
    """Scores, alerts, and the state of every machine in the end. A restart keeps what a checkpoint has."""
    wanted = topology(narrow=narrow)
    decoder, scorer = Decoder(wanted.source, lambda: START + 1e6), fresh(wanted)
    scores: dict[str, list[float]] = defaultdict(list)
    alerts: list[Alert] = []
    kept: dict[str, Any] = {}
    for start, stop in zip([0, *cuts], [*cuts, len(deliveries)], strict=True):
        part = deliveries[start:stop]
        batch, rejected = decoder.decode(part)
        assert not rejected
        offsets = np.array([delivery.offset for delivery in part], dtype=np.int64)
        scorer.admit(scorer.residents.missing(batch.machines), {})
        scored = scorer.process(batch, offsets[batch.messages])
        scores["z"] += scored.scores["z"].tolist()
        alerts += scored.alerts
        for slot in scored.touched.tolist():
            kept[scorer.residents.name(slot)] = scorer.components(np.array([slot]))
        if restart:
            scorer = fresh(wanted)
            for machine in sorted(kept, reverse=True):
                scorer.admit([machine], kept[machine])
    return scores, alerts, {machine: kept[machine] for machine in sorted(kept)}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    cuts=st.lists(st.integers(0, 450), max_size=6).map(sorted),
    narrow=st.booleans(),
    restart=st.booleans(),
)
def test_cuts_and_restarts_change_nothing(seed: int, cuts: list[int], *, narrow: bool, restart: bool) -> None:
    deliveries = stream(seed, narrow=narrow)
    np.testing.assert_equal(
        process(deliveries, cuts, narrow=narrow, restart=restart),
        process(deliveries, [], narrow=narrow, restart=False),
    )


@pytest.mark.parametrize("narrow", [False, True])
def test_the_streams_compared_have_every_ailment_and_process_alerts(*, narrow: bool) -> None:
    _, alerts, _ = process(stream(0, narrow=narrow), [], narrow=narrow, restart=False)
    opened = {alert.type for alert in alerts if alert.event == "opened"}
    missing = (
        {"sensor_silent"} if narrow else set()
    )  # a row without a sensor comes too late for so short a silence
    assert opened >= {"process", *AILMENTS} - missing
    by_id: dict[str, list[str]] = defaultdict(list)
    for alert in alerts:
        by_id[alert.id].append(alert.event)
    assert all(events[0] == "opened" and "opened" not in events[1:] for events in by_id.values())


def test_a_sick_sensor_is_told_once_and_its_values_are_kept_from_the_detector() -> None:
    _, alerts, _ = process(stream(0, narrow=False), [], narrow=False, restart=False)
    stuck = next(alert for alert in alerts if alert.type == "sensor_stuck")
    assert (stuck.detector, stuck.machine, stuck.event, stuck.sequence) == ("health", "m0", "opened", 0)
    assert stuck.reason == "pressure has stood at exactly 52.5 for 20 readings: the sensor may be stuck."
    assert [(reason.sensor, reason.value, reason.share) for reason in stuck.contributions] == [
        ("pressure", 52.5, 1.0)
    ]
    reasons = {alert.type: alert.reason for alert in reversed(alerts) if alert.event == "opened"}
    assert (
        reasons["sensor_out_of_range"]
        == "pressure says 150, but can only be 0 to 100: the sensor may be broken."
    )
    assert reasons["unit_jump"].endswith(", 10 times as much: its unit may have changed.")
    assert reasons["machine_silent"].startswith("m3 has sent nothing since 2024-08-07 ")
    assert reasons["clock_skew"].startswith("The clock of m3 is 60.1 min ahead of the newest readings")
    blamed = [
        alert.contributions[0].sensor
        for alert in alerts
        if alert.machine == "m2" and alert.type == "process" and alert.position.offset > 480
    ]
    assert "flow" not in blamed

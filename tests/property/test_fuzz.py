"""No input stops a topology: almost-right messages of every layout, and hundreds of thousands of damaged ones.

Set MMLW_FUZZ_SEED to run one seed again.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from detectors import AdaptiveZ, HalfSpaceTrees
from stream.alerts import alert_message
from stream.brokers.base import Delivery, Message
from stream.deadletters import dead_letter
from stream.errors import ReadingRejected
from stream.metrics import Cause, Policy, Reason
from stream.readings import Decoder
from stream.recipes import online_info
from stream.rules import AlertRule
from stream.scorer import Scorer
from stream.topology import Fields, Sensor, Source, Topology
from tests.aio import run
from tests.plant import Plant
from tests.property.almost import EPOCH, KEYS, SENSORS, TYPES, bodies, damaged

SEED = int(os.environ.get("MMLW_FUZZ_SEED") or int.from_bytes(os.urandom(4)))
EXAMPLES, MUTANTS = 2_000, 50
"""Messages drawn; each goes in twice, as JSON and MessagePack, and each of these with so many damaged ones."""
NOW = EPOCH + 86_400.0

_COLUMNS = tuple(map(Sensor, SENSORS))
_LENIENT: dict[str, Any] = {
    "unknown_sensor": "ignore", "not_finite": "missing", "out_of_range": "missing", "duplicate": "accept",
}  # fmt: skip
SOURCES: dict[str, Source] = {
    "strict": Source(
        sensors=(Sensor("a", minimum=-50.0, maximum=50.0), *_COLUMNS[1:]),
        out_of_range="deadletter",
        duplicate="deadletter",
        late="deadletter",
        machines=("m*", "x"),
        max_body=1_500,
    ),
    "lenient": Source(
        sensors=_COLUMNS, machine="m0", routing_key="sensor.*.*", late="drop", lateness=5.0, **_LENIENT
    ),
    "narrow": Source(sensors=_COLUMNS, layout="narrow", routing_key="sensor.{machine}.{sensor}"),
    "narrow, lenient": Source(
        sensors=_COLUMNS,
        layout="narrow",
        routing_key="sensor.{machine}.{sensor}",
        order_by="time",
        machine="m0",
        **_LENIENT,
    ),
    "flat": Source(sensors=_COLUMNS, fields=Fields(values=""), missing_sensor="deadletter"),
    "mapped": Source(
        sensors=(Sensor("a", path="values.a", minimum=-5.0, maximum=50.0), Sensor("b", path="tsdata"), "ü.µ"),  # type: ignore[arg-type]
        routing_key="sensor.*.*",
        order_by="time",
        fields=Fields(values="values"),
        **_LENIENT,
    ),
}
DETECTORS: dict[str, Any] = {
    "z": AdaptiveZ(warmup=2, half_life=20, threshold=3.0),
    "trees": HalfSpaceTrees(n_trees=3, height=3, window_size=4, threshold=0.5),
}


def _topology(source: Source) -> Topology:
    return Topology(name="plant", source=source, detectors=DETECTORS, alert=AlertRule(close_after=1))


TOPOLOGIES = {name: _topology(source) for name, source in SOURCES.items()}


def _layout(source: str) -> str:
    return "flat" if source == "flat" else SOURCES[source].layout.replace("auto", "whole")


BODIES = {name: bodies(_layout(name)) for name in SOURCES}
GIVEN = st.sampled_from(sorted(SOURCES)).flatmap(lambda name: st.tuples(st.just(name), BODIES[name]))
CHANCE = st.integers(0, 2**32)
PROFILE: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


def assert_sendable(message: Message) -> None:
    """What RabbitMQ takes: short strings of at most 255 bytes, headers in UTF-8."""
    for text in (message.exchange, message.routing_key, message.content_type, message.message_id or ""):
        assert len(text.encode()) <= 255
    for name, value in message.headers.items():
        assert len(name.encode()) <= 255
        str(value).encode()


def assert_refusal(error: ReadingRejected, delivery: Delivery) -> None:
    assert error.reason in get_args(Reason)
    assert 0 < len(error.detail) <= 300
    assert error.detail.isprintable()
    assert_sendable(dead_letter("plant", delivery, error))


def decode_score(topology: Topology, deliveries: Sequence[Delivery]) -> Counter[str]:
    """The way of a batch without broker and store; what became of each message."""
    decoder = Decoder(topology.source, lambda: NOW)
    names = topology.source.names
    scorer = Scorer(topology, {name: (d.build(names), online_info(d)) for name, d in DETECTORS.items()})
    batch, rejected = decoder.decode(deliveries)
    used, refused = set(batch.messages.tolist()), [index for index, _ in rejected]
    assert sorted([*used, *refused]) == list(range(len(deliveries)))
    assert not np.isinf(batch.values).any()
    assert np.isfinite(batch.times).all()
    for machine in set(batch.machines):
        assert 0 < len(machine) <= 255
        machine.encode()
    scorer.admit(scorer.residents.missing(batch.machines), {})
    offsets = np.array([delivery.offset for delivery in deliveries], dtype=np.int64)[batch.messages]
    scored = scorer.process(batch, offsets)
    assert (np.abs(np.nan_to_num(scored.batch.values)) <= 3.4e38).all(), "else no detector is shown it"
    assert not scored.unhealthy
    for scores in scored.scores.values():
        assert scores.shape == (len(scored.batch),)
        assert not np.isinf(scores).any()
        nothing = np.isnan(scored.batch.values).all(axis=1)
        assert np.array_equal(np.isnan(scores), nothing), "who sees nothing abstains, and nobody else"
    for index, error in [*rejected, *scored.refused]:
        assert_refusal(error, deliveries[index])
    assert {index for index, _ in scored.refused} <= used
    for alert in scored.alerts:
        message = alert_message(alert, "mmlw.alerts")
        assert_sendable(message)
        assert np.isfinite(msgspec.json.decode(message.body)["score"])
    slots = scorer.residents.slots(scorer.residents.names)
    for table, rows in scorer.components(slots).items():
        for column in rows.values():
            if table.startswith("model:") and column.dtype.kind == "f":
                assert np.isfinite(column).all()
    found = Counter(error.reason for _, error in [*rejected, *scored.refused])
    found["used"] = len(deliveries) - found.total()
    found["alerts"] = len(scored.alerts)
    return found


def delivery(body: bytes, key: str, content_type: str, offset: int) -> Delivery:
    return Delivery(
        body=body,
        exchange="mmlw.sensors",
        routing_key=key,
        offset=offset,
        tag=offset + 1,
        received=0.0,
        content_type=content_type,
    )


def readings_of(machine: bytes) -> list[bytes]:
    """Enough of one machine's readings that it has alerts."""
    return [
        b'{"machine": %s, "time": %d, "values": {"a": %s}}' % (machine, EPOCH + i, value)
        for i, value in enumerate([b"0", b"1", b"0", b"1", b"3e38", b"0", b"-3e38", b"1"])
    ]


ONCE_FATAL = {
    "half a character in a name": readings_of(b'"m\\ud800"'),
    "a name too long for a routing key": readings_of(b'"' + "😀".encode() * 120 + b'"'),
    "labels of two types": [
        msgspec.msgpack.encode({"time": {"0": EPOCH}, "a": {"0": 1, 1: 2, "x": 3}, "b": {None: 1, "y": 2}})
    ],
    "half a character in a sensor's name": [b'{"time": %d, "values": {"\\ud800\\u001b": 1}}' % EPOCH],
    "a sensor's name that goes on and on": [b'{"time": %d, "values": {"%s": 1}}' % (EPOCH, b"x" * 1000)],
}


@pytest.mark.parametrize("source", sorted(SOURCES))
@pytest.mark.parametrize("what", ONCE_FATAL)
def test_what_stopped_a_topology_once_stops_none(source: str, what: str) -> None:
    became = decode_score(
        TOPOLOGIES[source],
        [delivery(body, "sensor.any", "", i) for i, body in enumerate(ONCE_FATAL[what])],
    )
    assert became.total() - became["alerts"] == len(ONCE_FATAL[what])


def test_two_hundred_thousand_bodies_are_readings_or_dead_letters() -> None:
    print(f"MMLW_FUZZ_SEED={SEED}")
    became: Counter[str] = Counter()
    given_: Counter[str] = Counter()

    @seed(SEED)
    @settings(max_examples=EXAMPLES, **PROFILE)
    @given(what=GIVEN, chance=CHANCE)
    def fuzz(what: tuple[str, tuple[bytes, bytes]], chance: int) -> None:
        rng = random.Random(chance)
        source, forms = what
        mutants = [damaged(body, rng) for body in forms for _ in range(MUTANTS)]
        batch = [
            delivery(body, rng.choice(KEYS), rng.choice(TYPES), i)
            for i, body in enumerate([*forms, *mutants])
        ]
        became.update(decode_score(TOPOLOGIES[source], batch))
        given_.update({"bodies": len(batch), source: len(batch)})

    fuzz()
    alerts = became.pop("alerts")
    print(f"{given_}; {alerts} alert events; became {became}")
    assert given_["bodies"] == became.total() >= 200_000
    assert set(given_) == {"bodies", *SOURCES}
    assert alerts > 100
    assert became["used"] > given_["bodies"] / 100
    engines_own = {"too_many_machines", "detector_failed", "killed_worker"}
    assert set(get_args(Reason)) - engines_own == set(became) - {"used"}  # every reason occurred


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_a_running_worker_survives_them_and_counts_every_one(source: str) -> None:
    """With forged and true replays among them. It never restarts, and a second worker finds its state."""
    print(f"MMLW_FUZZ_SEED={SEED}")
    total = 0

    async def live(messages: Sequence[Message], folder: Path) -> None:
        nonlocal total
        topology = msgspec.structs.replace(
            TOPOLOGIES[source], source=msgspec.structs.replace(SOURCES[source], max_machines=5, linger=0.0)
        )
        plant = Plant(folder, topology)
        await plant.declare()
        half = len(messages) // 2
        await plant.publish(messages[:half])
        await plant.process(half)
        await plant.publish(messages[half:])
        await plant.process(len(messages))
        became = Counter(
            {
                **{r: plant.value("mmlw_messages_deadlettered_total", reason=r) for r in get_args(Reason)},
                **{
                    f"{p}, no letter": plant.value("mmlw_messages_passed_over_total", policy=p)
                    for p in get_args(Policy)
                },
                "processed": plant.value("mmlw_messages_processed_total"),
            }
        )
        assert became.total() == plant.value("mmlw_messages_received_total")
        assert became.total() - became["replayed, no letter"] == len(messages)
        assert not became["detector_failed"]
        assert not sum(plant.value("mmlw_restarts_total", cause=cause) for cause in get_args(Cause))
        for letter in await plant.kept("mmlw.deadletters"):
            assert letter.headers["mmlw-reason"] in get_args(Reason)
            assert str(letter.headers["mmlw-detail"]).isprintable()
        assert len(await plant.alerts()) == sum(
            plant.value("mmlw_alerts_total", detector=detector, event=event)
            for detector in DETECTORS
            for event in ("opened", "updated", "closed")
        )
        total += len(messages)

    @seed(SEED)
    @settings(max_examples=8, phases=[Phase.generate], **PROFILE)
    @given(forms=st.lists(BODIES[source], min_size=10, max_size=10), chance=CHANCE)
    def fuzz(forms: list[tuple[bytes, bytes]], chance: int) -> None:
        rng = random.Random(chance)
        messages = []
        for pair in forms:
            for body in [*pair, *(damaged(rng.choice(pair), rng) for _ in range(10))]:
                message = Message(
                    exchange="mmlw.sensors",
                    routing_key=rng.choice([key for key in KEYS if key.startswith("sensor")]),
                    body=body,
                    content_type=rng.choice(TYPES),
                    message_id=rng.choice([None, "", "x" * 255, "1", "2", "😀"]),
                    headers=rng.choice([{}, {"mmlw-replay": 1}, {"mmlw-replay": "x", "mmlw-routing-key": 7}]),
                )
                if rng.random() < 0.3:
                    message = msgspec.structs.replace(message, exchange="", routing_key="mmlw.readings.plant")
                messages.append(message)
        with tempfile.TemporaryDirectory() as folder:
            run(live(messages, Path(folder)))

    fuzz()
    print(f"{total} messages")
    assert total >= 960

"""A machine that starts from its sister: cuts and restarts change neither scores nor alerts nor state."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors import AdaptiveZ, River
from detectors.calibration import Calibration
from stream.brokers.base import Delivery
from stream.readings import Decoder
from stream.recipes import online_info
from stream.rules import AlertRule, Combination, Learning, StartFrom
from stream.scorer import Scorer
from stream.topology import Sensor, Source, Topology

N = 420
START = 1_722_988_800.0
DETECTORS: dict[str, Any] = {
    "z": AdaptiveZ(warmup=5, half_life=20),
    "river": River(river="LODA", warmup=5, settings={"n_random_cuts": 5}),
}
RULES: dict[str, StartFrom] = {"sister": "sister", "named": {"pump-*": "pump-2", "fan*": "nobody"}}


def topology(rule: StartFrom | None, *, together: bool) -> Topology:
    return Topology(
        name="t",
        source=Source(sensors=(Sensor("a"), Sensor("b"))),
        detectors=DETECTORS,
        calibration=Calibration(warmup=50),
        combine=Combination() if together else None,
        learning=Learning(start_from=rule),
        alert=AlertRule(probability=0.05, close_after=2),
    )


def stream(seed: int) -> list[Delivery]:
    """Two pumps from the start, others, and a fan, that come one after another."""
    rng = np.random.default_rng(seed)
    found = []
    for offset in range(N):
        known = ["pump-10", "pump-2", "fan1", "pump-3", "pump-1", "valve", "pump-44"]
        machine = known[rng.integers(2 + max(0, offset - 150) // 50)] if offset > 150 else known[offset % 2]
        values = rng.normal(size=2) + 9.0 * (rng.random() < 0.03)
        body = {"machine": machine, "time": START + offset, "values": {"a": values[0], "b": values[1]}}
        found.append(delivery(offset, body))
    return found


def delivery(offset: int, body: dict[str, Any]) -> Delivery:
    encoded = msgspec.json.encode(body, enc_hook=float)
    return Delivery(body=encoded, exchange="x", routing_key="s", offset=offset, tag=offset, received=0.0)


def fresh(wanted: Topology) -> Scorer:
    return Scorer(wanted, {n: (r.build(("a", "b")), online_info(r)) for n, r in DETECTORS.items()})


def process(
    deliveries: list[Delivery], cuts: list[int], wanted: Topology, *, restart: bool, careful: bool = False
) -> tuple[Any, ...]:
    decoder, scorer = Decoder(wanted.source, lambda: START + 1e6), fresh(wanted)
    scores: dict[str, list[float]] = {}
    alerts: list[Any] = []
    for start, stop in zip([0, *cuts], [*cuts, N], strict=True):
        batch, rejected = decoder.decode(deliveries[start:stop])
        assert not rejected
        scorer.admit(scorer.residents.missing(batch.machines), {})
        scored = scorer.process(batch, np.arange(start, stop)[batch.messages], careful=careful)
        for name, column in scored.scores.items():
            scores.setdefault(name, []).extend(column.tolist())
        alerts += scored.alerts
        if restart:
            names = sorted(scorer.residents.names)
            saved = scorer.components(np.array([scorer.residents.find(name) for name in names], np.int64))
            scorer = fresh(wanted)
            if names:
                scorer.admit(names, saved)
    names = sorted(scorer.residents.names)
    return scores, alerts, scorer.components(np.array([scorer.residents.find(name) for name in names]))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    cuts=st.lists(st.integers(0, N), max_size=6).map(sorted),
    restart=st.booleans(),
    together=st.booleans(),
    rule=st.sampled_from(sorted(RULES)),
)
def test_cuts_and_restarts_change_nothing(
    seed: int, cuts: list[int], *, restart: bool, together: bool, rule: str
) -> None:
    wanted = topology(RULES[rule], together=together)
    deliveries = stream(seed)
    np.testing.assert_equal(
        process(deliveries, cuts, wanted, restart=restart), process(deliveries, [], wanted, restart=False)
    )


@pytest.mark.parametrize("rule", sorted(RULES))
def test_reading_by_reading_gives_the_same(rule: str) -> None:
    wanted = topology(RULES[rule], together=False)
    whole = process(stream(1), [], wanted, restart=False)
    np.testing.assert_equal(process(stream(1), [], wanted, restart=False, careful=True), whole)
    np.testing.assert_equal(process(stream(1), list(range(1, N)), wanted, restart=False), whole)


def first_scores(rule: StartFrom | None, machine: str) -> list[float]:
    """The raw scores of a machine's first five readings, by the detector that needs five readings."""
    wanted = msgspec.structs.replace(
        topology(rule, together=False), calibration=None, alert=AlertRule(), detectors={"z": DETECTORS["z"]}
    )
    scorer = Scorer(wanted, {"z": (DETECTORS["z"].build(("a", "b")), online_info(DETECTORS["z"]))})
    batch, _ = Decoder(wanted.source, lambda: START + 1e6).decode(stream(0))
    scorer.admit(scorer.residents.missing(batch.machines), {})
    scored = scorer.process(batch, np.arange(N))
    found: list[float] = scored.scores["z"][np.array(batch.machines) == machine][:5].tolist()
    return found


def test_a_new_machine_scores_from_its_first_reading_where_it_has_a_warm_sister() -> None:
    assert not any(first_scores(None, "pump-44"))
    assert all(score > 0 for score in first_scores("sister", "pump-44"))
    assert all(score > 0 for score in first_scores({"pump-*": "pump-10"}, "pump-44"))
    assert first_scores({"pump-*": "pump-10"}, "pump-44") != first_scores({"pump-*": "pump-2"}, "pump-44")


def test_without_a_warm_sister_a_machine_starts_from_nothing() -> None:
    assert not any(first_scores("sister", "pump-2")[:4])  # its sister is as new
    assert not any(first_scores("sister", "fan1")[:4])
    assert not any(first_scores("sister", "valve")[:4])
    assert not any(first_scores({"pump-*": "pump-99"}, "pump-44")[:4])


def test_a_sister_gives_what_it_had_learned_just_before() -> None:
    """The new machine's first score is that of its sister, had it sent that reading instead."""
    wanted = topology({"pump-*": "pump-2"}, together=False)
    deliveries = stream(3)
    decoder = Decoder(wanted.source, lambda: START + 1e6)
    batch, _ = decoder.decode(deliveries)
    row = batch.machines.index("pump-3")
    whole = process(deliveries, [], wanted, restart=False)[0]
    instead = msgspec.json.decode(deliveries[row].body)
    instead["machine"] = "pump-2"
    changed = [*deliveries]
    changed[row] = delivery(row, instead)
    other = process(changed, [], wanted, restart=False)[0]
    for name in DETECTORS:
        assert whole[name][row] == other[name][row]

"""Workers are killed for real, at every named point and at any moment, and what they leave is audited."""

from __future__ import annotations

import itertools
import json
import secrets
from dataclasses import replace
from pathlib import Path

import aio_pika
import msgspec
import pytest

from stream.topology import Topology
from tests.aio import run
from tests.rabbitmq_node import RabbitNode
from tests.torture.audit import Evidence, audit, reference, state_of
from tests.torture.campaign import Campaign, resumed
from tests.torture.detonator import DETONATES, Detonator
from tests.torture.hall import MODES, Mode, Sent, last, readings, topology
from tests.torture.life import Orders
from tests.torture.points import POINTS
from tests.torture.sitting import Report, last_life, prepared_broker, publish, sit, stream_content
from tests.torture.table import table


@pytest.mark.parametrize("mode", MODES)
def test_worker_killed_at_every_point_loses_nothing_and_doubles_nothing(
    rabbitmq: RabbitNode, tmp_path: Path, mode: Mode
) -> None:
    url, seed = rabbitmq.url(vhost=rabbitmq.vhost()), secrets.randbelow(1_000_000)
    report = run(sit(url, tmp_path, mode, seed=seed, kills=16))
    print(table(Campaign(seed=seed, modes=(mode,), kills=16, reports=[report])))
    assert set(report.kills) == {*POINTS, "any moment"}
    assert report.found.faults == {}
    assert report.found.alerts > 50
    assert report.found.letters > 10


def with_detonator(mode: Mode) -> Topology:
    whole = topology(mode)
    detectors = {"spike": whole.detectors["spike"], "mine": Detonator()}
    return msgspec.structs.replace(whole, detectors=detectors)


@pytest.mark.parametrize("mode", ["stream", "quorum"])
def test_reading_that_kills_the_process_is_put_aside_after_exactly_three_deaths(
    rabbitmq: RabbitNode, tmp_path: Path, mode: Mode
) -> None:
    hall, seed = with_detonator(mode), secrets.randbelow(1_000_000)
    print(f"seed {seed}")
    sent = [item for item in itertools.islice(readings(seed), 1500) if item.kind != "again"]
    at = next(i for i in range(1000, len(sent)) if sent[i].kind == "fresh")
    mine = armed(sent[at])
    sent[at:] = [mine, *sent[at + 1 :], last()]
    url = rabbitmq.url(vhost=rabbitmq.vhost())

    async def scenario() -> tuple[list[int], Evidence, Evidence]:
        await prepared_broker(url, hall, mode)
        async with await aio_pika.connect(url) as connection:
            await publish(await connection.channel(), sent)
        codes = [await last_life(Orders(url, tmp_path, hall))]
        while codes[-1] and len(codes) < 8:
            codes.append(await last_life(Orders(url, tmp_path, hall)))
        state, learned, _ = state_of(hall, tmp_path)
        alerts = await stream_content(url, "mmlw.alerts")
        letters = await stream_content(url, "mmlw.deadletters")
        got = Evidence(alerts, letters, state, learned)
        harmless = [*sent[:at], replace(mine, body=b"{"), *sent[at + 1 :]]
        wanted = await reference(hall, tmp_path / "calm", harmless, [])
        return codes, got, wanted

    codes, got, wanted = run(scenario())
    assert codes == [1, 1, 1, 0]
    assert (tmp_path / "log").read_text().count('"reason": "killed_worker"') == 1
    found = audit(sent, [], got, wanted)
    assert found.faults == {}
    assert found.alerts > 5


def armed(item: Sent) -> Sent:
    body = json.loads(item.body)
    body["values"]["a"] = DETONATES
    return replace(item, kind="broken", body=json.dumps(body).encode())


def evidence() -> Evidence:
    alert = {"machine": "m1", "detector": "spike", "event": "opened", "time": "now"}
    receipt = {"command": "c1", "status": "applied", "partitions": {"0": {"first_offset": 7}}}
    return Evidence(
        alerts=[("a1", json.dumps(alert).encode()), ("a2", json.dumps(alert | {"event": "closed"}).encode())],
        letters=[("l1", b"broken")],
        state={"m1": b"state"},
        learned={"m1": 2},
        receipts=[receipt],
        recorded={"c1": receipt},
        swaps=[{"command": "c1", "next": 7}],
    )


SENT = [
    Sent("fresh", 1, "m1", b"1", "1"),
    Sent("fresh", 2, "m1", b"2", "2"),
    Sent("broken", -1, "m1", b"broken", "3"),
]
REFUSED = {"command": "c1", "status": "refused"}
FAULTS: dict[str, tuple[Evidence, set[str]]] = {
    "an alert is lost": (replace(evidence(), alerts=evidence().alerts[:1]), {"lost"}),
    "an alert tells something else": (
        replace(evidence(), alerts=[("a1", evidence().alerts[0][1] + b" "), evidence().alerts[1]]),
        {"lost", "spurious"},
    ),
    "an alert comes under two ids": (
        replace(evidence(), alerts=[*evidence().alerts, ("a3", evidence().alerts[0][1])]),
        {"spurious", "duplicates"},
    ),
    "a bit of the state differs": (replace(evidence(), state={"m1": b"stage"}), {"states"}),
    "a machine is forgotten": (replace(evidence(), state={}, learned={}), {"states", "unlearned"}),
    "a reading is learned twice": (replace(evidence(), learned={"m1": 3}), {"relearned"}),
    "a dead letter is lost": (replace(evidence(), letters=[]), {"letters_lost"}),
    "a dead letter comes under two ids": (
        replace(evidence(), letters=[("l1", b"broken"), ("l2", b"broken")]),
        {"letters_doubled"},
    ),
    "a good reading is a dead letter": (
        replace(evidence(), letters=[("l1", b"broken"), ("l2", b"1")]),
        {"letters_doubled"},
    ),
    "a receipt is missing": (replace(evidence(), receipts=[]), {"receipts_missing"}),
    "a swap is not recorded": (replace(evidence(), recorded={}), {"receipts_missing"}),
    "receipts contradict": (
        replace(evidence(), receipts=[*evidence().receipts, REFUSED]),
        {"receipts_contradicting"},
    ),
    "a receipt names another offset": (
        replace(evidence(), swaps=[{"command": "c1", "next": 8}]),
        {"receipts_contradicting"},
    ),
    "a message is left": (replace(evidence(), left=1), {"left"}),
}


@pytest.mark.parametrize("what", FAULTS)
def test_auditor_notices_that(what: str) -> None:
    got, names = FAULTS[what]
    assert set(audit(SENT, ["c1"], got, evidence()).faults) == names


def test_auditor_has_nothing_to_say_about_mere_repetition() -> None:
    twice = replace(evidence(), alerts=evidence().alerts * 2, letters=evidence().letters * 2)
    found = audit(SENT, ["c1"], twice, evidence())
    assert found.faults == {}
    assert (found.repeated, found.letters_repeated) == (2, 1)


def test_campaign_is_resumed_with_what_was_done_and_refuses_another_seed(tmp_path: Path) -> None:
    found = audit(SENT, ["c1"], evidence(), evidence())
    report = Report(mode="stream", seed=10_000, kills={"before_ack": 3}, seconds=1.0, found=found)
    past = Campaign(seed=1, modes=MODES, kills=3, reports=[report])
    results = tmp_path / "results.json"
    results.write_bytes(msgspec.json.encode(past))
    going_on = resumed(Campaign(seed=1, modes=MODES, kills=9), results)
    assert (going_on.done, going_on.kills) == (3, 9)
    with pytest.raises(SystemExit, match="seed 1"):
        resumed(Campaign(seed=2, modes=MODES, kills=9), results)

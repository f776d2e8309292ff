"""Dead letters and their way back, on the embedded broker: each is processed once, and nothing else changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest

from stream.brokers.base import Delivery, Message, Plan, Queue
from stream.brokers.memory import MemoryBroker
from stream.checkpoint import Checkpoint
from stream.deadletters import dead_letter, replay
from stream.errors import BrokerMissing, BrokerUnreachable, ReadingRejected
from stream.letter_text import MEANINGS, body_text, legible
from stream.letterbox import (
    Letter,
    Survey,
    Wanted,
    check_queues,
    letter_of,
    read_letter,
    read_letters,
    send_back,
    survey,
)
from stream.metrics import Policy, Reason
from stream.plan import deadletter_queue, readings_queue
from stream.proof import fingerprint
from stream.scorer import Scorer
from stream.state import Changes, StreamPosition
from stream.suspects import DEATHS, Work
from tests.aio import run
from tests.plant import START, Plant, readings, topology


def reading(i: int, values: dict[str, Any], *, machine: str = "m0", seq: int | None = None) -> Message:
    body = {"machine": machine, "time": START + i, "values": values}
    if seq is not None:
        body["seq"] = seq
    return Message(
        exchange="mmlw.sensors", routing_key=f"sensor.{machine}.readings", body=json.dumps(body).encode()
    )


def story_of_one_machine(n: int = 60, *, bad: Sequence[int] = (), numbered: bool = False) -> list[Message]:
    """Quiet readings of one machine; those in `bad` carry a sensor nobody declared, and a value far off."""
    rng = np.random.default_rng(1)
    return [
        reading(
            i,
            {"a": 90.0, "b": 0.0, "c": 1.0}
            if i in bad
            else dict(zip("ab", rng.normal(size=2).tolist(), strict=True)),
            seq=i if numbered else None,
        )
        for i in range(n)
    ]


def tolerant(plant: Plant) -> None:
    """The topology is mended: unknown sensors are passed over."""
    source = msgspec.structs.replace(plant.topology.source, unknown_sensor="ignore")
    plant.topology = msgspec.structs.replace(plant.topology, source=source)


async def look(plant: Plant, **wanted: Any) -> Survey:
    async with MemoryBroker(plant.server) as broker:
        return await survey(broker, Wanted(**wanted))


async def send(plant: Plant, *, user: str = "worker", **wanted: Any) -> int:
    """What `mmlw deadletters replay` does."""
    async with MemoryBroker(plant.server, user=user) as broker:
        found = await survey(broker, Wanted(topology=plant.topology.name, **wanted))
        queues = {plant.topology.name: readings_queue(plant.topology)}
        await check_queues(broker, queues)
        return await send_back(broker, found.numbers, queues)


def counts(plant: Plant) -> dict[str, float]:
    """What became of the messages, which is as many as were received; `replayed`, the last one before a stop, is
    left out: it is read again at the start."""
    total = {"processed": plant.value("mmlw_messages_processed_total")}
    for policy in get_args(Policy):
        total[policy] = plant.value("mmlw_messages_passed_over_total", policy=policy)
    for reason in get_args(Reason):
        total[f"dead {reason}"] = plant.value("mmlw_messages_deadlettered_total", reason=reason)
    assert plant.value("mmlw_messages_received_total") == sum(total.values())
    return {name: count for name, count in total.items() if count and name != "replayed"}


def state(plant: Plant) -> Any:
    checkpoint = Checkpoint(plant.data / "plant.checkpoint", "plant", Scorer.recipes(plant.topology))
    try:
        [group] = checkpoint.load().groups
    finally:
        checkpoint.close()
    return [
        group.machines,
        {c: {n: a.tolist() for n, a in rows.items()} for c, rows in group.components.items()},
    ]


async def with_letters(folder: Path, n: int = 60, bad: Sequence[int] = (40,), **source: Any) -> Plant:
    """A plant that has refused some messages for a sensor nobody declared, and is mended since."""
    plant = Plant(folder, topology(**source))
    await plant.declare()
    await plant.publish(story_of_one_machine(n, bad=bad))
    await plant.process(n)
    assert len((await look(plant)).marks) == len(bad)
    tolerant(plant)
    return plant


def test_replayed_letter_is_processed_and_alerts_as_it_would_have(tmp_path: Path) -> None:
    async def story() -> None:
        plant = await with_letters(tmp_path)
        assert not await plant.alerts()
        assert await send(plant, reasons=["unknown_sensor"]) == 1
        await plant.process(61)
        assert counts(plant) == {"processed": 60, "dead unknown_sensor": 1}
        opened = [alert for alert in await plant.alerts() if alert.event == "opened"]
        assert [(a.machine, a.first_seen, a.position.offset) for a in opened] == [
            ("m0", "2024-08-07T00:00:40Z", 60)
        ]
        never_refused = Plant(tmp_path / "other", plant.topology)
        await never_refused.declare()
        before, [bad], after = (lambda m: (m[:40], m[40:41], m[41:]))(story_of_one_machine(60, bad=(40,)))
        await never_refused.publish([*before, *after, bad])
        await never_refused.process(60)
        assert state(never_refused)[1]["model:spike"] == state(plant)[1]["model:spike"]

    run(story())


def test_letters_replayed_twice_change_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        plant = await with_letters(tmp_path, bad=(38, 40, 50))
        await send(plant)
        await plant.process(63)
        alerts, known, was = await plant.alerts(), counts(plant), state(plant)
        assert known == {"processed": 60, "dead unknown_sensor": 3}
        for again in (1, 2):  # by the same worker, and by one that was started since
            await send(plant)
            await plant.process(63 + 3 * again)
            assert counts(plant) == {**known, "duplicate": 3 * again}
            assert await plant.alerts() == alerts
            assert state(plant) == was

    run(story())


@pytest.mark.parametrize("max_batch", [1, 64])
def test_a_batch_that_holds_a_letter_twice_processes_it_once(tmp_path: Path, max_batch: int) -> None:
    async def story() -> None:
        plant = await with_letters(tmp_path, max_batch=max_batch)
        await send(plant)
        await send(plant)
        await plant.process(62)
        assert counts(plant) == {"processed": 60, "dead unknown_sensor": 1, "duplicate": 1}

    run(story())


@pytest.mark.parametrize("max_batch", [1, 64])
def test_a_letter_refused_again_keeps_its_id_and_is_listed_once(tmp_path: Path, max_batch: int) -> None:
    async def story() -> None:
        plant = await with_letters(tmp_path, max_batch=max_batch, bad=(40, 45))
        first = await look(plant)
        source = msgspec.structs.replace(plant.topology.source, unknown_sensor="deadletter")
        plant.topology = msgspec.structs.replace(plant.topology, source=source)
        for again in (1, 2):
            assert await send(plant, numbers=[0]) == 1  # an older number means the letter all the same
            await plant.process(60 + again)
        found = await look(plant)
        assert found.marks.keys() == first.marks.keys()
        assert found.numbers == [1, 3]
        assert found.reasons == {"unknown_sensor": 2}
        assert (await look(plant, numbers=[0])).numbers == [3]
        letters = [letter_of(delivery) for delivery in await plant.kept("mmlw.deadletters")]
        assert [letter.offset for letter in letters] == [40, 45, 60, 61]
        assert {letter.routing_key for letter in letters} == {"sensor.m0.readings"}
        tolerant(plant)
        await send(plant)
        await plant.process(64)
        assert counts(plant) == {"processed": 60, "dead unknown_sensor": 4}

    run(story())


def test_a_letter_refused_once_more_in_the_batch_that_holds_it_twice_is_refused_once(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology())
        await plant.declare()
        await plant.publish(story_of_one_machine(60, bad=(40,)))
        await plant.process(60)
        await send(plant)
        await send(plant)
        await plant.process(62)
        assert counts(plant) == {"processed": 59, "dead unknown_sensor": 2, "duplicate": 1}

    run(story())


@pytest.mark.parametrize("late", ["drop", "deadletter"])
def test_neither_age_nor_sequence_number_is_held_against_a_replay(tmp_path: Path, late: Any) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology(late=late, duplicate="deadletter"))
        await plant.declare()
        await plant.publish(story_of_one_machine(60, bad=(40, 41), numbered=True))
        await plant.process(60)
        tolerant(plant)
        await send(plant)
        await plant.process(62)
        assert counts(plant) == {"processed": 60, "dead unknown_sensor": 2}
        await plant.publish([reading(60, {"a": 0.0, "b": 0.0}, seq=60)])  # the machine goes on where it was
        await plant.publish([reading(59, {"a": 0.0, "b": 0.0}, seq=59)])
        await plant.process(64)
        assert counts(plant) == {"processed": 61, "dead unknown_sensor": 2, "dead duplicate": 1}

    run(story())


def test_a_replay_of_one_sensor_a_message_is_not_late(tmp_path: Path) -> None:
    async def story() -> None:
        layout: dict[str, Any] = {"layout": "narrow", "routing_key": "sensor.{machine}.{sensor}"}
        plant = Plant(tmp_path, topology(**layout))
        await plant.declare()
        messages = [
            Message(
                exchange="mmlw.sensors",
                routing_key=f"sensor.m0.{sensor}",
                body=json.dumps(
                    {"time": START + i, "value": 1.0 if (i, sensor) != (20, "a") else "?"}
                ).encode(),
            )
            for i in range(40)
            for sensor in "ab"
        ]
        await plant.publish(messages)
        await plant.process(80)
        [letter] = await plant.kept("mmlw.deadletters")
        mended = msgspec.structs.replace(letter, body=letter.body.replace(b'"?"', b"90.0"))
        async with MemoryBroker(plant.server, user="worker") as broker:
            await broker.publish([replay(mended, readings_queue(plant.topology))])
        await plant.process(81)
        assert counts(plant) == {"processed": 80, "dead wrong_type": 1}

    run(story())


def test_only_the_topology_that_refused_it_gets_it_back(tmp_path: Path) -> None:
    async def story() -> None:
        plant = await with_letters(tmp_path)
        other = Plant(
            tmp_path,
            msgspec.structs.replace(plant.topology, name="other"),
            server=plant.server,
            metrics=plant.metrics,
        )
        await other.declare()
        await plant.publish([reading(100, {"a": 0.0, "b": 0.0})])
        await plant.process(61)
        await other.process(1)
        await send(plant)
        await plant.process(62)
        await plant.publish([reading(101, {"a": 0.0, "b": 0.0})])
        await other.process(2)
        assert counts(other) == {"processed": 2}
        assert counts(plant) == {"processed": 61, "dead unknown_sensor": 1}

    run(story())


def test_a_machine_that_forges_a_replay_is_not_believed(tmp_path: Path) -> None:
    """Neither to speak for another machine, nor to have a letter taken for processed, nor to be spared."""

    async def story() -> None:
        plant = Plant(tmp_path, topology(duplicate="deadletter"))
        await plant.declare()
        await plant.publish(story_of_one_machine(60, bad=(40,), numbered=True))
        await plant.process(60)
        tolerant(plant)
        [identity] = (await look(plant)).marks
        forged = {"mmlw-replay": 1, "mmlw-exchange": "mmlw.sensors", "mmlw-routing-key": "sensor.m0.readings"}
        honest = reading(61, {"a": 0.0, "b": 0.0}, seq=61)
        thief = reading(62, {"a": 0.0, "b": 0.0}, seq=62)
        thief = msgspec.structs.replace(thief, routing_key="sensor.m9.readings")
        again = reading(10, {"a": 0.0, "b": 0.0}, seq=10)
        await plant.publish(
            [msgspec.structs.replace(m, headers=forged, message_id=identity) for m in (honest, thief, again)]
        )
        await plant.process(63)
        assert counts(plant) == {
            "processed": 60,
            "dead unknown_sensor": 1,
            "dead machine_mismatch": 1,
            "dead duplicate": 1,
        }
        letters = [letter_of(delivery) for delivery in await plant.kept("mmlw.deadletters")]
        assert [letter.routing_key for letter in letters[1:]] == ["sensor.m9.readings", "sensor.m0.readings"]
        assert identity not in {letter.id for letter in letters[1:]}
        await send(plant, reasons=["unknown_sensor"])
        await plant.process(64)
        assert counts(plant)["processed"] == 61

    run(story())


@pytest.mark.parametrize("confirmed", [False, True])
def test_a_failure_before_or_after_the_commit_of_a_replay_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, confirmed: bool
) -> None:
    async def story() -> None:
        plant = await with_letters(tmp_path)
        commit = Checkpoint.commit
        failed: list[Any] = []

        def failing(self: Checkpoint, changes: Changes) -> int:
            if changes.replays and not failed:
                failed.append(changes.replays)
                if confirmed:
                    commit(self, changes)
                plant.server.drop_connections()
                raise BrokerMissing("sabotage")
            return commit(self, changes)

        monkeypatch.setattr(Checkpoint, "commit", failing)
        await send(plant)
        await plant.process(61)
        await send(plant)
        await plant.process(62)
        assert failed
        found = counts(plant)
        assert found.pop("returned", 0) == 1
        assert found == {
            "processed": 59 if confirmed else 60,  # counted by the commit that was made and not told of
            "dead unknown_sensor": 1,
            "duplicate": 1,
        }
        events = [(alert.id, alert.event) for alert in await plant.alerts()]
        assert len(events) == len(set(events)) > 0

    run(story())


def test_replay_into_an_existing_queue(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology(queue="gateway.out", duplicate="deadletter"))
        async with MemoryBroker(plant.server) as broker:
            await broker.declare(Plan(queues=(Queue(name="gateway.out", kind="classic"),)), mode="declare")
        await plant.declare()
        messages = story_of_one_machine(60, bad=(40, 50), numbered=True)
        to_queue = [msgspec.structs.replace(m, exchange="", routing_key="gateway.out") for m in messages]
        await plant.publish(to_queue)
        await plant.process(60)
        tolerant(plant)
        assert await send(plant) == 2
        await plant.process(62)
        assert counts(plant) == {"processed": 60, "dead unknown_sensor": 2}
        await send(plant)
        await send(plant)
        await plant.process(66)
        assert counts(plant) == {"processed": 60, "dead unknown_sensor": 2, "duplicate": 4}

    run(story())


class Deaf(MemoryBroker):
    """Twice the connection is lost as the sixth message, or one after it, is acknowledged."""

    acknowledged = losses = 0

    async def consume(self, queue: Queue, **named: Any) -> Any:
        intake: Any = await super().consume(queue, **named)
        if queue.kind != "existing":
            return intake
        acknowledge, before = intake.ack, Deaf.acknowledged

        async def lose(tag: int) -> None:
            if before + tag > 5 and Deaf.losses < 2:
                Deaf.losses += 1
                self.server.drop_connections()
                raise BrokerUnreachable("sabotage")
            await acknowledge(tag)
            Deaf.acknowledged = before + tag

        intake.ack = lose
        return intake


@pytest.mark.parametrize("reason", ["unknown_sensor", "detector_failed", "killed_worker"])
def test_what_a_queue_brings_again_is_one_letter_where_its_publisher_gives_no_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """Twice it is not acknowledged, though its letter is committed."""

    async def story() -> None:
        plant = Plant(tmp_path, topology(queue="gateway.out", every=0.0, max_batch=8))
        async with MemoryBroker(plant.server) as broker:
            await broker.declare(Plan(queues=(Queue(name="gateway.out", kind="classic"),)), mode="declare")
        await plant.declare()
        values = {"a": 666.0, "b": 0.0, **({"c": 1.0} if reason == "unknown_sensor" else {})}
        messages = story_of_one_machine(20, numbered=True)
        messages[5:5] = [reading(4, values)]
        to_queue = [msgspec.structs.replace(m, exchange="", routing_key="gateway.out") for m in messages]
        await plant.publish(to_queue)
        with monkeypatch.context() as broken:
            if reason == "detector_failed":
                fail_over(666.0, broken)
            if reason == "killed_worker":
                note_deaths(plant, to_queue[5])
            Deaf.acknowledged = Deaf.losses = 0
            plant.connect = lambda: Deaf(plant.server, user="worker")
            async with plant.running() as worker:
                while plant.value("mmlw_messages_processed_total") < 20:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
        done = worker.next_offset("plant")
        again = plant.value("mmlw_messages_deadlettered_total", reason=reason)
        kept = [letter_of(delivery) for delivery in await plant.kept("mmlw.deadletters")]
        assert len(kept) == again == 3
        assert {letter.reason for letter in kept} == {reason}
        assert len({letter.offset for letter in kept}) == 3
        assert len({letter.id for letter in kept}) == 1
        tolerant(plant)
        for _ in range(2):
            assert await send(plant) == 1
        await plant.process(done + 2)
        assert plant.value("mmlw_messages_processed_total") == 21

    run(story())


def fail_over(value: float, patch: pytest.MonkeyPatch) -> None:
    """The detector raises over a reading of this value."""
    model = type(topology().detectors["spike"].build(("a", "b")))  # type: ignore[union-attr]
    healthy = model.score_learn

    def failing(self: Any, slots: Any, values: Any, times: Any, learn: Any) -> Any:
        if (values == value).any():
            raise ZeroDivisionError("sabotage")
        return healthy(self, slots, values, times, learn)

    patch.setattr(model, "score_learn", failing)


def note_deaths(plant: Plant, message: Message) -> None:
    """As many processes died over this message as may."""
    name = fingerprint(
        Delivery(
            body=message.body, exchange="", routing_key=message.routing_key, offset=0, tag=1, received=0.0
        )
    )
    checkpoint = Checkpoint(plant.data / "plant.checkpoint", "plant", Scorer.recipes(plant.topology))
    try:
        checkpoint.commit(Changes(StreamPosition()))
        checkpoint.note(msgspec.json.encode(Work(deaths=((name[:16], DEATHS),))))
    finally:
        checkpoint.close()


def test_a_letter_of_a_stream_made_anew_is_not_taken_for_one_of_the_stream_before(tmp_path: Path) -> None:
    async def story() -> None:
        plant = await with_letters(tmp_path)
        await send(plant)
        await plant.process(61)
        plant.server.delete(readings_queue(plant.topology).name)
        source = msgspec.structs.replace(plant.topology.source, unknown_sensor="deadletter")
        plant.topology = msgspec.structs.replace(plant.topology, source=source)
        async with plant.running() as worker:
            await plant.publish(
                [
                    reading(1000 + i, {"a": 0.0, "b": 0.0, **({"c": 1.0} if i == 40 else {})})
                    for i in range(60)
                ]
            )
            await plant.reached(worker, 60)
        tolerant(plant)
        assert len((await look(plant)).marks) == 2
        await send(plant)
        await plant.process(62)
        assert counts(plant) == {"processed": 120, "dead unknown_sensor": 2, "duplicate": 1}

    run(story())


def test_as_many_replays_are_remembered_as_letters_may_be_kept(tmp_path: Path) -> None:
    letters = [f"plant-0-{i}" for i in range(30_000)]
    checkpoint = Checkpoint(tmp_path / "plant.checkpoint", "plant", {})
    try:
        for start in range(0, len(letters), 1000):
            checkpoint.commit(Changes(checkpoint.load().position, replays=letters[start : start + 1000]))
        assert checkpoint.load().replays == frozenset(letters)
    finally:
        checkpoint.close()


def test_letters_are_found_by_topology_reason_age_and_number(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology())
        await plant.declare()
        await plant.publish(readings(100, bad_every=10) + story_of_one_machine(10, bad=(3, 4)))
        await plant.process(110)
        async with MemoryBroker(plant.server) as broker:
            await broker.publish(
                [Message(exchange="mmlw.deadletters", routing_key="deadletter.x.y", body=b"?")]
            )
        assert (await look(plant)).reasons == {"not_decodable": 10, "unknown_sensor": 2, "": 1}
        assert (await look(plant, topology="plant")).numbers == list(range(12))
        found_ids = list((await look(plant, topology="plant")).marks)
        assert (await look(plant, reasons=["unknown_sensor", "late"])).numbers == [10, 11]
        assert (await look(plant, numbers=[3, 11, 12])).numbers == [3, 11, 12]
        assert (await look(plant, numbers=[3, 11], reasons=["unknown_sensor"])).numbers == [11]
        assert (await look(plant, numbers=[3, 13, 99])).missing == [13, 99]
        assert not (await look(plant, topology="nobody")).marks
        times = [letter.timestamp for letter in await plant.kept("mmlw.deadletters")]
        assert times[0] is not None
        assert times[-1] is not None
        assert len((await look(plant, since=times[0] - 1)).marks) == 13
        assert not (await look(plant, since=times[-1] + 1)).marks
        async with MemoryBroker(plant.server) as broker:
            [one] = [letter async for letter in read_letters(broker, [11])]
            same = await read_letter(broker, 11)
            assert same is not None
            assert (one.offset, one.message_id) == (same.offset, same.message_id) == (11, found_ids[-1])
            assert await read_letter(broker, 13) is None
            assert [letter async for letter in read_letters(broker, [])] == []

    run(story())


def test_looking_at_no_letters_at_all_says_so(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology())
        await plant.declare()
        assert await look(plant) == Survey({}, [])
        assert (await look(plant, numbers=[0])).missing == [0]
        assert await send(plant) == 0

    run(story())


def test_a_queue_that_is_not_there_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology())
        await plant.declare()
        async with MemoryBroker(plant.server) as broker:
            await check_queues(broker, {"plant": readings_queue(plant.topology)})
            with pytest.raises(BrokerMissing, match=r"has no queue .mmlw\.readings\.pump.*FILE"):
                await check_queues(broker, {"pump": Queue(name="mmlw.readings.pump")})

    run(story())


def test_letters_that_retention_has_taken_are_left_out(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology())
        await plant.declare()
        await plant.publish([reading(i, {"c": 1.0}) for i in range(20)])
        await plant.process(20)
        found = await look(plant)
        plant.server.forget(deadletter_queue().name, 5)
        async with MemoryBroker(plant.server, user="worker") as broker:
            queues = {"plant": readings_queue(plant.topology)}
            assert await read_letter(broker, 3) is None
            assert await send_back(broker, found.numbers, queues) == 5
        assert (await look(plant)).numbers == list(range(15, 20))

    run(story())


def test_many_letters_are_sent_in_order_and_progress_is_told(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology())
        await plant.declare()
        await plant.publish([reading(i, {"c": float(i)}) for i in range(700)])
        await plant.process(700)
        told: list[int] = []
        async with MemoryBroker(plant.server, user="worker") as broker:
            found = await survey(broker, Wanted(), told.append)
            assert told == list(range(1, 701))
            told.clear()
            sent = await send_back(
                broker, found.numbers, {"plant": readings_queue(plant.topology)}, told.append
            )
        assert (sent, told) == (700, [200, 400, 600, 700])
        kept = await plant.kept(readings_queue(plant.topology).name)
        assert [m.body for m in kept[700:]] == [m.body for m in kept[:700]]
        assert len({m.message_id for m in kept[700:]}) == 700

    run(story())


def test_every_reason_has_a_meaning() -> None:
    assert list(MEANINGS) == list(get_args(Reason))
    assert all(text.endswith(".") for text in MEANINGS.values())


def test_a_letter_is_told_by_its_headers_and_a_strange_one_does_no_harm() -> None:
    delivery = Delivery(
        body=b"{}", exchange="mmlw.sensors", routing_key="sensor.m1.x", offset=7, tag=1, received=0.0
    )
    message = dead_letter("plant", delivery, ReadingRejected("late", "too late"))
    came = Delivery(
        body=message.body,
        exchange=message.exchange,
        routing_key=message.routing_key,
        offset=3,
        tag=1,
        received=0.0,
        headers=message.headers,
        message_id=message.message_id,
        timestamp=1.5,
    )
    assert letter_of(came) == Letter(
        number=3,
        id=str(message.message_id),
        time=1.5,
        topology="plant",
        reason="late",
        detail="too late",
        exchange="mmlw.sensors",
        routing_key="sensor.m1.x",
        offset=7,
        bytes=2,
    )
    strange = letter_of(
        msgspec.structs.replace(
            came,
            headers={"mmlw-topology": "../x", "mmlw-offset": "?", "mmlw-reason": b"\xff"},
            message_id=None,
        )
    )
    assert (strange.topology, strange.offset, strange.id, strange.detail) == ("", -1, "", "")


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b'{"a":1,"a":[2.50]}', '{\n  "a": 1,\n  "a": [\n    2.50\n  ]\n}'),
        (b'\xef\xbb\xbf{"a": NaN}', '{\n  "a": NaN\n}'),
        (msgspec.msgpack.encode({"a": [1, None]}), '{\n  "a": [\n    1,\n    null\n  ]\n}'),
        (b"{broken", "000000  7b 62 72 6f 6b 65 6e                             {broken"),
        (b"\xc1\x00", "000000  c1 00                                            .."),
        (b"", "(empty)"),
        (b'"\x1b[2J"', '000000  22 1b 5b 32 4a 22                                ".[2J"'),
        (b'"\\u202e\xc2\x9b"', '"\\u202e\\x9b"'),
    ],
)
def test_a_body_is_shown_so_that_it_can_be_read(body: bytes, shown: str) -> None:
    assert body_text(body) == shown


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000 + b"]" * 100_000,
        b"\x91" * 100_000 + b"\x90",
        b"[" + b"1," * 400_000 + b"1]",
        bytes(range(256)) * 4000,
        msgspec.msgpack.encode({b"x": 1, 2: 3}),
        b"9" * 5000,
    ],
)
def test_what_is_shown_of_a_body_is_bounded_and_printable(body: bytes) -> None:
    shown = body_text(body)
    assert 0 < len(shown) < 10_000
    assert all(c.isprintable() or c == "\n" for c in shown)


def test_a_text_of_a_machine_s_cannot_steer_a_terminal() -> None:
    assert legible("a\x1b[2J\u202eb\udc00") == "a\\x1b[2J\\u202eb\\udc00"

"""What keeps one bad machine, message or detector from harming the rest."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from stream.brokers.base import Delivery, Intake, Message, Queue
from stream.brokers.memory import MemoryBroker
from stream.checkpoint import Checkpoint
from stream.notes import NoteFile
from stream.plan import readings_queue
from stream.runtimes.local import guarantee
from stream.scorer import Scorer
from stream.state import Changes, Saved, StreamPosition
from stream.suspects import Suspects, Work
from stream.topology import Topology
from tests.aio import run
from tests.plant import START, Plant, readings, topology


def message(machine: str, at: float, value: float = 0.0, *, seq: int | None = None) -> Message:
    body: dict[str, Any] = {"machine": machine, "time": START + at, "values": {"a": value, "b": 0.0}}
    if seq is not None:
        body["seq"] = seq
    key = f"sensor.{machine}.readings"
    return Message(exchange="mmlw.sensors", routing_key=key, body=json.dumps(body).encode())


def saved(plant: Plant) -> Saved:
    store = Checkpoint(plant.data / "plant.checkpoint", "plant", Scorer.recipes(plant.topology))
    try:
        return store.load()
    finally:
        store.close()


def state(plant: Plant) -> dict[str, dict[str, Any]]:
    """Every machine's rows, by table and array."""
    found: dict[str, dict[str, Any]] = {}
    for group in saved(plant).groups:
        for i, machine in enumerate(group.machines):
            found[machine] = {
                f"{table}.{name}": column[i] if column.dtype == object else column[i].tolist()
                for table, rows in group.components.items()
                for name, column in rows.items()
            }
    return found


async def play(plant: Plant, messages: list[Message]) -> Plant:
    await plant.declare()
    await plant.publish(messages)
    await plant.process(len(messages))
    return plant


def conserved(plant: Plant) -> bool:
    passed = sum(
        plant.value("mmlw_messages_passed_over_total", policy=policy)
        for policy in ("replayed", "returned", "duplicate", "late")
    )
    dead = sum(plant.metrics.dead_letters("plant").values())
    received = plant.value("mmlw_messages_received_total")
    return received == plant.value("mmlw_messages_processed_total") + dead + passed


@pytest.mark.parametrize("resident", [1, 2, 5])
def test_machines_beyond_memory_wait_in_the_checkpoint_and_lose_nothing(
    tmp_path: Path, resident: int
) -> None:
    async def story() -> None:
        messages = readings(800, machines=12, bad_every=50)
        roomy = await play(Plant(tmp_path / "roomy", topology(max_batch=16)), messages)
        tight = Plant(tmp_path / "tight", topology(max_batch=16, resident_machines=resident))
        await play(tight, messages)
        assert len(await roomy.alerts()) > 10
        assert await tight.alerts() == await roomy.alerts()
        np.testing.assert_equal(state(tight), state(roomy))
        assert tight.value("mmlw_machines") == 12
        assert tight.value("mmlw_machines_resident") < 12 + resident
        assert conserved(tight)

    run(story())


def test_machine_beyond_the_limit_is_a_dead_letter_and_the_known_ones_go_on(tmp_path: Path) -> None:
    async def story() -> None:
        messages = [message(f"m{i % 5}", i) for i in range(100)]
        plant = await play(Plant(tmp_path, topology(max_machines=3)), messages)
        assert sorted(state(plant)) == ["m0", "m1", "m2"]
        letters = await plant.kept("mmlw.deadletters")
        assert {letter.headers["mmlw-reason"] for letter in letters} == {"too_many_machines"}
        assert len(letters) == 40
        assert conserved(plant)

    run(story())


def test_machine_whose_name_does_not_fit_is_a_dead_letter(tmp_path: Path) -> None:
    async def story() -> None:
        messages = [message(name, i) for i, name in enumerate(("pump-1", "fan-1", "spy", "pump-2"))]
        plant = await play(Plant(tmp_path, topology(machines=("pump-*", "fan-?"))), messages)
        [letter] = await plant.kept("mmlw.deadletters")
        assert letter.headers["mmlw-reason"] == "bad_machine"
        assert "spy" in str(letter.headers["mmlw-detail"])

    run(story())


def test_duplicate_is_known_by_its_number_and_dropped(tmp_path: Path) -> None:
    async def story() -> None:
        once = [message(f"m{i % 3}", i, float(i % 7), seq=i) for i in range(300)]
        twice = [item for i, item in enumerate(once) for item in (once[i], once[max(i - 3, 0)])]
        one = await play(Plant(tmp_path / "one", topology()), once)
        other = await play(Plant(tmp_path / "other", topology()), twice)
        np.testing.assert_equal(state(other), state(one))
        assert other.value("mmlw_messages_passed_over_total", policy="duplicate") == 300
        assert other.value("mmlw_readings_dropped_total", policy="duplicate") == 300
        assert conserved(other)

    run(story())


def test_machine_whose_counter_begins_anew_is_not_shut_out(tmp_path: Path) -> None:
    async def story() -> None:
        messages = [message("m", i, seq=i % 50) for i in range(200)]
        plant = await play(Plant(tmp_path, topology()), messages)
        assert plant.value("mmlw_messages_processed_total") == 200
        assert plant.value("mmlw_messages_passed_over_total", policy="duplicate") == 0

    run(story())


@pytest.mark.parametrize("restarts", [1, 2, 7])
def test_what_came_before_a_counter_began_anew_is_known_when_it_comes_again(
    tmp_path: Path, restarts: int
) -> None:
    """Also where it began anew several times, the last life being the shortest."""

    async def story() -> None:
        begun = [int(200 * (1 - 0.4**i)) for i in range(restarts + 1)]
        messages = [
            message("m", i, float(i % 5), seq=i - max(b for b in begun if b <= i)) for i in range(200)
        ]
        plant = await play(Plant(tmp_path, topology()), messages)
        assert plant.value("mmlw_messages_processed_total") == 200
        before = state(plant)
        await plant.publish(messages)
        await plant.process(400)  # all of it comes again, to another process
        assert plant.value("mmlw_messages_processed_total") == 200
        assert plant.value("mmlw_messages_passed_over_total", policy="duplicate") == 200
        np.testing.assert_equal(state(plant), before)
        await plant.publish([message("m", 200, seq=200 - begun[-1])])
        await plant.process(401)
        assert plant.value("mmlw_messages_processed_total") == 201

    run(story())


def test_checkpoint_of_before_knows_one_life_and_goes_on(tmp_path: Path) -> None:
    async def story() -> None:
        first = [message("m", i, float(i % 5), seq=i) for i in range(100)]
        plant = await play(Plant(tmp_path, topology()), first)
        earlier = Scorer.recipes(plant.topology)
        assert earlier.pop("lives") is not None
        store = Checkpoint(plant.data / "plant.checkpoint", "plant", earlier)
        try:
            [group] = store.load().groups
            kept = {name: rows for name, rows in group.components.items() if name != "lives"}
            store.commit(Changes(store.load().position, group.machines, kept))
        finally:
            store.close()
        with capture_logs() as logs:
            await plant.publish([*first, *(message("m", 100 + i, seq=i) for i in range(50)), *first])
            await plant.process(350)
        assert [line for line in logs if line["event"] == "state_forgotten"] == []
        assert plant.value("mmlw_messages_processed_total") == 150
        assert plant.value("mmlw_messages_passed_over_total", policy="duplicate") == 200

    run(story())


@pytest.mark.parametrize(("policy", "processed", "dropped", "dead"), [
    ("accept", 100, 0, 0),
    ("drop", 90, 10, 0),
    ("deadletter", 90, 0, 10),
])  # fmt: skip
def test_late_reading_is_treated_as_the_source_says(
    tmp_path: Path, policy: str, processed: int, dropped: int, dead: int
) -> None:
    async def story() -> None:
        messages = [message("m", i - (60 if i % 10 == 9 else 0) + 100) for i in range(100)]
        plant = await play(Plant(tmp_path, topology(late=policy, lateness=30.0)), messages)
        assert plant.value("mmlw_messages_processed_total") == processed
        assert plant.value("mmlw_messages_passed_over_total", policy="late") == dropped
        assert plant.metrics.dead_letters("plant") == ({"late": dead} if dead else {})
        assert conserved(plant)

    run(story())


@pytest.mark.parametrize("start", [0.0, -START - 1000.0, -START - 25.0], ids=["now", "1969", "about 1970"])
def test_time_can_stand_for_a_sequence_number(tmp_path: Path, start: float) -> None:
    async def story() -> None:
        messages = [message("m", start + i) for i in range(50) for _ in range(2)]
        by_time = topology(order_by="time", earliest="1900-01-01T00:00:00Z")
        plant = await play(Plant(tmp_path, by_time), messages)
        assert plant.value("mmlw_messages_processed_total") == 50
        assert plant.value("mmlw_messages_passed_over_total", policy="duplicate") == 50

    run(story())


@pytest.mark.parametrize(("odd", "plan", "restarts"), [
    (np.nan, topology(), 1),
    (np.inf, topology(), 1),
    (np.nan, topology(max_batch=1, every=0.0), 2),
])  # fmt: skip
def test_score_that_is_not_finite_restores_the_machines_last_good_state(
    odd: float, plan: Topology, restarts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a message was by itself when the detector failed, all before it committed."""

    async def story() -> None:
        healthy_messages = [message(f"m{i % 3}", i, float(i % 5)) for i in range(300)]
        poison = [message("m1", 150.5, 666.0), message("m1", 151.5, 666.0)]
        expected = await play(Plant(tmp_path / "expected", topology()), healthy_messages)
        recipe: Any = topology().detectors["spike"]
        model = type(recipe.build(("a", "b")))
        healthy = model.score_learn

        def sick(self: Any, slots: Any, values: Any, times: Any, learn: Any) -> Any:
            scores = healthy(self, slots, values, times, learn)
            return np.where(values[:, 0] == 666.0, odd, scores)

        monkeypatch.setattr(model, "score_learn", sick)
        plant = Plant(tmp_path / "plant", plan)
        await play(plant, [*healthy_messages[:150], *poison, *healthy_messages[150:]])
        assert plant.value("mmlw_detector_unhealthy_total", detector="spike") == 2
        assert plant.metrics.dead_letters("plant") == {}
        assert plant.value("mmlw_messages_processed_total") == 302
        assert plant.value("mmlw_restarts_total", cause="detector") == restarts
        for machine, rows in state(expected).items():
            same = [
                name for name in rows if name.startswith("model:") or name.endswith((".recent", ".severity"))
            ]
            np.testing.assert_equal({n: state(plant)[machine][n] for n in same}, {n: rows[n] for n in same})
        assert conserved(plant)

    run(story())


class _Silent(MemoryBroker):
    """Its first reader of readings hears nothing, though everything else answers."""

    readers = 0

    async def consume(self, queue: Queue, *, offset: int | datetime | None, prefetch: int) -> Intake:
        intake = await super().consume(queue, offset=offset, prefetch=prefetch)
        if queue.name.startswith("mmlw.readings"):
            type(self).readers += 1
            if type(self).readers == 1:
                return _Deaf(intake)
        return intake


class _Deaf:
    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def receive(self, most: int, linger: float, timeout: float) -> list[Delivery]:
        await asyncio.sleep(timeout)
        return []

    async def ack(self, tag: int) -> None:
        await self._intake.ack(tag)

    async def end(self) -> int:
        return await self._intake.end()

    async def close(self) -> None:
        await self._intake.close()


def test_watchdog_restarts_a_consumer_that_hears_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        _Silent.readers = 0
        plant = Plant(tmp_path, msgspec.structs.replace(topology(), watchdog=0.5))
        plant.connect = lambda: _Silent(plant.server, user="worker")
        await play(plant, readings(300))
        assert plant.value("mmlw_restarts_total", cause="stalled") == 1
        assert plant.value("mmlw_messages_processed_total") == 300
        assert _Silent.readers == 2

    run(story())


def test_watchdog_looks_after_a_paused_topology_while_readings_are_scored_again(tmp_path: Path) -> None:
    """What the last life may have scored is read all the same; else nothing would ever settle what waits for it."""

    async def story() -> None:
        _Silent.readers = 0
        plant = Plant(tmp_path, msgspec.structs.replace(topology(), watchdog=0.5))
        store = Checkpoint(plant.data / "plant.checkpoint", "plant", Scorer.recipes(plant.topology))
        store.commit(Changes(StreamPosition(), paused=True, running=True))  # a death
        store.close()
        plant.connect = lambda: _Silent(plant.server, user="worker")
        await play(plant, readings(300))
        assert plant.value("mmlw_restarts_total", cause="stalled") == 1
        assert plant.value("mmlw_messages_processed_total") == 300

    run(story())


def test_watchdog_leaves_a_paused_topology_and_an_idle_source_alone(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, msgspec.structs.replace(topology(), watchdog=0.1))
        await plant.declare()
        async with plant.running() as worker:
            await plant.publish(readings(50))
            await plant.reached(worker, 50)
            await plant.ask("pause")
            await plant.publish(readings(50))
            await asyncio.sleep(3.0)  # the watchdog looks every two seconds
            assert plant.value("mmlw_restarts_total", cause="stalled") == 0
            await plant.ask("resume")
            await plant.reached(worker, 100)

    run(story())


def test_stream_that_is_gone_is_made_anew_and_the_state_stays(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology())
        first = [message("m", i, float(i % 5)) for i in range(100)]
        await play(plant, first)
        before = state(plant)
        plant.server.delete(readings_queue(plant.topology).name)
        async with plant.running() as worker:
            await plant.publish([message("m", 100 + i, float(i % 5)) for i in range(50)])
            await plant.reached(worker, 50)
        assert plant.value("mmlw_streams_replaced_total") == 1
        assert plant.value("mmlw_messages_processed_total") == 150
        assert set(state(plant)) == set(before)

    run(story())


def test_guarantee_is_told_for_every_kind_of_source() -> None:
    def told(**source: Any) -> str:
        return guarantee(topology(**source))

    assert told().startswith("exactly once: a stream of our own")
    assert "one reader" in told(queue="old")
    assert told(queue="old", exclusive=False).startswith("at least once: others may read")
    assert "rising times" in told(queue="old", order_by="time")


@pytest.mark.parametrize("exclusive", [True, False])
def test_guarantee_of_a_queue_goes_by_what_becomes_of_duplicates(*, exclusive: bool) -> None:
    def told(**source: Any) -> str:
        return guarantee(topology(exclusive=exclusive, **source))

    accepted = told(queue="old", duplicate="accept")
    assert accepted == "at least once: what the queue brings again is processed again (duplicate: accept)"
    again = "what comes again is a dead letter though it was processed (duplicate: deadletter)"
    kept = told(queue="old", duplicate="deadletter")
    assert again in kept
    assert kept.replace(f", and {again}", "") == told(queue="old")
    assert told(duplicate="accept") == told(duplicate="deadletter") == told()


def _sent(*bodies: str, start: int = 0) -> list[Delivery]:
    return [
        Delivery(body=b.encode(), exchange="", routing_key="k", offset=start + i, tag=i, received=0.0)
        for i, b in enumerate(bodies)
    ]


class Lives:
    """Processes one after the other, of which only the note is left."""

    def __init__(self, *, stream: bool) -> None:
        self.stream = stream
        self.note = b""
        self.suspects = self.next()

    def keep(self, note: bytes) -> None:
        self.note = note

    def next(self) -> Suspects:
        self.suspects = Suspects(self.note, self.keep, stream=self.stream, window=100)
        return self.suspects

    def die_over(self, messages: list[Delivery]) -> Suspects:
        with self.suspects.at_work(self.suspects.names(messages)):
            left = self.note
        self.note = left  # nobody took it back
        return self.next()

    def do(self, messages: list[Delivery]) -> None:
        names = self.suspects.names(messages)
        with self.suspects.at_work(names):
            pass
        self.suspects.done(names)


@pytest.mark.parametrize("stream", [True, False])
def test_message_is_put_aside_after_three_deaths_and_no_other(stream: bool) -> None:
    """Deaths happen while five messages are at work; "c" is the killer. Others may come before them again."""
    lives, five = Lives(stream=stream), _sent(*"abcde")
    suspects = lives.die_over(five)
    assert suspects.most(five) == 1
    assert suspects.most(_sent("f", "g", start=5)) == 2
    again = [*_sent("x", "y", start=50), *five]
    assert suspects.most(again) == 2  # not with those that are blamed
    lives.do(five[:1])
    lives.do(five[1:2])
    suspects = lives.die_over(five[2:3])
    assert not suspects.killed(five[2])
    suspects = lives.die_over(five[2:3])
    assert [suspects.killed(each) for each in five] == [False, False, True, False, False]
    lives.do(five[2:3])  # put aside
    assert suspects.most(five[2:]) == 1
    lives.do(five[3:4])
    lives.do(five[4:])
    assert suspects.most(five) == 5


def test_a_death_outside_of_the_work_is_nobodys(tmp_path: Path) -> None:
    """Killed while idle, while publishing, while committing; and failures that are no deaths."""
    lives, two = Lives(stream=True), _sent("a", "b")
    for _ in range(5):
        lives.do(two)
        with pytest.raises(ZeroDivisionError), lives.suspects.at_work((0, 1)):
            raise ZeroDivisionError
        suspects = lives.next()
    assert suspects.most(two) == 2
    suspects = lives.die_over(two)
    for _ in range(5):  # starts of which nothing comes
        suspects = lives.next()
    assert Work.of(lives.note).deaths == ((0, 1), (1, 1))
    suspects.forget()
    assert suspects.most(two) == 2


def test_suspects_that_never_come_again_are_forgotten() -> None:
    lives = Lives(stream=True)
    suspects = lives.die_over(_sent("a", "b"))
    lives.do(_sent(*["c"] * 99, start=10))
    assert suspects.most(_sent("a", "b")) == 1
    lives.do(_sent("c", start=200))
    assert suspects.most(_sent("a", "b")) == 2
    assert Work.of(lives.note) == Work()


@pytest.mark.parametrize("note", [b"", b"{", b"[1]", b'{"at_work": 7}', b'{"deaths": [[1]]}', b"\xff"])
def test_a_note_that_makes_no_sense_blames_nobody(note: bytes) -> None:
    assert Suspects(note, lambda note: None, stream=True, window=9).most(_sent("a", "b")) == 2


def test_a_note_is_there_for_the_next_process_and_of_this_checkpoint_only(tmp_path: Path) -> None:
    file = NoteFile(tmp_path / "plant.checkpoint")
    assert file.read("one") == b""
    for note in (b"a long note", b"short"):
        file.write("one", note)
        assert NoteFile(tmp_path / "plant.checkpoint").read("one") == note
    assert file.read("another") == b""
    written = (tmp_path / "plant.note").read_bytes()
    for at in range(len(b"one short") + 24):
        (tmp_path / "plant.note").write_bytes(written[:at] + b"?" + written[at + 1 :])
        assert file.read("one") == (b"short" if at in (8, 23) else b"")
    file.close()


def test_a_batch_is_as_many_messages_as_the_loop_can_spare_time_for(tmp_path: Path) -> None:
    """Large messages of many rows are taken few at a time; one with more than `max_rows` is a dead letter."""

    def wide(start: int, rows: int) -> Message:
        times = [START + start + i for i in range(rows)]
        body = {"machine": "m", "time": times, "values": {"a": [0.25] * rows, "b": [0.125] * rows}}
        return Message(
            exchange="mmlw.sensors", routing_key="sensor.m.readings", body=json.dumps(body).encode()
        )

    sent = [wide(9_000 * i, 9_000) for i in range(9)] + [wide(90_000, 10_001)]
    plant = Plant(tmp_path, topology(max_batch=64, max_ahead=1e9))
    assert 200_000 < len(sent[0].body) < 500_000
    run(play(plant, sent))
    sizes = [len(np.unique(part.batch.messages)) for part in plant.scored if len(part.batch)]
    assert sum(sizes) == 9
    assert max(sizes) * len(sent[0].body) <= 1_000_000
    assert plant.metrics.dead_letters("plant") == {"too_large": 1}


def test_state_of_every_kind_of_detector_survives_eviction(tmp_path: Path) -> None:
    async def story() -> None:
        from detectors import AdaptiveZ, HalfSpaceTrees, River

        detectors: dict[str, Any] = {
            "z": AdaptiveZ(warmup=5, half_life=20),
            "trees": HalfSpaceTrees(n_trees=3, height=3, window_size=10, threshold=0.7),
            "river": River(river="LODA", warmup=5, settings={"n_random_cuts": 5}, threshold=2.0),
        }

        def wide(resident: int) -> Topology:
            return msgspec.structs.replace(
                topology(max_batch=8, resident_machines=resident), detectors=detectors
            )

        messages = readings(240, machines=6)
        roomy = await play(Plant(tmp_path / "roomy", wide(100)), messages)
        tight = await play(Plant(tmp_path / "tight", wide(2)), messages)
        assert await tight.alerts() == await roomy.alerts()
        assert await roomy.alerts()
        for machine, rows in state(roomy).items():
            tested = [name for name in rows if not name.endswith("object")]
            assert {n: repr(state(tight)[machine][n]) for n in tested} == {n: repr(rows[n]) for n in tested}

    run(story())


def test_a_whole_number_and_the_same_one_with_a_point_are_one_recipe() -> None:
    from detectors import AdaptiveZ
    from stream.recipes import online_info

    assert online_info(AdaptiveZ(half_life=50)) == online_info(AdaptiveZ(half_life=50.0))
    assert online_info(AdaptiveZ(half_life=50)) != online_info(AdaptiveZ(half_life=51))


def test_message_with_several_rows_too_late_to_align_is_one_dead_letter(tmp_path: Path) -> None:
    async def story() -> None:
        layout: dict[str, Any] = {"layout": "narrow", "routing_key": "sensor.{machine}.{sensor}"}

        def narrow(sensor: str, *times: float) -> Message:
            body = json.dumps([{"time": START + at, "value": 1.0} for at in times]).encode()
            return Message(exchange="mmlw.sensors", routing_key=f"sensor.m0.{sensor}", body=body)

        messages = [narrow(sensor, float(i)) for i in range(20) for sensor in "ab"]
        plant = await play(Plant(tmp_path, topology(**layout)), [*messages, narrow("a", 3.0, 4.0)])
        assert plant.metrics.dead_letters("plant") == {"late": 1}
        assert len(await plant.kept("mmlw.deadletters")) == 1
        assert conserved(plant)

    run(story())

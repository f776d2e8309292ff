"""The engine on the embedded broker: nothing lost, nothing twice, wherever it is cut."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
import pytest

from detectors.base import Model
from detectors.statistical import AdaptiveZ
from stream.brokers.base import Message
from stream.brokers.memory import MemoryBroker, MemoryServer
from stream.checkpoint import Checkpoint
from stream.errors import BrokerUnreachable, CheckpointError
from stream.metrics import Metrics
from stream.references import ModelRef
from stream.scorer import Scorer
from stream.state import Changes, StreamPosition
from tests.aio import run
from tests.plant import START, Plant, ScaleShelf, readings, topology


async def uninterrupted(plant: Plant, messages: Sequence[Message]) -> None:
    await plant.declare()
    await plant.publish(messages)
    await plant.process(len(messages))


def state_of(plant: Plant) -> tuple[list[str], dict[str, Any]]:
    """The checkpoint's machines and state arrays."""
    checkpoint = Checkpoint(plant.data / "plant.checkpoint", "plant", Scorer.recipes(plant.topology))
    try:
        saved = checkpoint.load()
    finally:
        checkpoint.close()
    (group,) = saved.groups
    order = np.argsort(group.machines)
    return sorted(group.machines), {
        c: {n: a[order].tolist() for n, a in rows.items()} for c, rows in group.components.items()
    }


def assert_same(one: Any, other: Any) -> None:
    np.testing.assert_equal(one, other)


def test_received_is_processed_plus_dead_lettered(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology())
        await uninterrupted(plant, readings(1000, bad_every=50))
        received, processed = (
            plant.value("mmlw_messages_received_total"),
            plant.value("mmlw_messages_processed_total"),
        )
        dead = plant.value("mmlw_messages_deadlettered_total", reason="not_decodable")
        assert (received, processed, dead) == (1000, 980, 20)
        letters = await plant.kept("mmlw.deadletters")
        assert len(letters) == 20
        assert letters[0].body == b"{broken"
        assert letters[0].headers["mmlw-reason"] == "not_decodable"
        assert letters[0].headers["mmlw-offset"] == 49
        assert letters[0].routing_key == "deadletter.plant.not_decodable"

    run(story())


@pytest.mark.parametrize("max_batch", [1, 7, 1000])
def test_batch_boundaries_change_nothing(tmp_path: Path, max_batch: int) -> None:
    async def story() -> None:
        one, other = (
            Plant(tmp_path / "one", topology()),
            Plant(tmp_path / "other", topology(max_batch=max_batch)),
        )
        messages = readings(600, bad_every=41)
        await uninterrupted(one, messages)
        await uninterrupted(other, messages)
        expected = await one.alerts()
        assert len(expected) > 5
        assert await other.alerts() == expected
        assert_same(state_of(other), state_of(one))

    run(story())


def test_stopped_and_started_equals_uninterrupted(tmp_path: Path) -> None:
    async def story() -> None:
        one, other = Plant(tmp_path / "one", topology()), Plant(tmp_path / "other", topology())
        messages = readings(600)
        await uninterrupted(one, messages)
        await other.declare()
        for start in range(0, 600, 150):
            await other.publish(messages[start : start + 150])
            await other.process(start + 150)
        assert await other.alerts() == await one.alerts()
        assert_same(state_of(other), state_of(one))

    run(story())


class Saboteur(MemoryBroker):
    """A connection that is lost at the n-th publishing, before or after the broker has the messages."""

    left = 0
    after = False

    async def publish(self, messages: Sequence[Message]) -> None:
        type(self).left -= 1
        if type(self).left == 0:
            if type(self).after:
                await super().publish(messages)
            self.server.drop_connections()
            raise BrokerUnreachable("sabotage")
        await super().publish(messages)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("nth", [1, 2, 5])
def test_lost_connection_while_publishing_changes_nothing(tmp_path: Path, nth: int, *, after: bool) -> None:
    async def story() -> None:
        one, other = Plant(tmp_path / "one", topology()), Plant(tmp_path / "other", topology())
        messages = readings(600)
        await uninterrupted(one, messages)
        Saboteur.left, Saboteur.after = nth, after
        other.connect = lambda: Saboteur(other.server, user="worker")
        await uninterrupted(other, messages)
        assert other.value("mmlw_restarts_total", cause="broker") == 1
        assert await other.alerts() == await one.alerts()
        assert_same(state_of(other), state_of(one))

    run(story())


@pytest.mark.parametrize("after", [False, True])
def test_failed_commit_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> None:
    async def story() -> None:
        one, other = (Plant(tmp_path / name, topology(every=0.0)) for name in ("one", "other"))
        messages = readings(600)
        await uninterrupted(one, messages)
        left = 3
        commit = Checkpoint.commit

        def failing(self: Checkpoint, changes: Changes) -> int:
            nonlocal left
            left -= 1
            if left == 0:
                if after:
                    commit(self, changes)
                raise CheckpointError("sabotage")
            return commit(self, changes)

        monkeypatch.setattr(Checkpoint, "commit", failing)
        await uninterrupted(other, messages)
        assert other.value("mmlw_restarts_total", cause="checkpoint") == 1
        assert await other.alerts() == await one.alerts()
        assert_same(state_of(other), state_of(one))

    run(story())


def test_message_that_makes_a_detector_fail_is_quarantined_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        plant, other = Plant(tmp_path / "one", topology()), Plant(tmp_path / "other", topology())
        messages = readings(300)
        poison = msgspec.structs.replace(
            messages[100], body=b'{"time": 1722988900, "values": {"a": 666.0, "b": 0.0}}'
        )
        await uninterrupted(other, messages[:100] + messages[101:])
        model = type(topology().detectors["spike"].build(("a", "b")))  # type: ignore[union-attr]
        healthy = model.score_learn

        def failing(self: Any, slots: Any, values: Any, times: Any, learn: Any) -> Any:
            if (values == 666.0).any():
                raise ZeroDivisionError("sabotage")
            return healthy(self, slots, values, times, learn)

        monkeypatch.setattr(model, "score_learn", failing)
        await uninterrupted(plant, [*messages[:100], poison, *messages[101:]])
        [letter] = await plant.kept("mmlw.deadletters")
        assert letter.headers["mmlw-reason"] == "detector_failed"
        assert letter.headers["mmlw-offset"] == 100
        assert [a.time for a in await plant.alerts()] == [a.time for a in await other.alerts()]
        assert_same(state_of(plant)[1]["model:spike"], state_of(other)[1]["model:spike"])

    run(story())


def test_worker_refuses_a_stream_that_was_made_anew(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology())
        await uninterrupted(plant, readings(100))
        plant.server = MemoryServer()
        await plant.declare()
        await plant.publish(readings(100, seed=1))
        with pytest.raises(CheckpointError, match="was it recreated"):
            await plant.worker().run(asyncio.Event())

    run(story())


def test_readings_lost_to_retention_are_counted(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology(keep_bytes=20_000))
        await uninterrupted(plant, readings(100))
        await plant.publish(readings(2000, seed=1))
        await plant.process(2100)
        lost = plant.value("mmlw_offsets_lost_total")
        assert lost > 0
        assert plant.value("mmlw_messages_received_total") + lost == 2100

    run(story())


def test_swap_scores_every_reading_once_with_the_model_its_receipt_names(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology(batch_model=True, max_batch=10), shelf=ScaleShelf())
        messages = readings(2000)
        await plant.declare()
        await plant.publish(messages[:1000])
        async with plant.running() as worker:
            await plant.reached(worker, 200)
            receipt = await plant.ask("swap", model="models:/scale/3")
            await plant.publish(messages[1000:])
            await plant.reached(worker, 2000)
        assert receipt["status"] == "applied"
        assert receipt["model"] == {"name": "scale", "version": 3, "digest": f"sha256:{3:064x}"}
        assert receipt["replaced"]["version"] == 1
        first = receipt["partitions"]["0"]["first_offset"]
        assert 200 <= first < 2000
        offsets = np.concatenate([part.offsets for part in plant.scored])
        scores = np.concatenate([part.scores["scale"] for part in plant.scored])
        values = np.vstack([part.batch.values for part in plant.scored])
        assert offsets.tolist() == list(range(2000))
        np.testing.assert_allclose(scores, np.abs(values[:, 0]) * np.where(offsets >= first, 3.0, 1.0))

    run(story())


class _Learning(ScaleShelf):
    """Version 7 is a model with state of each key."""

    def model(self, ref: ModelRef, sensors: Sequence[str]) -> Model:
        return AdaptiveZ().build(tuple(sensors)) if ref.version == 7 else super().model(ref, sensors)


def test_state_that_a_swap_made_fresh_is_in_the_checkpoint_too(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology(batch_model=True), shelf=_Learning(alias=7))
        await plant.declare()
        await plant.publish(readings(100))
        async with plant.running() as worker:
            await plant.reached(worker, 100)
            await plant.ask("swap", model="models:/scale/3")
            await plant.ask("swap", model="models:/scale/7")
        machines, state = state_of(plant)
        assert len(machines) == 3
        assert np.sum(state["model:spike"]["count"]) == 200, "of two sensors"
        assert np.sum(state["model:scale"]["count"]) == 0

    run(story())


def test_restart_resumes_the_version_that_was_swapped_in(tmp_path: Path) -> None:
    async def story() -> None:
        shelf = ScaleShelf()
        plant = Plant(tmp_path, topology(batch_model=True), shelf=shelf)
        await plant.declare()
        async with plant.running():
            await plant.ask("swap", model="models:/scale/5")
        shelf.alias = 9
        async with plant.running():
            status = await plant.ask("status")
            assert status["models"]["scale"]["version"] == "5"
            receipt = await plant.ask("rollback")
            assert (receipt["model"]["version"], receipt["replaced"]["version"]) == (1, 5)
            assert receipt["alias"] == "models:/scale@champion stays where it is in the registry"
            again = await plant.ask("rollback")
            assert (again["status"], again["serving"]["scale"]["version"]) == ("refused", 1)
        async with plant.running():
            assert (await plant.ask("rollback"))["status"] == "refused", "after a restart, too"
            await plant.ask("swap", model="models:/scale/5")
            assert (await plant.ask("rollback"))["model"]["version"] == 1

    run(story())


@pytest.mark.parametrize(
    ("verb", "user", "arguments", "expected"),
    [
        ("swap", "operator", {"model": "models:/scale/99"}, "no such version"),
        ("swap", "operator", {"model": "models:/scale/70"}, "sensors differ"),
        ("swap", "operator", {"model": "models:/scale/80"}, 'takes versions of "scale"'),
        ("swap", "operator", {}, "swap needs"),
        ("swap", "operator", {"detector": "scal", "model": "models:/scale/2"}, 'Did you mean "scale"'),
        ("rollback", "operator", {}, "no earlier model"),
        ("swap", "mallory", {"model": "models:/scale/2"}, "list of operators"),
        ("pause", "mallory", {}, "list of operators"),
        ("stats", "operator", {}, 'Did you mean "status"'),
        ("swap", "operator", {"modle": "x"}, "not a command"),
        ("swap", "operator", {"model": "foo"}, "is not a model address"),
        ("swap", "operator", {"model": "models:/scale/0"}, "is not a model address"),
        ("swap", "operator", {"model": f"models:/scale/{'9' * 5000}"}, "is not a model address"),
        ("swap", "operator", {"model": "models:/scale/66"}, "ZeroDivisionError"),
    ],
)
def test_bad_command_is_refused_with_a_reason_and_changes_nothing(
    tmp_path: Path, verb: str, user: str, arguments: dict[str, str], expected: str
) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology(batch_model=True), shelf=ScaleShelf())
        await plant.declare()
        async with plant.running():
            receipt = await plant.ask(verb, user=user, **arguments)
            assert receipt["status"] == "refused"
            assert expected in receipt["reason"]
            status = await plant.ask("status")
            assert status["models"]["scale"]["version"] == "1"
            assert not status["paused"]

    run(story())


def test_command_is_carried_out_once(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology(batch_model=True), shelf=ScaleShelf())
        await plant.declare()
        command = Message(
            exchange="mmlw.control",
            routing_key="control.plant.swap",
            body=json.dumps({"id": "once", "issued": time.time(), "model": "models:/scale/2"}).encode(),
        )
        async with plant.running():
            async with MemoryBroker(plant.server, user="operator") as operator:
                await operator.publish([command])
            await plant.ask("swap", model="models:/scale/3")
            async with MemoryBroker(plant.server, user="operator") as operator:
                await operator.publish([command])
            assert (await plant.ask("status"))["models"]["scale"]["version"] == "3"

    run(story())


def test_pause_holds_readings_until_resume_even_over_a_restart(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology())
        await plant.declare()
        async with plant.running():
            assert (await plant.ask("pause"))["status"] == "applied"
            await plant.publish(readings(50))
        plant.metrics = Metrics()
        async with plant.running() as worker:
            status = await plant.ask("status")
            assert (status["paused"], status["consuming"], status["next_offset"]) == (True, False, 0)
            assert plant.value("mmlw_paused") == 1
            await plant.ask("resume")
            await plant.reached(worker, 50)

    run(story())


def test_alert_is_a_cloud_event_with_reasons(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology())
        await uninterrupted(plant, readings(600))
        delivery = (await plant.kept("mmlw.alerts"))[0]
        alert = (await plant.alerts())[0]
        assert delivery.headers["ce-type"] == "mmlw.alert.opened"
        assert delivery.headers["ce-specversion"] == "1.0"
        assert delivery.headers["ce-id"] == delivery.message_id == f"{alert.id}-0"
        assert delivery.routing_key == f"alert.{alert.severity}.plant.{alert.machine}"
        assert {reason.sensor for reason in alert.contributions} == {"a", "b"}
        assert sum(abs(reason.share) for reason in alert.contributions) == pytest.approx(1.0)
        assert alert.contributions[0].sensor in alert.reason
        assert alert.window.values["a"][-1] == pytest.approx(
            next(reason.value for reason in alert.contributions if reason.sensor == "a")
        )
        assert alert.model.kind == "adaptive_z"

    run(story())


def test_unroutable_alert_stops_the_topology_and_is_never_silent(tmp_path: Path) -> None:
    async def story() -> None:
        from stream.topology import Sink

        deaf = msgspec.structs.replace(topology(), sink=Sink(exchange="nobody", queue=None))
        plant = Plant(tmp_path, deaf)
        await plant.declare()
        await plant.publish(readings(600))
        async with plant.running():
            async with asyncio.timeout(240):
                while plant.value("mmlw_restarts_total", cause="broker") < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        assert plant.value("mmlw_messages_processed_total") < 600

    run(story())


class _Refusing(MemoryBroker):
    """A broker that is not there when a worker starts."""

    async def __aenter__(self) -> Self:
        raise BrokerUnreachable("simulated: nothing answers")


def test_orderly_end_of_a_start_that_failed_keeps_word_of_what_may_be_scored_again(tmp_path: Path) -> None:
    """It is no death any more. But alerts of messages behind the position may be out: a swap must not come first."""

    async def story() -> None:
        plant = Plant(tmp_path, topology())
        with opened(plant) as store:
            store.commit(Changes(StreamPosition(4, "x"), running=True))
        plant.connect = lambda: _Refusing(plant.server)
        with pytest.raises(BrokerUnreachable):
            await plant.worker().run(asyncio.Event())
        with opened(plant) as store:
            saved = store.load()
            assert (saved.died, saved.unsettled) == (False, True)
            store.commit(Changes(StreamPosition(), paused=True))  # what comes again is scored all the same
        plant.connect = None
        await plant.declare()
        await plant.publish(readings(5))
        async with plant.running() as worker:
            await plant.reached(worker, 5)
        with opened(plant) as store:
            saved = store.load()
            assert (saved.paused, saved.died, saved.unsettled) == (True, False, False)

    run(story())


@contextlib.contextmanager
def opened(plant: Plant) -> Iterator[Checkpoint]:
    checkpoint = Checkpoint(plant.data / "plant.checkpoint", "plant", Scorer.recipes(plant.topology))
    try:
        yield checkpoint
    finally:
        checkpoint.close()


def test_orderly_end_in_the_middle_of_what_is_scored_again_keeps_word_of_the_rest(tmp_path: Path) -> None:
    async def story() -> None:
        plant = Plant(tmp_path, topology(max_batch=1))
        with opened(plant) as store:
            store.commit(Changes(StreamPosition(), running=True))  # a death
        await plant.declare()
        await plant.publish(readings(900))
        async with plant.running() as worker:
            await plant.reached(worker, 1)
        with opened(plant) as store:
            saved = store.load()
        assert 0 <= saved.position.last_offset < 899
        assert (saved.died, saved.unsettled) == (False, True)

    run(story())


@pytest.mark.parametrize("verb", ["accept", "label"])
def test_word_on_an_alert_waits_for_what_is_scored_again(tmp_path: Path, verb: str) -> None:
    """The alert went out before the death; where its readings come again, it is not open yet."""

    async def story() -> None:
        plant = Plant(tmp_path, topology(max_batch=1))
        with opened(plant) as store:
            store.commit(Changes(StreamPosition(), running=True))  # a death
        await plant.declare()
        calm = readings(300)
        fault = [_spike(300 + i) for i in range(5)]
        await plant.publish([*calm, *fault])
        worker, stop = plant.worker(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(worker.run(stop))
            words = {"label": "false"} if verb == "label" else {}
            receipt = await plant.ask(verb, machine="m1", detector="spike", **words)
            before = plant.value("mmlw_messages_processed_total")
            stop.set()
            await task
        assert receipt["status"] == "applied", receipt
        assert before == 305
        if verb == "label":
            assert receipt["closed"] == 1

    run(story())


def _spike(second: int) -> Message:
    body = {"machine": "m1", "time": START + second, "values": {"a": 500.0, "b": 500.0}}
    key = "sensor.m1.readings"
    return Message(exchange="mmlw.sensors", routing_key=key, body=json.dumps(body).encode())

"""Control on the embedded broker: who may command, once, in time, in order; and what is written down about it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from detectors.base import Model
from stream.brokers.base import Message, Queue
from stream.brokers.memory import MemoryBroker
from stream.checkpoint import Checkpoint
from stream.clock import Clock
from stream.errors import CheckpointError, ModelNotFound
from stream.models import ModelRef
from stream.runtimes.local import Worker
from stream.scorer import Scorer
from stream.state import Changes
from tests.aio import run
from tests.plant import Plant, ScaleShelf, readings, topology


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine without readings looks for commands more often, so that hundreds of them take no minute."""
    monkeypatch.setattr("stream.engine._IDLE", 0.01)


@dataclass
class Timed(Plant):
    """A plant whose worker's clock is ahead by as much as a test says."""

    ahead: float = 0.0
    """Seconds; the shelf of a test may move it."""
    numbers: list[int] = field(default_factory=list)

    def worker(self) -> Worker:
        return Worker(
            (self.topology,),
            connect=lambda: MemoryBroker(self.server, user="worker"),
            data=self.data,
            shelf=self.shelf,
            metrics=self.metrics,
            observer=lambda _, scored: self.scored.append(scored),
            clock=Clock(lambda: time.time() + self.ahead, time.monotonic),
        )

    async def send(self, verb: str, body: dict[str, Any] | bytes, user: str = "operator") -> dict[str, Any]:
        """The receipt for this very body."""
        self.numbers.append(1)
        queue = Queue(name=f"mmlw.reply.{user}.{len(self.numbers)}", kind="reply")
        command = Message(
            exchange="mmlw.control",
            routing_key=f"control.plant.{verb}",
            body=body if isinstance(body, bytes) else json.dumps(body).encode(),
            reply_to=queue.name,
        )
        async with MemoryBroker(self.server, user=user) as broker:
            intake = await broker.consume(queue, offset=None, prefetch=1)
            await broker.publish([command])
            [answer] = await intake.receive(1, 0.0, 20.0)
            receipt: dict[str, Any] = json.loads(answer.body)
            return receipt

    def audited(self) -> list[dict[str, Any]]:
        """The lines of the checkpoint's audit, while no worker runs; the status is answered before it is written."""
        checkpoint = Checkpoint(self.data / "plant.checkpoint", "plant", Scorer.recipes(self.topology))
        try:
            return [
                line for line in checkpoint.audit() if line["verb"] != "status" or line["by"] != "operator"
            ]
        finally:
            checkpoint.close()


def plant(folder: Path, **settings: Any) -> Timed:
    return Timed(folder, topology(batch_model=True), shelf=ScaleShelf(), **settings)


def version(status: dict[str, Any]) -> str:
    found: str = status["models"]["scale"]["version"]
    return found


SECRET = "a-password-that-has-no-place-here"
SWAP = {"model": "models:/scale/2"}
BAD: list[tuple[str, str, str, dict[str, Any] | bytes, str]] = [
    ("unknown issuer", "swap", "mallory", {"issued": 0, **SWAP}, r'"mallory" is not on .* list of operators'),
    ("unknown issuer asks", "status", "mallory", {}, "list of operators"),
    ("unknown issuer looks", "audit", "mallory", {}, "list of operators"),
    ("issuer's name in capitals", "pause", "Operator", {"issued": 0}, "list of operators"),
    ("unknown verb", "stats", "operator", {"issued": 0}, 'unknown command "stats". Did you mean "status"'),
    ("verb in capitals", "PAUSE", "operator", {"issued": 0}, "unknown command"),
    ("no verb", "", "operator", {"issued": 0}, "unknown command"),
    ("not JSON", "pause", "operator", b"{", "the body is not a command"),
    ("not text", "pause", "operator", b'{"id": "\xff"}', "the body is not a command"),
    ("half a character", "pause", "operator", rb'{"id": "x\ud800yyyyyyyyyyyy"}', "the body is not a command"),
    ("not an object", "pause", "operator", b"[1]", "the body is not a command"),
    ("nested deeply", "pause", "operator", b'{"id": ' + b"[" * 7000, "the body is not a command"),
    ("unknown field", "pause", "operator", {"issued": 0, "password": SECRET}, "unknown field `password`"),
    ("too large", "pause", "operator", {"issued": 0, "model": "x" * 20_000}, "bytes; a command has at most"),
    ("far too large", "pause", "operator", b" " * 5_000_000, "5000000 bytes; a command has at most 16384"),
    ("no id", "pause", "operator", {"id": None, "issued": 0}, "needs an id"),
    ("empty id", "pause", "operator", {"id": "", "issued": 0}, "needs an id"),
    ("long id", "pause", "operator", {"id": "x" * 201, "issued": 0}, "needs an id"),
    ("id with a line end", "pause", "operator", {"id": "a\nb", "issued": 0}, "needs an id"),
    ("no time", "pause", "operator", {}, 'needs "issued"'),
    ("time that is none", "pause", "operator", {"issued": "soon"}, '"issued": soon is not an RFC 3339 time'),
    ("time beyond all", "pause", "operator", {"issued": 10**30}, "issued"),
    ("expired by default", "pause", "operator", {"issued": -301}, r"expired \d+ s ago: it was good for 300 s"),
    ("expired by its own", "pause", "operator", {"issued": -9, "expires": 5}, r"expired \d+ s ago: .* good for 5 s"),
    ("good for nothing", "pause", "operator", {"issued": 0, "expires": 0}, '"expires" must be above 0'),
    ("good for ever", "pause", "operator", {"issued": 0, "expires": 1e9}, '"expires" must be above 0 and at most'),
    ("from the future", "pause", "operator", {"issued": 75}, r"issued 7\d s in the future: set the clock"),
    ("out of order", "pause", "operator", {"issued": -60}, "out of order: issued .* before the last command"),
    ("out of order, swap", "swap", "operator", {"issued": -60, **SWAP}, "out of order"),
    ("unknown version", "swap", "operator", {"issued": 0, "model": "models:/scale/99"}, "no such version"),
    ("another model", "swap", "operator", {"issued": 0, "model": "models:/scale/80"}, 'takes versions of "scale"'),
    ("no address", "swap", "operator", {"issued": 0, "model": "foo"}, "is not a model address"),
    ("wrong digest", "swap", "operator", {"issued": 0, **SWAP, "digest": f"sha256:{3:064x}"}, "not the one"),
    ("empty digest", "swap", "operator", {"issued": 0, **SWAP, "digest": ""}, "not the one"),
    ("model for a pause", "pause", "operator", {"issued": 0, **SWAP}, 'pause takes no "model"'),
    ("digest for a rollback", "rollback", "operator", {"issued": 0, "digest": "x"}, 'rollback takes no "digest"'),
    ("accept of nobody", "accept", "operator", {"issued": 0}, 'accept needs "machine"'),
    ("accept of a stranger", "accept", "operator", {"issued": 0, "machine": "m99"}, '"m99" has no open alert'),
    ("accept by nobody", "accept", "operator", {"issued": 0, "machine": "m0", "detector": "x"}, "raises no alerts"),
    ("machine for a pause", "pause", "operator", {"issued": 0, "machine": "m0"}, 'pause takes no "machine"'),
    ("nothing to go back to", "rollback", "operator", {"issued": 0}, "no earlier model"),
    ("id of another verb", "resume", "operator", {"id": "first", "issued": 0}, 'the id "first" was used by another'),
    ("id of another body", "pause", "operator", {"id": "first", "issued": 1}, 'the id "first" was used by another'),
    ("id of a refused one", "pause", "operator", {"id": "unknown version", "issued": 0}, "was used by another"),
]  # fmt: skip


def written(name: str, body: dict[str, Any] | bytes, now: float) -> bytes:
    """A body, with its id and with its time counted from now."""
    if isinstance(body, bytes):
        return body
    whole = {"id": name, **body}
    if isinstance(whole.get("issued"), int) and abs(whole["issued"]) < 1000:
        whole["issued"] += now
    return json.dumps({key: value for key, value in whole.items() if value is not None}).encode()


def test_every_bad_command_is_refused_for_its_own_reason_and_audited(tmp_path: Path) -> None:
    async def story() -> tuple[list[str], list[dict[str, Any]]]:
        found = plant(tmp_path)
        await found.declare()
        wrong = []
        async with found.running():
            first = await found.send("resume", {"id": "first", "issued": time.time()})
            assert first["status"] == "applied"
            for name, verb, user, body, reason in BAD:
                receipt = await found.send(verb, written(name, body, time.time()), user)
                stranger = user != "operator" and "serving" in receipt
                if receipt["status"] != "refused" or not re.search(reason, receipt["reason"]) or stranger:
                    wrong.append(f"{name}: {receipt}")
            status = await found.send("status", {"id": "last"})
            assert (status["paused"], version(status)) == (False, "1")
            assert found.shelf.loaded == [1]
            shown = await found.send("audit", {"id": "look"})
        lines = found.audited()
        before = [line for line in shown["audit"] if line["id"] != "last"]
        assert [line | {"number": 0} for line in lines[:-1]] == [line | {"number": 0} for line in before]
        return wrong, lines

    wrong, lines = run(story())
    print(f"{len(BAD) - len(wrong)} of {len(BAD)} refused")
    assert not wrong
    assert [line["status"] for line in lines] == ["applied", *["refused"] * len(BAD), "applied"]
    for (name, verb, user, body, reason), line in zip(BAD, lines[1:-1], strict=True):
        assert (line["verb"], line["by"]) == (verb, user), name
        assert re.search(reason, line["reason"]), name
        assert line.keys() == {"number", "at", "by", "verb", "id", "status", "reason", "digest"}
        assert len(line["digest"]) == (0 if "too large" in name else 64), name
        assert abs(datetime.fromisoformat(line["at"]).timestamp() - time.time()) < 100
        assert line["id"] is None or isinstance(body, dict), name
    text = json.dumps(lines)
    assert SECRET not in text
    assert "xxxxxxxxxx" not in text


def test_the_same_command_again_gets_its_first_receipt_and_is_not_carried_out_again(tmp_path: Path) -> None:
    async def story() -> None:
        found = plant(tmp_path)
        await found.declare()
        once = {"id": "once", "issued": time.time(), "model": "models:/scale/2"}
        early = {"id": "early", "issued": time.time(), "model": "models:/scale/70"}
        async with found.running():
            refused = await found.send("swap", early)
            assert (refused["status"], refused["reason"]) == ("refused", "its sensors differ")
            first = await found.send("swap", once)
            assert first["status"] == "applied"
            assert "duplicate" not in first
            await found.send("swap", {**once, "id": "two", "model": "models:/scale/3"})
            again = await found.send("swap", once)
            del first["pause_s"]
            assert again == {**first, "duplicate": True}
        found.shelf = _Tolerant()
        found.ahead = 1000.0
        async with found.running():
            assert await found.send("swap", once) == {**first, "duplicate": True}
            later = await found.send("swap", early)
            assert (later["status"], later["reason"], later["duplicate"]) == (
                "refused",
                refused["reason"],
                True,
            )
            assert version(await found.send("status", {"id": "s"})) == "3"
        assert [line["status"] for line in found.audited()] == [
            "refused", "applied", "applied", "duplicate", "duplicate", "duplicate",
        ]  # fmt: skip

    run(story())


class _Tolerant(ScaleShelf):
    """Loads what was refused before."""

    def model(self, ref: Any, sensors: Any) -> Model:
        return super().model(ref if ref.version != 70 else self.resolve("models:/scale/2"), sensors)


def test_the_order_survives_a_restart_and_equal_times_go_by_arrival(tmp_path: Path) -> None:
    async def story() -> None:
        found = plant(tmp_path)
        await found.declare()
        now = time.time()
        text = datetime.fromtimestamp(now, UTC).isoformat()
        async with found.running():
            assert (await found.send("pause", {"id": "a", "issued": now}))["status"] == "applied"
            assert (await found.send("resume", {"id": "b", "issued": now}))["status"] == "applied"
        async with found.running():
            late = await found.send("pause", {"id": "c", "issued": now - 0.01})
            assert "out of order: issued 0.010 s before the last" in late["reason"]
            assert (await found.send("pause", {"id": "d", "issued": text}))["status"] == "applied"
            assert (await found.send("resume", {"id": "e", "issued": now + 59}))["status"] == "applied"
            late = await found.send("pause", {"id": "f", "issued": now + 30})
            assert "out of order" in late["reason"]
            assert not (await found.send("status", {"id": "s", "issued": 0}))["paused"]

    run(story())


@pytest.mark.parametrize("restart", [False, True])
def test_a_clock_that_is_ahead_holds_up_those_that_are_right_for_seconds_only(
    tmp_path: Path, restart: bool
) -> None:
    async def story() -> None:
        found = plant(tmp_path)
        await found.declare()
        now = time.time()

        async def said(name: str, ahead: float) -> str:
            receipt = await found.send("pause", {"id": name, "issued": now + ahead})
            return str(receipt.get("reason", receipt["status"]))

        async with contextlib.AsyncExitStack() as running:
            await running.enter_async_context(found.running())
            assert await said("fast", 55.0) == "applied"
            if restart:
                await running.aclose()
                await running.enter_async_context(found.running())
            assert "out of order" in await said("right, and before it", 0.0)
            found.ahead = 30.0
            assert await said("right, and after it", 30.0) == "applied"
            assert "out of order" in await said("right, and before that", 29.0)
            assert "out of order" in await said("fast, and before the first", 54.0)
            assert await said("fast, and after the first", 56.0) == "applied"
            assert (await found.send("pause", {"id": "fast", "issued": now + 55.0}))["duplicate"]

    run(story())


def test_a_command_that_expires_while_its_model_is_prepared_changes_nothing(tmp_path: Path) -> None:
    class Slow(ScaleShelf):
        def model(self, ref: Any, sensors: Any) -> Model:
            if ref.version == 2:
                found.ahead += 400.0
            return super().model(ref, sensors)

    found = plant(tmp_path)
    found.shelf = Slow()

    async def story() -> None:
        await found.declare()
        async with found.running():
            receipt = await found.send("swap", {"id": "a", "issued": time.time(), **SWAP})
            assert receipt["status"] == "refused"
            assert re.search(r"expired \d+ s ago", receipt["reason"])
            assert receipt["serving"]["scale"]["version"] == 1
            status = await found.send("status", {"id": "s"})
            assert (version(status), found.value("mmlw_swaps_total", detector="scale", status="refused")) == (
                "1",
                1,
            )

    run(story())


def test_a_swap_by_its_digest_is_applied(tmp_path: Path) -> None:
    async def story() -> None:
        found = plant(tmp_path)
        await found.declare()
        async with found.running():
            receipt = await found.ask("swap", model="models:/scale/2", digest=f"sha256:{2:064x}")
            assert (receipt["status"], receipt["by"]) == ("applied", "operator")

    run(story())


@pytest.mark.parametrize("after", [False, True])
def test_change_receipt_and_audit_are_one_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> None:
    """The commit of a command fails, before or after the store has it: it is carried out once, with one line."""
    commit = Checkpoint.commit
    failed: list[Changes] = []

    def failing(self: Checkpoint, changes: Changes) -> int:
        if changes.commands:
            assert [line["id"] for line in changes.audit] == list(changes.commands)
            if not failed:
                failed.append(changes)
                if after:
                    commit(self, changes)
                raise CheckpointError("sabotage")
        return commit(self, changes)

    monkeypatch.setattr(Checkpoint, "commit", failing)

    async def story() -> Timed:
        found = plant(tmp_path)
        await found.declare()
        await found.publish(readings(100))
        async with found.running() as worker:
            await found.reached(worker, 100)
            receipt = await found.send("swap", {"id": "a", "issued": time.time(), **SWAP})
            assert receipt["status"] == "applied"
            assert receipt.get("duplicate", False) is after
            assert version(await found.send("status", {"id": "s"})) == "2"
        return found

    lines = [(line["id"], line["status"]) for line in run(story()).audited()]
    assert failed
    assert lines == [("a", "applied"), *([("a", "duplicate")] if after else [])]


def test_a_flood_of_bad_commands_is_counted_and_the_stream_goes_on(tmp_path: Path) -> None:
    flood = 1000

    async def story() -> Timed:
        found = plant(tmp_path)
        await found.declare()
        bad = Message(exchange="mmlw.control", routing_key="control.plant.pause", body=b"x" * 200)
        async with found.running() as worker:
            async with MemoryBroker(found.server, user="mallory") as mallory:
                await mallory.publish([bad] * flood)
            await found.publish(readings(600))
            await found.reached(worker, 600)
            receipt = await found.send("pause", {"id": "a", "issued": time.time()})
            assert receipt["status"] == "applied"
        return found

    found = run(story())
    lines = found.audited()
    assert len(lines) < 60
    assert lines[-1]["id"] == "a"
    listed = [line for line in lines if line["by"] == "mallory"]
    counts = [
        re.match(r"(\d+) more commands .*: \d+ refused of mallory$", line["reason"] or "") for line in lines
    ]
    assert len(listed) + sum(int(count[1]) for count in counts if count) == flood
    assert found.value("mmlw_commands_total", verb="pause", status="refused") == flood


def test_operators_bad_commands_are_answered_in_a_flood_too(tmp_path: Path) -> None:
    async def story() -> None:
        found = plant(tmp_path)
        await found.declare()
        async with found.running():
            for number in range(120):
                receipt = await found.send("pause", {"id": str(number)})
                assert 'needs "issued"' in receipt["reason"]
        assert len(found.audited()) == 120, "only strangers are counted in place of listed"

    run(story())


def test_what_was_refused_stays_refused_after_a_restart_however_much_was_refused_before(
    tmp_path: Path,
) -> None:
    class Late(ScaleShelf):
        there = False

        def resolve(self, uri: str) -> ModelRef:
            if not self.there:
                raise ModelNotFound(f"{uri}: no such version")
            return super().resolve(uri)

    async def story() -> None:
        shelf = Late()
        shelf.there = True
        found = Timed(tmp_path, topology(batch_model=True), shelf=shelf)
        await found.declare()
        swap = {"id": "swap", "issued": time.time(), "model": "models:/scale/5"}
        async with found.running():
            shelf.there = False
            for number in range(80):
                assert (await found.send("pause", {"id": str(number)}))["status"] == "refused"
            assert (await found.send("swap", swap))["status"] == "refused"
        shelf.there = True
        async with found.running():
            again = await found.send("swap", swap)
            assert (again["status"], again["duplicate"]) == ("refused", True)

    run(story())


def test_an_answer_goes_to_reply_queues_only(tmp_path: Path) -> None:
    """A sender must not make the worker write where the sender may not."""

    async def story() -> None:
        found = plant(tmp_path)
        await found.declare()
        targets = ["mmlw.readings.plant", "mmlw.control.plant", "mmlw.alerts", "mmlw.deadletters", "x" * 200]
        async with found.running():
            async with MemoryBroker(found.server, user="mallory") as mallory:
                for target in targets:
                    command = Message(
                        exchange="mmlw.control",
                        routing_key="control.plant.status",
                        body=b"{}",
                        reply_to=target,
                    )
                    await mallory.publish([command])
            await found.send("audit", {"id": "s"})
        assert [line["by"] for line in found.audited()] == ["mallory"] * len(targets) + ["operator"]
        for stream in ("mmlw.readings.plant", "mmlw.alerts", "mmlw.deadletters"):
            assert await found.kept(stream) == []

    run(story())


def test_who_is_not_answered_is_logged_once_and_counted_each_time(tmp_path: Path) -> None:
    async def story() -> None:
        found = plant(tmp_path)
        await found.declare()
        with capture_logs() as lines:
            async with found.running():
                for user, target in (
                    ("mallory", "answers"),
                    ("operator", "answers"),
                    ("mallory", "mmlw.reply.gone"),
                ):
                    async with MemoryBroker(found.server, user=user) as broker:
                        for _ in range(3):
                            command = Message(
                                exchange="mmlw.control",
                                routing_key="control.plant.status",
                                body=b"{}",
                                reply_to=target,
                            )
                            await broker.publish([command])
                await found.send("audit", {"id": "s"})
        told = [line for line in lines if line["event"] == "receipt_undeliverable"]
        assert [(line["by"], line["cause"], line["log_level"]) for line in told] == [
            ("mallory", 'its "reply_to" is not a queue named mmlw.reply.*', "warning"),
            ("operator", 'its "reply_to" is not a queue named mmlw.reply.*', "warning"),
            ("mallory", 'the queue that its "reply_to" names is not there', "warning"),
        ]
        assert found.value("mmlw_receipts_undelivered_total", reason="not_a_reply_queue") == 6
        assert found.value("mmlw_receipts_undelivered_total", reason="no_queue") == 3

    run(story())


def test_status_and_audit_need_no_time_and_no_order(tmp_path: Path) -> None:
    async def story() -> None:
        found = plant(tmp_path)
        await found.declare()
        async with found.running():
            await found.send("resume", {"id": "a", "issued": time.time() + 50})
            for body in ({}, {"issued": 5, "expires": 1}, {"issued": time.time() + 9e5}):
                for verb in ("status", "audit"):
                    receipt = await found.send(verb, {"id": f"{verb} {body}", **body})
                    assert receipt["status"] == "applied"

    run(story())


def test_audit_shows_the_last_hundred_over_a_restart(tmp_path: Path) -> None:
    async def story() -> None:
        found = plant(tmp_path)
        await found.declare()
        async with found.running():
            for number in range(120):
                body = {"id": str(number), "issued": time.time()}
                assert (await found.send("resume", body))["status"] == "applied"
        async with found.running():
            shown = (await found.send("audit", {"id": "a"}))["audit"]
        assert [line["id"] for line in shown] == [str(number) for number in range(20, 120)]
        assert len(found.audited()) == 121

    run(story())


def test_waiting_commands_are_answered_when_the_topology_ends(tmp_path: Path) -> None:
    """Who asks from within the process never waits for ever: None says that nothing is known."""
    from stream.commands import Asked

    async def story() -> None:
        found = plant(tmp_path)
        await found.declare()
        async with asyncio.TaskGroup() as tasks, found.running() as worker:
            control = worker.control("plant")
            assert control is not None
            asked = [
                tasks.create_task(control.ask(Asked("pause", b"{}", "http", "http", str(number))))
                for number in range(40)
            ]
            await asyncio.sleep(0)
        answers = [task.result() for task in asked]
        assert len(answers) == 40
        assert None in answers
        assert await control.ask(Asked("status", b"{}", "http", "http", "later")) is None
        with pytest.raises(KeyError):
            worker.control("nosuch")

    run(story())

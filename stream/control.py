"""Control: commands come as messages or over HTTP, are checked, carried out once, answered and written down.

A command is published to the exchange `mmlw.control` under `control.<topology>.<verb>`, with a JSON body that
holds at least `id` and `issued`; it names where the answer goes by `reply_to` and `correlation_id`.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from types import MappingProxyType
from typing import Any

import msgspec

from stream import log
from stream.audit import Audit, Line
from stream.brokers.base import Broker, Delivery, Intake, Message, Queue
from stream.clock import SYSTEM_CLOCK, Clock
from stream.commands import (
    AGAIN,
    CLOCK_SKEW,
    MODEL_VERBS,
    READ_ONLY,
    VERBS,
    Asked,
    Command,
    Docket,
    Receipt,
    ended,
)
from stream.engine import Engine
from stream.errors import (
    BrokerError,
    BrokerMissing,
    BrokerRefused,
    BrokerUnreachable,
    CommandRefused,
    MmlwError,
    ModelError,
    RegistryUnreachable,
    TrainingCancelled,
    Unroutable,
)
from stream.following import Due, Follower
from stream.metrics import TopologyMetrics, Undelivered
from stream.plan import CONTROL_EXCHANGE, control_queue
from stream.retrainer import Retrainer
from stream.shelf import Shelf
from stream.state import Changes, ModelRows, Saved
from stream.topology import Topology
from stream.trainer import Told, Trainer
from stream.verbs import ModelHistory, Verbs

__all__ = ["Command", "Control", "Receipt", "request"]

_IDLE = 1.0
_PREFETCH = 4
"""Commands held at a time: a body may be as large as the broker allows."""
_WAITING = 16
"""Commands that may wait over HTTP."""
_LONGEST = 300.0
"""Seconds between two tries to reach a registry, at the most."""
_WATCH = 0.2
"""Seconds between two looks at whether a swap is to be taken back."""
_PACE = 0.002
"""Seconds given to the readings for each command of a flood."""
_REPLIES = ("mmlw.reply.", "amq.rabbitmq.reply-to.")
"""Where an answer may go: a sender must not make the worker write to any other queue."""
_UNDELIVERED: dict[Undelivered, str] = {
    "not_a_reply_queue": 'its "reply_to" is not a queue named mmlw.reply.*',
    "no_queue": 'the queue that its "reply_to" names is not there',
}
_WARNED = 1000
"""Senders, by reason, of whom it is logged that they cannot be answered."""

Answer = Callable[[Receipt | None], Awaitable[None]]
Work = Callable[[Told], Awaitable[Receipt]]


class Control:
    """Answers one topology's commands while its engine runs."""

    def __init__(
        self,
        topology: Topology,
        engine: Engine,
        *,
        broker: Broker,
        shelf: Shelf | None,
        models: dict[str, ModelHistory],
        saved: Saved,
        metrics: TopologyMetrics,
        clock: Clock,
        trainer: Trainer | None = None,
    ) -> None:
        self._topology = topology
        self._engine = engine
        self._broker = broker
        self._follower = Follower(topology, shelf=shelf, models=models, saved=saved.models, metrics=metrics)
        self._docket = Docket(topology.operators, saved.commands, saved.audit, clock.now())
        self._verbs = Verbs(
            topology,
            engine,
            shelf=shelf,
            models=models,
            metrics=metrics,
            clock=clock,
            trainer=trainer,
            pointing=self._follower.pointing,
            known=self._docket.known,
        )
        self._retrainer = Retrainer(
            topology,
            engine.scorer.beside,
            self._serve,
            metrics=metrics,
            clock=clock,
            busy=_busy(trainer),
            watched=engine.scorer.watched_days,
        )
        self._trainer = trainer
        self._cut_off = [
            it for it in saved.commands.values() if it.get("status") == "running" and "training" in it
        ]
        """Trainings that were under way when the worker ended."""
        self._audit = Audit(saved.audit, clock)
        self._metrics = metrics
        self._clock = clock
        self._one = asyncio.Lock()
        self._asked: asyncio.Queue[tuple[Asked, asyncio.Future[Receipt | None]]] = asyncio.Queue(_WAITING)
        self._answers: set[asyncio.Future[Receipt | None]] = set()
        self._begun: dict[str, Work] = {}
        """What goes on after a command was admitted, by its id, until somebody sees to it."""
        self._warned: set[tuple[str | None, Undelivered]] = set()
        """Who was logged as not to be answered, and why."""
        self._tasks = asyncio.TaskGroup()
        self._ended = False

    async def run(self) -> None:
        """Serve commands one at a time, in order, until cancelled."""
        try:
            intake = await self._broker.consume(
                control_queue(self._topology.name), offset=None, prefetch=_PREFETCH
            )
            async with self._tasks as tasks:
                tasks.create_task(self._serve_broker(intake))
                tasks.create_task(self._serve_asked())
                tasks.create_task(self._serve_verdicts())
                tasks.create_task(self._retrainer.run())
                tasks.create_task(self._follower.run(self._turn))
                tasks.create_task(self._clear())
        finally:
            self._ended = True
            for answer in self._answers:
                if not answer.done():
                    answer.set_result(None)

    async def ask(self, asked: Asked) -> Receipt | None:
        """Have a command carried out that comes from this process; None when the topology has no time for it.

        After None nothing is known: the same command may be sent again, it is carried out once.
        """
        if self._ended or self._asked.full():
            return None
        answer: asyncio.Future[Receipt | None] = asyncio.get_running_loop().create_future()
        self._answers.add(answer)
        try:
            self._asked.put_nowait((asked, answer))
            return await answer
        finally:
            self._answers.discard(answer)

    def hint(self, model: str, alias: str) -> None:
        """Somebody says that an alias has moved in the registry."""
        self._follower.hint(model, alias)

    async def _serve_broker(self, intake: Intake) -> None:
        while True:
            for delivery in await intake.receive(_PREFETCH, 0.0, _IDLE):
                verb = delivery.routing_key.rpartition(".")[2]
                await self._serve(
                    Asked(verb, delivery.body, delivery.user_id), partial(self._reply, delivery)
                )
                await intake.ack(delivery.tag)
            async with self._one:
                await self._write()

    async def _serve_asked(self) -> None:
        while True:
            asked, answer = await self._asked.get()
            await self._serve(asked, partial(_tell, answer))

    async def _serve_verdicts(self) -> None:
        """Take swaps back that the topology's own rule condemns; as a command, so that it is audited like any."""
        beside, tried = self._engine.scorer.beside, set[str]()
        while True:
            pause = _WATCH
            for detector in beside.verdicts():
                try:
                    async with self._one:
                        await self._take_back(detector, tried)
                except RegistryUnreachable as error:
                    pause = AGAIN
                    self._told(detector, "the model before cannot be loaded", {"reason": str(error)})
            tried &= {f"{name}-{self._verbs.serving(name).version}" for name in beside.verdicts()}
            await asyncio.sleep(pause)

    async def _take_back(self, detector: str, tried: set[str]) -> None:
        """Take a swap back that is condemned, now that no other command can change what serves."""
        verdict, swapped = self._engine.scorer.beside.verdicts().get(detector), self._verbs.serving(detector)
        if verdict is None or f"{detector}-{swapped.version}" in tried:
            return
        name = f"rollback_when-{detector}-{swapped.version}-{self._engine.position.next_offset}"
        body = msgspec.json.encode({"id": name, "detector": detector})
        receipt = await self._handle(Asked("rollback", body, "rollback_when", "worker", name, verdict))
        tried.add(f"{detector}-{swapped.version}")
        await self._write()
        self._told(detector, verdict, receipt)

    async def _turn(self, find: Callable[[], Awaitable[Due | None]]) -> None:
        """Carry out what is found to be due; nothing else is carried out from the finding on."""
        async with self._one:
            due = await find()
            if due is None:
                return
            if due.asked is not None:
                await self._handle(due.asked)
            await self._write(due.kept)
            due.done()

    def _told(self, detector: str, verdict: str, receipt: Receipt | None) -> None:
        applied = receipt is not None and receipt.get("status") == "applied"
        if applied:
            self._metrics.rolled_back(detector)
        log.get().warning(
            "swap_taken_back" if applied else "swap_not_taken_back",
            topology=self._topology.name,
            detector=detector,
            cause=verdict,
            reason=receipt and receipt.get("reason"),
        )

    async def _serve(self, asked: Asked, answer: Answer) -> None:
        """What became of a command is written down before anybody is told: it is not taken back after a crash.

        The status changes nothing, and is told first: it is asked for when the engine stands still.
        """
        async with self._one:
            receipt = await self._handle(asked)
            if asked.verb == "status":
                await answer(receipt)
            await self._write()
            if asked.verb != "status":
                await answer(receipt)
        if receipt is not None and (work := self._begun.pop(str(receipt["command"]), None)) is not None:
            self._tasks.create_task(self._see_through(asked, receipt, work, answer))

    async def _see_through(self, asked: Asked, begun: Receipt, work: Work, answer: Answer) -> None:
        """Do what a command set going; tell its progress, and write down what became of it before telling that."""

        async def told(progress: Receipt) -> None:
            await answer({**begun, **progress})

        receipt = dict(begun)
        try:
            receipt |= {**await work(told), "status": "applied"}
        except asyncio.CancelledError:
            with contextlib.suppress(MmlwError):
                await answer({**begun, "status": "failed", "reason": "the worker ended meanwhile"})
            raise
        except TrainingCancelled as error:
            receipt |= {"status": "cancelled", "reason": str(error)}
        except Exception as error:  # whatever it was, the topology goes on
            receipt |= {"status": "failed", "reason": str(error) or repr(error)}
        line = self._audit.line(asked, receipt["command"], receipt["status"], receipt.get("reason"))
        async with self._one:
            lines = self._audit.take(line)
            await self._engine.between_batches(
                lambda: Changes(
                    self._engine.position, commands={receipt["command"]: dict(receipt)}, audit=lines
                )
            )
            self._audit.written(lines)
            self._docket.applied(dict(receipt), self._clock.now())
            self._count(asked, receipt)
            await answer(receipt)

    async def _clear(self) -> None:
        """Take out of the registry what trainings left there half when the worker was killed, once it answers."""
        pause = AGAIN
        while self._cut_off and self._trainer is not None:
            begun = self._cut_off[0]
            try:
                left = await self._trainer.clear(begun["training"])
            except RegistryUnreachable as error:
                told = {"topology": self._topology.name, "command": begun["command"], "cause": str(error)}
                log.get().warning("training_not_cleared", **told)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST)
                continue
            await self._settle(ended(begun, left))
            del self._cut_off[0]

    async def _settle(self, receipt: Receipt) -> None:
        """Keep what became of a command for good."""
        async with self._one:
            await self._engine.between_batches(
                lambda: Changes(self._engine.position, commands={receipt["command"]: receipt})
            )
            self._docket.applied(receipt, self._clock.now())

    async def _handle(self, asked: Asked) -> Receipt | None:
        """Carry out one command; the receipt tells what became of it. Never raises for a bad command.

        None where a stranger has sent too many: then nobody is answered.
        """
        receipt: Receipt = {"command": None, "verb": asked.verb, "topology": self._topology.name}
        if asked.note is not None:
            receipt["note"] = asked.note
        try:
            command, name = self._docket.admit(asked)
            receipt["command"] = name
            if (first := self._docket.precedent(asked, name)) is not None:
                self._audit.add(self._audit.line(asked, name, "duplicate", f"was {first['status']} before"))
                return first
            await self._carry_out(asked, command, receipt)
        except Exception as error:  # whatever a command brings up must not stop the topology, nor come again
            if isinstance(error, RegistryUnreachable) and asked.via == "worker":
                raise  # nothing is decided: who asked asks again
            if isinstance(error, MmlwError) and not isinstance(error, (CommandRefused, ModelError)):
                raise  # broker or checkpoint: the runtime starts anew, and the command is delivered again
            if not isinstance(error, MmlwError):
                log.get().error(
                    "command_failed", topology=self._topology.name, verb=asked.verb, error=repr(error)
                )
            return await self._refuse(asked, receipt, str(error) or repr(error))
        if receipt["status"] != "running":
            self._count(asked, receipt)
        return receipt

    async def _refuse(self, asked: Asked, receipt: Receipt, reason: str) -> Receipt | None:
        receipt |= {"status": "refused", "reason": reason}
        name = receipt["command"]
        if name is not None and asked.verb in MODEL_VERBS:  # a stranger is not told what serves
            self._verbs.refused(receipt)
        listed = self._audit.add(self._audit.line(asked, name, "refused", reason), always=name is not None)
        if name is not None:  # an operator's
            self._docket.refused({**receipt, "body": asked.digest})
        self._count(asked, receipt, listed=listed)
        if not listed:
            await asyncio.sleep(_PACE)
        return receipt if listed or name is not None else None

    def _count(self, asked: Asked, receipt: Receipt, *, listed: bool = True) -> None:
        """Metrics and log."""
        self._metrics.commanded(asked.verb if asked.verb in VERBS else "unknown", receipt["status"])
        fields = {"topology": self._topology.name, "by": asked.by}
        if not listed:
            log.limited("commands_refused", f"{fields['topology']}/control", **fields)
            return
        event = f"training_{receipt['status']}"
        if receipt["status"] in ("applied", "refused"):
            event = f"command_{receipt['status']}"
        fields |= {"verb": asked.verb[:64], "command": receipt["command"], "reason": receipt.get("reason")}
        log.get().info(event, **fields, status=receipt["status"])

    async def _write(self, kept: ModelRows = MappingProxyType({})) -> None:
        """Have the audit's lines committed between two batches, with these rows; nothing where there is none."""
        lines = self._audit.take()
        if lines or kept:
            await self._engine.between_batches(
                lambda: Changes(self._engine.position, audit=lines, models=kept)
            )
            self._audit.written(lines)

    async def _carry_out(self, asked: Asked, command: Command, receipt: Receipt) -> None:
        if asked.verb in READ_ONLY:
            receipt |= {"status": "applied", **await self._looked_up(asked.verb, command)}
            self._audit.add(self._audit.line(asked, receipt["command"], "applied"))
            return
        term = self._docket.term(asked, command, self._clock.now())
        prepared = await self._verbs.prepare(asked.verb, command, receipt)
        lines: list[Line] = []

        def act() -> Changes:
            """The change, its receipt and its line in the audit, all in one transaction."""
            if not prepared.happened:
                term.check(self._clock.now())
            changes = prepared.act()
            status = "applied" if prepared.work is None else "running"
            receipt.update(status=status, issued=term.issued, by=asked.by, via=asked.via, body=asked.digest)
            changes.commands = {receipt["command"]: dict(receipt)}
            lines.extend(
                self._audit.take(self._audit.line(asked, receipt["command"], status, receipt.get("note")))
            )
            changes.audit = lines
            changes.models = {**changes.models, **(asked.kept or {})}
            return changes

        learned = asked.verb in (*MODEL_VERBS, "accept", "label")
        pause = await self._engine.between_batches(act, settled=learned)
        self._audit.written(lines)
        self._docket.applied(dict(receipt), self._clock.now())
        prepared.done()
        if prepared.work is not None:
            self._begun[receipt["command"]] = prepared.work
        receipt["pause_s"] = round(pause, 4)
        if prepared.after is not None:
            await prepared.after()

    async def _looked_up(self, verb: str, command: Command) -> Receipt:
        if verb == "predict":
            return await self._verbs.predict(command)
        return self._verbs.status() if verb == "status" else {"audit": self._audit.last}

    async def _reply(self, delivery: Delivery, receipt: Receipt | None) -> None:
        if receipt is None or not delivery.reply_to:
            return
        if not delivery.reply_to.startswith(_REPLIES):
            self._unanswered(delivery, receipt, "not_a_reply_queue")
            return
        answer = Message(
            exchange="",
            routing_key=delivery.reply_to,
            body=msgspec.json.encode(receipt),
            correlation_id=delivery.correlation_id,
        )
        try:
            await self._broker.publish([answer])
        except (Unroutable, BrokerRefused):
            self._unanswered(delivery, receipt, "no_queue")

    def _unanswered(self, delivery: Delivery, receipt: Receipt, reason: Undelivered) -> None:
        """Nobody can be answered: counted, and logged once for each sender, of so many of them."""
        self._metrics.undelivered(reason)
        who = (delivery.user_id, reason)
        if who in self._warned or len(self._warned) >= _WARNED:
            return
        self._warned.add(who)
        fields = {"topology": self._topology.name, "by": delivery.user_id, "command": receipt["command"]}
        log.get().warning("receipt_undeliverable", **fields, cause=_UNDELIVERED[reason])


def _busy(trainer: Trainer | None) -> Callable[[], bool]:
    return lambda: trainer is not None and trainer.running is not None


async def _tell(answer: asyncio.Future[Receipt | None], receipt: Receipt | None) -> None:
    if not answer.done():
        answer.set_result(receipt)


async def request(
    broker: Broker,
    topology: str,
    verb: str,
    *,
    user: str,
    timeout: float,
    told: Callable[[Receipt], None] | None = None,
    **arguments: Any,
) -> Receipt:
    """Send a command and wait for its receipt. Raises BrokerUnreachable when none comes in time.

    `told` is given what a training is doing, until it has ended; each time the wait begins anew.
    The command expires with the wait, so it cannot surprise anybody later: on the broker, and at the worker by
    its clock, give or take what clocks may differ.
    """
    stated = {"issued": SYSTEM_CLOCK.now(), "expires": timeout + CLOCK_SKEW}
    given = {key: value for key, value in arguments.items() if value is not None}
    identity = uuid.uuid4().hex
    queue = Queue(name=f"mmlw.reply.{user}.{identity}", kind="reply")
    intake = await broker.consume(queue, offset=None, prefetch=1)
    command = Message(
        exchange=CONTROL_EXCHANGE,
        routing_key=f"control.{topology}.{verb}",
        body=msgspec.json.encode({"id": identity, **stated, **given}),
        reply_to=queue.name,
        correlation_id=identity,
        message_id=identity,
        expiration=timeout,
    )
    try:
        await broker.publish([command])
    except (Unroutable, BrokerMissing):
        what = f'no worker has ever run a topology "{topology}" on this broker'
        raise BrokerError(f"{what}. Start it with mmlw run, or correct the name") from None
    while True:
        answers = await intake.receive(1, 0.0, timeout)
        if not answers:
            raise BrokerUnreachable(
                f'no answer from a worker of "{topology}" within {timeout:g} s: is it running? Where it is '
                f"and only takes longer, wait longer (--timeout)"
            )
        receipt: Receipt = msgspec.json.decode(answers[0].body)
        if told is None or receipt["status"] != "running":
            return receipt
        told(receipt)
        await intake.ack(answers[0].tag)

"""Control: commands arrive as messages, are checked, carried out once, and answered with a receipt.

A command is published to the exchange `mmlw.control` under `control.<topology>.<verb>`, with a JSON body that
holds at least `id`; it names where the answer goes by `reply_to` and `correlation_id`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from detectors.base import Model
from stream import log
from stream.brokers.base import Broker, Delivery, Message, Queue
from stream.clock import Clock
from stream.engine import Engine, Swap
from stream.errors import (
    BrokerError,
    BrokerMissing,
    BrokerUnreachable,
    CommandRefused,
    MmlwError,
    ModelError,
    Unroutable,
)
from stream.metrics import TopologyMetrics
from stream.models import ModelRef
from stream.references import parse_uri
from stream.shelf import Shelf, info_of
from stream.state import Changes
from stream.topology import CONTROL_EXCHANGE, Topology, control_queue
from stream.validation import suggest

__all__ = ["VERBS", "Command", "Control", "ModelHistory", "Receipt", "reference", "request"]

Verb = Literal["status", "swap", "rollback", "pause", "resume"]
VERBS: tuple[Verb, ...] = ("status", "swap", "rollback", "pause", "resume")
_IDLE = 1.0

Receipt = dict[str, Any]
"""The answer to a command: `command` (its id), `verb`, `topology`, `status` (`applied` or `refused`), and
`reason` or what was done."""


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a command. `id` makes it idempotent: the same id again gets the same receipt."""

    id: str
    detector: str | None = None
    """Which batch detector; may be left out where the topology has one."""
    model: str | None = None
    """swap: `models:/name@alias`, or `models:/name/version`."""


@dataclass(slots=True)
class ModelHistory:
    """Which version of a registry model scores now, and which did before (what `rollback` returns to)."""

    current: ModelRef
    previous: ModelRef | None = None


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
        receipts: Mapping[str, Receipt],
        metrics: TopologyMetrics,
        clock: Clock,
    ) -> None:
        self._topology = topology
        self._engine = engine
        self._broker = broker
        self._shelf = shelf
        self._models = models
        self._receipts = dict(receipts)
        self._metrics = metrics
        self._clock = clock

    async def run(self) -> None:
        """Serve commands one at a time, in order, until cancelled."""
        intake = await self._broker.consume(control_queue(self._topology.name), offset=None, prefetch=16)
        while True:
            for delivery in await intake.receive(16, 0.0, _IDLE):
                receipt = await self.handle(delivery)
                await self._reply(delivery, receipt)
                await intake.ack(delivery.tag)

    async def handle(self, delivery: Delivery) -> Receipt:
        """Carry out one command; the receipt tells what became of it. Never raises for a bad command."""
        verb = delivery.routing_key.rpartition(".")[2]
        receipt: Receipt = {"command": None, "verb": verb, "topology": self._topology.name}
        try:
            command = self._checked(delivery, verb)
            receipt["command"] = command.id
            if command.id in self._receipts:
                return {**self._receipts[command.id], "duplicate": True}
            receipt |= {"status": "applied", **await self._carry_out(verb, command, receipt)}
        except Exception as error:  # whatever a command brings up must not stop the topology, nor come again
            if isinstance(error, MmlwError) and not isinstance(error, (CommandRefused, ModelError)):
                raise  # broker or checkpoint: the runtime starts anew, and the command is delivered again
            if not isinstance(error, MmlwError):
                log.get().error("command_failed", topology=self._topology.name, verb=verb, error=repr(error))
            receipt |= {"status": "refused", "reason": str(error) or repr(error)}
            if verb in ("swap", "rollback"):
                for name in self._models.keys() & {receipt.get("detector")}:
                    self._metrics.swapped(name, "refused")
                receipt["serving"] = {name: _public(item.current) for name, item in self._models.items()}
        self._metrics.commanded(verb if verb in VERBS else "status", receipt["status"])
        fields = {key: receipt[key] for key in ("verb", "topology", "status", "command")}
        event = "command_applied" if receipt["status"] == "applied" else "command_refused"
        log.get().info(event, **fields, by=delivery.user_id, reason=receipt.get("reason"))
        return receipt

    def _checked(self, delivery: Delivery, verb: str) -> Command:
        if verb not in VERBS:
            raise CommandRefused(f'unknown command "{verb}"{suggest(verb, VERBS)}')
        if delivery.user_id not in self._topology.operators:
            who = f'"{delivery.user_id}"' if delivery.user_id else "a sender who does not state a user_id"
            raise CommandRefused(f"{who} is not on this topology's list of operators")
        try:
            command = msgspec.json.decode(delivery.body, type=Command)
        except (msgspec.DecodeError, RecursionError) as error:
            raise CommandRefused(f"the body is not a command: {error}") from error
        if not 0 < len(command.id) <= 200:
            raise CommandRefused("a command needs an id of 1 to 200 characters")
        return command

    async def _carry_out(self, verb: str, command: Command, receipt: Receipt) -> Receipt:
        if verb == "status":
            return self._status()
        if verb in ("pause", "resume"):
            paused = verb == "pause"
            return await self._commit(receipt, command, lambda: Changes(self._engine.position, paused=paused))
        receipt["detector"] = detector = self._detector(command)
        started = self._clock.monotonic()
        shelf, history = self._shelf, self._models[detector]
        if shelf is None:
            raise CommandRefused("this worker runs without a model registry")
        if verb == "rollback":
            if history.previous is None:
                raise CommandRefused(f'"{detector}" has no earlier model to go back to')
            ref = history.previous
        elif command.model is None:
            raise CommandRefused('swap needs "model", such as models:/NAME@ALIAS or models:/NAME/VERSION')
        else:
            try:
                parse_uri(command.model)
            except ValueError as error:
                raise CommandRefused(str(error)) from None
            ref = await asyncio.to_thread(shelf.resolve, command.model)
            if ref.name != (wanted := self._topology.registry_models[detector].name):
                raise CommandRefused(f'"{detector}" takes versions of "{wanted}", not of "{ref.name}"')
        # Prepared off the path: downloaded, verified, built and probed while the old model goes on scoring.
        model = await asyncio.to_thread(shelf.model, ref, self._topology.source.names)
        prepared = self._clock.monotonic() - started
        return await self._swap(command, receipt, detector, ref, model, prepared)

    async def _swap(
        self,
        command: Command,
        receipt: Receipt,
        detector: str,
        ref: ModelRef,
        model: Model,
        prepared: float,
    ) -> Receipt:
        history = self._models[detector]
        before = history.current
        # Swapping to what serves already must not cost the way back.
        earlier = history.previous if ref == before else before
        declared = self._topology.registry_models[detector].model

        def act() -> Changes:
            receipt["partitions"] = {"0": {"first_offset": self._engine.position.next_offset}}
            previous = None if earlier is None else reference(earlier, declared)
            return self._engine.apply(Swap(detector, model, info_of(ref), reference(ref, declared), previous))

        receipt |= {"model": _public(ref), "replaced": _public(before), "prepared_s": round(prepared, 4)}
        done = await self._commit(receipt, command, act, settled=True)
        self._models[detector] = ModelHistory(ref, earlier)
        self._metrics.swapped(detector, "applied")
        log.get().info(
            "model_swapped", topology=self._topology.name, detector=detector, **_public(ref), **done
        )
        return done

    async def _commit(
        self, receipt: Receipt, command: Command, act: Any, *, settled: bool = False
    ) -> Receipt:
        """Let the engine act between two batches, its receipt committed with the change."""

        def with_receipt() -> Changes:
            changes: Changes = act()
            changes.commands = {command.id: {**receipt, "status": "applied"}}
            return changes

        pause = await self._engine.between_batches(with_receipt, settled=settled)
        self._receipts[command.id] = {**receipt, "status": "applied"}
        return {"pause_s": round(pause, 4)}

    def _detector(self, command: Command) -> str:
        names = list(self._models)
        if command.detector is None:
            if len(names) == 1:
                return names[0]
            raise CommandRefused(
                f"say which detector: {', '.join(names) or 'this topology has no batch detector'}"
            )
        if command.detector not in names:
            raise CommandRefused(
                f'"{command.detector}" is not a batch detector{suggest(command.detector, names)}'
            )
        return command.detector

    def _status(self) -> Receipt:
        engine = self._engine
        lanes = engine.scorer.lanes
        return {
            "paused": engine.paused,
            "consuming": engine.consuming,
            "next_offset": engine.position.next_offset,
            "lag": engine.lag,
            "machines": engine.ledger.machines,
            "alerts_open": {name: len(lane.alerts.open_slots()) for name, lane in lanes.items()},
            "models": {name: msgspec.to_builtins(lane.info) for name, lane in lanes.items()},
        }

    async def _reply(self, delivery: Delivery, receipt: Receipt) -> None:
        if not delivery.reply_to:
            return
        answer = Message(
            exchange="",
            routing_key=delivery.reply_to,
            body=msgspec.json.encode(receipt),
            correlation_id=delivery.correlation_id,
        )
        try:
            await self._broker.publish([answer])
        except Unroutable:
            log.get().warning(
                "receipt_undeliverable", command=receipt["command"], topology=self._topology.name
            )


def reference(ref: ModelRef, declared: str) -> dict[str, Any]:
    """A model reference as the checkpoint keeps it, with the address the topology declared at that time."""
    return {**msgspec.to_builtins(ref), "declared": declared}


async def request(
    broker: Broker, topology: str, verb: str, *, user: str, timeout: float, **arguments: str | None
) -> Receipt:
    """Send a command and wait for its receipt. Raises BrokerUnreachable when none comes in time.

    The command expires with the wait, so it cannot surprise anybody later.
    """
    identity = uuid.uuid4().hex
    queue = Queue(name=f"mmlw.reply.{user}.{identity}", kind="reply")
    intake = await broker.consume(queue, offset=None, prefetch=1)
    command = Message(
        exchange=CONTROL_EXCHANGE,
        routing_key=f"control.{topology}.{verb}",
        body=msgspec.json.encode({"id": identity, **{k: v for k, v in arguments.items() if v is not None}}),
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
    answers = await intake.receive(1, 0.0, timeout)
    if not answers:
        raise BrokerUnreachable(
            f'no answer from a worker of "{topology}" within {timeout:g} s: is it running?'
        )
    receipt: Receipt = msgspec.json.decode(answers[0].body)
    return receipt


def _public(ref: ModelRef) -> dict[str, Any]:
    return {"name": ref.name, "version": ref.version, "digest": ref.digest}

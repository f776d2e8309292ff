"""What each verb does: a change of the engine, prepared off the path and applied between two batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from detectors.base import Model
from stream import log
from stream.clock import Clock
from stream.commands import Command, Receipt
from stream.engine import Engine, Swap
from stream.errors import CommandRefused
from stream.metrics import TopologyMetrics
from stream.references import ModelRef, parse_uri
from stream.shelf import Shelf, info_of
from stream.state import Changes
from stream.topology import HEALTH, Topology
from stream.validation import suggest

__all__ = ["ModelHistory", "Prepared", "Verbs", "reference"]


@dataclass(slots=True)
class ModelHistory:
    """Which version of a registry model scores now, and which did before (what `rollback` returns to)."""

    current: ModelRef
    previous: ModelRef | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A change that is ready: `act` makes it between two batches, `done` is called when it is committed."""

    act: Callable[[], Changes]
    done: Callable[[], None] = lambda: None


class Verbs:
    """Carries out commands that were admitted. What becomes known of one on the way goes into its receipt."""

    def __init__(
        self,
        topology: Topology,
        engine: Engine,
        *,
        shelf: Shelf | None,
        models: dict[str, ModelHistory],
        metrics: TopologyMetrics,
        clock: Clock,
    ) -> None:
        self._topology = topology
        self._engine = engine
        self._shelf = shelf
        self._models = models
        self._metrics = metrics
        self._clock = clock

    def status(self) -> Receipt:
        """How the topology is."""
        engine = self._engine
        lanes = engine.scorer.lanes
        return {
            "paused": engine.paused,
            "consuming": engine.consuming,
            "next_offset": engine.position.next_offset,
            "lag": engine.lag,
            "machines": engine.ledger.machines,
            "machines_warming": engine.scorer.warming(),
            "chosen": engine.scorer.chosen(),
            "alerts_open": engine.scorer.open_alerts(),
            "sick": {ailment: count for ailment, count in engine.scorer.sick().items() if count},
            "models": {name: msgspec.to_builtins(lane.info) for name, lane in lanes.items()},
        }

    async def prepare(self, verb: str, command: Command, receipt: Receipt) -> Prepared:
        """Get ready what a verb changes. Raises CommandRefused, ModelError."""
        if verb in ("pause", "resume"):
            return Prepared(lambda: Changes(self._engine.position, paused=verb == "pause"))
        if verb == "accept":
            return self._accepted(command, receipt)
        receipt["detector"] = detector = self._detector(command)
        started = self._clock.monotonic()
        if self._shelf is None:
            raise CommandRefused("this worker runs without a model registry")
        ref = await self._wanted(verb, command, detector, self._shelf)
        # Prepared off the path: downloaded, verified, built and probed while the old model goes on scoring.
        model = await asyncio.to_thread(self._shelf.model, ref, self._topology.inputs(detector))
        receipt["prepared_s"] = round(self._clock.monotonic() - started, 4)
        return self._swap(receipt, detector, ref, model)

    def _accepted(self, command: Command, receipt: Receipt) -> Prepared:
        machine, detector = command.machine, command.detector
        if machine is None:
            raise CommandRefused('accept needs "machine": whose open alert is normal from now on')
        known = [*self._engine.scorer.open_alerts(), *([HEALTH] if self._topology.health else [])]
        if detector is not None and detector not in known:
            raise CommandRefused(f'"{detector}" raises no alerts here{suggest(detector, known)}')
        receipt["machine"] = machine
        if detector is not None:
            receipt["detector"] = detector
        return Prepared(lambda: self._engine.accept(machine, detector))

    def refused(self, receipt: Receipt) -> None:
        """A swap or rollback was refused: count it, and say what goes on scoring."""
        for detector in self._models.keys() & {receipt.get("detector")}:
            self._metrics.swapped(detector, "refused")
        receipt["serving"] = {name: _public(item.current) for name, item in self._models.items()}

    async def _wanted(self, verb: str, command: Command, detector: str, shelf: Shelf) -> ModelRef:
        """The version that a command means. Raises CommandRefused, ModelNotFound, RegistryUnreachable."""
        if verb == "rollback":
            if (previous := self._models[detector].previous) is None:
                raise CommandRefused(f'"{detector}" has no earlier model to go back to')
            return previous
        if command.model is None:
            raise CommandRefused('swap needs "model", such as models:/NAME@ALIAS or models:/NAME/VERSION')
        try:
            parse_uri(command.model)
        except ValueError as error:
            raise CommandRefused(str(error)) from None
        ref = await asyncio.to_thread(shelf.resolve, command.model)
        if ref.name != (wanted := self._topology.registry_models[detector].name):
            raise CommandRefused(f'"{detector}" takes versions of "{wanted}", not of "{ref.name}"')
        if command.digest is not None and command.digest != ref.digest:
            raise CommandRefused(f"{ref.uri} has the digest {ref.digest}, not the one that the command names")
        return ref

    def _swap(self, receipt: Receipt, detector: str, ref: ModelRef, model: Model) -> Prepared:
        history, declared = self._models[detector], self._topology.registry_models[detector].model
        before = history.current
        earlier = history.previous if ref == before else before  # to swap to what serves keeps the way back
        previous = None if earlier is None else reference(earlier, declared)
        swap = Swap(detector, model, info_of(ref), reference(ref, declared), previous)
        receipt |= {"model": _public(ref), "replaced": _public(before)}

        def act() -> Changes:
            receipt["partitions"] = {"0": {"first_offset": self._engine.position.next_offset}}
            return self._engine.apply(swap)

        def done() -> None:
            self._models[detector] = ModelHistory(ref, earlier)
            self._metrics.swapped(detector, "applied")
            log.get().info("model_swapped", topology=self._topology.name, detector=detector, **_public(ref))

        return Prepared(act, done)

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


def reference(ref: ModelRef, declared: str) -> dict[str, Any]:
    """A model reference as the checkpoint keeps it, with the address the topology declared at that time."""
    return {**msgspec.to_builtins(ref), "declared": declared}


def _public(ref: ModelRef) -> dict[str, Any]:
    return {"name": ref.name, "version": ref.version, "digest": ref.digest}

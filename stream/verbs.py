"""What each verb does: a change of the engine, prepared off the path and applied between two batches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from detectors.base import Model
from stream import log
from stream.acts import Swap
from stream.clock import Clock
from stream.commands import Command, Receipt
from stream.engine import Engine
from stream.errors import CommandRefused, ModelError
from stream.labelling import labelled
from stream.metrics import TopologyMetrics
from stream.predicting import Prediction, alone, copied_scorer, predict, rows_of
from stream.references import ModelRef, check_names, parse_uri
from stream.shadows import Shadow
from stream.shelf import Shelf, info_of
from stream.state import Changes, ModelRows
from stream.topology import HEALTH, Topology
from stream.trainer import Told, Trainer, Training
from stream.training import CHALLENGER
from stream.training_data import TrainingOptions, TrainingSource
from stream.validation import suggest

__all__ = ["ModelHistory", "Prepared", "Verbs", "reference"]


@dataclass(slots=True)
class ModelHistory:
    """Which version of a registry model scores now, and which did before (what `rollback` returns to; None after
    one)."""

    current: ModelRef
    previous: ModelRef | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A change that is ready: `act` makes it between two batches, `done` is called when it is committed."""

    act: Callable[[], Changes]
    done: Callable[[], None] = lambda: None
    work: Callable[[Told], Awaitable[Receipt]] | None = None
    """What goes on after it, for long: gives what is added to the receipt."""
    happened: bool = False
    """It is done already, and is not taken back where its time is over meanwhile."""
    after: Callable[[], Awaitable[None]] | None = None
    """What is still to be done then, off the path; it may add to the receipt."""


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
        trainer: Trainer | None = None,
        pointing: Callable[[str, int], ModelRows] = lambda detector, version: {},
        known: Callable[[str], Receipt | None] = lambda command: None,
    ) -> None:
        """`pointing` tells what to commit with a promotion that is about to point its alias at a version;
        `known` gives the receipt of a command that was decided."""
        self._pointing = pointing
        self._known = known
        self._topology = topology
        self._trainer = trainer
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
            "consuming": engine.consuming and not engine.paused,
            "next_offset": engine.position.next_offset,
            "lag": engine.lag,
            "machines": engine.ledger.machines,
            "machines_warming": engine.scorer.warming(),
            "chosen": engine.scorer.chosen(),
            "alerts_open": engine.scorer.open_alerts(),
            "sick": {ailment: count for ailment, count in engine.scorer.sick().items() if count},
            "models": {name: msgspec.to_builtins(lane.info) for name, lane in lanes.items()},
            "shadows": {
                name: self._compared(shadow) for name, shadow in engine.scorer.beside.shadows.items()
            },
            "retrain": engine.scorer.beside.retraining.status(self._clock.now()),
            "labels": {
                **engine.scorer.beside.feedback.counts(),
                "latest": engine.scorer.beside.feedback.latest(),
            },
        }

    async def predict(self, command: Command) -> Receipt:
        """Score some readings as if they came next; nothing is learned, no alert opens. Raises CommandRefused,
        ModelError."""
        topology, engine = self._topology, self._engine
        batch = rows_of(command.rows or (), topology, self._clock.now())
        refs = {name: history.current for name, history in self._models.items()}
        if command.model is not None:
            ref = await self._resolved(command.model)
            topology, detector = alone(topology, ref, command.detector)
            refs[detector] = ref
        groups = await engine.state_of(batch.machines)

        def score() -> list[Prediction]:
            return predict(copied_scorer(topology, self._shelf, refs, groups), batch)

        found = msgspec.to_builtins(await asyncio.to_thread(score))
        models = {name: _public(ref) for name, ref in refs.items() if name in topology.detectors}
        return {"predictions": found, "models": models}

    async def _resolved(self, model: str) -> ModelRef:
        """What an address means now. Raises CommandRefused, ModelNotFound, RegistryUnreachable."""
        if self._shelf is None:
            raise CommandRefused("this worker runs without a model registry")
        try:
            parse_uri(model)
        except ValueError as error:
            raise CommandRefused(str(error)) from None
        return await asyncio.to_thread(self._shelf.resolve, model)

    async def prepare(self, verb: str, command: Command, receipt: Receipt) -> Prepared:
        """Get ready what a verb changes. Raises CommandRefused, ModelError."""
        if verb in ("pause", "resume"):
            return Prepared(lambda: Changes(self._engine.position, paused=verb == "pause"))
        if verb == "accept":
            return self._accepted(command, receipt)
        if verb == "label":
            act = await labelled(self._engine, command, receipt, self._clock.now())
            return Prepared(act, partial(self._metrics.labelled, str(command.label)))
        if verb == "cancel":
            return await self._cancelled(command, receipt)
        receipt["detector"] = detector = self._detector(command)
        if verb == "train":
            return self._training(command, detector, receipt)
        if verb == "shadow" and command.stop:
            return self._stopped(detector, command)
        if verb == "promote":
            return self._promoted(receipt, detector, force=command.force)
        started = self._clock.monotonic()
        if self._shelf is None:
            raise CommandRefused("this worker runs without a model registry")
        ref = await self._wanted(verb, command, detector)
        # Prepared off the path: downloaded, verified, built and probed while the old model goes on scoring.
        model = await asyncio.to_thread(self._shelf.model, ref, self._topology.inputs(detector))
        receipt["prepared_s"] = round(self._clock.monotonic() - started, 4)
        if verb == "shadow":
            return self._shadowed(receipt, detector, ref, model)
        return self._swap(receipt, detector, ref, model, back=verb == "rollback")

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
        return Prepared(lambda: self._engine.acts.accept(machine, detector))

    async def _cancelled(self, command: Command, receipt: Receipt) -> Prepared:
        """The training that a command began is ended, at once: its own receipt tells that, too."""
        wanted = command.command
        if not wanted:
            raise CommandRefused('cancel needs "command": the id of the training\'s command')
        if command.detector is not None:
            raise CommandRefused('cancel takes no "detector": the id of the training is enough')
        begun = self._known(wanted)
        if begun is None:
            raise CommandRefused(f'no command "{wanted[:64]}" is known here: mmlw audit lists ids')
        if begun["verb"] != "train":
            raise CommandRefused(f'"{wanted}" is no training, but {begun["verb"]}')
        if self._trainer is None or begun["status"] != "running":
            raise CommandRefused(f'the training "{wanted}" does not run: it is {begun["status"]}')
        receipt["cancelled"] = wanted
        receipt["detector"] = await self._trainer.cancel(self._topology.name, wanted, receipt["command"])
        return Prepared(lambda: Changes(self._engine.position), happened=True)

    def _training(self, command: Command, detector: str, receipt: Receipt) -> Prepared:
        if self._trainer is None:
            raise CommandRefused("this worker runs without a model registry")
        trainer, alias = self._trainer, command.alias or CHALLENGER
        try:
            check_names(self._topology.registry_models[detector].name, alias)
        except ValueError as error:
            raise CommandRefused(str(error)) from None
        training = Training(
            topology=self._topology,
            detector=detector,
            command=receipt["command"],
            source=command.source or TrainingSource(),
            alias=alias,
            options=command.options or TrainingOptions(),
            marked=self._engine.scorer.beside.feedback.marked(),
        )
        trainer.check(training)
        receipt["training"] = training.mark
        begun = partial(
            log.get().info, "training_started", topology=self._topology.name, detector=detector, alias=alias
        )
        retraining = self._engine.scorer.beside.retraining

        def act() -> Changes:
            retraining.began(detector, self._clock.now(), by_rule="note" in receipt)
            return Changes(self._engine.position)

        async def work(told: Told) -> Receipt:
            try:
                result = await trainer.train(training, told)
            except Exception as error:
                retraining.failed(detector, str(error) or repr(error), self._clock.now())
                raise
            retraining.trained(detector, str(result["model"]["version"]), self._clock.now())
            return result

        return Prepared(act, done=begun, work=work)

    def serving(self, detector: str) -> ModelRef:
        """The registered version that scores now."""
        return self._models[detector].current

    def refused(self, receipt: Receipt) -> None:
        """A swap, a rollback or the like was refused: count it, and say what goes on scoring."""
        changes = receipt["verb"] != "shadow"
        for detector in self._models.keys() & {receipt.get("detector") if changes else None}:
            self._metrics.swapped(detector, "refused")
        receipt["serving"] = {name: _public(item.current) for name, item in self._models.items()}

    async def _wanted(self, verb: str, command: Command, detector: str) -> ModelRef:
        """The version that a command means. Raises CommandRefused, ModelNotFound, RegistryUnreachable."""
        if verb == "rollback":
            if (previous := self._models[detector].previous) is None:
                went = "a swap or promotion goes back once; swap puts any version in place"
                raise CommandRefused(f'"{detector}" has no earlier model to go back to ({went})')
            return previous
        if command.model is None:
            needs = f'{verb} needs "model", such as models:/NAME@ALIAS or models:/NAME/VERSION'
            raise CommandRefused(needs)
        ref = await self._resolved(command.model)
        if ref.name != (wanted := self._topology.registry_models[detector].name):
            raise CommandRefused(f'"{detector}" takes versions of "{wanted}", not of "{ref.name}"')
        if command.digest is not None and command.digest != ref.digest:
            raise CommandRefused(f"{ref.uri} has the digest {ref.digest}, not the one that the command names")
        return ref

    def _shadowed(self, receipt: Receipt, detector: str, ref: ModelRef, model: Model) -> Prepared:
        declared = self._topology.registry_models[detector].model
        receipt |= {"model": _public(ref), "champion": _public(self._models[detector].current)}

        def act() -> Changes:
            first = self._engine.position.next_offset
            receipt["partitions"] = {"0": {"first_offset": first}}
            identity = f"{ref.digest[-8:]}-{first}"
            settings = {"reference": reference(ref, declared), "identity": identity}
            slots = self._engine.scorer.shadow(detector, model, info_of(ref), **settings)
            self._engine.ledger.touch(slots)
            self._engine.scorer.beside.retraining.shadowed(detector, str(ref.version))
            return Changes(self._engine.position)

        return Prepared(act)

    def _stopped(self, detector: str, command: Command) -> Prepared:
        if command.model is not None:
            raise CommandRefused('shadow takes either "model" or "stop"')
        beside = self._engine.scorer.beside

        def act() -> Changes:
            if detector not in beside.shadows:
                raise CommandRefused(f'"{detector}" has no shadow')
            beside.end(detector)
            return Changes(self._engine.position)

        return Prepared(act)

    def _promoted(self, receipt: Receipt, detector: str, *, force: bool) -> Prepared:
        """The shadow takes its champion's place, if it has shown what the topology asks for."""
        shadow = self._engine.scorer.beside.shadows.get(detector)
        if shadow is None:
            raise CommandRefused(f'"{detector}" has no shadow to promote: start one with the command shadow')
        spec = self._topology.registry_models[detector]
        plain = {key: value for key, value in shadow.reference.items() if key != "declared"}
        ref = msgspec.convert(plain, ModelRef)
        receipt["prepared_s"] = 0.0
        prepared = self._swap(receipt, detector, ref, shadow.lane.model)

        def act() -> Changes:
            if self._engine.scorer.beside.shadows.get(detector) is not shadow:
                raise CommandRefused(f'the shadow of "{detector}" is not there any more')
            gate, compared = spec.promote_when, shadow.comparison
            shown = compared.total if gate is None else compared.window
            receipt["compared"] = None if shown is None else shown.figures()
            if gate is not None and (unmet := gate.unmet(compared.window)):
                if not force:
                    raise CommandRefused(f"promote_when is not met: {'; '.join(unmet)}")
                receipt["note"] = f"forced: {'; '.join(unmet)}"
            changes = prepared.act()
            changes.models = {**changes.models, **self._pointing(detector, ref.version)}
            return changes

        async def after() -> None:
            if spec.alias is not None and self._shelf is not None:
                try:
                    await asyncio.to_thread(self._shelf.point, ref, spec.alias)
                    receipt["alias"] = f"models:/{ref.name}@{spec.alias}"
                except ModelError as error:
                    receipt["alias"] = f"not moved: {error}"

        return Prepared(act, prepared.done, after=after)

    def _compared(self, shadow: Shadow) -> dict[str, Any]:
        """A shadow beside its champion, in figures."""
        gate, compared = self._topology.registry_models[shadow.detector].promote_when, shadow.comparison
        return {
            "model": msgspec.to_builtins(shadow.lane.info),
            "champion": _public(self._models[shadow.detector].current),
            **compared.total.figures(),
            "window": None if compared.window is None else compared.window.figures(),
            "unmet": [] if gate is None else gate.unmet(compared.window),
        }

    def _swap(
        self, receipt: Receipt, detector: str, ref: ModelRef, model: Model, *, back: bool = False
    ) -> Prepared:
        history, declared = self._models[detector], self._topology.registry_models[detector].model
        before = history.current
        earlier = history.previous if ref == before else before  # to swap to what serves keeps the way back
        if back:  # there and back again would put in place what was just taken back
            earlier = None
            if (alias := self._topology.registry_models[detector].alias) is not None:
                receipt["alias"] = f"models:/{ref.name}@{alias} stays where it is in the registry"
        previous = None if earlier is None else reference(earlier, declared)
        swap = Swap(detector, model, info_of(ref), reference(ref, declared), previous, back)
        receipt |= {"model": _public(ref), "replaced": _public(before)}

        def act() -> Changes:
            receipt["partitions"] = {"0": {"first_offset": self._engine.position.next_offset}}
            return self._engine.acts.apply(swap)

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

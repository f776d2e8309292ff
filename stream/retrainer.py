"""Carries out `retrain`: triggers become commands like anybody's, with a receipt and a line in the audit.

A training gives a challenger; where the detector has a gate it becomes a shadow, and is promoted once it meets that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec

from stream import log
from stream.agreement import Tally
from stream.clock import Clock
from stream.commands import AGAIN, Asked, Receipt
from stream.errors import RegistryUnreachable
from stream.metrics import TopologyMetrics, TriggerOutcome
from stream.retrain_rule import METRICS
from stream.retraining import Trigger, Watched
from stream.shadows import Beside
from stream.topology import Topology

__all__ = ["Retrainer"]

_LOOK = 1.0
"""Seconds between two looks at what asks for a training."""

Answer = Callable[[Receipt | None], Awaitable[None]]


class Retrainer:
    """Looks after the `retrain` rules of a topology while its engine runs. `serve` carries out a command; `busy`
    tells whether the worker trains already."""

    def __init__(
        self,
        topology: Topology,
        beside: Beside,
        serve: Callable[[Asked, Answer], Awaitable[None]],
        *,
        metrics: TopologyMetrics,
        clock: Clock,
        busy: Callable[[], bool],
        watched: Watched,
    ) -> None:
        self._topology = topology
        self._beside = beside
        self._retraining = beside.retraining
        self._serve = serve
        self._metrics = metrics
        self._clock = clock
        self._busy = busy
        self._watched = watched
        self._told: dict[tuple[str, Trigger], TriggerOutcome] = {}
        """What was told last of a trigger that waits."""
        self._seen: dict[str, Tally | None] = {}
        """The last window of each shadow that was held against the gate."""

    async def run(self) -> None:
        """Look, and act, until cancelled."""
        while True:
            for detector, cause in self._retraining.take_ended():
                name = self._topology.name
                log.get().error("drift_watch_ended", topology=name, detector=detector, cause=cause[:300])
            asking = self._retraining.look(self._clock.now(), self._watched)
            self._told = {key: told for key, told in self._told.items() if key[1] in asking.get(key[0], {})}
            pause = _LOOK
            try:
                for detector, causes in asking.items():
                    await self._train(detector, causes)
                for detector, version in self._retraining.challengers().items():
                    await self._shadow(detector, version)
                for detector, version in self._retraining.shadows().items():
                    await self._promote(detector, version)
            except RegistryUnreachable as error:  # nothing was decided
                pause = AGAIN
                log.get().warning("retraining_waits", topology=self._topology.name, cause=str(error))
            self._show()
            await asyncio.sleep(pause)

    async def _train(self, detector: str, causes: dict[Trigger, str]) -> None:
        now, retraining = self._clock.now(), self._retraining
        if (hold := retraining.hold(detector, now, busy=self._busy())) is not None:
            for trigger, cause in causes.items():
                self._tell(detector, trigger, hold, cause)
                if trigger == "schedule" and hold in ("cooldown", "limit"):
                    retraining.drop(detector, trigger)
            return
        rule = retraining.rules[detector]
        start = retraining.since(detector)
        options = {"rows": rule.rows, "newest": True, "since": start, "timeout": rule.timeout}
        stream = {"stream": {"from": datetime.fromtimestamp(start, UTC).isoformat()}}
        from_stream = rule.source == "stream" or (rule.source is None and self._topology.source.queue is None)
        source = stream if from_stream else {"capture": self._topology.name}
        name = f"retrain-{detector}-{round(now, 3)}"
        body = {"id": name, "detector": detector, "source": source, "options": options}
        cause = "; ".join(f"{trigger}: {why}" for trigger, why in causes.items())
        asked = Asked("train", msgspec.json.encode(body), "retrain", "worker", name, cause)
        await self._serve(asked, partial(self._trained, detector, causes))

    async def _trained(self, detector: str, causes: dict[Trigger, str], receipt: Receipt | None) -> None:
        """What is told of a training: that it is refused or runs, how far it is, what came of it."""
        if receipt is None or "phase" in receipt:
            return
        status = receipt["status"]
        if status in ("refused", "running"):
            for trigger, cause in causes.items():
                outcome: TriggerOutcome = "started" if status == "running" else "refused"
                self._tell(detector, trigger, outcome, cause, reason=receipt.get("reason"))
            if status == "refused":
                self._retraining.refused(detector, str(receipt.get("reason")), self._clock.now())
            return
        self._metrics.retrained(detector, "trained" if status == "applied" else "failed")
        fields = {"topology": self._topology.name, "detector": detector}
        if status == "applied":
            log.get().info(
                "retrained", **fields, version=receipt["model"]["version"], aliases=receipt["aliases"]
            )
        else:
            log.get().warning("retraining_failed", **fields, reason=receipt.get("reason"))

    async def _shadow(self, detector: str, version: str) -> None:
        address = f"models:/{self._topology.registry_models[detector].name}/{version}"
        body = {"detector": detector, "model": address}
        name = f"retrain-shadow-{detector}-{version}-{round(self._clock.now(), 3)}"
        asked = Asked("shadow", msgspec.json.encode(body), "retrain", "worker", name, "trained by retrain")
        await self._serve(asked, partial(self._shadowed, detector, version))

    async def _shadowed(self, detector: str, version: str, receipt: Receipt | None) -> None:
        if receipt is not None and receipt["status"] == "applied":
            self._done(detector, "shadowed", version)
            return
        self._retraining.given_up(detector)
        self._warn("challenger_not_shadowed", detector, version, receipt)

    async def _promote(self, detector: str, version: str) -> None:
        """Where the last whole window of the shadow meets the gate; each window is looked at once."""
        shadow = self._beside.shadows.get(detector)
        if shadow is None or shadow.lane.info.version != version:
            self._retraining.unshadowed(detector)
            return
        gate, window = self._topology.registry_models[detector].promote_when, shadow.comparison.window
        if gate is None or window is None or window is self._seen.get(detector):
            return
        self._seen[detector] = window
        if unmet := gate.unmet(window):
            told = {"topology": self._topology.name, "detector": detector, "version": version, "unmet": unmet}
            log.get().info("challenger_waits", **told)
            return
        name = f"retrain-promote-{detector}-{version}-{round(self._clock.now(), 3)}"
        body = msgspec.json.encode({"detector": detector})
        asked = Asked("promote", body, "retrain", "worker", name, "promote_when is met")
        await self._serve(asked, partial(self._promoted, detector, version))

    async def _promoted(self, detector: str, version: str, receipt: Receipt | None) -> None:
        if receipt is None or receipt["status"] != "applied":
            self._warn("challenger_not_promoted", detector, version, receipt)
            return
        self._retraining.unshadowed(detector)
        self._done(detector, "promoted", version)

    def _done(self, detector: str, what: Any, version: str) -> None:
        self._metrics.retrained(detector, what)
        log.get().info(f"challenger_{what}", topology=self._topology.name, detector=detector, version=version)

    def _warn(self, event: str, detector: str, version: str, receipt: Receipt | None) -> None:
        reason = receipt and receipt.get("reason")
        name = self._topology.name
        log.get().warning(event, topology=name, detector=detector, version=version, reason=reason)

    def _tell(
        self,
        detector: str,
        trigger: Trigger,
        outcome: TriggerOutcome,
        cause: str,
        *,
        reason: str | None = None,
    ) -> None:
        """Log and count what becomes of a trigger, once while that stays so."""
        if self._told.get((detector, trigger)) == outcome:
            return
        self._told[detector, trigger] = outcome
        self._metrics.retrain_asked(detector, trigger, outcome)
        event = "retrain_started" if outcome == "started" else "retrain_held_back"
        fields = {"topology": self._topology.name, "detector": detector, "trigger": trigger, "cause": cause}
        if outcome != "started":
            fields["why"] = reason or outcome
        log.get().info(event, **fields)

    def _show(self) -> None:
        for detector, time in self._retraining.trained_at().items():
            self._metrics.last_trained(detector, time)
        for detector, found in self._retraining.quality(self._watched).items():
            for metric in METRICS:
                self._metrics.quality(detector, metric, found.of(metric))

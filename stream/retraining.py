"""When batch detectors are trained anew: what asks for it, what holds it back, and what came of it. No clock, no
input or output: times are passed in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec
import numpy as np

from stream.binding import Binding
from stream.cron import next_instant, previous_instant
from stream.drifting import DriftWatch
from stream.feedback import Feedback
from stream.label_quality import Found, label_quality
from stream.retrain_rule import Retrain
from stream.rules import COMBINED
from stream.topology import Topology

__all__ = ["Hold", "Outcome", "Retraining", "Trigger", "Watched"]

Trigger = Literal["schedule", "drift", "quality"]
Hold = Literal["running", "cooldown", "limit", "no_data"]
"""Why a training waits: the worker trains already; the last one began too short ago; there were too many in seven
days; there is nothing to train on yet."""
Outcome = Literal["started", "running", "cooldown", "limit", "no_data", "refused"]
"""What became of a trigger."""

Watched = Callable[[str, float, float], float]
"""Days on which a detector's machines were watched between two times, in all."""

_PREFIX = "retrain:"
_WEEK = 7 * 86400.0
_WINDOW = 7 * 86400.0
"""Over which labels are looked at where no rule says it."""


def _nobody(detector: str, since: float, until: float) -> float:
    return math.nan


class _State(msgspec.Struct):
    """Of one detector. Times are the worker's, but for `trained_on`, which is the plant's."""

    began: list[float] = msgspec.field(default_factory=list)
    """When trainings began, in the last week."""
    pending: dict[Trigger, str] = msgspec.field(default_factory=dict)
    """What asks for a training, and why."""
    scheduled: float | None = None
    """Up to when the schedule was looked at."""
    trained_on: float | None = None
    """What time it was in the plant when a training began last."""
    trained_at: float | None = None
    """When one succeeded last."""
    running: bool = False
    by_rule: bool = False
    """The training that runs, or ran last, was asked for by the topology's rule."""
    last: dict[str, Any] | None = None
    """What came of the last training."""
    challenger: str | None = None
    """Version that is to be a shadow."""
    shadow: str | None = None
    """Version that is one, and may be promoted."""


class Retraining:
    """The batch detectors of a topology that have a `retrain` rule; part of the checkpoint."""

    def __init__(self, topology: Topology, feedback: Feedback, models: Mapping[str, str]) -> None:
        specs = topology.registry_models.items()
        self.rules: dict[str, Retrain] = {
            name: spec.retrain for name, spec in specs if spec.retrain is not None
        }
        self._gated = {name for name, spec in specs if spec.promote_when is not None}
        self._decides = {
            name: COMBINED if topology.combine is not None else name for name in topology.detectors
        }
        bindings = {name: Binding(spec.machines or "*") for name, spec in topology.detectors.items()}
        self._scored = {name: binding.matches for name, binding in bindings.items()}
        self._feedback = feedback
        self._states = {name: _State() for name in self.rules}
        self.watches: dict[str, DriftWatch] = {}
        self._ended: list[tuple[str, str]] = []
        for name, rule in self.rules.items():
            if rule.drift is not None:
                columns = ("score",) if rule.drift.of == "score" else topology.inputs(name)
                self.watches[name] = DriftWatch(name, rule.drift, columns, models[name])

    def rows(self) -> dict[str, tuple[dict[str, Any], dict[str, Any] | None]]:
        """What the checkpoint keeps, by name."""
        found = {}
        for name, state in self._states.items():
            watch = self.watches.get(name)
            found[_PREFIX + name] = (msgspec.to_builtins(state), None if watch is None else watch.saved())
        return found

    def restore(self, saved: Mapping[str, tuple[Any, Any]]) -> None:
        """Take over what a checkpoint holds. A training that was under way has failed."""
        for name in self._states:
            if (row := saved.get(_PREFIX + name)) is None or not row[0]:
                continue
            state, rule = msgspec.convert(row[0], _State), self.rules[name]
            self._states[name] = state
            state.pending = {
                what: why for what, why in state.pending.items() if getattr(rule, what) is not None
            }
            if name in self.watches:
                self.watches[name].restore_found(row[1])
            if state.running:
                state.running = False
                state.last = {"outcome": "failed", "reason": "the worker ended meanwhile"}

    def swapped(self, detector: str, model: str) -> None:
        """Another model serves."""
        if (watch := self.watches.get(detector)) is not None:
            watch.swapped(model)

    def end_watch(self, detector: str, cause: str) -> None:
        """A watch for drift failed: until the next start nobody looks."""
        del self.watches[detector]
        self._ended.append((detector, cause))

    def take_ended(self) -> list[tuple[str, str]]:
        """Watches that failed since this was asked last, and why."""
        ended, self._ended = self._ended, []
        return ended

    def look(self, now: float, watched: Watched = _nobody) -> dict[str, dict[Trigger, str]]:
        """What asks for trainings by now, by detector, with the reasons."""
        for name, rule in self.rules.items():
            state = self._states[name]
            if rule.schedule is not None:
                last = previous_instant(rule.schedule, rule.timezone, now)
                if state.scheduled is not None and last > state.scheduled:  # once, however many were missed
                    state.pending["schedule"] = f"{rule.schedule} {rule.timezone}"
                state.scheduled = max(last, state.scheduled or now)
            if (watch := self.watches.get(name)) is not None and (cause := watch.cause()) is not None:
                state.pending["drift"] = cause
            self._look_at_quality(name, rule, state, watched)
        return {name: dict(state.pending) for name, state in self._states.items() if state.pending}

    def hold(self, detector: str, now: float, *, busy: bool) -> Hold | None:
        """What keeps a training from beginning now; `busy`: the worker trains already."""
        state, rule = self._states[detector], self.rules[detector]
        state.began = [time for time in state.began if now - _WEEK < time <= now]
        if busy or state.running:
            return "running"
        if self._feedback.now is None:
            return "no_data"
        if state.began and now < state.began[-1] + rule.min_interval:
            return "cooldown"
        return "limit" if len(state.began) >= rule.per_week else None

    def drop(self, detector: str, trigger: Trigger) -> None:
        """A trigger is over: one by schedule that may not begin now has missed its time."""
        self._states[detector].pending.pop(trigger, None)

    def since(self, detector: str) -> float:
        """From which time on readings are trained on, in epoch seconds."""
        now = self._feedback.now
        assert now is not None  # noqa: S101 - held back until there is a reading
        return max(now - self.rules[detector].over, 0.0)

    def began(self, detector: str, now: float, *, by_rule: bool) -> None:
        """A training began, whoever asked for it."""
        if (state := self._states.get(detector)) is not None:
            state.began.append(now)
            state.running, state.by_rule = True, by_rule
            state.trained_on = self._feedback.now

    def trained(self, detector: str, version: str, now: float) -> None:
        """It has registered this version."""
        if (state := self._states.get(detector)) is None:
            return
        state.running = False
        state.pending.clear()
        if (watch := self.watches.get(detector)) is not None:
            watch.settled()
        state.last, state.trained_at = {"outcome": "trained", "version": version, "at": now}, now
        if state.by_rule and detector in self._gated:
            state.challenger = version

    def failed(self, detector: str, reason: str, now: float) -> None:
        """It came to nothing. What asked for it goes on asking, but for a schedule."""
        if (state := self._states.get(detector)) is not None:
            state.running = False
            state.pending.pop("schedule", None)
            state.last = {"outcome": "failed", "reason": reason[:300], "at": now}

    def refused(self, detector: str, reason: str, now: float) -> None:
        """It could not begin; that counts as one that did."""
        self.began(detector, now, by_rule=True)
        self.failed(detector, reason, now)

    def challengers(self) -> dict[str, str]:
        """Versions that are to be shadows, by detector."""
        return {
            name: state.challenger for name, state in self._states.items() if state.challenger is not None
        }

    def shadows(self) -> dict[str, str]:
        """Versions that were trained by rule and are shadows, by detector; those that may be promoted by it."""
        return {
            name: state.shadow
            for name, state in self._states.items()
            if state.shadow is not None and self.rules[name].promote == "when_met"
        }

    def shadowed(self, detector: str, version: str) -> None:
        """A version became the detector's shadow."""
        if (state := self._states.get(detector)) is not None:
            state.shadow = version if version == state.challenger else None
            state.challenger = None

    def given_up(self, detector: str) -> None:
        """Its challenger could not become a shadow."""
        self._states[detector].challenger = None

    def unshadowed(self, detector: str) -> None:
        """It has no shadow any more, or another."""
        self._states[detector].shadow = None

    def trained_at(self) -> dict[str, float]:
        """When trainings succeeded last, by detector."""
        times = {name: state.trained_at for name, state in self._states.items()}
        return {name: time for name, time in times.items() if time is not None}

    def quality(self, watched: Watched = _nobody) -> dict[str, Found]:
        """How good the alerts were, by what raised them, in the rule's window up to now."""
        found: dict[str, Found] = {}
        if (now := self._feedback.now) is None:
            return found
        for name in self._decides:
            rule = self.rules.get(name)
            window = _WINDOW if rule is None or rule.quality is None else rule.quality.window
            found[name] = self._found(name, now - window, now, watched)
        return found

    def status(self, now: float) -> dict[str, Any]:
        """What is known, for people."""
        told: dict[str, Any] = {}
        for name, state in self._states.items():
            rule, watch = self.rules[name], self.watches.get(name)
            told[name] = {
                "pending": dict(state.pending),
                "held": self.hold(name, now, busy=False) if state.pending else None,
                "last_began": state.began[-1] if state.began else None,
                "in_seven_days": len(state.began),
                "running": state.running,
                "last": state.last,
                "shadow": state.shadow or state.challenger,
            }
            if rule.schedule is not None:
                told[name]["next"] = next_instant(rule.schedule, rule.timezone, now)
            if watch is not None:
                told[name]["drifted"] = list(watch.drifted)[-20:]
        return told

    def _found(self, name: str, since: float, until: float, watched: Watched) -> Found:
        since = since if self._feedback.seen is None else max(since, self._feedback.seen)
        return label_quality(
            self._feedback,
            self._decides[name],
            since,
            until,
            scored=self._scored[name],
            days=lambda: watched(name, since, until),
        )

    def _look_at_quality(self, name: str, rule: Retrain, state: _State, watched: Watched) -> None:
        now, wanted = self._feedback.now, rule.quality
        if wanted is None or now is None:
            return
        since, known = now - wanted.window, state.trained_on
        if (
            known is not None and known <= now
        ):  # what was labelled before it is known; a wrong clock may be ahead
            since = max(since, float(np.nextafter(known, np.inf)))
        found = self._found(name, since, now, watched)
        value = found.of(wanted.metric)
        state.pending.pop("quality", None)
        if found.labels >= wanted.labels and wanted.is_worse(value):
            side = "above" if value > wanted.threshold else "below"
            told = f"{wanted.metric} is {value:.3g} by {found.labels} labels, {side} {wanted.threshold:g}"
            state.pending["quality"] = told

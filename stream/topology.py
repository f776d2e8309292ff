"""A topology as data: one arrow from a source through detectors and an alert rule to a sink.

Python and YAML say the same thing and load as equal objects; see `stream.config` for the files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import cast

import msgspec
from msgspec import structs
from msgspec.structs import force_setattr

from detectors.base import Detector
from detectors.calibration import Calibration
from detectors.features import Feature, columns_of
from detectors.health import Health
from detectors.registry import ONLINE
from stream.binding import binding_problems
from stream.capture_rule import CaptureRule, reserved
from stream.inputs import expanded, feature_problems
from stream.registry_model import RegistryModel
from stream.retrain_rule import retrain_problems
from stream.rules import COMBINED, AlertRule, Combination, Learning, automatic_rule
from stream.settings import Bytes, Count, Seconds, Settings, is_name, refuse
from stream.source import Fields, Sensor, Source

__all__ = [
    "AUTO",
    "HEALTH",
    "CheckpointRule",
    "Fields",
    "RegistryModel",
    "Sensor",
    "Sink",
    "Source",
    "Topology",
]

AUTO = "auto"
HEALTH = "health"
"""The name under which sick sensors and machines raise alerts."""


class CheckpointRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often state and position are committed: whichever comes first."""

    every: Seconds = 0.2
    """0 commits after each batch."""
    after: Count = 1000
    """Messages."""


class Sink(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where alerts go: an exchange, and a stream that keeps them for whoever comes later."""

    exchange: str = "mmlw.alerts"
    queue: str | None = "mmlw.alerts"
    """A stream that keeps every alert; None relies on the queues that consumers bind."""
    keep_age: Seconds = 30 * 86400.0
    keep_bytes: Bytes = 1_000_000_000


class Topology(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One arrow: readings of one source, keyed by machine, through detectors and a rule to a sink."""

    name: str
    description: str = ""
    source: Source
    features: dict[str, Feature] = {}
    """What detectors are shown besides the sensors, by name; one may be made of those above it."""
    detectors: dict[str, Detector | RegistryModel]
    """Detectors by name; the word `auto` stands for one that chooses by each machine's first readings, and for the
    alert rule that suits it: what `alert` states stays, the rest is as `auto` has it."""
    calibration: Calibration | None = None
    """Makes a probability of every score, machine by machine: what `alert.budget` and `combine` stand on."""
    combine: Combination | None = None
    """All detectors raise one alert together; None: each its own."""
    health: Health | None = Health()
    """What tells sick sensors and machines, which are masked and raise alerts of their own; None: nobody looks."""
    learning: Learning = Learning()
    alert: AlertRule = AlertRule()
    sink: Sink = Sink()
    checkpoint: CheckpointRule = CheckpointRule()
    capture: CaptureRule | None = None
    """Readings and scores are also written to Parquet; None: they are not."""
    watchdog: Seconds = 30.0
    """A source that holds messages and delivers none for so long is read anew."""
    operators: tuple[str, ...] = ("operator", "guest")
    """Broker users whose commands are obeyed (`guest` reaches RabbitMQ only from its own host)."""
    declare: bool = True
    """False: exchanges and queues are not made, only checked."""

    def __post_init__(self) -> None:
        force_setattr(self, "operators", tuple(self.operators))
        refuse(self.check(structs.asdict(self)))
        if (
            self.health is None and self.source.out_of_range == "alert"
        ):  # no limits are stated, but there are values
            source = structs.replace(self.source, out_of_range="deadletter")  # that no sensor measures
            force_setattr(self, "source", source)
        chosen = None
        if cast("dict[str, Detector] | str", self.detectors) == AUTO:
            force_setattr(self, "detectors", {AUTO: ONLINE[AUTO]()})
            chosen = automatic_rule(len(self.columns))
        force_setattr(self, "alert", self.alert.settled(chosen))

    @staticmethod
    def check(settings: Settings) -> Iterator[str]:
        """See `Settings`."""
        if settings.get("detectors") == AUTO:
            yield from _beside_auto(settings)
            settings = {**settings, "detectors": {AUTO: ONLINE[AUTO]()}}
        rule = "must be lower-case letters, digits, - or _, at most 64"
        if "name" in settings and not is_name(settings["name"]):
            yield f'name: "{settings["name"]}" {rule}'
        if "detectors" in settings and not settings["detectors"]:
            yield "detectors: declare at least one detector"
        for name in settings.get("detectors", ()):
            if not is_name(name):
                yield f'detectors: "{name}" {rule}'
        yield from feature_problems(settings)
        yield from binding_problems(settings)
        yield from retrain_problems(settings)
        if HEALTH in settings.get("detectors", ()):
            yield f'detectors: "{HEALTH}" is the name of what sick sensors raise; choose another'
        yield from _calibrated(settings)
        if settings.get("watchdog", 1.0) <= 0:
            yield "watchdog: must be above 0; the longer it is, the more patient (a pause of the source is no fault)"
        source, sink = settings.get("source"), settings.get("sink")
        if source is not None and settings.get("capture") is not None:
            for name in reserved(source.names):
                yield f'capture: a sensor is named "{name}", as a column of its own; rename the sensor'
        if source is not None and sink is not None and source.exchange == sink.exchange:
            yield f'sink: its exchange "{sink.exchange}" is the source\'s; alerts would be read as readings'
        told = source is not None and source.out_of_range == "alert" and source.limited
        if told and "health" in settings and settings["health"] is None:
            yield (
                "source: out_of_range: alert, the default, needs health; leave health out to have its defaults, or "
                "say out_of_range: missing or deadletter"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """What detectors may look at: the sensors, then the features' columns."""
        return (*self.source.names, *columns_of(self.features))

    def inputs(self, detector: str) -> tuple[str, ...]:
        """The columns that a detector looks at, in its order."""
        return expanded(self.detectors[detector].inputs, self.features) or self.columns

    @property
    def scored_by(self) -> tuple[str, ...]:
        """What gives scores: the detectors, and all of them together where they decide so."""
        return (*self.detectors, *((COMBINED,) if self.combine is not None else ()))

    @property
    def alert_summary(self) -> str:
        """When alerts open and end, and how many may be false, in a line."""
        rule, deciding = self.alert, 1 if self.combine is not None else len(self.detectors)
        if rule.budget is None:
            return rule.summary
        whose = f"budget {rule.budget:.3g} a day and {rule.budget_per}"
        each = f", {rule.budget / deciding:.3g} of each of {deciding} detectors" if deciding > 1 else ""
        return f"{rule.summary}; {whose}{each}"

    @property
    def gives_probabilities(self) -> bool:
        """Whether the scores that decide are calibrated: -log10 of a probability."""
        return self.calibration is not None and (self.combine is None or self.combine.calibrate)

    @property
    def limited(self) -> Mapping[str, float]:
        """The detectors whose threshold also rises with the scores of each machine's normal readings, and how rarely
        these may reach it (-log10)."""
        if self.calibration is not None:
            return {}
        return {
            name: spec.relative
            for name, spec in self.detectors.items()
            if isinstance(spec, Detector) and spec.relative and spec.threshold is None
        }

    @property
    def registry_models(self) -> Mapping[str, RegistryModel]:
        """The batch detectors by name."""
        return {name: spec for name, spec in self.detectors.items() if isinstance(spec, RegistryModel)}

    def follows(self, model: str, alias: str) -> bool:
        """Whether a batch detector follows this alias."""
        specs = self.registry_models.values()
        return any(spec.follow and (spec.name, spec.alias) == (model, alias) for spec in specs)


def _beside_auto(settings: Settings) -> Iterator[str]:
    """What the rule that goes with `detectors: auto` does not admit."""
    alert, source = settings.get("alert"), settings.get("source")
    if alert is None or source is None or "features" not in settings:
        return
    chosen = automatic_rule(len(source.names) + len(columns_of(settings["features"])))
    try:
        alert.settled(chosen)
    except ValueError as error:
        for line in str(error).splitlines():
            yield f"alert: with what detectors: auto chooses ({chosen.summary}): {line}; state both"


def _out_of_reach(calibration: Calibration | None, alert: AlertRule | None) -> Iterator[str]:
    """Where counting cannot tell what an alert asks for."""
    if calibration is None or alert is None or alert.budget is not None:
        return
    asked = 1e-4 if alert.probability is None else alert.probability
    if -math.log10(asked) > calibration.reach:
        said = "probability, where none is stated," if alert.probability is None else "probability"
        yield (
            f"alert: {said} is {asked:g}, and conformal calibration tells none below one in "
            f"{calibration.history + 1:,} (calibration.history); let history be {math.ceil(1.0 / asked):,} "
            "or more, or calibrate by method: evt"
        )


def _calibrated(settings: Settings) -> Iterator[str]:
    """What is wrong about calibration, and what stands on it."""
    detectors, alert = settings.get("detectors", {}), settings.get("alert", AlertRule())
    combine = settings.get("combine")
    if "calibration" in settings and settings["calibration"] is None:
        decades = all(getattr(spec, "kind", "") == AUTO for spec in detectors.values())
        for name in ("budget", "probability", "alpha_spending", *(() if decades else ("escalation",))):
            if alert is not None and getattr(alert, name):
                yield f"alert: {name} needs calibrated scores; add calibration: {{method: evt}}"
        for name, spec in detectors.items():
            if isinstance(spec, RegistryModel) and spec.trust and spec.threshold is None:
                yield f"detectors.{name}: threshold is missing: a trusted model comes without one"
        if combine is not None:
            yield "combine: needs calibrated scores; add calibration: {method: evt}"
    elif "calibration" in settings:
        for name, spec in detectors.items():
            if spec is not None and spec.threshold is not None:
                yield f"detectors.{name}: threshold has no effect on calibrated scores; use alert.probability"
        yield from _out_of_reach(settings["calibration"], alert)
    if combine is None:
        return
    if COMBINED in detectors:
        yield f'detectors: "{COMBINED}" is the name of what is decided together; choose another'
    if alert is not None and alert.budget is not None and not combine.calibrate:
        yield "combine: calibrate: a budget needs it; remove calibrate: false, or state alert.probability"
    if 0 < len(detectors) < 2:
        yield "combine: takes two detectors or more"
    if 2 <= (most := len(detectors)) < combine.k:
        yield f"combine: k: is {combine.k}, and there are {most} detectors; make it {most} or less"
    if detectors and not any(combine.weights.get(name, 1.0) for name in detectors):
        yield "combine: weights: all are 0; give at least one detector a weight above 0"
    for name in combine.weights:
        if name not in detectors:
            yield f'combine.weights: "{name}" is not a detector'

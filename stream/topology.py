"""A topology as data: one arrow from a source through detectors and an alert rule to a sink.

Python and YAML say the same thing and load as equal objects; see `stream.config` for the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, cast

import msgspec
from msgspec import structs
from msgspec.structs import force_setattr

from detectors.base import Detector, TrainableDetector
from detectors.calibration import Calibration
from detectors.features import Feature, columns_of
from detectors.health import Health
from detectors.registry import ONLINE
from stream.binding import binding_problems
from stream.brokers.base import Binding, Exchange, Plan, Queue
from stream.capture_rule import CaptureRule, reserved
from stream.follow_rule import Follow
from stream.gates import PromoteWhen, RollbackWhen
from stream.inputs import expanded, feature_problems
from stream.references import Pin, is_digest, parse_uri
from stream.retrain_rule import Retrain, retrain_problems
from stream.rules import COMBINED, AlertRule, Combination, Learning, automatic_rule
from stream.settings import Bytes, Count, Seconds, Settings, is_name, is_time, refuse

__all__ = [
    "AUTO",
    "CONTROL_EXCHANGE",
    "DEADLETTER_EXCHANGE",
    "HEALTH",
    "CheckpointRule",
    "Fields",
    "RegistryModel",
    "Sensor",
    "Sink",
    "Source",
    "Topology",
    "broker_plan",
    "control_queue",
    "deadletter_queue",
    "readings_queue",
]

AUTO = "auto"
HEALTH = "health"
"""The name under which sick sensors and machines raise alerts."""
CONTROL_EXCHANGE = "mmlw.control"
DEADLETTER_EXCHANGE = "mmlw.deadletters"


class Sensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One column of a machine's readings. `minimum` and `maximum` bound what is physically possible."""

    name: str
    unit: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    min_deviation: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Deviations from the expected value smaller than this, in the sensor's unit, open no alert."""
    stuck_after: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Readings at one value after which it is stuck, 0: it may stand still; None: as `health` says."""
    path: str | None = None
    """Where its value stands in a message of a foreign layout, as a dotted path (`payload.p1`)."""

    def __post_init__(self) -> None:
        refuse(self.check(structs.asdict(self)))

    @staticmethod
    def check(settings: Settings) -> Iterator[str]:
        """See `Settings`."""
        if settings.get("name") == "":
            yield "name: a sensor needs a name"
        low, high = settings.get("minimum"), settings.get("maximum")
        if low is not None and high is not None and low >= high:
            yield "minimum: must be below maximum"


class Fields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where things stand in a message, as dotted paths. The defaults are the product's own layout."""

    machine: str = "machine"
    time: str = "time"
    values: str = "values"
    """An object of sensor values; empty means the message itself is that object."""
    seq: str = "seq"
    """A whole number that rises with each reading of a machine: how a duplicate is known."""


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where readings come from and how a message becomes readings."""

    sensors: tuple[Sensor, ...]
    """The machine's sensors, in the order of the columns. A plain string names a sensor without limits."""
    exchange: str = "mmlw.sensors"
    bindings: tuple[str, ...] = ("sensor.#",)
    queue: str | None = None
    """An existing queue (classic or quorum) to read instead of the exchange: nothing is bound or declared for
    it, and what is read is gone. Prefer the exchange: a stream of our own can be read again."""
    exclusive: bool = True
    """Nobody else may read that queue. Say false where it has `x-single-active-consumer`, or is shared."""
    routing_key: str = "sensor.{machine}.*"
    """How a routing key is read: `{machine}` and `{sensor}` name one word each, `*` any word."""
    layout: Literal["auto", "narrow"] = "auto"
    """`auto`: rows, columns, the column-wise table or the long form, told apart by their shape.
    `narrow`: one sensor per message, aligned into rows by time."""
    fields: Fields = Fields()
    machine: str | None = None
    """The machine of messages that name none, neither in the body nor in the routing key."""
    machines: tuple[str, ...] = ("*",)
    """Names of machines that may send, as patterns (`pump-*`)."""
    unknown_sensor: Literal["deadletter", "ignore"] = "deadletter"
    missing_sensor: Literal["accept", "deadletter"] = "accept"
    not_finite: Literal["deadletter", "missing"] = "deadletter"
    """What a NaN, an infinity or a null is: a reason to refuse the message, or a missing sensor."""
    out_of_range: Literal["deadletter", "missing", "alert"] = "deadletter"
    """What a value below `minimum` or above `maximum` is: a reason to refuse the message, a missing sensor, or a
    missing sensor and an alert (`health` must not be null)."""
    order_by: Literal["seq", "time"] = "seq"
    """What tells a machine's readings apart: a sequence number, or its clock where that never goes back."""
    duplicate: Literal["drop", "deadletter", "accept"] = "drop"
    """What a reading is whose number is not above its machine's highest, and whose time is not newer."""
    late: Literal["accept", "drop", "deadletter"] = "accept"
    """What a reading is that is older than its machine's newest by more than `lateness`."""
    lateness: Seconds = 0.0
    align_within: Seconds = 1.0
    """Narrow layout: values of one machine within this many seconds belong to one row."""
    earliest: str = "1990-01-01T00:00:00Z"
    """Readings before this instant are refused: a clock that was never set."""
    max_ahead: Seconds = 86400.0
    """Readings further in the future than this are refused."""
    max_body: Bytes = 1_000_000
    max_machines: Count = 1_000_000
    """Machines that are known at the most; a message of one more is a dead letter."""
    resident_machines: Count = 100_000
    """Machines whose state is held in memory; the longest unseen wait in the checkpoint."""
    max_batch: Count = 512
    linger: Seconds = 0.002
    """How long a batch that is not full waits for more readings."""
    keep_age: Seconds = 7 * 86400.0
    """How long our stream keeps readings: the horizon of a replay."""
    keep_bytes: Bytes = 5_000_000_000

    def __post_init__(self) -> None:
        given: tuple[Sensor | str, ...] = tuple(self.sensors)
        sensors = tuple(Sensor(item) if isinstance(item, str) else item for item in given)
        force_setattr(self, "sensors", sensors)
        force_setattr(self, "bindings", tuple(self.bindings))
        force_setattr(self, "machines", tuple(self.machines))
        refuse(self.check(structs.asdict(self)))

    @staticmethod
    def check(settings: Settings) -> Iterator[str]:
        """See `Settings`."""
        if "sensors" in settings:
            names = [sensor.name for sensor in settings["sensors"]]
            if not names:
                yield "sensors: name at least one sensor"
            if twice := sorted({name for name in names if names.count(name) > 1}):
                yield f"sensors: named twice: {', '.join(twice)}"
        if "bindings" in settings and not settings["bindings"]:
            yield "bindings: name at least one, such as sensor.#"
        if "machines" in settings and not settings["machines"]:
            yield "machines: name at least one pattern, such as pump-*"
        if settings.get("queue") == "":
            yield "queue: name the queue, or leave it out to read the exchange"
        if settings.get("queue") and settings.get("bindings", ("sensor.#",)) != ("sensor.#",):
            yield "bindings: an existing queue has its own; remove either queue or bindings"
        if "earliest" in settings and not is_time(settings["earliest"]):
            yield f'earliest: "{settings["earliest"]}" is not an RFC 3339 time such as 1990-01-01T00:00:00Z'
        words = str(settings.get("routing_key", "{sensor}")).split(".")
        if unknown := [word for word in words if "{" in word and word not in ("{machine}", "{sensor}")]:
            yield f'routing_key: "{unknown[0]}" is not known; a word may be {{machine}}, {{sensor}}, * or a text'
        if settings.get("layout") == "narrow" and "{sensor}" not in words:
            example = "sensor.{machine}.{sensor}"
            yield f'routing_key: the narrow layout needs "{{sensor}}" as a word, such as {example}'

    @property
    def names(self) -> tuple[str, ...]:
        """The sensors' names, in the order of the columns."""
        return tuple(sensor.name for sensor in self.sensors)


class RegistryModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A batch detector: trained before, its weights loaded from the model registry."""

    model: str
    """`models:/name@alias` or `models:/name/version`; resolved once, then pinned in the checkpoint."""
    threshold: float | None = None
    """None takes the threshold that was chosen while training."""
    fit: TrainableDetector | None = None
    """How `mmlw train` trains it."""
    inputs: tuple[str, ...] = ()
    """The sensors and features that it is trained on and shown, in this order; none named: all of them."""
    machines: str | tuple[str, ...] = ()
    """The machines that it is trained on and scores, as a pattern (`pump-*`) or several; none named: all of them."""
    promote_when: PromoteWhen | None = None
    """What a shadow must have shown before it may take this place; None: `promote` is enough."""
    rollback_when: RollbackWhen | None = None
    """When the model before takes over again by itself."""
    retrain: Retrain | None = None
    """When it is trained anew by itself: a challenger, never what serves."""
    follow: Follow | None = None
    """Another version is swapped in when the alias moves in the registry; None: only by command."""
    trust: str | tuple[str, ...] = ()
    """Digests (`sha256:...`) of registered models that are code (pickled, or any that MLflow loads) and may run, in a
    process of their own. None: only weights that are data."""
    method: Literal["predict", "decision_function", "score_samples"] = "predict"
    """What is asked of such a model."""
    anomalous: Literal["high", "low"] | None = None
    """Which of its scores are anomalous. They are turned so that high ones are; what is then below 0 counts as 0."""

    def __post_init__(self) -> None:
        force_setattr(self, "trust", (self.trust,) if isinstance(self.trust, str) else tuple(self.trust))
        force_setattr(self, "inputs", tuple(self.inputs))
        refuse(self.check(structs.asdict(self)))

    @staticmethod
    def check(settings: Settings) -> Iterator[str]:
        """See `Settings`."""
        try:
            address = parse_uri(settings.get("model", "models:/x@alias"))
        except ValueError as error:
            yield f"model: {error}"
        else:
            if address.alias is None and settings.get("follow") is not None:
                yield "follow: the model is one version, which does not move; name an alias: models:/NAME@ALIAS"
        trust = settings.get("trust", ())
        for digest in (trust,) if isinstance(trust, str) else trust:
            if not is_digest(digest):
                yield f'trust: "{digest}" is not sha256: and 64 hexadecimal digits'
        if trust and settings.get("anomalous", "") is None:
            yield "anomalous: say high or low: which scores of the trusted model are anomalous"
        if settings.get("retrain") is not None:
            if settings.get("fit", "") is None:
                yield "retrain: add fit: {kind: …} to say how it is trained"
            if str(settings.get("model", "")).endswith("@challenger"):
                yield "retrain: what is trained is called challenger; name another alias in model, such as champion"

    @property
    def pin(self) -> Pin:
        """What the shelf must know to run it where it is code."""
        return Pin(tuple(self.trust), self.method, self.anomalous or "high", self.threshold)

    @property
    def name(self) -> str:
        """The registered model's name."""
        return parse_uri(self.model).name

    @property
    def alias(self) -> str | None:
        """The alias asked for, None where a version is named."""
        return parse_uri(self.model).alias


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
    alert rule that suits it, where none is stated."""
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
        if cast("dict[str, Detector] | str", self.detectors) == AUTO:
            force_setattr(self, "detectors", {AUTO: ONLINE[AUTO]()})
            if self.alert == AlertRule():
                force_setattr(self, "alert", automatic_rule(len(self.columns)))
        refuse(self.check(structs.asdict(self)))

    @staticmethod
    def check(settings: Settings) -> Iterator[str]:
        """See `Settings`."""
        if settings.get("detectors") == AUTO:
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
        told = source is not None and source.out_of_range == "alert"
        if told and "health" in settings and settings["health"] is None:
            yield "source: out_of_range: alert needs health; leave health out to have its defaults"

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


def readings_queue(topology: Topology) -> Queue:
    """The stream of our own that the sensor exchange is bound to, or the existing queue that is named."""
    if topology.source.queue is not None:
        return Queue(name=topology.source.queue, kind="existing", exclusive=topology.source.exclusive)
    return Queue(
        name=f"mmlw.readings.{topology.name}",
        max_age=topology.source.keep_age,
        max_bytes=topology.source.keep_bytes,
        segment_bytes=max(1_000_000, min(500_000_000, topology.source.keep_bytes // 4)),
    )


def control_queue(topology_name: str) -> Queue:
    """Where a topology's commands wait for it."""
    return Queue(name=f"mmlw.control.{topology_name}", kind="classic")


def deadletter_queue() -> Queue:
    """The stream that keeps what could not be used, for all topologies."""
    return Queue(name="mmlw.deadletters", max_age=30 * 86400.0, max_bytes=1_000_000_000)


def broker_plan(topology: Topology) -> Plan:
    """Every exchange, queue and binding this topology needs."""
    readings, control = readings_queue(topology), control_queue(topology.name)
    dead, sink = deadletter_queue(), topology.sink
    queues = [readings, control, dead]
    bindings = []
    exchanges = [sink.exchange, CONTROL_EXCHANGE, DEADLETTER_EXCHANGE]
    if topology.source.queue is None:
        exchanges.insert(0, topology.source.exchange)
        bindings += [Binding(readings.name, exchanges[0], pattern) for pattern in topology.source.bindings]
    bindings.append(Binding(control.name, CONTROL_EXCHANGE, f"control.{topology.name}.*"))
    bindings.append(Binding(dead.name, DEADLETTER_EXCHANGE, "deadletter.#"))
    if sink.queue is not None:
        queues.append(Queue(name=sink.queue, max_age=sink.keep_age, max_bytes=sink.keep_bytes))
        bindings.append(Binding(sink.queue, sink.exchange, "alert.#"))
    names = dict.fromkeys(exchanges)
    return Plan(
        exchanges=tuple(Exchange(name) for name in names), queues=tuple(queues), bindings=tuple(bindings)
    )

"""Where readings come from, as data: exchange, stream or queue, sensors, layout and what is taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import structs
from msgspec.structs import force_setattr

from stream.settings import Bytes, Count, Seconds, Settings, is_time, refuse

__all__ = ["Fields", "Sensor", "Source"]


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
    out_of_range: Literal["alert", "missing", "deadletter"] = "alert"
    """What a value below `minimum` or above `maximum` is: a missing sensor and an alert that it is sick (needs
    `health`), a missing sensor, or a reason to refuse the message with all its sensors."""
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
    max_rows: Count = 10_000
    """Readings that one message may carry."""
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

    @property
    def limited(self) -> bool:
        """Whether a sensor has a physical limit."""
        return any(s.minimum is not None or s.maximum is not None for s in self.sensors)

"""An alert as data, and as a message: CloudEvents 1.0 in binary mode over AMQP."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import msgspec

from stream.brokers.base import Message, routing_word

__all__ = [
    "PROCESS",
    "Alert",
    "ModelInfo",
    "Position",
    "SensorReason",
    "Stretch",
    "Window",
    "alert_message",
    "episode_id",
    "rfc3339",
]


PROCESS = "process"
"""The type of alerts about what is measured."""


class ModelInfo(msgspec.Struct, frozen=True):
    """Which model scored: a registered one by version and digest; an online one by its recipe's digest."""

    name: str
    version: str
    digest: str
    kind: str

    @property
    def labels(self) -> tuple[str, str, str, str]:
        """Of the metric that tells which model scores."""
        return self.name, self.version, self.digest, self.kind


class Position(msgspec.Struct, frozen=True):
    """The reading that caused an event: its message's offset in the stream, and its row in the message."""

    partition: int
    offset: int
    row: int


class Stretch(msgspec.Struct, frozen=True):
    """A sensor's last readings as a whole, and how far they are from a stretch of its past, in its unit."""

    readings: int
    first_seen: str | None
    """When the first of them was taken (RFC 3339); None of a mean in which older readings count less."""
    last_seen: str
    distance: float
    """Root mean square of the differences."""
    shift: float
    """Their mean: positive, where they lie above."""
    rank: int
    """1: from the most similar stretch; 2: from the second most similar; 0: their mean from the expected one."""


class SensorReason(msgspec.Struct, frozen=True, omit_defaults=True):
    """One sensor's part in the score: `share` is signed, shares sum to 1 in absolute value."""

    sensor: str
    value: float | None
    expected: float | None
    share: float
    stretch: Stretch | None = None
    """What was compared, where that is no single reading; `expected` is the last value of the other stretch, or the
    mean that is normal."""


class Window(msgspec.Struct, frozen=True):
    """The machine's last readings up to the event: epoch seconds, and a list per sensor (null: missing)."""

    times: list[float]
    values: dict[str, list[float | None]]


class Alert(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event of an alert's life. `id` names the episode and is the same in all of its events."""

    id: str
    event: str
    """`opened`, `updated` or `closed`."""
    type: str
    """`process`: what is measured is anomalous; else what ails the measuring, such as `sensor_stuck`."""
    sequence: int
    """0 for opened, then counting."""
    topology: str
    machine: str
    detector: str
    severity: str
    score: float
    threshold: float
    peak_score: float
    probability: float | None = None
    """Of a normal reading that scores as high, where scores are calibrated."""
    anomalous_readings: int
    first_seen: str
    last_seen: str
    time: str
    """When the reading of this event was taken (RFC 3339)."""
    reason: str
    """One sentence for a person."""
    contributions: list[SensorReason]
    nearest_example: float | None = None
    """Distance to the nearest normal example, where the detector keeps examples, in the unit it measures in."""
    model: ModelInfo
    position: Position
    window: Window


def episode_id(
    topology: str, machine: str, detector: str, partition: int, offset: int, row: int, first_seen: float
) -> str:
    """The alert's id, a function of where it opened: a replay gives the same.

    The time of its first reading (epoch seconds) tells two episodes apart where a number comes again: a counter
    that began anew, a stream that was made anew."""
    text = "\x1f".join((topology, machine, detector, *map(str, (partition, offset, row)), repr(first_seen)))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def alert_message(alert: Alert, exchange: str) -> Message:
    """The message that carries an alert. Its `ce-id` is deterministic: deduplicate by it."""
    ce_id = f"{alert.id}-{alert.sequence}"
    return Message(
        exchange=exchange,
        routing_key=f"alert.{alert.severity}.{alert.topology}.{routing_word(alert.machine)}",
        body=msgspec.json.encode(alert),
        message_id=ce_id,
        headers={
            "ce-specversion": "1.0",
            "ce-id": ce_id,
            "ce-type": f"mmlw.alert.{alert.event}",
            "ce-alerttype": alert.type,
            "ce-source": f"/mmlw/{alert.topology}/{alert.detector}",
            "ce-subject": alert.machine,
            "ce-time": alert.time,
        },
    )


def rfc3339(seconds: float) -> str:
    """Epoch seconds as RFC 3339 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")

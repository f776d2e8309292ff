"""A message that cannot be used, kept as it came with the reason beside it; and its way back, once it can be."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import msgspec

from stream import log
from stream.brokers.base import Delivery, Message, Queue
from stream.errors import ReadingRejected
from stream.plan import DEADLETTER_EXCHANGE
from stream.proof import fingerprint

__all__ = ["Origin", "dead_letter", "replay", "replayed"]

_REPLAY = "mmlw-replay"


class Origin(NamedTuple):
    """A replayed dead letter: its id, and the message as it first came."""

    letter: str
    delivery: Delivery


def dead_letter(
    topology: str, delivery: Delivery, error: ReadingRejected, *, identity: str | None = None
) -> Message:
    """The dead letter of a delivery: its body unchanged; why, and where it came from, in the headers.

    Its id tells where it stood in the source, and what it is: a stream made anew gives its offsets again. A queue
    has no places that last: there `identity` is the publisher's own message id or, where it gave none, a digest of
    the message, so that two of the same routing key and body are one letter. What is refused again after a replay
    keeps the id it had.
    """
    fields = {"topology": topology, "reason": error.reason, "detail": error.detail, "offset": delivery.offset}
    log.limited("message_deadlettered", f"{topology}/{error.reason}", **fields)
    origin = replayed(delivery)
    place = hashlib.sha256(identity.encode()).hexdigest()[:16] if identity else f"0-{delivery.offset}"
    letter, source = origin or (f"{topology}-{place}-{fingerprint(delivery)[:12]}", delivery)
    return Message(
        exchange=DEADLETTER_EXCHANGE,
        routing_key=f"deadletter.{topology}.{error.reason}",
        body=delivery.body,
        content_type=delivery.content_type or "application/octet-stream",
        message_id=letter,
        headers={
            "mmlw-reason": error.reason,
            "mmlw-detail": error.detail,
            "mmlw-topology": topology,
            "mmlw-exchange": source.exchange,
            "mmlw-routing-key": source.routing_key,
            "mmlw-offset": delivery.offset,
        },
    )


def replay(letter: Delivery, queue: Queue) -> Message:
    """The message that brings a dead letter back to the topology that refused it, and to no other.

    It goes to the topology's own queue by the default exchange, under the id of the dead letter.
    """
    headers = letter.headers
    return Message(
        exchange="",
        routing_key=queue.name,
        body=letter.body,
        content_type=letter.content_type,
        message_id=letter.message_id,
        headers={
            _REPLAY: 1,
            "mmlw-exchange": str(headers.get("mmlw-exchange", "")),
            "mmlw-routing-key": str(headers.get("mmlw-routing-key", "")),
        },
    )


def replayed(delivery: Delivery) -> Origin | None:
    """Where a delivery came from first, if it is the replay of a dead letter.

    Only the default exchange is believed: a machine may publish to the sensor exchange alone.
    """
    headers = delivery.headers
    if delivery.exchange or _REPLAY not in headers or not delivery.message_id:
        return None
    exchange, routing_key = (str(headers.get(name, "")) for name in ("mmlw-exchange", "mmlw-routing-key"))
    return Origin(
        delivery.message_id,
        msgspec.structs.replace(delivery, exchange=exchange, routing_key=routing_key),
    )

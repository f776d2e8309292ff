"""A message that cannot be used, kept as it came, with the reason beside it."""

from __future__ import annotations

from stream import log
from stream.brokers.base import Delivery, Message
from stream.errors import ReadingRejected
from stream.topology import DEADLETTER_EXCHANGE

__all__ = ["dead_letter"]


def dead_letter(topology: str, delivery: Delivery, error: ReadingRejected) -> Message:
    """The dead letter of a delivery: its body unchanged; why, and where it came from, in the headers."""
    fields = {"topology": topology, "reason": error.reason, "detail": error.detail, "offset": delivery.offset}
    log.limited("message_deadlettered", f"{topology}/{error.reason}", **fields)
    return Message(
        exchange=DEADLETTER_EXCHANGE,
        routing_key=f"deadletter.{topology}.{error.reason}",
        body=delivery.body,
        content_type=delivery.content_type or "application/octet-stream",
        message_id=f"{topology}-0-{delivery.offset}",
        headers={
            "mmlw-reason": error.reason,
            "mmlw-detail": error.detail,
            "mmlw-topology": topology,
            "mmlw-exchange": delivery.exchange,
            "mmlw-routing-key": delivery.routing_key,
            "mmlw-offset": delivery.offset,
        },
    )

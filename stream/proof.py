"""Proof that a stream is the one a checkpoint was taken in: its last processed message is still the same."""

from __future__ import annotations

import hashlib

from stream.brokers.base import Delivery, Intake
from stream.errors import CheckpointError
from stream.state import StreamPosition

__all__ = ["fingerprint", "prove"]

_TIMEOUT = 10.0
"""Seconds within which a stream must show the last message that was processed from it."""


def fingerprint(delivery: Delivery) -> str:
    """SHA-256 of a message's routing key and body."""
    return hashlib.sha256(delivery.routing_key.encode() + b"\0" + delivery.body).hexdigest()


async def prove(intake: Intake, position: StreamPosition, *, most: int, linger: float) -> list[Delivery]:
    """The first deliveries from a position's last message on; that message itself must be the same.

    The intake reads from that offset. A first offset beyond it means that retention removed what lies between.
    Nothing is read for a fresh position. Raises CheckpointError when the stream holds another message there, or
    ends before it.
    """
    last = position.last_offset
    if last < 0:
        return []
    remedy = "Start over with this stream: mmlw checkpoint reset"
    while True:
        deliveries = await intake.receive(most, linger, _TIMEOUT)
        if not deliveries:
            raise CheckpointError(f"the stream shows nothing from offset {last} on: was it deleted? {remedy}")
        found = [delivery for delivery in deliveries if delivery.offset >= last]
        if found:
            break
        await intake.ack(deliveries[-1].tag)  # the broker delivers from the head of a chunk
    if found[0].offset == last and fingerprint(found[0]) != position.fingerprint:
        raise CheckpointError(
            f"the stream holds another message at offset {last}: was it recreated? {remedy}"
        )
    return found

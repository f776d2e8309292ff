"""MLflow's webhooks: which requests it has signed, and which alias they tell of.

The signature is HMAC-SHA256 over `DELIVERY.TIMESTAMP.BODY` with the webhook's secret, as `v1,BASE64` in
`X-MLflow-Signature`; a delivery's id and the epoch seconds of its sending are headers, too
(`mlflow/webhooks/delivery.py`). Where MLflow tries again, it sends the same id, time and signature.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

import msgspec

from stream.clock import SYSTEM_CLOCK, Clock
from stream.metrics import WebhookOutcome

__all__ = ["AliasMoved", "WebhookRefused", "Webhooks"]

_TOLERANCE = 300.0
"""Seconds that a delivery may be old, or ahead of the worker's clock."""
_REMEMBERED = 10_000
"""Deliveries whose ids are kept, at the most."""
_LONGEST = 200
"""Characters of a delivery's id."""
_MOVED = ("model_version_alias", "created")
"""Entity and action of what MLflow tells when an alias is made or moved."""


class AliasMoved(msgspec.Struct, frozen=True):
    """What a webhook says. Only a hint: the registry is asked."""

    name: str
    alias: str


class WebhookRefused(Exception):
    """A request that is not taken, with its HTTP status."""

    def __init__(self, outcome: WebhookOutcome, status: int, reason: str) -> None:
        super().__init__(reason)
        self.outcome: WebhookOutcome = outcome
        self.status = status


class _Event(msgspec.Struct, frozen=True):
    entity: str
    action: str
    data: dict[str, Any] = {}


class Webhooks:
    """Checks what is said to come from MLflow. The secret is the one that the webhook was created with."""

    def __init__(self, secret: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._secret = secret.encode()
        self._clock = clock
        self._taken: dict[str, float] = {}

    def check(self, headers: Mapping[str, str], body: bytes) -> AliasMoved | None:
        """The alias that it tells of, None for another event. Raises WebhookRefused.

        `headers` by lower-case name. A delivery is taken once; after a restart once more, within the tolerance: that
        has the registry asked, and does no harm."""
        delivery, time = headers.get("x-mlflow-delivery-id", ""), headers.get("x-mlflow-timestamp", "")
        signed = b".".join((delivery.encode("latin-1"), time.encode("latin-1"), body))
        expected = b"v1," + base64.b64encode(hmac.digest(self._secret, signed, hashlib.sha256))
        stated = headers.get("x-mlflow-signature", "").encode("latin-1")
        if not hmac.compare_digest(stated, expected) or not 0 < len(delivery) <= _LONGEST:
            raise WebhookRefused("forged", 401, "the signature is not MLflow's: is the secret the webhook's?")
        self._once(delivery, time)
        try:
            event = msgspec.json.decode(body, type=_Event)
            if (event.entity, event.action) != _MOVED:
                return None
            return msgspec.convert(event.data, AliasMoved)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise WebhookRefused("malformed", 400, "the body is not an event of MLflow's") from error

    def _once(self, delivery: str, time: str) -> None:
        now = self._clock.now()
        if not (time.isascii() and time.isdigit() and len(time) <= 12) or abs(now - int(time)) > _TOLERANCE:
            reason = f"sent more than {_TOLERANCE:.0f} s ago or ahead: are the clocks right?"
            raise WebhookRefused("stale", 401, reason)
        if delivery in self._taken:
            raise WebhookRefused("repeated", 409, "this delivery was taken before")
        for old in [name for name, sent in self._taken.items() if now - sent > _TOLERANCE]:
            del self._taken[old]
        while len(self._taken) >= _REMEMBERED:
            del self._taken[next(iter(self._taken))]
        self._taken[delivery] = float(int(time))

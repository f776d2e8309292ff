"""Message brokers behind one port: RabbitMQ, and an embedded one with the same semantics."""

from __future__ import annotations

from urllib.parse import urlsplit

from stream.brokers.base import Broker
from stream.errors import ConfigError, Problem

__all__ = ["connect"]


def connect(url: str) -> Broker:
    """A broker for an `amqp://` or `amqps://` address, not yet connected. Raises ConfigError on another."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("amqp", "amqps") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise ConfigError(
            [Problem("--broker", "write it as amqp://USER@HOST:PORT/VHOST, or amqps:// for TLS")]
        )
    from stream.brokers.rabbitmq import RabbitBroker

    return RabbitBroker(url)

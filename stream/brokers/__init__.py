"""Message brokers behind one port: RabbitMQ, and an embedded one with the same semantics."""

from __future__ import annotations

from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

from stream.brokers.base import Broker
from stream.brokers.tls import Tls
from stream.errors import ConfigError, Problem

__all__ = ["address", "connect"]

_OPTIONS_INSTEAD = ("auth", "cadata", "cafile", "capath", "certfile", "keyfile", "no_verify_ssl")
"""What the driver would take from an address; one of these would switch verification off."""


def connect(url: str, tls: Tls | None = None) -> Broker:
    """A broker for an `amqp://` or `amqps://` address, not yet connected. Raises ConfigError on another."""
    named = address(url, tls)
    from stream.brokers.rabbitmq import RabbitBroker

    return RabbitBroker(named, tls=tls)


def address(url: str, tls: Tls | None = None) -> str:
    """The address, with the user of a client certificate in it. Raises ConfigError on one that cannot be used."""
    tls = tls or Tls()
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("amqp", "amqps") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise _wrong("write it as amqp://USER@HOST:PORT/VHOST, or amqps:// for TLS")
    if used := sorted(set(parse_qs(parts.query, keep_blank_values=True)) & set(_OPTIONS_INSTEAD)):
        raise _wrong(
            f"takes no {', '.join(used)}: use --broker-ca, --broker-cert and --broker-key; "
            "the broker's certificate is always verified"
        )
    if tls != Tls() and parts.scheme != "amqps":
        raise _wrong("certificates need TLS: write it as amqps://HOST:PORT/VHOST")
    if tls.cert is None:
        return url
    if parts.password is not None:
        raise ConfigError([Problem("--broker-cert", "logs in by itself: leave the password out")])
    if parts.username:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{quote(tls.user(), safe='')}@{host}"))


def _wrong(message: str) -> ConfigError:
    return ConfigError([Problem("--broker", message)])

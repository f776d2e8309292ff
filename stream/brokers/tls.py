"""TLS to the broker: whom to trust, who one is, and what went wrong, in one line with its remedy.

The broker's certificate and host name are always verified; nothing here or in an address can switch that off.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stream.errors import ConfigError, Problem

__all__ = ["Tls", "causes", "refusal", "remedy"]

_CA, _CERT, _KEY = "--broker-ca", "--broker-cert", "--broker-key"


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files. Without `ca` the system's authorities are trusted; without `cert` one logs in by password.

    `key` may be left out where the file of `cert` holds it, too.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """A context from the files as they are now, so that a renewed certificate is used at the next connection.

        Blocks for some milliseconds. Raises ConfigError with every file that cannot be used.
        """
        if problems := list(self._unreadable()):
            raise ConfigError(problems)
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except ssl.SSLError:
            raise _problem(_CA, f"{self.ca}: holds no certificate in PEM form") from None
        if self.cert is not None:
            self._load_pair(context, self.cert)
        return context

    def user(self) -> str:
        """The common name in the client certificate: as whom RabbitMQ knows who shows it.

        Raises ConfigError where there is none."""
        from cryptography import x509
        from cryptography.x509.oid import NameOID

        assert self.cert is not None  # noqa: S101
        try:
            subject = x509.load_pem_x509_certificates(self.cert.read_bytes())[0].subject
        except OSError as error:
            raise _problem(_CERT, f"{self.cert}: {error.strerror}") from None
        except ValueError:
            raise _problem(_CERT, f"{self.cert}: holds no certificate in PEM form") from None
        names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        if not names:
            raise _problem(_CERT, f"{self.cert}: has no common name: write the user as amqps://USER@HOST")
        return str(names[0].value)

    def _unreadable(self) -> Iterator[Problem]:
        if self.key is not None and self.cert is None:
            yield Problem(_KEY, f"belongs to a certificate: name it with {_CERT}")
        for option, path in ((_CA, self.ca), (_CERT, self.cert), (_KEY, self.key)):
            try:
                if path is not None:
                    path.read_bytes()
            except OSError as error:
                yield Problem(option, f"{path}: {error.strerror}")

    def _load_pair(self, context: ssl.SSLContext, cert: Path) -> None:
        option, path = (_CERT, cert) if self.key is None else (_KEY, self.key)

        def passphrase() -> str:  # without this the driver would ask on the terminal
            raise _problem(option, f"{path}: the key is protected by a passphrase: store it without one")

        try:
            context.load_cert_chain(cert, self.key, passphrase)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise _problem(option, f"{path}: is not the key of {cert}") from None
            self.user()  # is it the certificate that cannot be read?
            without = f": name the key's file with {_KEY}" if self.key is None else ""
            raise _problem(option, f"{path}: holds no private key in PEM form{without}") from None


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it followed from."""
    found: BaseException | None = error
    seen: set[int] = set()  # the driver's errors may follow from each other in a circle
    while found is not None and id(found) not in seen:
        yield found
        seen.add(id(found))
        found = found.__cause__ or found.__context__


async def refusal(host: str, port: int, context: ssl.SSLContext, *, seconds: float) -> ssl.SSLError | None:
    """Why a server ends TLS connections, asked by one that only listens, for at most so many seconds.

    In TLS 1.3 a client may speak before its certificate is refused, and a server that closes a connection with
    unread bytes resets it: its reason is then lost. Said nothing, it gives the reason.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            await reader.read(1)
    except ssl.SSLError as error:
        return error
    except OSError:  # and no answer in time
        return None
    finally:
        if writer is not None:
            writer.transport.abort()
    return None


def remedy(error: ssl.SSLError) -> str:
    """What a TLS error means and what to do, in one line."""
    if isinstance(error, ssl.SSLCertVerificationError):
        for codes, text in _UNTRUSTED:
            if error.verify_code in codes:
                return text
        return f"the broker's certificate is not trusted: {error.verify_message}"
    reason = error.reason or ""
    for reasons, text in _REFUSED:
        if any(known in reason for known in reasons):
            return text
    return f"TLS failed ({reason or 'no reason given'}); the broker's log says more"


_UNTRUSTED = (
    ({9}, "the broker's certificate is not valid yet: correct a clock, here or there"),
    ({10}, "the broker's certificate, or its authority's, has expired: renew it there"),
    (
        {18, 19, 20, 21},
        f"the broker's certificate is of an unknown authority: name its CA file with {_CA}",
    ),
    ({23}, "the broker's certificate was revoked: renew it there"),
    (
        {62, 64},
        "the broker's certificate is for another host: use the name it was made for in --broker, or renew it",
    ),
)
"""By OpenSSL's X509_V_ERR code."""

_REFUSED = (
    (
        ("ALERT_CERTIFICATE_REQUIRED",),
        f"the broker demands a client certificate: give {_CERT} and {_KEY}",
    ),
    (("ALERT_CERTIFICATE_EXPIRED",), f"the broker says that {_CERT} has expired: renew it"),
    (("ALERT_CERTIFICATE_REVOKED",), f"the broker says that {_CERT} was revoked: renew it"),
    (
        ("ALERT_UNKNOWN_CA",),
        f"the broker does not know the authority of {_CERT}: use one of an authority it trusts",
    ),
    (
        ("_CERTIFICATE", "ALERT_ACCESS_DENIED", "ALERT_DECRYPT_ERROR"),
        f"the broker refused {_CERT}: use one for clients, of an authority it trusts",
    ),
    (
        ("ALERT_HANDSHAKE_FAILURE",),
        f"the broker ended the handshake: if it demands a client certificate, give {_CERT} and {_KEY}",
    ),
    (
        ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"),
        "no TLS is spoken there: use the TLS port (5671, by default), or amqp:// for a connection without TLS",
    ),
    (
        ("PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL"),
        "the broker speaks no TLS that is safe: allow TLS 1.2 or 1.3 there (ssl_options.versions)",
    ),
)
"""By OpenSSL's reason: what the broker refused, or what was not TLS."""


def _problem(option: str, message: str) -> ConfigError:
    return ConfigError([Problem(option, message)])

"""What the AMQP driver raises, as our errors: one line each, with what to do. The only place that maps them."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

from aio_pika import exceptions as amqp

from stream.brokers.tls import Tls, causes, remedy
from stream.errors import BrokerError, BrokerMissing, BrokerRefused, BrokerUnreachable

__all__ = ["DriverErrors", "hung_up", "in_use", "one_line"]


@dataclass(frozen=True, slots=True)
class DriverErrors:
    """Maps errors of one connection: who connected, where to, how long an answer may take (seconds), by TLS."""

    where: str
    user: str
    vhost: str
    timeout: float
    tls: Tls | None = None

    @contextlib.contextmanager
    def mapped(self, what: str, *, connected: bool) -> Iterator[None]:
        """The driver's exceptions as ours, each one line that says what to do. `connected`: not while connecting.

        The driver swallows a cancellation now and then, so that the task would go on for ever: it is raised again.
        """
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        try:
            yield
            if task is not None and task.cancelling() > before:
                raise asyncio.CancelledError
        except BrokerError:
            raise
        except asyncio.CancelledError:  # ours, or the driver's: so it ends waits on a lost connection
            if task is None or task.cancelling():
                raise
            raise BrokerUnreachable(f"{self.where}: {what}: the connection was lost") from None
        except (amqp.AuthenticationError, amqp.ProbableAuthenticationError) as error:
            raise BrokerRefused(f"{self.where}: {self._login_refused(error)}") from error
        except amqp.ChannelNotFoundEntity as error:
            remedy = "declare it on the broker, or run with declare: true"
            if named := re.search(r"no (exchange|queue) '([^']*)'", one_line(error)):
                what = f'{named[1]} "{named[2]}"'
            raise BrokerMissing(f"{self.where}: {what} is missing; {remedy}") from error
        except amqp.ChannelPreconditionFailed as error:
            if other := re.search(r"user_id .* authenticated user was '([^']*)'", one_line(error)):
                hint = f'the broker knows this connection as "{other[1]}": name that user in --broker'
                raise BrokerRefused(f'{self.where}: {what} as "{self.user}" was refused; {hint}') from error
            hint = "delete it, or use its settings"
            raise BrokerRefused(
                f"{self.where}: {what} conflicts with what is there: {hint} ({one_line(error)})"
            ) from error
        except amqp.InvalidFrameError as error:
            if "OpenOk" not in str(error):
                raise BrokerUnreachable(f"{self.where}: {what}: {one_line(error)}") from error
            hint = f'make it, or give the user "{self.user}" permission on it'
            raise BrokerRefused(f'{self.where}: virtual host "{self.vhost}" was refused: {hint}') from error
        except (amqp.ChannelClosed, amqp.ConnectionClosed) as error:
            text = one_line(error)
            if "in exclusive use" in text:
                raise in_use(f"{self.where}: {what}") from error
            if "ACCESS_REFUSED" not in text:
                raise BrokerUnreachable(f"{self.where}: {what}: {text}") from error
            hint = f'give the user "{self.user}" permission on it'
            if named := re.search(r"access to (\w+) '([^']*)'", text):
                what = f'{named[1]} "{named[2]}"'
            raise BrokerRefused(f"{self.where}: {what} was refused: {hint} ({text})") from error
        except TimeoutError as error:
            hint = "see `rabbitmq-diagnostics alarms`" if connected else "is RabbitMQ running there?"
            raise BrokerUnreachable(
                f"{self.where}: no answer within {self.timeout:g} s ({what}); {hint}"
            ) from error
        except (amqp.AMQPError, ConnectionError, OSError, RuntimeError) as error:
            if connected:
                raise BrokerUnreachable(f"{self.where}: {what}: {one_line(error)}") from error
            raise self._not_connected(error) from error

    def _not_connected(self, error: Exception) -> BrokerError:
        for cause in causes(error):
            if isinstance(cause, ssl.SSLError):
                return self.tls_refused(cause)
        if hung_up(error):
            by = "it may demand a client certificate" if self.tls else "a TLS port wants amqps:// in --broker"
            text = f"hung up before the login; {by}, and its log says more"
            return BrokerUnreachable(f"{self.where}: {text} ({one_line(error)})")
        hint = "is RabbitMQ running there? Start it, or correct --broker"
        return BrokerUnreachable(f"{self.where}: nothing answers ({one_line(error)}); {hint}")

    def tls_refused(self, error: ssl.SSLError) -> BrokerRefused:
        """A TLS connection that one side did not want."""
        return BrokerRefused(f"{self.where}: {remedy(error)}")

    def _login_refused(self, error: Exception) -> str:
        """Who was refused, and what to do. The driver's plain AuthenticationError: no mechanism in common."""
        by_certificate = self.tls is not None and self.tls.cert is not None
        if not isinstance(error, amqp.ProbableAuthenticationError):
            if by_certificate:
                return "takes no login by certificate: enable rabbitmq_auth_mechanism_ssl and EXTERNAL there"
            return "takes no passwords: give --broker-cert and --broker-key"
        if by_certificate:
            hint = "the broker must have it, and take it from the certificate's common name"
            return f'user "{self.user}" of the client certificate was refused: {hint}'
        return f'user "{self.user}" was refused: check user name and password'


def in_use(what: str) -> BrokerUnreachable:
    """A queue that was to be read alone has a reader: one that died may be listed for a while yet."""
    hint = "another consumer reads it: stop that one, or say exclusive: false in the topology"
    return BrokerUnreachable(f"{what}: {hint}")


def hung_up(error: BaseException) -> bool:
    """True where the server answered and then closed the connection."""
    ends = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError, asyncio.IncompleteReadError)
    return any(isinstance(cause, ends) for cause in causes(error))


def one_line(error: object) -> str:
    """A driver's error in one line, without what might be secret: only its own words."""
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__

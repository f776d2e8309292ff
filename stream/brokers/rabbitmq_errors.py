"""What the AMQP driver raises, as our errors: one line each, with what to do. The only place that maps them."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from aio_pika import exceptions as amqp

from stream.errors import BrokerError, BrokerMissing, BrokerRefused, BrokerUnreachable

__all__ = ["DriverErrors", "one_line"]


@dataclass(frozen=True, slots=True)
class DriverErrors:
    """Maps errors of one connection: who connected, where to, and how long an answer may take (seconds)."""

    where: str
    user: str
    vhost: str
    timeout: float

    @contextlib.contextmanager
    def mapped(self, what: str, *, connected: bool) -> Iterator[None]:
        """The driver's exceptions as ours, each one line that says what to do. `connected`: not while connecting."""
        try:
            yield
        except BrokerError:
            raise
        except asyncio.CancelledError:  # ours, or the driver's: so it ends waits on a lost connection
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise BrokerUnreachable(f"{self.where}: {what}: the connection was lost") from None
        except (amqp.AuthenticationError, amqp.ProbableAuthenticationError) as error:
            message = f'{self.where}: user "{self.user}" was refused: check user name and password'
            raise BrokerRefused(message) from error
        except amqp.ChannelNotFoundEntity as error:
            remedy = "declare it on the broker, or run with declare: true"
            if named := re.search(r"no (exchange|queue) '([^']*)'", one_line(error)):
                what = f'{named[1]} "{named[2]}"'
            raise BrokerMissing(f"{self.where}: {what} is missing; {remedy}") from error
        except amqp.ChannelPreconditionFailed as error:
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
            if not connected:
                hint = "is RabbitMQ running there? Start it, or correct --broker"
                raise BrokerUnreachable(
                    f"{self.where}: nothing answers ({one_line(error)}); {hint}"
                ) from error
            raise BrokerUnreachable(f"{self.where}: {what}: {one_line(error)}") from error


def one_line(error: object) -> str:
    """A driver's error in one line, without what might be secret: only its own words."""
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__

"""How a training that runs is ended by command: as a whole, or not at all."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress

from stream.errors import CommandRefused, TrainingCancelled

__all__ = ["REGISTERING", "Cancelling"]

REGISTERING = "registering"
"""The phase from which on a training comes to its end: before it, nothing of it is in the registry."""
_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""


class Cancelling:
    """One training, as long as it lasts, and who wants it to end.

    Its process ends on SIGTERM until it begins to register, and not from then on; so a training that was asked to end
    either leaves nothing, or everything."""

    def __init__(self) -> None:
        self._by: str | None = None
        self._cancelled = False
        self._late = False
        self._decided = asyncio.Event()
        """Whether it ends before its time or not is known."""
        self._process: asyncio.subprocess.Process | None = None

    async def cancel(self, by: str) -> None:
        """End it, and wait until it has ended. `by`: the id of the command that asks. Raises CommandRefused where it
        comes too late."""
        if self._late:
            raise CommandRefused("it is being registered, and comes to its end: cancel is too late")
        self._by = by
        self._send(signal.SIGTERM)
        try:
            async with asyncio.timeout(_GRACE):
                await self._decided.wait()
        except TimeoutError:
            self._send(signal.SIGKILL)
            await self._decided.wait()
        if not self._cancelled:
            raise CommandRefused("it was being registered, or had ended, when cancel came: it is too late")

    def process(self, process: asyncio.subprocess.Process) -> None:
        """It runs in this process."""
        self._process = process
        if self._by is not None:
            self._send(signal.SIGTERM)

    @property
    def registering(self) -> bool:
        """Whether something of it may be in the registry."""
        return self._late

    def phase(self, name: str) -> None:
        """A phase begins."""
        if name == REGISTERING:
            self._late = True
            self._decided.set()

    def check(self) -> None:
        """Raises TrainingCancelled where somebody asked for it; whoever calls has ended what there was to end."""
        if self._by is not None and not self._late:
            self._cancelled = True
            raise TrainingCancelled(f'cancelled by the command "{self._by}"')

    def over(self) -> None:
        """It has ended, one way or the other."""
        self._process = None
        self._decided.set()

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

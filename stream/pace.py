"""How much to do in one go, so that whoever else waits for the event loop gets it soon."""

from __future__ import annotations

import asyncio

__all__ = ["Pace", "breathe"]

_STINT = 0.008
"""Seconds that scoring may take in one go."""


class Pace:
    """At most `limit` messages; fewer while they take long: a slow detector, machines that are all new."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.most = limit
        """Messages to take at once."""

    def took(self, count: int, seconds: float) -> None:
        """So many messages were scored in so many seconds."""
        if seconds > _STINT:
            self.most = max(
                int(count * _STINT / seconds), self.most // 2, 1
            )  # a host that stood still is no reason
        elif count >= self.most and seconds < 0.8 * _STINT:
            self.most = min(self.most + self.most // 4 + 1, self._limit)


async def breathe() -> None:
    """Let everybody else have the loop once: also those whose time has come, whom it puts behind who is ready."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)

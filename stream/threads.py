"""Blocking work beside the event loop, always awaited to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["in_thread"]

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` in a thread. Unlike `asyncio.to_thread`, a cancelled caller leaves only when the work has ended.

    A thread cannot be stopped: a commit that outlived its engine would change the store under the next one.
    """
    loop = asyncio.get_running_loop()
    running = loop.run_in_executor(None, lambda: work(*args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError:
                continue
        if not running.cancelled():
            running.exception()  # taken note of: the caller's leaving is what counts
        raise

"""An event loop whose time is made: nothing waits, so an hour passes in milliseconds, and always the same way."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

__all__ = ["Deadlock", "VirtualLoop", "run_virtually"]

T = TypeVar("T")
_THREAD_SECONDS = 0.001
"""Virtual time that work in a thread takes."""


class Deadlock(Exception):
    """Everybody waits for somebody else, or virtual time ran out."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time jumps to the next timer; work for a thread is done in the loop, a little later."""

    def __init__(self, until: float) -> None:
        self.now = 0.0
        self._until = until
        super().__init__(_NoSelector(self))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self.now

    def advance(self, seconds: float | None) -> None:
        """Let time pass. Raises Deadlock when there is no timer, or time is over."""
        if seconds is None or self.now > self._until:
            raise Deadlock(f"nothing moves after {self.now:.1f} virtual seconds")
        self.now += seconds

    def give_up(self) -> None:
        """No more time: nothing will come of it."""
        self._until = self.now

    def abandon(self) -> None:
        """Cancel what still runs, and let it end."""
        self._until = float("inf")
        if tasks := asyncio.all_tasks(self):
            for task in tasks:
                task.cancel()
            self.run_until_complete(asyncio.wait(tasks))
            for task in tasks:
                if not task.cancelled():
                    task.exception()

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Do the work at the end of its time, whether or not anybody still waits: a thread cannot be stopped."""
        future: asyncio.Future[T] = self.create_future()

        def work() -> None:
            try:
                result = func(*args)
            except BaseException as error:
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        self.call_later(_THREAD_SECONDS, work)
        return future


class _NoSelector(selectors.BaseSelector):
    """Watches nothing: a virtual loop has no sockets."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, 0, None)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout > 0:
            self._loop.advance(timeout)
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return {}

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        raise KeyError(fileobj)


def run_virtually(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]], *, until: float) -> T:
    """Run to the end in virtual time, at most `until` virtual seconds. Raises Deadlock."""
    loop = VirtualLoop(until)
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(main(loop))
    finally:
        loop.abandon()
        asyncio.set_event_loop(None)
        loop.close()

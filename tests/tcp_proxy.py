"""A TCP proxy on loopback whose network fails on command: reset, half-closed, stalled, one-way, cut or slow."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum

__all__ = ["PASS", "RESET", "STALL", "Fault", "TcpProxy", "Way", "tcp_proxy"]

_CHUNK = 65536
_SLICE = 0.02
"""Seconds of a slow link's bytes that are passed on at a time."""


class Way(Enum):
    """A direction."""

    TO_BROKER = "to the broker"
    TO_WORKER = "to the worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to every connection, those open now and those made while it lasts."""

    held: frozenset[Way] = frozenset()
    """Nothing passes in these directions, and the connection stays open; what waits passes afterwards."""
    ended: Way | None = None
    """A FIN is sent in this direction; the other one stays open."""
    reset_after: int | None = None
    """Both sides get a RST once so many bytes of a connection were passed on to the worker."""
    rate: float | None = None
    """Bytes per second in each direction."""


PASS = Fault()
RESET = Fault(reset_after=0)
STALL = Fault(held=frozenset(Way))


@dataclass(slots=True, eq=False)
class _Link:
    """One connection through the proxy: its two sockets, and the task of each direction."""

    worker: socket.socket
    broker: socket.socket
    task: asyncio.Task[None] | None = None
    pumps: dict[Way, asyncio.Task[None]] = field(default_factory=dict)
    passed: int = 0
    """Bytes passed on to the worker."""
    deliveries: Deliveries | None = None

    def sockets(self, way: Way) -> tuple[socket.socket, socket.socket]:
        """Where this direction's bytes come from, and where they go."""
        return (self.worker, self.broker) if way is Way.TO_BROKER else (self.broker, self.worker)

    def end(self, way: Way) -> None:
        """Send a FIN in this direction."""
        with contextlib.suppress(OSError):  # gone already
            self.sockets(way)[1].shutdown(socket.SHUT_WR)


class Deliveries:
    """What a broker sends on one connection, in frames, to leave out deliveries to a consumer."""

    def __init__(self, proxy: TcpProxy) -> None:
        self._proxy = proxy
        self._buffer = b""
        self._left: dict[int, int] = {}
        """Bytes of the body that are still to be lost, by channel; -1 before the header tells."""

    def rest(self, data: bytes) -> bytes:
        """Whole frames, without those of deliveries to be lost."""
        self._buffer += data
        kept = b""
        while len(self._buffer) >= 7:
            kind, channel, size = struct.unpack(">BHI", self._buffer[:7])
            if len(self._buffer) < size + 8:
                break
            frame, self._buffer = self._buffer[: size + 8], self._buffer[size + 8 :]
            if not self._lost(kind, channel, frame[7:-1]):
                kept += frame
        return kept

    def _lost(self, kind: int, channel: int, payload: bytes) -> bool:
        if (
            kind == 1 and payload[:4] == struct.pack(">HH", 60, 60) and self._proxy.losing >= 1
        ):  # basic.deliver
            self._proxy.losing -= 1
            self._left[channel] = -1
            return True
        if kind not in (2, 3) or channel not in self._left:
            return False
        if kind == 2:
            self._left[channel] = struct.unpack(">Q", payload[4:12])[0]
        else:
            self._left[channel] -= len(payload)
        if self._left[channel] == 0:
            del self._left[channel]
        return True


class TcpProxy:
    """Passes bytes between whoever connects to `port` and a server; `switch` makes it fail, or heal."""

    def __init__(self, listener: socket.socket, target: int, *, amqp: bool = False) -> None:
        self.port: int = listener.getsockname()[1]
        self.accepted = 0
        """Connections made to it so far."""
        self._listener = listener
        self._target = target
        self._fault = PASS
        self._switched = asyncio.Event()
        self._links: set[_Link] = set()
        self._amqp = amqp
        self.losing = 0.0
        """AMQP deliveries that are still to be lost; everything else passes."""

    def switch(self, fault: Fault) -> None:
        """From now on this happens, to open connections too."""
        self._fault = fault
        switched, self._switched = self._switched, asyncio.Event()
        switched.set()
        for link in self._links:
            if fault.reset_after is not None and link.passed >= fault.reset_after:
                self._reset(link)
            elif fault.ended is not None and fault.ended in link.pumps:
                link.pumps[fault.ended].cancel()
                link.end(fault.ended)

    async def serve(self) -> None:
        """Accept until cancelled; every connection ends with it."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            while True:
                accepted, _ = await loop.sock_accept(self._listener)
                self.accepted += 1
                link = _Link(accepted, socket.socket())
                link.deliveries = Deliveries(self) if self._amqp else None
                link.task = tasks.create_task(self._serve(link))

    async def _serve(self, link: _Link) -> None:
        link.worker.setblocking(False)
        link.broker.setblocking(False)
        self._links.add(link)
        clean = False
        try:
            await asyncio.get_running_loop().sock_connect(link.broker, ("127.0.0.1", self._target))
            if self._fault.reset_after == 0:
                return
            async with asyncio.TaskGroup() as tasks:
                link.pumps = {way: tasks.create_task(self._pump(link, way)) for way in Way}
            clean = True
        except* OSError:  # one side was reset: so is the other
            pass
        finally:
            self._links.discard(link)
            for end in (link.worker, link.broker):
                if not clean:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.close()

    async def _pump(self, link: _Link, way: Way) -> None:
        loop = asyncio.get_running_loop()
        source, sink = link.sockets(way)
        while self._fault.ended is not way:
            rate = self._fault.rate
            data = await loop.sock_recv(source, _CHUNK if rate is None else max(1, int(rate * _SLICE)))
            while way in self._fault.held:
                await self._switched.wait()
            if not data:
                break
            if link.deliveries is not None and way is Way.TO_WORKER:
                data = link.deliveries.rest(data)
            limit = self._fault.reset_after
            if limit is not None and way is Way.TO_WORKER:
                data = data[: max(limit - link.passed, 0)]
            await loop.sock_sendall(sink, data)
            if way is Way.TO_WORKER:
                link.passed += len(data)
                if limit is not None and link.passed >= limit:
                    self._reset(link)
            if rate is not None:
                await asyncio.sleep(len(data) / rate)
        link.end(way)

    def _reset(self, link: _Link) -> None:
        if link.task is not None:
            link.task.cancel()


@contextlib.asynccontextmanager
async def tcp_proxy(target: int, *, amqp: bool = False) -> AsyncIterator[TcpProxy]:
    """A proxy to this loopback port, in the loop of the test, gone at the end. `amqp`: it can lose deliveries."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        proxy = TcpProxy(listener, target, amqp=amqp)
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(proxy.serve())
            try:
                yield proxy
            finally:
                serving.cancel()

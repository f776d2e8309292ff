"""The worker's HTTP: /metrics for Prometheus, /healthz (alive) and /readyz (consuming)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stream.errors import ConfigError, Problem
from stream.metrics import CONTENT_TYPE, Metrics

__all__ = ["bind", "serving"]


def bind(address: str) -> socket.socket:
    """A listening socket at `HOST:PORT`. Raises ConfigError when that cannot be had."""
    host, _, port = address.rpartition(":")
    try:
        return socket.create_server((host.strip("[]") or "127.0.0.1", int(port)), backlog=64)
    except (OSError, ValueError, OverflowError) as error:
        hint = "give another one with --http HOST:PORT, or none with --http off"
        raise ConfigError([Problem("--http", f"cannot listen on {address}: {error}; {hint}")]) from error


@contextlib.asynccontextmanager
async def serving(
    listener: socket.socket, metrics: Metrics, problems: Callable[[], dict[str, str]]
) -> AsyncIterator[None]:
    """Serve while the block runs. `problems` names what keeps the worker from being ready; empty means ready."""

    def exposition(_: Request) -> Response:
        return Response(metrics.exposition(), media_type=CONTENT_TYPE)

    async def alive(_: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(_: Request) -> Response:
        found = problems()
        return JSONResponse(
            {"status": "not ready" if found else "ready", "topologies": found},
            status_code=503 if found else 200,
        )

    routes = [Route("/metrics", exposition), Route("/healthz", alive), Route("/readyz", ready)]
    config = uvicorn.Config(
        Starlette(routes=routes),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
    )
    server = _Server(config)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(server.serve(sockets=[listener]))
        try:
            yield
        finally:
            server.should_exit = True
            await task


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers: stopping is the runtime's business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

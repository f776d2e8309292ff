"""The worker's HTTP: /metrics for Prometheus, /healthz (alive), /readyz (consuming), commands, MLflow's webhooks.

Everybody who reaches it may read. Only who has the token may change something, and without one nobody. A webhook,
signed with a secret, changes nothing: it has the registry asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stream import log
from stream.commands import Asked, largest, limit
from stream.control import Control
from stream.errors import ConfigError, Problem
from stream.metrics import CONTENT_TYPE, Metrics, WebhookOutcome
from stream.webhooks import WebhookRefused, Webhooks

__all__ = ["bind", "read_token", "serving"]

_LARGEST = 65_536
"""Bytes of a request's body; those of some commands are larger."""
_HEARD_OUT = 4
"""Times as many bytes as it may have are taken from a sender, and thrown away, before it is told: while it sends it
hears nothing."""
_PATIENCE, _WITH_DATA = 10.0, 60.0
"""Seconds for a body to come; for one with readings, from who has the token."""


def bind(address: str) -> socket.socket:
    """A listening socket at `HOST:PORT`. Raises ConfigError when that cannot be had."""
    host, _, port = address.rpartition(":")
    try:
        return socket.create_server((host.strip("[]") or "127.0.0.1", int(port)), backlog=64)
    except (OSError, ValueError, OverflowError) as error:
        hint = "give another one with --http HOST:PORT, or none with --http off"
        raise ConfigError([Problem("--http", f"cannot listen on {address}: {error}; {hint}")]) from error


def read_token(file: Path, option: str = "--http-token-file") -> str:
    """The token or secret in a file that an option names.

    Raises ConfigError on a file that is empty, or open to others."""
    problem = f"{file} is empty: write a long random text into it"
    try:
        with file.open(encoding="utf-8") as opened:
            mode, token = os.fstat(opened.fileno()).st_mode, opened.read(_LARGEST).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(option, str(error))]) from error
    if mode & 0o007:
        problem, token = f"{file} is open to every user of this host: chmod 600 {file}", ""
    if not token:
        raise ConfigError([Problem(option, problem)])
    return token


@contextlib.asynccontextmanager
async def serving(
    listener: socket.socket,
    metrics: Metrics,
    problems: Callable[[], dict[str, str]],
    *,
    control: Callable[[str], Control | None],
    token: str | None = None,
    webhooks: Webhooks | None = None,
    hint: Callable[[str, str], Sequence[str]] = lambda model, alias: (),
) -> AsyncIterator[None]:
    """Serve while the block runs. `problems` names what keeps the worker from being ready; empty means ready.

    `control` finds who takes a topology's commands (see `Worker.control`), `hint` has those ask the registry who
    follow an alias (see `Worker.hint`).
    """

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

    async def command(request: Request) -> Response:
        if (refused := _barred(request, token)) is not None:
            return refused
        try:
            found = control(request.path_params["topology"])
        except KeyError:
            return _error(404, "no topology of this name runs in this worker")
        verb = request.path_params["verb"]
        large = largest(verb) > _LARGEST
        body = await _body(request, max(largest(verb), _LARGEST), _WITH_DATA if large else _PATIENCE)
        if isinstance(body, Response):
            return _error(413, f"the body is too large: {limit(verb)}") if body.status_code == 413 else body
        asked = Asked(verb, body or b"{}", by="http", via="http", id=uuid.uuid4().hex)
        receipt = await found.ask(asked) if found is not None else None
        if receipt is None:
            wait = {"Retry-After": "1"}
            return _error(503, "the topology is starting, or busy: send the command again, with an id", wait)
        return JSONResponse(receipt, status_code={"applied": 200, "running": 202}.get(receipt["status"], 409))

    async def webhook(request: Request) -> Response:
        try:
            woken = hint(*await _told(request, webhooks))
        except WebhookRefused as refused:
            metrics.webhooks.labels(refused.outcome).inc()
            if refused.outcome == "ignored":
                return JSONResponse({"woken": []})
            peer = request.client.host if request.client else None
            log.limited("webhook_refused", f"webhook/{refused.outcome}", peer=peer, reason=str(refused))
            return _error(refused.status, str(refused))
        metrics.webhooks.labels("woken" if woken else "unknown").inc()
        if not woken:
            return _error(404, "the signature is right, but no topology of this worker follows this alias")
        return JSONResponse({"woken": list(woken)}, status_code=202)

    routes = [
        Route("/metrics", exposition),
        Route("/healthz", alive),
        Route("/readyz", ready),
        Route("/topologies/{topology}/{verb}", command, methods=["POST"]),
        Route("/webhooks/mlflow", webhook, methods=["POST"]),
    ]
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


def _barred(request: Request, token: str | None) -> Response | None:
    """Why a request may change nothing; None when it may."""
    if token is None:
        return _error(
            403, "this worker takes no commands over HTTP: start it with --http-token-file, or use mmlw"
        )
    scheme, _, stated = request.headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(stated.strip().encode("latin-1"), token.encode())
    if scheme.lower() == "bearer" and same:
        return None
    log.limited("http_unauthorized", "http", peer=request.client.host if request.client else None)
    challenge = {"WWW-Authenticate": "Bearer"}
    return _error(401, "state the token: Authorization: Bearer TOKEN", challenge)


async def _told(request: Request, webhooks: Webhooks | None) -> tuple[str, str]:
    """The model and the alias that a webhook of MLflow's tells of. Raises WebhookRefused."""
    if webhooks is None:
        raise WebhookRefused(
            "no_secret", 403, "this worker takes no webhooks: start it with --webhook-secret-file"
        )
    body = await _body(request)
    if isinstance(body, Response):
        outcome: WebhookOutcome = "too_large" if body.status_code == 413 else "incomplete"
        raise WebhookRefused(
            outcome, body.status_code, f"{outcome}: at most {_LARGEST} bytes, in {_PATIENCE:g} s"
        )
    moved = webhooks.check(request.headers, body)
    if moved is None:
        raise WebhookRefused("ignored", 200, "not of an alias that moved")
    return moved.name, moved.alias


async def _body(request: Request, most: int = _LARGEST, patience: float = _PATIENCE) -> bytes | Response:
    """The body, or why it is not taken."""
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(patience):
            async for part in request.stream():
                size += len(part)
                if size <= most:
                    body += part
                elif size > _HEARD_OUT * most:
                    break
    except TimeoutError:
        if size <= most:
            return _error(408, f"the body did not come within {patience:g} s")
    if size > most:
        return _error(413, f"a body has at most {most} bytes")
    return bytes(body)


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": text}, status_code=status, headers=headers)


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers: stopping is the runtime's business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

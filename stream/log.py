"""Structured logs: for people on a terminal, as JSON lines elsewhere. Never a payload, never a secret."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from typing import Literal, TextIO, cast

import structlog

__all__ = ["configure", "get", "limited"]

_EVERY = 10.0
"""Seconds between two warnings of one kind."""
_silent: dict[str, tuple[float, int]] = {}


class _Patient:
    """A file that loses what cannot be written, on a full disk above all: a log stops nobody."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._file.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()


def configure(form: Literal["auto", "console", "json"] = "auto", level: str = "info") -> None:
    """Set up logging to standard error; `auto` is `console` on a terminal and `json` elsewhere."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    tail: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=shared + tail,
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Patient(sys.stderr))),
        cache_logger_on_first_use=False,
    )
    # Drivers log through the standard library; their errors reach us as exceptions and are said once, by us.
    logging.basicConfig(level=logging.CRITICAL, stream=sys.stderr, force=True)


def get() -> structlog.typing.FilteringBoundLogger:
    """The logger; bind nothing global to it."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger("mmlw")
    return logger


def limited(event: str, key: str, **fields: object) -> None:
    """A warning that may come thousands of times: one in ten seconds for each key, with how many were left out."""
    now = time.monotonic()
    until, left_out = _silent.get(key, (0.0, 0))
    if now < until:
        _silent[key] = (until, left_out + 1)
        return
    _silent[key] = (now + _EVERY, 0)
    get().warning(event, **fields, left_out=left_out)

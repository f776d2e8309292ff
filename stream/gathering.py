"""A stream's past, from its messages to a history: decoded, each once, numbered as the engine numbers them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
import numpy as np
import pandas as pd

from stream.brokers.base import Delivery
from stream.deadletters import replayed
from stream.histories import History, Order
from stream.instants import nanoseconds
from stream.readings import Batch, Decoder
from stream.spans import Span
from stream.topology import Source

__all__ = ["Gathered", "Undecoded", "messages_of", "undecoded"]


class Undecoded(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A message as it came, with all that decoding and numbering it takes."""

    body: bytes
    routing_key: str
    content_type: str
    offset: int
    letter: str | None
    """The dead letter that was sent back in it; the routing key is then that of the message it first was."""


def undecoded(delivery: Delivery) -> Undecoded:
    """What is needed of a delivery."""
    origin = replayed(delivery)
    letter, first = (None, delivery) if origin is None else origin
    return Undecoded(first.body, first.routing_key, first.content_type, delivery.offset, letter)


def messages_of(source: Source, rows: int | None) -> int | None:
    """How many messages hold so many rows, at the most: of a narrow layout a row is of several."""
    return rows if rows is None or source.layout != "narrow" else rows * len(source.sensors)


class Gathered:
    """Decoded batches, with what the engine would number them by; with `newest` only those that hold the last so
    many rows, and a few more."""

    def __init__(self, source: Source, newest: int | None) -> None:
        self._newest = messages_of(source, newest)
        self._rows = 0
        self._decoder = Decoder(source, time.time)
        self._narrow = source.layout == "narrow"
        self._batches: list[Batch] = []
        self._offsets: list[int] = []
        self._replayed: list[bool] = []
        self._letters: set[str] = set()

    def add(self, messages: Sequence[Undecoded]) -> None:
        """Decode these; what cannot be used is left out. A dead letter that was sent back comes once."""
        fresh: list[Delivery] = []
        before = len(self._offsets)
        for it in messages:
            if it.letter is not None:
                if it.letter in self._letters:
                    continue
                self._letters.add(it.letter)
            fresh.append(_delivery(it))
            self._offsets.append(it.offset)
            self._replayed.append(it.letter is not None)
        batch, _ = self._decoder.decode(fresh)
        batch.messages[:] += before
        self._batches.append(batch)
        self._rows += len(batch)
        while self._newest is not None and self._rows - len(self._batches[0]) >= self._newest:
            self._rows -= len(self._batches.pop(0))

    def history(self, name: str, span: Span) -> History:
        """All of it, within the span's times."""
        found = self._batches or [self._decoder.decode([])[0]]
        times = np.concatenate([batch.times for batch in found])
        keep = np.ones(len(times), np.bool_)
        if span.since is not None:
            keep &= times >= span.since
        if span.until is not None:
            keep &= times < span.until
        whole = Batch(
            [machine for batch in found for machine in batch.machines],
            times,
            np.concatenate([batch.values for batch in found]),
            np.concatenate([batch.messages for batch in found]),
            np.concatenate([batch.rows for batch in found]),
            np.concatenate([batch.seqs for batch in found]),
        ).select(keep)
        instants = pd.to_datetime(nanoseconds(whole.times), utc=True)
        order = Order(
            np.array(self._offsets, np.int64)[whole.messages],
            whole.rows,
            whole.seqs,
            whole.messages,
            np.array(self._replayed, np.bool_)[whole.messages],
            self._narrow,
        )
        stamps = pd.Series(instants.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), dtype=str)
        return History(name, stamps, whole.times, whole.values, whole.machines, order=order)


def _delivery(message: Undecoded) -> Delivery:
    return Delivery(
        body=message.body,
        exchange="",
        routing_key=message.routing_key,
        offset=message.offset,
        tag=0,
        received=0.0,
        content_type=message.content_type,
    )

"""What was seen of a simulated life from outside: all that the auditor has to go by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stream.brokers.base import Delivery
from stream.simulation.schedule import Schedule
from stream.state import Saved
from stream.topology import Topology

__all__ = ["Committed", "Loaded", "Moved", "Outcome", "Reading"]


class Reading(NamedTuple):
    """One reading of the source by one engine: where it began, what was delivered to it, in order.

    `start` is the position that was loaded (-1: none). `seen` are offsets of a stream, or which of the queue's
    messages they were, counted from 0 as they were published."""

    start: int
    seen: list[int]


class Loaded(NamedTuple):
    """An engine begins from what the store holds. `again`: what lies behind may have been scored before."""

    position: int
    again: bool


class Committed(NamedTuple):
    """A transaction of the store: the position in it, a pause or its end, and the commands of which it holds a
    receipt."""

    position: int
    paused: bool | None
    commands: tuple[str, ...]
    at: float
    """Virtual seconds."""


class Moved(NamedTuple):
    """The registry's alias means another version from a virtual second on. `ours`: by a promotion of the worker."""

    at: float
    version: int
    ours: bool


@dataclass
class Outcome:
    """What was seen from outside, for the auditor."""

    schedule: Schedule
    topology: Topology
    published: list[Delivery]
    """Everything that reached the source, in order; `offset` is the stream's, or a queue's number from 0."""
    lives: list[Reading] = field(default_factory=list)
    story: list[Loaded | Committed] = field(default_factory=list)
    """What was loaded and committed, in order."""
    moves: list[Moved] = field(default_factory=list)
    alerts: list[Delivery] = field(default_factory=list)
    dead: list[Delivery] = field(default_factory=list)
    replies: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    """Answers, each with the number of the command in the schedule, from 0."""
    hasty: list[Mapping[str, Any]] = field(default_factory=list)
    """Receipts that went out before the store had a word of the command."""
    saved: Saved = field(default_factory=Saved)
    refused_damage: bool = False
    used_damage: bool = False
    """Whether a worker refused a damaged checkpoint, and whether one went on from it."""
    took_stranger: bool = False
    """Whether a worker went on in a stream that is not the one it had read."""
    gaps: float = 0
    conserved: bool = True
    counted: list[tuple[int, int, Mapping[str, float]]] = field(default_factory=list)
    """Of processes that were not killed: behind which place they committed, up to which, and what they counted."""
    miscounted: list[tuple[float, int]] = field(default_factory=list)
    """Messages that a process told it had dealt with, and how many it had committed, where these differ."""
    stuck: str = ""
    crashes: int = 0
    killed: int = 0
    """Deaths of those over a reading that kills whoever scores it."""

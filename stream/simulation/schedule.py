"""One simulated life as plain data: who sends what, which commands come, and what goes wrong where."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

import msgspec

__all__ = [
    "DEADLY",
    "KILLER",
    "ODD",
    "RAISING",
    "START",
    "Command",
    "Fault",
    "Kind",
    "Move",
    "Op",
    "Reading",
    "Schedule",
]

Op = Literal[
    "load", "commit", "connect", "declare", "consume", "receive", "publish", "ack", "answer", "ask", "note"
]
"""A place where the worker touches the world."""
Kind = Literal["crash", "disconnect", "fail", "full", "torn", "relapse", "silent", "deaf", "part"]
"""What goes wrong there: the process dies; the connection is lost; the operation fails; the disk is full for a
while; the process dies and leaves a damaged checkpoint; it dies, and the next one ends in order at its start; the
consumer gets nothing more; it is sent everything and hears nothing of it; only a part of the messages arrives before
the connection is lost."""

START = 1_722_988_800.0
"""Epoch seconds at which a simulation begins."""
KILLER = 666.0
"""A reading of this value kills the process that scores it."""
RAISING, ODD = 777.0, 778.0
"""Over a reading of the first value the detector raises, and its score of the other is not a number."""
DEADLY: tuple[Kind, ...] = ("crash", "torn", "relapse")
"""The process dies of these."""


class Fault(msgspec.Struct, frozen=True):
    """The `nth` time (from 1) that the worker does `op`, this goes wrong, before or after its effect."""

    op: Op
    nth: int
    kind: Kind
    after: bool = False


class Reading(msgspec.Struct, frozen=True):
    """A message that a machine publishes at a virtual second."""

    at: float
    machine: str
    body: str


class Command(msgspec.Struct, frozen=True):
    """A control message at a virtual second."""

    at: float
    verb: Literal["swap", "rollback", "shadow", "promote", "pause", "resume", "accept", "label", "status"]
    id: str
    issued: float
    """When it was decided; it may have been long on its way."""
    model: str | None = None
    detector: str | None = None
    machine: str | None = None
    label: str | None = None
    learn: bool | None = None
    by: Literal["operator", "stranger"] = "operator"
    """Who sends it; a stranger is on no topology's list."""
    expires: float | None = None
    """Seconds after it was issued for which it is good."""

    @property
    def body(self) -> bytes:
        """Of the message that carries it."""
        names = ("id", "model", "machine", "detector", "label", "learn", "expires")
        stated = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return json.dumps({**stated, "issued": START + self.issued}).encode()

    @property
    def digest(self) -> str:
        """Of its body, as the audit has it."""
        return hashlib.sha256(self.body).hexdigest()


class Move(msgspec.Struct, frozen=True):
    """At a virtual second somebody moves the alias in the registry to another version. `told`: a webhook says so."""

    at: float
    version: int
    told: bool


class Schedule(msgspec.Struct, frozen=True):
    """One simulated life of a worker."""

    seed: int
    source: Literal["stream", "queue"]
    max_batch: int
    every: float
    after: int
    segment: int
    """Messages after which the stream skips an offset; 0: never."""
    resident: int
    """Machines that fit in memory."""
    most: int
    """Machines that are taken at all."""
    late: Literal["drop", "deadletter"]
    """What becomes of a late reading."""
    readings: tuple[Reading, ...]
    commands: tuple[Command, ...]
    faults: tuple[Fault, ...]
    replays: tuple[float, ...] = ()
    """Virtual seconds at which an operator sends all dead letters back that killed nobody."""
    retention: tuple[tuple[float, int], ...] = ()
    """At a virtual second, the broker forgets all but so many of the newest messages."""
    down: float = 0.05
    """Seconds until a process that ended is started again."""
    eager: bool = False
    """When something goes wrong, the next command is sent at once."""
    rollback: str = ""
    """The alerts after which a swap is taken back by itself; empty: never."""
    within: float = 1000.0
    """Seconds, by the readings' times, for which a swap is watched."""
    stops: tuple[tuple[int, float], ...] = ()
    """The process of this number, from 1, is stopped in order so many seconds after its start; a deploy."""
    poll: float = 0.0
    """Seconds between two looks at the alias; 0: it is not followed."""
    moves: tuple[Move, ...] = ()
    full: int = 0
    """Everything that a topology may have is in it, in one of two ways; 0: what the auditor works out by itself."""
    stranger: Literal["", "other", "shorter"] = ""
    """In the end another stream is put in place of the one that was read, with other messages, or fewer."""

    def text(self) -> str:
        """A few lines for a person."""
        lines = [
            f"seed {self.seed}: {self.source}, {len(self.readings)} readings, batches of {self.max_batch}, "
            f"commit every {self.every} s or {self.after}, segment {self.segment}, {self.resident} in memory, "
            f"{self.most} at most, late: {self.late}"
        ]
        lines += [
            f"  {'after' if fault.after else 'before'} {fault.op} number {fault.nth}: {fault.kind}"
            for fault in self.faults
        ]
        if self.full:
            lines.append(
                f"  a full topology, number {self.full}; compared with a run in which nothing goes wrong"
            )
        if self.rollback:
            lines.append(f"  a swap is taken back after alerts {self.rollback} within {self.within:g} s")
        if self.poll:
            lines.append(f"  the alias is followed, and looked at every {self.poll:g} s")
        told = {True: "a webhook tells", False: "nobody tells"}
        lines += [f"  at {m.at:.2f} s: the alias moves to {m.version}, {told[m.told]}" for m in self.moves]
        lines += [f"  process {n} is stopped in order after {after:.4f} s" for n, after in self.stops]
        lines += [f"  at {at:.2f} s: dead letters are sent back" for at in self.replays]
        lines += [f"  at {at:.2f} s: retention keeps {keep} messages" for at, keep in self.retention]
        for c in self.commands:
            good = "" if c.expires is None else f", good for {c.expires:.4f} s"
            who = "" if c.by == "operator" else f" by a {c.by}"
            lines.append(f"  at {c.at:.2f} s: {c.verb} {c.model or c.machine or ''} ({c.id}){who}{good}")
        return "\n".join(lines)

"""What is saved between runs, as data, and the port to where it is kept.

A store changes state, position, models and commands together or not at all: everything a topology knows
after a restart comes from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from detectors.base import Rows

__all__ = ["Changes", "Group", "ModelRows", "Saved", "Store", "StreamPosition"]


ModelRows = Mapping[str, tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]]
"""Rows of the table of models, two documents by name; None forgets one."""


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """Where reading goes on: the last message processed, and a fingerprint to know the stream by.

    In a stream `last_offset` is the broker's; a queue has none, so there it counts the messages processed.
    """

    last_offset: int = -1
    fingerprint: str = ""

    @property
    def next_offset(self) -> int:
        """The first offset not processed."""
        return self.last_offset + 1


class Group(NamedTuple):
    """Machines with the rows of their state, by table name; the first axis of every array is the machine."""

    machines: Sequence[str]
    components: Mapping[str, Rows]


@dataclass(slots=True)
class Changes:
    """What one commit changes. `components` holds the rows of `machines`, by table name."""

    position: StreamPosition
    machines: Sequence[str] = ()
    components: Mapping[str, Rows] = field(default_factory=dict)
    models: ModelRows = field(default_factory=dict)
    """Detector -> (current, previous) model reference, where a swap changed it; and what `Beside.rows` tells of
    shadows and probations, and `Follower` of aliases that are followed."""
    commands: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Command id -> receipt, of commands carried out."""
    audit: Sequence[Mapping[str, Any]] = ()
    """A line for every command that came, carried out or refused."""
    replays: Sequence[str] = ()
    """Ids of dead letters that were replayed and processed."""
    paused: bool | None = None
    running: bool | None = None
    unsettled: bool | None = None
    """None forgets the message that was being tried."""


@dataclass(slots=True)
class Saved:
    """What the store held. State whose recipe has changed since is left out, its table named in `forgotten`."""

    position: StreamPosition = StreamPosition()
    groups: Sequence[Group] = ()
    """The machines seen last, at most as many as asked for; the others are fetched when they come again."""
    stored: int = 0
    """How many machines there are in all."""
    names: Sequence[str] = ()
    """The names of all of them."""
    models: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = field(default_factory=dict)
    """As in `Changes`, without shadows that have ended."""
    commands: dict[str, dict[str, Any]] = field(default_factory=dict)
    audit: Sequence[Mapping[str, Any]] = ()
    """The last lines, oldest first."""
    replays: frozenset[str] = frozenset()
    paused: bool = False
    died: bool = False
    """The process ended without saying so: killed, crashed, or cut from power."""
    unsettled: bool = False
    """It ended in order, and messages behind the position may have been scored, and their alerts told."""
    note: bytes = b""
    """The last one (see `Store.note`)."""
    forgotten: tuple[str, ...] = ()

    @property
    def machines(self) -> list[str]:
        """The names of the machines in `groups`."""
        return [machine for group in self.groups for machine in group.machines]


class Store(Protocol):
    """Where a topology's state is kept. Methods block: they are called from a thread, one at a time."""

    def load(self, most: int) -> Saved:
        """Everything that was committed, with the state of `most` machines. Raises CheckpointError on damage."""
        ...

    def fetch(self, machines: Sequence[str]) -> Sequence[Group]:
        """The state of those of these machines that are known. Raises CheckpointError on damage."""
        ...

    def commit(self, changes: Changes) -> int:
        """All of it or nothing, safe when this returns: bytes in use. Raises CheckpointError, CheckpointFull."""
        ...

    def note(self, note: bytes) -> None:
        """Keep this over the process' death, not over a power cut; called while nothing else is."""
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...

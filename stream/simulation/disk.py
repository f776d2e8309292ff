"""The simulated store: what survives the process, and where a disk fails."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stream.errors import CheckpointError
from stream.simulation.outcome import Committed, Loaded
from stream.state import Changes, Group, Saved

if TYPE_CHECKING:
    from stream.simulation.world import World

__all__ = ["Disk", "SimulatedStore"]


class Disk:
    """What survives the process: the contents of the store."""

    def __init__(self) -> None:
        self.saved = Saved()
        self.rows: dict[str, dict[str, dict[str, Any]]] = {}
        self.seen: dict[str, int] = {}
        self.note = b""
        self.damaged = False
        self.fails_once = False
        self.full_until = -1.0


class SimulatedStore:
    """A `Store` on the simulated disk."""

    def __init__(self, world: World) -> None:
        self._world = world

    def load(self, most: int) -> Saved:
        """See `Store`."""
        disk = self._world.disk
        self._world.blocking("load", False)
        if disk.damaged:
            self._world.outcome.refused_damage = True
            raise CheckpointError("simulated damage")
        if disk.fails_once and most:
            disk.fails_once = False
            raise CheckpointError("simulated: cannot be read")
        self._world.blocking("load", True)
        saved = copy.copy(disk.saved)
        saved.note = disk.note
        if most:  # otherwise somebody only looks
            self._world.looks = 0
            self._world.outcome.story.append(
                Loaded(saved.position.last_offset, saved.died or saved.unsettled)
            )
        names = sorted(disk.rows, key=lambda name: -disk.seen[name])[:most]
        saved.groups, saved.stored = self.fetch(names), len(disk.rows)
        saved.models, saved.commands, saved.audit = (
            dict(saved.models),
            dict(saved.commands),
            saved.audit[-100:],
        )
        return saved

    def fetch(self, machines: Sequence[str]) -> list[Group]:
        """See `Store`."""
        disk = self._world.disk
        found = []
        for machine in machines:
            if machine in disk.rows:
                tables = disk.rows[machine].items()
                rows = {name: {k: v[np.newaxis].copy() for k, v in row.items()} for name, row in tables}
                found.append(Group([machine], rows))
        return found

    def commit(self, changes: Changes) -> int:
        """See `Store`."""
        world, disk = self._world, self._world.disk
        world.blocking("commit", False)
        world.outcome.used_damage |= disk.damaged
        saved = copy.copy(disk.saved)
        saved.position = changes.position
        models = {
            **saved.models,
            **{name: tuple(map(_copied, pair)) for name, pair in changes.models.items()},
        }
        saved.models = {name: pair for name, pair in models.items() if pair[0] is not None}
        saved.commands = {**saved.commands, **{key: dict(value) for key, value in changes.commands.items()}}
        saved.audit = [*saved.audit, *map(dict, changes.audit)]
        saved.replays = saved.replays | set(changes.replays)
        if changes.paused is not None:
            saved.paused = changes.paused
        if changes.running is not None:
            saved.died = changes.running
        if changes.unsettled is not None:
            saved.unsettled = changes.unsettled
        disk.saved = saved
        for i, machine in enumerate(changes.machines):
            disk.rows[machine] = {
                name: {key: np.array(column[i]) for key, column in rows.items()}
                for name, rows in changes.components.items()
            }
            disk.seen[machine] = changes.position.last_offset
        position, commands = changes.position.last_offset, tuple(changes.commands)
        world.committed(Committed(position, changes.paused, commands, world.loop.now))
        world.blocking("commit", True)
        return 0

    def note(self, note: bytes) -> None:
        """See `Store`."""
        self._world.strike("note", False)
        self._world.disk.note = note
        self._world.strike("note", True)

    def close(self) -> None:
        """See `Store`."""


def _copied(row: Mapping[str, Any] | None) -> Any:
    return None if row is None else dict(row)

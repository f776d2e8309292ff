"""Following an alias: where it moves in the registry, the model is swapped by a command that is carried out once.

An event is an alias that means another version than it did when this topology last looked, which its checkpoint
keeps. What serves is not looked at: it may differ on purpose, after a rollback or a swap by command. A webhook only
has the registry asked sooner; what it says is not believed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

import msgspec

from stream import log
from stream.commands import Asked
from stream.errors import MmlwError, ModelError
from stream.metrics import TopologyMetrics, Way
from stream.references import ModelVersion, parse_uri
from stream.shelf import Shelf
from stream.state import ModelRows
from stream.topology import Topology
from stream.verbs import ModelHistory

__all__ = ["Due", "Follower", "Seen", "Turn"]

_KEY = "follow:"
_LONGEST = 300.0
"""Seconds between two attempts at a registry that does not answer, at the most (or `poll`, where that is more)."""


class Seen(msgspec.Struct, frozen=True):
    """What an alias meant when it was last looked at, as the checkpoint keeps it."""

    declared: str
    """The address that the topology named then; empty while it does not follow."""
    version: int
    digest: str = ""
    """Of its content; empty where the version is code."""
    moves: int = 0
    """How often the alias was seen to move: a number that no two moves share."""
    pointed: int | None = None
    """The version that a promotion was about to have the alias mean. Such a move is ours, and no event."""

    def means(self, found: ModelVersion) -> bool:
        """Whether the alias still means what it did."""
        return self.version == found.version and (found.ref is None or found.ref.digest == self.digest)


@dataclass(frozen=True, slots=True)
class Due:
    """What came of a look: a command, or None where there is only something to remember."""

    asked: Asked | None
    kept: ModelRows
    """What to commit with it."""
    done: Callable[[], None] = lambda: None
    """Called when that is committed."""


Turn = Callable[[Callable[[], Awaitable[Due | None]]], Awaitable[None]]
"""Finds out what is due while no command is carried out, and carries it out before the next one."""


class Follower:
    """Follows the aliases of a topology's batch detectors that say `follow`. `saved` are the checkpoint's rows."""

    def __init__(
        self,
        topology: Topology,
        *,
        shelf: Shelf | None,
        models: Mapping[str, ModelHistory],
        saved: ModelRows,
        metrics: TopologyMetrics,
    ) -> None:
        self._topology = topology.name
        self._shelf = shelf
        self._models = models
        self._metrics = metrics
        self._specs = {name: spec for name, spec in topology.registry_models.items() if spec.follow}
        self._hints = {name: asyncio.Event() for name in self._specs}
        self._seen: dict[str, Seen] = {}
        self._fresh: dict[str, Seen] = {}
        """What the checkpoint does not hold yet."""
        self._moves: dict[str, int] = {}
        for key, row in saved.items():
            if key.startswith(_KEY) and row[0] is not None:
                self._restore(key.removeprefix(_KEY), msgspec.convert(row[0], Seen))
        for name in self._specs.keys() - self._seen.keys():
            self._begin(name)

    def _restore(self, name: str, seen: Seen) -> None:
        self._moves[name] = seen.moves
        if name in self._specs and seen.declared == self._specs[name].model:
            self._seen[name] = seen
        elif name not in self._specs and seen.declared:
            self._fresh[name] = msgspec.structs.replace(seen, declared="")  # what moves now is no event later

    def _begin(self, name: str) -> None:
        """A model that was never swapped is what its alias meant; of one that was, the first look tells."""
        history = self._models[name]
        if history.previous is None:
            now = history.current
            seen = Seen(self._specs[name].model, now.version, now.digest, self._moves.get(name, 0))
            self._seen[name] = self._fresh[name] = seen

    def hint(self, model: str, alias: str) -> None:
        """Somebody says that an alias has moved: have the registry asked, if it is followed."""
        for name, spec in self._specs.items():
            if (spec.name, spec.alias) == (model, alias):
                self._hints[name].set()

    def pointing(self, detector: str, version: int) -> ModelRows:
        """What to commit with a promotion: it is about to have the alias mean this version."""
        if (seen := self._seen.get(detector)) is None:
            return {}
        self._seen[detector] = msgspec.structs.replace(seen, pointed=version)
        return _kept({detector: self._seen[detector]})

    async def run(self, turn: Turn) -> None:
        """Look again and again, until cancelled."""
        if self._fresh:
            fresh = Due(None, _kept(self._fresh))
            await turn(lambda: _now(fresh))
        async with asyncio.TaskGroup() as tasks:
            for name in self._specs:
                tasks.create_task(self._follow(name, turn))

    async def _follow(self, name: str, turn: Turn) -> None:
        rule, hint, failures = self._specs[name].follow, self._hints[name], 0
        assert rule is not None  # noqa: S101 - else it is not among those that follow
        while True:
            way: Way = "webhook" if hint.is_set() else "poll"
            hint.clear()
            try:
                await self._look(name, way, turn)
                failures = 0
            except Exception as error:  # whatever a registry brings up must not stop the topology
                if isinstance(error, MmlwError) and not isinstance(error, ModelError):
                    raise  # broker or checkpoint: the runtime starts anew
                failures += 1
                self._metrics.poll_failed(name)
                where = {"topology": self._topology, "detector": name}
                cause = str(error) or repr(error)
                key = f"{self._topology}/{name}/registry"
                log.limited("registry_poll_failed", key, **where, failures=failures, cause=cause)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_pause(rule.poll, failures)):
                    await hint.wait()

    async def _look(self, name: str, way: Way, turn: Turn) -> None:
        found, seen = await self._ask(name), self._seen.get(name)
        if seen is None or seen.pointed is not None or not seen.means(found):
            await turn(partial(self._due, name, way))

    async def _ask(self, name: str) -> ModelVersion:
        """What the alias means now. Raises ModelError."""
        assert self._shelf is not None  # noqa: S101 - checked when the worker was made
        address = parse_uri(self._specs[name].model)
        return await asyncio.to_thread(self._shelf.meaning, address.name, str(address.alias))

    async def _due(self, name: str, way: Way) -> Due | None:
        """Ask again, now that no promotion can be moving the alias, and say what is to be done."""
        found, seen = await self._ask(name), self._seen.get(name)
        spec, serving = self._specs[name], self._models[name].current
        moved = seen is not None and not seen.means(found)
        ours = seen is not None and found.version == seen.pointed
        digest = "" if found.ref is None else found.ref.digest
        moves = (self._moves.get(name, 0) if seen is None else seen.moves) + moved
        now = Seen(spec.model, found.version, digest, moves)
        if now == seen:
            return None
        serves = found.version == serving.version and digest in ("", serving.digest)
        kept, asked = _kept({name: now}), None
        if moved and not ours and not serves:
            asked = self._asked(name, found, now, kept, way)

        def done() -> None:
            self._seen[name] = now
            if asked is not None:
                self._metrics.alias_moved(name, way)
            if moved:
                fields = {"model": spec.model, "version": now.version, "way": way}
                outcome = {"swap": asked is not None}
                log.get().info("alias_moved", topology=self._topology, detector=name, **fields, **outcome)

        return Due(asked, kept, done)

    def _asked(self, name: str, found: ModelVersion, now: Seen, kept: ModelRows, way: Way) -> Asked:
        """The command. Id and body are made of the event alone: told twice, or after a crash, it is the same."""
        spec = self._specs[name]
        identity = f"registry-{name}-v{now.version}-{now.moves}"
        body = {"id": identity, "detector": name, "model": f"models:/{spec.name}/{found.version}"}
        if now.digest:
            body["digest"] = now.digest
        note = f"{spec.model} moved to version {now.version}, told by {way}"
        encoded = msgspec.json.encode(body)
        return Asked("swap", encoded, "registry", "worker", identity, note, kept)


def _kept(seen: Mapping[str, Seen]) -> ModelRows:
    return {f"{_KEY}{name}": (msgspec.to_builtins(item), None) for name, item in seen.items()}


async def _now(due: Due) -> Due:
    return due


def _pause(poll: float, failures: int) -> float:
    """Seconds until the next look, jittered by a tenth; after failures twice as many for each."""
    longest = max(poll, _LONGEST)
    return min(poll * 2.0 ** min(failures, 20), longest) * random.uniform(0.9, 1.0)

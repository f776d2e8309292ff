"""Which machines are in memory: those of the batch at hand, those they start from, and who is asked for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from stream.errors import ReadingRejected
from stream.ledger import Ledger
from stream.readings import Batch
from stream.scorer import Scorer
from stream.source import Source
from stream.state import Group, Store
from stream.threads import in_thread

__all__ = ["Roster"]


class Roster:
    """Brings machines from the store into a scorer's memory, and makes room there."""

    def __init__(self, source: Source, scorer: Scorer, ledger: Ledger, store: Store) -> None:
        self._source = source
        self._scorer = scorer
        self._ledger = ledger
        self._store = store

    async def admit(
        self, batch: Batch, settle: Callable[[], Awaitable[None]]
    ) -> tuple[Batch, list[tuple[int, ReadingRejected]]]:
        """Have every machine of the batch in memory; messages of machines beyond the limit are refused.

        `settle` commits what is pending, before anybody is put out of memory."""
        residents, source = self._scorer.residents, self._source
        missing = residents.missing(batch.machines)
        if not missing:
            await self._fetch_sisters(batch.machines)
            return batch, []
        if (over := len(residents) + len(missing) - source.resident_machines) > 0:
            await settle()
            here = [machine for machine in batch.machines if machine not in set(missing)]
            self._scorer.evict(over + source.resident_machines // 16, residents.slots(here))
        if self._ledger.machines > len(residents):
            await self._fetch(missing)
            missing = residents.missing(missing)
        room = max(source.max_machines - self._ledger.machines, 0)
        self._scorer.admit(missing[:room], {})
        self._ledger.created(missing[:room])
        await self._fetch_sisters([machine for machine in batch.machines if not residents.missing([machine])])
        if not (refused := set(missing[room:])):
            return batch, []
        detail = f"{source.max_machines} machines are known, which is the limit (max_machines)"
        messages = dict.fromkeys(
            int(m) for m, machine in zip(batch.messages, batch.machines, strict=True) if machine in refused
        )
        kept = batch.select(~np.isin(batch.messages, list(messages)))
        return kept, [(message, ReadingRejected("too_many_machines", detail)) for message in messages]

    async def fetch(self, machines: Sequence[str]) -> None:
        """Have those of these machines in memory that are known."""
        if away := self._scorer.residents.missing(machines):
            await self._fetch(away)

    async def state_of(self, machines: Sequence[str]) -> list[Group]:
        """Copies of the state of those of these machines that are known."""
        residents = self._scorer.residents
        away = residents.missing(machines)
        here = [machine for machine in dict.fromkeys(machines) if machine not in set(away)]
        slots = np.array([residents.find(machine) for machine in here], np.int64)
        found = [Group(here, self._scorer.components(slots))] if here else []
        if away and self._ledger.machines > len(residents):
            found += await in_thread(self._store.fetch, away)
        return found

    async def _fetch_sisters(self, machines: Sequence[str]) -> None:
        """Have those in memory from whom new machines start."""
        if absent := self._scorer.kin.absent(machines):
            await self._fetch(absent)

    async def _fetch(self, machines: Sequence[str]) -> None:
        for group in await in_thread(self._store.fetch, machines):
            self._scorer.admit(*group)

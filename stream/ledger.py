"""What was processed and is not committed yet, and when it is time to commit it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from detectors.base import Slots
from stream.clock import Clock
from stream.metrics import TopologyMetrics
from stream.scorer import Scorer
from stream.state import Changes, Saved, Store, StreamPosition
from stream.threads import in_thread
from stream.topology import CheckpointRule

__all__ = ["Ledger", "Tally"]


@dataclass(slots=True)
class Tally:
    """What became of a batch's messages: counted when it is committed, so that counts are conserved."""

    usable: int = 0
    deadlettered: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)


class Ledger:
    """Collects what batches changed and commits it to the store: state and position, all in one transaction."""

    def __init__(
        self,
        store: Store,
        scorer: Scorer,
        saved: Saved,
        *,
        rule: CheckpointRule,
        metrics: TopologyMetrics,
        clock: Clock,
    ) -> None:
        self.processed = saved.position
        """The last message whose effect is in memory."""
        self.committed = saved.position
        """The last message whose effect is in the store."""
        self.commits = 0
        self.messages = 0
        """Messages processed and not committed."""
        self.stored = saved.stored
        """Machines in the store."""
        self._store = store
        self._scorer = scorer
        self._rule = rule
        self._metrics = metrics
        self._clock = clock
        self._touched: list[Slots] = []
        self._created: set[str] = set()
        self._replays: list[str] = []
        self._tallies: list[Tally] = []
        self._since = 0.0

    def add(
        self,
        position: StreamPosition,
        touched: Slots,
        tally: Tally,
        *,
        messages: int,
        replays: Sequence[str] = (),
    ) -> None:
        """A batch is in memory, and what came of it was published. `touched` are the slots it changed."""
        if not self.messages:
            self._since = self._clock.monotonic()
        self.processed = position
        self.messages += messages
        self._touched.append(touched)
        self._tallies.append(tally)
        self._replays += replays

    def touch(self, slots: Slots) -> None:
        """State of these slots changed other than by a reading."""
        self._touched.append(slots)

    def created(self, machines: Sequence[str]) -> None:
        """Machines that the store does not know yet."""
        self._created.update(machines)

    @property
    def machines(self) -> int:
        """Machines known, in the store or not yet."""
        return self.stored + len(self._created)

    def wait(self) -> float:
        """Seconds until it is time to commit; infinite while there is nothing to commit."""
        if not self.messages:
            return np.inf
        if self.messages >= self._rule.after:
            return 0.0
        return max(self._since + self._rule.every - self._clock.monotonic(), 0.0)

    async def commit(self, changes: Changes) -> None:
        """Commit what is pending, with these changes."""
        self.processed = changes.position
        changes.replays = tuple(self._replays)
        changes.models = {**self._scorer.beside.rows(), **changes.models}
        before = self._clock.monotonic()
        sizes: list[int] = []
        try:
            await in_thread(lambda: sizes.append(self._write(changes)))
        finally:
            if sizes:  # committed, also where whoever waited for it was cancelled
                self._committed(changes, sizes[0], self._clock.monotonic() - before)

    def _write(self, changes: Changes) -> int:
        """Done in a thread, and nothing changes meanwhile: the batch waits for its commit."""
        slots = np.unique(np.concatenate(self._touched)) if self._touched else np.zeros(0, dtype=np.int64)
        changes.machines = [self._scorer.residents.name(slot) for slot in slots.tolist()]
        changes.components = self._scorer.components(slots) if len(slots) else {}
        return self._store.commit(changes)

    def _committed(self, changes: Changes, size: int, seconds: float) -> None:
        self._metrics.checkpoint_duration.observe(seconds)
        self._metrics.checkpoint_time.set(self._clock.now())
        self._metrics.checkpoint_bytes.set(size)
        for tally in self._tallies:
            self._count(tally)
        self.committed = changes.position
        self.commits += 1
        self.messages = 0
        self._touched, self._replays, self._tallies = [], [], []
        self.stored += len(self._created.intersection(changes.machines))
        self._created.difference_update(changes.machines)

    def _count(self, tally: Tally) -> None:
        self._metrics.processed.inc(tally.usable)
        for reason, count in tally.deadlettered.items():
            self._metrics.deadlettered(reason, count)
        for policy, count in tally.passed_over.items():
            self._metrics.passed_over(policy, count)

"""A model after a swap: whether it raises more alerts, errors or costs than the one before, within a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from detectors.base import Floats, Mask
from stream.gates import Condition, RollbackWhen
from stream.windows import Elapsed

__all__ = ["Probation"]

_ENOUGH = 1000
"""Readings from which a mean time says anything."""


class _Record(msgspec.Struct):
    """What came of readings, from `since` to `until` by their own times."""

    readings: int = 0
    alerts: int = 0
    errors: int = 0
    seconds: float = 0.0
    since: float | None = None
    until: float | None = None
    elapsed: Elapsed = msgspec.field(default_factory=Elapsed)
    lasted: float = 0.0
    """Seconds, once it is over."""

    def add(self, times: Floats, alerts: int, seconds: float) -> None:
        if not len(times):
            return
        self.readings += len(times)
        self.alerts += alerts
        self.seconds += seconds
        self.since = float(times[0]) if self.since is None else self.since
        newest = float(times.max())
        self.until = newest if self.until is None else max(self.until, newest)

    @property
    def latency(self) -> float:
        return self.seconds / self.readings if self.readings else 0.0


class _State(msgspec.Struct):
    last: _Record = msgspec.field(default_factory=_Record)
    current: _Record = msgspec.field(default_factory=_Record)
    before: _Record | None = None
    """What was before the swap; None while no model is on probation."""
    verdict: str | None = None


class Probation:
    """Counts readings, alerts, errors and seconds of one detector. What it decides depends on the readings alone, not
    on how they were cut into batches (but for seconds); it is part of the checkpoint."""

    def __init__(self, rule: RollbackWhen, saved: Mapping[str, Any] | None = None) -> None:
        self._rule = rule
        self._state = msgspec.convert(saved or {}, _State)

    @property
    def verdict(self) -> str | None:
        """Why the model before is to take over again; None while there is no reason."""
        return self._state.verdict

    def saved(self) -> dict[str, Any]:
        """As plain data, for the checkpoint."""
        found: dict[str, Any] = msgspec.to_builtins(self._state)
        return found

    def swapped(self) -> None:
        """Another model scores from now on, and is on probation."""
        last, current = self._state.last, self._state.current
        before = _Record(
            last.readings + current.readings,
            last.alerts + current.alerts,
            last.errors + current.errors,
            last.seconds + current.seconds,
            current.since if last.since is None else last.since,
            last.until if current.until is None else current.until,
            lasted=last.lasted + current.elapsed.seconds,
        )
        self._state = _State(before=before, current=_Record(elapsed=current.elapsed.after()))

    def rolled_back(self) -> None:
        """The model before is back: nobody is on probation, and counting begins anew."""
        self._state = _State(current=_Record(elapsed=self._state.current.elapsed.after()))

    def failed(self) -> None:
        """A reading got no score at all, and was put aside."""
        self._state.current.errors += 1
        self._judge()

    def add(
        self, machines: Sequence[str], times: Floats, opened: Mask, unscored: Mask, seconds: float
    ) -> None:
        """Count readings in order, all arrays (n,): whose, when, whether an alert opened, whether there was no
        score."""
        start = 0
        while start < len(times):
            current = self._state.current
            last = current.elapsed.until(machines[start:], times[start:], self._rule.within)
            end = len(times) if last is None else start + last + 1
            rows = slice(start, end)
            current.errors += int(unscored[rows].sum())
            current.add(times[rows], int(opened[rows].sum()), seconds * (end - start) / len(times))
            self._judge()
            if last is not None:
                if self._state.verdict is None:
                    self._state.before = None
                following = current.elapsed.after()
                current.lasted, current.elapsed = current.elapsed.seconds, Elapsed()
                self._state.last, self._state.current = current, _Record(elapsed=following)
            start = end

    def _judge(self) -> None:
        state, before = self._state, self._state.before
        if before is None or state.verdict is not None:
            return
        now, alerts = state.current, float(before.alerts)
        alerts *= self._rule.within / max(before.lasted, self._rule.within)
        figures = {
            "alerts": (float(now.alerts), max(alerts, 1.0)),
            "errors": (float(now.errors), float(before.errors)),
            "latency": (now.latency, before.latency),
        }
        for name, (value, other) in figures.items():
            text = getattr(self._rule, name)
            if text is None or (name == "latency" and now.readings < _ENOUGH):
                continue
            if (condition := Condition.parse(text)).holds(value, other):
                beside = f" beside {other:.4g} before the swap" if condition.of else ""
                state.verdict = f"{name} since the swap: {value:.4g}{beside}, which is {text}"
                return

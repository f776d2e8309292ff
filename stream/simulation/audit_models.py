"""The auditor of what a topology does with models by itself: swaps taken back, and an alias that is followed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from stream.simulation.outcome import Committed, Outcome
from stream.simulation.schedule import START, Command

__all__ = ["Watch", "acts", "another", "changes", "check_models", "followed"]

_ROUNDING = 0.001
"""Seconds: the audit's times are of milliseconds."""


def changes(outcome: Outcome) -> list[Mapping[str, Any]]:
    """Receipts of what put a model in place, in the order of their commits."""
    kept = outcome.saved.commands
    committed = [name for what in outcome.story if isinstance(what, Committed) for name in what.commands]
    return [kept[name] for name in committed if kept[name]["verb"] in ("swap", "rollback", "promote")]


def another(receipt: Mapping[str, Any]) -> bool:
    """Whether what is in place since is not what was there before."""
    return bool(receipt["model"]["version"] != receipt["replaced"]["version"])


def acts(outcome: Outcome) -> list[tuple[int, Mapping[str, Any], Command | None]]:
    """What commands did, in order: the last place before it, the receipt; and the command that said it of alerts."""
    sent = {command.id: command for command in reversed(outcome.schedule.commands)}
    found: list[tuple[int, Mapping[str, Any], Command | None]] = []
    for what in outcome.story:
        for name in what.commands if isinstance(what, Committed) else ():
            receipt = outcome.saved.commands[name]
            if receipt["verb"] in ("accept", "label"):
                found.append((what.position, receipt, sent[name]))
            elif receipt["verb"] in ("swap", "rollback", "promote", "shadow"):
                found.append((what.position, receipt, None))
    return found


def followed(line: Mapping[str, Any]) -> str:
    """The version to which an alias moved, by the id of the command that this line of the audit is of."""
    found = re.fullmatch(r"registry-scale-v(\d+)-\d+", str(line["id"]))
    return found[1] if found else "?"


@dataclass
class _Span:
    """Readings from one time on, by their own times, and the alerts that opened."""

    alerts: int = 0
    since: float | None = None
    until: float | None = None
    heard: dict[str, list[float]] = field(default_factory=dict)
    """Each machine's first time, its newest one, and the count of readings at its last."""
    count: int = 0
    before: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
    """The machines of the span before, and of the one before that, which are waited for."""

    @property
    def lasted(self) -> float:
        """Seconds that half lived through of those who are still heard, or still to come."""
        to_come = frozenset.union(*self.before) - self.heard.keys()
        return _half([*self._lived(), *(0.0 for _ in to_come)])

    def is_over(self, within: float) -> bool:
        """Whether it lasts so long; after three times that, whoever is still to come has stopped."""
        if _half(self._lived()) >= 3 * within:
            self.before = (frozenset(), frozenset())
        return self.lasted >= within

    def following(self) -> _Span:
        """The span that begins where this one ends."""
        return _Span(before=(frozenset(self.heard), self.before[0]))

    def _lived(self) -> list[float]:
        return [newest - first for first, newest, at in self.heard.values() if at > self.count / 2]


@dataclass
class Watch:
    """Whether the model that a swap put in place raises more alerts than is allowed; reading by reading."""

    rule: str
    within: float
    condemned: dict[str, int] = field(default_factory=dict)
    """The commands that are to be taken back, and the place of the reading that showed it."""
    _swap: str | None = None
    _before: float = 0.0
    _last: _Span = field(default_factory=_Span)
    _current: _Span = field(default_factory=_Span)

    def changed(self, receipt: Mapping[str, Any]) -> None:
        """This command put another model in place."""
        last, current = self._last, self._current
        alerts = float(last.alerts + current.alerts)
        alerts *= self.within / max(last.lasted + current.lasted, self.within)
        self._swap, self._before = None if receipt["verb"] == "rollback" else receipt["command"], alerts
        self._last, self._current = _Span(), current.following()

    @property
    def spans(self) -> dict[str, tuple[int, float | None, float | None]]:
        """The last whole span and the one at hand: alerts, since when and until when."""
        spans = {"last": self._last, "current": self._current}
        return {name: (span.alerts, span.since, span.until) for name, span in spans.items()}

    def add(self, machine: str, time: float, place: int, *, opened: bool) -> None:
        """The model in place scored a reading."""
        now = self._current
        now.since = time if now.since is None else now.since
        now.until = time if now.until is None else max(now.until, time)
        now.alerts += opened
        if self._swap is not None and self._too_many(now.alerts):
            self.condemned.setdefault(self._swap, place)
        now.count += 1
        first, newest, _ = now.heard.get(machine, (time, time, 0))
        now.heard[machine] = [first, max(newest, time), now.count]
        if time - first >= self.within and now.is_over(self.within):
            if self._swap not in self.condemned:
                self._swap = None
            self._last, self._current = now, now.following()

    def _too_many(self, alerts: int) -> bool:
        operator, number, *of = self.rule.split()
        limit = float(number) * (max(self._before, 1.0) if of else 1.0)
        return alerts > limit or (operator == ">=" and alerts == limit)


def _half(lived: list[float]) -> float:
    """What half of them lived through; 0 of nobody."""
    return sorted(lived)[len(lived) // 2] if lived else 0.0


def check_models(outcome: Outcome, condemned: Mapping[str, int]) -> list[str]:
    """What is wrong, in sentences. `condemned` are the swaps to be taken back, by the readings alone."""
    return [*_check_rollbacks(outcome, condemned), *_check_following(outcome)]


def _check_rollbacks(outcome: Outcome, condemned: Mapping[str, int]) -> list[str]:
    """A swap that is condemned is taken back once, unless another command was quicker; and no other one is."""
    found: list[str] = []
    before: Mapping[str, Any] | None = None
    for receipt in filter(another, changes(outcome)):
        if receipt["by"] == "rollback_when":
            if before is None or before["command"] not in condemned:
                found.append(f"{receipt['command']}: a swap was taken back that nothing condemns")
            if not str(receipt.get("note")).startswith("alerts since the swap: "):
                found.append(f"{receipt['command']}: the receipt does not say why: {receipt.get('note')}")
        before = receipt
    if before is not None and before["command"] in condemned:
        found.append(f"{before['command']}: was not taken back, after reading {condemned[before['command']]}")
    return found


def _check_following(outcome: Outcome) -> list[str]:
    """Each move of the alias was followed at most once, the last one for certain, and nothing else was."""
    found: list[str] = []
    moves, last = outcome.moves, -1
    for line in outcome.saved.audit:
        if line["by"] != "registry" or line["status"] == "duplicate":
            continue
        version, at = followed(line), datetime.fromisoformat(line["at"]).timestamp() - START + _ROUNDING
        behind = range(last + 1, len(moves))
        told = [
            i for i in behind if str(moves[i].version) == version and moves[i].at <= at and not moves[i].ours
        ]
        if not told:
            found.append(f"{line['id']}: the alias had not moved there, or that was followed before")
        last = told[0] if told else last
    if not outcome.schedule.poll or not moves or last == len(moves) - 1 or moves[-1].ours:
        return found
    newest = moves[-1].version
    meant = [1, *(move.version for move in moves)][last + 1 : -1]
    served = [receipt["model"]["version"] for receipt in _serving(outcome, moves[-1].at)]
    pointed = [receipt["model"]["version"] for receipt in changes(outcome) if receipt["verb"] == "promote"]
    if newest not in (*meant, *served, *pointed):
        found.append(f"the alias moved to version {newest}, and nobody followed")
    return found


def _serving(outcome: Outcome, since: float) -> list[Mapping[str, Any]]:
    """What put models in place that served at some time since."""
    kept = outcome.saved.commands
    found: list[Mapping[str, Any]] = [{"model": {"version": 1}}]
    for what in (what for what in outcome.story if isinstance(what, Committed)):
        for name in what.commands:
            if kept[name]["verb"] in ("swap", "rollback", "promote"):
                found = [*(found if what.at > since else []), kept[name]]
    return found
